"""CUDA graphs, simulated on the CPU: what a graph replays is what the Python code would have done."""

import warnings

import pytest
import torch
from cuda_graphs import Graph, is_recording, simulate
from micro import log_of

from tinystories_lab import device
from tinystories_lab.checkpoint import load_checkpoint
from tinystories_lab.generate import generate_batch, stream_batch
from tinystories_lab.model import GPTConfig, GPTMini, new_model

GROWING = {"optimizer": "muon", "seq_len_start": 4, "total_steps": 18, "log_every": 1, "eval_every": 6, "save_every": 5}


@pytest.fixture(autouse=True)
def graphs(monkeypatch):
    simulate(monkeypatch)
    return monkeypatch


def without_graphs(monkeypatch):
    monkeypatch.setattr(device, "_CALLS_BEFORE_CAPTURE", 10**9)


def weights(run_dir):
    return load_checkpoint(run_dir / "last.pt")["model"]


def equal(one, other):
    return log_of(one) == log_of(other) and all(
        torch.equal(weights(one)[name], value) for name, value in weights(other).items()
    )


@pytest.mark.parametrize(
    "changes",
    [{}, {"grad_accum_steps": 2}, {"optimizer": "adamw"}, {"optimizer": "normuon"}, {"seq_len_start": None}],
    ids=str,
)
def test_a_run_whose_steps_are_graphs_equals_one_without_graphs(run, tmp_path, graphs, changes):
    list(run(tmp_path / "graphs", **GROWING | changes))
    lengths = 3 if GROWING.get("seq_len_start") and changes.get("seq_len_start", 4) else 1
    assert Graph.replays == 18 - 3 * lengths, "three steps of each length come before its capture"
    without_graphs(graphs)
    list(run(tmp_path / "plain", **GROWING | changes))
    assert equal(tmp_path / "graphs", tmp_path / "plain")


@pytest.mark.parametrize("stop", [2, 5, 9, 16])
def test_a_run_that_resumes_between_replays_equals_an_uninterrupted_one(run, tmp_path, stop):
    list(run(tmp_path / "whole", **GROWING))
    for row in run(tmp_path / "resumed", **GROWING):
        if row["step"] == stop:
            break
    list(run(tmp_path / "resumed", **GROWING))
    assert equal(tmp_path / "whole", tmp_path / "resumed")


@pytest.mark.parametrize("first_on_gpu", [True, False])
def test_a_run_may_go_on_with_or_without_graphs(run, tmp_path, monkeypatch, first_on_gpu):
    """Optimizers that graphs use keep learning rates and steps in tensors of the device, others do not."""
    for on_gpu in (first_on_gpu, not first_on_gpu):
        with monkeypatch.context() as patch:
            if not on_gpu:
                for module in ("device", "optim"):
                    patch.setattr(f"tinystories_lab.{module}.has_cuda_graphs", lambda _: False)
            for row in run(tmp_path / "both", **GROWING):
                if row["step"] == 8 and on_gpu == first_on_gpu:
                    break
    assert Graph.replays
    list(run(tmp_path / "one", **GROWING))
    for name, value in weights(tmp_path / "one").items():
        torch.testing.assert_close(weights(tmp_path / "both")[name], value, atol=1e-5, rtol=0)


forward = GPTMini.forward


def waits(model, ids, *rest):
    """A forward pass that waits for the GPU, which no graph can do."""
    ids.max().item()
    return forward(model, ids, *rest)


def runs_out(model, ids, *rest):
    """A forward pass without the memory for a second copy of its results, which a graph needs."""
    if is_recording():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
    return forward(model, ids, *rest)


@pytest.mark.parametrize(("broken", "reason"), [(waits, "not permitted"), (runs_out, "out of memory")])
def test_a_step_that_cannot_be_a_graph_trains_without_and_says_so(run, tmp_path, graphs, broken, reason):
    settings = GROWING | {"seq_len_start": None}
    list(run(tmp_path / "plain", **settings))
    Graph.replays = 0
    graphs.setattr(GPTMini, "forward", broken)
    with pytest.warns(UserWarning, match=f"no CUDA graph could be made .*{reason}.*continuing"):
        list(run(tmp_path / "warned", **settings))
    assert Graph.replays == 0 and equal(tmp_path / "plain", tmp_path / "warned")


def test_memory_that_runs_out_after_a_failed_capture_splits_the_batch(run, tmp_path, graphs):
    """The capture has not changed any weight, although it ended inside the optimizer."""
    failed, optimizer_step = [], torch.amp.GradScaler.step

    def step(self, *args):
        if is_recording():
            failed.append(True)
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return optimizer_step(self, *args)

    def full(model, ids, *rest):
        if failed and len(ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(model, ids, *rest)

    graphs.setattr(torch.amp.GradScaler, "step", step)
    graphs.setattr(GPTMini, "forward", full)
    with pytest.warns(UserWarning, match="continuing with 2 micro-batches per step"):
        rows = list(run(tmp_path, **GROWING | {"seq_len_start": None}))
    assert rows[-1]["step"] == 18


def test_a_capture_gets_inputs_of_the_same_strides_as_the_calls_before_it(run, tmp_path, graphs):
    """With other strides, a compiled model would be compiled again, which a capture does not permit."""
    layouts = {}

    def watched(model, ids, targets=None, cache=None):
        if targets is not None and torch.is_grad_enabled():
            layouts.setdefault(ids.shape, set()).add((is_recording(), (ids.stride(), targets.stride())))
        return forward(model, ids, targets, cache)

    graphs.setattr(GPTMini, "forward", watched)
    list(run(tmp_path, **GROWING))
    assert len(layouts) == 3
    for shape, found in layouts.items():
        assert {recording for recording, _ in found} == {True, False}
        assert len({strides for _, strides in found}) == 1, shape


def test_float16_makes_no_graph_because_its_scaler_waits_for_the_gpu(run, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = list(run(tmp_path, torch.float16, **GROWING))
    assert rows[-1]["step"] == 18 and Graph.replays == 0


# --- generation


@pytest.mark.parametrize("filters", [(0.0,), (0.8, 50), (1.2, 20, 0.9), (1.0, None)])
def test_stories_from_graphs_equal_those_without(tokenizer, graphs, filters):
    model = new_model(GPTConfig(300, 2, 2, 32, 32)).eval()  # so the window moves, and new graphs are made
    prompts = ["Once", "The cat sat on the mat and", "A", "B"]
    settings = {"seeds": [1, 2, 3, 4]}
    stories = generate_batch(model, tokenizer, prompts, 70, *filters, **settings)
    assert Graph.replays > 20
    without_graphs(graphs)
    assert generate_batch(model, tokenizer, prompts, 70, *filters, **settings) == stories


def test_a_stream_from_a_graph_may_be_left_and_another_begun(graphs):
    model = new_model(GPTConfig(300, 2, 2, 32, 64)).eval()
    whole = [ids for (ids,) in stream_batch(model, [[1, 2, 3]], 20, seeds=[5])]
    one, other = (stream_batch(model, [[1, 2, 3]], 20, seeds=[5]) for _ in range(2))
    assert [next(one)[0] for _ in range(9)] == whole[:9]
    assert [ids for (ids,) in other] == whole
    assert [ids for (ids,) in one] == whole[9:]
