"""A second copy of a run on a disk that may disappear, such as Google Drive, written in the background."""

import errno
import math
import os
import threading
import time
import warnings
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

from tinystories_lab.checkpoint import is_disk_failure, latest_checkpoint, read_step, require_same_run, run_checkpoints
from tinystories_lab.durability.identity import identity_of
from tinystories_lab.durability.lock import data_lock
from tinystories_lab.durability.manifest import (
    copy_in_place,
    is_recorded,
    keep_old,
    read_json,
    read_manifest,
    record,
    restore_files,
    write_json,
)
from tinystories_lab.files import aside, atomic_write, cached_sha256_of, sha256_of
from tinystories_lab.run import load_config, overlap

# Drive moves deleted and replaced files to its trash, which counts against the quota, and its renames are not atomic.
# So a small fixed set of files is rewritten in place. There are two pairs of last.pt and log: while one of them is
# being written, the other one is complete.
_MIRROR_SLOTS = {"last.0.pt": "loss.0.jsonl", "last.1.pt": "loss.1.jsonl"}
_RUN_FILES = ("config.yaml", "tokenizer.json", "samples.jsonl", "ratings.jsonl", "final.pt", "best.pt", "report.md")
_RUN_FILES += ("timelapse.jsonl", "loss_curve.png", "loss_by_tokens.png", "two_runs.png")
_DATA_FILES = ("tokenizer.json", "train.bin", "train.json", "val.bin", "val.json")
_POLL_SECONDS = 60  # the thread looks this often for changes that nobody announced
_FIRST_RETRY_SECONDS, _LAST_RETRY_SECONDS = 5, 300
_GIVE_UP_SECONDS, _CLOSE_SECONDS = 30, 600  # at the end: how long it retries a failing disk, and waits for a slow one


class Mirror:
    """Copies of a run and its data on another disk, in `root`/runs/<run> and `root`/data/<data>.

    `restore` copies back what this machine lacks. In a block `with mirror:`, a thread copies all changes after each
    `update()`, and once more at the end. Training never waits for it. If the disk fails, or disappears with the parent
    of `root`, `trouble` says why, and the thread tries again at growing intervals. `step` is the step of the newest
    complete checkpoint on the mirror, or None. "Mirrored" does not mean safe: Drive uploads its files some time later.
    """

    def __init__(self, run_dir: str | Path, data_dir: str | Path, root: str | Path) -> None:
        self.run_dir, self.data_dir, self.root = Path(run_dir), Path(data_dir), Path(root)
        self.mirror_dir = self.root / "runs" / self.run_dir.name
        self.data_mirror_dir = self.root / "data" / self.data_dir.name
        self.step: int | None = None
        self.trouble: str | None = None
        self._session = os.urandom(8).hex()
        self._is_announced = False  # whether the mirror has this session's id
        self._is_same_run = False  # whether the run here and the one on the mirror were found to be the same
        self._slots = [self.mirror_dir / name for name in _MIRROR_SLOTS]
        self._slot_steps: dict[Path, int] = {}
        self._wake, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
        for one, other in product((self.run_dir, self.data_dir), (self.mirror_dir, self.data_mirror_dir)):
            if overlap(one, other):
                raise ValueError(f"{one} and its mirror {other} are not separate: choose another folder for the mirror")

    def __str__(self) -> str:
        reached = "not mirrored yet" if self.step is None else f"mirrored to step {self.step:,}"
        return f"{reached} ({self.trouble})" if self.trouble else reached

    def restore(self) -> dict[str, Any] | None:
        """Copy what this machine lacks: a newer checkpoint with its log, and files of the run and its data.

        Returns the newest checkpoint of this machine and the mirror, loaded, or None if there is none. An old file that
        is replaced is kept as <name>.before-restore. Raises FileNotFoundError if the disk does not exist, OSError if it
        does not answer, and ValueError if there are checkpoints but none can be read, or if they are of another run.
        """
        self._require_disk()
        try:
            return self._restore()
        except OSError as error:
            if is_disk_failure(error):
                found = f"the disk of the mirror does not answer ({error.strerror})"
                message = f"{found}: mount it again, then run this again; nothing is damaged"
                raise OSError(error.errno, message, str(error.filename or self.root)) from error
            raise

    def _restore(self) -> dict[str, Any] | None:
        self._require_same_run()
        self._runs_on_other_data()
        recorded = read_manifest(self.mirror_dir)
        # A slot that is neither recorded nor readable is a first copy that was cut off: it was never a checkpoint.
        slots = [slot for slot in self._slots if slot.name in recorded or (read_step(slot) or -1) >= 0]
        path, checkpoint = latest_checkpoint([*run_checkpoints(self.run_dir), *slots]) or (None, None)
        if is_newer := path in slots:  # the log first: after an interruption, last.pt is still missing or older
            for source, name in ((self.mirror_dir / _MIRROR_SLOTS[path.name], "loss.jsonl"), (path, "last.pt")):
                if source.exists():
                    with atomic_write(self.run_dir / name) as copy:
                        copy.write(source.read_bytes())
                        keep_old(self.run_dir / name)
            print(f"restored the run from {self.mirror_dir}")
        restore_files(self.mirror_dir, self.run_dir, _RUN_FILES, replace=is_newer)
        self._restore_data()
        return checkpoint

    def _restore_data(self) -> None:
        """Copy data files that this machine lacks, unless it has files of other data."""
        recorded, there = read_manifest(self.data_mirror_dir), self.data_mirror_dir
        present = [name for name in _DATA_FILES if (self.data_dir / name).exists()]
        if len(present) == len(_DATA_FILES) or not any((there / name).exists() for name in _DATA_FILES):
            return
        with data_lock(self.data_dir):
            sha256 = {name: cached_sha256_of(self.data_dir / name) for name in present}
            if other := [name for name in present if recorded.get(name, {}).get("sha256") != sha256[name]]:
                found = f"{self.data_dir} has other data than {there} ({', '.join(other)} differ)"
                warnings.warn(f"{found}: nothing was restored there", stacklevel=5)
            else:
                restore_files(there, self.data_dir, _DATA_FILES)

    def _require_same_run(self) -> None:
        """Raise ValueError if the run on the mirror is another one than the run of this machine."""
        if not self._is_same_run:
            here, there = identity_of(self.run_dir), identity_of(self.mirror_dir)
            if here and there:
                require_same_run(there, here, f"the run in {self.mirror_dir}")
            self._is_same_run = here is not None

    def _runs_on_other_data(self) -> list[Path]:
        """Return the old runs on the mirror whose data there differs from this machine's and would be replaced.

        Raises ValueError if one of them has not been moved aside (see `move_aside`): it could not be resumed any more.
        """
        here, there = (read_json(folder / "train.json") for folder in (self.data_dir, self.data_mirror_dir))
        runs, is_other = [], here and there and here.get("sha256") != there.get("sha256")
        for config_path in self.root.glob("runs/*/config.yaml") if is_other else ():
            with suppress(FileNotFoundError, ValueError):  # a config that was cut off
                data = load_config(config_path.parent)["data"]
                if (data["name"], data.get("sha256")) == (self.data_dir.name, there.get("sha256")):
                    runs.append(config_path.parent)
        if current := [str(run) for run in runs if "-until-" not in run.name]:
            found = f"{', '.join(current)} was trained on other data in {self.data_mirror_dir} than {self.data_dir} has"
            raise ValueError(f"{found}: use another data name (`--data` in the shell)")
        return runs

    def __enter__(self) -> "Mirror":
        try:
            self._announce()
        except (OSError, ValueError) as error:
            self.trouble = str(error)
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self.update()
        self._thread.join(2)
        if self._thread.is_alive():
            print("waiting for the mirror's last copy ...")
            self._thread.join(_CLOSE_SECONDS)
        if self._thread.is_alive():
            self.trouble = f"the last copy was not finished after {_CLOSE_SECONDS} s"
        if self.trouble:
            warnings.warn(f"{self.mirror_dir} is out of date: {self}", stacklevel=2)

    def update(self) -> None:
        """Announce a change to the thread. Return at once."""
        self._wake.set()
        if self._thread.ident is None:  # it is not started earlier, because `restore` must come before any copy
            self._thread.start()

    def _work(self) -> None:
        retry, give_up = _FIRST_RETRY_SECONDS, math.inf
        while True:
            closing = self._closing.is_set()  # read before the copies, which then include every earlier change
            if closing:
                give_up = min(give_up, time.monotonic() + _GIVE_UP_SECONDS)
            self._wake.clear()
            try:
                self._copy_changes()
                self.trouble, retry = None, _FIRST_RETRY_SECONDS
                if closing:
                    return
                self._wake.wait(_POLL_SECONDS)
            except Exception as error:  # of any kind: training continues, and `trouble` says why
                self.trouble = str(error)
                if isinstance(error, BlockingIOError | ValueError) or time.monotonic() + retry > give_up:
                    return
                time.sleep(retry) if closing else self._closing.wait(retry)
                retry = min(2 * retry, _LAST_RETRY_SECONDS)

    def _require_disk(self) -> None:
        if not os.path.isdir(self.root.parent):  # false also for a dead mount, where Path.is_dir() may raise
            raise FileNotFoundError(errno.ENOENT, "that disk is not there: mount it again", str(self.root.parent))

    def _announce(self) -> None:
        """Make the folders, and write this session's id to writer.json.

        Raises BlockingIOError if it has the id of a session that started later: only the newest one mirrors. Raises
        ValueError if the mirror has another run.
        """
        self._require_disk()
        self._require_same_run()
        run, data = self.mirror_dir, self.data_mirror_dir
        # Each folder alone: with parents=True, a disk that disappears at this moment would be replaced by a folder.
        for folder in (self.root, run.parent, run, data.parent, data):
            folder.mkdir(exist_ok=True)
        session = read_json(run / "writer.json").get("session")
        if self._is_announced and session not in (None, self._session):
            raise BlockingIOError(f"a newer session mirrors to {run}: this session does not mirror any more")
        if session != self._session:
            write_json(run / "writer.json", {"session": self._session})
        self._is_announced = True

    def _copy_changes(self) -> None:
        """Copy everything that differs on the mirror."""
        self._announce()
        self._copy_checkpoint()
        if self._runs_on_other_data():  # these runs were moved aside, so their data is, too
            self.data_mirror_dir.rename(aside(self.data_mirror_dir))
            self.data_mirror_dir.mkdir()
        files = [(self.run_dir / name, self.mirror_dir / name) for name in _RUN_FILES]
        files += [(self.data_dir / name, self.data_mirror_dir / name) for name in _DATA_FILES]
        for source, target in files:
            if source.exists() and not is_recorded(source, target):
                with open(source, "rb") as file:
                    record(target, copy_in_place(file, target))

    def _copy_checkpoint(self) -> None:
        """Copy last.pt and the log into the older of the two pairs."""
        last, log = self.run_dir / "last.pt", self.run_dir / "loss.jsonl"
        if not last.exists():
            return
        if not self._slot_steps:
            self._slot_steps = {slot: read_step(slot) or -1 for slot in self._slots}
        older, newest = sorted(self._slots, key=self._slot_steps.__getitem__)
        if not is_recorded(last, newest) and (read_step(last) or -1) >= self._slot_steps[newest]:
            with open(last, "rb") as source:  # opened before the log is copied, so the log has every row up to its step
                if log.exists():
                    with open(log, "rb") as rows:
                        copy_in_place(rows, self.mirror_dir / _MIRROR_SLOTS[older.name])
                entry = copy_in_place(source, older)
            if sha256_of(older) != entry["sha256"]:
                raise OSError(errno.EIO, "the copy does not read back as it was written", str(older))
            newest, self._slot_steps[older] = older, read_step(older)
            record(newest, entry | {"step": self._slot_steps[newest]})
        self.step = self._slot_steps[newest]
