"""The honest look back: all that a run's files say of it, in short for the shell and as report.md in its folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from tinystories_lab.compare import beside_the_chapter, chapter_rows, run_beside, run_row
from tinystories_lab.files import replace_whole
from tinystories_lab.metrics import metrics_beside_real, training_words
from tinystories_lab.ratings import average_ratings
from tinystories_lab.reciting import Copied, copies_beside_real
from tinystories_lab.review import checklist, perplexity
from tinystories_lab.runlog import Diagnosis, Row, diagnose, read_log, read_rows
from tinystories_lab.tokenizer import BinInfo, load_tokenizer
from tinystories_lab.workspace import Workspace, load_config

# Shown where they are in the run's folder; `retrospective` and notebook 5 draw them.
_FIGURES = {
    "loss_curve.png": "Loss by step",
    "loss_by_tokens.png": "Loss by tokens read, beside the chapter's",
    "two_runs.png": "Bits a byte by tokens read, of two runs",
}


@dataclass(frozen=True)
class LookBack:
    """What a run's files say of it. Where no stories were kept as of "after", metrics and copies are empty."""

    run_dir: Path
    config: dict[str, Any]
    log: list[Row]
    found: Diagnosis
    runs: list[dict[str, Any]]  # this one, another of the workspace if there is one, the chapter's
    metrics: list[dict[str, Any]]
    copies: dict[str, list[Copied]]  # of told and of real stories
    ratings: list[Row]
    samples: list[Row]
    tokens_to_read: int  # in train.bin
    checklist: dict[str, bool]


def look_back(lab: Workspace, other_run: str = "") -> LookBack:
    """Read a run's folder and its data; some seconds. `other_run` is as `run_beside` takes it.

    Raises FileNotFoundError where training has not finished an evaluation.
    """
    run_dir = lab.run_dir
    runs = [run_row(run_dir), *(run_row(other) for other in [run_beside(lab, other_run)] if other), *chapter_rows()]
    config, log, samples = load_config(run_dir), read_log(run_dir / "loss.jsonl"), read_rows(run_dir / "samples.jsonl")
    after = [row for row in samples if row["when"] == "after"]
    tokenizer = load_tokenizer(run_dir / "tokenizer.json")
    train_bin, val_bin = lab.data_dir / "train.bin", lab.data_dir / "val.bin"
    known = training_words(train_bin, tokenizer) if after else set()
    return LookBack(
        run_dir=run_dir,
        config=config,
        log=log,
        found=diagnose(log, config["model"]["vocab_size"]),
        runs=runs,
        metrics=metrics_beside_real(samples, known, val_bin, tokenizer) if after else [],
        copies=copies_beside_real(after, lab.data_dir, tokenizer) if after else {},
        ratings=average_ratings(run_dir / "ratings.jsonl"),
        samples=samples,
        tokens_to_read=BinInfo.of(train_bin).tokens,
        checklist=checklist(run_dir),
    )


def in_short(back: LookBack) -> str:
    """A dozen lines for the shell."""
    run, rows = back.runs[0], back.log
    lines = {
        "tokens": f"{run['tokens read']:,} seen of {back.tokens_to_read:,} in train.bin",
        "parameters": f"{run['parameters']:,}",
        "loss": f"{rows[0]['train_loss']:.3f} untrained, {rows[-1]['train_loss']:.3f} last batch, {run['loss']:.3f} validation",
        "": f"perplexity {perplexity(run['loss']):.2f}, {run['bits a byte']:.3f} bits a byte",
        "time": f"{60 * run['minutes']:,.0f} s of training, {run['tokens a second']:,} tokens a second",
        "pattern": f"{back.found.pattern}: {back.found.evidence}",
    }
    if back.metrics:
        figures = (f"{row['figure']} {row['after']:.2f} (real {row['real']:.2f})" for row in back.metrics[:-1])
        lines["stories"] = ", ".join(figures)
    if back.copies:
        told, real = (copies[0].words for copies in back.copies.values())
        lines["copied"] = f"{told} words in a row from training at most; real stories {real}"
    lines["checklist"] = "; ".join(f"{'done' if done else 'open'}: {item}" for item, done in back.checklist.items())
    return "\n".join([f"\nRun {run['run']}", *(f"  {name:11} {line}" for name, line in lines.items())])


def _in_full(back: LookBack) -> str:
    """The report in Markdown."""
    run, config = back.runs[0], back.config
    tracked = any((back.run_dir / folder).is_dir() for folder in ("tensorboard", "wandb"))
    ticks = back.checklist | {"optional: the log in TensorBoard or W&B": tracked}
    figures = (f"![{says}]({name})" for name, says in _FIGURES.items() if (back.run_dir / name).exists())
    parts = [
        f"# {run['run']}: the look back",
        f"Preset {config['preset']}, data {config['data']['name']} ({config['source']}): {back.tokens_to_read:,} tokens, of "
        f"which {run['tokens read']:,} were read, by {run['parameters']:,} parameters.",
        f"Validation loss **{run['loss']:.3f}** nats a token: as unsure as among {perplexity(run['loss']):.2f} tokens; "
        f"**{run['bits a byte']:.3f}** bits a byte. {run['minutes']:,.1f} minutes at {run['tokens a second']:,} tokens a second.",
        f"Pattern: **{back.found.pattern}**, {back.found.evidence}. {back.found.advice.capitalize()}.",
        *figures,
        "## Beside other runs\n\nThe chapter's figures are its own.",
        table(back.runs),
        "## Beside the chapter's loss, step by step",
        table(beside_the_chapter(back.log)),
        "## The stories, without a reader",
        table(back.metrics) if back.metrics else "No stories were kept after training yet: 04_generate keeps ten.",
        *(["## Writing or reciting?", table(copied_rows(back.copies))] if back.copies else []),
        *(f"The longest, {kind}:\n\n{fenced(copies[0].passage)}" for kind, copies in back.copies.items()),
        "## The stories, rated from 0 to 5",
        table(back.ratings) if back.ratings else "Nobody has rated them yet: 05_retrospective asks for it.",
        "## Before and after",
        *(f"{row['when'].capitalize()}:\n\n{fenced(row['story'])}" for row in _first_samples(back.samples)),
        "## The checklist",
        "\n".join(f"- [{'x' if done else ' '}] {item}" for item, done in ticks.items()),
        "## Sessions",
        table([_session_row(session) for session in config["sessions"]]),
    ]
    return "\n\n".join(parts) + "\n"


def write_report(back: LookBack) -> Path:
    """Write report.md into the run's folder; returns its path."""
    path = back.run_dir / "report.md"
    with replace_whole(path, "w") as file:
        file.write(_in_full(back))
    return path


def copied_rows(copies: Mapping[str, Sequence[Copied]]) -> list[dict[str, Any]]:
    """How many words the longest copied passage of a story has, on average and at most; of told and of real stories."""
    words = {kind: [copied.words for copied in found] for kind, found in copies.items()}
    return [{"stories": kind, "words copied, mean": fmean(of), "most": max(of)} for kind, of in words.items()]


def _first_samples(samples: Sequence[Row]) -> list[Row]:
    """The first sample of each time they were taken at: the same prompt and seed."""
    return list({row["when"]: row for row in reversed(samples)}.values())[::-1]


def _session_row(session: Mapping[str, Any]) -> dict[str, str]:
    """When a session of `config.yaml` began, where, in which precision, and by which versions."""
    versions = ", ".join(f"{name} {version}" for name, version in session["versions"].items())
    return {key: session[key] for key in ("started", "device_name", "dtype")} | {"versions": versions}


def fenced(text: str) -> str:
    """A text as it is, in Markdown."""
    return f"````text\n{text}\n````"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same keys as a table in Markdown."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([shown(value) for value in row.values()] for row in rows)]
    cells = ([" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def shown(value: object) -> str:
    """A cell's text: whole numbers with thousands set apart, others to three digits, nothing as a dash."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:#,.3g}" if abs(value) < 99.95 else f"{value:,.0f}"
