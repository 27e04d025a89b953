"""Measure the project against the chapter's way: python -m tests.benchmarks [stage ...], from the repository's root."""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from tests.benchmarks import measure


def main() -> None:
    from tests.benchmarks.stages import STAGES

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="*", help=f"any of {', '.join(STAGES)} (default: all)")
    parser.add_argument("--stories", default="toyland", help="file of stories to encode (default: built-in stories)")
    parser.add_argument(
        "--large", action="store_true", help="also encode 500 MB of text and load 2.1M stories; takes 15 minutes"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("benchmarks"),
        help="folder for the JSON files and the figure (default: %(default)s)",
    )
    options = parser.parse_args()
    options.out.mkdir(exist_ok=True)
    rows, started = [], time.perf_counter()
    for stage in options.stages or STAGES:
        path = options.out / f"{stage}.json"
        if len(options.stages) == 1:
            measure.save(path, STAGES[stage](options.stories, options.large))
        else:  # each in its own process, so that no stage leaves anything in the memory of the next
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
    print(f"finished in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
