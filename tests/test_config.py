"""Presets, flags and their errors, config.json.     python -m pytest -q tests/test_config.py"""
import dataclasses
import json

import pytest

from nanoharmon.config import PRESETS, HarmonConfig, LLMConfig, MARConfig, VAEConfig, from_dict, nearest, to_dict
from nanoharmon.flags import describe_flags, override, parse_value, sections

ALL = pytest.mark.parametrize("preset", PRESETS)


@ALL
def test_a_config_survives_json(preset):
    config = PRESETS[preset]()
    again = from_dict(HarmonConfig, json.loads(json.dumps(to_dict(config))))
    assert again == config and isinstance(again.vae.ch_mult, tuple) and isinstance(again.mar, MARConfig)


@ALL
def test_the_parts_of_a_preset_fit_together(preset):
    c = PRESETS[preset]()
    assert c.vae.z_channels == c.mar.token_dim
    assert c.llm.hidden_size % c.llm.num_attention_heads == 0 == c.llm.num_attention_heads % c.llm.num_key_value_heads
    assert c.llm.hidden_size // c.llm.num_attention_heads % 2 == 0           # rotary pairs
    assert c.mar.encoder_embed_dim % c.mar.encoder_num_heads == 0 == c.mar.decoder_embed_dim % c.mar.decoder_num_heads
    assert all(c.vae.ch * m % 32 == 0 for m in c.vae.ch_mult)                # GroupNorm


@ALL
def test_every_call_makes_a_preset_anew(preset):
    a, b = PRESETS[preset](), PRESETS[preset]()
    a.mar.encoder_depth, a.vae.scale = 99, 99.0
    assert b == PRESETS[preset]() != a


def test_official_numbers():
    assert VAEConfig().stride == 16 and HarmonConfig() == PRESETS["harmon-0.5b"]()
    assert PRESETS["nano"]().vae.stride == 16 and PRESETS["pico"]().vae.stride == 8 == PRESETS["micro"]().vae.stride


@pytest.mark.parametrize("flags, section, name, value", [
    (["--mar.encoder_depth=6"], "mar", "encoder_depth", 6), (["--mar.encoder_depth", "6"], "mar", "encoder_depth", 6),
    (["--vae.scale", "1e-2"], "vae", "scale", 0.01), (["--vae.ch_mult=1,2,4"], "vae", "ch_mult", (1, 2, 4)),
    (["--vae.attn_resolutions="], "vae", "attn_resolutions", ()),
    (["--mar.mask_ratio", "cosine"], "mar", "mask_ratio", "cosine"),
    (["--llm.tie_word_embeddings", "False"], "llm", "tie_word_embeddings", False),
    (["--vae.scale", "-1"], "vae", "scale", -1.0),
    (["--llm.tie_word_embeddings=true"], "llm", "tie_word_embeddings", True),
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
    (["--encoder_depth", "6"], "unknown flag --encoder_depth; did you mean '--mar.encoder_depth'?"),
    (["--lm.hidden_size", "6"], "unknown flag --lm.hidden_size; did you mean '--llm.hidden_size'?"),
    (["qqq"], "unknown flag qqq"), (["--mar.grid"], "--mar.grid needs a value"),
    (["--mar.grid", "--vae.ch", "3"], "--mar.grid needs a value"),
    (["--vae.ch", "many"], "--vae.ch: got 'many', expected"), (["--vae.ch=1.5"], "--vae.ch: got '1.5', expected"),
    (["--vae.ch_mult=1,x"], "--vae.ch_mult: got 'x', expected"),
    (["--llm.tie_word_embeddings", "1"], "--llm.tie_word_embeddings: got '1', expected true or false")])
def test_a_wrong_flag_is_refused_and_the_nearest_is_named(flags, message):
    with pytest.raises(ValueError) as error:
        override(HarmonConfig(), flags)
    assert str(error.value).startswith(message)
    assert "did you mean" in message or "did you mean" not in str(error.value)


def test_config_json_with_an_unknown_field_names_it_and_its_place():
    values = to_dict(HarmonConfig())
    values["mar"]["encoder_dim"] = 3
    with pytest.raises(ValueError, match="mar: unknown field 'encoder_dim'; did you mean 'encoder_embed_dim'?"):
        from_dict(HarmonConfig, values)


def test_config_json_with_a_missing_field_names_it():
    """A default would be the official model's, in a checkpoint of another model: vae.scale, for instance."""
    values = to_dict(PRESETS["nano"]())
    del values["vae"]["scale"]
    with pytest.raises(ValueError, match="config.json: vae: .*scale"):
        from_dict(HarmonConfig, values)


def test_nearest_is_silent_without_a_resemblance():
    assert nearest("zzz", ["alpha", "beta"]) == "" and nearest("alpa", ["alpha"]) == "; did you mean 'alpha'?"


def test_every_field_has_a_flag_and_a_help_text():
    config, text = PRESETS["nano"](), describe_flags(PRESETS["nano"]())
    assert list(sections(config)) == ["vae", "mar", "llm"]
    for name, section in sections(config).items():
        for f in dataclasses.fields(section):
            value = getattr(section, f.name)
            assert f"--{name}.{f.name} " in text and f.metadata["help"] in text and len(f.metadata["help"]) > 3
            shown = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            assert parse_value(f.type, shown) == value                       # what --help shows can be typed


def test_llm_fields_are_those_of_hugging_face():
    names = {f.name for f in dataclasses.fields(LLMConfig)}
    assert {"vocab_size", "hidden_size", "num_key_value_heads", "rms_norm_eps", "tie_word_embeddings"} <= names
