"""Measurements: one script per question, each of which validates what it runs before it times it.

``python -m profiling`` asks all questions of the suite, in the order of `QUESTIONS`.
"""

from typing import NamedTuple


class Question(NamedTuple):
    """One question of the suite: its script in this folder, and the threads of the process that the script runs in.

    `n_threads` is None for one thread per core.
    """

    name: str
    n_threads: int | None


QUESTIONS = (
    Question("activations", 1),
    Question("fusion", 1),
    Question("loop_vs_vectorized", None),
    Question("roofline", 1),
    Question("optimizers", 1),
    Question("scaling", None),
    Question("compile_time", None),
    Question("memory", 1),
    Question("where_time_goes", 1),
    Question("callbacks", 1),
    Question("peers", None),
)
