"""What a run costs is arithmetic, and a speed measured on real steps."""

import pytest
import torch

from tinystories_lab.analysis import budget as module
from tinystories_lab.analysis.budget import _measure_speed, budget, format_duration, machine_speeds
from tinystories_lab.model import GPTConfig, count_parameters
from tinystories_lab.run import PRESETS


def test_measuring_the_speed_changes_no_random_state_and_a_larger_model_is_slower(model_config, train_config):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    speed = _measure_speed(model_config, train_config, seconds=0.1)
    assert torch.equal(torch.get_rng_state(), before)
    tiny = PRESETS["tiny"]
    assert 0 < _measure_speed(tiny.model, tiny.train, seconds=0.1) < speed


def test_a_duration_has_a_suitable_unit():
    durations = [format_duration(seconds) for seconds in (0.3, 40, 116, 180, 3_600, 10_080, 90_000, 277_000, 1e8)]
    assert durations[:5] == ["a second", "40 seconds", "116 seconds", "3 minutes", "60 minutes"]
    assert durations[5:] == ["2.8 hours", "25 hours", "3.2 days", "1,157 days"]


def test_the_budget_of_the_chapters_run_is_the_chapters_arithmetic():
    lines = budget(GPTConfig(), 200_000_000, 16_384, {"a T4": 21_000 * 9_952_320})
    assert lines["parameters"] == 9_952_320 and lines["steps"] == 12_207
    assert lines["tokens per parameter"] == pytest.approx(20.1, abs=0.01)
    assert lines["time on a T4"] == "2.6 hours"  # 200M tokens at 21,000 per second; the chapter says 2.8
    for model in (GPTConfig(n_layer=6), GPTConfig(n_layer=12)):  # the time is proportional to the parameters
        assert budget(model, 10**9, 1, {"this": 1e9})["time on this"] == format_duration(count_parameters(model))


def test_speeds_are_the_chapters_for_its_machines_and_measured_for_this_one(model_config, train_config, monkeypatch):
    monkeypatch.setattr(module, "_measure_speed", lambda model, config: 1_000.0)
    speeds = machine_speeds(model_config, train_config)
    assert speeds["this machine"] == 1_000 * count_parameters(model_config)
    assert speeds["Colab T4, fp16"] == 21_000 * 9_952_320 and len(speeds) == 3
