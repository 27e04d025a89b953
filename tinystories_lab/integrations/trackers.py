"""Export a run's log to TensorBoard or Weights & Biases (W&B). Call again while training continues to add new rows."""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from tinystories_lab.analysis.evaluation import bits_per_byte, bytes_per_token, read_samples
from tinystories_lab.files import read_log
from tinystories_lab.run import load_config


def to_tensorboard(run_dir: str | Path) -> Path:
    """Write a run's log, config and samples to its folder `tensorboard`, and return that folder.

    `tensorboard --logdir` shows the folder. A new event file replaces the earlier one, so each step is there once, with
    its latest values. Relative time in TensorBoard is training time. Raises ModuleNotFoundError if TensorBoard is not
    installed, and FileNotFoundError if the run has no config.yaml or no log yet.
    """
    with _required("tensorboard"):
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams
    run_dir = Path(run_dir)
    config, log = _read_run(run_dir)
    hyperparameters = {key: config[key] for key in ("preset", "source")} | config["model"] | config["train"]
    started = datetime.fromisoformat(config["sessions"][0]["started"]).timestamp()
    folder = run_dir / "tensorboard"
    earlier = list(folder.glob("events.out.tfevents.*"))
    with SummaryWriter(folder) as writer:
        for summary in hparams(hyperparameters, dict.fromkeys(["val_loss", "val_bits_per_byte"])):  # metrics to compare
            writer.file_writer.add_summary(summary)
        writer.add_text("config", f"```yaml\n{yaml.safe_dump(config, sort_keys=False)}```")
        for step, values in log.items():
            for name, value in values.items():
                writer.add_scalar(name, value, step, started + values["seconds"])
        for number, sample in enumerate(read_samples(run_dir)):
            writer.add_text(f"stories from {sample['when']} training", sample["story"], number)
    for path in earlier:
        path.unlink()
    return folder


def to_wandb(run_dir: str | Path, project: str = "tinystories-lab", online: bool = False) -> Path:
    """Record a run's log, config and samples with W&B, and return the folder of the record for `wandb sync`.

    Offline, the default, needs no account and no network. A new record in the run's folder `wandb` replaces the earlier
    one. Online needs `wandb login` and adds the rows that W&B does not have yet. If a resumed run logged a step again,
    W&B keeps the first values online. A run's id in W&B is the same in every session and on every machine. Raises
    ModuleNotFoundError if W&B is not installed, and FileNotFoundError if the run has no config.yaml or no log yet.
    """
    with _required("wandb"):
        from wandb import Settings, Table, init
    run_dir = Path(run_dir)
    config, log = _read_run(run_dir)
    run_id = hashlib.sha256(f"{run_dir.name} {config['sessions'][0]['started']}".encode()).hexdigest()[:16]
    for earlier in run_dir.glob(f"wandb/offline-run-*-{run_id}"):
        shutil.rmtree(earlier)
    options = {"project": project, "id": run_id, "name": run_dir.name, "config": config, "dir": run_dir}
    options |= {"mode": "online", "resume": "allow"} if online else {"mode": "offline"}
    quiet = Settings(silent=True, console="off", disable_git=True, x_disable_stats=True)
    with init(**options, reinit="create_new", settings=quiet) as run:
        for step, values in log.items():
            if step >= run.step:
                run.log(values, step=step)
        samples = [[sample["when"], sample["story"]] for sample in read_samples(run_dir)]
        run.summary["stories"] = Table(columns=["when", "story"], data=samples)
        return Path(run.dir).parent


@contextmanager
def _required(package: str) -> Iterator[None]:
    """Turn a failed import in the block into an error that says which package to install."""
    try:
        yield
    except ImportError as error:
        raise ModuleNotFoundError(f"{package} is not installed: `pip install {package}`, then try again") from error


def _read_run(run_dir: Path) -> tuple[dict[str, Any], dict[int, dict[str, float]]]:
    """Return a run's config and the values of each logged step, with `val_bits_per_byte` if it has a `val_loss`."""
    path = run_dir / "loss.jsonl"
    config, rows = load_config(run_dir), read_log(path)
    if not rows:
        raise FileNotFoundError(f"{path} has no rows yet: run 03_train (or `train` in the shell) first")
    size, log = bytes_per_token(run_dir), {}
    for row in rows:
        values = {name: value for name, value in row.items() if name != "step" and value is not None}
        if "val_loss" in values:
            values["val_bits_per_byte"] = bits_per_byte(values["val_loss"], size)
        log[row["step"]] = values
    return config, log
