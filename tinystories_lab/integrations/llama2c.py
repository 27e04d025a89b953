"""Load the models and tokenizers of llama2.c, such as stories15M.bin with tokenizer.bin."""

import math
import os
import struct
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers
from tokenizers.processors import TemplateProcessing

from tinystories_lab.integrations.huggingface import model_from_llama
from tinystories_lab.model import GPTConfig, GPTMini
from tinystories_lab.tokenizer import END_OF_TEXT

_HEADER = struct.Struct("<7i")


def load_llama2c(path: str | Path, device: str | torch.device = "cpu") -> GPTMini:
    """Return the model in a file of llama2.c as a GPTMini on `device`, in evaluation mode. `~` is the home folder.

    The file has llama2.c's first format: seven integers, then float32 weights. Raises FileNotFoundError if it is
    missing, and ValueError if its size does not fit its header, as in the later formats.
    """
    path = _existing(path)
    try:
        with path.open("rb") as file:
            d_model, hidden, n_layer, n_head, kv_heads, vocab_size, max_len = _HEADER.unpack(file.read(_HEADER.size))
        size = {"vocab_size": abs(vocab_size), "d_model": d_model, "hidden": hidden, "max_len": max_len}
        config = GPTConfig(n_layer=n_layer, n_head=n_head, tie_embeddings=vocab_size > 0, **size)
        if kv_heads < 1 or n_head % kv_heads:
            raise ValueError(f"{n_head} query heads cannot share {kv_heads} key-value heads")
        values, shapes = torch.from_numpy(np.fromfile(path, "<f4", offset=_HEADER.size)), _shapes(config, kv_heads)
        counts = [math.prod(shape) for shape in shapes.values()]
        if len(values) != sum(counts):
            raise ValueError(f"it has {len(values):,} weights, and its header requires {sum(counts):,}")
    except (struct.error, ValueError) as error:
        raise ValueError(f"{path} is not a model in llama2.c's first format ({error}): download it again") from error
    tensors = {name: part.view(shapes[name]) for name, part in zip(shapes, values.split(counts), strict=True)}
    for name in tensors:
        if "q_proj" in name or "k_proj" in name:  # llama2.c rotates the pairs (2i, 2i + 1), GPTMini (i, i + D/2)
            pairs = tensors[name].unflatten(0, (-1, d_model // n_head // 2, 2))
            tensors[name] = pairs.transpose(1, 2).flatten(0, 2)
    return model_from_llama(config, kv_heads, tensors, path, device)


def _existing(path: str | Path) -> Path:
    """Return the path with `~` replaced by the home folder. Raises FileNotFoundError if there is no such file."""
    path = Path(os.path.expanduser(path))
    if not path.is_file():
        advice = "download it from karpathy/tinyllamas on the Hub, or from the llama2.c repository"
        raise FileNotFoundError(f"there is no {path}: {advice}")
    return path


def _shapes(config: GPTConfig, kv_heads: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a file's tensors in the file's order, under their names in a Llama."""
    C, hidden, head_dim = config.d_model, config.d_hidden, config.d_model // config.n_head
    embedding, q, kv = (config.vocab_size, C), (C, C), (kv_heads * head_dim, C)
    in_layer = {"input_layernorm": (C,), "self_attn.q_proj": q, "self_attn.k_proj": kv, "self_attn.v_proj": kv}
    in_layer |= {"self_attn.o_proj": q, "post_attention_layernorm": (C,)}
    in_layer |= {"mlp.gate_proj": (hidden, C), "mlp.down_proj": (C, hidden), "mlp.up_proj": (hidden, C)}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": embedding}
    for name, shape in in_layer.items():  # a tensor of all layers, then the next one
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for layer in range(config.n_layer)}
    shapes |= {"model.norm.weight": (C,), "cosines and sines": (config.max_len, head_dim)}
    return shapes if config.tie_embeddings else shapes | {"lm_head.weight": embedding}


def load_llama2c_tokenizer(path: str | Path) -> Tokenizer:
    """Return the tokenizer in a file of llama2.c. Raises FileNotFoundError or ValueError if it cannot be read.

    The second token, <s>, is renamed to <|endoftext|>: in llama2.c, too, the same token starts and ends each story.
    """
    path = _existing(path)
    special = ["<unk>", END_OF_TEXT, "</s>"]
    data, start, tokens, scores = path.read_bytes(), 4, [], []  # the first four bytes are the longest token's length
    try:
        while start < len(data):
            score, length = struct.unpack_from("<fI", data, start)
            start += 8 + length
            tokens.append(data[start - length : start].decode().replace(" ", "▁"))
            scores.append(score)
        if start != len(data) or not tokens:
            raise ValueError(f"it ends within token {len(tokens)}")
        tokens[:3] = special
        ids = {token: token_id for token_id, token in enumerate(tokens)}
        # Two tokens can be merged if the result is a token, too. Of all such pairs, the best result goes first.
        best_first = [tokens[i] for i in np.argsort(-np.array(scores), kind="stable")]
        splits = ((token[:i], token[i:]) for token in best_first for i in range(1, len(token)))
        merges = [(first, second) for first, second in splits if first in ids and second in ids]
        tokenizer = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", byte_fallback=True))
    except Exception as error:  # the library raises a bare Exception
        raise ValueError(f"{path} is not a tokenizer of llama2.c ({error}): download it again") from error
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    to_text = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(to_text)
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = TemplateProcessing(single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, 1)])
    return tokenizer
