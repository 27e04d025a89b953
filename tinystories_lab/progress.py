"""Progress bars: tqdm's in a terminal and in a notebook, lines of text in a file."""

import sys
from typing import Any

from tqdm import tqdm

_SECONDS = 20  # between two lines; what takes less than this prints none


class _Lines:
    """What tqdm writes to, so that every state of a bar becomes a line of stderr."""

    def write(self, text: str) -> None:
        if line := text.strip():  # tqdm also writes what clears a bar
            print(line, file=sys.stderr, flush=True)

    def flush(self) -> None:
        """Do nothing, because every line is flushed."""


def progress(*args: Any, **settings: Any) -> tqdm:
    """Return tqdm's bar for these arguments. If stderr is a file, where no bar can move, it prints lines instead."""
    if "ipykernel" in sys.modules or sys.stderr.isatty():
        return tqdm(*args, **settings)
    return tqdm(*args, **settings, file=_Lines(), mininterval=_SECONDS, delay=_SECONDS, ncols=0)
