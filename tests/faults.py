"""Break real training runs on purpose, each in its own process: `python tests/faults.py --kills 100`.

After each fault, the run is resumed until it is finished, in processes with different global random states. Then its
weights, optimizer state and log must equal those of an uninterrupted run bit for bit.
"""

import argparse
import errno
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import micro
import torch
import torch._dynamo  # otherwise the first optimizer step imports it, in every process

from tinystories_lab import checkpoint as checkpoint_module
from tinystories_lab import files, trainer
from tinystories_lab.checkpoint import latest_checkpoint, read_step, run_checkpoints
from tinystories_lab.durability import mirror
from tinystories_lab.durability.mirror import _MIRROR_SLOTS
from tinystories_lab.pipeline import train_run
from tinystories_lab.run import Workspace

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["faults"])
CADENCE = {"log_every": 1, "eval_every": 15, "save_every": 7, "keep_every": 16}
CONFIG = replace(micro.TRAIN, total_steps=40, warmup_steps=5, **CADENCE)
MODEL = replace(micro.MODEL, n_layer=1, d_model=16)


# --- inside a training process


def session(
    run_dir: Path, data_dir: Path, mirror_root: Path | None, fault: Callable[[int], None] | None, started: Any
) -> None:
    """Train to the end, or until the fault stops it. `fault(step)` is called before the first step and after each row."""
    started.set()
    with open(run_dir.with_suffix(".log"), "a", buffering=1) as log:
        sys.stdout = sys.stderr = log
        torch.set_num_threads(1)
        torch.manual_seed(random.SystemRandom().randrange(2**32))
        mirror._FIRST_RETRY_SECONDS, mirror._GIVE_UP_SECONDS = 0.01, 1
        try:
            if fault:
                fault(0)
            lab = Workspace(
                replace(micro.PRESET, model=MODEL, train=CONFIG), "stories.txt", data_dir, run_dir, mirror_root
            )
            for row in train_run(lab, "cpu", torch.float32):
                print(f"mirrored_step={row.get('mirrored_step') or 0}")
                if fault:
                    fault(row["step"])
        except KeyboardInterrupt:
            sys.exit(130)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def half_written(path: Path):
    with files.atomic_write(path) as file:
        file.write(b"PK\3\4 half a checkpoint")
        file.flush()
        die()
        yield


def die_in_save(where: str, call: int, step: int) -> None:
    """Kill the process in its `call`-th save, at one of four points."""
    if step:
        return
    save, calls = torch.save, iter(range(1, sys.maxsize))

    def save_or_die(checkpoint: dict[str, Any], file: Any) -> None:
        save(checkpoint, file)
        if next(calls) == call:
            replace = os.replace
            match where:
                case "half written":
                    checkpoint_module.atomic_write = half_written
                case "not synced":
                    files.os.fsync = lambda *_: die()
                case "not renamed":
                    files.os.replace = lambda *_: die()
                case "renamed":
                    files.os.replace = lambda *paths: (replace(*paths), die())

    torch.save = save_or_die


def fill_the_disk(from_step: int, step: int) -> None:
    """From this step on, limit each file to 2 kB, so that neither a checkpoint nor the log can be written."""
    if step == from_step:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))


def stop_at(last: int, step: int) -> None:
    """Stop after this step, as Ctrl-C does."""
    if step == last:
        raise KeyboardInterrupt


def break_the_mirror(number: int, times: int, step: int) -> None:
    """Make the first `times` copies fail with this error, half written."""
    if step:
        return
    copy_in_place, calls = mirror.copy_in_place, iter(range(1, sys.maxsize))

    def fail(source: Any, target: Path) -> dict[str, Any]:
        if next(calls) <= times:
            target.write_bytes(source.read(1_000))
            raise OSError(number, os.strerror(number), str(target))
        return copy_in_place(source, target)

    mirror.copy_in_place = fail


def save_in_background(step: int) -> None:
    """Let a thread write the checkpoints, as on a GPU."""
    if not step:
        writer = checkpoint_module.CheckpointWriter
        trainer.CheckpointWriter = lambda run_dir, step, background, after_save: writer(run_dir, step, True, after_save)


def slowly(step: int) -> None:
    """Slow each step down by 60 ms, which gives the parent process time to act, also on a busy machine."""
    time.sleep(0.06)


# --- outside the training process


class Lab:
    """The folders of all runs, and the uninterrupted run that each of them must equal."""

    def __init__(self, root: Path) -> None:
        self.root, self.data_dir = root, root / "data" / "micro"
        micro.make_data(self.data_dir)
        self.random = random.Random(0)
        self.whole = Run(self, "whole")
        with self.whole.process() as child:
            started = time.perf_counter()
        self.seconds = time.perf_counter() - started
        assert child.exitcode == 0, self.whole.run_dir.with_suffix(".log").read_text()

    def run(self, mirrored: bool = False) -> "Run":
        name = f"run-{self.random.randrange(2**32):08x}"
        return Run(self, name, self.root / f"disk-{name}" / "lab" if mirrored else None)


@dataclass
class Run:
    lab: Lab
    name: str
    mirror_root: Path | None = None
    lost: int = 0  # largest number of steps lost in a fault

    @property
    def run_dir(self) -> Path:
        return self.lab.root / "runs" / self.name

    @property
    def mirror_dir(self) -> Path | None:
        return self.mirror_root and self.mirror_root / "runs" / self.name

    @contextmanager
    def process(self, fault: Callable[[int], None] | None = None):
        self.run_dir.parent.mkdir(parents=True, exist_ok=True)
        if self.mirror_root:
            self.mirror_root.parent.mkdir(parents=True, exist_ok=True)
        started = PROCESSES.Event()
        arguments = (self.run_dir, self.lab.data_dir, self.mirror_root, fault, started)
        child = PROCESSES.Process(target=session, args=arguments)
        child.start()
        assert started.wait(120)
        try:
            yield child
        finally:
            child.join(120)
            assert child.exitcode is not None, f"{self.name} has not ended after two minutes"

    def wait_for_steps(self, child: Any) -> None:
        """Wait for the first row. Before it, a signal simply ends the process, and a missing disk is an error."""
        while child.is_alive() and not (self.run_dir / "loss.jsonl").exists():
            time.sleep(0.01)

    def go(self, fault: Callable[[int], None] | None = None) -> int:
        """Run one session to its end. Return the exit code."""
        with self.process(fault) as child:
            pass
        if not self.mirror_root:
            self.count_lost()
        return child.exitcode

    def go_until(self, number: int, seconds: float, fault: Callable[[int], None] | None = None) -> int:
        """Run one session and send it a signal after `seconds`. Return the exit code."""
        with self.process(fault) as child:
            time.sleep(seconds)
            if child.is_alive():
                with suppress(ProcessLookupError):  # it may have just ended by itself
                    os.kill(child.pid, number)
        if not self.mirror_root:
            self.count_lost()
        return child.exitcode

    def count_lost(self) -> None:
        """Count the steps in the log that the checkpoint for the next session does not have."""
        rows = micro.log_of(self.run_dir)
        self.count(rows[-1]["step"] if rows else 0, run_checkpoints(self.run_dir))

    def lose_the_machine(self) -> None:
        """Delete the run folder. Count the steps that were reported as mirrored but are not on the mirror."""
        log = self.run_dir.with_suffix(".log")
        mirrored = map(int, re.findall(r"^mirrored_step=(\d+)$", log.read_text() if log.exists() else "", re.MULTILINE))
        self.count(max(mirrored, default=0), map(self.mirror_dir.joinpath, _MIRROR_SLOTS))
        shutil.rmtree(self.run_dir, ignore_errors=True)

    def count(self, reached: int, checkpoints: Iterable[Path]) -> None:
        with warnings.catch_warnings(action="ignore"):
            steps = (step for path in checkpoints if (step := verified_step(path)) is not None)
            self.lost = max(self.lost, reached - max(steps, default=0))

    def finish(self) -> bool:
        """Resume until the end. Return whether the run equals the uninterrupted one."""
        code = self.go()
        assert code == 0, f"{self.name} ended with {code}: {self.run_dir.with_suffix('.log').read_text()[-2_000:]}"
        return not micro.differences(self.run_dir, self.lab.whole.run_dir)


def verified_step(path: Path) -> int | None:
    """Return the step of a checkpoint that a run can resume from, or None."""
    try:
        return latest_checkpoint([path])[1]["step"]
    except (TypeError, ValueError):  # it is missing or damaged
        return None


@dataclass
class Result:
    """A row of the table."""

    fault: str
    times: int = 0
    lost: int = 0
    equal: bool = True

    def add(self, run: Run, times: int = 1) -> None:
        """Finish the run and add it to this row."""
        self.equal &= run.finish()
        self.times, self.lost = self.times + times, max(self.lost, run.lost)
        shutil.rmtree(run.run_dir)


# --- the faults


def killed_at_random(
    lab: Lab, kills: int, what: str = "SIGKILL at a random moment", fault: Callable[[int], None] | None = None
) -> Result:
    result = Result(what)
    while result.times < kills:
        run, landed = lab.run(), 0
        while result.times + landed < kills and not (run.run_dir / "final.pt").exists():
            landed += run.go_until(signal.SIGKILL, lab.random.uniform(0, lab.seconds), fault) == -signal.SIGKILL
        result.add(run, landed)
    return result


def killed_saving_in_background(lab: Lab, kills: int) -> Result:
    return killed_at_random(
        lab, kills, "SIGKILL at a random moment, with saves in the background as on a GPU", save_in_background
    )


def killed_and_machine_lost(lab: Lab, kills: int) -> Result:
    result = Result("SIGKILL and loss of the machine, then restored from the mirror")
    while result.times < kills:
        run, landed = lab.run(mirrored=True), 0
        while result.times + landed < kills and not (run.run_dir / "final.pt").exists():
            landed += run.go_until(signal.SIGKILL, lab.random.uniform(0, 1.5 * lab.seconds)) == -signal.SIGKILL
            run.lose_the_machine()
        result.add(run, landed)
    return result


def killed_in_a_save(lab: Lab, kills: int) -> Result:
    result = Result("SIGKILL during a save: half written, not synced, not renamed, just renamed")
    places = ("half written", "not synced", "not renamed", "renamed")
    for number in range(max(len(places), kills)):
        run = lab.run()
        code = run.go(partial(die_in_save, places[number % 4], lab.random.randrange(1, 10)))
        assert code == -signal.SIGKILL, code
        result.add(run)
    return result


def signalled(number: signal.Signals, codes: set[int]) -> Callable[[Lab, int], Result]:
    def fault(lab: Lab, kills: int) -> Result:
        result = Result(f"{number.name} at a random moment")
        for _ in range(3):
            run = lab.run()
            with run.process(slowly) as child:
                run.wait_for_steps(child)
                time.sleep(lab.random.uniform(0, 0.4))
                os.kill(child.pid, number)
            assert child.exitcode in codes, child.exitcode
            run.count_lost()
            result.add(run)
        return result

    return fault


def disk_full(lab: Lab, kills: int) -> Result:
    result = Result("the disk is full from some step to the end")
    for step in (0, 11, 31):
        run = lab.run()
        assert run.go(partial(fill_the_disk, step)) == 1, "final.pt could not be written, so the run must fail"
        assert not (run.run_dir / "final.pt").exists()
        newest = latest_checkpoint(run_checkpoints(run.run_dir))
        run.lost = CONFIG.total_steps - (
            newest[1]["step"] if newest else 0
        )  # it trained to the end without another save
        result.add(run)
    return result


def checkpoints_damaged(lab: Lab, kills: int) -> Result:
    result = Result("checkpoints are cut off, or have flipped bits")
    for names in (("last.pt",), ("step_00032.pt",), ("last.pt", "step_00032.pt")):
        for cut in (True, False):
            run = lab.run()
            assert run.go(partial(stop_at, 34)) == 130
            for name in names:
                path = run.run_dir / name
                content = bytearray(path.read_bytes())
                if cut:
                    del content[lab.random.randrange(len(content)) :]
                else:
                    for _ in range(20):
                        content[lab.random.randrange(len(content))] ^= 1 << lab.random.randrange(8)
                path.write_bytes(content)
            run.count_lost()
            result.add(run)
    return result


def mirror_fails(number: int) -> Callable[[Lab, int], Result]:
    def fault(lab: Lab, kills: int) -> Result:
        result = Result(f"the mirror fails with {errno.errorcode[number]}, then the machine is lost")
        for times in (2, 5):
            run = lab.run(mirrored=True)
            assert run.go(partial(break_the_mirror, number, times)) == 0
            run.lose_the_machine()
            result.add(run)
        return result

    return fault


def mirror_disappears(lab: Lab, kills: int) -> Result:
    result = Result("the mirror's disk disappears and returns, then the machine is lost")
    for _ in range(2):
        run = lab.run(mirrored=True)
        disk = run.mirror_root.parent
        disk.mkdir(parents=True)

        with run.process(slowly) as child:
            run.wait_for_steps(child)
            time.sleep(0.1)
            disk.rename(disk.with_suffix(".unplugged"))
            time.sleep(0.3)
            disk.with_suffix(".unplugged").rename(disk)
        assert child.exitcode == 0, run.run_dir.with_suffix(".log").read_text()[-2_000:]
        assert read_step(run.mirror_dir / "final.pt") == CONFIG.total_steps
        run.lose_the_machine()
        result.add(run)
    return result


def newest_slot_removed(lab: Lab, kills: int) -> Result:
    result = Result("the newest slot on the mirror is removed, and the machine is lost")
    for step in (15, 26, 38):
        run = lab.run(mirrored=True)
        assert run.go(partial(stop_at, step)) == 130
        slots = [run.mirror_dir / slot for slot in _MIRROR_SLOTS]
        max((slot for slot in slots if slot.exists()), key=read_step).unlink()
        run.lose_the_machine()
        result.add(run)
    return result


def log_cut_off(lab: Lab, kills: int) -> Result:
    result = Result("the log's last line is cut off")
    for step in (7, 20, 30):
        run = lab.run()
        run.go(partial(stop_at, step))
        log = run.run_dir / "loss.jsonl"
        log.write_bytes(log.read_bytes()[: -lab.random.randrange(2, 60)])
        result.add(run)
    return result


FAULTS: list[Callable[[Lab, int], Result]] = [
    killed_at_random,
    killed_saving_in_background,
    killed_and_machine_lost,
    killed_in_a_save,
    signalled(signal.SIGTERM, {128 + signal.SIGTERM}),
    signalled(signal.SIGINT, {130}),
    signalled(signal.SIGHUP, {128 + signal.SIGHUP}),
    disk_full,
    checkpoints_damaged,
    *map(mirror_fails, (errno.EIO, errno.ENOTCONN, errno.ENOSPC, errno.EDQUOT)),
    mirror_disappears,
    newest_slot_removed,
    log_cut_off,
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=25, help="processes to kill in total (default: 25)")
    kills = parser.parse_args().kills
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and so would ours
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it
    os.environ["OMP_NUM_THREADS"] = "1"  # the order of a sum depends on the number of threads
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))  # for the fork server, which imports this module
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(Path(folder))
        print(f"{CONFIG.total_steps} steps, saved every {CONFIG.save_every}: {lab.seconds:.1f} s uninterrupted\n")
        print(f"{'fault':75} {'times':>5} {'steps lost at most':>20} {'equal':>6}")
        all_equal = True
        for fault in FAULTS:
            result = fault(lab, share_of(fault, kills))
            equal = "yes" if result.equal else "NO"
            print(f"{result.fault:75} {result.times:5} {result.lost:20} {equal:>6}", flush=True)
            all_equal &= result.equal
    return 0 if all_equal else 1


def share_of(fault: Callable[[Lab, int], Result], kills: int) -> int:
    """Return how many of the kills a fault gets: a quarter, and the first fault also gets the remainder."""
    return {killed_at_random: kills - 3 * (kills // 4)}.get(fault, kills // 4)


if __name__ == "__main__":
    sys.exit(main())
