"""A run's log, handed to the trackers that people use: TensorBoard and W&B, after the run or while it goes on.

Neither is woven into training: both read what lies in the run's folder, and can be called again whenever there is more.
"""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from tinystories_lab.compare import bytes_per_token
from tinystories_lab.review import bits_per_byte
from tinystories_lab.runlog import Row, read_log, read_rows
from tinystories_lab.workspace import load_config

_WANDB_SETTINGS = {"silent": True, "console": "off", "disable_git": True, "x_disable_stats": True}


def to_tensorboard(run_dir: str | Path) -> Path:
    """Write a run's log, configuration and samples to its folder `tensorboard`, and return that: `tensorboard --logdir` takes it.

    The event file is written whole and takes the place of the one before, so that no point is there twice and a step
    that was run again is there once. TensorBoard's own relative time is the time of training. Raises ModuleNotFoundError
    where TensorBoard is not installed, FileNotFoundError where the run has no config.yaml or no rows yet.
    """
    with _asking_for("tensorboard"):
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams
    run_dir = Path(run_dir)
    config, rows = _read_run(run_dir)
    choices = {key: config[key] for key in ("preset", "source")} | config["model"] | config["train"]
    began = datetime.fromisoformat(config["sessions"][0]["started"]).timestamp()
    folder = run_dir / "tensorboard"
    before = list(folder.glob("events.out.tfevents.*"))
    with SummaryWriter(folder) as writer:
        for summary in hparams(choices, dict.fromkeys(["val_loss", "val_bits_per_byte"])):  # names of what to compare
            writer.file_writer.add_summary(summary)
        writer.add_text("config", f"```yaml\n{yaml.safe_dump(config, sort_keys=False)}```")
        for row in rows:
            for name, value in _figures_of(row).items():
                writer.add_scalar(name, value, row["step"], began + row["seconds"])
        for number, sample in enumerate(read_rows(run_dir / "samples.jsonl")):
            writer.add_text(f"stories from {sample['when']} training", sample["story"], number)
    for path in before:
        path.unlink()
    return folder


def to_wandb(run_dir: str | Path, project: str = "tinystories-lab", online: bool = False) -> Path:
    """Hand a run's log, configuration and samples to W&B; returns the folder of its record, which `wandb sync` takes.

    Offline, the default, needs no account and no network: the record in the run's folder `wandb` is written whole and
    takes the place of the one before. Online needs `wandb login`; rows from the step on that W&B has not seen are added,
    and what a resumed run wrote again stays as it was sent first. Either way it is the same run there, whatever the
    session or machine. Raises ModuleNotFoundError where W&B is not installed, FileNotFoundError as `to_tensorboard`.
    """
    with _asking_for("wandb"):
        from wandb import Settings, Table, init
    run_dir = Path(run_dir)
    config, rows = _read_run(run_dir)
    run_id = hashlib.sha256(f"{run_dir.name} {config['sessions'][0]['started']}".encode()).hexdigest()[:16]
    for before in run_dir.glob(f"wandb/offline-run-*-{run_id}"):
        shutil.rmtree(before)
    how = {"mode": "online", "resume": "allow"} if online else {"mode": "offline"}
    about = {"project": project, "id": run_id, "name": run_dir.name, "config": config, "dir": run_dir}
    with init(**about, **how, reinit="create_new", settings=Settings(**_WANDB_SETTINGS)) as run:
        for row in rows:
            if row["step"] >= run.step:
                run.log(_figures_of(row), step=row["step"])
        samples = [[sample["when"], sample["story"]] for sample in read_rows(run_dir / "samples.jsonl")]
        run.summary["stories"] = Table(columns=["when", "story"], data=samples)
        return Path(run.dir).parent


@contextmanager
def _asking_for(package: str) -> Iterator[None]:
    """Where an import fails, say which package to install."""
    try:
        yield
    except ImportError as error:
        raise ModuleNotFoundError(
            f"{package} is not installed: `pip install {package}`, then call this again"
        ) from error


def _read_run(run_dir: Path) -> tuple[dict[str, Any], list[Row]]:
    """The configuration and the log, with `val_bits_per_byte` beside each `val_loss`."""
    config, rows = load_config(run_dir), read_log(run_dir / "loss.jsonl")
    if not rows:
        raise FileNotFoundError(
            f"no rows in {run_dir / 'loss.jsonl'} yet: run 03_train (or `train` in the shell) first"
        )
    size = bytes_per_token(run_dir)
    return config, [
        row | {"val_bits_per_byte": bits_per_byte(row["val_loss"], size)} if "val_loss" in row else row for row in rows
    ]


def _figures_of(row: Row) -> dict[str, float]:
    """All that a row says of its step, under the log's own names."""
    return {name: value for name, value in row.items() if name != "step" and value is not None}
