"""The same five stages from a shell: python -m tinystories_lab [run|prepare|tokenizer|train|generate|retrospective|export]."""

import argparse
import contextlib
import io
import os
import sys
import time
import warnings
from pathlib import Path

import torch

from tinystories_lab.presets import PRESET_VARIABLE, PRESETS
from tinystories_lab.ranks import from_first_rank, joined, rank, ranks
from tinystories_lab.runlog import read_rows
from tinystories_lab.stages import COMMANDS, STAGES, fetch, has_data, mirror
from tinystories_lab.words import PROMPTS
from tinystories_lab.workspace import move_aside, plan_workspace


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 1 with one sentence why not, 2 wrong usage, 130 stopped."""
    with joined():
        together = ranks() > 1
        # The first process speaks for all.
        with contextlib.nullcontext() if rank() == 0 else contextlib.redirect_stdout(io.StringIO()):
            status = run(arguments)
    if together:  # gloo's threads let go of tensors late, and abort a Python that is being taken down meanwhile
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def run(arguments: list[str] | None) -> int:
    """What `main` does in each of the processes."""
    parser = argparse.ArgumentParser(
        prog="tinystories-lab" if Path(sys.argv[0]).stem == "tinystories-lab" else "python -m tinystories_lab",
        description="Train a small language model on stories, in five stages; `run`, the default, is all of them.",
        epilog="Several GPUs: torchrun --nproc_per_node=N -m tinystories_lab train ... Finished work is not done again, and training goes on from its last checkpoint. All files lie in "
        "data/ and runs/ below the current folder.\n\n"
        + "\n".join(f"  {name:14}{stage.__doc__}" for name, stage in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", nargs="?", default="run", choices=["run", *COMMANDS])
    parser.add_argument(
        "--preset",
        default="auto",
        metavar="P",
        help=f"{', '.join(PRESETS)}, or auto: ${PRESET_VARIABLE}, else by the hardware",
    )
    parser.add_argument(
        "--source",
        default="auto",
        metavar="S",
        help="tinystories, toyland, a .txt, .jsonl or .parquet file (.gz too), a folder of such, or owner/name on the Hub",
    )
    parser.add_argument("--run", default="auto", metavar="NAME", help="folder below runs/ (default: <source>-<preset>)")
    parser.add_argument(
        "--data", default="auto", metavar="NAME", help="folder below data/ (default: <source>-<preset>)"
    )
    parser.add_argument(
        "--mirror",
        metavar="DIR",
        help="a folder on another disk: run and data are copied there, and fetched from there",
    )
    parser.add_argument(
        "--fresh", action="store_true", help="start the run anew: its folder is moved aside first, nothing is deleted"
    )
    options = parser.parse_args(arguments)
    if options.fresh and options.stage not in ("run", "train"):
        parser.error("--fresh starts a run anew: it goes with run or train")
    if options.stage != "train" and ranks() > 1:
        parser.error(f"{ranks()} processes can only train: run {options.stage} without torchrun")
    warnings.showwarning = lambda message, *_: print(f"note: {message}", file=sys.stderr)
    started, saved = time.perf_counter(), None
    try:
        lab = plan_workspace(Path(), options.preset, options.source, options.run, options.data, options.mirror)
        saved = lab.run_dir / "last.pt"
        print(f"preset {lab.preset.name}, source {lab.source}: {lab.data_dir} -> {lab.run_dir}")
        if rank() == 0:
            for aside in move_aside(lab) if options.fresh else []:
                print(f"the run so far was moved aside to {aside}")
            fetch(lab)
        from_first_rank(None)  # the others wait for its data
        stages = list(STAGES.values()) if options.stage == "run" else [COMMANDS[options.stage]]
        if options.stage == "run" and has_data(lab) and not (lab.data_dir / "stories").exists():
            stages = stages[2:]  # the data was fetched, and the stories it was made of are not needed
        for stage in stages:
            stage(lab)
        if rank() == 0:
            mirror(lab)
    except (OSError, ValueError, FloatingPointError, torch.OutOfMemoryError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        kept = f"training is saved in {saved}" if saved and saved.exists() else "finished stages are kept"
        print(f"\nstopped; {kept}; the same command goes on from there", file=sys.stderr)
        return 130
    if options.stage in ("run", "generate"):
        told = [row for row in read_rows(lab.run_dir / "samples.jsonl") if row["when"] == "after"][: len(PROMPTS)]
        print(f"\ndone in {time.perf_counter() - started:.0f} s; the five stories:")
        print("\n\n".join(row["story"] + ("" if row["ended"] else " ...") for row in told))
    return 0


if __name__ == "__main__":
    sys.exit(main())
