"""Tables and a picture from what ``profiling/train_step.py`` measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from profiling.cases import CASES
from profiling.peers import PEERS

Results = dict

#: Rows that the picture shows.
_PLAIN = [case.name for case in CASES if not case.layer]


def threads_in_words(n_threads: str) -> str:
    """``1 thread``, ``2 threads``."""
    return "1 thread" if n_threads == "1" else f"{n_threads} threads"


def floor(case_name: str, sgemm: dict[str, float]) -> float:
    """µs that the matrix products of a step take at the machine's best measured sgemm rate (GFLOP/s)."""
    flops = next(case.flops for case in CASES if case.name == case_name)
    return flops / max(sgemm.values()) / 1e3


def microseconds(value: float) -> str:
    """Three significant digits, with thousands separated: ``0.412``, ``65.3``, ``28,500``."""
    if value >= 999.5:
        digits = len(str(int(value))) - 3
        return f"{round(value, -digits):,.0f}"
    return f"{value:#.3g}".rstrip(".")


def ratio(value: float) -> str:
    """A ratio with its sign: ``0.79×``, ``1.00×``, ``13.5×``, ``238×``."""
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}×"


def step_table(results: Results, n_threads: str) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of one number of threads: µs per step; in brackets, times nbbp's."""
    measured = results["threads"][n_threads]
    peers = [peer for peer in PEERS if any(peer in row for row in measured["rows"].values())]
    headings = ["network, batch", "floor", *peers]
    rows = []
    for name, row in measured["rows"].items():
        least = floor(name, measured["sgemm"])
        ours = row.get("nbbp", {}).get("minimum")
        cells = [name, microseconds(least)]
        for peer in peers:
            if peer not in row:
                cells.append("–")
                continue
            time = row[peer]["minimum"]
            if peer == "nbbp":
                compared = f" ({ratio(time / least)} floor)"
            else:
                compared = f" ({ratio(time / ours)})" if ours else ""
            cells.append(microseconds(time) + compared)
        rows.append(cells)
    return headings, rows


def noise(results: Results) -> tuple[float, float]:
    """How far medians lie above minima over all rows: the median and the largest, as fractions."""
    excess = sorted(
        timed["median"] / timed["minimum"] - 1.0
        for measured in results["threads"].values()
        for row in measured["rows"].values()
        for timed in row.values()
    )
    return (excess[len(excess) // 2], excess[-1]) if excess else (0.0, 0.0)


def goals(results: Results) -> list[str]:
    """Per row of one core: the ratio wanted to its rival, and that reached; the same of the sgemm rate, if wanted."""
    lines = []
    single = results["threads"].get("1", {"rows": {}})
    for case in CASES:
        row = single["rows"].get(case.name, {})
        if case.layer or "nbbp" not in row:
            continue
        ours = row["nbbp"]["minimum"]
        rivals = (case.rival,) if case.rival else ("pytorch", "jax-jit", "jax-scan")
        others = {peer: row[peer]["minimum"] for peer in rivals if peer in row}
        if others:
            fastest = min(others, key=others.get)
            times = others[fastest] / ours
            verdict = "reached" if times >= case.goal else "missed"
            lines.append(f"{case.name}: {times:.2f} times as fast as {fastest}; wanted {case.goal:.2f}: {verdict}")
        if case.rate_goal:
            share = floor(case.name, single["sgemm"]) / ours
            verdict = "reached" if share >= case.rate_goal else "missed"
            wanted = f"wanted {100 * case.rate_goal:.0f} %: {verdict}"
            lines.append(f"{case.name}: {100 * share:.1f} % of the best sgemm rate in its matrix products; {wanted}")
    return lines


def layer_costs(results: Results) -> list[str]:
    """One line per row of one core with a layer: what the layer adds to the step, in nbbp and in the fastest other."""
    lines, rows = [], results["threads"].get("1", {"rows": {}})["rows"]
    for case in CASES:
        row, plain = rows.get(case.name, {}), rows.get(case.plain_name, {})
        if not case.layer or "nbbp" not in row or "nbbp" not in plain:
            continue
        cost = row["nbbp"]["minimum"] / plain["nbbp"]["minimum"]
        verdict = "reached" if cost <= case.goal else "missed"
        others = {peer: row[peer]["minimum"] for peer in ("pytorch", "jax-jit", "jax-scan") if peer in row}
        fastest = min(others, key=others.get, default=None)
        ahead = f"; {others[fastest] / row['nbbp']['minimum']:.2f} times as fast as {fastest}" if fastest else ""
        wanted = f"wanted at most {100 * (case.goal - 1):.0f} %: {verdict}"
        lines.append(f"{case.name}: {100 * (cost - 1):+.0f} % of the step without, {wanted}{ahead}")
    return lines


def two_threads(results: Results) -> list[str]:
    """One line per row measured on one core and on two: what the second is worth to nbbp."""
    lines = []
    for name, row in results["threads"].get("2", {"rows": {}})["rows"].items():
        single = results["threads"].get("1", {"rows": {}})["rows"].get(name, {})
        if "nbbp" not in row or "nbbp" not in single:
            continue
        ours = row["nbbp"]["minimum"]
        others = [row[peer]["minimum"] for peer in ("pytorch", "jax-jit", "jax-scan") if peer in row]
        ahead = f", {min(others) / ours:.2f} times as fast as the fastest of PyTorch and JAX" if others else ""
        lines.append(f"{name}: two threads {single['nbbp']['minimum'] / ours:.2f} times as fast as one{ahead}")
    return lines


def calls(results: Results) -> list[str]:
    """Lines on calls from Python and on the whole fit of the digits."""
    lines = []
    ours = results.get("calls", {}).get("nbbp")
    if ours:
        whole, step = ours["step_from_python"], ours["run"]
        lines.append(
            f"train_step from Python, {CASES[0].name}: {whole:.2f} µs, {whole - step:.2f} µs over the step in fit"
        )
    for peer, timed in results.get("calls", {}).items():
        lines.append(f"predict of one sample from Python, {peer}: {timed['predict_one']:.2f} µs")
    digits = results.get("digits", {})
    for peer, timed in digits.items():
        lines.append(
            f"fit on the digits, {peer}: {1e3 * timed['minimum']:.1f} ms "
            f"(median {1e3 * timed['median']:.1f}), accuracy {100 * timed['accuracy']:.2f} %"
        )
    if {"nbbp", "scikit-learn"} <= digits.keys():
        times = digits["scikit-learn"]["median"] / digits["nbbp"]["median"]
        lines.append(f"fit on the digits: nbbp is {times:.1f} times as fast as scikit-learn")
    return lines


def busy_cores(results: Results) -> list[str]:
    """A warning where several threads multiplied matrices no faster than one: others had the cores."""
    single = results["threads"].get("1")
    return [
        f"{threads_in_words(n)}: the cores were not free, so these figures say little (sgemm reached "
        f"{max(measured['sgemm'].values()) / max(single['sgemm'].values()):.2f} times the rate of one thread)"
        for n, measured in results["threads"].items()
        if single and n != "1" and max(measured["sgemm"].values()) < 1.4 * max(single["sgemm"].values())
    ]


def conditions(results: Results) -> str:
    """Machine, versions, sgemm rates and noise in one paragraph."""
    machine = results["machine"]
    rates = "; ".join(
        f"{threads_in_words(n)}: " + ", ".join(f"{library} {rate:.0f}" for library, rate in timed["sgemm"].items())
        for n, timed in results["threads"].items()
    )
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    typical, worst = noise(results)
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}; {versions}; "
        f"nbbp at {machine['git_revision']}. sgemm in GFLOP/s, {rates}. "
        f"Times are minima; medians lie {100 * typical:.0f} % above them, at most {100 * worst:.0f} %."
    )


def _aligned(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[i]) for line in (headings, *rows)) for i in range(len(headings))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in (headings, *rows)
    ]


def text(results: Results) -> str:
    """Everything, for the terminal."""
    lines = []
    for n_threads in results["threads"]:
        lines += [f"µs per step, {threads_in_words(n_threads)}; in brackets, times nbbp's", ""]
        lines += [*_aligned(*step_table(results, n_threads)), ""]
    for block in (
        goals(results),
        layer_costs(results),
        two_threads(results),
        calls(results),
        busy_cores(results),
        [conditions(results)],
    ):
        lines += [*block, ""] if block else []
    return "\n".join(lines)


def markdown(results: Results) -> str:
    """The tables and the conditions, for README.md."""
    lines = []
    for n_threads in results["threads"]:
        headings, rows = step_table(results, n_threads)
        lines += [f"µs per step, {threads_in_words(n_threads)} (in brackets, times nbbp's):", ""]
        lines += ["| " + " | ".join(headings) + " |", "|---" + "|---:" * (len(headings) - 1) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        lines += [""]
    remarks = (*goals(results), *layer_costs(results), *two_threads(results), *calls(results), *busy_cores(results))
    lines += [f"- {line}" for line in remarks]
    return "\n".join([*lines, "", conditions(results), ""])


def draw(results: Results, file: Path) -> bool:
    """Bars of µs per step, logarithmic, one panel per number of threads. False without Matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    threads = list(results["threads"])
    figure = Figure(figsize=(9, 1 + 3.2 * len(threads)), layout="constrained")
    FigureCanvasAgg(figure)
    for index, n_threads in enumerate(threads):
        measured = results["threads"][n_threads]
        plain = {name: row for name, row in measured["rows"].items() if name in _PLAIN}
        axes = figure.add_subplot(len(threads), 1, index + 1)
        peers = [peer for peer in PEERS if any(peer in row for row in plain.values())]
        width = 0.8 / max(1, len(peers))
        for offset, peer in enumerate(peers):
            places = [i + offset * width for i, row in enumerate(plain.values()) if peer in row]
            times = [row[peer]["minimum"] for row in plain.values() if peer in row]
            axes.bar(places, times, width, label=peer)
        for i, name in enumerate(plain):
            left = i - width / 2
            label = "arithmetic floor" if i == 0 else None
            axes.hlines(floor(name, measured["sgemm"]), left, left + 0.8, "black", linestyles="dashed", label=label)
        middle = 0.4 - width / 2
        axes.set_xticks(
            [i + middle for i in range(len(plain))],
            [name.replace(" b", "\nbatch ") for name in plain],
            fontsize=8,
        )
        axes.set(yscale="log", ylabel="µs per step", title=threads_in_words(n_threads))
        if index == 0:
            figure.legend(loc="outside upper center", ncols=len(peers) + 1, fontsize=8)
    figure.savefig(file, dpi=110)
    return True


def write(results: Results, folder: Path) -> list[Path]:
    """Write ``train_step.json``, ``.md`` and, with Matplotlib, ``.png``; returns what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "train_step.json", folder / "train_step.md"]
    files[0].write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    files[1].write_text(markdown(results), encoding="utf-8")
    picture = folder / "train_step.png"
    return [*files, picture] if draw(results, picture) else files
