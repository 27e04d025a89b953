"""Where to compute and in which precision; stand-ins for the hardware that is not here."""

import pytest
import torch

from tinystories_lab.device import choose_device, choose_dtype


def cuda(monkeypatch, capability):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *args, **kwargs: True)  # emulation counts, even on a T4
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Stand-in GPU")


@pytest.mark.parametrize(
    ("capability", "dtype", "why"),
    [
        ((7, 5), torch.float16, "float16 with loss scaling: compute capability 7.5 is below 8.0"),  # T4
        ((7, 0), torch.float16, "7.0"),  # V100
        ((8, 0), torch.bfloat16, "bfloat16: compute capability 8.0 has it in hardware"),  # A100
        ((8, 9), torch.bfloat16, "8.9"),  # L4
        ((10, 0), torch.bfloat16, "10.0"),  # B200
    ],
)
def test_bfloat16_is_chosen_by_compute_capability(monkeypatch, capability, dtype, why):
    cuda(monkeypatch, capability)
    chosen, sentence = choose_dtype(torch.device("cuda"))
    assert chosen is dtype and why in sentence


def test_apples_gpu_computes_in_bfloat16_where_that_works(monkeypatch):
    def on_a_stand_in(*shape, dtype, device):
        assert device == torch.device("mps")
        return torch.full(shape, 1.0, dtype=dtype)

    def refused(*shape, dtype, device):
        raise TypeError("BFloat16 is not supported on MPS")

    monkeypatch.setattr(torch, "ones", on_a_stand_in)
    assert choose_dtype(torch.device("mps")) == (torch.bfloat16, "bfloat16: as the chapter trains on Apple's GPU")
    monkeypatch.setattr(torch, "ones", refused)
    dtype, why = choose_dtype(torch.device("mps"))
    assert dtype is torch.float32 and "do not compute bfloat16" in why


def test_the_cpu_computes_in_float32():
    dtype, why = choose_dtype(torch.device("cpu"))
    assert dtype is torch.float32 and "measured" in why


def test_a_gpu_is_taken_before_apples_before_the_cpu(monkeypatch):
    mps = torch.backends.mps
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(mps, "is_available", lambda: False)
    device, why = choose_device()
    assert device.type == "cpu" and "no GPU was found" in why
    monkeypatch.setattr(mps, "is_available", lambda: True)
    assert choose_device()[0].type == "mps"
    cuda(monkeypatch, (8, 0))
    assert choose_device() == (torch.device("cuda"), "training on the GPU Stand-in GPU")
