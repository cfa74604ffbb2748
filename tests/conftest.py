"""What several test files start from."""
import itertools

import pytest
import torch

from nanoharmon.harmon import Harmon
from nanoharmon.pipeline import Pipeline
from nanoharmon.qwen import Qwen
from nanoharmon.tokenizer import Tokenizer
from nanoharmon.training.recipe import Config
from nanoharmon.world.source import training_texts

torch.set_num_threads(1)                                         # models are small here


def fill_zeros(model, std=0.1):
    """As built, a model has layers of zeros, which would hide all that comes before them. Returns the model."""
    for p in [p for p in model.parameters() if not p.any()]:
        torch.nn.init.normal_(p, std=std)
    return model


@pytest.fixture
def short_replies(monkeypatch):
    """Random weights talk on until the limit: four tokens do where only the reply's being there counts."""
    whole = Qwen.generate
    monkeypatch.setattr(Qwen, "generate", lambda *args, **options: itertools.islice(whole(*args, **options), 4))


@pytest.fixture(scope="session")
def pico(tmp_path_factory):
    """A checkpoint directory with random weights."""
    config = Config.preset("pico")
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(training_texts(config.data, 100), config.model.llm.vocab_size)
    path, model = tmp_path_factory.mktemp("pico"), fill_zeros(Harmon(config.model))
    Pipeline(model, tokenizer, {"size": 16, "board": 2}).save(path)
    return path
