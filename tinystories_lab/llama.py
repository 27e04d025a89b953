"""GPTMini in the Llama layout of Hugging Face, both ways: its shape as config.json, its weights under their names there."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tinystories_lab.model import INIT_STD, GPTConfig, GPTMini

_SHAPE_NAMES = {  # ours and theirs
    "vocab_size": "vocab_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "d_model": "hidden_size",
    "max_len": "max_position_embeddings",
    "hidden": "intermediate_size",
    "norm_eps": "rms_norm_eps",
    "rope_base": "rope_theta",
    "tied": "tie_word_embeddings",
}
# Ours and theirs, in each layer. Their query, key and value projections stand in ours one below the other; the rotary
# pairs are (i, i + D/2) in both, so no row changes its place.
_LAYER_NAMES = {
    "attention_norm": ["input_layernorm"],
    "attention.qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "attention.out": ["self_attn.o_proj"],
    "feed_forward_norm": ["post_attention_layernorm"],
    "feed_forward.gate": ["mlp.gate_proj"],
    "feed_forward.up": ["mlp.up_proj"],
    "feed_forward.down": ["mlp.down_proj"],
}
_LLAMA_DEFAULTS = {  # what counts where a config.json is silent
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
}


def _weight_names(config: GPTConfig) -> dict[str, list[str]]:
    """Each weight of a GPTMini, and those of a Llama that it holds."""
    names = {"tok_emb.weight": ["model.embed_tokens.weight"], "norm.weight": ["model.norm.weight"]}
    names |= {} if config.tied else {"head.weight": ["lm_head.weight"]}
    for layer in range(config.n_layer):
        for ours, theirs in _LAYER_NAMES.items():
            names[f"blocks.{layer}.{ours}.weight"] = [f"model.layers.{layer}.{name}.weight" for name in theirs]
    return names


def _only_choices(config: GPTConfig) -> dict[str, Any]:
    """What Llamas differ in besides their shape, as GPTMini of that shape has it: there it is no choice."""
    return {
        "hidden_act": "silu",
        "num_key_value_heads": config.n_head,
        "head_dim": config.d_model // config.n_head,
        "attention_bias": False,
        "mlp_bias": False,
    }


def to_llama(config: GPTConfig, weights: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A shape and a GPTMini's state as config.json of a `LlamaForCausalLM`, special tokens left out, and its tensors."""
    shape = asdict(replace(config, hidden=config.d_hidden))
    settings = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{theirs: shape[ours] for ours, theirs in _SHAPE_NAMES.items()},
        **_only_choices(config),
        "initializer_range": INIT_STD,
        "torch_dtype": "float32",
    }
    tensors = {}
    for ours, theirs in _weight_names(config).items():
        tensors |= zip(theirs, weights[ours].chunk(len(theirs)), strict=True)
    return settings, {name: tensor.contiguous() for name, tensor in tensors.items()}


def read_llama(folder: str | Path) -> dict[str, Any]:
    """The shape and weights of a small Llama from its folder, as a checkpoint has them: `model_config` and `model`, in float32.

    Raises FileNotFoundError without config.json or model.safetensors, and ValueError for what is damaged or what GPTMini
    cannot hold, all of it by name: another activation, grouped heads, biases, positions that are scaled.
    """
    folder = Path(folder)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"there is no {folder / name}: a model's folder is one that `export` wrote, or a Llama kept as safetensors"
            )
    try:
        settings, tensors = _read_settings(folder / "config.json"), load_file(folder / "model.safetensors")
        is_llama = settings.get("model_type") == "llama"  # others call their shape by other names
        config = GPTConfig(**{ours: settings[theirs] for ours, theirs in _SHAPE_NAMES.items()}) if is_llama else None
    except (ValueError, TypeError, KeyError, AttributeError, SafetensorError) as error:
        raise ValueError(f"{folder} holds no Llama that can be read ({error!r}): fetch or export it again") from error
    _refuse_others(settings, config, tensors, folder)
    usual = replace(config, hidden=None)
    config = usual if usual.d_hidden == config.d_hidden else config
    names = _weight_names(config)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in GPTMini(config).state_dict().items()}
    try:
        weights = {ours: torch.cat([tensors[name] for name in theirs]).float() for ours, theirs in names.items()}
    except KeyError as error:
        raise ValueError(f"{folder / 'model.safetensors'} lacks {error}, which config.json says is there") from error
    if odd := [f"{names[name]} {tuple(value.shape)}" for name, value in weights.items() if value.shape != shapes[name]]:
        raise ValueError(f"{folder / 'model.safetensors'} has other shapes than config.json says: {', '.join(odd)}")
    if not config.tied and weights["head.weight"].equal(weights["tok_emb.weight"]):  # one table, kept twice
        config = replace(config, tied=True)
        del weights["head.weight"]
    return {"model_config": asdict(config), "model": weights}


def _read_settings(path: Path) -> dict[str, Any]:
    """A config.json with what counts where it is silent, and with the settings of the rotations in one place."""
    settings = {
        name: value for name, value in json.loads(path.read_text(encoding="utf-8")).items() if value is not None
    }
    found = _LLAMA_DEFAULTS | settings
    for newer_or_older in ("rope_parameters", "rope_scaling"):
        rope = settings.get(newer_or_older, {})
        found |= {"rope_type" if name == "type" else name: value for name, value in rope.items()}
    return found


def _refuse_others(
    settings: dict[str, Any], config: GPTConfig | None, tensors: dict[str, Tensor], folder: Path
) -> None:
    """Raise ValueError where a model is not a Llama, or more than GPTMini can hold, naming each such thing, found and needed."""
    needed = _only_choices(config) | {"rope_type": "default", "biases": []} if config else {}
    found = needed | settings | {"biases": sorted(name for name in tensors if name.endswith(".bias"))}
    needed["model_type"] = "llama"
    wrong = [f"{name} is {found.get(name)}, not {value}" for name, value in needed.items() if found.get(name) != value]
    if wrong:
        raise ValueError(f"GPTMini cannot hold the model in {folder}: {'; '.join(wrong)}")
