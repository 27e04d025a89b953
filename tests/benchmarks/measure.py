"""How all stages measure: contestants in turn, the memory of a process and its children, rows of one table."""

import json
import multiprocessing
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

CUDA = torch.cuda.is_available()  # this check takes as long as loading a batch


@dataclass
class Row:
    """A row of the table. `chapter`, `ours` and `limit` have the same unit; memory is in MB above the start."""

    stage: str
    what: str
    unit: str
    chapter: float | None
    ours: float
    limit: float | None = None
    chapter_mb: float | None = None
    ours_mb: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times better ours is. For times, less is better."""
        if self.chapter is None:
            return None
        return self.chapter / self.ours if self.unit in ("s", "ms", "us") else self.ours / self.chapter


def in_turn(contestants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return the median seconds per call of each, without its first call.

    The contestants take turns, so that a change in the machine's speed affects all of them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, call in contestants.items():
            synchronize()
            started = time.perf_counter()
            call()
            synchronize()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(times) for name, times in seconds.items()}


def synchronize() -> None:
    if CUDA:
        torch.cuda.synchronize()


def in_process(function: Callable[..., float], *arguments: Any) -> tuple[float, float]:
    """Run `function` in its own process. Return its result and the growth of memory there in MB, with its children.

    Memory is anonymous memory, read from /proc every 20 ms. Pages of mapped files can be dropped at any time, and do not
    count.
    """
    pool = multiprocessing.get_context("spawn").Pool(1)
    try:
        return pool.apply(_watched, (function, arguments))
    finally:
        pool.close()
        pool.join()


def _watched(function: Callable[..., float], arguments: tuple) -> tuple[float, float]:
    start, peak, done = memory_mb(os.getpid()), 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, memory_mb(os.getpid()))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        result = function(*arguments)
    finally:
        done.set()
        thread.join()
    return result, max(peak, memory_mb(os.getpid())) - start


def memory_mb(pid: int) -> float:
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has ended by now
        return 0.0
    own = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss_Anon"))
    return own / 1e3 + sum(memory_mb(int(child)) for child in children)


def hardware() -> dict[str, Any]:
    """Return what the figures are measured on."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        name = names[0] if names else name
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": name, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpu": gpu} | {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def table(rows: list[Row]) -> str:
    """Return the rows as a Markdown table."""

    def figure(value: float | None) -> str:
        return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

    lines = ["| stage | what | unit | chapter | ours | ratio | limit here | share | chapter MB | ours MB | note |"]
    lines.append("|---|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        lower = row.unit in ("s", "ms", "us")
        share = None if row.limit is None else row.limit / row.ours if lower else row.ours / row.limit
        cells = [row.stage, row.what, row.unit, figure(row.chapter), figure(row.ours)]
        cells += [f"{row.ratio:.1f}x" if row.ratio else "", figure(row.limit), f"{share:.0%}" if share else ""]
        lines.append("| " + " | ".join([*cells, figure(row.chapter_mb), figure(row.ours_mb), row.note]) + " |")
    return "\n".join(lines)


def save(path: Path, rows: list[Row]) -> None:
    """Write the rows and the hardware as JSON."""
    path.write_text(
        json.dumps({"hardware": hardware(), "rows": [asdict(row) | {"ratio": row.ratio} for row in rows]}, indent=1)
    )


def load(path: Path) -> list[Row]:
    return [
        Row(**{key: value for key, value in row.items() if key != "ratio"})
        for row in json.loads(path.read_text())["rows"]
    ]


def figure(path: Path, rows: list[Row]) -> None:
    """Draw the ratios as bars."""
    from matplotlib.figure import Figure

    rows = [row for row in rows if row.ratio]
    drawing = Figure(figsize=(9, 0.4 * len(rows) + 1.2), layout="constrained")
    axes = drawing.subplots()
    bars = axes.barh([f"{row.stage}: {row.what}" for row in rows], [row.ratio for row in rows], color="#0072B2")
    axes.bar_label(bars, [f"{row.ratio:.1f}x" for row in rows], padding=3)
    axes.axvline(1, color="#444444", linestyle="--", linewidth=1)
    axes.set(
        xscale="log", xlabel="times as good as the chapter's way", xlim=(0.7, 2.5 * max(row.ratio for row in rows))
    )
    axes.xaxis.set_major_formatter("{x:g}")
    axes.invert_yaxis()
    drawing.savefig(path, dpi=120)
