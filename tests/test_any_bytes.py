"""Whatever a file of a run contains, it is read, or refused in a sentence, and no file changes."""

import json
import os
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import micro
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tinystories_lab.analysis.diagnosis import diagnose
from tinystories_lab.analysis.evaluation import bits_by_tokens
from tinystories_lab.analysis.report import summarize_run, summary_text
from tinystories_lab.checkpoint import latest_checkpoint, load_model, run_checkpoints
from tinystories_lab.durability.identity import identity_of, require_run_data
from tinystories_lab.durability.mirror import Mirror
from tinystories_lab.files import read_log
from tinystories_lab.loader import BinLoader
from tinystories_lab.pipeline import has_data, train_run
from tinystories_lab.run import Workspace, load_config
from tinystories_lab.trainer import train

TIMES = int(os.environ.get("TINYSTORIES_LAB_EXAMPLES", 1))  # a larger number tries so many times as many examples
JUNK = st.sampled_from(
    [None, True, False, 0, -1, 1, 10**400, 1.5, float("nan"), float("inf"), "", "3", "é\ud800", [], [1], {}, {"a": []}]
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory, data_dir) -> Workspace:
    """A finished run with a mirror. Each example changes one of its files and puts it back."""
    root = tmp_path_factory.mktemp("any")
    shutil.copytree(data_dir, root / "data" / "micro")
    lab = micro.workspace(root / "runs" / "r", root / "data" / "micro", root.parent / f"{root.name}-disk" / "lab")
    lab.mirror_root.parent.mkdir()
    list(train_run(lab, "cpu", torch.float32))
    return lab


@st.composite
def damaged(draw, content: bytes) -> bytes:
    """A file with some bytes replaced, inserted or cut off."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = draw(st.sampled_from([start, start + 1, start + 8, len(content)]))
        content[start:end] = draw(
            st.one_of(st.binary(max_size=8), st.sampled_from([b"\n", b"{", b"[" * 9_999, b"&a [*a]"]))
        )
    return bytes(content)


@st.composite
def changed(draw, value):
    """A nested value in which one value is replaced by junk, or removed."""
    if isinstance(value, dict | list) and value and draw(st.integers(0, 5)):
        copy = value.copy()
        key = (
            draw(st.sampled_from(sorted(value, key=str)))
            if isinstance(value, dict)
            else draw(st.integers(0, len(value) - 1))
        )
        if draw(st.integers(0, 9)):
            copy[key] = draw(changed(value[key]))
        else:
            del copy[key]
        return copy
    return draw(JUNK)


def contents(lab):
    folders = (lab.run_dir, lab.data_dir, lab.mirror_root)
    return {
        path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file() and path.suffix
    }


def read_all(lab, kind):
    """Everything that reads a kind of file of a run without writing any. Errors other than these end the test."""
    model, config, data, run = lab.preset.model, lab.preset.train, lab.data_dir, lab.run_dir
    longer = replace(config, total_steps=20)
    readers = {
        "loss.jsonl": [
            lambda: diagnose(read_log(run / "loss.jsonl"), 300, config),
            lambda: bits_by_tokens(run),
        ],
        "config.yaml": [lambda: load_config(run), lambda: bits_by_tokens(run)],
        "train.json": [
            lambda: BinLoader(data / "train.bin", 2, 8, vocab_size=300),
            lambda: has_data(lab),
            lambda: train(run, data, model, longer, "cpu", torch.float32),
        ],
        "manifest.json": [],
        ".pt": [
            lambda: latest_checkpoint(run_checkpoints(run)),
            lambda: load_model(run / "last.pt"),
            lambda: load_model(run / "final.pt"),
            lambda: train(run, data, model, longer, "cpu", torch.float32),
        ],
    }[kind]
    if kind != ".pt":  # a damaged last.pt is rightly replaced by the one on the mirror
        readers += [lambda: summary_text(summarize_run(lab)), lambda: Mirror(run, data, lab.mirror_root).restore()]
    for reader in [lambda: identity_of(run), lambda: require_run_data(lab), *readers]:
        try:
            reader()
        except (ValueError, FileNotFoundError) as error:
            assert type(error) in (ValueError, FileNotFoundError) and len(str(error)) > 20, repr(error)


def check(lab: Workspace, path: Path, content: bytes, kind: str) -> None:
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        expected = contents(lab)
        with warnings.catch_warnings(action="ignore"):
            read_all(lab, kind)
        assert contents(lab) == expected
    finally:
        path.write_bytes(before)


def text_files(lab):
    mirror = lab.mirror_root / "runs" / "r"
    return {
        "loss.jsonl": lab.run_dir / "loss.jsonl",
        "config.yaml": lab.run_dir / "config.yaml",
        "train.json": lab.data_dir / "train.json",
        "manifest.json": mirror / "manifest.json",
    }


@pytest.mark.parametrize("name", ["loss.jsonl", "config.yaml", "train.json", "manifest.json"])
@settings(max_examples=8 * TIMES)
@given(data=st.data())
def test_any_bytes_in_a_text_file(lab, name, data):
    path = text_files(lab)[name]
    check(lab, path, data.draw(damaged(path.read_bytes())), name)


@pytest.mark.parametrize("name", ["loss.jsonl", "config.yaml", "train.json", "manifest.json"])
@settings(max_examples=15 * TIMES)
@given(data=st.data())
def test_any_value_in_a_text_file(lab, name, data):
    path = text_files(lab)[name]
    text = path.read_text()
    if name == "config.yaml":
        content = yaml.safe_dump(data.draw(changed(yaml.safe_load(text))))
    elif name == "loss.jsonl":
        rows = data.draw(changed([json.loads(line) for line in text.splitlines()]))
        content = "\n".join(map(json.dumps, rows if isinstance(rows, list) else [rows]))
    else:
        content = json.dumps(data.draw(changed(json.loads(text))))
    check(lab, path, content.encode(errors="surrogatepass"), name)


@pytest.mark.parametrize("name", ["last.pt", "final.pt"])
@settings(max_examples=8 * TIMES)
@given(data=st.data())
def test_any_bytes_in_a_checkpoint(lab, name, data):
    path = lab.run_dir / name
    check(lab, path, data.draw(damaged(path.read_bytes())), ".pt")


@pytest.mark.parametrize("name", ["last.pt", "final.pt"])
@settings(max_examples=15 * TIMES)
@given(data=st.data())
def test_any_value_in_a_checkpoint(lab, tmp_path_factory, name, data):
    path = lab.run_dir / name
    value = data.draw(changed(torch.load(path, weights_only=True)))
    other = tmp_path_factory.getbasetemp() / "other.pt"
    torch.save(value, other)
    check(lab, path, other.read_bytes(), ".pt")
