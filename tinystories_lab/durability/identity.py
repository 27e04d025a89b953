"""What makes a run this run and no other. It is asked before anything is copied, restored, generated or reported."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from tinystories_lab.checkpoint import read_unverified, run_identity
from tinystories_lab.loader import BinInfo
from tinystories_lab.run import Workspace, load_config


def identity_of(run_dir: str | Path) -> dict[str, Any] | None:
    """Return what makes the run in a folder this run (see `run_identity`), or None if there is no run yet.

    It is read from a checkpoint, or from config.yaml if there is no readable one. The folder may be one on a mirror.
    """
    run_dir = Path(run_dir)
    for path in (*sorted(run_dir.glob("last*.pt")), run_dir / "final.pt"):
        with suppress(LookupError, TypeError, ValueError, AttributeError):  # a damaged checkpoint
            if content := read_unverified(path):
                return run_identity(content)
    try:
        config = load_config(run_dir)
    except (FileNotFoundError, ValueError):
        return None
    data = config["data"]
    fingerprints = {"data_sha256": data.get("sha256"), "tokenizer_sha256": data.get("tokenizer_sha256")}
    known = {name: value for name, value in fingerprints.items() if isinstance(value, str)}
    return run_identity({"model_config": config["model"], "train_config": config["train"]} | known)


def require_run_data(lab: Workspace) -> None:
    """Raise ValueError if the run of a workspace was trained on other data than its data folder has now."""
    info, identity = BinInfo.load(lab.data_dir / "train.bin"), identity_of(lab.run_dir)
    if info and identity:
        here = {"data": info.sha256[:12], "tokenizer": info.tokenizer_sha256[:12]}
        if any(identity.get(name, value) != value for name, value in here.items()):
            found = f"{lab.run_dir} was trained on other data than {lab.data_dir} has ({info.source})"
            raise ValueError(f"{found}: name the run or the data that belong together (`--run`, `--data` in the shell)")
