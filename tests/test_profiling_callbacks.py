"""What looking on costs: the smallest measurement, its tables and its picture."""

import pytest

from profiling import callbacks, question


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("callbacks")
    assert callbacks.main(["--quick", "--output", str(folder)]) == 0
    return folder


def test_files(results):
    assert {file.name for file in results.iterdir()} >= {"callbacks.json", "callbacks.md"}
    text = (results / "callbacks.md").read_text(encoding="utf-8")
    for name in ("EarlyStopping", "LearningRateScheduler", "CSVLogger", "Monitor", "4-16-16-2 b1"):
        assert name in text


def test_shares_are_of_a_hundred_updates():
    row = {"steps": 100, "microseconds": 2.0, "overhead": 0.5, "longer": 4.0, "share": 0.02}
    measured = {"epochs": {"none": 0.0, "EarlyStopping": 12.34}, "shapes": {"a b1": row}, **question.conditions()}
    text = callbacks.table(measured)
    assert "| EarlyStopping | 12.34 |" in text
    assert "none" not in text
    assert "| a b1 | 2.00 | 4.00 | 2.00 % | +50.0 % |" in text
