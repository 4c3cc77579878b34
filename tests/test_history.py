"""nbbp.history: what fit returns."""

import math
import sys

import pytest

from nbbp.history import History


def two_epochs() -> History:
    history = History()
    history.record(1, {"loss": 2.0, "val_loss": 2.5})
    history.record(2, {"loss": 1.0, "val_loss": 1.5, "accuracy": 0.5})
    return history


def test_it_maps_names_to_one_float_per_epoch():
    history = two_epochs()
    assert history.epochs == [1, 2]
    assert history["loss"] == [2.0, 1.0]
    assert list(history) == ["loss", "val_loss", "accuracy"]
    assert len(history) == 3
    assert "val_loss" in history
    assert "lr" not in history
    assert dict(history)["val_loss"] == [2.5, 1.5]
    assert all(type(value) is float for series in history.values() for value in series)


def test_a_value_missing_in_an_epoch_is_nan():
    history = two_epochs()
    assert math.isnan(history["accuracy"][0])
    assert history["accuracy"][1] == 0.5


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(KeyError, match=r"'acc'.*'loss', 'val_loss', 'accuracy'"):
        two_epochs()["acc"]


def test_repr_shows_the_last_values():
    assert repr(two_epochs()) == "History(2 epochs; last: loss=1, val_loss=1.5, accuracy=0.5)"
    assert repr(History()) == "History(no epochs)"


def test_plot_draws_a_panel_per_quantity_and_saves(tmp_path):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    path = tmp_path / "new folder" / "curves.png"
    figure = two_epochs().plot(path)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["loss", "accuracy"]
    assert [line.get_label() for line in figure.axes[0].lines] == ["training", "validation"]
    assert path.read_bytes().startswith(b"\x89PNG")
    pyplot.close(figure)


def test_plot_of_one_epoch_and_of_nan():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    history = History()
    history.record(1, {"loss": math.nan})
    pyplot.close(history.plot())


def test_plot_without_epochs_says_so():
    with pytest.raises(ValueError, match="no epochs"):
        History().plot()


def test_plot_without_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"nbbp\[demos\]"):
        two_epochs().plot()


def test_only_names_and_numbers():
    history = two_epochs()
    for values in ({3: 1.0}, {"loss": None}, {"loss": "1"}):
        for change in (history.amend, lambda values: history.record(3, values)):
            with pytest.raises(TypeError, match="must be a"):
                change(values)
    assert list(history) == ["loss", "val_loss", "accuracy"]
