"""Presets, flags and their errors, config.json.     python -m pytest -q tests/test_config.py"""
import dataclasses
import json
import re
import textwrap

import pytest

from nanoharmon.config import PRESETS, HarmonConfig, MARConfig, from_dict
from nanoharmon.flags import check_model, describe_flags, override, parse_value, sections
from nanoharmon.training.recipe import Config


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_fits_together_survives_json_and_is_made_anew(preset):
    config, changed = PRESETS[preset](), PRESETS[preset]()
    check_model(config)
    again = from_dict(HarmonConfig, json.loads(json.dumps(dataclasses.asdict(config))))
    assert again == config and isinstance(again.vae.ch_mult, tuple) and isinstance(again.mar, MARConfig)
    changed.mar.encoder_depth, changed.vae.scale = 99, 99.0
    assert config == PRESETS[preset]() != changed


def test_config_json_without_a_field_is_refused_as_its_default_would_be_the_official_models():
    values = dataclasses.asdict(PRESETS["nano"]())
    del values["mar"]["grid"]
    with pytest.raises(ValueError, match="mar: missing grid"):
        from_dict(HarmonConfig, values)


@pytest.mark.parametrize("flags, section, name, value", [
    (["--mar.encoder_depth=6"], "mar", "encoder_depth", 6), (["--vae.scale", "-1e-2"], "vae", "scale", -0.01),
    (["--vae.ch_mult=1,2,4"], "vae", "ch_mult", (1, 2, 4)), (["--vae.ch_mult="], "vae", "ch_mult", ()),
    (["--mar.mask_ratio", "cosine"], "mar", "mask_ratio", "cosine"),
    (["--llm.tie_word_embeddings", "False"], "llm", "tie_word_embeddings", False),
    (["--vae.ch", "1", "--vae.ch", "2"], "vae", "ch", 2)])
def test_a_flag_changes_its_field_and_nothing_else(flags, section, name, value):
    config, ref = HarmonConfig(), HarmonConfig()
    override(config, flags)
    got = getattr(getattr(config, section), name)
    assert got == value and type(got) is type(value)
    setattr(getattr(ref, section), name, value)
    assert config == ref


def test_every_field_has_a_flag_and_a_help_text(monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    config = Config.preset("pico")
    text = re.sub(r" +", " ", describe_flags(config, "pico"))
    for name, section in sections(config).items():
        for f in dataclasses.fields(section):
            if dataclasses.is_dataclass(f.type):
                continue
            usual, help, flag = getattr(section, f.name), textwrap.wrap(f.metadata["help"], 60)[0], f"--{name}.{f.name}"
            shown = ",".join(map(str, usual)) if isinstance(usual, tuple) else str(usual)
            assert parse_value(f.type, shown) == usual       # what --help shows can be typed
            if name.startswith("stage_"):                    # all stages share a line, and one with their values
                flag, stage = f" --stage_NAME.{f.name} ", name.removeprefix("stage_")
                assert f" {stage}={shown}" in text.partition(flag + help)[2].partition("\n --")[0]
            else:
                assert f" {flag} {shown} {help}".replace("  ", " ") in text and len(help) > 3
