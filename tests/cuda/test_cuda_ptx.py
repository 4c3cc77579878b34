"""Every kernel compiled for GPUs that need not be there: to PTX, and by ptxas without spills or local memory."""

import functools
import re

import numpy as np
import pytest
from numba import njit

pytest.importorskip("numba_cuda")

from nbbp.cuda import adafactor, fused_programs, fused_tile, kernels, tensor_chain, tensor_product
from nbbp.cuda.kernels import OVER_ROWS, TRANSPOSED
from nbbp.cuda.tensor_cores import BF16, COLUMNS, FP16, ROWS, TF32
from nbbp.device_functions import CudaFunctions
from nbbp.layers import Dense
from nbbp.losses import Crossentropy
from nbbp.network import Sequential
from nbbp.ops import UserFunction
from profiling import cuda_registers
from profiling.cuda_registers import everything, figures, ptxas

pytestmark = pytest.mark.slow
ptx_of = functools.cache(cuda_registers.ptx_of)
KERNELS = list(everything())
PRODUCTS = ("product", "tensor_product")
#: Kernels whose registers matter, beyond what holds for all.
WITH_REGISTERS = (*PRODUCTS, "tensor_chain")
#: What every kernel is compiled for; those for all four, as far as they are of that dtype.
TARGETS = [("float32", (9, 0)), ("float64", (8, 0))]
MORE = [("float32", (8, 0)), ("float64", (9, 0))]
CASES = [(*kernel, *target) for target in TARGETS for kernel in everything(dtype=target[0])]
CASES += [
    (*kernel, *target) for target in MORE for kernel in everything(dtype=target[0]) if kernel[0] in WITH_REGISTERS
]
#: Kernels that add up in float64 whatever the dtype: losses, metrics, norms of gradients; the rate of a mask.
TAKE_FLOAT64 = (
    "loss", "losses_are_finite", "gradient_is_finite", "crossentropy", "nll", "metric", "adafactor",
    "prepare_gradient", "finish_gradient", "train_chain", "dropout", "stochastic_depth", "first_row_not_summing_to_one",
    "fused_gradient",
)  # fmt: skip
#: A thread may hold so many registers, and all threads of a block together, on every GPU that numba-cuda supports.
MOST_REGISTERS, MOST_OF_BLOCK = 255, 1 << 16


def threads_of(name, variant) -> int:
    """Threads of a block of this kernel."""
    if name in PRODUCTS:
        return variant[1].threads
    if name in ("fused_forward", "fused_gradient"):
        return fused_programs._RESIDENT * fused_tile.THREADS  # of all blocks that are to be there together
    if name == "tensor_chain":
        return tensor_chain.THREADS
    if name in ("batch_norm_statistics", "batch_norm_sums", "norm_of_rows_gradient"):
        return kernels.COLUMN_LANES * kernels.COLUMNS
    return adafactor.THREADS if name == "adafactor" else kernels.THREADS


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
    assert ("mma.sync" in ptx) == name.startswith("tensor_"), "tensor cores where they were not asked for, or not"
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
    assert found.registers * threads_of(name, variant) <= MOST_OF_BLOCK


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_networks_in_kernels_of_the_users_own(dtype, monkeypatch):
    """Their scratch is local memory, and nothing else of them is."""
    from types import SimpleNamespace

    from numba import cuda, types
    from numba.cuda import dispatcher

    monkeypatch.setattr(dispatcher, "get_current_device", lambda: SimpleNamespace(compute_capability=(9, 0)))
    network = Sequential([Dense(8, "tanh"), Dense(4, "gelu"), Dense(3, "softmax")], n_in=5)
    functions = CudaFunctions(network, Crossentropy(), dtype)
    predict, backpropagate, n = functions.predict, functions.backpropagate, functions.n_scratch
    loss_and_gradient = functions.loss_and_gradient
    number = getattr(types, dtype)

    def kernel(parameters, x, out, d, gradient, back, total):
        scratch = cuda.local.array(n, number)
        predict(parameters, x, out, scratch)
        backpropagate(parameters, x, d, gradient, back, scratch)
        total[0] = loss_and_gradient(parameters, x, 2, gradient, scratch)

    ptx, _ = cuda.compile_ptx(kernel, (number[::1],) * 6 + (types.float64[::1],), cc=(9, 0))
    assert ".visible .entry" in ptx
    if ptxas() is not None:
        found = figures(ptx, (9, 0), ptxas())
        assert found.spills == 0
        assert found.stack <= 8 * (n + 32)


@njit
def cubed(v):
    return v * v * v


@njit(error_model="numpy")
def cube_forward(parameters, x, y):
    for i in range(x.size):
        y[i] = parameters[i] * cubed(x[i]) + np.tanh(x[i])


@njit(error_model="numpy")
def cube_backward(parameters, x, y, d_y, d_x, gradient):
    for i in range(x.size):
        t = np.tanh(x[i])
        d_x[i] = (3 * parameters[i] * x[i] * x[i] + 1 - t * t) * d_y[i]
        gradient[i] += cubed(x[i]) * d_y[i]


@pytest.mark.parametrize(("name", "function"), [("custom_forward", cube_forward), ("custom_backward", cube_backward)])
def test_layers_of_the_users_own(name, function):
    """Jitted for the CPU, with what they call: they are compiled for the GPU as they stand."""
    ptx = ptx_of(name, "float32", UserFunction(function, "a layer"), (9, 0))
    assert ".visible .entry" in ptx


@pytest.mark.parametrize("name", ["product", "update", "crossentropy"])
def test_kernels_are_cached_by_all_sources(name):
    """Their key on disk holds every file that machine code comes from; making it needs no GPU."""
    from numba import cuda

    variant = next(variant for other, variant in KERNELS if other == name)
    dispatcher = cuda.jit(kernels.function(name, "float32", variant))
    dispatcher.enable_caching()
    assert isinstance(dispatcher._cache._cache_file._source_stamp, tuple)
    assert kernels._stamp() == kernels._stamp()


@pytest.mark.parametrize("cc", [(8, 0), (9, 0)])
@pytest.mark.parametrize("variant", tensor_product.VARIANTS, ids=str)
def test_products_on_tensor_cores_are_made_of_their_instructions(variant, cc):
    """The format's multiplication and conversion and no other; whole quads from memory, to panels and to fragments."""
    layout, tile, code = variant
    ptx = ptx_of("tensor_product", "float32", variant, cc)
    multiplies = {
        TF32: "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",
        BF16: "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
        FP16: "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
    }
    converts = {TF32: "cvt.rna.tf32.f32", BF16: "cvt.rn.bf16x2.f32", FP16: "cvt.rn.f16x2.f32"}
    per_stage = (tile.tall // ROWS) * (tile.wide // COLUMNS)
    assert ptx.count("mma.sync") == ptx.count(multiplies[code])
    assert ptx.count("mma.sync") in (per_stage, 2 * per_stage), "a loop over tiles was not unrolled"
    assert converts[code] in ptx
    assert not any(other in ptx for other in set(converts.values()) - {converts[code]})
    assert "ld.global.v4.f32" in ptx
    assert "st.global.v2.f32" in ptx
    assert re.search(r"st\.shared\.v[24]\.[bu]32", ptx)
    assert not re.search(r"st\.shared\.[bu]32", ptx)
    # fragments come by `ldmatrix` of what lies along k, and by single words of what lies across
    assert ("ldmatrix" in ptx) == (layout != OVER_ROWS)
    assert bool(re.search(r"ld\.shared\.[bu]32", ptx)) == (layout != TRANSPOSED)
    if ptxas() is not None:
        found = figures(ptx, cc, ptxas())
        assert found.shared <= 48 * 1024
        # two blocks of the largest tiles on a multiprocessor; one of those of 16 bits over rows
        n_blocks = 1 if layout == OVER_ROWS and code != TF32 else 2
        assert n_blocks * tile.threads * found.registers <= MOST_OF_BLOCK


@pytest.mark.parametrize("cc", [(8, 0), (9, 0)])
def test_two_blocks_of_a_chain_on_tensor_cores_share_a_multiprocessor(cc):
    """And its layers are in registers: a multiplication for each tile, two words of a weight from shared memory."""
    for name, variant in KERNELS:
        if name == "tensor_chain":
            ptx = ptx_of(name, "float32", variant, cc)
            assert ptx.count("mma.sync") == tensor_chain.DEEP * tensor_chain.WIDE
            assert len(re.findall(r"ld\.shared\.[bu]32", ptx)) == 2 * tensor_chain.DEEP * tensor_chain.WIDE
            if ptxas() is not None:
                found = figures(ptx, cc, ptxas())
                assert 2 * found.registers * tensor_chain.THREADS <= MOST_OF_BLOCK
                assert found.shared <= 48 * 1024


@pytest.mark.parametrize("cc", [(8, 0), (9, 0)])
@pytest.mark.parametrize(("dtype", "vector"), [("float32", "v4.f32"), ("float64", "v2.f64")])
def test_products_move_128_bits_at_a_time(dtype, vector, cc):
    """From global memory, beside single numbers at edges; from shared memory nothing else; results back."""
    for name, variant in KERNELS:
        if name == "product" and variant[1].tall == 8:
            ptx = ptx_of(name, dtype, variant, cc)
            assert f"ld.global.{vector}" in ptx
            assert f"ld.shared.{vector}" in ptx
            assert f"st.global.{vector}" in ptx
            assert f"ld.shared.{vector[-3:]}" not in ptx
            assert "bar.sync" in ptx


@pytest.mark.parametrize("cc", [(8, 0), (9, 0)])
def test_two_blocks_of_the_largest_products_share_a_multiprocessor(cc):
    if ptxas() is None:
        pytest.skip("ptxas is not installed: nvidia-cuda-nvcc")
    for name, variant in KERNELS:
        if name == "product" and variant[1].tall == 8:
            found = figures(ptx_of(name, "float32", variant, cc), cc, ptxas())
            assert 2 * found.registers * variant[1].threads <= MOST_OF_BLOCK


@pytest.mark.parametrize("cc", [(8, 0), (9, 0)])
def test_fused_steps_read_shared_memory_by_128_bits(cc):
    """Of the largest tile: three loads for each line of a product, twelve for each four rows of a weight gradient."""
    tile = fused_tile.TILES[-1]
    variant = next(variant for name, variant in KERNELS if name == "fused_gradient" and variant[-1] == tile)
    ptx = ptx_of("fused_gradient", "float32", variant, cc)
    lines = 5  # four together, and one where fewer are left
    assert ptx.count("ld.shared.v4.f32") >= 2 * 3 * lines + 12
