"""Checks of exercise 17: the drawing loop. Each token that is drawn says of which picture and which place it is."""
import math
import random
from dataclasses import dataclass

import torch

from nanoharmon.config import MARConfig
from nanoharmon.course.checks.compare import same, unchanged
from nanoharmon.mar import MAR

POINTS = {"test_every_token_once": 2, "test_what_the_model_sees": 1, "test_guidance": 1, "test_painting_in": 1,
          "test_callback_and_options": 1}
C, D = 3, 4


@dataclass
class Call:
    """What `predict` and the sampler got in one iteration."""
    latents: torch.Tensor
    visible: torch.Tensor
    drawn: torch.Tensor
    rows: int = 0
    cfg: float = 1.0
    guided: bool | None = None
    options: dict | None = None


def counts_of(n, iters):
    counts = [n]
    for i in range(1, iters):
        counts.append(max(1, min(counts[-1] - 1, math.floor(n * math.cos(math.pi / 2 * i / iters)))))
    return counts + [0]


def token(b, s):
    """The token that is drawn for place s of picture b, (C,)."""
    return torch.tensor([b + 1.0, s + 1.0, (b + 1) * (s + 1.0)])


def draw(orders, iters, cfg=1.0, **options):
    """Run MAR.draw with a model that draws `token(b, s)`. Returns (latents, [Call])."""
    mar, calls, B = MAR(MARConfig(grid=2, token_dim=C, encoder_embed_dim=4, encoder_depth=1, encoder_num_heads=2,
                                  decoder_embed_dim=D, decoder_depth=1, decoder_num_heads=2, buffer_size=1,
                                  class_num=2, diffloss_d=1, diffloss_w=8)), [], len(orders)

    def predict(latents, visible, to_draw):
        assert to_draw.shape[1] > 0, "predict is called for no token; skip an iteration that has none to draw"
        calls.append(Call(latents.clone(), visible, to_draw))
        z = torch.stack([torch.stack([torch.tensor([1.0, b, s, 0.0]) for s in row.tolist()])
                         for b, row in enumerate(to_draw)])
        return z if cfg == 1.0 else torch.cat([z, -z])                       # the unconditional half is negative

    def sample(z, temperature=1.0, cfg=1.0, steps=100, sampler="ddpm", generator=None, randn=None, guided=None, **more):
        call = calls[-1]
        assert z.ndim == 2 and z.shape[1] == D, f"the sampler gets z of shape {tuple(z.shape)}, expected (rows, {D})"
        call.rows, call.cfg, call.guided = len(z), cfg, cfg != 1.0 if guided is None else guided
        call.options = {"temperature": temperature, "steps": steps, "sampler": sampler, "generator": generator, **more}
        half = len(z) // 2 if call.guided else len(z)
        assert call.guided or (z[:, 0] > 0).all(), "growing guidance may pass through 1: tell the sampler " \
            "guided=True whenever cfg != 1, or it takes the two halves for pictures of their own"
        assert (z[:half, 0] > 0).all() and (z[half:, 0] < 0).all(), "the sampler wants all conditional rows of the " \
            "batch first, then all unconditional ones"
        return torch.stack([token(int(b), int(s)) for _, b, s, _ in z[:half].tolist()])
    mar.diffloss.sample = sample
    return mar.draw(predict, orders, iters, cfg, **options), calls


def orders_of(B, S):
    return torch.rand(B, S).argsort(dim=1)


def drawn_sets(orders, iters, last_first=True):
    """[[set of places that picture b draws in an iteration]], the empty iterations left out."""
    rows, counts = orders.tolist(), counts_of(orders.shape[1], iters)
    if not last_first:
        rows = [row[::-1] for row in rows]
    return [[set(row[after:before]) for row in rows] for before, after in zip(counts, counts[1:]) if before > after]


def sets(calls, name):
    return [[set(row) for row in getattr(call, name).tolist()] for call in calls]


def test_every_token_once(seed):
    rng = random.Random(seed)
    for iters in (1, rng.randint(3, 5), rng.randint(25, 30)):
        B, S = rng.randint(2, 4), rng.randint(9, 16)
        orders = orders_of(B, S)
        before = orders.clone()
        result, calls = draw(orders, iters)
        unchanged("orders", before, orders)
        what, got, right = f"{S} tokens, iters {iters}", sets(calls, "drawn"), drawn_sets(orders, iters)
        assert len(got) == len(right), f"{what}: the model is asked {len(got)} times, expected {len(right)}"
        assert got == right or got != drawn_sets(orders, iters, False), \
            f"{what}: the first entries of orders are drawn first; the last ones come first"
        all_drawn = [[s for call in calls for s in call.drawn[b].tolist()] for b in range(B)]
        assert all(len(set(row)) == len(row) for row in all_drawn), f"{what}: a token is drawn twice"
        assert [[len(s) for s in row] for row in got] == [[len(s) for s in row] for row in right], \
            f"{what}: {[len(row[0]) for row in got]} tokens are drawn, expected {[len(row[0]) for row in right]}, " \
            f"the differences of unmasking_schedule"
        assert got == right, f"{what}: in the first iteration picture 0 draws {sorted(got[0][0])}, expected " \
                             f"{sorted(right[0][0])}: the last entries of its order"
        expected = torch.stack([torch.stack([token(b, s) for s in range(S)]) for b in range(B)])
        same(f"{what}: the latents", result, expected, {
            "nothing is returned to its place: the latents are still zeros": torch.zeros_like(expected),
            "the tokens of the last iteration alone are there": lambda: torch.zeros_like(expected).scatter(
                1, calls[-1].drawn[..., None].expand(-1, -1, C), expected.gather(
                    1, calls[-1].drawn[..., None].expand(-1, -1, C))),
            "the tokens of the batch are mixed: the sampler's rows are picture after picture":
                lambda: expected.flatten(0, 1).unflatten(0, (S, B)).transpose(0, 1),
        })


def test_what_the_model_sees(seed):
    rng = random.Random(seed)
    B, S, iters = rng.randint(2, 4), rng.randint(9, 16), rng.randint(4, 6)
    orders = orders_of(B, S)
    _, calls = draw(orders, iters)
    done = [set() for _ in range(B)]
    for i, (call, drawn) in enumerate(zip(calls, drawn_sets(orders, iters))):
        got = sets([call], "visible")[0]
        assert got == done or got != [a | b for a, b in zip(done, drawn)], \
            "visible has the places that are drawn only now; it should have those that were drawn before"
        assert got == done or got != [set(range(S)) - a for a in done], "visible and hidden places are swapped"
        assert got == done, f"iteration {i}: for picture 0 {sorted(got[0])} are visible, expected {sorted(done[0])}"
        assert (call.visible.diff(dim=1) > 0).all(), "visible is not in raster order: sort each row"
        now = torch.zeros(B, S, C)
        for b in range(B):
            for s in done[b]:
                now[b, s] = token(b, s)
        same(f"the latents that predict gets in iteration {i}", call.latents, now, {
            "the tokens drawn before are not in them": torch.zeros_like(now)})
        done = [a | b for a, b in zip(done, drawn)]


def test_guidance(seed):
    rng = random.Random(seed)
    B, S, iters, cfg = rng.randint(2, 4), rng.randint(12, 20), rng.randint(4, 6), rng.uniform(2, 5)
    orders, counts = orders_of(B, S), counts_of(S, iters)
    result, calls = draw(orders, iters, cfg)
    same("the latents with guidance", result, draw(orders, iters)[0])
    assert all(call.rows == 2 * B * call.drawn.shape[1] for call in calls), "the sampler should get both halves of z"
    same("cfg in each iteration, cfg_schedule constant", [call.cfg for call in calls], [cfg] * len(calls), {
        "cfg is not passed to the sampler": [1.0] * len(calls)})
    after = counts[1:]

    def grown(left, n=S):
        return [1 + (cfg - 1) * (n - x) / n for x in left]
    _, calls = draw(orders, iters, cfg, cfg_schedule="linear")
    same("cfg in each iteration, cfg_schedule linear", [call.cfg for call in calls],
         grown([max(1, x) for x in after]), {
        "cfg_schedule is not used": [cfg] * len(calls),
        "the share is that before the iteration; it is that after it": grown(counts[:-1]),
        "the last iteration has the full cfg; one token counts as hidden even then": grown(after),
        "cfg grows from 0, and not from 1": [cfg * (S - max(1, x)) / S for x in after],
        "cfg falls instead of growing": [1 + (cfg - 1) * max(1, x) / S for x in after],
        "cfg grows with the number of iterations, and not of tokens":
            [1 + (cfg - 1) * (i + 1) / iters for i in range(iters)],
    })
    places = orders_of(B, 1)
    _, calls = draw(places, 1, cfg, cfg_schedule="linear")                   # one token: the share is 0, cfg is 1
    assert calls[0].cfg == 1.0, f"the only iteration has cfg {calls[0].cfg}, expected 1: one token counts as hidden"
    _, calls = draw(orders, iters)
    assert not calls[0].guided and calls[0].rows == B * calls[0].drawn.shape[1], "without guidance, z is not doubled"


def test_painting_in(seed):
    rng = random.Random(seed)
    B, S, n, iters = rng.randint(2, 4), rng.randint(10, 16), rng.randint(4, 6), rng.randint(2, 3)
    both = orders_of(B, S)
    orders, known = both[:, :n], both[:, n:]
    picture = torch.randn(B, S, C).double()
    before, known_before = picture.clone(), known.clone()
    result, calls = draw(orders, iters, latents=picture, known=known)
    _, some = draw(orders, iters, 3.0, cfg_schedule="linear", latents=picture, known=known)
    same("cfg with known tokens, cfg_schedule linear", [call.cfg for call in some],
         [1 + 2 * (n - max(1, x)) / n for x in counts_of(n, iters)[1:]], {
        "the share is that of all tokens, not of those to draw":
            [1 + 2 * (S - max(1, x)) / S for x in counts_of(n, iters)[1:]]})
    unchanged("latents", before, picture)
    unchanged("known", known_before, known)
    right = before.clone()
    for b in range(B):
        for s in orders[b].tolist():
            right[b, s] = token(b, s)
    same("the latents", result, right, {
        "the known tokens are lost": torch.where(right == before, 0, right),
        "nothing is drawn": before})
    assert result.dtype == torch.float64, f"latents are float64 and the result {str(result.dtype)[6:]}: keep the dtype"
    first = sets(calls, "visible")[0]
    assert first != [set() for _ in range(B)], "the known places are not among the visible ones"
    assert first == [set(row) for row in known.tolist()], "at first, just the known places are visible"
    assert all((call.visible.diff(dim=1) > 0).all() for call in calls), \
        "visible is not in raster order: sort known and drawn places together"
    assert sets(calls, "drawn") == drawn_sets(orders, iters), "the places of orders are drawn, the last entries first"


def test_callback_and_options(seed):
    rng = random.Random(seed)
    B, S, iters = rng.randint(2, 4), rng.randint(8, 12), rng.randint(3, 5)
    orders, seen = orders_of(B, S), []
    known = torch.full((B, 1), S)
    result, calls = draw(orders, iters, latents=torch.zeros(B, S + 1, C), known=known, steps=17, temperature=0.9,
                         sampler="ddim", on_iteration=lambda latents, visible: seen.append((latents.clone(), visible)))
    wanted = {"temperature": 0.9, "steps": 17, "sampler": "ddim"}
    got = {name: calls[0].options[name] for name in wanted}
    assert got == wanted, f"the sampler gets {got}, expected {wanted}: pass **sampling on"
    assert len(seen) == len(calls), f"on_iteration is called {len(seen)} times in {len(calls)} iterations"
    done = [{S} for _ in range(B)]
    for (latents, visible), drawn in zip(seen, drawn_sets(orders, iters)):
        before, done = done, [a | b for a, b in zip(done, drawn)]
        at = [set(row) for row in visible.tolist()]
        assert at != before, "on_iteration gets the places visible before the iteration, expected those after it"
        assert at == done, f"on_iteration gets {sorted(at[0])} as visible in picture 0, expected {sorted(done[0])}"
        filled = [set(row.nonzero()[:, 0].tolist()) for row in latents.abs().sum(dim=-1)]
        assert filled == [row - {S} for row in done], "on_iteration gets the latents of before the iteration"
    same("the last latents of on_iteration", seen[-1][0], result)
