"""The frame of the profiling suite: how it times, what it writes, and how it runs its scripts."""

import itertools
import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from profiling import QUESTIONS, Question, __main__, question


def fake(tmp_path, value=2.0):
    """A question that measures nothing."""

    def draw(results, path):
        with question.picture(path, 3.0, 2.0, "a picture") as figure:
            figure.add_subplot().plot([0, results["seconds"]])

    return SimpleNamespace(
        __file__=str(tmp_path / "what.py"),
        __doc__="What is it?\n\nMore of it.",
        measure=lambda quick: {"seconds": value, **question.conditions()},
        table=lambda results: question.markdown_table(["what", "s"], [["it", question.digits(results["seconds"])]]),
        draw=draw,
    )


def test_calls_take_turns_and_are_timed_one_by_one():
    order = []

    def short():
        order.append("short")

    def long():
        order.append("long")
        time.sleep(0.002)

    timed = question.time_in_turn({"short": short, "long": long}, seconds=0.02, least_turns=4)
    assert 0.002 <= timed["long"]["minimum"] <= timed["long"]["median"]
    assert timed["short"]["minimum"] < 1e-4
    assert timed["short"]["repeats"] == timed["long"]["repeats"] >= 4
    turns = [name for before, name in itertools.pairwise(order) if name != before]
    assert turns[-4:] == ["short", "long", "short", "long"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0"),
        (0.4123, "0.412"),
        (65.31, "65.3"),
        (999.7, "1,000"),
        (28_512, "28,500"),
        (2e-6, "2.0e-06"),
        (3, "3.00"),
    ],
)
def test_figures_have_three_digits(value, expected):
    assert question.digits(value) == expected


def test_a_question_prints_and_writes_its_answer(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert question.run(fake(tmp_path), ["--quick", "--output", str(tmp_path / "new")]) == 0
    text = (tmp_path / "new" / "what.md").read_text(encoding="utf-8")
    assert "| it | 2.00 |" in text
    assert text in capsys.readouterr().out
    results = json.loads((tmp_path / "new" / "what.json").read_text(encoding="utf-8"))
    assert (results["question"], results["quick"], results["seconds"]) == ("What is it?", True, 2.0)
    assert question.conditions_text(results) in text
    assert results["machine"]["cpu"] in text
    assert set(question.THREAD_VARIABLES) < set(results["threads"])
    assert (tmp_path / "new" / "what.png").read_bytes().startswith(b"\x89PNG")


def test_a_rough_look_does_not_write_over_measurements(tmp_path, monkeypatch):
    monkeypatch.setattr(question, "FOLDER", tmp_path / "profiling")
    question.run(fake(tmp_path), [])
    measured = (tmp_path / "profiling" / "results" / "what.json").read_bytes()
    question.run(fake(tmp_path), ["--quick"])
    assert (tmp_path / "profiling" / "results" / "what.json").read_bytes() == measured
    rough = (tmp_path / "profiling" / "quick" / "results" / "what.json").read_text(encoding="utf-8")
    assert json.loads(rough)["quick"]


def test_a_script_runs_with_the_threads_of_its_question(tmp_path):
    script = tmp_path / "fusion.py"
    script.write_text(
        "import os, sys\nfrom profiling import question\nquestion.hold_threads(__file__)\n"
        "print(*(os.environ[name] for name in question.THREAD_VARIABLES), *sys.argv[1:], question.n_cores())\n"
        "raise SystemExit(3)\n",
        encoding="utf-8",
    )
    held = {**os.environ, "OMP_NUM_THREADS": "7", "PYTHONPATH": str(question.FOLDER.parent)}
    done = subprocess.run([sys.executable, script, "--quick"], env=held, capture_output=True, text=True, timeout=300)
    assert done.returncode == 3, done.stderr
    cores = "1" if hasattr(os, "sched_setaffinity") else str(os.cpu_count())
    assert done.stdout.split() == ["1"] * len(question.THREAD_VARIABLES) + ["--quick", cores]


def test_the_suite_reports_every_answer_and_every_failure(tmp_path, monkeypatch, capsys):
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").touch()
    asked = []

    def ask(wanted, folder, quick):
        asked.append((wanted.name, quick))
        if wanted.name == "two":
            return "a traceback"
        module = fake(tmp_path)
        module.__file__ = f"{wanted.name}.py"
        question.run(module, ["--output", str(folder)])
        return None

    monkeypatch.setattr(__main__, "FOLDER", tmp_path)
    monkeypatch.setattr(__main__, "QUESTIONS", (Question("one", 1), Question("two", None), Question("missing", 1)))
    monkeypatch.setattr(__main__, "ask", ask)
    assert __main__.main(["--quick", "--output", str(tmp_path / "out")]) == 1
    assert asked == [("one", True), ("two", True)]
    assert "two failed:\na traceback" in capsys.readouterr().err
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "## What is it?\n\n`python profiling/one.py`\n" in report
    assert "| it | 2.00 |" in report
    assert "](results/one.png)" in report
    assert "## two\n\nThis script failed." in report
    assert __main__.main(["--only", "one", "--output", str(tmp_path / "out")]) == 0
    assert "failed" not in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


def test_a_failing_script_says_why(tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text("raise RuntimeError('why')", encoding="utf-8")
    monkeypatch.setattr(__main__, "FOLDER", tmp_path)
    assert "RuntimeError: why" in __main__.ask(Question("broken", 1), tmp_path, quick=True)


def test_questions_are_named_once():
    names = [wanted.name for wanted in QUESTIONS]
    assert len(set(names)) == len(names)
    for name in names:
        script = __main__.script_of(name)
        if script.is_file():
            text = script.read_text(encoding="utf-8")
            assert all(f"def {part}(" in text for part in ("measure", "table", "draw", "main")), name
