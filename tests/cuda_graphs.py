"""CUDA graphs on a CPU: record the operations of a function, and run them again on the same memory without its Python.

As with a real graph, nothing is computed while a function is recorded, its results lie in fixed memory, and an operation
that would wait for the GPU is an error.
"""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils._pytree import tree_flatten

from tinystories_lab import device, generate, optim

_WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero")


def _tensors(*values):
    return [value for value in tree_flatten(values)[0] if isinstance(value, torch.Tensor)]


class _Recorder(TorchDispatchMode):
    """Runs each operation and notes it. `undo` restores what existed before and was changed."""

    def __init__(self):
        super().__init__()
        self.operations, self.made, self.before = [], set(), {}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs, schema = kwargs or {}, operation._schema
        if schema.name in _WAITS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {schema.name}")
        given = [kwargs.get(a.name, args[i] if i < len(args) else None) for i, a in enumerate(schema.arguments)]
        written = [
            value for value, a in zip(given, schema.arguments, strict=True) if a.alias_info and a.alias_info.is_write
        ]
        for tensor in _tensors(written):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self.made | self.before.keys():
                self.before[storage.data_ptr()] = storage, storage.clone()
        results = operation(*args, **kwargs)
        inputs = {tensor.untyped_storage().data_ptr() for tensor in _tensors(args, kwargs)}
        new = [result.untyped_storage().data_ptr() not in inputs for result in _tensors(results)]
        self.made |= {
            r.untyped_storage().data_ptr() for r, is_new in zip(_tensors(results), new, strict=True) if is_new
        }
        if written or any(new):  # views need no second run, because they show the same memory
            self.operations.append((operation, args, kwargs, results, new))
        return results

    def undo(self):
        for storage, content in self.before.values():
            storage.copy_(content)


class Graph:
    """Stands in for torch.cuda.CUDAGraph."""

    replays = 0

    def replay(self):
        Graph.replays += 1
        with torch.no_grad():
            for operation, args, kwargs, results, new in self.recorder.operations:
                again = _tensors(operation(*args, **kwargs))
                for result, value, is_new in zip(_tensors(results), again, new, strict=True):
                    if is_new:
                        result.copy_(value)


@contextmanager
def _capture(graph, stream=None, capture_error_mode="global"):
    graph.recorder = _Recorder()
    try:
        with graph.recorder:
            yield
    finally:
        graph.recorder.undo()


def is_recording():
    return _get_current_dispatch_mode() is not None


def simulate(monkeypatch):
    """Let `GraphedCall` make such graphs on the CPU. Returns the class, which counts replays."""
    stream = SimpleNamespace(wait_stream=lambda other: None)
    fakes = {"graph": _capture, "CUDAGraph": Graph, "Stream": lambda device: stream, "current_stream": lambda: stream}
    for name, fake in (fakes | {"stream": lambda stream: nullcontext()}).items():
        monkeypatch.setattr(torch.cuda, name, fake)
    for module in (device, generate, optim):
        monkeypatch.setattr(module, "has_cuda_graphs", lambda device: True)
    Graph.replays = 0
    return Graph
