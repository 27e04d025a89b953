"""The summary of a run from its files: a short text for the shell, and report.md in the run's folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from tinystories_lab.analysis import evaluation
from tinystories_lab.analysis.budget import format_duration
from tinystories_lab.analysis.diagnosis import Diagnosis, diagnose
from tinystories_lab.analysis.memorization import Overlap, memorization_overlaps, overlap_rows
from tinystories_lab.analysis.metrics import compare_metrics, training_words
from tinystories_lab.analysis.ratings import average_ratings
from tinystories_lab.config import TrainConfig
from tinystories_lab.durability.identity import require_run_data
from tinystories_lab.files import Row, atomic_write, read_log
from tinystories_lab.loader import open_tokens
from tinystories_lab.run import Workspace, load_config
from tinystories_lab.tokenizer import load_tokenizer


@dataclass(frozen=True)
class RunSummary:
    """The content of the report. Metrics and overlaps are empty if there are no samples from after training."""

    run_dir: Path
    config: dict[str, Any]
    log: list[Row]
    diagnosis: Diagnosis
    runs: list[dict[str, Any]]  # of this run, of another one, and of the chapter's if the data is its own
    metrics: list[dict[str, Any]]
    overlaps: dict[str, list[Overlap]]  # of generated and of real stories
    ratings: list[Row]
    samples: list[Row]
    train_tokens: int  # in train.bin
    checklist: dict[str, bool]


def summarize_run(lab: Workspace, other_run: str = "") -> RunSummary:
    """Return the summary of a run from its files, in a few seconds. `find_other_run` explains `other_run`.

    Raises ValueError or FileNotFoundError if files of the run or its data are missing, damaged, or of other runs.
    """
    require_run_data(lab)
    run_dir, train_bin, val_bin = lab.run_dir, lab.data_dir / "train.bin", lab.data_dir / "val.bin"
    other = evaluation.find_other_run(lab, other_run)
    folders = [run_dir, other] if other else [run_dir]
    config, log, samples = load_config(run_dir), read_log(run_dir / "loss.jsonl"), evaluation.read_samples(run_dir)
    runs = [evaluation.run_results(folder) for folder in folders]
    runs += evaluation.chapter_results() if evaluation.reads_tinystories(config["source"]) else []
    after = [row for row in samples if row["when"] == "after"]
    if older := [row["step"] for row in after if row.get("step", log[-1]["step"]) != log[-1]["step"]]:
        found = f"its stories are of step {older[0]}, but the run is at step {log[-1]['step']}"
        raise ValueError(f"{run_dir / 'samples.jsonl'}: {found}: run 04_generate (or `generate` in the shell) again")
    tokenizer = load_tokenizer(run_dir / "tokenizer.json")
    return RunSummary(
        run_dir=run_dir,
        config=config,
        log=log,
        diagnosis=diagnose(log, config["model"]["vocab_size"], TrainConfig.from_dict(config["train"])),
        runs=runs,
        metrics=compare_metrics(samples, training_words(train_bin, tokenizer), val_bin, tokenizer) if after else [],
        overlaps=memorization_overlaps(after, lab.data_dir, tokenizer) if after else {},
        ratings=average_ratings(run_dir / "ratings.jsonl"),
        samples=samples,
        train_tokens=len(open_tokens(train_bin)),
        checklist=evaluation.checklist(run_dir),
    )


def summary_text(summary: RunSummary) -> str:
    """Return a summary of about ten lines for the shell."""
    run, log, found = summary.runs[0], summary.log, summary.diagnosis
    losses = (log[0]["train_loss"], log[-1]["train_loss"], run["loss"])
    lines = {
        "tokens": f"{run['tokens read']:,} read, {summary.train_tokens:,} in train.bin",
        "parameters": f"{run['parameters']:,}",
        "loss": "{:.3f} untrained, {:.3f} last batch, {:.3f} validation".format(*losses),
        "": f"perplexity {evaluation.perplexity(run['loss']):.2f}, {run['bits per byte']:.3f} bits per byte",
        "time": f"{60 * run['minutes']:,.0f} s of training, {run['tokens per second']:,} tokens per second",
        "pattern": f"{found.pattern}: {found.evidence}",
    }
    if summary.metrics:
        metrics = (f"{row['metric']} {row['after']:.2f} (real {row['real']:.2f})" for row in summary.metrics[:-1])
        lines["stories"] = ", ".join(metrics)
    if summary.overlaps:
        words = {kind: overlaps[0].words for kind, overlaps in summary.overlaps.items()}
        lines["overlap"] = f"at most {words['generated']} words in a row from training (real stories {words['real']})"
    lines["checklist"] = "; ".join(f"{'done' if done else 'open'}: {item}" for item, done in summary.checklist.items())
    return "\n".join([f"\nRun {run['run']}", *(f"  {name:11} {line}" for name, line in lines.items())])


def outcome_text(summary: RunSummary) -> str:
    """Return what was made and how good it is, in three lines that need no knowledge of the terms."""
    run, untrained = summary.runs[0], summary.log[0]["train_loss"]
    choices = evaluation.perplexity(run["loss"])
    return (
        f"Trained a model of {run['parameters']:,} parameters on {run['tokens read']:,} tokens in "
        f"{format_duration(60 * run['minutes'])}.\n"
        f"Its loss on stories that it has not seen is {run['loss']:.3f} nats per token ({untrained:.2f} before training), "
        f"or {run['bits per byte']:.3f} bits per byte:\n"
        f"before each token, it is as uncertain as if it chose among {choices:.1f} equally likely tokens."
    )


def write_report(summary: RunSummary) -> Path:
    """Write report.md into the folder of the run and return its path."""
    run_dir, run = summary.run_dir, summary.runs[0]
    sessions = []
    for session in summary.config["sessions"]:
        versions = ", ".join(f"{name} {version}" for name, version in session["versions"].items())
        sessions.append({name: session[name] for name in ("started", "device_name", "dtype")} | {"versions": versions})
    values = vars(summary) | {
        "run": run,
        "perplexity": evaluation.perplexity(run["loss"]),
        "files": {path.name for path in run_dir.iterdir()},
        "public": evaluation.public_results(run_dir) if evaluation.reads_tinystories(summary.config["source"]) else [],
        "first_story": {row["when"]: row["story"] for row in reversed(summary.samples)},
        "sessions": sessions,
    }
    loader = PackageLoader("tinystories_lab.analysis")
    templates = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True)
    templates.filters |= {"table": _markdown_table, "overlap_rows": overlap_rows}
    with atomic_write(run_dir / "report.md", "w") as file:
        file.write(templates.get_template("report.md.jinja").render(values) + "\n")
    return run_dir / "report.md"


def _markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows with the same keys as a Markdown table."""
    lines = [rows[0], ["---"] * len(rows[0]), *(map(evaluation.format_value, row.values()) for row in rows)]
    cells = ([" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
