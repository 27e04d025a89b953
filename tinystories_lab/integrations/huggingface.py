"""Export a finished run to Hugging Face as a Llama, and load a small Llama as a GPTMini."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from tokenizers import Tokenizer
from torch import Tensor

from tinystories_lab.analysis.evaluation import perplexity, read_samples, run_results
from tinystories_lab.checkpoint import MODEL_KEYS, load_checkpoint, model_from_checkpoint
from tinystories_lab.data.sources import HUB_NAME
from tinystories_lab.files import atomic_write, read_log
from tinystories_lab.generate import NEW_TOKENS, TEMPERATURE, TOP_K
from tinystories_lab.model import INIT_STD, GPTConfig, GPTMini
from tinystories_lab.run import load_config
from tinystories_lab.tokenizer import END_OF_TEXT, PAD, eos_id, load_tokenizer, tokenizer_sha256

_CONFIG_NAMES = {  # the fields of GPTConfig and their names in a Llama's config.json
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
_LLAMA_DEFAULTS = {"model_type": None, "rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "tie_word_embeddings": False}
# The weights of a GPTMini's layer and their names in a Llama. GPTMini stacks the query, key and value projections in
# one matrix. Both models rotate the pairs (i, i + D/2), so the rows keep their order.
_LAYER_NAMES = {
    "attention_norm": ["input_layernorm"],
    "attention.qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "attention.out": ["self_attn.o_proj"],
    "feed_forward_norm": ["post_attention_layernorm"],
    "feed_forward.gate": ["mlp.gate_proj"],
    "feed_forward.up": ["mlp.up_proj"],
    "feed_forward.down": ["mlp.down_proj"],
}
_CARD_METADATA = {  # for the data sets whose licence is known
    "tinystories": {"license": "cdla-sharing-1.0", "language": "en", "datasets": [HUB_NAME]},
    "toyland": {"license": "mit", "language": "en"},
}


def load_llama(folder: str | Path, device: str | torch.device = "cpu") -> GPTMini:
    """Return the Llama in `folder` as a GPTMini on `device`, in float32 and evaluation mode. `~` is the home folder.

    The folder was written by `export_hugging_face`, or it has a small Llama saved as .safetensors or .bin. Key-value
    heads that several query heads share (grouped-query attention) are repeated: GPTMini then computes the same logits,
    with more parameters. Raises FileNotFoundError if a file is missing, and ValueError if a file is damaged or the model
    has what GPTMini does not support: another activation, biases, scaled positions or quantized weights.
    """
    folder = Path(os.path.expanduser(folder))
    if not folder.is_dir():
        name = folder if len(folder.parts) == 2 and not folder.is_absolute() else "owner/name"
        advice = f"for a model on the Hub, run `hf download {name} --local-dir guest` first, and choose guest"
        raise FileNotFoundError(f"there is no folder {folder}, and models are read from this machine only: {advice}")
    parts = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    for path in (folder / "config.json", *(parts or [folder / "model.safetensors"])):
        if not path.is_file():
            advice = "choose a folder that `export` wrote, or a Llama saved as model.safetensors"
            raise FileNotFoundError(f"there is no {path}: {advice}")
    needed = {"model_type": "llama"}
    try:
        settings, tensors = _read_settings(folder / "config.json"), {}
        for path in parts:
            tensors |= load_file(path) if path.suffix == ".safetensors" else load_checkpoint(path, keys=set())
        if settings["model_type"] == "llama":  # other types of models name their settings differently
            config = GPTConfig(**{ours: settings[theirs] for ours, theirs in _CONFIG_NAMES.items()})
            needed = _llama_settings(config) | {"rope_type": "default", "quantization_config": None, "biases": []}
            kv_heads = settings.get("num_key_value_heads", config.n_head)
            divisors = [n for n in range(1, config.n_head + 1) if config.n_head % n == 0]
            needed["num_key_value_heads"] = kv_heads if kv_heads in divisors else f"a divisor of {config.n_head}"
    except (ValueError, TypeError, KeyError, AttributeError, SafetensorError) as error:
        raise ValueError(f"{folder} has no readable Llama ({error!r}): download or export it again") from error
    found = needed | settings | {"biases": sorted(name for name in tensors if name.endswith(".bias"))}
    unsupported = [f"{name} is {found[name]}, not {value}" for name, value in needed.items() if found[name] != value]
    if unsupported:
        reasons = "; ".join(unsupported)
        raise ValueError(f"GPTMini does not support the model in {folder}: {reasons}; choose another model")
    return model_from_llama(config, kv_heads, tensors, folder, device)


def load_llama_tokenizer(folder: str | Path) -> Tokenizer:
    """Return the tokenizer in the folder of a Llama. Raises FileNotFoundError or ValueError if it cannot be read.

    As in transformers, tokenizer.json alone decides whether a text starts with a token such as <s>.
    """
    path = Path(os.path.expanduser(folder)) / "tokenizer.json"
    try:
        return load_tokenizer(path)
    except (FileNotFoundError, ValueError) as error:
        advice = "save the model's tokenizer there with `save_pretrained` of transformers, or choose another model"
        raise type(error)(f"there is no readable {path}: {advice}") from error


def _read_settings(path: Path) -> dict[str, Any]:
    """Return the settings in a Llama's config.json, with those of RoPE. Missing settings get their default."""
    settings = {name: value for name, value in json.loads(path.read_text("utf-8")).items() if value is not None}
    rope = settings.get("rope_parameters", {}) | settings.get("rope_scaling", {})  # the new name and the old one
    return _LLAMA_DEFAULTS | settings | {"rope_type": rope.get("type", "default")} | rope


def _llama_settings(config: GPTConfig) -> dict[str, Any]:
    """Return the settings of a Llama that computes what a GPTMini with this config computes."""
    shape = asdict(replace(config, hidden=config.d_hidden))
    return {
        "model_type": "llama",
        **{theirs: shape[ours] for ours, theirs in _CONFIG_NAMES.items()},
        "hidden_act": "silu",
        "num_key_value_heads": config.n_head,
        "head_dim": config.d_model // config.n_head,
        "attention_bias": False,
        "mlp_bias": False,
    }


def _weight_names(config: GPTConfig) -> dict[str, list[str]]:
    """Return the name of each weight of a GPTMini and the names of the Llama's weights that are stacked in it."""
    names = {"tok_emb.weight": ["model.embed_tokens.weight"], "norm.weight": ["model.norm.weight"]}
    if not config.tie_embeddings:
        names["head.weight"] = ["lm_head.weight"]
    for layer in range(config.n_layer):
        for ours, theirs in _LAYER_NAMES.items():
            names[f"blocks.{layer}.{ours}.weight"] = [f"model.layers.{layer}.{name}.weight" for name in theirs]
    return names


def _to_llama(config: GPTConfig, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a GPTMini under their names in a Llama."""
    tensors = {}
    for ours, theirs in _weight_names(config).items():
        tensors |= zip(theirs, weights[ours].chunk(len(theirs)), strict=True)
    return tensors


def model_from_llama(
    config: GPTConfig, kv_heads: int, tensors: dict[str, Tensor], source: Path, device: str | torch.device
) -> GPTMini:
    """Return a GPTMini on `device` with a Llama's tensors. `source` is their file or folder, for errors.

    The Llama has `kv_heads` key-value heads per layer. Raises ValueError if a tensor is missing or has the wrong shape.
    """
    with torch.device("meta"):
        expected = _to_llama(config, GPTMini(config).state_dict())
    shared = [name for name in expected if name.endswith(("k_proj.weight", "v_proj.weight"))]
    for name in shared:
        expected[name] = expected[name][: config.d_model // config.n_head * kv_heads]
    try:
        wrong = [name for name, tensor in expected.items() if tensors[name].shape != tensor.shape]
    except KeyError as error:
        raise ValueError(f"{source} lacks {error}, which its config requires: download or export it again") from error
    if wrong:
        found = ", ".join(f"{[name]} {tuple(tensors[name].shape)}" for name in wrong)
        raise ValueError(f"{source} does not fit its config: {found}; download or export it again")
    for name in shared:  # query heads 0, 1, ... share the first key-value head, so each head is repeated in place
        heads = tensors[name].unflatten(0, (kv_heads, -1))
        tensors[name] = heads.repeat_interleave(config.n_head // kv_heads, dim=0).flatten(0, 1)
    weights = {ours: torch.cat([tensors[it] for it in theirs]) for ours, theirs in _weight_names(config).items()}
    if not config.tie_embeddings and weights["head.weight"].equal(weights["tok_emb.weight"]):  # one matrix, saved twice
        config = replace(config, tie_embeddings=True)
        del weights["head.weight"]
    if replace(config, hidden=None).d_hidden == config.hidden:
        config = replace(config, hidden=None)  # as in GPTMini's own configs
    return model_from_checkpoint({"model_config": asdict(config), "model": weights}, device)


def export_hugging_face(run_dir: str | Path, out_dir: str | Path) -> Path:
    """Write a finished run as a folder that transformers loads as `LlamaForCausalLM`, and return the folder.

    The files are config.json, generation_config.json, model.safetensors (float32; a shared embedding is stored once),
    tokenizer.json, tokenizer_config.json, and README.md, a model card with the run's results. Other files in `out_dir`
    stay. Raises FileNotFoundError if the run is not finished, and ValueError if its tokenizer has been replaced.
    """
    run_dir, out_dir = Path(run_dir), Path(out_dir)
    checkpoint = load_checkpoint(run_dir / "final.pt", MODEL_KEYS)
    tokenizer = load_tokenizer(run_dir / "tokenizer.json")
    if tokenizer_sha256(tokenizer) != checkpoint["tokenizer_sha256"]:
        raise ValueError(f"{run_dir}/tokenizer.json is not the tokenizer that final.pt was trained with: replace it")
    config = GPTConfig.from_dict(checkpoint["model_config"])
    tensors = {name: part.contiguous() for name, part in _to_llama(config, checkpoint["model"]).items()}
    eos = eos_id(tokenizer)  # it precedes each story in training, so generation without a prompt starts with it
    special = {"bos_token_id": eos, "eos_token_id": eos, "pad_token_id": tokenizer.token_to_id(PAD)}
    extra = {"architectures": ["LlamaForCausalLM"], "initializer_range": INIT_STD, "torch_dtype": "float32"}
    sampling = {"do_sample": True, "temperature": TEMPERATURE, "top_k": TOP_K, "max_new_tokens": NEW_TOKENS}
    tokenizer_config = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "pad_token": PAD}
    tokenizer_config |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config.max_len}
    tokenizer_config |= {"padding_side": "left", "model_input_names": ["input_ids", "attention_mask"]}  # for batches
    tokenizer_config |= {"add_bos_token": False, "add_prefix_space": False, "clean_up_tokenization_spaces": False}
    contents = {
        "config.json": json.dumps(_llama_settings(config) | extra | special, indent=2).encode(),
        "generation_config.json": json.dumps(special | sampling, indent=2).encode(),
        "tokenizer_config.json": json.dumps(tokenizer_config, indent=2).encode(),
        "tokenizer.json": tokenizer.to_str(pretty=True).encode(),
        "model.safetensors": save(tensors, {"format": "pt"}),
        "README.md": _model_card(run_dir, config).encode(),
    }
    for name, content in contents.items():
        with atomic_write(out_dir / name) as file:
            file.write(content)
    return out_dir


def _model_card(run_dir: Path, model: GPTConfig) -> str:
    """Return the model card: what the model is, how it was trained, its results, samples and limits."""
    from huggingface_hub import ModelCard, ModelCardData  # takes 0.1 s to import, and only the export needs it

    config, run = load_config(run_dir), run_results(run_dir)
    metadata = _CARD_METADATA.get(config["source"], {"license": "other"})
    card = ModelCard.from_template(
        ModelCardData(library_name="transformers", pipeline_tag="text-generation", **metadata),
        template_path=str(Path(__file__).with_name("templates") / "model_card.md"),
        model=model,
        run=run,
        perplexity=perplexity(run["loss"]),
        config=config,
        session=config["sessions"][-1],
        source_name=Path(config["source"]).name,  # the card does not show the author's folders
        log=read_log(run_dir / "loss.jsonl"),
        samples=read_samples(run_dir, "after")[:3],
    )
    return f"{card}\n"
