"""The benchmarks run, and the chapter's model that they compare with has the right size."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


def test_a_stage_prints_its_table_and_writes_it_as_json(tmp_path):
    command = [sys.executable, "-m", "tests.benchmarks", "checkpoint", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    saved = json.loads((tmp_path / "checkpoint.json").read_text())
    assert saved["hardware"]["torch"] == torch.__version__
    assert all(row["ours"] > 0 and row["what"] in done.stdout for row in saved["rows"])


def test_the_chapters_model_has_as_many_parameters_as_ours_and_starts_at_the_loss_of_a_uniform_guess(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    chapter = pytest.importorskip("tests.benchmarks.chapter", reason="another package called tests is installed")
    torch.manual_seed(0)
    ids = torch.randint(8_000, (2, 33))
    model = chapter.Model()
    assert sum(parameter.numel() for parameter in model.parameters()) == 9_952_320
    with torch.inference_mode():
        assert abs(model(ids[:, :-1], ids[:, 1:])[1].item() - math.log(8_000)) < 0.15
        assert abs(chapter.GPT2()(ids[:, :-1], ids[:, 1:])[1].item() - math.log(8_000)) < 0.15
