"""What a run is: every choice in one place, where it lives on disk, and the record that repeats it."""

import os
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
from tinystories_lab.recipe import TrainConfig
from tinystories_lab.session import one_writer
from tinystories_lab.sources import short_name
from tinystories_lab.tokenizer import BinInfo

PRESET_VARIABLE = "TINYSTORIES_LAB_PRESET"
RECORDED_PACKAGES = ("torch", "numpy", "datasets", "tokenizers")


@dataclass(frozen=True)
class Preset:
    """Every choice of a run. `model.vocab_size` is the most the tokenizer may learn; a small corpus gives fewer."""

    name: str
    source: str
    max_stories: int | None  # read at most so many; None is all
    tokenizer_stories: int  # learn the tokenizer on so many
    max_tokens: int | None  # write at most so many to train.bin; None is all
    sample_tokens: int  # the most new tokens in a kept sample: the chapter's 120, or a whole story
    model: GPTConfig
    train: TrainConfig


BOOK = Preset(
    name="book",  # the chapter's run
    source="tinystories",
    max_stories=None,
    tokenizer_stories=100_000,
    max_tokens=200_000_000,
    sample_tokens=120,
    model=GPTConfig(),
    train=TrainConfig(),
)
PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            name="tiny",  # built-in stories in about a minute on 2 cores
            source="toyland",
            max_stories=20_000,
            tokenizer_stories=20_000,
            max_tokens=None,
            sample_tokens=200,
            model=GPTConfig(vocab_size=2_048, n_layer=2, n_head=4, d_model=128, max_len=128),
            train=TrainConfig(
                batch_size=8,  # many small steps: at so few tokens they teach more than few large ones
                seq_len=128,
                total_steps=800,
                warmup_steps=50,
                peak_lr=5e-3,
                beta2=0.99,  # small batches: average the squares for longer
                log_every=10,
                eval_every=100,
                eval_batches=12,
                save_every=100,
                keep_every=400,
            ),
        ),
        BOOK,
        replace(  # its data, tokens and size with a better recipe: tests/benchmarks/RECIPE.md has what each part gave
            BOOK,
            name="fast",
            model=replace(BOOK.model, n_head=5),  # of 64 values each
            train=replace(BOOK.train, optimizer="muon", peak_lr=6e-3, warmup_steps=250, first_seq_len=64),
        ),
    )
}


def choose_preset(name: str = "auto") -> Preset:
    """The preset of that name; "auto" chooses one.

    That is what the environment variable TINYSTORIES_LAB_PRESET says, else `book` where there is a GPU (MPS too) and
    `tiny` where there is none. Raises ValueError for a name that is not known.
    """
    if name == "auto":
        name = os.environ.get(PRESET_VARIABLE) or ("tiny" if choose_device()[0].type == "cpu" else "book")
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: take one of {', '.join(PRESETS)}, or auto")
    return PRESETS[name]


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
    device, _ = choose_device()
    before = load_config(workspace.run_dir) if path.exists() else {"train": {}, "sessions": []}
    recipe = asdict(workspace.preset.train)
    session = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": str(device),
        "device_name": choose_device()[1],
        "dtype": str(choose_dtype(device)[0]).removeprefix("torch."),
        "versions": {"python": platform.python_version(), "tinystories_lab": __version__}
        | {package: version(package) for package in RECORDED_PACKAGES},
    }
    old = before["train"]
    if changed := {key: [old[key], value] for key, value in recipe.items() if old.get(key, value) != value}:
        session["changed"] = changed
    info = BinInfo.of(workspace.data_dir / "train.bin")
    config = {
        "preset": workspace.preset.name,
        "source": workspace.source,
        "data": {"name": workspace.data_dir.name} | (asdict(info) if info else {}),
        "max_stories": workspace.preset.max_stories,
        "tokenizer_stories": workspace.preset.tokenizer_stories,
        "max_tokens": workspace.preset.max_tokens,
        "sample_tokens": workspace.preset.sample_tokens,
        "model": asdict(workspace.model_config),
        "train": recipe,
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
