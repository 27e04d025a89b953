"""Out into the ecosystem: a finished run as the folder that Hugging Face's tools, and what reads their format, load."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save

from tinystories_lab.checkpoint import MODEL_KEYS, load_checkpoint
from tinystories_lab.compare import run_row
from tinystories_lab.files import replace_whole
from tinystories_lab.generate import NEW_TOKENS
from tinystories_lab.hub import HUB_NAME
from tinystories_lab.llama import to_llama
from tinystories_lab.model import GPTConfig
from tinystories_lab.report import fenced, table
from tinystories_lab.review import perplexity
from tinystories_lab.runlog import read_log, read_rows
from tinystories_lab.sampling import TEMPERATURE, TOP_K
from tinystories_lab.sources import END_OF_TEXT
from tinystories_lab.tokenizer import PAD, end_id, load_tokenizer, tokenizer_sha256
from tinystories_lab.workspace import load_config

# What is known of the data that the lab names: Hub name, licence of what is made from it, and what to say of it.
_SOURCES = {
    "tinystories": {
        "datasets": [HUB_NAME],
        "license": "cdla-sharing-1.0",
        "says": f"[TinyStories](https://huggingface.co/datasets/{HUB_NAME}) (Eldan and Li 2023, arXiv:2305.07759), under "
        "[CDLA-Sharing-1.0](https://cdla.dev/sharing-1-0/): stories in the words of a small child, written by GPT-3.5 and GPT-4",
    },
    "toyland": {
        "license": "mit",
        "says": "built-in stories of tinystories_lab, told by its own small grammar, under the MIT licence",
    },
}


def export_hugging_face(run_dir: str | Path, out_dir: str | Path) -> Path:
    """Write a finished run as a folder that transformers loads as `LlamaForCausalLM`; returns it.

    Files: config.json, generation_config.json, model.safetensors (float32, the shared embedding once), tokenizer.json,
    tokenizer_config.json, and README.md, a model card filled from the run. What else is in `out_dir` stays. Raises
    FileNotFoundError where the run is not finished, and ValueError where its tokenizer is not the one it was trained with.
    """
    run_dir, out_dir = Path(run_dir), Path(out_dir)
    checkpoint = load_checkpoint(run_dir / "final.pt", MODEL_KEYS)
    tokenizer = load_tokenizer(run_dir / "tokenizer.json")
    if tokenizer_sha256(tokenizer) != checkpoint["tokenizer_sha256"]:
        raise ValueError(
            f"{run_dir / 'tokenizer.json'} is not the tokenizer that {run_dir / 'final.pt'} was trained with: put that one there"
        )
    config = GPTConfig(**checkpoint["model_config"])
    settings, tensors = to_llama(config, checkpoint["model"])
    # A story begins after the end of the one before: it is the token to begin with where there is no prompt.
    special = {
        "bos_token_id": end_id(tokenizer),
        "eos_token_id": end_id(tokenizer),
        "pad_token_id": tokenizer.token_to_id(PAD),
    }
    telling = {"do_sample": True, "temperature": TEMPERATURE, "top_k": TOP_K, "max_new_tokens": NEW_TOKENS}
    files = {
        "config.json": settings | special,
        "generation_config.json": special | telling,
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
    contents["model.safetensors"] = save(tensors, {"format": "pt"})
    contents["README.md"] = _model_card(run_dir, config).encode()
    for name, content in contents.items():
        with replace_whole(out_dir / name) as file:
            file.write(content)
    return out_dir


def _model_card(run_dir: Path, config: GPTConfig) -> str:
    """README.md of the folder: what the model is, what made it, what it tells and what it cannot, from the run's files."""
    run, record, log = run_row(run_dir), load_config(run_dir), read_log(run_dir / "loss.jsonl")
    data, recipe, session = record["data"], record["train"], record["sessions"][-1]
    source = _SOURCES.get(record["source"], {})
    header = {
        "license": source.get("license", "other"),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
    }
    header |= {"language": "en", "datasets": source.get("datasets")} if source else {}
    told = [row for row in read_rows(run_dir / "samples.jsonl") if row["when"] == "after"][:3]
    figures: dict[str, Any] = {
        "parameters": run["parameters"],
        "layers, heads, width": f"{config.n_layer}, {config.n_head}, {config.d_model}",
        "vocabulary": f"{config.vocab_size:,} tokens, byte-level BPE",
        "sees at once": f"{config.max_len:,} tokens",
        "training data": f"{data['tokens']:,} tokens of {data['stories']:,} stories, {data['bytes'] / data['tokens']:.2f} bytes a token",
        "tokens read": run["tokens read"],
        "steps": f"{log[-1]['step']:,} of {recipe['batch_size']} x {recipe['seq_len']} tokens, {recipe['optimizer']}",
        "time": f"{run['minutes']:,.1f} minutes, {run['tokens a second']:,} tokens a second",
        "on": f"{session['device_name']}; {session['dtype']}; torch {session['versions']['torch']}",
        "loss before training": f"{log[0]['train_loss']:.3f} nats a token",
        "loss on held-out stories": f"{run['loss']:.3f} nats a token, a perplexity of {perplexity(run['loss']):.2f}",
        "bits a byte on held-out stories": run["bits a byte"],
    }
    parts = [
        "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in header.items() if value), "---"]),
        f"# {run['run']}",
        f"A language model of {run['parameters']:,} parameters that tells stories, trained with tinystories_lab (preset "
        f"{record['preset']}) on {source.get('says', 'stories of its maker: ' + Path(record['source']).name)}.",
        "```python\nfrom transformers import pipeline\n\n"
        f'tell = pipeline("text-generation", "you/{run["run"]}")  # its name on the Hub, or the path of this folder\n'
        'print(tell("Once upon a time", max_new_tokens=120)[0]["generated_text"])\n```',
        "It is a Llama: RMSNorm, rotary positions, SwiGLU, the embedding shared with the output.",
        "## What it came to",
        table([{"": name, "this model": value} for name, value in figures.items()]),
        "Bits a byte compare models whatever their vocabulary; lower is better.",
        "## What it tells",
        f"The first {len(told)} stories kept after training, not chosen: temperature {told[0]['temperature']}, top_k "
        f"{told[0]['top_k']}, seeds {', '.join(str(row['seed']) for row in told)}."
        if told
        else "No stories were kept.",
        *(fenced(row["story"] + ("" if row["ended"] else " ...")) for row in told),
        "## Limits",
        f"It goes on from the beginning of a story, in the language and manner of its training stories, and knows nothing "
        f"else: it does not follow instructions, answer questions or state facts. It sees {config.max_len:,} tokens at most. "
        "It contradicts itself, and may repeat what it read word for word. It was made to learn from, and not for use "
        "with children or in products.",
        "## Licence",
        "The data's licence is said above; whoever passes this model on should keep to it."
        if source
        else "The rights to the training stories are their owners': its maker should say here what may be done with this model.",
    ]
    return "\n\n".join(parts) + "\n"
