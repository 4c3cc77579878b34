"""The profiling suite: every question of `profiling.QUESTIONS`, and a report of the answers.

    python -m profiling             under a quarter of an hour on two cores
    python -m profiling --quick     under two minutes, rough
    python -m profiling --only roofline fusion

Each script runs in a process of its own, with the threads and cores of its question. The files of each go to
``results/``, the report with all tables and pictures to ``report.md`` beside it; those of a quick look to ``quick/``,
where they replace no measurement.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from profiling import QUESTIONS, Question
from profiling.peers.worker import environment
from profiling.question import FOLDER, n_cores, output_folder


def script_of(name: str) -> Path:
    """The script of a question: a file, or the ``__main__.py`` of a folder."""
    file = FOLDER / f"{name}.py"
    return file if file.is_file() else FOLDER / name / "__main__.py"


def ask(question: Question, folder: Path, quick: bool) -> str | None:
    """Run one script, its files into `folder`; what it said, if it failed."""
    command = [sys.executable, str(script_of(question.name)), "--output", str(folder), *["--quick"] * quick]
    done = subprocess.run(
        command,
        env=environment(question.n_threads or n_cores()),
        cwd=FOLDER.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return None if done.returncode == 0 else done.stdout


def section(name: str, results: Path, failed: bool) -> str:
    """The report's section on one question, from the files of its script."""
    if failed:
        return f"## {name}\n\nThis script failed.\n"
    wanted = json.loads((results / f"{name}.json").read_text(encoding="utf-8"))["question"]
    text = (results / f"{name}.md").read_text(encoding="utf-8").strip()
    shown = f"![{wanted}]({results.name}/{name}.png)\n\n" if (results / f"{name}.png").is_file() else ""
    return f"## {wanted}\n\n`python profiling/{script_of(name).relative_to(FOLDER)}`\n\n{shown}{text}\n"


def report(failed: Sequence[str], results: Path) -> str:
    """The whole report: what is in `results`, and which questions have just failed."""
    names = [q.name for q in QUESTIONS if q.name in failed or (results / f"{q.name}.json").is_file()]
    head = (
        "# Why it is fast: what `python -m profiling` measured\n\n"
        "Every variant was held against a reference before it was timed. Times are minima of repeats that take turns; "
        "below each table stand the machine and the threads that it was measured on.\n"
    )
    return "\n".join([head, *(section(name, results, name in failed) for name in names)])


def main(argv: Sequence[str] | None = None) -> int:
    """Ask the questions, write the report; 1 if a script failed."""
    parser = argparse.ArgumentParser(
        prog="python -m profiling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [question.name for question in QUESTIONS]
    parser.add_argument("--quick", action="store_true", help="fewer cases, shorter repeats")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument(
        "--output", type=Path, help="folder of report.md and results/; default: profiling/ or, quick, profiling/quick/"
    )
    arguments = parser.parse_args(argv)
    folder = arguments.output or output_folder(arguments.quick)
    results, failed = folder / "results", []
    asked = [q for q in QUESTIONS if q.name in arguments.only and script_of(q.name).is_file()]
    bar = tqdm(asked, unit="question", disable=None)
    for question in bar:
        bar.set_postfix_str(question.name)
        said = ask(question, results, arguments.quick)
        if said is not None:
            failed.append(question.name)
            print(f"{question.name} failed:\n{said}", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.md").write_text(report(failed, results), encoding="utf-8")
    print(f"report: {folder / 'report.md'}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
