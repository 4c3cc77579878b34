"""Signal handlers, finalizers and Ctrl-C that come while the same thread is in the midst of the arena."""

import dis
import functools
import itertools
import sys

import pytest

from nbbp import arena, autodiff
from nbbp.arena import Arena
from nbbp.autodiff import Value

FILES = {autodiff.__file__, arena.__file__}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """An arena of its own, which is soon full."""
    arena.compile_sweeps()
    monkeypatch.setattr(arena, "_SMALLEST", 64)
    return functools.partial(start_anew, monkeypatch)


def start_anew(monkeypatch):
    """Let the next operation find the arena full, after most of what it holds was dropped: it will shrink."""
    fresh = Arena()
    monkeypatch.setattr(autodiff, "_ARENA", fresh)
    monkeypatch.setattr(autodiff, "_LOCK", fresh.lock)
    junk = [Value(1.0) for _ in range(100)]
    x, y, other = Value(2.0, label="x"), Value(3.0), Value(0.5)
    junk.extend(Value(1.0) for _ in range(fresh.limit + 1 - fresh.n_nodes))
    assert fresh.capacity > 64
    return x, y, other


@functools.cache
def interruptible(code):
    """Where Python listens to signals and collects garbage: after calls, where functions begin and loops go on."""
    instructions = list(dis.get_instructions(code))
    pairs = itertools.pairwise(instructions)
    return {b.offset for a, b in pairs if a.opname.startswith(("CALL", "RESUME", "JUMP_BACK", "JUMP_ABS"))}


def traced(scenario, visit):
    """Run it, and `visit` a place in the code whenever something could come in between there."""

    def trace(frame, event, _):
        if frame.f_code.co_filename not in FILES:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode" and frame.f_lasti in interruptible(frame.f_code):
            visit((frame.f_code, frame.f_lasti))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        return scenario()
    finally:
        sys.settrace(before)


def places_in(start):
    """Every such place of `work`, and which times to come in between there: the first and the third."""
    visits = []
    traced(functools.partial(work, *start()[:2]), visits.append)
    return [(place, n) for place in dict.fromkeys(visits) for n in (1, 3) if visits.count(place) >= n]


def once(place, n, action):
    """To be called at every place; acts when it comes to this one for the n-th time."""
    seen = []

    def visit(where):
        if where == place:
            seen.append(where)
            if len(seen) == n:
                action()

    return visit


def work(x, y):
    """What everybody does; returns all there is to see."""
    z = x * y + 1.0
    z.label = "z"
    x.grad = y.grad = 0.0
    z.backward()
    seen = [z.data, x.grad, y.grad, z.label, len(z.graph), len(z.graph.nodes)]
    x.data = 4.0
    seen += [z.forward(), autodiff.where(Value(1.0), 5.0, 6.0).data, sorted(v.data for v in z._prev)]
    seen += [v.data for v in z.graph.values]
    x.data = 2.0
    return seen


def expected():
    return [7.0, 3.0, 2.0, "z", 5, 5, 13.0, 5.0, [1.0, 12.0], 4.0, 3.0, 12.0, 1.0, 13.0]


def fill(kept, other):
    """What a handler may do: build far more than there is room for, and write."""
    for k in range(300):
        kept.append(Value(float(k)) * other)
        del kept[:-3]
    other.grad = 0.0
    kept[-1].backward()
    other.label = "other"


def test_what_comes_in_between_changes_nothing(small):
    places = places_in(small)
    assert len(places) > 100
    for place, n in places:
        kept, (x, y, other) = [], small()
        seen = traced(functools.partial(work, x, y), once(place, n, functools.partial(fill, kept, other)))
        assert seen == expected(), place
        assert [value.data for value in kept] == [148.5, 149.0, 149.5], place
        assert (other.grad, other.label, x.label) == (299.0, "other", "x"), place
        assert autodiff._ARENA.depth == 0


def test_writing_in_between_is_not_lost(small):
    for place, n in places_in(small):
        x, y, other = small()
        assert traced(functools.partial(work, x, y), once(place, n, functools.partial(setattr, other, "data", 8.0)))
        assert other.data == 8.0, place


def test_memory_stays_bounded_where_every_compaction_is_disturbed(small, monkeypatch):
    x, y, other = small()
    real = arena.graph.mark_arguments

    def disturbed(*arguments):
        monkeypatch.setattr(arena.graph, "mark_arguments", real)
        other.grad = float((other * 2.0).data)
        monkeypatch.setattr(arena.graph, "mark_arguments", disturbed)
        real(*arguments)

    monkeypatch.setattr(arena.graph, "mark_arguments", disturbed)
    for _ in range(2000):
        assert (x * y).data == 6.0
    assert other.grad == 1.0
    assert autodiff._ARENA.capacity <= 128


def test_an_interrupt_does_not_tear_values_from_their_nodes(small):
    def interrupt():
        raise KeyboardInterrupt

    for place, n in places_in(small):
        x, y, other = small()
        with pytest.raises(KeyboardInterrupt):
            traced(functools.partial(work, x, y), once(place, n, interrupt))
        assert x.data in (2.0, 4.0)
        x.data = 2.0
        assert (y.data, other.data, x.label) == (3.0, 0.5, "x"), place
        assert work(x, y) == expected(), place


def test_a_finalizer_while_the_result_is_made(small, monkeypatch):
    x, y, other = small()
    kept, real, armed = [], object.__new__, [True]

    def new(kind):
        if armed:
            armed.clear()
            fill(kept, other)
        return real(kind)

    monkeypatch.setattr(autodiff, "_new", new)
    assert work(x, y) == expected()
    assert [value.data for value in kept] == [148.5, 149.0, 149.5]


def test_a_number_that_builds_values_while_it_is_read(small):
    x, _, other = small()

    class Third:
        def __float__(self):
            fill([], other)
            return 1 / 3

    x.data, x.grad = Third(), Third()
    assert (x.data, x.grad) == (1 / 3, 1 / 3)
