"""Where to compute and in which precision, each with the sentence that says why."""

import torch

_WORTH_COMPILING = 3e14  # floating point operations: an hour on two cores, seconds on a GPU


def choose_device() -> tuple[torch.device, str]:
    """The device to train on, and the sentence that says why."""
    if torch.cuda.is_available():
        return torch.device("cuda"), f"training on the GPU {torch.cuda.get_device_name()}"
    if torch.backends.mps.is_available():
        return torch.device("mps"), "training on Apple's GPU (MPS)"
    return torch.device("cpu"), f"training on the CPU with {torch.get_num_threads()} threads: no GPU was found"


def choose_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype to compute in on `device`, and the sentence that says why. Weights are kept in float32 anyway."""
    if device.type == "cuda":
        # Not torch.cuda.is_bf16_supported(): it counts emulation, and is True on a T4.
        major, minor = torch.cuda.get_device_capability(device)
        if (major, minor) >= (8, 0):
            return torch.bfloat16, f"bfloat16: compute capability {major}.{minor} has it in hardware"
        return (
            torch.float16,
            f"float16 with loss scaling: compute capability {major}.{minor} is below 8.0, which bfloat16 needs",
        )
    if device.type == "mps":
        if _computes_in_bfloat16(device):
            return torch.bfloat16, "bfloat16: as the chapter trains on Apple's GPU"
        return torch.float32, "float32: this macOS and PyTorch do not compute bfloat16 on Apple's GPU"
    # Measured on two cores each: with such units 1.3 to 1.5 times the tokens a second of float32, without them a third.
    if getattr(torch.cpu, "_is_avx512_bf16_supported", bool)() or getattr(torch.cpu, "_is_amx_tile_supported", bool)():
        return torch.bfloat16, "bfloat16: this CPU has instructions for it, which were measured to be faster"
    return torch.float32, "float32: a CPU without instructions for bfloat16 was measured to be slower in it"


def choose_compile(device: torch.device, flops: float) -> tuple[bool, str]:
    """Whether to compile the model for a run of so many floating point operations, and why."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return False, "PyTorch's compiler gains little below compute capability 8.0"
    if device.type not in ("cuda", "cpu"):
        return False, f"not tried on {device.type}"
    if flops < _WORTH_COMPILING:
        return False, "a short run would not earn it back"
    return True, "a long run earns it back"


def _computes_in_bfloat16(device: torch.device) -> bool:
    """Whether a small product in bfloat16 works on `device` and is right; old systems refuse the type."""
    try:
        ones = torch.ones(2, 2, dtype=torch.bfloat16, device=device)
        return bool((ones @ ones == 2).all())
    except (RuntimeError, TypeError, AssertionError):
        return False
