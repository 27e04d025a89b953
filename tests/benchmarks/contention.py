"""Speed alone and beside a busy process, for several ways of waiting: python -m tests.benchmarks.contention [--rounds N].

OpenMP threads wait between two parallel operations. By default they spin, which is fast if nothing else needs their
cores and very slow if something does. Each measurement runs in its own process, because OpenMP reads the setting once,
when PyTorch is imported. The settings take turns, so that a change in the machine's speed affects all of them.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

SETTINGS = {
    "the project's": {},
    "PyTorch's default": {"GOMP_SPINCOUNT": "300000"},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    **{f"{count} spins": {"GOMP_SPINCOUNT": count} for count in ("0", "1000", "5000")},
}
BUSY = "while True: sum(range(10_000))"


def measure(workload: str, seconds: float) -> float:
    """Return tokens per second: training `tiny`, training the chapter's model, or generating a story with it."""
    import tinystories_lab  # first, because it sets how OpenMP waits  # noqa: F401, I001
    import torch

    from tinystories_lab.generate import stream
    from tinystories_lab.model import new_model
    from tinystories_lab.optim import set_lr
    from tinystories_lab.run import PRESETS
    from tinystories_lab.trainer import TrainState, train_step

    preset = PRESETS["tiny" if workload == "tiny" else "book"]
    if workload == "story":
        model = new_model(preset.model).eval()
        for weight in model.parameters():
            weight.data = weight.data.t().contiguous().t()

        def work() -> int:
            return sum(1 for _ in stream(model, [1], 60, seed=0))

    else:
        state = TrainState.new(new_model(preset.model), preset.train, torch.float32)
        set_lr(state.optimizer, 1e-4)
        ids = torch.randint(preset.model.vocab_size, (8 if workload == "tiny" else 4, preset.train.seq_len + 1))

        def work() -> int:
            train_step(state, (ids[:, :-1], ids[:, 1:]))
            return ids[:, 1:].numel()

    work()
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        done += work()
    return done / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--settings", nargs="*", default=list(SETTINGS), choices=list(SETTINGS), metavar="S")
    parser.add_argument("--workloads", nargs="*", default=["tiny", "book", "story"])
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(measure(options.measure, 4 if options.measure == "tiny" else 6))
        return
    found: dict[tuple[str, str, str], list[float]] = {}
    for _ in range(options.rounds):
        for workload in options.workloads:
            for beside in ("alone", "busy"):
                for setting in options.settings:
                    busy = subprocess.Popen([sys.executable, "-c", BUSY]) if beside == "busy" else None
                    command = [sys.executable, "-m", "tests.benchmarks.contention", "--measure", workload]
                    environment = os.environ | SETTINGS[setting]
                    try:
                        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
                    finally:
                        if busy:
                            busy.kill()
                            busy.wait()
                    found.setdefault((workload, setting, beside), []).append(float(done.stdout))
    print("| workload | waiting | alone, tokens per second | beside a busy process |\n|---|---|---|---|")
    for workload in options.workloads:
        for setting in options.settings:
            cells = []
            for beside in ("alone", "busy"):
                speeds = found[workload, setting, beside]
                cells.append(f"{statistics.median(speeds):,.0f} ({min(speeds):,.0f} to {max(speeds):,.0f})")
            print(f"| {workload} | {setting} | {cells[0]} | {cells[1]} |", flush=True)


if __name__ == "__main__":
    main()
