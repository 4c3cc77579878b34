"""Conversions to and from 16 bits: every code and millions of floats, by instructions and by integer arithmetic."""

import numba
import numpy as np
import pytest
import reference_mixed
from kernel_calls import Guarded

from nbbp.cpu import half, simd
from nbbp.ops import BF16, FP16

NAMES = {BF16: "bf16", FP16: "fp16"}
#: Every number of 16 bits, of either format.
ALL_CODES = np.arange(1 << 16, dtype=np.uint16)


def narrowed(x: np.ndarray, code: int) -> np.ndarray:
    return reference_mixed.narrowed(x, NAMES[code])


def widened(codes: np.ndarray, code: int) -> np.ndarray:
    return reference_mixed.widened(codes, NAMES[code])


@pytest.fixture(scope="module", params=["instructions", "arithmetic"])
def rows(request):
    """Jitted functions of arrays that call the three conversions, compiled for either way."""
    if request.param == "instructions" and not half.HAS_INSTRUCTIONS:
        pytest.skip("this processor has no instructions for fp16")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(half, "HAS_INSTRUCTIONS", request.param == "instructions")
        address, pointer, number = simd.address_of, simd.pointer, np.float32(0)

        @numba.njit
        def narrow(out, x, code, flushes):
            state = simd.flush_denormals() if flushes else 0
            half.narrow_row(pointer(address(out), np.uint16(0)), pointer(address(x), number), len(x), code)
            if flushes:
                simd.restore_denormals(state)

        @numba.njit
        def rounded(out, x, code):
            half.round_row(pointer(address(out), number), pointer(address(x), number), len(x), code)

        @numba.njit
        def widen(out, x, code, flushes):
            state = simd.flush_denormals() if flushes else 0
            half.widen_row(pointer(address(out), number), pointer(address(x), np.uint16(0)), len(x), code)
            if flushes:
                simd.restore_denormals(state)

        for flushes in (False, True):
            narrow(np.zeros(16, np.uint16), np.zeros(16, np.float32), BF16, flushes)
            widen(np.zeros(16, np.float32), np.zeros(16, np.uint16), BF16, flushes)
        rounded(np.zeros(16, np.float32), np.zeros(16, np.float32), BF16)
    return narrow, rounded, widen


def floats() -> np.ndarray:
    """Any bits; the range of fp16; every number of 16 bits, its ties with the next, and what lies beside them."""
    random = np.random.default_rng(0)
    anything = random.integers(0, 1 << 32, 1 << 20, dtype=np.uint32).view(np.float32)
    small = np.ldexp(random.uniform(-1.0, 1.0, 1 << 20), random.integers(-28, 18, 1 << 20)).astype(np.float32)
    parts = [anything, small]
    for exact in (widened(ALL_CODES, BF16), widened(ALL_CODES & np.uint16(0x7FFF), FP16)):
        with np.errstate(invalid="ignore", over="ignore"):
            ties = ((exact[:-1].astype(np.float64) + exact[1:]) / 2).astype(np.float32)
        for values in (exact[:-1], ties):
            bits = values.view(np.uint32)
            parts += [values, (bits + np.uint32(1)).view(np.float32), (bits - np.uint32(1)).view(np.float32)]
    x = np.concatenate(parts)
    return x[: len(x) // 16 * 16]


def same(actual: np.ndarray, expected: np.ndarray, is_nan: np.ndarray) -> None:
    """Equal to the bit, but for what NaN holds beside being one."""
    np.testing.assert_array_equal(actual[~is_nan], expected[~is_nan])


@pytest.mark.parametrize("flushes", [False, True])
@pytest.mark.parametrize("code", [BF16, FP16])
def test_every_code_becomes_its_number(rows, code, flushes):
    out = np.empty(1 << 16, np.float32)
    rows[2](out, ALL_CODES, code, flushes)
    expected = widened(ALL_CODES, code)
    assert (np.isnan(out) == np.isnan(expected)).all()
    same(out.view(np.uint32), expected.view(np.uint32), np.isnan(expected))


@pytest.mark.parametrize("flushes", [False, True])
@pytest.mark.parametrize("code", [BF16, FP16])
def test_floats_are_rounded_to_the_nearest(rows, code, flushes):
    x = floats()
    expected, given = narrowed(x, code), x.copy()
    out, in_float32 = np.empty(len(x), np.uint16), np.empty(len(x), np.float32)
    rows[1](in_float32, x, code)
    rows[0](out, given, code, flushes)
    is_nan = np.isnan(x)
    assert np.isnan(widened(out, code)[is_nan]).all()
    same(out, expected, is_nan)
    for back in (given, in_float32):
        assert (np.isnan(back) == is_nan).all()
        same(back.view(np.uint32), widened(expected, code).view(np.uint32), is_nan)


def test_nan_keeps_sign_and_upper_payload_either_way(rows):
    x = np.array([0x7F800001, 0xFFC12345, 0x7FFFFFFF, 0xFF923456] * 4, np.uint32).view(np.float32)
    out = np.empty(16, np.uint16)
    rows[0](out, x.copy(), FP16, False)
    assert [hex(code) for code in out[:4]] == ["0x7e00", "0xfe09", "0x7fff", "0xfe91"]
    rows[0](out, x.copy(), BF16, False)
    assert [hex(code) for code in out[:4]] == ["0x7fc0", "0xffc1", "0x7fff", "0xffd2"]


def test_agrees_with_pytorch(rows):
    torch = pytest.importorskip("torch")
    x = floats()
    for code, dtype in ((BF16, torch.bfloat16), (FP16, torch.float16)):
        out = np.empty(len(x), np.uint16)
        rows[0](out, x.copy(), code, False)
        expected = torch.from_numpy(x).to(dtype).view(torch.int16).numpy().view(np.uint16)
        same(out, expected, np.isnan(x))


@pytest.mark.parametrize("code", [BF16, FP16])
def test_nothing_is_written_outside(rows, code):
    x = Guarded(np.linspace(-3.0, 3.0, 48), np.float32)
    out, back = Guarded(np.zeros(48), np.uint16, guard=7), Guarded(np.zeros(48), np.float32)
    rows[0](out.values, x.values, code, False)
    rows[2](back.values, out.values, code, False)
    np.testing.assert_array_equal(back.values, x.values)
    for guarded in (x, out, back):
        guarded.assert_guards()
