"""Where a run lives: its two folders, how it starts anew there, and the record that repeats it, `config.yaml`."""

import platform
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from tinystories_lab import __version__
from tinystories_lab.device import choose_device, choose_dtype
from tinystories_lab.files import replace_whole
from tinystories_lab.model import GPTConfig
from tinystories_lab.presets import Preset, choose_preset
from tinystories_lab.session import one_writer
from tinystories_lab.sources import short_name
from tinystories_lab.tokenizer import BinInfo


@dataclass(frozen=True)
class Workspace:
    """A run's choices, its two folders, and where on another disk copies of them are kept, if anywhere."""

    preset: Preset
    source: str
    data_dir: Path
    run_dir: Path
    mirror_root: Path | None = None

    @property
    def model_config(self) -> GPTConfig:
        """The preset's model with the vocabulary that train.bin was written with."""
        info = BinInfo.of(self.data_dir / "train.bin")
        return replace(self.preset.model, vocab_size=info.vocab_size) if info else self.preset.model

    def with_recipe(self, **changes: Any) -> "Workspace":
        """The same with such changes to the preset's TrainConfig, as in `with_recipe(total_steps=500)`."""
        return replace(self, preset=replace(self.preset, train=replace(self.preset.train, **changes)))


def plan_workspace(
    root: str | Path,
    preset: str = "auto",
    source: str = "auto",
    run: str = "auto",
    data: str = "auto",
    mirror_root: str | Path | None = None,
) -> Workspace:
    """Lay out a run below `root`: data/<data> and runs/<run>, both named <source>-<preset> unless told otherwise.

    `mirror_root` is a folder on another disk for copies (see `Mirror`). Makes no folder yet. Raises ValueError for an unknown preset, or a name that is not a plain folder name.
    """
    chosen = choose_preset(preset)
    source = chosen.source if source == "auto" else source
    usual = f"{short_name(source)}-{chosen.name}"
    names = {"data": usual if data == "auto" else data, "run": usual if run == "auto" else run}
    for what, name in names.items():
        if name in ("", ".", "..") or Path(name).name != name:
            raise ValueError(f"the {what} name is {name!r}; it must be a plain folder name, such as {usual!r}")
    folders = Path(root) / "data" / names["data"], Path(root) / "runs" / names["run"]
    return Workspace(chosen, source, *folders, Path(mirror_root) if mirror_root else None)


def move_aside(workspace: Workspace) -> list[Path]:
    """Move the run's folder, and its copy on the mirror, to a new name beside it, so that the run can start anew.

    Deletes nothing; returns the new places. Raises BlockingIOError while a session trains the run.
    """
    folders = [workspace.run_dir]
    if workspace.mirror_root:
        folders.append(workspace.mirror_root / "runs" / workspace.run_dir.name)
    moved = []
    for folder in folders:
        if folder.is_dir():
            with one_writer(folder):
                aside = folder.with_name(f"{folder.name}-until-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}")
                moved.append(folder.rename(aside))
    return moved


def save_config(workspace: Workspace) -> None:
    """Write config.yaml: everything needed to repeat the run, versions and device included.

    Earlier sessions stay listed, each with what it `changed` of the recipe: the value before, and its own.
    """
    path = workspace.run_dir / "config.yaml"
    before = load_config(workspace.run_dir) if path.exists() else {"train": {}, "sessions": []}
    device, device_name = choose_device()
    packages = ("torch", "numpy", "datasets", "tokenizers")
    session = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": str(device),
        "device_name": device_name,
        "dtype": str(choose_dtype(device)[0]).removeprefix("torch."),
        "versions": {"python": platform.python_version(), "tinystories_lab": __version__}
        | {package: version(package) for package in packages},
    }
    choices = asdict(replace(workspace.preset, source=workspace.source, model=workspace.model_config))
    old = before["train"]
    if changed := {key: [old[key], new] for key, new in choices["train"].items() if old.get(key, new) != new}:
        session["changed"] = changed
    info = BinInfo.of(workspace.data_dir / "train.bin")
    config = {
        "preset": choices.pop("name"),
        "source": choices.pop("source"),
        "data": {"name": workspace.data_dir.name} | (asdict(info) if info else {}),
        **choices,
        "sessions": [*before["sessions"], session],
    }
    with replace_whole(path, "w") as file:
        yaml.safe_dump(config, file, sort_keys=False)


def load_config(run_dir: str | Path) -> dict[str, Any]:
    """Read a run's config.yaml. Raises FileNotFoundError or ValueError, saying what makes it."""
    path = Path(run_dir) / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: run 03_train (or `train` in the shell) first")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable YAML ({error}): mend it, or remove it and train again") from error
    kinds = {"train": dict, "sessions": list}
    if not isinstance(config, dict) or any(not isinstance(config.get(key), kind) for key, kind in kinds.items()):
        raise ValueError(
            f"{path} is not a run's config: it needs preset, model, train and sessions; remove it and train again"
        )
    return config
