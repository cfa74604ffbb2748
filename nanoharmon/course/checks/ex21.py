"""Exercise 21, select: which parameters a stage trains, and which it freezes."""
import random

import torch
from torch import nn

from nanoharmon.config import pico
from nanoharmon.harmon import Harmon
from nanoharmon.training.optim import select
from nanoharmon.training.recipe import STAGES, pico_stages

POINTS = {"test_what_begins_with_a_prefix_is_trained": 1, "test_the_rest_is_frozen_stage_after_stage": 1,
          "test_spaces_and_empty_prefixes_do_not_count": 1, "test_a_prefix_that_fits_nothing_is_an_error": 1}


def example(seed):
    """A small model with names that tell prefixes from other ways to compare: alpha.beta, beta, alphabet, ..."""
    rng, model = random.Random(f"21/{seed}"), nn.Module()
    for root in rng.sample(("alpha", "beta", "alphabet", "gamma"), 4):
        child = nn.Module()
        for name in rng.sample(("beta", "betas", "delta"), 3):
            child.add_module(name, nn.Linear(rng.choice((2, 3)), 2))
        model.add_module(root, child)
    model.register_buffer("alpha_statistics", torch.zeros(2))
    return model


def check(model, trained, expected, got):
    """got, and what requires a gradient, are the parameters with the names `expected`."""
    params = dict(model.named_parameters())
    assert isinstance(got, dict), f"select returns a {type(got).__name__}, expected a dict of {{name: parameter}}"
    for name in sorted(expected ^ set(got)):
        assert name in params, f"select(model, {trained!r}) returns {name}, which is no parameter"
        words = [prefix.strip() for prefix in trained.split(",")]
        why = "should be in it" if name in expected else "should not be in it"
        if name in got and "" in words:
            why += ": the empty prefix around a comma does not count, or it would fit every name"
        elif name in got and any(word in name for word in words):
            why += ": a prefix counts at the beginning of a name only"
        raise AssertionError(f"select(model, {trained!r}) returns a dict in which {name} {why}")
    for name, p in got.items():
        assert p is params[name], \
            f"{name} in the returned dict is not the model's own parameter (a copy, or of state_dict()): training it " \
            f"would not change the model"
    for name, p in params.items():
        if name in expected:
            assert p.requires_grad, f"after select(model, {trained!r}), {name} is still frozen: a stage also thaws " \
                                    f"what the stage before has frozen"
        else:
            assert not p.requires_grad, f"after select(model, {trained!r}), {name} still requires a gradient: freeze " \
                                        f"what no prefix fits"


def names(model, *starts):
    return {name for name, _ in model.named_parameters() if any(name[:len(s)] == s for s in starts)}


def test_what_begins_with_a_prefix_is_trained(seed):
    for prefixes in (["beta"], ["alpha."], ["alpha"], ["gamma.delta.weight"], ["alpha.beta", "beta."]):
        model = example(seed)
        trained = ",".join(prefixes)
        check(model, trained, names(model, *prefixes), select(model, trained))


def test_the_rest_is_frozen_stage_after_stage(seed):
    model, rng = example(seed), random.Random(f"21/order/{seed}")
    stages = ["alpha.", "beta.,gamma.", "alphabet.", "alpha.,beta.,gamma.,alphabet."]
    rng.shuffle(stages)
    for trained in [*stages, stages[0]]:
        check(model, trained, names(model, *trained.split(",")), select(model, trained))

    model, stages = Harmon(pico()), pico_stages()
    parts = {"vae": {"vae"}, "llm": {"llm"}, "mar": {"mar"}, "1": {"mar", "proj_in", "proj_out"},
             "2": {"mar", "llm", "proj_in", "proj_out"}, "3": {"mar", "llm", "proj_in", "proj_out"}}
    for name in random.Random(f"21/stages/{seed}").sample(STAGES, len(STAGES)):
        expected = {n for n, _ in model.named_parameters() if n.split(".")[0] in parts[name]}
        check(model, stages[name].train_parts, expected, select(model, stages[name].train_parts))


def test_spaces_and_empty_prefixes_do_not_count(seed):
    for trained in ("beta.,", ",beta.", " beta. ", "gamma., beta.", "gamma.,,beta."):
        model = example(seed)
        try:
            got = select(model, trained)
        except ValueError as e:
            raise AssertionError(f"select(model, {trained!r}) raises a ValueError ({e}): spaces around a prefix do not "
                                 f"count") from None
        check(model, trained, names(model, *(p.strip() for p in trained.split(",") if p.strip())), got)


def test_a_prefix_that_fits_nothing_is_an_error(seed):
    select(example(seed), "beta.,gamma.")                        # no error here
    for trained, lost in (("beta.,omega.", "omega."), ("bta.", "bta."), ("delta", "delta"), ("", ""), (" , ", "")):
        try:
            select(example(seed), trained)
        except ValueError as e:
            assert lost in str(e), f"the ValueError of select(model, {trained!r}) does not name {lost!r}: {e}"
        else:
            what = f"the prefix {lost!r} fits no parameter" if lost else "there is nothing to train"
            raise AssertionError(f"select(model, {trained!r}) raises no ValueError, though {what}: a mistyped flag "
                                 f"would train less than one thinks")
