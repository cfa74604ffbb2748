"""What several test files start from."""
import pytest
import torch

from nanoharmon.harmon import Harmon
from nanoharmon.pipeline import Pipeline
from nanoharmon.tokenizer import Tokenizer
from nanoharmon.training.recipe import Config
from nanoharmon.world.source import training_texts


@pytest.fixture(scope="module")
def pico(tmp_path_factory):
    """A checkpoint directory with random weights."""
    config = Config.preset("pico")
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(training_texts(config.data, 100), config.model.llm.vocab_size)
    path = tmp_path_factory.mktemp("pico")
    Pipeline(Harmon(config.model), tokenizer, {"size": 16, "board": 2}).save(path)
    return path
