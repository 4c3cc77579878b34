"""``python -m nbbp``: what this installation runs on; ``python -m nbbp warmup``: compile everything now."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from tqdm import tqdm

import nbbp
from nbbp import diagnostics

DTYPES = ("float32", "float64")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nbbp",
        description="Without a command: versions, processor, threads, BLAS, CUDA devices and the cache.",
    )
    parser.add_argument("--version", action="version", version=f"nbbp {nbbp.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command")
    warmup = commands.add_parser(
        "warmup",
        help="compile every kernel into the cache, so that no later process has to",
        description="Compile every CPU kernel into Numba's cache on disk, so that no later process has to.",
    )
    warmup.add_argument("--dtype", choices=DTYPES, help="only the kernels of one precision (default: both)")
    return parser


def _print_information() -> None:
    lines = diagnostics.information()
    width = max(len(label) for label, _ in lines)
    for label, text in lines:
        print(f"{label:<{width}}  {text}")


def _warm_up(dtypes: Sequence[str]) -> None:
    begin = time.perf_counter()
    with tqdm(dtypes, desc="compiling", unit="precision", file=sys.stderr) as bar:
        for dtype in bar:
            bar.set_postfix_str(dtype)
            nbbp.warmup([dtype])
    n_files, n_bytes = diagnostics.cache_size(diagnostics.cache_folders())
    seconds = time.perf_counter() - begin
    print(f"compiled in {seconds:.1f} s; the cache holds {n_files} files, {n_bytes / 2**20:.1f} MiB")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's) and return the exit status.

    A wrong command line ends the process with status 2 and the usage on stderr, as argparse does.
    """
    arguments = _parser().parse_args(argv)
    if arguments.command == "warmup":
        _warm_up([arguments.dtype] if arguments.dtype else DTYPES)
    else:
        _print_information()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
