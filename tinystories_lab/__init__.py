"""Train a small language model on TinyStories, from raw stories to an honest retrospective."""

import os

__version__ = "1.0.0"

# How long OpenMP's threads spin while they wait for each other, read once when PyTorch is imported. By default they spin for
# milliseconds: if another program needs a core, training on two cores was seen to become thirty times slower. Fewer spins
# cost little or nothing when the machine is free (tests/benchmarks/RESULTS.md).
if not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
    os.environ["GOMP_SPINCOUNT"] = "200"
