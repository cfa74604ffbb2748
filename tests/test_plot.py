"""Curves from a log, and sweeps.     python -m pytest -q tests/test_plot.py"""
import json

import numpy as np
import pytest
from PIL import Image

from nanoharmon.training.plot import HEIGHT, WIDTH, draw_sweeps, read_log


def test_a_log_becomes_curves_the_newest_of_a_step_or_stage_counts_and_damaged_lines_are_counted(tmp_path):
    lines = [{"stage": "vae", "step": 50, "mse": 0.5, "kl": 3.0}, {"stage": "vae", "step": 50, "answers": []},
             {"stage": "2", "step": 100, "generation": 0.4, "understanding": 2.0},
             {"stage": "2", "step": 150, "generation": 0.2}, {"stage": "2", "step": 50, "generation": 0.6},     # repeated
             {"stage": "2", "step": 100, "generation": 0.4}, {"stage": "2", "step": 100, "generation": 0.3},
             {"stage": "2", "step": 120, "skipped": 1}, {"stage": "evaluation", "geneval": 0.5}]
    damaged = [b'{"stage": "2", "st', b"[1]", b"3", b'"x"', b"\xff\xfe{", bytes(9), b"[" * 10**5,
               b'{"stage": "2", "generation": 0.1}', b'{"stage": "2", "step": 3, "generation": [0.1]}']
    (tmp_path / "log.jsonl").write_bytes(b"\n".join([*damaged, *(json.dumps(line).encode() for line in lines)]))
    assert read_log(tmp_path / "log.jsonl") == ({
        ("vae", "mse"): [(50, 0.5)], ("2", "generation"): [(50, 0.6), (100, 0.3)],
        ("2", "understanding"): [(100, 2.0)]}, len(damaged))


@pytest.mark.parametrize("value", [0.0, 0.25, 1.0])
def test_a_sweep_is_drawn_at_its_height(tmp_path, value):
    points = [(x, {"rate": value, "low": value, "high": value}) for x in (1, 10, 100)]
    draw_sweeps({"steps": {"a": points}}, tmp_path / "sweep.png")
    panel = np.asarray(Image.open(tmp_path / "sweep.png")).astype(int)[:, :WIDTH]
    rows = np.flatnonzero(((panel[..., 2] - panel[..., 0]) > 100).any(1))
    assert abs(rows.mean() - (22 + (HEIGHT - 44) * (1 - value))) <= 1
