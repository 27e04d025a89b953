"""A second copy of a run on a disk that may come and go, such as Drive, made in the background."""

import errno
import math
import os
import threading
import time
import warnings
from pathlib import Path

from tinystories_lab.checkpoint import MIRROR_SLOTS, latest_checkpoint, load_checkpoint, step_of
from tinystories_lab.copies import copy_in_place, fetch_files, is_listed, list_copy
from tinystories_lab.files import replace_whole
from tinystories_lab.session import Claim

# Drive keeps what is deleted or replaced in its trash, counted against the quota, and a rename is not atomic there: a
# small fixed set of files is rewritten in place. last.pt and the log go in pairs: while one pair is being written, the
# other is whole.
_SLOTS = dict(zip(MIRROR_SLOTS, ("loss.0.jsonl", "loss.1.jsonl"), strict=True))
_RUN_FILES = ("config.yaml", "tokenizer.json", "samples.jsonl", "ratings.jsonl", "final.pt", "report.md")
_RUN_FILES += ("loss_curve.png", "loss_by_tokens.png", "two_runs.png")
DATA_FILES = ("tokenizer.json", "train.bin", "train.json", "val.bin", "val.json")
_BEAT_SECONDS = 60  # how often a writer says that it lives
_FIRST_RETRY_SECONDS, _LAST_RETRY_SECONDS = 5, 300
_GIVE_UP_SECONDS, _CLOSE_SECONDS = 30, 600  # at the end: how long a failing disk is tried, and a slow one waited for


class Mirror:
    """Copies of a run and its data below `root` on another disk: `root`/runs/<run> and `root`/data/<data>.

    `fetch` brings back what this machine lacks. Within `with mirror:` the copies are claimed for this session, and a
    thread copies what has changed at every `update()`, and a last time at the end; training never waits for it. A disk
    that fails or goes (the parent of `root` is then not there) costs the copy alone: `trouble` says what is wrong, and
    the thread tries again, ever more slowly. `step` is that of the newest checkpoint read back from there, None before
    the first. "Mirrored" is not "safe": Drive uploads at some later time what was written.
    """

    def __init__(self, run_dir: str | Path, data_dir: str | Path, root: str | Path) -> None:
        self.run_dir, self.data_dir, self.root = Path(run_dir), Path(data_dir), Path(root)
        self.mirror_dir = self.root / "runs" / self.run_dir.name
        self.data_mirror_dir = self.root / "data" / self.data_dir.name
        self.step: int | None = None
        self.trouble: str | None = None
        self._claim = Claim(self.mirror_dir / "writer.json")
        self._slot_steps: dict[Path, int] = {}
        self._wake, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)

    def __str__(self) -> str:
        reached = "not mirrored yet" if self.step is None else f"mirrored to step {self.step:,}"
        return f"{reached} ({self.trouble})" if self.trouble else reached

    def fetch(self) -> bool:
        """Bring back what this machine lacks: the newest checkpoint with its log, and run and data files by their hash.

        Returns whether a checkpoint came. Raises FileNotFoundError when the disk is not there, and as `latest_checkpoint`.
        """
        self._find_disk()
        newest = latest_checkpoint(self.run_dir, self.mirror_dir)
        fetched = newest is not None and newest.parent == self.mirror_dir
        if fetched:  # the log first: without last.pt an interrupted fetch is done again
            for source, name in ((self.mirror_dir / _SLOTS[newest.name], "loss.jsonl"), (newest, "last.pt")):
                if source.exists():
                    with replace_whole(self.run_dir / name) as copy:
                        copy.write(source.read_bytes())
        fetch_files(self.mirror_dir, self.run_dir, _RUN_FILES, replace=fetched)
        fetch_files(self.data_mirror_dir, self.data_dir, DATA_FILES)
        return fetched

    def __enter__(self) -> "Mirror":
        """Claim the mirror. Raises BlockingIOError when another machine is writing there."""
        try:
            self._take()
        except BlockingIOError:
            raise
        except OSError as error:
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
            self.trouble = f"the last copy was not done after {_CLOSE_SECONDS} s"
        if self.trouble:
            warnings.warn(f"{self.mirror_dir} was left behind: {self}", stacklevel=2)

    def update(self) -> None:
        """Say that something changed; returns at once."""
        self._wake.set()
        if self._thread.ident is None:  # not before the first: `fetch` comes before any copy
            self._thread.start()

    def _work(self) -> None:
        retry, give_up = _FIRST_RETRY_SECONDS, math.inf
        while True:
            closing = self._closing.is_set()  # seen before the pass: all that changed until then is in it
            if closing:
                give_up = min(give_up, time.monotonic() + _GIVE_UP_SECONDS)
            self._wake.clear()
            try:
                self._copy(closing)
                self.trouble, retry = None, _FIRST_RETRY_SECONDS
                if closing:
                    return
                self._wake.wait(_BEAT_SECONDS)
            except Exception as error:  # whatever it is: training goes on, and it is said
                self.trouble = str(error)
                taken_over = isinstance(error, BlockingIOError)  # the other machine's copy is the one that counts
                if taken_over or time.monotonic() + retry > give_up:
                    return
                time.sleep(retry) if closing else self._closing.wait(retry)
                retry = min(2 * retry, _LAST_RETRY_SECONDS)

    def _find_disk(self) -> None:
        if not os.path.isdir(self.root.parent):  # False also where a dead mount raises
            raise FileNotFoundError(errno.ENOENT, "that disk is not there: mount it again", str(self.root.parent))

    def _take(self) -> None:
        self._find_disk()
        # One by one: should the disk go now, making parents too would make them where it was.
        run, data = self.mirror_dir, self.data_mirror_dir
        for folder in (self.root, run.parent, run, data.parent, data):
            folder.mkdir(exist_ok=True)
        self._claim.take(self._closing)

    def _copy(self, closing: bool) -> None:
        """One pass: everything that is not there as it is here."""
        self._take()
        self._copy_checkpoint()
        files = [(self.run_dir / name, self.mirror_dir / name) for name in _RUN_FILES]
        files += [(self.data_dir / name, self.data_mirror_dir / name) for name in DATA_FILES]
        for source, target in files:
            if source.exists() and not is_listed(source, target):
                with open(source, "rb") as file:
                    list_copy(target, copy_in_place(file, target))
        if closing:
            self._claim.release()

    def _copy_checkpoint(self) -> None:
        """Copy last.pt and the log into the pair that is not the newest."""
        last, log = self.run_dir / "last.pt", self.run_dir / "loss.jsonl"
        if not last.exists():
            return
        if not self._slot_steps:
            self._slot_steps = {slot: step_of(slot) for slot in map(self.mirror_dir.joinpath, _SLOTS)}
        older, newest = sorted(self._slot_steps, key=self._slot_steps.__getitem__)
        if not is_listed(last, newest):
            with open(last, "rb") as source:  # opened before the log is copied: the log has every row of its steps
                if log.exists():
                    with open(log, "rb") as rows:
                        copy_in_place(rows, self.mirror_dir / _SLOTS[older.name])
                entry = copy_in_place(source, older)
            newest = older
            self._slot_steps[newest] = load_checkpoint(newest)["step"]  # what counts is what is there
            list_copy(newest, entry | {"step": self._slot_steps[newest]})
        self.step = self._slot_steps[newest]
