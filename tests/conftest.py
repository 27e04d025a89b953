"""What the tests share: a micro run that trains in a second, and an environment that leads nowhere outside of them."""

import os
import shutil
import tempfile
from itertools import product

import pytest
import torch
from hypothesis import settings

from tinystories_lab.model import GPTConfig
from tinystories_lab.recipe import TrainConfig
from tinystories_lab.tokenizer import save_tokenizer, train_tokenizer, write_bin

# Notebooks run in kernels of their own, which inherit this: the smallest preset, in a folder that goes afterwards.
WORKSPACE = tempfile.mkdtemp(prefix="tinystories_lab_tests_")
os.environ["TINYSTORIES_LAB_PRESET"] = "tiny"
os.environ["TINYSTORIES_LAB_WORKSPACE"] = WORKSPACE

# Micro matrices gain nothing from a second thread, and beside other work waiting for it costs tenfold.
torch.set_num_threads(1)

# The same examples at every run, however busy the machine; nothing is written beside the tests.
settings.register_profile("lab", deadline=None, derandomize=True, database=None)
settings.load_profile("lab")


def pytest_unconfigure(config):
    shutil.rmtree(WORKSPACE, ignore_errors=True)


@pytest.fixture(scope="session")
def stories():
    """144 stories of about twenty tokens each, all different."""
    names, things, places = ("Lily", "Ben", "Mia"), ("ball", "kite", "boat", "hat"), ("park", "garden", "pond")
    return [
        f"{name} found a {colour} {thing} in the {place}. {name} was very happy."
        for name, colour, thing, place in product(names, ("red", "blue", "green", "big"), things, places)
    ]


@pytest.fixture(scope="session")
def data_dir(stories, tmp_path_factory):
    """A real data folder with a vocabulary of 300. Shared by all tests: copy it before changing anything."""
    folder = tmp_path_factory.mktemp("data")
    tokenizer = train_tokenizer(stories, 300)
    save_tokenizer(tokenizer, folder / "tokenizer.json")
    write_bin(folder / "train.bin", stories[:120], tokenizer, source="made up")
    write_bin(folder / "val.bin", stories[120:], tokenizer, source="made up")
    return folder


@pytest.fixture(scope="session")
def model_config():
    return GPTConfig(vocab_size=300, n_layer=2, n_head=2, d_model=32, max_len=16)


@pytest.fixture(scope="session")
def train_config():
    """Twelve steps; logging, evaluating, saving and keeping fall on different ones."""
    return TrainConfig(
        batch_size=4,
        seq_len=16,
        total_steps=12,
        warmup_steps=2,
        peak_lr=1e-2,
        log_every=3,
        eval_every=6,
        eval_batches=2,
        save_every=4,
        keep_every=5,
    )
