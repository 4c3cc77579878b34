"""Which variant of a dense product is fastest where: loops, BLAS, fused and parallel over batch and width.

    python profiling/dense_variants.py [--threads 1] [--quick]

Every variant is validated against float64 NumPy before it is timed. The table gives GFLOP/s of the three products of a
square layer together (forward, input gradient, weight gradient; 6 · batch · width² operations); the best is marked. It
is where the engine's choice in nbbp/tiling.py comes from: ``fused`` for every shape, shared among threads from a
measured amount of work on.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

if __package__ in (None, ""):  # run as a script: the folder above holds both packages
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

BATCHES = (1, 16, 64, 256, 1024)
WIDTHS = (4, 16, 64, 256, 1024)
VARIANTS = ("loops", "vectorized", "fused", "parallel")
#: Seconds that the repeats of one measurement take together.
BUDGET = 0.2


def measure(batch: int, width: int, budget: float) -> dict[str, float]:
    """GFLOP/s of each variant for a square layer."""
    import numpy as np

    from nbbp.cpu.dense_variants import VARIANTS as REGISTRY

    random = np.random.default_rng(0)
    x, d_out = random.standard_normal((2, batch, width), dtype=np.float32)
    weight, bias = random.standard_normal((width, width), dtype=np.float32), random.standard_normal(width, dtype="f4")
    floor = np.float32(-np.inf)
    wide = {"x": x.astype("f8"), "d": d_out.astype("f8"), "w": weight.astype("f8")}
    expected = wide["x"] @ wide["w"] + bias, wide["d"] @ wide["w"].T, wide["x"].T @ wide["d"]
    rates = {}
    for variant in VARIANTS:
        out, d_x, d_weight, d_bias = np.empty_like(x), np.empty_like(x), np.empty_like(weight), np.empty_like(bias)

        def step(variant=variant, out=out, d_x=d_x, d_weight=d_weight, d_bias=d_bias):
            REGISTRY["dense_forward"][variant](out, x, weight, bias, floor)
            REGISTRY["dense_input_gradient"][variant](d_x, d_out, weight)
            REGISTRY["dense_weight_gradient"][variant](d_weight, d_bias, x, d_out)

        step()
        for came, right in zip((out, d_x, d_weight), expected, strict=True):
            np.testing.assert_allclose(came, right, rtol=1e-3, atol=1e-3 * np.sqrt(max(batch, width)))
        best, spent = np.inf, 0.0
        while spent < budget:
            begin = time.perf_counter()
            step()
            elapsed = time.perf_counter() - begin
            best, spent = min(best, elapsed), spent + elapsed
        rates[variant] = 6 * batch * width**2 / best / 1e9
    return rates


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="threads of BLAS and of the parallel variant")
    parser.add_argument("--quick", action="store_true", help="fewer shapes, shorter repeats")
    arguments = parser.parse_args()
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[variable] = str(arguments.threads)  # read when the libraries load, so before any import of them
    print(f"{'batch':>6} {'width':>6}" + "".join(f"{variant:>13}" for variant in VARIANTS) + "   GFLOP/s")
    for width in WIDTHS[:3] if arguments.quick else WIDTHS:
        for batch in BATCHES[:3] if arguments.quick else BATCHES:
            rates = measure(batch, width, BUDGET / 10 if arguments.quick else BUDGET)
            best = max(rates, key=rates.get)
            cells = (f"{rate:.3g}{'*' if variant == best else ' '}" for variant, rate in rates.items())
            print(f"{batch:>6} {width:>6}" + "".join(f"{cell:>13}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
