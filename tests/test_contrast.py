"""Wrong prompts are wrong in one thing, and a model that cannot hear has no rise.    python -m pytest -q tests/test_contrast.py"""
import torch

from nanoharmon.harmon import Harmon
from nanoharmon.pipeline import Pipeline
from nanoharmon.tokenizer import Tokenizer
from nanoharmon.evals.contrast import contrast, lies, main
from nanoharmon.training.recipe import Config
from nanoharmon.world import language, shapes
from nanoharmon.world.source import training_texts


def pico():
    torch.manual_seed(0)
    config = Config.preset("pico")
    tokenizer = Tokenizer.train(training_texts(config.data, 100), config.model.llm.vocab_size)
    model = Harmon(config.model).eval()
    for p in model.mar.diffloss.parameters():                    # as built, its zero layers hide all that is said
        torch.nn.init.normal_(p, std=0.1)
    return Pipeline(model, tokenizer, {"size": 16})


def test_each_prompt_is_true_or_wrong_in_one_thing():
    scenes, prompts = lies(50, 0)
    assert len(scenes) == 50 and list(prompts) == ["relation", "binding", "places", "nothing"]
    for i, scene in enumerate(scenes):
        a, b = scene.objects[::-1]                               # GenEval lists the reference object first
        true, wrong = prompts["relation"][i]
        for text, right in ((true, True), (wrong, False), (prompts["binding"][i][1], False)):
            assert language.caption_is_right(text, scene) == right
        assert f" {shapes.relation(a, b)} " in true and sorted(true.split()) == sorted(prompts["binding"][i][1].split())
        where, elsewhere = prompts["places"][i]
        assert where != elsewhere and {" ".join(o.pair) in elsewhere for o in scene.objects} == {True}
        assert where in {language.describe(scene, shapes.random.Random(k)) for k in range(20)}
        assert elsewhere not in {language.describe(scene, shapes.random.Random(k)) for k in range(20)}
        assert prompts["nothing"][i] == (true, None)


def test_who_does_not_hear_has_no_rise():
    pipe = pico()
    hears = contrast(pipe, 32)
    assert all(abs(rise) > 0 for _, rise, _ in hears.values())
    assert contrast(pipe, 32) == hears
    torch.nn.init.zeros_(pipe.model.proj_out[-1].weight)         # what the LLM says goes nowhere
    assert all(rise == 0 for _, rise, _ in contrast(pipe, 32).values())


def test_the_command_prints_a_table(tmp_path, capsys):
    pico().save(tmp_path / "ckpt")
    main(["--ckpt", str(tmp_path / "ckpt"), "--n", "32"])
    out = capsys.readouterr().out
    assert all(f"| {name} |" in out for name in ("relation", "binding", "places", "nothing")) and "+-" in out
