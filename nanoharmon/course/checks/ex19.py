"""Exercise 19, Harmon.through_llm: what the LLM adds to the encoder's output."""
import random

import torch

from nanoharmon.qwen import KVCache
from nanoharmon.course.checks.compare import same
from nanoharmon.course.checks.tiny import small_harmon

POINTS = {"test_the_last_states_are_added_with_the_buffers_in_front": 2, "test_padding_of_the_prompt_does_not_count": 2,
          "test_with_a_cache_of_the_prompt": 2, "test_gradients_flow_and_nothing_is_overwritten": 1}


def example(seed, lengths=None):
    """A model; encoded (B, U+K, D), embeds (B, K+U, E), text (B, T, E), is_real (B, T) of random prompts.

    lengths: of the prompts; all T = the longest of them by default.
    """
    rng = random.Random(f"19/{seed}")
    model = small_harmon(rng)
    B, K = rng.choice((2, 3)), rng.choice([k for k in (1, 3, 4) if k != model.config.mar.buffer_size])
    lengths = [rng.choice((4, 6))] * B if lengths is None else [rng.randint(*lengths) for _ in range(B - 1)]
    lengths = lengths if len(lengths) == B else [*lengths, max(lengths) + rng.choice((2, 3))]
    n, T = K + model.config.mar.buffer_size, max(lengths)
    generator = torch.Generator().manual_seed(rng.getrandbits(48))
    D, E = model.config.mar.encoder_embed_dim, model.config.llm.hidden_size
    encoded, embeds, text = (torch.randn(B, *shape, generator=generator) for shape in ((n, D), (n, E), (T, E)))
    return model, encoded, embeds, text, torch.arange(T) < torch.tensor(lengths)[:, None]


def states_of(model, embeds, text, is_real):
    """The LLM's last states (1 row at a time, without any padding) at the places of the picture: (B, n, E)."""
    return torch.cat([model.llm.model(torch.cat([t[real], e])[None])[:, int(real.sum()):]
                      for e, t, real in zip(embeds, text, is_real)])


def summed_of(model, encoded, states):
    """encoded row by row plus the projected state of the same token; the states have the buffers at the end."""
    U, rows = model.config.mar.buffer_size, []
    K = encoded.shape[1] - U
    for i in range(U + K):
        state = states[:, K + i] if i < U else states[:, i - U]
        rows.append(encoded[:, i] + model.proj_out(state))
    return torch.stack(rows, dim=1)


@torch.no_grad()
def test_the_last_states_are_added_with_the_buffers_in_front(seed):
    model, encoded, embeds, text, is_real = example(seed)
    states = states_of(model, embeds, text, is_real)
    U, n, expected = model.config.mar.buffer_size, encoded.shape[1], summed_of(model, encoded, states)
    every = model.llm.model(torch.cat([text, embeds], dim=1))                    # (B, T+n, E)
    swapped = model.llm.model(torch.cat([embeds, text], dim=1))                  # the picture before the prompt
    same("summed", model.through_llm(encoded, embeds, text, is_real), expected, {
        "the encoder's output is not added (the residual is missing)": expected - encoded,
        "the LLM's states stay in its order: the buffers must come back to the front before the sum":
         encoded + model.proj_out(states),
        "the states are moved in the wrong direction: the last U come to the front":
         encoded + model.proj_out(states.roll(-U, 1)),
        "the states of the first K+U places are taken, where the prompt is: the picture's are the last K+U":
         summed_of(model, encoded, every[:, :n]),
        "the picture stands before the prompt: the prompt comes first, or the picture cannot see it":
         summed_of(model, encoded, swapped[:, :n]),
        "the last K+U states are taken, but the picture stands before the prompt":
         summed_of(model, encoded, swapped[:, -n:]),
        "the LLM never sees the prompt": summed_of(model, encoded, model.llm.model(embeds))})


@torch.no_grad()
def test_padding_of_the_prompt_does_not_count(seed):
    model, encoded, embeds, text, is_real = example(seed, lengths=(2, 5))
    n, B = embeds.shape[1], len(embeds)
    expected = summed_of(model, encoded, states_of(model, embeds, text, is_real))
    both, all_real = torch.cat([text, embeds], dim=1), torch.cat([is_real, torch.ones(B, n, dtype=torch.bool)], dim=1)
    counted = all_real.long().cumsum(1)
    restarted = torch.cat([torch.arange(text.shape[1]).expand(B, -1), torch.arange(n).expand(B, -1)], dim=1)

    def states(positions, is_real):
        return summed_of(model, encoded, model.llm.model(both, positions, is_real)[:, -n:])
    right = counted - 1
    same("summed of prompts of different lengths", model.through_llm(encoded, embeds, text, is_real), expected, {
        "padding counts in the positions: the picture's go on from the last real token": states(None, all_real),
        "padding counts in the positions and is attended to": states(None, None),
        "padding is attended to: hand the LLM an is_real that covers prompt and picture": states(right, None),
        "the picture's positions start again at 0": states(restarted, all_real),
        "all rows go on from the length of the first prompt": states(right[:1].expand(B, -1), all_real)})
    longer = torch.cat([text, torch.full_like(text[:, :2], 7.0)], dim=1)         # more padding, of other values
    more = torch.cat([is_real, torch.zeros(B, 2, dtype=torch.bool)], dim=1)
    same("summed of prompts with more padding", model.through_llm(encoded, embeds, longer, more), expected)


@torch.no_grad()
def test_with_a_cache_of_the_prompt(seed):
    model, encoded, embeds, text, is_real = example(seed, lengths=(2, 5))
    expected, T, n = summed_of(model, encoded, states_of(model, embeds, text, is_real)), text.shape[1], embeds.shape[1]
    cache = KVCache()
    model.llm.model(text, is_real=is_real, cache=cache)
    cache.append = False
    all_real = torch.cat([is_real, torch.ones(len(embeds), n, dtype=torch.bool)], dim=1)

    def states(positions):
        return summed_of(model, encoded, model.llm.model(embeds, positions, all_real, cache))
    mistakes = {"padding counts in the positions: the picture's go on from the last real token": states(None),
                "the picture's positions start at 0: with a cache they go on from the prompt's":
                 states(torch.arange(n).expand(len(embeds), -1)),
                "the picture gets the positions of the first K+U places instead of the last":
                 states((all_real.long().cumsum(1) - 1)[:, :n]),
                "the LLM is run without the cache, so that it never sees the prompt":
                 summed_of(model, encoded, model.llm.model(embeds))}
    for time in ("first", "second"):                         # as in the drawing loop: the cache is read again and again
        got = model.through_llm(encoded, embeds, None, is_real, cache)
        same(f"the {time} summed from a cache that holds the prompt", got, expected, mistakes)
        assert len(cache) == T, f"the cache holds {len(cache)} tokens after the call, expected the prompt's {T}"


def test_gradients_flow_and_nothing_is_overwritten(seed):
    model, *given, is_real = example(seed, lengths=(2, 5))
    given = [x.requires_grad_() for x in given]
    before = [x.detach().clone() for x in [*given, is_real]]
    leaves = [x * 1 for x in given]                          # not leaves, so that an in-place change is possible at all
    summed = model.through_llm(*leaves, is_real)
    for name, old, new in zip(("encoded", "embeds", "text", "is_real"), before, [*leaves, is_real]):
        assert torch.equal(old, new), f"{name} is changed in place: the caller still needs it; make a new tensor"
    assert summed.requires_grad, "summed has no gradient: no detach() and no no_grad() here, this path is trained"
    weights = torch.randn(summed.shape, generator=torch.Generator().manual_seed(0))
    (summed * weights).sum().backward()
    for name, x in zip(("encoded", "embeds", "text"), given):
        assert x.grad is not None and x.grad.any(), f"no gradient reaches {name}: no detach() on its way"
    same("the gradient of encoded", given[0].grad, weights, {
        "encoded is added more than once, or scaled": 2 * weights})
    assert all(p.grad is not None for p in model.proj_out.parameters()), "no gradient reaches proj_out: no detach()"
