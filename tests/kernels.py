"""What a notebook's kernel starts with in the tests: a `tiny` that trains in seconds, as an IPython startup file."""

from pathlib import Path

SMALL = """
from dataclasses import replace
from tinystories_lab.run import PRESETS

tiny = PRESETS["tiny"]
cadence = dict(total_steps=150, warmup_steps=10, log_every=10, eval_every=50, save_every=20, keep_every=100)
PRESETS["tiny"] = replace(
    tiny, max_stories=2_000, tokenizer_stories=2_000, sample_tokens=60,
    model=replace(tiny.model, vocab_size=512, d_model=64), train=replace(tiny.train, **cadence),
)
"""


def kernels_start_with(folder: Path, *scripts: str) -> dict[str, str]:
    """The environment in which every kernel runs `scripts` first; `folder` becomes its IPython's home."""
    startup = folder / "profile_default" / "startup"
    startup.mkdir(parents=True)
    for number, script in enumerate(scripts):
        (startup / f"{number:02}.py").write_text(script, encoding="utf-8")
    one_core = {"OMP_NUM_THREADS": "1"}  # small matrices on two busy cores: a second thread costs tenfold
    return {"IPYTHONDIR": str(folder), **one_core}
