"""The five stages from a shell: python -m tinystories_lab [run|prepare|tokenizer|train|generate|retrospective|export]."""

import argparse
import contextlib
import io
import os
import sys
import time
import warnings
from pathlib import Path

import torch

from tinystories_lab.data.text import PROMPTS
from tinystories_lab.device import broadcast, init_distributed, rank, world_size
from tinystories_lab.files import read_rows
from tinystories_lab.pipeline import COMMANDS, STAGES, has_data, move_aside, restore, update_mirror
from tinystories_lab.run import PRESET_VARIABLE, PRESETS, plan_workspace


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns the exit status: 0 success, 1 failure with one sentence, 2 wrong usage, 130 stopped."""
    with init_distributed():
        several = world_size() > 1
        with contextlib.nullcontext() if rank() == 0 else contextlib.redirect_stdout(io.StringIO()):
            status = _run(arguments)
    if several:  # gloo's threads release tensors late, and abort if Python is shutting down at that moment
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tinystories-lab" if Path(sys.argv[0]).stem == "tinystories-lab" else "python -m tinystories_lab",
        description="Train a small language model on stories, in five stages; `run`, the default, is all of them.",
        epilog="\n".join(f"  {name:14}{stage.__doc__}" for name, stage in COMMANDS.items())
        + "\n\nFinished work is not done again, and training resumes from its last checkpoint. All files are in data/ and "
        "runs/ below the current folder.\nSeveral GPUs: torchrun --nproc_per_node=N -m tinystories_lab train ...",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", nargs="?", default="run", choices=["run", *COMMANDS])
    presets = f"{', '.join(PRESETS)}, or auto: ${PRESET_VARIABLE} if set, otherwise chosen by the hardware"
    parser.add_argument("--preset", default="auto", metavar="P", help=presets)
    sources = "tinystories, toyland, a .txt, .jsonl or .parquet file (.gz too), a folder of such files, or owner/name on the Hub"
    parser.add_argument("--source", default="auto", metavar="S", help=sources)
    parser.add_argument("--run", default="auto", metavar="NAME", help="folder below runs/ (default: <source>-<preset>)")
    parser.add_argument(
        "--data", default="auto", metavar="NAME", help="folder below data/ (default: <source>-<preset>)"
    )
    mirrors = "a folder on another disk: run and data are copied there, and restored from there"
    parser.add_argument("--mirror", metavar="DIR", help=mirrors)
    fresh = "start the run again from nothing: its folder is moved aside first, nothing is deleted"
    parser.add_argument("--fresh", action="store_true", help=fresh)
    return parser


def _run(arguments: list[str] | None) -> int:
    """What `main` does in each process."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.fresh and options.stage not in ("run", "train"):
        parser.error("--fresh starts a run again: use it with run or train")
    if options.stage != "train" and world_size() > 1:
        parser.error(f"{world_size()} processes can only train: run {options.stage} without torchrun")
    warnings.showwarning = lambda message, *_: print(f"note: {message}", file=sys.stderr)
    started, saved = time.perf_counter(), None
    try:
        lab = plan_workspace(Path(), options.preset, options.source, options.run, options.data, options.mirror)
        saved = lab.run_dir / "last.pt"
        print(f"preset {lab.preset.name}, source {lab.source}: {lab.data_dir} -> {lab.run_dir}")
        if rank() == 0:
            for aside in move_aside(lab) if options.fresh else []:
                print(f"the old run was moved aside to {aside}")
            restore(lab)
        broadcast(None)  # the other ranks wait until the data is there
        stages = list(STAGES.values()) if options.stage == "run" else [COMMANDS[options.stage]]
        if options.stage == "run" and has_data(lab) and not (lab.data_dir / "stories").exists():
            stages = stages[2:]  # the data was restored, and its stories are not needed
        for stage in stages:
            stage(lab)
        if rank() == 0:
            update_mirror(lab)
    except (OSError, ValueError, FloatingPointError, torch.OutOfMemoryError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        kept = f"training is saved in {saved}" if saved and saved.exists() else "finished stages are kept"
        print(f"\nstopped; {kept}; the same command continues from there", file=sys.stderr)
        return 130
    if options.stage in ("run", "generate"):
        samples = [row for row in read_rows(lab.run_dir / "samples.jsonl") if row["when"] == "after"][: len(PROMPTS)]
        print(f"\ndone in {time.perf_counter() - started:.0f} s; five stories:")
        print("\n\n".join(row["story"] + ("" if row["ended"] else " ...") for row in samples))
    return 0


if __name__ == "__main__":
    sys.exit(main())
