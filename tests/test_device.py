"""Where to compute and in which precision; stand-ins for the hardware that is not here."""

import pytest
import torch

from tinystories_lab.device import choose_compile, choose_device, choose_dtype
from tinystories_lab.model import GPTMini
from tinystories_lab.presets import PRESETS


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


@pytest.mark.parametrize(("avx512", "amx", "dtype"), [(0, 0, "float32"), (1, 0, "bfloat16"), (0, 1, "bfloat16")])
def test_a_cpu_computes_in_bfloat16_only_where_it_has_instructions_for_it(monkeypatch, avx512, amx, dtype):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bool(avx512), raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: bool(amx), raising=False)
    chosen, why = choose_dtype(torch.device("cpu"))
    assert chosen is getattr(torch, dtype) and why.startswith(dtype) and "measured" in why


@pytest.mark.parametrize(
    ("kind", "capability", "flops", "pays", "why"),
    [
        ("cuda", (7, 5), 1e18, False, "below compute capability 8.0"),
        ("cuda", (8, 0), 1e16, True, "a long run earns it back"),
        ("cuda", (9, 0), 1e13, False, "a short run would not"),
        ("cpu", None, 1e16, True, "a long run"),
        ("cpu", None, 1e13, False, "a short run"),
        ("mps", None, 1e18, False, "not tried on mps"),
    ],
)
def test_the_model_is_compiled_where_a_run_is_long_and_never_below_capability_8(
    monkeypatch, kind, capability, flops, pays, why
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    chosen, sentence = choose_compile(torch.device(kind), flops)
    assert chosen is pays and why in sentence


def test_the_chapters_run_is_compiled_and_the_tiny_one_is_not():
    for name, pays in (("book", True), ("tiny", False)):
        model, config = PRESETS[name].model, PRESETS[name].train
        flops = 6 * GPTMini(model).count_parameters() * config.total_steps * config.tokens_per_step
        assert choose_compile(torch.device("cpu"), flops)[0] is pays


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
