"""The wing of discrete tokens, against cases worked out by hand.     python -m pytest -q tests/test_compare.py"""
import json
import math
import random
import subprocess
import sys

import pytest
import torch
from PIL import Image

from nanoharmon.compare import __main__ as compare, bits, metrics, systems
from nanoharmon.compare.discrete import Discrete, guide, pick
from nanoharmon.compare.metrics import measure, over_seeds, tables
from nanoharmon.compare.teacher import Teacher, contrast_batch, info_nce, sigmoid_loss, zero_shot
from nanoharmon.compare.toklip import DISTILL, TokLIP, toklip_loss
from nanoharmon.compare.vq import COMMITMENT, VQ, straight_through, usage, vq_loss
from nanoharmon.config import PRESETS
from nanoharmon.evals.common import rate
from nanoharmon.pictures import to_pixels
from nanoharmon.tokenizer import Tokenizer, pad
from nanoharmon.training.optim import make_optimizers
from nanoharmon.training.recipe import DataConfig, OptimConfig
from nanoharmon.weights.safetensors import open_tensors
from nanoharmon.world.source import ShapesData, training_texts

WORLD = ShapesData(DataConfig(scenes=200, board=2))
TOKENIZER = Tokenizer.train(training_texts(WORLD.config, 50), 384)


def pictures(first, n, size=16):
    return to_pixels(torch.from_numpy(WORLD.pictures(range(first, first + n), size)))


def learn(params, loss_of, steps, **rates):                      # loss_of: of a step
    optimizers = make_optimizers(dict(params), OptimConfig(**rates))
    for step in range(steps):
        loss_of(step).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


# --- vq.py ------------------------------------------------------------------------------------------------------------

def test_rounding_is_passed_on_as_if_it_were_not_there():
    z, code = torch.tensor([0.6, 0.8], requires_grad=True), torch.tensor([1.0, 0.0], requires_grad=True)
    out = straight_through(z, code)
    assert out.tolist() == [1, 0]
    (out * torch.tensor([3.0, -2.0])).sum().backward()
    assert z.grad.tolist() == [3, -2] and code.grad is None


def test_the_loss_is_the_sum_of_its_four_terms_and_pulls_each_side(monkeypatch):
    """A codebook of two codes along the axes; z at (0.6, 0.8), so its code is (0, 1), both differences (0.6, -0.2)."""
    vq = VQ(PRESETS["pico"]().vae, codes=2, code_dim=2).eval()
    vq.embedding.weight.data = 5 * torch.eye(2)                  # any length: directions count
    image, z = torch.zeros(1, 3, 8, 8), torch.tensor([[[0.6, 0.8]]], requires_grad=True)
    monkeypatch.setattr(vq, "features", lambda image: z)
    monkeypatch.setattr(vq, "reconstruct", lambda vectors, grid: 0.5 + 0 * vectors.sum() + image)
    loss = vq_loss(vq, image)
    gap = (0.6 ** 2 + 0.2 ** 2) / 2                              # mean over two numbers
    assert loss.item() == pytest.approx(0.5 + 10 * 0.25 + gap + COMMITMENT * gap)
    loss.backward()
    torch.testing.assert_close(z.grad[0, 0], COMMITMENT * torch.tensor([0.6, -0.2]))       # 2 / 2 of the difference
    # the code turns towards z: its gradient is across its direction, as only directions count
    torch.testing.assert_close(vq.embedding.weight.grad, torch.tensor([[0.0, 0.0], [-0.6 / 5, 0.0]]))


def test_a_short_training_uses_most_of_the_codebook_and_decodes_what_it_encodes():
    assert usage(torch.tensor([[0, 0], [3, 3]]), 4) == pytest.approx({"used": 0.5, "perplexity": 2, "bits": 1})
    torch.manual_seed(0)
    vq = VQ(PRESETS["pico"]().vae, codes=64)
    before = vq_loss(vq.eval(), pictures(0, 64)).item()
    vq.train()
    learn(vq.named_parameters("vae"), lambda step: vq_loss(vq, pictures(random.Random(step).randrange(100), 16)), 40)
    image = pictures(120, 64)                                    # not trained on
    vq.eval()
    with torch.no_grad():
        codes = vq.encode(image)
        assert vq_loss(vq, image).item() < before / 2
        assert codes.shape == (64, 4, 1) and codes.dtype == torch.long
        found = usage(codes, 64)
        assert found["used"] > 0.5 and found["perplexity"] > 16  # without moving idle codes: 0.13 and 4.5
        # codes alone say the picture, also as the floats that batches make of them
        again = vq.decode(codes.float(), (2, 2))
        torch.testing.assert_close(again, vq.reconstruct(vq.vectors(vq.nearest(vq.features(image))), (2, 2)))
        assert not torch.equal(vq.decode((codes + 1) % 64, (2, 2)), again)


def test_the_weight_of_the_kl_is_steered_towards_the_bits(monkeypatch):
    system, weights = bits.tokenizer("held", "pico", 1), []
    for nats in (99.0, 99.0, 0.0):                               # of each place
        monkeypatch.setattr(bits, "kl_bits", lambda mean, logvar: torch.full_like(mean[:, 0], nats))
        list(system.losses("vae", random.Random(0), None))
        weights.append(math.log(system.kl_weight / bits.FIRST_WEIGHT))
    assert weights == pytest.approx([0.02, 0.04, 0.02])


# --- teacher.py, toklip.py --------------------------------------------------------------------------------------------

# inner products [[0.6, 0], [0.8, 1]]
PICTURES, TEXTS = torch.tensor([[1.0, 0], [0, 1]]), torch.tensor([[0.6, 0.8], [0, 1]])


def test_contrastive_losses_by_hand():
    e, none, sigmoid = math.exp, torch.eye(2, dtype=torch.bool), lambda x: 1 / (1 + math.exp(-x))
    by_rows = -math.log(e(1.2) / (e(1.2) + 1)) - math.log(e(2) / (e(1.6) + e(2)))
    by_columns = -math.log(e(1.2) / (e(1.2) + e(1.6))) - math.log(e(2) / (1 + e(2)))
    assert info_nce(PICTURES, TEXTS, 2.0, none).item() == pytest.approx((by_rows + by_columns) / 4)
    # the pair (1, 0) has the same text as (0, 0): no longer a rival of either
    same = torch.tensor([[True, False], [True, True]])
    left = -math.log(e(1.2) / (e(1.2) + 1)) - math.log(e(2) / (1 + e(2)))
    assert info_nce(PICTURES, TEXTS, 2.0, same).item() == pytest.approx(left / 4)
    wanted = -sum(math.log(p) for p in (sigmoid(1.2 - 1), sigmoid(0 + 1), sigmoid(-1.6 + 1), sigmoid(2 - 1))) / 2
    assert sigmoid_loss(PICTURES, TEXTS, 2.0, -1.0, none).item() == pytest.approx(wanted)
    assert sigmoid_loss(PICTURES, TEXTS, 2.0, -1.0, same).item() == pytest.approx(
        wanted + (math.log(sigmoid(-0.6)) - math.log(sigmoid(0.6))) / 2)


def test_toklip_is_causal_and_its_teacher_is_not():
    torch.manual_seed(0)
    teacher = Teacher(8, 4, 384, 16, 2, 2)
    toklip, vectors = TokLIP(teacher, 8), torch.randn(2, 4, 8)
    changed = vectors.clone()
    changed[:, 2] += 1                                           # of the third place
    with torch.no_grad():
        before, after = toklip.tokens(vectors), toklip.tokens(changed)
        torch.testing.assert_close(before[:, :2], after[:, :2])
        assert ((before[:, 2:] - after[:, 2:]).abs().amax(dim=-1) > 1e-4).all()
        torch.testing.assert_close(toklip.tokens(vectors[:, :3]), before[:, :3])             # codes drawn so far
        patches = torch.randn(1, 4, 192)
        other = patches.clone()
        other[:, 3] += 1
        assert (teacher.picture.tokens(patches) - teacher.picture.tokens(other))[:, 0].abs().max() > 1e-4


def test_toklip_learns_from_a_locked_teacher_and_a_frozen_codebook():
    torch.manual_seed(0)
    vq, teacher = VQ(PRESETS["pico"]().vae, codes=64), Teacher(8, 4, len(TOKENIZER), 16, 1, 2)
    toklip = TokLIP(teacher, 8)
    assert all(torch.equal(a, b) for a, b in zip(toklip.tower.blocks.parameters(), teacher.picture.blocks.parameters()))
    batch = contrast_batch(WORLD, TOKENIZER, random.Random(0), 6, 16)
    loss = toklip_loss(toklip, vq, teacher, *batch)
    loss.backward()
    assert all(p.grad is not None for p in toklip.parameters())
    assert all(p.grad is None for p in [*vq.parameters(), *teacher.parameters()])
    found, (image, *words, same) = toklip.features(vq.vectors(vq.encode(batch[0]).squeeze(-1))), batch
    contrast = info_nce(found, teacher.text(*words), toklip.log_scale.exp(), same)
    distance = (found - teacher.features(image)).square().sum(1).mean()
    assert loss.item() == pytest.approx((contrast + 1000 / 1152 * distance).item())
    # on unit vectors, that is 1000 x the mean over the released model's 1152 numbers: the same angle, the same loss
    a, b = (torch.nn.functional.normalize(torch.randn(3, 1152), dim=-1) for _ in range(2))
    assert DISTILL * (a - b).square().sum(1).mean().item() == pytest.approx(1000 * (a - b).square().mean().item())


def test_a_batch_knows_equal_texts_and_padding_is_read_by_nobody():
    image, ids, is_real, same = contrast_batch(WORLD, TOKENIZER, random.Random(1), 8, 16)
    texts = [TOKENIZER.decode(row[real].tolist()) for row, real in zip(ids, is_real)]
    assert same.tolist() == [[a == b for b in texts] for a in texts]
    text = Teacher(8, 4, len(TOKENIZER), 16, 1, 2).text
    longer = torch.nn.functional.pad(ids, (0, 3), value=5), torch.nn.functional.pad(is_real, (0, 3))
    torch.testing.assert_close(text(*longer), text(ids, is_real), atol=1e-5, rtol=1e-4)


def test_zero_shot_asks_for_the_nearest_text_and_tells_seen_from_unseen_pairs():
    """An artificial picture feature that is the text of a red circle, for every picture."""
    text = Teacher(8, 4, len(TOKENIZER), 16, 1, 2).text
    ids, is_real = pad([TOKENIZER.encode("a red circle")], TOKENIZER.pad, "cpu")
    found = zero_shot(lambda image: text(ids, is_real).expand(len(image), -1), text, TOKENIZER, 16, {"board": 2}, n=70)
    assert not any(found["unseen pair"]) and 0 < sum(found["pair"]) < 15          # one seen pair in 31
    assert set(found) == {"pair", "color", "shape", "unseen pair"} and all(len(hits) == 70 for hits in found.values())


@pytest.mark.stress
def test_a_trained_teacher_classifies_what_it_was_never_asked_to():
    torch.manual_seed(0)
    teacher = Teacher(8, 4, len(TOKENIZER), 32, 2, 2)

    def right(task):
        hits = zero_shot(teacher.features, teacher.text, TOKENIZER, 16, {"board": 2})[task]
        return sum(hits) / len(hits)
    assert right("pair") < 0.15
    learn(teacher.named_parameters("teacher"),
          lambda step: teacher.loss(*contrast_batch(WORLD, TOKENIZER, random.Random(step), 64, 16)), 300)
    assert right("color") > 0.8 and right("pair") > 0.3


# --- discrete.py ------------------------------------------------------------------------------------------------------

def discrete(kind):
    """A system with random weights, for pictures of 2 x 2 codes, 64 of them."""
    torch.manual_seed(0)
    config = PRESETS["pico"]()
    config.mar.buffer_size = 0
    toklip = TokLIP(Teacher(8, 4, 384, 16, 1, 2), 8) if kind == "toklip" else None
    return Discrete(config, 64, toklip=toklip, masked=kind == "masked")


def requests(*prompts):
    return pad([TOKENIZER.drawing_request(p) for p in prompts], TOKENIZER.pad, "cpu")


@pytest.mark.parametrize("kind", ["codes", "toklip", "masked"])
def test_greedy_drawing_reproduces_the_codes_of_a_few_pictures_learned_by_heart(kind):
    model, (ids, is_real) = discrete(kind), requests("a red circle", "two blue squares at the top left", "a ring")
    codes = torch.randint(64, (3, 4, 1), generator=torch.Generator().manual_seed(0))
    trained = {n: p for n, p in model.named_parameters() if not n.startswith(("vae.", "toklip."))}
    order = torch.Generator().manual_seed(0)
    options = dict(randn=torch.randn, grid=(2, 2), cfg=1.0, temperature=0.0, iters=3)
    assert not torch.equal(model.draw(ids, is_real, **options), codes)
    # a batch of texts alone, without pictures, has a loss: by chance that of 384 words, 5.95
    assert 5 < model.understanding_loss(torch.zeros(0, 4, 1), ids[1:2], ids[1:2]).item() < 7
    learn(trained, lambda step: model.generation_loss(codes.float(), ids, is_real, order_generator=order), 120, lr=1e-2,
          muon_lr=0.05)
    assert torch.equal(model.draw(ids, is_real, **options), codes)


@pytest.mark.parametrize("kind", ["codes", "toklip"])
def test_a_code_is_drawn_from_those_before_it_and_guidance_moves_away_from_anything(kind):
    model, (ids, is_real) = discrete(kind).eval(), requests("a red circle and a ring", "a ring", None, None)
    with torch.no_grad():
        drawn = model.draw(ids, is_real, torch.randn, cfg=2.5, temperature=0.0).squeeze(-1)      # (2, 4), with a cache
        wanted, anything = model.code_logits(drawn.repeat(2, 1), ids, is_real).chunk(2)          # without one
        assert torch.equal((anything + 2.5 * (wanted - anything)).argmax(-1), drawn)
        changed = drawn.clone()
        changed[:, 2] = (changed[:, 2] + 1) % 64
        after = model.code_logits(changed.repeat(2, 1), ids, is_real)[:2]
        torch.testing.assert_close(after[:, :3], wanted[:, :3])
        assert (after[:, 3] - wanted[:, 3]).abs().max() > 1e-5


def test_the_masked_drawer_sees_all_that_is_visible_and_nothing_hidden():
    model, (ids, is_real) = discrete("masked").eval(), requests("a ring", "a red circle and a ring")
    codes, is_hidden = torch.randint(64, (2, 4)), torch.tensor([[True, True, False, False]] * 2)

    def logits(place, is_hidden):
        changed = codes.clone()
        changed[:, place] = (codes[:, place] + 1) % 64
        return model.code_logits(changed, ids, is_real, is_hidden)
    with torch.no_grad():
        before = model.code_logits(codes, ids, is_real, is_hidden)
        torch.testing.assert_close(logits(1, is_hidden), before)                 # hidden
        assert ((logits(3, is_hidden) - before).abs().amax(dim=-1) > 1e-6).all()     # visible, also from places before
        # padding in front of the picture is seen by nobody: alone, the shorter request gives the same
        alone = model.code_logits(codes[:1], *requests("a ring"), is_hidden[:1])
        torch.testing.assert_close(alone, before[:1], atol=1e-5, rtol=1e-4)


def test_gumbel_noise_draws_codes_as_often_as_their_probabilities_say():
    torch.manual_seed(0)
    share = torch.tensor([0.1, 0.6, 0.3])
    chosen, sure = pick(share.log().expand(20000, 3), 1.0, torch.randn)
    torch.testing.assert_close(torch.bincount(chosen).double() / 20000, share.double(), atol=0.015, rtol=0)
    torch.testing.assert_close(sure, share.log()[chosen])
    assert torch.equal(guide(torch.tensor([[1.0], [0.5]]), 3.0), torch.tensor([[2.0]]))


# --- the comparison ---------------------------------------------------------------------------------------------------

def test_all_systems_have_as_many_parameters_within_ten_percent():
    for preset in systems.PRESETS:
        with torch.device("meta"):
            counts = {name: sum(p.numel() for p in systems.build(name, preset, systems.settings(name, preset).model)[0]
                                .parameters()) for name in systems.SYSTEMS}
        assert max(counts.values()) < 1.1 * min(counts.values()), counts


def test_an_interrupted_system_becomes_the_one_that_an_unbroken_training_makes(tmp_path, monkeypatch):
    steps, train = {part: 2 for part in systems.SHARES["toklip"]}, systems.System.train
    monkeypatch.setattr(metrics, "measure", lambda *_: ({"cost": {}}, Image.new("RGB", (8, 8))))
    metrics.run_one("toklip", 1, "pico", steps, 64, tmp_path / "unbroken")

    def interrupted(system, part, steps):
        if part == "toklip":
            raise KeyboardInterrupt
        train(system, part, steps)
    monkeypatch.setattr(systems.System, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        metrics.run_one("toklip", 1, "pico", steps, 64, tmp_path / "broken")
    assert [p.name for p in (tmp_path / "broken").glob("*.safetensors")] == ["teacher.safetensors"]
    monkeypatch.setattr(systems.System, "train", train)
    metrics.run_one("toklip", 1, "pico", steps, 64, tmp_path / "broken")
    one, other = (open_tensors(tmp_path / name / "3.safetensors") for name in ("unbroken", "broken"))
    assert set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)
    start = systems.System("toklip", "pico", 1, 16).model.state_dict()
    moved = {name.split(".")[1] for name in one if name.startswith("model.") and not torch.equal(
        one[name], start[name.removeprefix("model.")])}
    assert moved == {"vae", "llm", "toklip", "proj_in", "blank", "code_head"}


def test_code_systems_of_a_seed_have_the_same_tokenizer():
    """Here the VQ of one system had begun with other weights, and gave back twice as many unseen pairs: by luck."""
    made = [systems.System(name, "pico", 1, 64) for name in ("toklip", "codes", "masked")]
    first, *others = [system.train("vae", 2) or system.model.vae.state_dict() for system in made]
    assert all(torch.equal(vq[key], first[key]) for vq in others for key in vq)


@pytest.mark.parametrize("name", ["harmon", "toklip", "masked"])
def test_the_benchmarks_of_harmon_measure_every_kind_of_system(name, short_replies):
    found, picture = measure(systems.System(name, "pico", 1, 16), "pico")        # random weights: all at chance
    drawing, reading = found["drawing"], found["reading, looking first"]
    assert drawing["overall"]["right"] == drawing["thinking first: overall"]["right"] == 0 == drawing[
        "colors, unseen pairs"]["right"] == reading["captions of other scenes"]["right"] == found["tokens"][
            "reconstructions right"]["right"]
    assert {"position", "the four, unseen pairs", "thinking first: the thought"} <= set(drawing) and picture.width > 720
    assert sum(reading[k]["right"] for k in reading if k.isalpha() and k != "overall") == reading["overall"]["right"]
    assert {"color", "shape", "count", "relation"} <= set(reading) and reading["overall"]["low"] < 0.25
    assert found["Frechet distance"]["drawn"] > found["Frechet distance"]["other renders"]
    assert ("two rounds of --redraw: overall" in drawing) == (name in systems.HARMON)
    assert name == "harmon" or 0 <= found["tokens"]["bits per token"] <= 6
    assert [*found.get("zero-shot, TokLIP", ())] == ["pair", "color", "shape", "unseen pair"] * (name == "toklip")
    text = tables({name: [found] * 2, "other": [{"drawing": drawing}] * 2})
    assert "| the four, unseen pairs " in text and text.count("zero-shot") == 2 * (name == "toklip")


def test_one_cell_of_several_seeds():
    values = [rate([i < n for i in range(10)]) for n in (2, 8)]
    assert over_seeds(values[:1]) == "20.0 [5.7, 51.0]" and over_seeds(values) == "50.0 [29.9, 70.1]: 20, 80"
    assert over_seeds([1.0, 2.0]) == "1.5: 1, 2" and over_seeds([2.0, 2.0]) == "2"
    assert over_seeds([v | {"draws": 5} for v in values]) == "50.0 [27.3, 72.7]: 20, 80"         # the mean of both


def test_the_plan_gives_every_system_the_same_time_and_is_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare, "time_steps", lambda name, preset: {
        part: 0.01 * (i + 1) for i, part in enumerate(systems.SHARES[name])})
    plan = compare.make_plan(systems.SYSTEMS, "pico", 10)
    for name in systems.SYSTEMS:
        took = sum(steps * plan["seconds per step"][name][part] for part, steps in plan["steps"][name].items())
        assert took == pytest.approx(600, rel=1e-3) and sum(systems.SHARES[name].values()) == pytest.approx(1)
    monkeypatch.setattr(compare, "time_steps", lambda name, preset: dict.fromkeys(systems.SHARES[name], 0.02))
    more = compare.make_plan(["codes"], "pico", 10, compare.make_plan(["toklip"], "pico", 10) | {"seconds per step": {
        "toklip": {"vae": 0.04}}})
    assert more["steps"]["codes"] == {"vae": 3750, "llm": 3000, "2": 7500, "3": 12000}   # the VQ as long as TokLIP's
    (tmp_path / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    assert compare.read_plan(tmp_path / "plan.json", "pico", 10) == plan
    monkeypatch.setitem(systems.SHARES, "codes", {"vae": 1.0})   # as other code may have it
    for flags, message in ((["--minutes", "5"], "minutes 10, got 5"), (["--systems", "code"], "did you mean 'codes'"),
                           (["--minutes", "10"], "other shares for codes; pass another --out")):
        with pytest.raises(ValueError, match=message):
            compare.main(["--preset", "pico", "--out", str(tmp_path), *flags])
    compare.main(["--dry-run", "--preset", "pico", "--seeds", "3"])
    assert "5 systems x 3 seeds x 60 minutes, 2 at a time: 450 minutes" in capsys.readouterr().out


def test_what_is_done_once_is_not_counted_as_steps(monkeypatch):
    """The scale of latents was measured after every training of the VAE: Harmon got fewer steps."""
    calls, once, train = [], [], systems.System.train
    monkeypatch.setattr(systems.System, "train", lambda system, *args: (calls.append(args), train(system, *args)))
    monkeypatch.setattr(systems, "measure_scale", lambda *_: once.append(calls[-1]))
    compare.time_steps("harmon", "pico", steps=2)                # which times the second call for each part
    assert once == [("mar", 1)]


@pytest.mark.stress
def test_the_whole_comparison_in_small_goes_on_where_it_was(tmp_path):
    flags = ["--preset", "pico", "--minutes", "0.01", "--systems", "masked,reca", "--out", str(tmp_path)]
    first = subprocess.run([sys.executable, "-m", "nanoharmon.compare", *flags], capture_output=True, text=True,
                           encoding="utf-8", check=True)
    assert "| the four, unseen pairs" in first.stdout and (tmp_path / "page.png").exists()
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*-*/metrics.json")}
    assert len(made) == 4
    (tmp_path / "masked-2" / "metrics.json").unlink()            # lost, but not the weights
    second = subprocess.run([sys.executable, "-m", "nanoharmon.compare", *flags], capture_output=True, text=True,
                            encoding="utf-8", check=True)
    again = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*-*/metrics.json")}
    assert {path for path in made if made[path] != again[path]} == {tmp_path / "masked-2" / "metrics.json"}
    assert second.stdout.split("\n| drawing")[1].split("| cost")[0] == first.stdout.split("\n| drawing")[1].split(
        "| cost")[0]                                             # all but the seconds
