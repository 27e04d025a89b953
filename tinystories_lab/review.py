"""Was it any good? The run's figures beside the chapter's, and what is left to do."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tinystories_lab.files import replace_whole
from tinystories_lab.runlog import read_rows

# The chapter's own figures, not measured by this project unless it says so: "A Four-Hour Training Run", Study Tiny LLM, Part 4, Ch 15.
BOOK_RESULTS = {
    "parameters": 9_952_320,  # counted by us: it says ten million
    "tokens_per_step": 16_384,
    "bytes_per_token": 4.1,  # measured by us, on real stories with a vocabulary of 8,000
    "loss_by_step": {0: 8.99, 200: 8.95, 1000: 4.20, 2000: 3.10, 4000: 2.78, 8000: 2.55, 12000: 2.45},
    "machines": {
        "Colab T4, fp16": {"hours": 2.8, "tokens_per_second": 21_000, "final_loss": 2.45},
        "Colab A100, bf16": {"hours": 0.25, "tokens_per_second": 230_000, "final_loss": 2.43},
        "M2 Pro, MPS, bf16": {"hours": 3.5, "tokens_per_second": 17_000, "final_loss": 2.46},
    },
}


def perplexity(loss: float) -> float:
    """exp of a loss in nats: as unsure as when choosing among so many equally likely tokens."""
    return math.exp(loss)


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
    """A loss in nats a token as bits a byte of text: comparable between tokenizers, lower is better."""
    return loss / math.log(2) / bytes_per_token


def save_samples(run_dir: str | Path, when: str, samples: Iterable[dict[str, Any]]) -> None:
    """Keep stories in samples.jsonl as of `when` ("before", "after"); those kept as of the same `when` are replaced."""
    path = Path(run_dir) / "samples.jsonl"
    others = [row for row in read_rows(path) if row["when"] != when]
    with replace_whole(path, "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in [*others, *({"when": when, **sample} for sample in samples)])


def checklist(run_dir: str | Path) -> dict[str, bool]:
    """The chapter's list of what a finished run leaves behind, each with whether it is there."""
    run_dir = Path(run_dir)
    samples = read_rows(run_dir / "samples.jsonl")
    counts = {when: sum(row["when"] == when for row in samples) for when in ("before", "after")}
    return {
        "final.pt saved": (run_dir / "final.pt").is_file(),
        "loss curve as loss_curve.png": (run_dir / "loss_curve.png").is_file(),
        "config.yaml, to repeat the run": (run_dir / "config.yaml").is_file(),
        "tokenizer.json beside the model": (run_dir / "tokenizer.json").is_file(),
        "ten samples from before training": counts["before"] >= 10,
        "ten samples from after training": counts["after"] >= 10,
        "stories rated in ratings.jsonl": bool(read_rows(run_dir / "ratings.jsonl")),
    }
