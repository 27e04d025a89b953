"""Hugging Face, both ways: export a finished run as a Llama, and load a small Llama as a GPTMini."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from tinystories_lab.analysis.evaluation import perplexity, run_results
from tinystories_lab.checkpoint import MODEL_KEYS, load_checkpoint, model_from_checkpoint
from tinystories_lab.data.sources import HUB_NAME
from tinystories_lab.files import atomic_write, read_log, read_rows
from tinystories_lab.generate import NEW_TOKENS, TEMPERATURE, TOP_K
from tinystories_lab.model import INIT_STD, GPTConfig, GPTMini
from tinystories_lab.run import load_config
from tinystories_lab.tokenizer import END_OF_TEXT, PAD, eos_id, load_tokenizer, tokenizer_sha256

_CONFIG_NAMES = {  # of GPTConfig, and in a Llama's config.json
    "vocab_size": "vocab_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "d_model": "hidden_size",
    "max_len": "max_position_embeddings",
    "hidden": "intermediate_size",
    "norm_eps": "rms_norm_eps",
    "rope_base": "rope_theta",
    "tie_embeddings": "tie_word_embeddings",
}
_LLAMA_DEFAULTS = {"rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "tie_word_embeddings": False}
# The weights of a layer of GPTMini, and of a Llama. GPTMini stacks the query, key and value projections in one matrix. Both
# rotate the pairs (i, i + D/2), so no row moves.
_LAYER_NAMES = {
    "attention_norm": ["input_layernorm"],
    "attention.qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "attention.out": ["self_attn.o_proj"],
    "feed_forward_norm": ["post_attention_layernorm"],
    "feed_forward.gate": ["mlp.gate_proj"],
    "feed_forward.up": ["mlp.up_proj"],
    "feed_forward.down": ["mlp.down_proj"],
}
_CARD_TEMPLATE = Path(__file__).with_name("templates") / "model_card.md"
_CARD_METADATA = {  # for the data sets whose licence is known
    "tinystories": {"license": "cdla-sharing-1.0", "language": "en", "datasets": [HUB_NAME]},
    "toyland": {"license": "mit", "language": "en"},
}


def load_llama(folder: str | Path, device: str | torch.device = "cpu") -> GPTMini:
    """Return the Llama in `folder` as a GPTMini on `device`, in float32 and evaluation mode.

    The folder was written by `export_hugging_face`, or it contains a small Llama saved as model.safetensors. Raises
    FileNotFoundError if a file is missing. Raises ValueError if a file is damaged, or if the model has something that GPTMini
    does not support, such as another activation, grouped-query attention, biases or scaled positions; the message names it.
    """
    folder = Path(folder)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"there is no {folder / name}: choose a folder that `export` wrote, or a Llama saved as model.safetensors"
            )
    try:
        settings, tensors = _read_settings(folder / "config.json"), load_file(folder / "model.safetensors")
        is_llama = settings.get("model_type") == "llama"  # other models use other names for their shape
        config = GPTConfig(**{ours: settings[theirs] for ours, theirs in _CONFIG_NAMES.items()}) if is_llama else None
    except (ValueError, TypeError, KeyError, AttributeError, SafetensorError) as error:
        raise ValueError(f"{folder} has no readable Llama ({error!r}): download or export it again") from error
    if unsupported := _unsupported(settings, config, tensors):
        raise ValueError(
            f"GPTMini does not support the model in {folder}: {'; '.join(unsupported)}; choose another model"
        )
    default = replace(config, hidden=None)
    config = default if default.d_hidden == config.d_hidden else config
    return model_from_checkpoint(_to_checkpoint(config, tensors, folder / "model.safetensors"), device)


def _read_settings(path: Path) -> dict[str, Any]:
    """Return the settings in a Llama's config.json, missing ones with their defaults, those of the positions not nested."""
    values = json.loads(path.read_text(encoding="utf-8"))
    settings = {name: value for name, value in values.items() if value is not None}
    rope = settings.get("rope_parameters", {}) | settings.get("rope_scaling", {})  # the new name, the old name
    return _LLAMA_DEFAULTS | settings | {"rope_type" if name == "type" else name: rope[name] for name in rope}


def _fixed_settings(config: GPTConfig) -> dict[str, Any]:
    """Return the settings in which Llamas differ and GPTMini has no choice."""
    return {
        "hidden_act": "silu",
        "num_key_value_heads": config.n_head,
        "head_dim": config.d_model // config.n_head,
        "attention_bias": False,
        "mlp_bias": False,
    }


def _unsupported(settings: dict[str, Any], config: GPTConfig | None, tensors: dict[str, Tensor]) -> list[str]:
    """Return what GPTMini does not support about a model, each with the value found and the value needed."""
    if config is None:
        return [f"model_type is {settings.get('model_type')}, not llama"]
    needed = _fixed_settings(config) | {"rope_type": "default", "biases": []}
    found = needed | settings | {"biases": sorted(name for name in tensors if name.endswith(".bias"))}
    return [f"{name} is {found[name]}, not {value}" for name, value in needed.items() if found[name] != value]


def _weight_names(config: GPTConfig) -> dict[str, list[str]]:
    """Return the name of each weight of a GPTMini, with the names of a Llama's weights that it contains."""
    names = {"tok_emb.weight": ["model.embed_tokens.weight"], "norm.weight": ["model.norm.weight"]}
    if not config.tie_embeddings:
        names["head.weight"] = ["lm_head.weight"]
    for layer in range(config.n_layer):
        for ours, theirs in _LAYER_NAMES.items():
            names[f"blocks.{layer}.{ours}.weight"] = [f"model.layers.{layer}.{name}.weight" for name in theirs]
    return names


def _to_checkpoint(config: GPTConfig, tensors: dict[str, Tensor], path: Path) -> dict[str, Any]:
    """Return a Llama's tensors as `model_from_checkpoint` takes them. Raises ValueError if one is missing or has another shape."""
    names = _weight_names(config)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in GPTMini(config).state_dict().items()}
    try:
        weights = {ours: torch.cat([tensors[name] for name in theirs]).float() for ours, theirs in names.items()}
    except KeyError as error:
        raise ValueError(f"{path} lacks {error}, which config.json requires: download or export it again") from error
    if wrong := [
        f"{names[name]} {tuple(value.shape)}" for name, value in weights.items() if value.shape != shapes[name]
    ]:
        raise ValueError(f"{path} has other shapes than config.json: {', '.join(wrong)}; download or export it again")
    if not config.tie_embeddings and weights["head.weight"].equal(weights["tok_emb.weight"]):  # one matrix, saved twice
        config = replace(config, tie_embeddings=True)
        del weights["head.weight"]
    return {"model_config": asdict(config), "model": weights}


def export_hugging_face(run_dir: str | Path, out_dir: str | Path) -> Path:
    """Write a finished run as a folder that transformers loads as `LlamaForCausalLM`, and return the folder.

    Files: config.json, generation_config.json, model.safetensors (float32, a shared embedding once), tokenizer.json,
    tokenizer_config.json, and README.md, a model card with the run's results. Other files in `out_dir` stay. Raises
    FileNotFoundError if the run is not finished, and ValueError if its tokenizer is not the one it was trained with.
    """
    run_dir, out_dir = Path(run_dir), Path(out_dir)
    checkpoint = load_checkpoint(run_dir / "final.pt", MODEL_KEYS)
    tokenizer = load_tokenizer(run_dir / "tokenizer.json")
    if tokenizer_sha256(tokenizer) != checkpoint["tokenizer_sha256"]:
        raise ValueError(
            f"{run_dir / 'tokenizer.json'} is not the tokenizer that {run_dir / 'final.pt'} was trained with: put that one there"
        )
    config = GPTConfig.from_dict(checkpoint["model_config"])
    tensors = {}
    for ours, theirs in _weight_names(config).items():
        tensors |= zip(theirs, checkpoint["model"][ours].chunk(len(theirs)), strict=True)
    # Training stories follow an end-of-text token, so generation without a prompt starts with it.
    special = {
        "bos_token_id": eos_id(tokenizer),
        "eos_token_id": eos_id(tokenizer),
        "pad_token_id": tokenizer.token_to_id(PAD),
    }
    sampling = {"do_sample": True, "temperature": TEMPERATURE, "top_k": TOP_K, "max_new_tokens": NEW_TOKENS}
    files = {
        "config.json": _llama_settings(config) | special,
        "generation_config.json": special | sampling,
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": END_OF_TEXT,
            "eos_token": END_OF_TEXT,
            "pad_token": PAD,
            "add_bos_token": False,
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": config.max_len,
        },
    }
    contents = {name: json.dumps(value, indent=2).encode() for name, value in files.items()}
    contents["tokenizer.json"] = tokenizer.to_str(pretty=True).encode()
    contents["model.safetensors"] = save({name: part.contiguous() for name, part in tensors.items()}, {"format": "pt"})
    contents["README.md"] = _model_card(run_dir, config).encode()
    for name, content in contents.items():
        with atomic_write(out_dir / name) as file:
            file.write(content)
    return out_dir


def _llama_settings(config: GPTConfig) -> dict[str, Any]:
    """Return the config.json of a Llama with the shape of a GPTMini, without special tokens."""
    shape = asdict(replace(config, hidden=config.d_hidden))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{theirs: shape[ours] for ours, theirs in _CONFIG_NAMES.items()},
        **_fixed_settings(config),
        "initializer_range": INIT_STD,
        "torch_dtype": "float32",
    }


def _model_card(run_dir: Path, model: GPTConfig) -> str:
    """Return the model card: what the model is, how it was trained, its results, samples and limits."""
    from huggingface_hub import ModelCard, ModelCardData  # a tenth of a second, which only the export needs

    config, run = load_config(run_dir), run_results(run_dir)
    metadata = _CARD_METADATA.get(config["source"], {"license": "other"})
    card = ModelCard.from_template(
        ModelCardData(library_name="transformers", pipeline_tag="text-generation", **metadata),
        template_path=str(_CARD_TEMPLATE),
        model=model,
        run=run,
        perplexity=perplexity(run["loss"]),
        config=config,
        data=config["data"],
        session=config["sessions"][-1],
        source_name=Path(config["source"]).name,  # whoever reads the card need not know the author's folders
        log=read_log(run_dir / "loss.jsonl"),
        samples=[row for row in read_rows(run_dir / "samples.jsonl") if row["when"] == "after"][:3],
    )
    return f"{card}\n"
