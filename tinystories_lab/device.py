"""Choose the device and the precision, and say why; compile the model; train one model in several processes."""

import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

_TORCHRUN_VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_CALLS_BEFORE_CAPTURE = 3
_MIN_FLOPS_TO_COMPILE = 3e14  # floating-point operations of a run: an hour on two CPU cores, seconds on a GPU


def choose_device() -> tuple[torch.device, str]:
    """Return the device to train on and a sentence that says why."""
    if torch.cuda.is_available():
        return torch.device("cuda"), f"training on the GPU {torch.cuda.get_device_name()}"
    if torch.backends.mps.is_available():
        return torch.device("mps"), "training on Apple's GPU (MPS)"
    return torch.device("cpu"), f"training on the CPU (threads: {torch.get_num_threads()}), because no GPU was found"


def choose_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    """Return the dtype to compute in on `device` and a sentence that says why. Weights stay in float32."""
    if device.type == "cuda":
        # torch.cuda.is_bf16_supported() counts emulation, so it is True even on a T4, where bfloat16 is slow.
        major, minor = torch.cuda.get_device_capability(device)
        found = f"compute capability {major}.{minor}"
        if (major, minor) >= (8, 0):
            return torch.bfloat16, f"bfloat16: {found} supports it in hardware"
        return torch.float16, f"float16 with loss scaling: {found} is below 8.0, which bfloat16 needs"
    if device.type == "mps":
        with suppress(RuntimeError, TypeError, AssertionError):  # older systems refuse bfloat16 or compute wrongly
            ones = torch.ones(2, 2, dtype=torch.bfloat16, device=device)
            if (ones @ ones == 2).all():
                return torch.bfloat16, "bfloat16: the chapter trains in it on Apple's GPU"
        return torch.float32, "float32: this version of macOS or PyTorch does not support bfloat16 on Apple's GPU"
    # Measured on two cores: with these instructions 1.3 to 1.5 times the speed of float32, without them a third of it.
    if getattr(torch.cpu, "_is_avx512_bf16_supported", bool)() or getattr(torch.cpu, "_is_amx_tile_supported", bool)():
        return torch.bfloat16, "bfloat16: this CPU has instructions for it, which are faster than float32"
    return torch.float32, "float32: this CPU has no instructions for bfloat16, which would be slower"


def pays_to_compile(device: torch.device, flops: float) -> bool:
    """Return whether a run of `flops` floating-point operations is long enough to repay the compile time."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return False  # PyTorch's compiler gains little on such a GPU
    return device.type in ("cuda", "cpu") and flops >= _MIN_FLOPS_TO_COMPILE  # other devices were not tried


def compile_model(
    model: nn.Module, device: torch.device, flops: float, warm_up: Callable[[Callable], Any]
) -> tuple[Callable[..., Any], float]:
    """Compile and warm up the model if the run is long enough to repay the compile time.

    Returns the compiled model and the seconds that this took. If compiling does not pay or fails, it returns the model
    itself. `warm_up` calls the compiled model once, with a batch in the shape of all later batches.
    """
    if not pays_to_compile(device, flops):
        return model, 0.0
    print("compiling the model: this takes about a minute, and saves more than that in a run of this length ...")
    started, compiled = time.perf_counter(), torch.compile(model, dynamic=False)
    try:
        warm_up(compiled)
        print(f"compiled in {time.perf_counter() - started:.0f} s, which tokens_per_second does not count")
    except torch.OutOfMemoryError:
        pass  # the first step will run out of memory too, and split the batch
    except Exception as error:  # a missing compiler, an unknown GPU and a bug in PyTorch raise different errors
        compiled = model
        warnings.warn(
            f"the model could not be compiled ({_first_line(error)}): training continues, but more slowly", stacklevel=3
        )
    return compiled, time.perf_counter() - started


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def has_cuda_graphs(device: torch.device) -> bool:
    """Return whether `GraphedCall` makes CUDA graphs on `device`: on a GPU from compute capability 8.0 on."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


class GraphedCall:
    """Calls a function of tensors, which on a GPU becomes a CUDA graph: one launch instead of one per kernel.

    The first three calls run the function. Then it is captured, and each call replays its kernels without Python. So
    every call must do the same to the same memory, and must not wait for the GPU. Only inputs and results are copied.
    Inputs must be contiguous, as their copies are: a compiled model would be compiled again for other strides, which
    cannot happen in a capture. If the capture fails, and where there are no such graphs (see `has_cuda_graphs`), all
    calls run the function.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], device: torch.device) -> None:
        self._function, self._graph, self._calls = function, None, 0
        self._stream = torch.cuda.Stream(device) if has_cuda_graphs(device) else None

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        self._calls += 1
        if self._stream is not None and self._graph is None and self._calls > _CALLS_BEFORE_CAPTURE:
            self._capture(inputs)
        if self._graph is not None:
            torch._foreach_copy_(self._inputs, inputs)
            self._graph.replay()
            return tuple(result.clone() for result in self._results)
        if self._stream is None:
            return self._function(*inputs)
        self._stream.wait_stream(torch.cuda.current_stream())  # on the stream of the capture, as PyTorch advises
        with torch.cuda.stream(self._stream):
            results = self._function(*inputs)
        torch.cuda.current_stream().wait_stream(self._stream)
        return results

    def _capture(self, inputs: tuple[Tensor, ...]) -> None:
        self._inputs, graph = [tensor.clone() for tensor in inputs], torch.cuda.CUDAGraph()
        try:  # a checkpoint may be written by another thread meanwhile, hence "thread_local"
            with (
                torch.cuda.stream(self._stream),  # restores the current stream even if the capture cannot end
                torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"),
            ):
                self._results = self._function(*self._inputs)
            self._graph = graph
        except Exception as error:  # out of memory, or an operation that waits for the GPU
            self._stream = None
            for generator in torch.cuda.default_generators:  # a failed capture leaves them unusable
                generator.graphsafe_set_state(generator.clone_state())
            warnings.warn(
                f"no CUDA graph could be made ({_first_line(error)}): continuing, but more slowly", stacklevel=3
            )


def rank() -> int:
    """Return the number of this process, counted from 0. Only rank 0 writes files."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def init_distributed() -> Iterator[None]:
    """Join the processes that torchrun started, each with a GPU (NCCL) or on the CPU (gloo). Otherwise do nothing."""
    if missing := [name for name in _TORCHRUN_VARIABLES if name not in os.environ]:
        if len(missing) < len(_TORCHRUN_VARIABLES):  # another program has left them
            found = ", ".join(name for name in _TORCHRUN_VARIABLES if name not in missing)
            note = "not started by torchrun, so one process trains"
            warnings.warn(f"{found} is set without {', '.join(missing)}: {note}", stacklevel=3)
        yield
        return
    if os.environ["WORLD_SIZE"] == "1":
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def local_batch(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return this rank's rows of a global batch: x and y, each (B / world_size, T)."""
    x, y = (part.chunk(world_size())[rank()] for part in batch)
    return x, y


def wrap_ddp(model: nn.Module) -> nn.Module:
    """Return the model with a backward pass that averages gradients over all ranks. One process needs no wrapper."""
    return DistributedDataParallel(model) if world_size() > 1 else model


def all_reduce_mean(value: Tensor) -> Tensor:
    """Return the mean over all ranks, computed in place. The CPU does not wait for the result."""
    if world_size() > 1:
        dist.all_reduce(value)
        value /= world_size()
    return value


def any_rank(value: bool) -> bool:
    """Return whether `value` is true on any rank. If there are several, the CPU waits for the result."""
    device = "cuda" if world_size() > 1 and dist.get_backend() == "nccl" else "cpu"
    return bool(all_reduce_mean(torch.tensor(float(value), device=device)) > 0)


def broadcast(value: Any) -> Any:
    """Return rank 0's value on every rank. It may be any object, but its tensors must be on the CPU."""
    box = [value]
    if world_size() > 1:
        dist.broadcast_object_list(box)
    return box[0]
