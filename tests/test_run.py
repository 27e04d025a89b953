"""Presets, workspaces, and config.yaml, the record needed to repeat a run."""

import platform
import re
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest
import torch
import yaml

from tinystories_lab import run as run_module
from tinystories_lab.config import TrainConfig
from tinystories_lab.model import GPTConfig, count_parameters
from tinystories_lab.run import PRESETS, _choose_preset, load_config, plan_workspace, save_config


def on_device(monkeypatch, kind):
    monkeypatch.setattr(run_module, "choose_device", lambda: (torch.device(kind), f"training on {kind}"))


def test_the_book_preset_is_the_chapters_run():
    book = PRESETS["book"]
    assert (book.train.total_steps, book.train.tokens_per_step) == (12_207, 16_384)
    assert book.train.total_steps * book.train.tokens_per_step == pytest.approx(200e6, rel=1e-4)
    assert book.max_tokens == 200_000_000 and book.tokenizer_stories == 100_000 and book.source == "tinystories"
    assert count_parameters(book.model) == 9_952_320


def test_fast_has_the_chapters_data_size_and_budget():
    book, fast = PRESETS["book"], PRESETS["fast"]
    for name in ("source", "max_stories", "tokenizer_stories", "max_tokens", "sample_tokens"):
        assert getattr(fast, name) == getattr(book, name)
    assert fast.model.vocab_size == book.model.vocab_size and fast.model.max_len == book.model.max_len
    parameters = [count_parameters(preset.model) for preset in (book, fast)]
    assert parameters[1] == pytest.approx(parameters[0], rel=0.03)
    for name in ("tokens_per_step", "total_steps", "seq_len", "seed"):
        assert getattr(fast.train, name) == getattr(book.train, name)


def test_the_tiny_presets_model_is_under_a_million_parameters():
    assert count_parameters(PRESETS["tiny"].model) < 1_000_000


@pytest.mark.parametrize("preset", PRESETS.values(), ids=list(PRESETS))
def test_the_settings_of_every_preset_fit_together(preset):
    assert PRESETS[preset.name] is preset
    assert preset.train.seq_len <= preset.model.max_len
    assert preset.train.eval_every <= preset.train.total_steps, "a run without an evaluation has nothing to show"
    assert preset.train.save_every <= preset.train.total_steps
    with pytest.raises(FrozenInstanceError):
        preset.source = "other"


def test_a_named_preset_does_not_depend_on_the_environment(monkeypatch):
    monkeypatch.setenv("TINYSTORIES_LAB_PRESET", "tiny")
    assert _choose_preset("fast").name == "fast"


@pytest.mark.parametrize(
    ("variable", "device", "expected"),
    [
        ("book", "cpu", "book"),
        ("tiny", "cuda", "tiny"),
        (None, "cpu", "tiny"),
        (None, "cuda", "book"),
        (None, "mps", "book"),
        ("", "cuda", "book"),
    ],
)
def test_auto_depends_on_the_environment_variable_and_then_on_the_device(monkeypatch, variable, device, expected):
    monkeypatch.delenv("TINYSTORIES_LAB_PRESET", raising=False)
    if variable is not None:
        monkeypatch.setenv("TINYSTORIES_LAB_PRESET", variable)
    on_device(monkeypatch, device)
    assert _choose_preset().name == _choose_preset("auto").name == expected


def test_an_unknown_preset_is_refused_with_a_list_of_the_known_ones(monkeypatch):
    for_all = rf"use one of {', '.join(PRESETS)}, or auto"
    with pytest.raises(ValueError, match=f"unknown preset 'huge': {for_all}"):
        _choose_preset("huge")
    monkeypatch.setenv("TINYSTORIES_LAB_PRESET", "hug")
    with pytest.raises(ValueError, match=f"unknown preset 'hug': {for_all}"):
        _choose_preset()


@pytest.mark.parametrize(
    ("choices", "source", "data", "run"),
    [
        ({"preset": "tiny"}, "toyland", "toyland-tiny", "toyland-tiny"),
        ({"preset": "book"}, "tinystories", "tinystories-book", "tinystories-book"),
        ({"preset": "tiny", "source": "tinystories"}, "tinystories", "tinystories-tiny", "tinystories-tiny"),
        ({"preset": "tiny", "source": "a/my.stories.txt.gz"}, "a/my.stories.txt.gz", "my-tiny", "my-tiny"),
        ({"preset": "tiny", "source": "a/my_stories"}, "a/my_stories", "a-my_stories-tiny", "a-my_stories-tiny"),
        ({"preset": "tiny", "source": "/a/Сказки/"}, "/a/Сказки/", "Сказки-tiny", "Сказки-tiny"),
        (
            {"preset": "tiny", "source": "ada/t.v2:the text"},
            "ada/t.v2:the text",
            "ada-t.v2-the-text-tiny",
            "ada-t.v2-the-text-tiny",
        ),
        ({"preset": "tiny", "source": "."}, ".", "stories-tiny", "stories-tiny"),
        ({"preset": "tiny", "run": "second try"}, "toyland", "toyland-tiny", "second try"),
        ({"preset": "tiny", "data": "shared"}, "toyland", "shared", "toyland-tiny"),
    ],
    ids=str,
)
def test_folders_are_named_after_source_and_preset_by_default(tmp_path, choices, source, data, run):
    lab = plan_workspace(tmp_path, **choices)
    assert lab.preset is PRESETS[choices["preset"]] and lab.source == source
    assert (lab.data_dir, lab.run_dir) == (tmp_path / "data" / data, tmp_path / "runs" / run)
    assert not list(tmp_path.iterdir()), "planning makes no folder"


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "/x", "a/"])
@pytest.mark.parametrize("what", ["run", "data"])
def test_names_that_are_not_plain_folder_names_are_refused(tmp_path, what, name):
    with pytest.raises(ValueError, match=rf"the {what} name is '{name}'; .* plain folder name, such as 'toyland-tiny'"):
        plan_workspace(tmp_path, "tiny", **{what: name})


def micro_workspace(root, data_dir=None):
    lab = plan_workspace(root, "tiny", run="mine")
    return replace(lab, data_dir=data_dir) if data_dir else lab


def test_the_model_has_the_vocabulary_of_the_data(tmp_path, data_dir):
    assert micro_workspace(tmp_path).model_config == PRESETS["tiny"].model
    lab = micro_workspace(tmp_path, data_dir)
    assert lab.model_config == replace(PRESETS["tiny"].model, vocab_size=300)


def test_config_has_every_choice_and_the_versions_and_the_device(tmp_path, data_dir, monkeypatch):
    on_device(monkeypatch, "mps")
    lab = micro_workspace(tmp_path, data_dir)
    save_config(lab)
    config = load_config(lab.run_dir)
    assert (config["preset"], config["source"], config["data"]["name"]) == ("tiny", "toyland", data_dir.name)
    assert GPTConfig(**config["model"]) == lab.model_config
    assert TrainConfig(**config["train"]) == PRESETS["tiny"].train
    assert {key: config[key] for key in ("max_stories", "tokenizer_stories", "max_tokens")} == {
        "max_stories": 20_000,
        "tokenizer_stories": 20_000,
        "max_tokens": None,
    }
    assert config["data"]["vocab_size"] == 300 and len(config["data"]["sha256"]) == 64
    (session,) = config["sessions"]
    assert (session["device"], session["device_name"], session["dtype"]) == ("mps", "training on mps", "float32")
    assert session["versions"]["torch"] == torch.__version__.split("+")[0] or torch.__version__
    assert session["versions"]["python"] == platform.python_version()
    assert session["versions"].keys() >= {"numpy", "datasets", "tokenizers", "tinystories_lab"}
    assert session["started"].endswith("+00:00")


def test_config_can_be_saved_before_the_data_exists(tmp_path):
    lab = micro_workspace(tmp_path)
    save_config(lab)
    assert load_config(lab.run_dir)["data"] == {"name": "toyland-tiny"}


def test_earlier_sessions_stay_listed(tmp_path, monkeypatch):
    lab = micro_workspace(tmp_path)
    for device in ("cpu", "mps", "cpu"):
        on_device(monkeypatch, device)
        save_config(lab)
    sessions = load_config(lab.run_dir)["sessions"]
    assert [session["device"] for session in sessions] == ["cpu", "mps", "cpu"]
    assert [path.name for path in lab.run_dir.iterdir()] == ["config.yaml"]


def test_what_a_session_changes_in_the_config_is_recorded(tmp_path, monkeypatch):
    lab = micro_workspace(tmp_path)
    save_config(lab)
    save_config(lab)
    longer = replace(lab.preset, train=replace(lab.preset.train, total_steps=1_600, save_every=50))
    save_config(replace(lab, preset=longer))
    config = load_config(lab.run_dir)
    assert [session.get("changed") for session in config["sessions"]] == [
        None,
        None,
        {"total_steps": [PRESETS["tiny"].train.total_steps, 1_600], "save_every": [100, 50]},
    ]
    assert config["train"]["total_steps"] == 1_600


def test_config_is_plain_readable_yaml(tmp_path):
    lab = micro_workspace(tmp_path)
    save_config(lab)
    text = (lab.run_dir / "config.yaml").read_text()
    assert text.startswith("preset: tiny\nsource: toyland\n") and "!!" not in text
    assert yaml.safe_load(text) == load_config(lab.run_dir)


def test_a_missing_config_says_which_stage_writes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no .*config\.yaml: run 03_train"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"preset: [tiny\n", "is not readable YAML"),
        (b"preset: \x00\n", "is not readable YAML"),
        (b"\xff\xfe\xfa", "is not readable YAML"),
        (b"a: !!python/object/apply:os.system ['true']\n", "is not readable YAML"),
        (b"", "is not a run's config"),
        (b"just a sentence\n", "is not a run's config"),
        (b"- a\n- list\n", "is not a run's config"),
        (b"train: {}\nsessions: []\n", "is not a run's config"),  # no model, no data
        (b"model: {}\ndata: {}\ntrain: 5\nsessions: []\n", "is not a run's config"),
        (b"model: {}\ndata: {}\ntrain: {colour: red}\nsessions: []\n", "is not a run's config"),
        (b"model: {}\ndata: {}\ntrain: {}\nsessions: none\n", "is not a run's config"),
    ],
)
def test_damaged_yaml_and_other_yaml_are_refused_with_the_name_of_the_file(tmp_path, content, sentence):
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=rf"(?s)config\.yaml {sentence}.*train again"):
        load_config(tmp_path)
    lab = replace(micro_workspace(Path("unused")), run_dir=tmp_path)
    with pytest.raises(ValueError, match=r"config\.yaml"):
        save_config(lab)
    assert (tmp_path / "config.yaml").read_bytes() == content, "a file that could not be read was overwritten"


def test_a_changed_train_config_changes_nothing_else_of_a_workspace(tmp_path):
    lab = plan_workspace(tmp_path, "tiny")
    changed = lab.with_train_config(total_steps=500)
    assert changed.preset.train == replace(lab.preset.train, total_steps=500)
    assert replace(changed, preset=lab.preset) == lab


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"max_stories": 1}, "max_stories is 1; it must be an integer from 2 to"),
        ({"tokenizer_stories": 0}, "tokenizer_stories is 0; it must be an integer from 1 to"),
        ({"max_tokens": 1.5}, "max_tokens is 1.5; it must be an integer from 1 to"),
        ({"sample_tokens": None}, "sample_tokens is None; it must be an integer from 1 to"),
        ({"source": 7}, "source is 7; it must be a string"),
        ({"train": None}, "train is None; it must be TrainConfig"),
        ({"train": TrainConfig(seq_len=1_024)}, "seq_len is 1024, but the model's max_len is 512"),
    ],
    ids=str,
)
def test_a_preset_out_of_its_ranges_is_refused_with_name_value_and_range(changes, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        replace(PRESETS["book"], **changes)


def test_a_tilde_is_the_home_folder_in_every_path(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    lab = plan_workspace("~/lab", "tiny", "~/stories.txt", mirror_root="~/disk/lab")
    assert lab.source == str(tmp_path / "stories.txt") and lab.mirror_root == tmp_path / "disk" / "lab"
    assert lab.data_dir == tmp_path / "lab" / "data" / "stories-tiny"
