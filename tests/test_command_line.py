"""The five stages from a shell: their files, their output, and their exit status."""

import contextlib
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tinystories_lab
from tinystories_lab import pipeline, trainer
from tinystories_lab.__main__ import main
from tinystories_lab.checkpoint import load_checkpoint, load_model
from tinystories_lab.data.text import PROMPTS
from tinystories_lab.device import choose_dtype
from tinystories_lab.durability.lock import run_lock
from tinystories_lab.files import read_log, read_rows
from tinystories_lab.generate import generate
from tinystories_lab.integrations.huggingface import load_llama
from tinystories_lab.loader import BinInfo
from tinystories_lab.model import new_model
from tinystories_lab.pipeline import STAGES
from tinystories_lab.run import PRESETS, Preset, load_config
from tinystories_lab.tokenizer import load_tokenizer
from tinystories_lab.trainer import train_step

DATA, RUN = Path("data", "stories-micro"), Path("runs", "stories-micro")


@pytest.fixture(scope="module", autouse=True)
def micro_preset(model_config, train_config):
    """`--preset micro` trains twelve steps on the file stories.txt in the current folder."""
    model = replace(model_config, n_layer=1, d_model=16)  # twenty stories are generated in every run
    preset = Preset("micro", "stories.txt", None, 1_000, None, 20, model, train_config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "micro", preset)
        yield


def command(*arguments):
    """Run a command line in the current folder. Return its exit status, output and errors."""
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors), warnings.catch_warnings():
        status = main([*arguments, "--preset", "micro"])
    return status, output.getvalue(), errors.getvalue()


@pytest.fixture(scope="module")
def finished(stories, tmp_path_factory):
    """A folder in which `run` has finished, and its exit status and output. Made once, so do not change it."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "stories.txt").write_text("\n\n".join(stories))
    with contextlib.chdir(folder):
        return folder, *command("run")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != ".lock"}


def assert_same_model(one, other):
    one, other = (load_model(folder / "final.pt").state_dict() for folder in (one, other))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_run_exits_0_and_writes_the_files_of_all_five_stages(finished):
    folder, status, _, _ = finished
    assert status == 0
    assert {path.name for path in (folder / DATA).iterdir()} == {
        *(".lock", "stories", "tokenizer.json", "train.bin", "train.json", "val.bin", "val.json")
    }
    assert files(folder / RUN).keys() == {
        *("config.yaml", "tokenizer.json", "loss.jsonl", "samples.jsonl", "timelapse.jsonl"),
        *("report.md", "loss_curve.png", "loss_by_tokens.png"),
        *("last.pt", "final.pt", "best.pt", "step_00005.pt", "step_00010.pt"),
    }
    assert read_log(folder / RUN / "loss.jsonl")[-1]["step"] == 12
    assert load_model(folder / RUN / "final.pt").config.vocab_size == 300
    assert load_tokenizer(folder / RUN / "tokenizer.json").get_vocab_size() == 300
    assert (folder / RUN / "loss_curve.png").read_bytes().startswith(b"\x89PNG")
    assert load_config(folder / RUN)["preset"] == "micro"
    assert BinInfo.load(folder / DATA / "train.bin").stories + BinInfo.load(folder / DATA / "val.bin").stories == 144


def test_run_keeps_ten_stories_from_before_and_after_training(finished):
    samples = read_rows(finished[0] / RUN / "samples.jsonl")
    for when in ("before", "after"):
        generated = [sample for sample in samples if sample["when"] == when]
        assert [sample["seed"] for sample in generated] == list(range(10))
        assert [sample["prompt"] for sample in generated] == [*PROMPTS, *PROMPTS]
        assert all(sample["story"].startswith(sample["prompt"]) for sample in generated)
    assert samples[0]["story"] != samples[10]["story"], "training changed nothing"


def test_the_stories_before_training_are_generated_with_the_initial_weights(finished):
    start = new_model(PRESETS["micro"].model, PRESETS["micro"].train.seed)
    first = read_rows(finished[0] / RUN / "samples.jsonl")[0]
    assert first["story"] == generate(
        start, load_tokenizer(finished[0] / RUN / "tokenizer.json"), PROMPTS[0], 20, seed=0
    )


def test_run_ends_with_what_was_made_its_loss_five_stories_and_the_next_step_on_one_screen(finished):
    folder, _, output, _ = finished
    *before, screen = output.partition("\ndone in ")
    first = ("preset micro, source stories.txt", "stories to train on", "train.bin: ", "bytes per token")
    for part in (*first, "8,176 parameters", choose_dtype(torch.device("cpu"))[1]):
        assert part in before[0], part
    row = read_log(folder / RUN / "loss.jsonl")[-1]
    for part in (
        "Trained a model of 8,176 parameters on 768 tokens in ",
        f"is {row['val_loss']:.3f} nats per token",
        " bits per byte:",
        f"among {math.exp(row['val_loss']):.1f} equally likely tokens.",
        *(str(RUN / "loss_curve.png"), str(RUN / "report.md"), "lab notebooks/", "--source "),
    ):
        assert part in screen, part
    samples = [row for row in read_rows(folder / RUN / "samples.jsonl") if row["when"] == "after"]
    stories = [" ".join(row["story"].split()) + ("" if row["ended"] else " ...") for row in samples]
    assert all(story in " ".join(screen.split()) for story in stories[:5])
    assert len(screen.splitlines()) < 50 and max(map(len, screen.splitlines())) <= 120


def test_retrospective_prints_the_report(finished, here):
    shutil.copytree(finished[0], here, dirs_exist_ok=True)
    status, output, _ = command("retrospective")
    assert status == 0
    for part in (
        "Run stories-micro",
        "perplexity",
        "bits per byte",
        "pattern     ",
        "checklist",
        "done: final.pt saved",
    ):
        assert part in output, part
    for part in ("done: ten samples from after training", "open: stories rated", str(here.resolve() / RUN)):
        assert part in output, part


def test_run_is_the_default_and_a_second_run_does_not_train_again(finished, here):
    shutil.copytree(finished[0], here, dirs_exist_ok=True)
    samples = (here / RUN / "samples.jsonl").read_text()
    marked = samples.replace('"when": "before"', '"when": "before", "note": "not generated again"')
    (here / RUN / "samples.jsonl").write_text(marked)
    before = files(here / RUN) | files(here / DATA)
    status, output, _ = command()
    assert status == 0 and "Five stories:" in output
    after = files(here / RUN) | files(here / DATA)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed <= {"config.yaml", "loss_curve.png", "loss_by_tokens.png", "report.md"}, (
        "only the list of sessions grows, and the retrospective is made again"
    )
    assert len(load_config(here / RUN)["sessions"]) == 2


@pytest.mark.parametrize(
    ("stage", "sentence"),
    [
        ("tokenizer", "run 01_prepare (or `prepare` in the shell) first"),
        ("train", "run 02_tokenizer (or `tokenizer` in the shell) first"),
        ("generate", "run 03_train (or `train` in the shell) first"),
        ("retrospective", "run 03_train (or `train` in the shell) first"),
    ],
)
def test_a_stage_without_its_predecessor_names_the_stage_to_run_first(here, stage, sentence):
    status, output, errors = command(stage)
    assert status == 1
    assert errors.rstrip().endswith(sentence) and "Traceback" not in errors + output
    assert not list(here.rglob("*.pt"))


def test_the_stages_one_by_one_write_the_same_files_as_run(finished, here):
    shutil.copy(finished[0] / "stories.txt", here)
    assert [command(stage)[0] for stage in STAGES] == [0, 0, 0, 0, 0]
    whole, single = files(finished[0] / RUN), files(here / RUN)
    assert single.keys() == whole.keys()
    assert single["samples.jsonl"] == whole["samples.jsonl"]
    assert_same_model(here / RUN, finished[0] / RUN)
    assert files(here / DATA) == files(finished[0] / DATA)


def test_prepared_data_is_not_written_again(finished, here):
    shutil.copy(finished[0] / "stories.txt", here)

    def written():
        assert (command("prepare")[0], command("tokenizer")[0]) == (0, 0)
        return {path: path.stat().st_mtime_ns for path in (here / DATA).rglob("*.*")}

    assert written() == written()


def test_tokens_are_made_again_from_changed_stories_whatever_the_clock_says(finished, here, stories):
    shutil.copytree(finished[0] / DATA, here / DATA)
    (here / "stories.txt").write_text("\n\n".join(stories[:100]))
    assert command("prepare")[0] == 0
    for path in (here / DATA / "stories").iterdir():
        os.utime(path, (1, 1))
    status, output, _ = command("tokenizer")
    assert status == 0 and "in 95 stories" in output


def test_stories_left_out_because_of_max_tokens_are_counted(finished, here, monkeypatch):
    shutil.copytree(finished[0] / DATA / "stories", here / DATA / "stories")
    monkeypatch.setitem(PRESETS, "micro", replace(PRESETS["micro"], max_tokens=1_000))
    _, output, _ = command("tokenizer")
    found = re.search(r"train\.bin: (\d+) tokens in (\d+) stories of 137 \(max_tokens is 1,000\)", output)
    assert found and int(found[1]) <= 1_000 and int(found[2]) < 137


def test_a_report_does_not_mix_stories_of_one_step_with_the_loss_of_another(finished, here, monkeypatch):
    shutil.copytree(finished[0], here, dirs_exist_ok=True)
    longer = replace(PRESETS["micro"], train=replace(PRESETS["micro"].train, total_steps=20))
    monkeypatch.setitem(PRESETS, "micro", longer)
    assert command("train")[0] == 0
    status, _, errors = command("retrospective")
    assert status == 1 and "its stories are of step 12, but the run is at step 20: run 04_generate" in errors
    assert command("generate")[0] == 0 and command("retrospective")[0] == 0


def test_folders_may_have_other_names(finished, here):
    shutil.copytree(finished[0] / DATA, here / "data" / "shared")
    shutil.copytree(finished[0] / RUN, here / "runs" / "second")
    (here / "runs" / "second" / "final.pt").unlink()
    assert command("train", "--data", "shared", "--run", "second")[0] == 0
    assert (here / "runs" / "second" / "final.pt").exists()
    assert load_config(here / "runs" / "second")["data"]["name"] == "shared"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--preset", "huge"], "unknown preset 'huge': use one of "),
        (["--preset", "micro", "--source", "no.txt"], "there is no file no.txt"),
        (["--preset", "micro", "--source", "gutenberg"], "unknown source 'gutenberg'"),
        (["--preset", "micro", "--run", "../elsewhere"], "the run name is '../elsewhere'"),
    ],
)
def test_an_impossible_request_exits_1_with_one_sentence(here, capsys, arguments, sentence):
    assert main(arguments) == 1
    errors = capsys.readouterr().err
    assert sentence in errors and "Traceback" not in errors
    assert errors.strip().count("\n") <= 1  # a progress bar may have begun


@pytest.mark.parametrize(
    "arguments", [["dance"], ["--presets", "tiny", "x"], ["run", "--source"], ["generate", "--fresh"]]
)
def test_wrong_usage_exits_2(here, capsys, arguments):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2 and "usage: python -m tinystories_lab" in capsys.readouterr().err


def test_ctrl_c_during_training_exits_130_and_the_same_command_continues(finished, here, monkeypatch):
    def step_and_press_ctrl_c(state, *args, **options):
        done = train_step(state, *args, **options)
        if state.step == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return done

    shutil.copy(finished[0] / "stories.txt", here)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "train_step", step_and_press_ctrl_c)
        status, output, errors = command("run")
    assert status == 130
    assert f"stopped; training is saved in {RUN / 'last.pt'}; the same command continues from there" in errors
    assert "Five stories:" not in output and "Traceback" not in errors
    assert load_checkpoint(here / RUN / "last.pt")["step"] == 7

    status, output, _ = command("run")
    assert status == 0 and "Five stories:" in output
    assert_same_model(here / RUN, finished[0] / RUN)
    samples = [row["when"] for row in read_rows(here / RUN / "samples.jsonl")]
    assert samples == ["before"] * 10 + ["after"] * 10


def test_ctrl_c_before_training_keeps_the_finished_stages(finished, here, monkeypatch):
    def press_ctrl_c(*args):
        raise KeyboardInterrupt

    shutil.copy(finished[0] / "stories.txt", here)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "train_tokenizer", press_ctrl_c)
        status, _, errors = command("run")
    assert status == 130 and "stopped; finished stages are kept; the same command continues from there" in errors
    assert command("tokenizer")[0] == 0


def test_fresh_starts_again_and_keeps_the_old_run_beside_it(finished, here):
    shutil.copytree(finished[0], here, dirs_exist_ok=True)
    before = files(here / RUN)
    status, output, _ = command("train", "--fresh")
    assert status == 0
    (aside,) = [path for path in (here / "runs").iterdir() if path.name != RUN.name]
    assert files(aside) == before and f"the old run was moved aside to runs/{aside.name}" in output
    assert len(load_config(here / RUN)["sessions"]) == 1
    assert_same_model(here / RUN, finished[0] / RUN)


def test_fresh_without_an_old_run_simply_starts(finished, here):
    shutil.copytree(finished[0] / DATA, here / DATA)
    status, output, _ = command("train", "--fresh")
    assert status == 0 and "moved aside" not in output


def test_run_and_data_are_restored_from_the_mirror_to_an_empty_folder(finished, here, monkeypatch):
    (here / "disk").mkdir()
    (here / "first").mkdir()
    shutil.copy(finished[0] / "stories.txt", here / "first")
    with contextlib.chdir(here / "first"):
        status, output, _ = command("run", "--mirror", str(here / "disk" / "lab"))
        assert status == 0 and "mirrored to step 12 in " in output
    shutil.rmtree(here / "first")
    (here / "second").mkdir()
    with contextlib.chdir(here / "second"):
        status, output, _ = command("run", "--mirror", str(here / "disk" / "lab"))
        assert status == 0 and "restored the run from " in output and "Five stories:" in output
        assert not Path("data", "stories-micro", "stories").exists(), "restored data needs no stories"
        assert_same_model(RUN, finished[0] / RUN)
        assert read_rows(RUN / "samples.jsonl") == read_rows(finished[0] / RUN / "samples.jsonl")


def test_a_mirror_on_a_missing_disk_exits_1(finished, here):
    shutil.copy(finished[0] / "stories.txt", here)
    disk = here.parent / "no disk"
    status, _, errors = command("run", "--mirror", str(disk / "lab"))
    assert status == 1 and "that disk is not there: mount it again" in errors and not disk.exists()


def test_a_run_with_another_config_is_refused_and_its_files_do_not_change(finished, here, monkeypatch):
    shutil.copytree(finished[0], here, dirs_exist_ok=True)
    before = files(here / RUN)
    other = replace(PRESETS["micro"], train=replace(PRESETS["micro"].train, seed=5))
    monkeypatch.setitem(PRESETS, "micro", other)
    status, _, errors = command("train")
    assert status == 1 and "seed 0 there, 5 here" in errors and "`--fresh`" in errors
    assert files(here / RUN) == before


def test_a_run_that_another_session_trains_exits_1(finished, here):
    shutil.copytree(finished[0], here, dirs_exist_ok=True)
    with run_lock(here / RUN):
        status, _, errors = command("train")
    assert status == 1 and "another session is training in " in errors


def test_too_little_memory_exits_1_and_says_what_to_do(finished, here, monkeypatch):
    def run_out(*_, **__):
        raise torch.OutOfMemoryError("step 1: the GPU has too little memory for 4 sequences: restart the session")

    shutil.copytree(finished[0] / DATA, here / DATA)
    monkeypatch.setattr(trainer, "train_step", run_out)
    status, _, errors = command("train")
    assert status == 1 and errors.rstrip().endswith("restart the session") and "Traceback" not in errors


def test_a_run_that_diverges_exits_1_and_says_what_to_change(finished, here, monkeypatch):
    def diverge(*args, **options):
        loss, grad_norm = train_step(*args, **options)
        return loss * float("nan"), grad_norm

    shutil.copytree(finished[0] / DATA, here / DATA)
    (here / RUN).mkdir(parents=True)
    shutil.copy(finished[0] / RUN / "samples.jsonl", here / RUN)
    monkeypatch.setattr(trainer, "train_step", diverge)
    status, _, errors = command("train")
    assert status == 1 and "at step 1 the loss is nan" in errors and errors.rstrip().endswith("a lower peak_lr")


def test_warnings_are_printed_as_notes_without_source_code(finished, here):
    shutil.copytree(finished[0], here, dirs_exist_ok=True)
    (here / RUN / "last.pt").write_bytes(b"torn")
    status, _, errors = command("train")
    assert status == 0
    assert "note: skipped: " in errors and "last.pt is damaged" in errors and "stacklevel" not in errors


def test_help_lists_all_stages_and_options(tmp_path):
    home = str(Path(tinystories_lab.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-m", "tinystories_lab", "--help"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": home},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0
    for word in (
        *STAGES,
        "--preset",
        "--source",
        "--run",
        "--data",
        "--mirror",
        "--fresh",
        "tiny, small, book, fast",
        "TINYSTORIES_LAB_PRESET",
    ):
        assert word in done.stdout
    assert not list(tmp_path.iterdir())


def test_export_writes_a_folder_that_can_be_loaded_and_says_how_to_share_it(finished, tmp_path, monkeypatch):
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    status, output, _ = command("export")
    folder = RUN / "hugging_face"
    assert status == 0 and f"hf upload YOU/{RUN.name} {folder}" in output
    for path in folder.iterdir():
        assert f"{path.stat().st_size:,} bytes  {path}" in output
    ours, back = load_model(RUN / "final.pt").state_dict(), load_llama(folder).state_dict()
    assert all(torch.equal(ours[name], back[name]) for name in ours)


# --- what a run is, and what belongs together


def everything(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.mark.parametrize("mirror", [".", "runs", "data/stories-micro", "..", "link", "other/../."])
def test_a_mirror_that_is_the_workspace_or_contains_it_or_lies_in_it_is_refused_before_anything_changes(
    finished, here, mirror
):
    shutil.copytree(finished[0], here, dirs_exist_ok=True)
    (here / "link").symlink_to(here)
    before = everything(here)
    for stage in ("run", "prepare", "train"):
        status, _, errors = command(stage, "--mirror", mirror)
        assert status == 1 and "are not separate; the mirror must be a folder outside of the workspace" in errors
    assert everything(here) == before


def test_two_corpora_of_one_name_do_not_share_a_folder_unnoticed(finished, here, stories):
    for name, part in (("anna", stories[:100]), ("ben", stories[40:])):
        (here / name).mkdir()
        (here / name / "stories.txt").write_text("\n\n".join(part))
    assert command("run", "--source", "anna/stories.txt")[0] == 0
    before = everything(here)
    for stage in ("run", "prepare"):
        status, _, errors = command(stage, "--source", "ben/stories.txt")
        assert status == 1 and "anna/stories.txt" in errors and "--data" in errors
    assert everything(here) == before
    assert command("prepare", "--source", "ben/stories.txt", "--data", "ben")[0] == 0
    assert command("tokenizer", "--source", "ben/stories.txt", "--data", "ben")[0] == 0
    before = everything(here)
    for stage in ("train", "generate", "retrospective"):
        status, _, errors = command(stage, "--source", "ben/stories.txt", "--data", "ben")
        assert status == 1 and ("other data" in errors or "another run (" in errors)
    assert everything(here) == before


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def put_zeros_into(path):
    content = bytearray(path.read_bytes())
    content[100:140] = bytes(40)
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


DAMAGES = [
    *((name, Path.unlink) for name in ("train.bin", "val.bin", "train.json", "val.json", "tokenizer.json")),
    *((name, cut) for name in ("train.bin", "val.bin", "train.json", "tokenizer.json", "stories/train.arrow")),
    *((f"stories/{name}", Path.unlink) for name in ("report.json", "train.arrow", "validation.arrow")),
    *((f"stories/{name}", empty) for name in ("report.json", "train.arrow")),
    *((name, put_zeros_into) for name in ("train.bin", "val.bin", "tokenizer.json")),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGES, ids=lambda value: getattr(value, "__name__", value))
def test_data_that_is_missing_or_damaged_is_never_used_and_the_stages_make_it_again(finished, here, name, damage):
    shutil.copytree(finished[0], here, dirs_exist_ok=True)
    (here / RUN / "final.pt").unlink()
    before = files(here / DATA)
    damage(here / DATA / name)
    if not name.startswith("stories") and name not in ("train.json", "val.json"):
        status, _, errors = command("train")
        assert status == 1 and "02_tokenizer" in errors and "Traceback" not in errors
    assert command("run")[0] == 0
    assert files(here / DATA) == before
    assert_same_model(here / RUN, finished[0] / RUN)


@pytest.mark.parametrize("name", ["final.pt", "last.pt", "tokenizer.json", "loss.jsonl", "samples.jsonl"])
@pytest.mark.parametrize("damage", [Path.unlink, cut, put_zeros_into])
def test_a_file_of_a_finished_run_that_is_missing_or_damaged_is_made_again_by_run(finished, here, name, damage):
    shutil.copytree(finished[0], here, dirs_exist_ok=True)
    damage(here / RUN / name)
    status, output, errors = command("run")
    assert status == 0, errors
    assert "Five stories:" in output
    assert_same_model(here / RUN, finished[0] / RUN)
    assert load_tokenizer(here / RUN / "tokenizer.json").get_vocab_size() == 300


def test_what_is_exported_and_reported_is_the_model_of_the_step_that_is_named(finished, here, monkeypatch):
    shutil.copytree(finished[0], here, dirs_exist_ok=True)
    longer = replace(PRESETS["micro"], train=replace(PRESETS["micro"].train, total_steps=20))
    monkeypatch.setitem(PRESETS, "micro", longer)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "train_step", lambda state, batch: stop_after(15, state, batch))
        assert command("train")[0] == 130
    for stage in ("generate", "retrospective", "export"):
        status, _, errors = command(stage)
        assert status == 1 and "final.pt has the model of step 12, but the run has gone on to step 15" in errors
    assert command("run")[0] == 0 and command("export")[0] == 0
    assert "1,280" in (here / RUN / "hugging_face" / "README.md").read_text(), "20 steps of 64 tokens"


def stop_after(step, state, batch):
    done = train_step(state, batch)
    if state.step == step:
        os.kill(os.getpid(), signal.SIGINT)
    return done


@pytest.mark.parametrize("count", [2, 4, 9, 25, 60])
def test_a_corpus_too_small_for_a_window_is_refused_by_prepare_and_the_advice_works(
    here, stories, monkeypatch, model_config, count
):
    preset = PRESETS["micro"]
    long = replace(preset, model=replace(preset.model, max_len=128), train=replace(preset.train, seq_len=128))
    monkeypatch.setitem(PRESETS, "micro", long)
    (here / "few.txt").write_text("\n\n".join(stories[:count]))
    status, _, errors = command("prepare", "--source", "few.txt")
    assert status == 1 and "one window of seq_len 128 needs 129" in errors
    needed, seq_len = re.search(r"use about (\d+) stories in all, or a seq_len of (\d+) ", errors).groups()
    status, _, errors = command("run", "--source", "few.txt", "--seq-len", seq_len)
    assert status == 0, errors
    assert command("prepare", "--source", "few.txt", "--seq-len", str(2 * int(seq_len)))[0] == 1, "the smallest change"
    if int(needed) <= 5 * len(stories):
        more = [f"{story} The end." if copy else story for copy in range(5) for story in stories[: int(needed)]]
        more = [f"{story}{' Yes.' * (i // len(stories))}" for i, story in enumerate(more[: int(needed)])]
        (here / "enough.txt").write_text("\n\n".join(more))
        status, _, errors = command("prepare", "--source", "enough.txt")
        assert status == 0, errors


# --- terminals and signals


def test_a_terminal_that_is_not_utf_8_gets_every_story(finished, here):
    shutil.copytree(finished[0], here, dirs_exist_ok=True)
    rows = read_rows(here / RUN / "samples.jsonl")
    (here / RUN / "samples.jsonl").write_text(
        "".join(json.dumps(row | {"story": f"“{row['story']}” 🦊"}) + "\n" for row in rows)
    )
    code = "from pathlib import Path; import tinystories_lab.__main__ as cli\n"
    code += "cli._run_stages = lambda *_: None\n"
    code += f"cli.main(['--run', '{RUN.name}', '--data', '{DATA.name}', '--preset', 'tiny'])"
    for encoding in ("latin-1", "ascii"):
        home = str(Path(tinystories_lab.__file__).parents[1])
        environment = os.environ | {"PYTHONPATH": home, "PYTHONIOENCODING": encoding}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=120)
        assert done.returncode == 0, done.stderr.decode(encoding)
        assert "Five stories:" in done.stdout.decode(encoding) and b"Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("seconds", [0.3, 1.5, 4.0, 8.0])
def test_a_signal_at_any_moment_ends_with_one_sentence_and_leaves_no_partial_file(here, number, seconds):
    home = str(Path(tinystories_lab.__file__).parents[1])
    start, environment = [sys.executable, "-m", "tinystories_lab"], os.environ | {"PYTHONPATH": home}
    with subprocess.Popen(
        start, cwd=here, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        time.sleep(seconds)
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    errors = errors.decode()
    assert "Traceback" not in errors, errors
    if process.returncode not in (0, -signal.SIGINT, -signal.SIGTERM):  # it had ended, or Python had not begun
        assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
        assert errors.splitlines()[-1].startswith("stopped"), errors
    assert not list(here.rglob("*.partial"))
