"""The project beside the chapter's way, in one run: python -m tests.benchmarks [stage ...], from the repository's root."""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from tests.benchmarks import measure


def main() -> None:
    from tests.benchmarks.stages import STAGES

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="*", help=f"of {', '.join(STAGES)}; all unless told otherwise")
    parser.add_argument(
        "--stories", default="toyland", help="what is encoded: a file of stories (default: built-in ones)"
    )
    parser.add_argument(
        "--large", action="store_true", help="500 MB of text and 2.1M stories too, and longer: 15 minutes"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks"), help="folder for JSON and figure (default: %(default)s)"
    )
    options = parser.parse_args()
    options.out.mkdir(exist_ok=True)
    rows, started = [], time.perf_counter()
    for stage in options.stages or STAGES:
        path = options.out / f"{stage}.json"
        if len(options.stages) == 1:
            measure.save(path, STAGES[stage](options.stories, options.large))
        else:  # each in a process of its own: nothing of one stage is in the next one's memory
            print(f"{stage} ...", flush=True)
            further = ["--stories", options.stories, "--out", str(options.out), *(["--large"] if options.large else [])]
            subprocess.run(
                [sys.executable, "-m", "tests.benchmarks", stage, *further], check=True, stdout=subprocess.DEVNULL
            )
        rows += measure.load(path)
    if len(options.stages) != 1:
        measure.save(options.out / "all.json", rows)
        measure.figure(options.out / "all.png", rows)
    print(", ".join(f"{name} {value}" for name, value in measure.hardware().items() if value))
    print(measure.table(rows))
    print(f"in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
