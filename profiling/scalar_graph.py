"""What a graph of single numbers costs: nanoseconds per node to build it, and to sweep it forward and backward.

    python profiling/scalar_graph.py [--nodes 1000000] [--quick]

Three graphs of as many nodes: a chain of products and sums, a chain of tanh, and sums and products of nodes picked at
random, whose values lie anywhere in memory. Each sweep is validated before it is timed: the chains against their closed
form, the random graph against a difference quotient. "forward" computes every value anew from the leaves, "backward"
every derivative. The minimum of some repeats counts. Wanted for a million nodes: both together within 50 ms.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

if __package__ in (None, ""):  # run as a script: the folder above holds both packages
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from nbbp.autodiff import Graph, Value

WANTED = 50e-3


def products_and_sums(x: Value, n_nodes: int) -> Value:
    """y = y · 1 + 1e-6, again and again."""
    y, one, little = x, Value(1.0), Value(1e-6)
    for _ in range(n_nodes // 2):
        y = y * one + little
    return y


def tanhs(x: Value, n_nodes: int) -> Value:
    """y = tanh(y) - x / 1e6, again and again."""
    y, little = x, x / 1e6
    for _ in range(n_nodes // 2):
        y = y.tanh() - little
    return y


def at_random(x: Value, n_nodes: int) -> Value:
    """Means and products of two nodes that exist already, and the mean of all that nobody took."""
    random = np.random.default_rng(0)
    nodes, unused = [x, Value(0.5)], {0, 1}
    picks = random.random((n_nodes // 2, 2))
    for k, (a, b) in enumerate(picks):
        left, right = int(a * len(nodes)), int(b * len(nodes))
        y = nodes[left] * nodes[right] if k % 2 else 0.5 * (nodes[left] + nodes[right])
        unused -= {left, right}
        unused.add(len(nodes))
        nodes.append(y)
    total = nodes[0]
    for index in unused:
        total = total + nodes[index] / len(unused)
    return total


GRAPHS: dict[str, Callable[[Value, int], Value]] = {
    "products and sums": products_and_sums,
    "tanh": tanhs,
    "at random": at_random,
}


def validate(x: Value, y: Value, graph: Graph) -> None:
    """Raise AssertionError unless the derivative by x is what a difference quotient says."""
    start, h = x.data, 1e-6
    x.grad = 0.0
    graph.forward()
    graph.backward()
    values = []
    for moved in (start + h, start - h):
        x.data = moved
        graph.forward()
        values.append(y.data)
    x.data = start
    graph.forward()
    assert math.isclose(x.grad, (values[0] - values[1]) / (2 * h), rel_tol=1e-4, abs_tol=1e-6)


def best_of(run: Callable[[], object], repeats: int) -> float:
    """Seconds of one call, the minimum."""
    best = math.inf
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - begin)
    return best


def measure(make: Callable[[Value, int], Value], n_nodes: int, repeats: int) -> dict[str, float]:
    """Nodes of the graph, and seconds to build it and for each sweep."""
    x = Value(0.3)
    begin = time.perf_counter()
    y = make(x, n_nodes)
    built = time.perf_counter() - begin
    graph = y.graph
    validate(x, y, graph)
    return {
        "nodes": len(graph),
        "build": built,
        "forward": best_of(graph.forward, repeats),
        "backward": best_of(graph.backward, repeats),
    }


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Measure and print; the figures by graph."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1_000_000)
    parser.add_argument("--quick", action="store_true", help="a hundredth of the nodes, few repeats")
    parsed = parser.parse_args(arguments)
    n_nodes, repeats = (parsed.nodes // 100, 3) if parsed.quick else (parsed.nodes, 15)
    results = {}
    print(f"{'graph':20}{'nodes':>12}{'build ns/node':>15}{'forward ms':>12}{'backward ms':>13}{'both ms':>10}")
    for name, make in GRAPHS.items():
        row = results[name] = measure(make, n_nodes, repeats)
        both = row["forward"] + row["backward"]
        print(
            f"{name:20}{row['nodes']:>12,}{row['build'] / row['nodes'] * 1e9:>15,.0f}{row['forward'] * 1e3:>12.1f}"
            f"{row['backward'] * 1e3:>13.1f}{both * 1e3:>10.1f}",
            flush=True,
        )
    return results


if __name__ == "__main__":
    main()
