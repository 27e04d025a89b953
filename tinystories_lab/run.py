"""The settings of a run, with presets; its folders; and config.yaml, which records everything needed to repeat it."""

import os
import platform
import re
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from tinystories_lab import __version__
from tinystories_lab.config import TrainConfig, check_ranges, check_seq_len
from tinystories_lab.device import choose_device, choose_dtype
from tinystories_lab.files import atomic_write
from tinystories_lab.loader import BinInfo
from tinystories_lab.model import GPTConfig

PRESET_VARIABLE = "TINYSTORIES_LAB_PRESET"
_SESSION_FIELDS = {"started", "device", "device_name", "dtype", "versions"}
_RANGES = {"max_stories": (2, 10**9), "tokenizer_stories": (1, 10**9), "max_tokens": (1, 10**12)}
_RANGES |= {"sample_tokens": (1, 10**6)}


@dataclass(frozen=True)
class Preset:
    """All settings of a run. The defaults are the chapter's. Raises ValueError for a value out of range."""

    name: str = "book"
    source: str = "tinystories"
    max_stories: int | None = None  # largest number of stories to read; None means all
    tokenizer_stories: int = 100_000  # stories to train the tokenizer on
    max_tokens: int | None = 200_000_000  # largest number of tokens in train.bin; None means all
    sample_tokens: int = 120  # largest number of new tokens in a kept sample
    model: GPTConfig = field(default_factory=GPTConfig)  # a small corpus gives a smaller vocabulary than vocab_size
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        check_ranges(self, _RANGES)
        check_seq_len(self.train.seq_len, self.model.max_len)


_FAST = Preset(  # the same data, tokens and size, but better training: tests/benchmarks/RECIPE.md measures each change
    name="fast",
    model=GPTConfig(n_head=5),  # each head has 64 values
    train=TrainConfig(optimizer="muon", muon_lr=0.01, peak_lr=6e-3, warmup_steps=250, seq_len_start=64),
)
_TINY = Preset(  # built-in stories, about a minute on two CPU cores
    name="tiny",
    source="toyland",
    max_stories=20_000,
    tokenizer_stories=20_000,
    max_tokens=None,
    sample_tokens=200,  # a whole story
    model=GPTConfig(vocab_size=1_536, n_layer=2, n_head=2, d_model=128, max_len=256),
    train=TrainConfig(
        batch_size=8,  # with so few tokens, many small steps teach more than few large steps
        seq_len=160,  # every built-in story fits
        sampling="stories",  # so the model sees each story from its first word, and who it is about
        total_steps=630,
        warmup_steps=25,
        optimizer="normuon",
        muon_lr=0.01,
        peak_lr=1.2e-2,
        beta1=0.8,
        beta2=0.99,  # averages squared gradients over more steps, because the batches are small
        log_every=10,
        eval_every=100,
        eval_batches=12,
        save_every=100,
        keep_every=400,
    ),
)
_SMALL = replace(  # about ten minutes on two CPU cores, on built-in stories or on thousands of real ones
    _TINY,
    name="small",
    max_stories=100_000,
    sample_tokens=250,
    model=GPTConfig(vocab_size=4_096, n_layer=4, n_head=3, d_model=192, max_len=256),
    train=replace(
        _TINY.train,
        seq_len=256,
        total_steps=1_400,
        warmup_steps=50,
        muon_lr=7e-3,
        log_every=20,
        eval_every=200,
        eval_batches=20,
        save_every=200,
        keep_every=700,
    ),
)
PRESETS = {preset.name: preset for preset in (_TINY, _SMALL, Preset(), _FAST)}


def _choose_preset(name: str = "auto") -> Preset:
    """Return a preset. "auto" means $TINYSTORIES_LAB_PRESET if set, otherwise `tiny` on a CPU and `book` on a GPU."""
    if name == "auto":
        name = os.environ.get(PRESET_VARIABLE) or ("tiny" if choose_device()[0].type == "cpu" else "book")
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: use one of {', '.join(PRESETS)}, or auto")
    return PRESETS[name]


@dataclass(frozen=True)
class Workspace:
    """The settings of a run, its two folders, and a folder on another disk for their copies, or None."""

    preset: Preset
    source: str
    data_dir: Path
    run_dir: Path
    mirror_root: Path | None = None

    @property
    def model_config(self) -> GPTConfig:
        """The preset's model, with the vocabulary of train.bin if that exists."""
        info = BinInfo.load(self.data_dir / "train.bin")
        return replace(self.preset.model, vocab_size=info.vocab_size) if info else self.preset.model

    def with_train_config(self, **changes: Any) -> "Workspace":
        """Return a copy with a changed TrainConfig, as in `with_train_config(total_steps=500)`."""
        return replace(self, preset=replace(self.preset, train=replace(self.preset.train, **changes)))


def plan_workspace(
    root: str | Path,
    preset: str = "auto",
    source: str = "auto",
    run: str = "auto",
    data: str = "auto",
    mirror_root: str | Path | None = None,
) -> Workspace:
    """Return the workspace of a run below `root`: data/<data> and runs/<run>, both named <source>-<preset> by default.

    `mirror_root` is a folder on another disk for copies (see `Mirror`). A `~` at the start of a path is the home folder.
    No folder is made yet. Raises ValueError for an unknown preset, for a run or data name that is not a plain folder
    name, and for a mirror that is not separate from `root`.
    """
    root, chosen = Path(root).expanduser(), _choose_preset(preset)
    source = chosen.source if source == "auto" else os.path.expanduser(source)
    default = f"{_short_name(source)}-{chosen.name}"
    names = {"data": default if data == "auto" else data, "run": default if run == "auto" else run}
    for kind, name in names.items():
        if name in ("", ".", "..") or Path(name).name != name:
            raise ValueError(f"the {kind} name is {name!r}; it must be a plain folder name, such as {default!r}")
    mirror_root = Path(mirror_root).expanduser() if mirror_root else None
    if mirror_root and overlap(root, mirror_root):  # a copy could replace its own source
        needed = "the mirror must be a folder outside of the workspace, best on another disk"
        raise ValueError(f"the mirror {mirror_root} and the workspace {root.resolve()} are not separate; {needed}")
    return Workspace(chosen, source, root / "data" / names["data"], root / "runs" / names["run"], mirror_root)


def overlap(one: str | Path, other: str | Path) -> bool:
    """Return whether two folders are the same or one lies in the other, also through links."""
    one, other = (Path(os.path.realpath(path)) for path in (one, other))
    return one == other or one in other.parents or other in one.parents


def _short_name(source: str) -> str:
    """Return a folder name for a source: the name of its file or folder, or owner-name for a data set of the Hub."""
    is_file = re.search(r"\.(txt|jsonl|parquet)(\.gz)?$", source)
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*(:.+)?", source, re.ASCII) and not is_file:
        return re.sub(r"[^\w.-]+", "-", source)
    return Path(source).name.split(".")[0] or "stories"


def save_config(lab: Workspace) -> None:
    """Write config.yaml: everything needed to repeat the run, including versions and device.

    It lists all sessions. Each has the settings of TrainConfig that it `changed`, with the old and the new value.
    """
    path = lab.run_dir / "config.yaml"
    before = load_config(lab.run_dir) if path.exists() else {"train": {}, "sessions": []}
    device, device_name = choose_device()
    versions = {"python": platform.python_version(), "tinystories_lab": __version__}
    session = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": str(device),
        "device_name": device_name,
        "dtype": str(choose_dtype(device)[0]).removeprefix("torch."),
        "versions": versions | {name: version(name) for name in ("torch", "numpy", "datasets", "tokenizers")},
    }
    choices = asdict(replace(lab.preset, source=lab.source, model=lab.model_config))
    old = before["train"]
    if changed := {name: [old[name], new] for name, new in choices["train"].items() if old.get(name, new) != new}:
        session["changed"] = changed
    info = BinInfo.load(lab.data_dir / "train.bin")
    config = {
        "preset": choices.pop("name"),
        "source": choices.pop("source"),
        "data": {"name": lab.data_dir.name} | (asdict(info) if info else {}),
        **choices,
        "sessions": [*before["sessions"], session],
    }
    with atomic_write(path, "w") as file:
        yaml.safe_dump(config, file, sort_keys=False)


def load_config(run_dir: str | Path) -> dict[str, Any]:
    """Return the content of a run's config.yaml, with current names for the settings of older versions.

    Raises FileNotFoundError if there is no file, and ValueError if it is damaged or not a run's config.
    """
    path, advice = Path(run_dir) / "config.yaml", "fix it, or remove it and train again"
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: run 03_train (or `train` in the shell) first")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, or a date such as 2026-99-99
        raise ValueError(f"{path} is not readable YAML ({error}): {advice}") from error
    try:
        model, train = GPTConfig.from_dict(config["model"]), TrainConfig.from_dict(config["train"])
        for name in ("preset", "source"):
            if not isinstance(config[name], str):
                raise TypeError(f"{name} must be a string")
        if not isinstance(config["data"]["name"], str):
            raise TypeError("the name of data must be a string")
        for session in config["sessions"]:
            if not isinstance(session["versions"], dict) or not session.keys() >= _SESSION_FIELDS:
                raise TypeError(f"each session needs {', '.join(sorted(_SESSION_FIELDS))}")
        if len(config["sessions"]) < 1:
            raise TypeError("there is no session")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        needed = "preset, source, data, model, train and sessions"
        raise ValueError(f"{path} is not a run's config ({error!r}); it needs {needed}: {advice}") from error
    return config | {"model": asdict(model), "train": asdict(train)}
