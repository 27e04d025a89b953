"""The command line: python -m tinystories_lab [run|prepare|tokenizer|train|generate|retrospective|export]."""

import argparse
import contextlib
import io
import os
import shutil
import signal
import sys
import textwrap
import time
import warnings
from pathlib import Path


def _exit_at_once(number: int, _: object) -> None:
    """End the process. A KeyboardInterrupt inside `import torch` can be lost, or become another error."""
    print("\nstopped before the first stage", file=sys.stderr, flush=True)
    os._exit(128 + number)


_before = signal.getsignal(signal.SIGINT)
try:  # the imports take two seconds, in which Ctrl-C should be answered, too
    with contextlib.suppress(ValueError):  # outside of the main thread, which alone gets signals
        signal.signal(signal.SIGINT, _exit_at_once)
    import torch

    from tinystories_lab.analysis.evaluation import read_samples
    from tinystories_lab.analysis.report import RunSummary, outcome_text
    from tinystories_lab.data.text import PROMPTS
    from tinystories_lab.device import broadcast, init_distributed, rank, world_size
    from tinystories_lab.durability.shutdown import graceful_shutdown
    from tinystories_lab.files import Row
    from tinystories_lab.pipeline import COMMANDS, STAGES, has_data, move_aside, restore, update_mirror, write_results
    from tinystories_lab.run import PRESET_VARIABLE, PRESETS, Workspace, plan_workspace
finally:
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, _before)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Return the exit status.

    It is 0 for success, 1 for a failure, 2 for wrong usage, 130 after Ctrl-C, and 143 after SIGTERM.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that is not UTF-8 lacks some characters of the stories
    warnings.showwarning = lambda message, *_: print(f"note: {message}", file=sys.stderr)
    with init_distributed():
        several = world_size() > 1
        with contextlib.nullcontext() if rank() == 0 else contextlib.redirect_stdout(io.StringIO()):
            status = _run(arguments)
    if several:  # gloo's threads release tensors late, and abort if Python shuts down at that moment
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def _parser() -> argparse.ArgumentParser:
    stages = "\n".join(f"  {name:14}{stage.__doc__}" for name, stage in COMMANDS.items())
    notes = "Finished stages are not repeated, and training resumes from its last save. Files are in data/ and runs/."
    notes += "\nTo use several GPUs: torchrun --nproc_per_node=N -m tinystories_lab train ..."
    parser = argparse.ArgumentParser(
        prog="tinystories-lab" if Path(sys.argv[0]).stem == "tinystories-lab" else "python -m tinystories_lab",
        description="Train a small language model on stories, in five stages. The default, `run`, runs all of them.",
        epilog=f"{stages}\n\n{notes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", nargs="?", default="run", choices=["run", *COMMANDS])
    text = f"{', '.join(PRESETS)}, or auto: ${PRESET_VARIABLE} if set, otherwise chosen by the hardware"
    parser.add_argument("--preset", default="auto", metavar="P", help=text)
    text = "tinystories, toyland, a .txt, .jsonl or .parquet file (or .gz), a folder of these, or owner/name on the Hub"
    parser.add_argument("--source", default="auto", metavar="S", help=text)
    for option, parent in (("--run", "runs"), ("--data", "data")):
        text = f"folder below {parent}/ (default: <source>-<preset>)"
        parser.add_argument(option, default="auto", metavar="NAME", help=text)
    text = "tokens per sequence, for a corpus that is too small for the preset's"
    parser.add_argument("--seq-len", type=int, metavar="N", help=text)
    text = "folder on another disk, to which run and data are copied and from which they are restored"
    parser.add_argument("--mirror", metavar="DIR", help=text)
    text = "start the run again from nothing: its old folder is renamed, and nothing is deleted"
    parser.add_argument("--fresh", action="store_true", help=text)
    return parser


def _run(arguments: list[str] | None) -> int:
    """Do the work of `main` in one process."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.fresh and options.stage not in ("run", "train"):
        parser.error("--fresh starts a run again: use it with run or train only")
    if options.stage != "train" and world_size() > 1:
        parser.error(f"{world_size()} processes can only train: run {options.stage} without torchrun")
    started, failure, status, summary = time.perf_counter(), "", 1, None
    try:
        lab = plan_workspace(Path(), options.preset, options.source, options.run, options.data, options.mirror)
        if options.seq_len is not None:
            start = lab.preset.train.seq_len_start
            lab = lab.with_train_config(
                seq_len=options.seq_len, seq_len_start=start if start and start <= options.seq_len else None
            )
    except ValueError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    try:
        with graceful_shutdown():
            summary = _run_stages(lab, options.stage, options.fresh)
    except (OSError, ValueError, FloatingPointError, torch.OutOfMemoryError) as error:
        failure = str(error)
    except (KeyboardInterrupt, SystemExit) as stop:
        saved = lab.run_dir / "last.pt"
        kept = f"training is saved in {saved}" if saved.exists() else "finished stages are kept"
        failure = f"stopped; {kept}; the same command continues from there"
        status = stop.code if isinstance(stop, SystemExit) else 130
    if failure:  # here, because a progress bar ends only when the error is forgotten
        print(f"\n{failure}", file=sys.stderr)
        return status
    if options.stage in ("run", "generate"):
        print(f"\ndone in {time.perf_counter() - started:.0f} s\n")
        if summary:
            print(f"{outcome_text(summary)}\n")
        print("Five stories:\n")
        print("\n\n".join(_wrapped(row) for row in read_samples(lab.run_dir, "after")[: len(PROMPTS)]))
    if summary:
        print(f"\n{_next_steps(lab)}")
    return 0


def _wrapped(sample: Row) -> str:
    """Return a story for a terminal: its paragraphs joined, so that five stories fit on a screen."""
    text = " ".join(sample["story"].split()) + ("" if sample["ended"] else " ...")
    return textwrap.fill(text, min(120, shutil.get_terminal_size((120, 0)).columns), break_long_words=False)


def _next_steps(lab: Workspace) -> str:
    jupyter = ".venv/bin/jupyter" if Path(".venv/bin/jupyter").exists() else "jupyter"
    lines = {
        "loss curve": lab.run_dir / "loss_curve.png",
        "report": lab.run_dir / "report.md",
        "next": f"{jupyter} lab notebooks/ (or the badges in README.md, for Colab) shows how all of this works",
        "": "--source my_stories.txt trains on your own stories",
    }
    if lab.preset.name == "tiny":
        lines[""] += ", --preset small for ten minutes"
    return "\n".join(f"{name:12}{line}" for name, line in lines.items())


def _run_stages(lab: Workspace, stage: str, fresh: bool) -> RunSummary | None:
    """Run one stage, or all that are needed if it is "run". Return the summary of a whole run."""
    print(f"preset {lab.preset.name}, source {lab.source}: {lab.data_dir} -> {lab.run_dir}")
    if rank() == 0:
        for aside in move_aside(lab) if fresh else []:
            print(f"the old run was moved aside to {aside}")
        restore(lab)
    broadcast(None)  # the other ranks wait until the data is there
    *all_but_last, _ = STAGES.values()  # instead of the last one, `run` prints less
    stages = all_but_last if stage == "run" else [COMMANDS[stage]]
    if stage == "run" and has_data(lab) and not (lab.data_dir / "stories").exists():
        stages = stages[2:]  # the data was restored, so its stories are not needed
    for run_stage in stages:
        run_stage(lab)
    summary = write_results(lab) if stage == "run" else None
    if rank() == 0:
        update_mirror(lab)
    return summary


if __name__ == "__main__":
    sys.exit(main())
