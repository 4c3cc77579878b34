"""The measurement on a GPU: its arithmetic, its table, and a small run of it."""

import numpy as np
import pytest

from profiling import cuda, cuda_peers
from profiling.cases import Case

SMALL = Case((3, 5, 2), 4, 6, 1.0)


def test_nbbp_is_held_to_the_reference_and_timed():
    (peer,) = cuda_peers.installed(["nbbp"])
    cuda.validate(peer, SMALL)
    times = cuda.measure(SMALL, [peer], repeats=2)
    assert times["nbbp"] > 0
    assert cuda.inference([peer], Case((3, 5, 2), 9, 1, 1.0), 1)[0].endswith("samples/s")


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_nbbp_in_the_precision_of_a_row(precision):
    (peer,) = cuda_peers.installed(["nbbp"])
    cuda.validate(peer, SMALL, precision, n=2)
    assert peer.model.precision == precision
    (found,) = cuda.inference([peer], Case((3, 5, 2), 9, 1, 1.0), 1, precision, wanted=1e12)
    assert found.endswith("samples/s (wanted ≥ 1e+12: missed)")


def test_losses_are_held_to_what_the_precision_gives(monkeypatch):
    (peer,) = cuda_peers.installed(["nbbp"])
    exact = type(peer).losses
    monkeypatch.setattr(type(peer), "losses", lambda peer, n: [loss * 1.005 for loss in exact(peer, n)])
    cuda.validate(peer, SMALL, "bf16", n=1)
    with pytest.raises(ValueError, match="the reference has"):
        cuda.validate(peer, SMALL, "tf32", n=1)


def test_a_peer_with_other_losses_is_left_out(capsys):
    class Wrong(cuda_peers.Nbbp):
        name = "wrong"

        def losses(self, n):
            return [loss * 1.01 for loss in super().losses(n)]

    assert cuda.measure(SMALL, [Wrong()], repeats=1) == {}
    assert "wrong: left out of 3-5-2 b4: ValueError: wrong: losses" in capsys.readouterr().err


def test_peers_that_find_no_gpu_are_named(capsys):
    if cuda_peers.rates() is not None:
        pytest.skip("PyTorch finds a GPU")
    assert [peer.name for peer in cuda_peers.installed(list(cuda_peers.PEERS))] == ["nbbp"]
    assert "torch-eager: left out" in capsys.readouterr().err


def test_rooflines():
    row = cuda.Row(SMALL, ratio=2.0)
    assert row.bytes_moved == 4 * (8 * (15 + 5 + 10 + 2) + 4 * 4 * 10)
    assert cuda.roofline(row, 1e6, 1e30) == pytest.approx(SMALL.flops)
    assert cuda.roofline(row, 1e30, 1e6) == pytest.approx(row.bytes_moved)
    half = cuda.Row(SMALL, ratio=2.0, precision="bf16")
    assert row.bytes_moved - half.bytes_moved == 2 * 4 * 4 * 10
    assert (row.name, half.name) == (SMALL.name, f"{SMALL.name} bf16")


def test_the_table_says_what_was_wanted_and_reached():
    row, small = cuda.Row(SMALL, ratio=2.0), cuda.Row(SMALL, microseconds=10.0)
    times = {"nbbp": 4.0, "torch-eager": 40.0, "jax-scan": 8.0}
    assert cuda.line(row, times, {})[-2:] == ["≥ 2× the best", "reached"]
    assert cuda.line(row, {**times, "torch-graph": 7.9}, {"float32": None})[-1] == "missed"
    assert cuda.line(row, {"nbbp": 4.0}, {})[-1] == "–"
    assert cuda.line(small, times, {})[-2:] == ["≤ 10 µs", "reached"]
    assert cuda.line(small, {"nbbp": 11.0}, {})[-1] == "missed"
    text = cuda.table([row, small], [times, {}], {"float32": (1e6, 1e30)})
    share = 100 * SMALL.flops / 4.0
    assert f"4 ({share:.0f} % of the roofline) | 40 (10.00×)" in text
    assert all(len(entry.split("|")) == len(cuda_peers.PEERS) + 6 for entry in text.splitlines()[2:])
    assert np.all([row.case.n_steps >= 10 for row in cuda.ROWS])
