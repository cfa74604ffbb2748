"""Presets, flags and their errors, config.json.     python -m pytest -q tests/test_config.py"""
import dataclasses
import json
import math
import re
import textwrap

import pytest

from nanoharmon.config import PRESETS, HarmonConfig, MARConfig, from_dict, to_dict
from nanoharmon.flags import check_model, describe_flags, override, parse_value, sections
from nanoharmon.training.recipe import Config


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_fits_together_survives_json_and_is_made_anew(preset):
    config, changed = PRESETS[preset](), PRESETS[preset]()
    check_model(config)
    again = from_dict(HarmonConfig, json.loads(json.dumps(to_dict(config))))
    assert again == config and isinstance(again.vae.ch_mult, tuple) and isinstance(again.mar, MARConfig)
    changed.mar.encoder_depth, changed.vae.scale = 99, 99.0
    assert config == PRESETS[preset]() != changed


@pytest.mark.parametrize("change, message", [
    (lambda values: values["mar"].update(encoder_dim=3), "mar: unknown field .encoder_dim.; did you mean .encoder_"),
    # its default would be the official model's, in a checkpoint of another one
    (lambda values: values["mar"].pop("grid"), "mar: missing grid")])
def test_config_json_with_other_fields_names_them_and_their_place(change, message):
    values = to_dict(PRESETS["nano"]())
    assert from_dict(HarmonConfig, values) == PRESETS["nano"]()
    change(values)
    with pytest.raises(ValueError, match=message):
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


@pytest.mark.parametrize("flags, message", [
    (["--mar.encoder_dept=6"], "unknown flag --mar.encoder_dept; did you mean '--mar.encoder_depth'?"),
    (["--mar.grid", "--vae.ch", "3"], "--mar.grid needs a value"), (["--vae.ch=1.5"], "--vae.ch: got '1.5', expected"),
    (["--llm.tie_word_embeddings", "1"], "--llm.tie_word_embeddings: got '1', expected true or false")])
def test_a_wrong_flag_is_refused_and_the_nearest_is_named(flags, message):
    with pytest.raises(ValueError) as error:
        override(HarmonConfig(), flags)
    assert str(error.value).startswith(message)


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


@pytest.mark.parametrize("name, value, message", [
    ("vae.ch_mult", (), "vae.ch_mult is"), ("vae.ch_mult", [1, 2], "vae.ch_mult is"), ("vae.ch", 33, "multiples of 32"),
    ("vae.ch", True, "vae.ch is"), ("vae.scale", math.nan, "vae.scale is"), ("vae.scale", "1", "vae.scale is"),
    ("mar.encoder_depth", -1, "mar.encoder_depth is"), ("mar.encoder_depth", 1.5, "mar.encoder_depth is"),
    ("llm.tie_word_embeddings", 1, "llm.tie_word_embeddings is"), ("mar.mask_ratio", "x", "mar.mask_ratio is"),
    ("mar.encoder_num_heads", 5, "divisor of mar.encoder"), ("mar.decoder_num_heads", 5, "divisor of mar.decoder"),
    ("mar.token_dim", 8, "vae.z_channels is 4, expected mar.token_dim 8"),
    ("llm.hidden_size", 31, "llm.hidden_size is 31"), ("llm.num_key_value_heads", 3, "llm.num_key_value_heads is 3")])
def test_values_and_parts_that_do_not_fit_are_refused(name, value, message):
    config, (section, name) = PRESETS["pico"](), name.split(".")
    setattr(getattr(config, section), name, value)
    with pytest.raises(ValueError, match=message):
        check_model(config)
