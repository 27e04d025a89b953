"""Where to compute and in which precision, with stand-ins for missing hardware; and several processes that train one model."""

import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import together
import torch

from tinystories_lab import __main__ as command_line
from tinystories_lab import trainer
from tinystories_lab.checkpoint import load_model, read_step
from tinystories_lab.device import (
    all_reduce_mean,
    any_rank,
    broadcast,
    choose_device,
    choose_dtype,
    init_distributed,
    local_batch,
    pays_to_compile,
    rank,
    world_size,
    wrap_ddp,
)
from tinystories_lab.files import read_log, read_rows
from tinystories_lab.model import GPTConfig, new_model
from tinystories_lab.run import PRESETS

# --- device, precision, compiling -------------------------------------------------------------------------------------


def cuda(monkeypatch, capability):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *args, **kwargs: True)  # emulation counts, even on a T4
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Stand-in GPU")


def test_a_gpu_is_chosen_before_apples_before_the_cpu(monkeypatch):
    mps = torch.backends.mps
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(mps, "is_available", lambda: False)
    device, reason = choose_device()
    assert device.type == "cpu" and "no GPU was found" in reason
    monkeypatch.setattr(mps, "is_available", lambda: True)
    assert choose_device()[0].type == "mps"
    cuda(monkeypatch, (8, 0))
    assert choose_device() == (torch.device("cuda"), "training on the GPU Stand-in GPU")


@pytest.mark.parametrize(
    ("capability", "dtype", "reason"),
    [
        ((7, 5), torch.float16, "float16 with loss scaling: compute capability 7.5 is below 8.0"),  # T4
        ((7, 0), torch.float16, "7.0"),  # V100
        ((8, 0), torch.bfloat16, "bfloat16: compute capability 8.0 supports it in hardware"),  # A100
        ((8, 9), torch.bfloat16, "8.9"),  # L4
        ((10, 0), torch.bfloat16, "10.0"),  # B200
    ],
)
def test_bfloat16_is_chosen_by_compute_capability(monkeypatch, capability, dtype, reason):
    cuda(monkeypatch, capability)
    chosen, sentence = choose_dtype(torch.device("cuda"))
    assert chosen is dtype and reason in sentence


def test_apples_gpu_computes_in_bfloat16_if_that_works(monkeypatch):
    def on_a_stand_in(*shape, dtype, device):
        assert device == torch.device("mps")
        return torch.full(shape, 1.0, dtype=dtype)

    def refused(*shape, dtype, device):
        raise TypeError("BFloat16 is not supported on MPS")

    monkeypatch.setattr(torch, "ones", on_a_stand_in)
    dtype, reason = choose_dtype(torch.device("mps"))
    assert dtype is torch.bfloat16 and "the chapter" in reason
    monkeypatch.setattr(torch, "ones", refused)
    dtype, reason = choose_dtype(torch.device("mps"))
    assert dtype is torch.float32 and "does not support bfloat16" in reason


@pytest.mark.parametrize(("avx512", "amx", "dtype"), [(0, 0, "float32"), (1, 0, "bfloat16"), (0, 1, "bfloat16")])
def test_a_cpu_computes_in_bfloat16_only_if_it_has_instructions_for_it(monkeypatch, avx512, amx, dtype):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bool(avx512), raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: bool(amx), raising=False)
    chosen, reason = choose_dtype(torch.device("cpu"))
    assert chosen is getattr(torch, dtype) and reason.startswith(dtype) and "instructions" in reason


@pytest.mark.parametrize(
    ("kind", "capability", "flops", "pays"),
    [
        ("cuda", (7, 5), 1e18, False),
        ("cuda", (8, 0), 1e16, True),
        ("cuda", (9, 0), 1e13, False),
        ("cpu", None, 1e16, True),
        ("cpu", None, 1e13, False),
        ("mps", None, 1e18, False),
    ],
)
def test_compiling_pays_for_a_long_run_and_never_below_capability_8(monkeypatch, kind, capability, flops, pays):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    assert pays_to_compile(torch.device(kind), flops) is pays


def test_the_chapters_run_is_compiled_and_the_tiny_one_is_not():
    for name, pays in (("book", True), ("tiny", False)):
        model, config = PRESETS[name].model, PRESETS[name].train
        flops = 6 * new_model(model).count_parameters() * config.total_steps * config.tokens_per_step
        assert pays_to_compile(torch.device("cpu"), flops) is pays


# --- several processes ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(data_dir, tmp_path_factory):
    """The folder of a run by one process."""
    folder = tmp_path_factory.mktemp("alone")
    together.train(folder, data_dir)
    return folder


def run_together(processes, *arguments):
    """`together.train` by so many processes. They are forked from one that has imported PyTorch, which is fast."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tinystories_lab.trainer", "torch._dynamo"])  # optimizers import the second
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    joined = [context.Process(target=together.join, args=(i, processes, port, *arguments)) for i in range(processes)]
    for process in joined:
        process.start()
    for process in joined:
        process.join(100)
    assert [process.exitcode for process in joined] == [0] * processes


def assert_same_run(run_dir, other_dir):
    """Losses and weights are equal, except for the order in which values are added."""
    rows, others = read_rows(run_dir / "loss.jsonl"), read_log(other_dir / "loss.jsonl")
    assert [row["step"] for row in rows] == [row["step"] for row in others] == list(range(1, 13))
    for row, other in zip(rows, others, strict=True):
        assert row["train_loss"] == pytest.approx(other["train_loss"], abs=1e-5)
        assert row["grad_norm"] == pytest.approx(other["grad_norm"], abs=1e-4)
        assert row.get("val_loss") == pytest.approx(other.get("val_loss"), abs=1e-5)
        assert row["tokens"] == other["tokens"]
    models = [load_model(folder / "final.pt").state_dict() for folder in (run_dir, other_dir)]
    for name, weights in models[0].items():
        torch.testing.assert_close(weights, models[1][name], atol=2e-3, rtol=0)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_continues_with_another_number_of_processes(data_dir, alone, tmp_path, before, after):
    for processes, stop in ((before, 6), (after, None)):
        if processes == 1:
            together.train(tmp_path, data_dir, stop)
        else:
            run_together(processes, tmp_path, data_dir, stop)
        assert read_step(tmp_path / "last.pt") == (stop or 12)
    assert_same_run(tmp_path, alone)


def test_two_processes_train_with_normuon_as_one_does(data_dir, tmp_path):
    together.train(tmp_path / "one", data_dir, None, "normuon")
    run_together(2, tmp_path / "two", data_dir, None, "normuon")
    assert_same_run(tmp_path / "two", tmp_path / "one")


def test_under_torchrun_the_command_line_trains_one_run_and_one_process_writes_and_speaks(data_dir, alone, tmp_path):
    shutil.copytree(data_dir, tmp_path / "data" / "stories-micro")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, *launcher, str(Path(together.__file__)), "train"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    run_dir = tmp_path / "runs" / "stories-micro"
    assert_same_run(run_dir, alone)  # also: each row was written once
    assert done.stdout.count("finished:") == 1, "one process speaks for all"
    assert "shut down" not in done.stderr, "gloo's threads may still hold tensors then, and abort"
    kept = [row["step"] for row in read_rows(run_dir / "timelapse.jsonl")]
    assert kept == [0, 1, 2, 6, 12], "one process generates, and the other one waits for it"
    expected = {path.name for path in alone.iterdir()} | {"config.yaml", "samples.jsonl", "timelapse.jsonl"}
    assert {path.name for path in run_dir.iterdir()} - {".lock"} == expected


def test_without_torchrun_a_process_is_rank_0_of_1():
    batch = torch.arange(8).reshape(4, 2), torch.arange(8, 16).reshape(4, 2)
    model = new_model(GPTConfig(300, 1, 2, 32, 16))
    with init_distributed():
        assert (rank(), world_size()) == (0, 1)
        assert all(torch.equal(one, other) for one, other in zip(local_batch(batch), batch, strict=True))
        assert all_reduce_mean(torch.tensor(3.0)) == 3 and broadcast({"a": 1}) == {"a": 1}
        assert any_rank(True) and not any_rank(False) and wrap_ddp(model) is model


def test_a_batch_that_cannot_be_shared_evenly_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "world_size", lambda: 3)
    with pytest.raises(
        ValueError, match="batch_size is 4; it must be a multiple of 3 processes times grad_accum_steps 1"
    ):
        run(tmp_path)


def test_several_processes_can_only_train(monkeypatch, capsys):
    monkeypatch.setattr(command_line, "world_size", lambda: 2)
    with pytest.raises(SystemExit):
        command_line.main(["prepare"])
    assert "2 processes can only train: run prepare without torchrun" in capsys.readouterr().err


def test_variables_that_another_program_has_left_do_not_start_several_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.warns(UserWarning, match="WORLD_SIZE is set without RANK, .*so one process trains"), init_distributed():
        assert world_size() == 1


# --- threads ----------------------------------------------------------------------------------------------------------


def spin_count(**environment):
    """GOMP_SPINCOUNT after importing the package in a fresh process, and whether PyTorch was imported by then."""
    code = "import os, sys, tinystories_lab; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    clean = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=clean | environment, capture_output=True, text=True).stdout.split()


def test_importing_the_package_shortens_the_spinning_of_threads_before_pytorch_is_imported():
    count, torch_is_there = spin_count()
    assert 0 < int(count) < 300_000 and torch_is_there == "False"


def test_how_threads_wait_stays_as_the_user_has_set_it():
    assert spin_count(GOMP_SPINCOUNT="7")[0] == "7"
    assert spin_count(OMP_WAIT_POLICY="active")[0] == "None"
