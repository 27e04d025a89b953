"""Compare recipes of training on real stories: python -m tests.benchmarks.recipe FILE [recipe ...].

A recipe is a preset with changes. All of them get the same stories, tokenizer and tokens per step; schedules span the
steps that a recipe has. RECIPE.md says what was found. On a CPU, use fewer and smaller steps: --steps 240 --tokens 2048
--seq-len 256.
"""

import argparse
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tinystories_lab.data.stories import load_stories
from tinystories_lab.loader import BinInfo
from tinystories_lab.run import PRESETS
from tinystories_lab.tokenizer import save_tokenizer, train_tokenizer, write_bin
from tinystories_lab.trainer import train

# The best of the second round in RECIPE.md, but not at the real batch size.
_HIGH = {"optimizer": "normuon", "muon_lr": 7e-3, "peak_lr": 1.2e-2, "beta1": 0.8}
# name: preset, share of the steps, changes to its TrainConfig
RECIPES: dict[str, tuple[str, float, dict[str, Any]]] = {
    "fast": ("fast", 1.0, {}),
    "fast, 60% of the steps": ("fast", 0.6, {}),
    "fast, 45% of the steps": ("fast", 0.45, {}),
    "fast, no growing sequences": ("fast", 1.0, {"seq_len_start": None}),
    "fast, NorMuon": ("fast", 1.0, {"optimizer": "normuon"}),
    "fast, NorMuon and high rates": ("fast", 1.0, _HIGH),
    "fast, NorMuon and high rates, 45% of the steps": ("fast", 0.45, _HIGH),
    "fast, NorMuon at 0.007": ("fast", 1.0, {"optimizer": "normuon", "muon_lr": 7e-3}),
    "fast, AdamW at 1.2e-2": ("fast", 1.0, {"peak_lr": 1.2e-2}),
    "fast, beta1 0.8": ("fast", 1.0, {"beta1": 0.8}),
    "fast, sequences from 32": ("fast", 1.0, {"seq_len_start": 32}),
    "fast, decay to 0": ("fast", 1.0, {"final_lr_ratio": 0.0}),
    "fast, no weight decay": ("fast", 1.0, {"weight_decay": 0.0}),
    "fast, weight decay 0.5": ("fast", 1.0, {"weight_decay": 0.5}),
    "fast, shuffle": ("fast", 1.0, {"sampling": "shuffle"}),
    "book": ("book", 1.0, {}),
    "book, 2e-3": ("book", 1.0, {"peak_lr": 2e-3}),
    "book, 4e-3": ("book", 1.0, {"peak_lr": 4e-3}),
}


def make_data(stories: Path, folder: Path) -> None:
    """Clean and split the stories, train a tokenizer on them, and write train.bin and val.bin."""
    splits, _ = load_stories(stories, folder)
    tokenizer = train_tokenizer(splits["train"]["text"], 8_000)
    save_tokenizer(tokenizer, folder / "tokenizer.json")
    for name, split in (("train", "train"), ("val", "validation")):
        write_bin(folder / f"{name}.bin", splits[split]["text"], tokenizer)


def compare(
    stories: Path,
    names: Iterable[str],
    folder: Path,
    steps: int,
    seeds: Iterable[int],
    tokens: int = 16_384,
    seq_len: int = 512,
    say: Callable[[str], Any] = print,
) -> None:
    """Train each recipe with each seed, and say its loss and bits per byte on all validation windows."""
    warnings.simplefilter("ignore")
    data = folder / "recipes"
    data.mkdir(exist_ok=True)
    make_data(stories, data)
    info = BinInfo.load(data / "val.bin")
    for seed in seeds:
        for name in names:
            preset, share, changes = RECIPES[name]
            base, total = PRESETS[preset], max(3, round(steps * share))
            warmup = max(1, round(total * base.train.warmup_steps / base.train.total_steps))
            start = seq_len * base.train.seq_len_start // 512 if base.train.seq_len_start else None
            rare = {"eval_every": total, "log_every": total, "save_every": total, "keep_every": total}
            sizes = {"batch_size": tokens // seq_len, "seq_len": seq_len, "seq_len_start": start, "seed": seed}
            sizes |= {"total_steps": total, "warmup_steps": warmup, "eval_batches": 10**6, "save_minutes": 999}
            config = replace(base.train, **sizes | rare | changes)  # changes last: they may set the length, too
            model = replace(base.model, vocab_size=info.vocab_size, max_len=seq_len)
            started = time.perf_counter()
            *_, row = train(data / f"{name} {seed}".replace("/", "_"), data, model, config)
            bits = row["val_loss"] / math.log(2) / info.bytes_per_token
            seconds = time.perf_counter() - started
            say(
                f"{name}, seed {seed}: {total} steps, loss {row['val_loss']:.4f}, {bits:.4f} bits per byte, {seconds:.0f} s"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stories", type=Path)
    parser.add_argument("recipes", nargs="*", metavar="recipe", help=f"any of: {'; '.join(RECIPES)} (default: all)")
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--tokens", type=int, default=16_384, help="per step (default: %(default)s)")
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    if unknown := set(options.recipes) - RECIPES.keys():
        parser.error(f"unknown recipe {', '.join(sorted(unknown))}: use any of {'; '.join(RECIPES)}")
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"steps": options.steps, "tokens": options.tokens, "seq_len": options.seq_len}
        compare(options.stories, options.recipes or RECIPES, Path(folder), seeds=range(options.seeds), **sizes)


if __name__ == "__main__":
    main()
