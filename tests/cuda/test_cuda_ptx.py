"""Every kernel compiled for GPUs that need not be there: to PTX, and by ptxas without spills or local memory."""

import re

import pytest

pytest.importorskip("numba_cuda")

from profiling.cuda_registers import everything, figures, ptx_of, ptxas

pytestmark = pytest.mark.slow
KERNELS = list(everything())
#: What every kernel is compiled for; products, whose registers matter, for all four.
TARGETS = [("float32", (9, 0)), ("float64", (8, 0))]
OF_PRODUCTS = [("float32", (8, 0)), ("float64", (9, 0))]
CASES = [(name, variant, *target) for name, variant in KERNELS for target in TARGETS]
CASES += [(name, variant, *target) for name, variant in KERNELS for target in OF_PRODUCTS if name == "product"]
#: Kernels that add up in float64 whatever the dtype: losses, metrics, norms of gradients; the rate of a mask.
TAKE_FLOAT64 = (
    "loss", "losses_are_finite", "gradient_is_finite", "crossentropy", "nll", "metric", "adafactor",
    "prepare_gradient", "finish_gradient", "train_chain", "dropout", "stochastic_depth", "first_row_not_summing_to_one",
)  # fmt: skip
#: A thread may hold so many on every GPU that numba-cuda supports.
MOST_REGISTERS = 255


@pytest.fixture(scope="module", autouse=True)
def _compiler():
    from numba.cuda.cudadrv.error import NvvmSupportError

    try:
        ptx_of(KERNELS[0][0], "float32", KERNELS[0][1], (9, 0))
    except NvvmSupportError:
        pytest.skip("NVIDIA's compiler is not installed: nvidia-nvvm and nvidia-cuda-nvrtc")


@pytest.mark.parametrize(("name", "variant", "dtype", "cc"), CASES)
def test_kernels_compile_without_spills(name, variant, dtype, cc, record_property):
    ptx = ptx_of(name, dtype, variant, cc)
    if dtype == "float32" and name not in TAKE_FLOAT64:
        assert not re.search(r"\b(add|sub|mul|fma|div|sqrt|min|max|setp)\.[a-z.]*f64", ptx), "lifted to float64"
    assembler = ptxas()
    if assembler is None:
        assert ".local" not in ptx
        return
    found = figures(ptx, cc, assembler)
    record_property("registers", found.registers)
    assert (found.stack, found.spills) == (0, 0)
    assert 0 < found.registers <= MOST_REGISTERS


@pytest.mark.parametrize("cc", [(8, 0), (9, 0)])
def test_products_read_shared_memory_by_128_bits(cc):
    """Both operands of the large tiles: two loads for each column of A, two for each line of B."""
    for name, variant in KERNELS:
        if name == "product" and variant[1].tall == 8:
            assert "ld.shared.v4.f32" in ptx_of(name, "float32", variant, cc)
