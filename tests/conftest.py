"""Shared fixtures, such as a micro run that trains in a second, and an isolated environment for the tests."""

import os
import shutil
import signal
import tempfile
from dataclasses import replace
from pathlib import Path

import micro
import pytest
import torch
from hypothesis import settings
from kernels import SMALL, kernels_start_with
from xdist.scheduler import LoadScopeScheduling

from tinystories_lab.tokenizer import load_tokenizer
from tinystories_lab.trainer import train

# The kernels of notebooks inherit these variables: the smallest preset, and a workspace that is deleted afterwards.
WORKSPACE = tempfile.mkdtemp(prefix="tinystories_lab_tests_")
os.environ["TINYSTORIES_LAB_PRESET"] = "tiny"
os.environ["TINYSTORIES_LAB_WORKSPACE"] = WORKSPACE
os.environ |= kernels_start_with(Path(WORKSPACE) / "ipython", SMALL)

# A shell starts background jobs with SIGINT ignored, and nohup ignores SIGHUP. The tests send both signals.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Micro matrices gain nothing from a second thread.
torch.set_num_threads(1)

# Hypothesis: the same examples in every run, no deadline on a busy machine, and no database on disk.
settings.register_profile("lab", deadline=None, derandomize=True, database=None)
settings.load_profile("lab")


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=25, help="how many processes the fault tests kill (default: 25)")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Each test file runs in one process, and so do the notebooks, in their order."""

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.partition("::")[0]
            return "notebooks" if file.startswith("notebooks/") else file

    return ByFile(config, log)


def pytest_collection_modifyitems(items):
    """The longest files come first, so that the processes end at about the same time."""
    longest = [
        "test_browser",
        "test_exercises",
        "test_colab_path",
        "notebooks",
        "test_faults",
        "test_trainer",
        "test_failure_modes",
    ]

    def place(item):
        name = "notebooks" if item.path.suffix == ".ipynb" else item.path.stem
        return longest.index(name) if name in longest else len(longest)

    items.sort(key=place)


def pytest_unconfigure(config):
    shutil.rmtree(WORKSPACE, ignore_errors=True)


@pytest.fixture(scope="session")
def stories():
    return micro.make_stories()


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A real data folder, shared by all tests: copy it before you change anything."""
    folder = tmp_path_factory.mktemp("data")
    micro.make_data(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(data_dir):
    """The tokenizer of that folder, also shared by all tests."""
    return load_tokenizer(data_dir / "tokenizer.json")


@pytest.fixture(scope="session")
def model_config():
    return micro.MODEL


@pytest.fixture(scope="session")
def train_config():
    return micro.TRAIN


@pytest.fixture(scope="session")
def run(data_dir, model_config, train_config):
    """`run(folder, log_every=1)` returns the rows of a micro run with these changes to its TrainConfig."""

    def start(run_dir, dtype=torch.float32, should_stop=lambda: False, **changes):  # float32 on every CPU
        config = replace(train_config, **changes)
        return train(run_dir, data_dir, model_config, config, "cpu", dtype, should_stop=should_stop)

    return start


@pytest.fixture(scope="session")
def lab(data_dir):
    """`lab(folder, log_every=1)` returns the workspace of a micro run in this folder, for `train_run`."""

    def plan(run_dir, mirror_root=None, **changes):
        return micro.workspace(run_dir, data_dir, mirror_root, **changes)

    return plan


@pytest.fixture(scope="session")
def uninterrupted(run, tmp_path_factory):
    """`uninterrupted(log_every=1)` returns the folder of a finished run. Each is made once, so do not change it."""
    made = {}

    def finished(**changes):
        key = str(changes)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("uninterrupted")
            list(run(made[key], **changes))
        return made[key]

    return finished
