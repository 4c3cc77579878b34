"""The programs: what is lowered for training, evaluation and prediction, and how it is cut into tiles and phases."""

from collections.abc import Sequence

import numpy as np

from nbbp import ops, tiling
from nbbp.custom_layer import Custom
from nbbp.layers import Activation
from nbbp.losses import Loss
from nbbp.lowering import Lowering, adafactor_offsets, padded, takes_logits
from nbbp.metrics import Metric
from nbbp.network import Sequential
from nbbp.optimizers import Optimizer
from nbbp.program import Place, Program


def slot_lengths(network: Sequential, optimizer: Optimizer) -> list[int]:
    """Numbers in each of the optimizer's slots."""
    if optimizer.rule == "adafactor":
        return [adafactor_offsets(network)[-1]]
    return [network.n_parameters] * optimizer.n_slots


def prediction_program(network: Sequential, batch: int, also: Activation | None = None) -> Program:
    """What the last layer gives for rows of "X", into "output"; followed by the activation `also`."""
    lowering = Lowering(network, batch)
    out = lowering.forward(lowering.gather(), skip_last_activation=False)
    if also is not None:
        out = lowering.activation(len(network.layers), also, out, in_place=False)
    program = lowering.program
    program.add(
        "copy_out",
        x=Place(out.buffer),
        x_stride=out.stride,
        y=Place("output"),
        y_stride=out.width,
        n_out=out.width,
    )
    return _forward_only(lowering)


def evaluation_program(
    network: Sequential, loss: Loss, metrics: Sequence[Metric], batch: int, target_is_labels: bool
) -> Program:
    """Loss and metrics of every row."""
    lowering = Lowering(network, batch)
    out = lowering.forward(lowering.gather(), takes_logits(network, loss))
    lowering.loss(loss, out, target_is_labels, with_gradient=False)
    lowering.metrics(metrics, loss, out, target_is_labels)
    return _forward_only(lowering)


def _forward_only(lowering: Lowering) -> Program:
    """Blocks of rows through all ops."""
    program = lowering.program
    program.is_shared = tiling.is_shared(2.0 * program.batch * lowering.network.n_parameters)
    return _with_tiles(program, [tiling.row_tiles(0, len(program.ops), program.batch, tiling.FORWARD_ROWS)])


def training_program(
    network: Sequential,
    loss: Loss,
    optimizer: Optimizer | None,
    metrics: Sequence[Metric],
    batch: int,
    target_is_labels: bool,
    keeps_good: bool = False,
) -> Program:
    """Forward, loss, metrics, backward and update; without an optimizer the gradient stays in "gradient".

    With `keeps_good`, parameters at which the loss was finite are kept in "good parameters" (see cpu/snapshot.py).
    """
    lowering = Lowering(network, batch)
    program = lowering.program
    out = lowering.forward(lowering.gather(), takes_logits(network, loss))
    d_out = lowering.loss(loss, out, target_is_labels, with_gradient=True)
    lowering.metrics(metrics, loss, out, target_is_labels)
    shapes = _shapes(network)
    program.is_shared = tiling.is_shared(tiling.work(shapes, batch))
    plan = tiling.plan(shapes, batch, by_rows=any(isinstance(layer, Custom) for layer in network.layers))
    rows = tiling.partial_rows(shapes, batch) if plan == tiling.PARTIAL else batch
    operands = lowering.backward(d_out, rows)
    n_partials = -(-batch // rows)
    if plan == tiling.PARTIAL:
        phases = _partial_phases(lowering, operands, optimizer, keeps_good, rows)
    elif plan == tiling.ALONE:
        for index, (x, d) in operands.items():
            lowering.weight_gradient(index, x, d, Place("gradient"))
        if keeps_good:
            lowering.snapshot(0, network.n_parameters, (0, 1), 1)
        _update_everything(lowering, optimizer)
        phases = [[(0, len(program.ops), 0, batch, 0, tiling.ALL)]]
    else:
        phases = _phases_by_op(program)
        phases.append(_parameter_phase(lowering, operands, optimizer, keeps_good))
    if any(place.buffer == "gradient" for op in program.ops for place in op.places()):
        program.buffers["gradient"] = n_partials * padded(network.n_parameters)
    return _with_tiles(program, phases)


def _shapes(network: Sequential) -> list[tuple[int, int]]:
    """(n_in, n_out) of the layers that work: the dense ones, and custom ones as if they were."""
    sizes = zip((network.n_in, *network.widths), network.widths, strict=False)
    return [shape for layer, shape in zip(network.layers, sizes, strict=True) if not isinstance(layer, Activation)]


def _update_everything(lowering: Lowering, optimizer: Optimizer | None) -> None:
    """Update ops over the whole buffer."""
    network = lowering.network
    if optimizer is None:
        return
    if optimizer.rule == "adafactor":
        for index in range(len(network.layers)):
            lowering.adafactor(optimizer, index)
    else:
        names = [parameter.name for parameter in network.parameters]
        lowering.updates(optimizer, names, 0, Place("gradient"), (0, 1), 1)


def _partial_phases(
    lowering: Lowering, operands: dict, optimizer: Optimizer | None, keeps_good: bool, rows: int
) -> list[list[tuple]]:
    """A partial gradient per block of rows; then their sum in order, and the update."""
    program, network = lowering.program, lowering.network
    n = network.n_parameters
    for index, (x, d) in operands.items():
        lowering.weight_gradient(index, x, d, Place("gradient"), slot_rows=rows, slot_stride=padded(n))
    phases = [tiling.row_tiles(0, len(program.ops), program.batch, rows)]
    reduction = program.add("reduce_gradient", y=Place("gradient"), slot_rows=rows, slot_stride=padded(n))
    if keeps_good:
        lowering.snapshot(0, n, (0, 1), 1)
    after = len(program.ops)
    _update_everything(lowering, optimizer)
    stop = len(program.ops)
    if optimizer is not None and optimizer.rule == "adafactor":
        phases.append(tiling.column_tiles(reduction, after, program.batch, n, tiling.PARAMETERS))
        phases.append([(op, op + 1, 0, program.batch, 0, tiling.ALL) for op in range(after, stop)])
    else:
        phases.append(tiling.column_tiles(reduction, stop, program.batch, n, tiling.PARAMETERS))
    return phases


def _parameter_phase(lowering: Lowering, operands: dict, optimizer: Optimizer | None, keeps_good: bool) -> list[tuple]:
    """Per panel and block of rows of a weight: the gradient over the whole batch, and the update while it is in cache.

    Panels that lie at the same part of their layers follow each other, so that a thread's stretch of tiles holds the
    weights of the outputs that are its own in the forward products too.
    """
    program, network = lowering.program, lowering.network
    is_whole = optimizer is None or optimizer.rule == "adafactor"
    tiles = []
    for index, (x, d) in operands.items():
        layer = network.layers[index]
        n_rows, base = x.width + layer.use_bias, lowering.offsets[f"{index}.weight"]
        names = [parameter.name for parameter in network.parameters if parameter.layer_index == index]
        whole = optimizer is not None and is_whole
        for panel in [(0, layer.n_out)] if whole else tiling.panels(layer.n_out):
            width = panel[1] - panel[0]
            size = n_rows if whole else max(1, tiling.PARAMETERS // width)
            first = len(program.ops)
            lowering.weight_gradient(index, x, d, Place("gradient") if is_whole else 0, panel)
            if keeps_good:
                lowering.snapshot(base, n_rows, panel, layer.n_out)
            if whole:
                lowering.adafactor(optimizer, index)
            elif optimizer is not None:
                lowering.updates(optimizer, names, base, 0, panel, layer.n_out)
                program.scratch = max(program.scratch, min(size, n_rows) * width)
            part = panel[0] / layer.n_out
            for tile in tiling.column_tiles(first, len(program.ops), program.batch, n_rows, size):
                tiles.append((part, tile))
    return [tile for _, tile in sorted(tiles, key=lambda pair: pair[0])]


def _phases_by_op(program: Program) -> list[list[tuple]]:
    """For wide layers: a phase per product with what follows it elementwise, cut by rows and columns."""
    starts, stop = [0], len(program.ops)
    for row in range(1, stop):
        kernel = program.ops[row].kernel
        if kernel == "product" or (not kernel.startswith("activation") and kernel != "metric"):
            starts.append(row)
    phases = []
    for first, last in zip(starts, [*starts[1:], stop], strict=True):
        op = program.ops[first]
        if op.kernel == "product":
            phases.append(tiling.product_tiles(first, last, program.batch, op.columns[ops.N_IN], op.columns[ops.N_OUT]))
        else:
            phases.append(tiling.row_tiles(first, last, program.batch, tiling.FORWARD_ROWS))
    return phases


def _with_tiles(program: Program, phases: list[list[tuple]]) -> Program:
    """Put the tiles of the phases into the program."""
    program.tiles = np.array([tile for phase in phases for tile in phase], np.int64)
    program.phases = np.cumsum([0, *map(len, phases)]).astype(np.int64)
    return program
