"""Wrong prompts are wrong in one thing; who cannot hear has no rise.    python -m pytest -q tests/test_contrast.py"""
import torch

from nanoharmon.evals.contrast import contrast, main, wrong_about_one, wrong_prompts
from nanoharmon.pipeline import Pipeline
from nanoharmon.world import language, shapes


def test_each_prompt_is_true_or_wrong_in_one_thing():
    scenes, prompts = wrong_prompts(50, 0)
    assert len(scenes) == 50 and list(prompts) == ["relation", "binding", "places", "nothing"]
    for i, scene in enumerate(scenes):
        a, b = scene.objects[::-1]                               # GenEval lists the reference object first
        true, wrong = prompts["relation"][i]
        for text, right in ((true, True), (wrong, False), (prompts["binding"][i][1], False)):
            assert language.caption_is_right(text, scene) == right
        assert f" {shapes.relation(a, b)} " in true and sorted(true.split()) == sorted(prompts["binding"][i][1].split())
        assert not any(f"{color} {shape}" in prompts["binding"][i][1] for color, shape in shapes.UNSEEN)
        where, elsewhere = prompts["places"][i]
        assert where != elsewhere and {" ".join(o.pair) in elsewhere for o in scene.objects} == {True}
        described = {language.describe(scene, shapes.random.Random(k)) for k in range(20)}
        assert where in described and elsewhere not in described and prompts["nothing"][i] == (true, None)


def test_of_one_object_one_thing_is_another():
    scenes, prompts = wrong_about_one(50, 0, board=2)
    for i, scene in enumerate(scenes):
        for k, pairs in enumerate(prompts.values()):             # color, shape, place, nothing
            true, *wrong = ((o.color, o.shape, language.place_of(o)) for s in (scene, *map(
                language.parse_description, filter(None, pairs[i]))) for o in s.objects)
            assert [[a != b for a, b in zip(true, other)] for other in wrong] == [
                [False] * 3, *[[j == k for j in range(3)]] * (k < 3)]
            assert not any(other[:2] in shapes.UNSEEN for other in wrong)


def test_who_does_not_hear_has_no_rise(pico, capsys):
    pipe = Pipeline.load(pico)
    hears = contrast(pipe, 32)
    assert all(abs(rise) > 0 for _, rise, _ in hears.values())
    assert contrast(pipe, 32) == hears
    torch.nn.init.zeros_(pipe.model.proj_out[-1].weight)         # what the LLM says goes nowhere
    assert all(rise == 0 for _, rise, _ in contrast(pipe, 32).values())
    main(["--ckpt", str(pico), "--n", "32"])
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()[2:]] == list(hears)
