"""The programs: what is lowered for training, evaluation and prediction, and how it is cut into tiles and phases."""

from collections.abc import Sequence

import numpy as np

from nbbp import ops, tiling
from nbbp.augmentation import Augmentation
from nbbp.layers import Activation, BatchNorm, Custom, Dense, Embedding
from nbbp.losses import Loss
from nbbp.lowering import checkpointing, gradients, parameters
from nbbp.lowering.augmentation import augmented
from nbbp.lowering.base import Lowering, OwnGradient, Partials, WeightGradient, padded, takes_logits
from nbbp.lowering.dense import FLAT
from nbbp.lowering.loss import final_activation, loss_op, metric_ops
from nbbp.lowering.mixed import lowering_in
from nbbp.lowering.monitoring import Monitoring
from nbbp.metrics import Metric
from nbbp.network import Sequential
from nbbp.nodes import walk
from nbbp.optimizers import Optimizer
from nbbp.program import Place, Program

#: Kernels that take all rows of a batch at once, and are cut by columns.
_WHOLE_BATCH = ("batch_norm_forward", "batch_norm_backward", "embedding_backward")
#: Kernels that are cut by rows and read rows that other tiles write, which must be done.
_READS_OTHER_ROWS = ("mixup_rows",)


def prediction_program(
    network: Sequential, batch: int, also: Activation | None = None, keeps_outputs: bool = False,
    precision: str = "float32",
) -> Program:  # fmt: skip
    """What the last layer gives for rows of "X", into "output"; followed by the activation `also`.

    With `keeps_outputs`, what every layer gives can be read where the program's `outputs` say.
    """
    lowering = lowering_in(precision, network, batch, keeps_outputs=keeps_outputs)
    out, _ = checkpointing.forward(lowering, lowering.gather(), ends=True)
    program = lowering.program
    program.keeps_outputs = keeps_outputs
    with program.labelled(phase="output"):
        if also is not None:
            out = final_activation(lowering, also, out)
        columns = {"x": Place(out.buffer), "x_stride": out.stride, "y": Place("output"), "y_stride": out.width}
        program.add("copy_out", n_out=out.width, **columns)
    return _forward_only(lowering)


def evaluation_program(
    network: Sequential, loss: Loss, metrics: Sequence[Metric], batch: int, target_is_labels: bool,
    precision: str = "float32",
) -> Program:  # fmt: skip
    """Loss and metrics of every row."""
    lowering = lowering_in(precision, network, batch)
    lowering.program.task = "evaluation"
    out, _ = checkpointing.forward(lowering, lowering.gather(), ends=not takes_logits(network, loss))
    loss_op(lowering, loss, out, target_is_labels, with_gradient=False)
    metric_ops(lowering, metrics, loss, out, target_is_labels)
    return _forward_only(lowering)


def _forward_only(lowering: Lowering) -> Program:
    """Blocks of rows through all ops."""
    program = lowering.program
    program.is_shared = tiling.is_shared(2.0 * program.batch * lowering.network.n_parameters)
    is_wide = any(tiling.is_wide(n_in * n_out) for n_in, n_out in _shapes(lowering.network))
    return _with_tiles(program, _phases(program, 0, tiling.FORWARD_ROWS, cuts_products=is_wide))


def training_program(
    network: Sequential,
    loss: Loss,
    optimizer: Optimizer | None,
    metrics: Sequence[Metric],
    batch: int,
    target_is_labels: bool,
    keeps_good: bool = False,
    precision: str = "float32",
    augment: Sequence[Augmentation] = (),
    is_monitored: bool = False,
    plan: str | None = None,
) -> Program:
    """Forward, loss, metrics, backward and update; without an optimizer the gradient stays in "gradient".

    With `keeps_good`, parameters at which the loss was finite are kept in "good parameters" (see cpu/snapshot.py). With
    `is_monitored` what lowering/monitoring.py says is put into its `VALUES`. `augment` is done to the rows first.
    `plan` is how the step is cut (`nbbp.tiling`), where that is not to be what suits the CPU.
    """
    shapes = _shapes(network)
    by_rows = any(isinstance(node.layer, Custom) for node in walk(network.nodes))
    plan = plan or tiling.plan([*shapes, *_tables(network)], batch, by_rows)
    partials = Partials(batch)
    if plan == tiling.PARTIAL:
        partials = Partials(tiling.partial_rows(shapes, batch))
    elif plan == tiling.WIDE:
        partials = Partials(tiling.FORWARD_ROWS, are_apart=True)
    lowering = lowering_in(
        precision, network, batch, partials, keeps_state=optimizer is None, is_mean=loss.reduction == "mean"
    )
    lowering.augment = lambda x: augmented(lowering, augment, x, target_is_labels)
    program = lowering.program
    program.task = "gradients" if optimizer is None else "training"
    if is_monitored:
        loss_scale = Place(parameters.LOSS_SCALE) if lowering.is_scaled else 0
        lowering.monitoring = Monitoring(program, network, lowering.is_mean, loss_scale)
    program.is_shared = tiling.is_shared(tiling.work(shapes, batch))
    phases: list[list[tuple]] = []
    if plan == tiling.WIDE:
        lowering.flush = lowering.flush_layer = lambda: _flush_wide(lowering, phases, optimizer, keeps_good)
    else:
        lowering.flush = lambda: _flush(lowering, phases, optimizer, keeps_good)
        lowering.flush_layer = lambda: _weight_gradients(lowering)

    out, parts = checkpointing.forward(lowering, lowering.gather(), ends=not takes_logits(network, loss))
    if not _keeps_gradient(lowering, optimizer) and not partials.are_apart and _can_divide(network, plan):
        lowering.divide(part.nodes for part in parts)
    d_out = loss_op(lowering, loss, out, target_is_labels, with_gradient=True)
    lowering.begin_backward(d_out)
    metric_ops(lowering, metrics, loss, out, target_is_labels)
    checkpointing.backward(lowering, parts, d_out)

    if not lowering.by_parts:
        if plan in (tiling.PARTIAL, tiling.WHOLE):
            phases += _partial_phases(lowering, optimizer, keeps_good, 0)
        elif plan == tiling.ALONE or _prepares(lowering, optimizer):
            if plan == tiling.ALONE and _prepares(lowering, optimizer):
                _prepare_everything(lowering, optimizer, 0, network.n_parameters)
            phases += _update_phases(lowering, optimizer, keeps_good, len(program.ops))
    if is_monitored:
        first = len(program.ops)
        lowering.monitoring.record(optimizer)
        phases.append([(first, len(program.ops), 0, batch, 0, tiling.ALL)])
    if plan == tiling.ALONE:
        phases = [[(0, len(program.ops), 0, batch, 0, tiling.ALL)]]
    if optimizer is None or any(place.buffer == "gradient" for op in program.ops for place in op.places()):
        n_partials = 1 if partials.are_apart else -(-batch // partials.rows)
        program.buffers["gradient"] = n_partials * lowering.gradient_stride
    return _with_tiles(program, phases)


def _shapes(network: Sequential) -> list[tuple[int, int]]:
    """(n_in, n_out) of the layers that work: the dense ones, and custom ones as if they were."""
    shapes = [(node.n_in, node.n_out) for node in walk(network.nodes) if isinstance(node.layer, (Dense, Custom))]
    return shapes or [(network.n_in, network.n_out)]


def _tables(network: Sequential) -> list[tuple[int, int]]:
    """(1, numbers) of tables whose gradient is too much to keep once more for every block of rows."""
    embeddings = [node.layer for node in walk(network.nodes) if isinstance(node.layer, Embedding)]
    sizes = [n_categories * n_out for layer in embeddings for _, n_categories, n_out in layer.tables]
    return [(1, size) for size in sizes if tiling.is_wide(size)]


def _can_divide(network: Sequential, plan: str) -> bool:
    """Whether the gradients of the network's parts may lie in the same memory one after the other.

    Ops that take a whole batch write one gradient and leave the places of the other partial ones alone, which must
    therefore be nobody else's.
    """
    takes_whole = any(isinstance(node.layer, (BatchNorm, Embedding)) for node in walk(network.nodes))
    return network.checkpoint_every is not None and not (plan == tiling.PARTIAL and takes_whole)


def _flush(lowering: Lowering, phases: list[list[tuple]], optimizer: Optimizer | None, keeps_good: bool) -> None:
    """Weight gradients, and the updates if the gradient is of a part."""
    _weight_gradients(lowering)
    if lowering.by_parts and lowering.part:
        done = max((tile[1] for phase in phases for tile in phase), default=0)
        phases += _partial_phases(lowering, optimizer, keeps_good, done)
        lowering.part = []


def _weight_gradients(lowering: Lowering) -> None:
    """Weight gradients, each whole or one for every block of rows."""
    for job in lowering.pending:
        where = lowering.gradient_at(lowering.offset_of(job.node))
        rows, stride = lowering.partials.rows, lowering.gradient_stride
        with lowering.program.labelled(layer=job.node.path):
            parameters.weight_gradient(lowering, job, where, slot_rows=rows, slot_stride=stride)
    lowering.pending.clear()


def _prepares(lowering: Lowering, optimizer: Optimizer | None) -> bool:
    """Whether something happens to the gradient before the update, which then waits until it is whole."""
    return optimizer is not None and (optimizer.prepares_gradient or lowering.is_scaled)


def _keeps_gradient(lowering: Lowering, optimizer: Optimizer | None) -> bool:
    """Whether the gradient must lie whole in "gradient"."""
    return optimizer is None or optimizer.rule == "adafactor" or _prepares(lowering, optimizer)


def _prepare_everything(lowering: Lowering, optimizer: Optimizer, first: int, size: int) -> list[tuple]:
    """Op that prepares the whole gradient; tiles of `size` numbers for the ops from `first` on."""
    return gradients.prepared_tiles(lowering, optimizer, first, 0, lowering.network.n_parameters, (0, 1), 1, size)


def _partial_phases(lowering: Lowering, optimizer: Optimizer | None, keeps_good: bool, done: int) -> list[list[tuple]]:
    """Phases of the ops from `done` on; then the sum of the partial gradients in order, and the update."""
    program, rows = lowering.program, lowering.partials.rows
    phases = _phases(program, done, rows, cuts_products=False)
    first = len(program.ops)
    if rows < program.batch:
        with program.labelled(phase="weight gradients"):
            program.add("reduce_gradient", y=Place("gradient"), slot_rows=rows, slot_stride=lowering.gradient_stride)
    if _prepares(lowering, optimizer):
        phases.append(_prepare_everything(lowering, optimizer, first, tiling.PARAMETERS))
        first = len(program.ops)
    return phases + _update_phases(lowering, optimizer, keeps_good, first)


def _update_phases(lowering: Lowering, optimizer: Optimizer | None, keeps_good: bool, first: int) -> list[list[tuple]]:
    """What is done to the parameters whose gradient is there; phases of the ops from `first` on."""
    program, own = lowering.program, lowering.part
    start, n = own[0].offset, own[-1].stop - own[0].offset
    if keeps_good:
        parameters.snapshot(lowering, start, n, (0, 1), 1)
    if _prepares(lowering, optimizer):
        gradients.finish(lowering, optimizer)
    lowering.monitoring.before(own, start, Place("gradient"), (0, 1), 1, n, tiling.PARAMETERS)
    after = len(program.ops)
    if optimizer is not None and optimizer.rule == "adafactor":
        parameters.adafactor(lowering, optimizer, own)
        last = len(program.ops)
        lowering.monitoring.after()
        phases = [
            tiling.column_tiles(first, after, program.batch, n, tiling.PARAMETERS),
            [(op, op + 1, 0, program.batch, 0, tiling.ALL) for op in range(after, last)],
        ]
        if len(program.ops) > last:
            phases.append(tiling.column_tiles(last, len(program.ops), program.batch, n, tiling.PARAMETERS))
        return phases
    if optimizer is not None:
        layer = " to ".join(dict.fromkeys((own[0].layer, own[-1].layer))) if lowering.by_parts else ""
        with program.labelled(layer=layer):
            parameters.updates(lowering, optimizer, own, start, Place("gradient"), (0, 1), 1)
    lowering.monitoring.after()
    return [tiling.column_tiles(first, len(program.ops), program.batch, n, tiling.PARAMETERS)]


def _flush_wide(lowering: Lowering, phases: list[list[tuple]], optimizer: Optimizer | None, keeps_good: bool) -> None:
    """Phases of the ops so far; then one of the gradients and updates that they make possible.

    Panels that lie at the same part of their layers follow each other, so that a thread's stretch of tiles holds the
    weights of the outputs that are its own in the forward products too.
    """
    done = max((tile[1] for phase in phases for tile in phase), default=0)
    phases += _phases(lowering.program, done, tiling.FORWARD_ROWS, cuts_products=True)
    tiles = []
    for job in lowering.pending:
        make = _own_tiles if isinstance(job, OwnGradient) else _weight_tiles
        with lowering.program.labelled(layer=job.node.path):
            tiles += make(lowering, job, optimizer, keeps_good)
    lowering.pending.clear()
    if tiles:
        phases.append([tile for _, tile in sorted(tiles, key=lambda pair: pair[0])])


def _weight_tiles(
    lowering: Lowering, job: WeightGradient, optimizer: Optimizer | None, keeps_good: bool
) -> list[tuple[float, tuple]]:
    """Per panel and block of rows of a weight: the gradient over the whole batch, and the update while it is in cache.

    Gives the tiles, each with where in its layer it lies.
    """
    program, layer = lowering.program, job.node.layer
    is_whole = _keeps_gradient(lowering, optimizer)
    own, base = lowering.parameters_of(job.node), lowering.offset_of(job.node)
    n_rows = job.x.width + layer.use_bias
    whole = optimizer is not None and is_whole and not _prepares(lowering, optimizer)
    tiles = []
    for panel in [(0, layer.n_out)] if whole else tiling.panels(layer.n_out, program.batch):
        width = panel[1] - panel[0]
        size = n_rows if whole else max(1, tiling.parameters(program.batch) // width)
        first = len(program.ops)
        parameters.weight_gradient(lowering, job, Place("gradient", base) if is_whole else 0, panel)
        if _prepares(lowering, optimizer):
            cut = gradients.prepared_tiles(lowering, optimizer, first, base, n_rows, panel, layer.n_out, size)
            tiles += [(panel[0] / layer.n_out, tile) for tile in cut]
            continue
        if keeps_good:
            parameters.snapshot(lowering, base, n_rows, panel, layer.n_out)
        lowering.monitoring.before(own, base, Place("gradient", base) if whole else 0, panel, layer.n_out, n_rows, size)
        if whole:
            parameters.adafactor(lowering, optimizer, own)
        elif optimizer is not None:
            parameters.updates(lowering, optimizer, own, base, 0, panel, layer.n_out)
            program.scratch = max(program.scratch, padded(min(size, n_rows) * width) + tiling.DEEP_PRODUCT)
        lowering.monitoring.after()
        cut = tiling.column_tiles(first, len(program.ops), program.batch, n_rows, size)
        tiles += [(panel[0] / layer.n_out, tile) for tile in cut]
    return tiles


def _own_tiles(
    lowering: Lowering, job: OwnGradient, optimizer: Optimizer | None, keeps_good: bool
) -> list[tuple[float, tuple]]:
    """The sum of what a layer's own ops wrote, and the update; as `_weight_tiles`."""
    program = lowering.program
    own, base = lowering.parameters_of(job.node), lowering.offset_of(job.node)
    size = own[-1].stop - base
    is_whole = _keeps_gradient(lowering, optimizer)
    first = len(program.ops)
    parameters.sum_of_partials(lowering, job, Place("gradient", base) if is_whole else None)
    if _prepares(lowering, optimizer):
        cut = gradients.prepared_tiles(lowering, optimizer, first, base, size, (0, 1), 1, tiling.PARAMETERS)
        return [(0.0, tile) for tile in cut]
    if keeps_good:
        parameters.snapshot(lowering, base, size, (0, 1), 1)
    units = size if optimizer is not None and is_whole else tiling.PARAMETERS
    gradient = Place("gradient", base) if is_whole else Place(job.buffer)
    lowering.monitoring.before(own, base, gradient, (0, 1), 1, size, units)
    if optimizer is not None and is_whole:
        parameters.adafactor(lowering, optimizer, own)
    elif optimizer is not None:
        parameters.updates(lowering, optimizer, own, base, gradient, (0, 1), 1)
    lowering.monitoring.after()
    cut = tiling.column_tiles(first, len(program.ops), program.batch, size, units)
    return [(0.0, tile) for tile in cut]


def _phases(program: Program, start: int, rows: int, cuts_products: bool) -> list[list[tuple]]:
    """Phases of the ops from `start` on: blocks of `rows` rows through as many ops as can be.

    Ops that take a whole batch have a phase of their own, cut by columns; so has, with `cuts_products`, every product.
    Elementwise activations and rounding go with what is before them, where they can.
    """
    stretches: list[list] = []
    for row in range(start, len(program.ops)):
        kernel = program.ops[row].kernel
        kind = "columns" if kernel in _WHOLE_BATCH else "rows"
        if kernel == "product" and cuts_products:
            kind = "product"
        if kernel == "round_parameters":
            kind = "whole"
        joins = (
            kernel not in _READS_OTHER_ROWS
            and stretches
            and (stretches[-1][0] == "rows" or _goes_with(program, *stretches[-1][:2], row))
        )
        if joins and kind == "rows":
            stretches[-1][2] = row + 1
        else:
            stretches.append([kind, row, row + 1])
    phases = []
    for kind, first, last in stretches:
        n_out = _width(program, first)
        if kind == "product":
            columns = program.ops[first].columns
            shape = program.batch, columns[ops.N_IN], n_out
            phases.append(tiling.product_tiles(first, last, *shape, reads_flat=columns[ops.LAYOUT] == FLAT))
        elif kind == "whole":
            phases.append([(first, last, 0, program.batch, 0, tiling.ALL)])
        elif kind == "columns":
            phases.append(tiling.column_tiles(first, last, program.batch, n_out, tiling.PANEL))
        else:
            phases.append(tiling.row_tiles(first, last, program.batch, rows))
    return phases


def _goes_with(program: Program, kind: str, first: int, row: int) -> bool:
    """Whether an op can run on the tiles of the op `first`, right behind it: an activation, or rounding, as wide.

    It must not write what `first` reads, which another tile may be reading still: memory that was released. Rounding
    takes whole registers, at which only the columns of a product are cut.
    """
    op, columns = program.ops[row], program.ops[first].columns
    rounds = op.kernel == "narrow" and kind == "product"
    if not (rounds or op.kernel.startswith("activation")) or _width(program, first) != _width(program, row):
        return False
    written = op.columns[ops.X if rounds else ops.Y].buffer
    read = [columns.get(column) for column in (ops.X, ops.W, ops.KEPT)]
    return all(not isinstance(place, Place) or place.buffer != written for place in read)


def _width(program: Program, row: int) -> int:
    """Columns of what an op writes."""
    return program.ops[row].columns.get(ops.N_OUT, 0)


def _with_tiles(program: Program, phases: list[list[tuple]]) -> Program:
    """Put the tiles of the phases into the program."""
    program.tiles = np.array([tile for phase in phases for tile in phase], np.int64)
    program.phases = np.cumsum([0, *map(len, phases)]).astype(np.int64)
    return program
