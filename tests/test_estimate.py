"""What a run will take: measured on the real step, and told as people say it."""

import pytest
import torch

from tinystories_lab.estimate import duration, measure_speed
from tinystories_lab.presets import PRESETS


def test_measuring_the_speed_trains_for_real_and_leaves_the_random_state(model_config, train_config):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    speed = measure_speed(model_config, train_config, seconds=0.1)
    assert speed > 0 and torch.equal(torch.get_rng_state(), before)


def test_a_larger_model_is_slower(model_config, train_config):
    tiny = PRESETS["tiny"]
    assert measure_speed(tiny.model, tiny.train, 0.3) < measure_speed(model_config, train_config, 0.3)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.3, "a second"),
        (40, "40 seconds"),
        (116, "116 seconds"),
        (180, "3 minutes"),
        (3_600, "60 minutes"),
        (10_080, "2.8 hours"),
        (90_000, "25 hours"),
    ],
)
def test_a_duration_is_said_in_a_fitting_unit(seconds, said):
    assert duration(seconds) == said
