"""Panels: what lies in shared memory of the operands of a product on tensor cores, and how it comes and goes.

Legend: a panel holds one stage, STAGE words along k, of some rows of A or columns of B, here both called rows, rounded
to a format (nbbp/cuda/tensor_cores.py, which also says what a word is). It keeps the order in which its operand lies in
the GPU's memory, so that nothing is transposed on the way:

    along k: rows of 16 words. Word w of row r lies at 16 · r + (w ^ 4 · (r / 2 % 4)): two rows fill the 32 banks of
             shared memory, and the same four words of eight rows are on 32 banks as well, so that neither stores of
             whole rows nor `ldmatrix` meet a conflict.
    across:  lines of one word of all rows. Word w of row r lies at (rows + 8) · w + r: four words of eight rows are on
             32 banks, for `rows` a multiple of 32, and so are 32 rows of a line.

A word of 16-bit numbers holds two that are next to each other along k: of one row of the operand that lies along k, or
of two lines of the one that lies across.

`shape`: (whether the panel lies across, its rows, the threads of the block, the format), constant where it is compiled.
"""

import numpy as np

from nbbp.cuda.tensor_cores import (
    COLUMNS,
    ROWS,
    TF32,
    as_tf32,
    column_of_b,
    load_matrices,
    narrow_pair,
    row_of_a,
    word_of_a,
    word_of_b,
)
from nbbp.cuda.vectors import read_vector, write_vector
from nbbp.scalars.dispatch import formula

#: Words of a stage along k, and numbers that one load takes.
STAGE, QUAD = 16, 4
#: Words behind a line of a panel that lies across.
_PADDING = 8


def numbers_of_word(code: int) -> int:
    """How many numbers of a format a word holds."""
    return 1 if code == TF32 else 2


def size_of_panel(shape: tuple) -> int:
    """Words of shared memory of a panel."""
    across, rows, _, _ = shape
    return STAGE * (rows + _PADDING if across else rows)


def share_of_panel(shape: tuple) -> int:
    """The numbers of a panel that each thread brings, which are whole quads."""
    _, rows, n_threads, code = shape
    return rows * STAGE * numbers_of_word(code) // n_threads


@formula
def place_along(row, word):
    """Where a word lies in a panel along k."""
    return STAGE * row + (word ^ ((row >> 1 & 3) << 2))


@formula
def place_across(rows, row, word):
    """Where a word lies in a panel across."""
    return (rows + _PADDING) * word + row


@formula
def fetch_quad(ahead, at, x, place, n, is_aligned):
    """ahead[at : at + 4] = x[place : place + 4], and 0 instead of all but the first n."""
    if is_aligned != 0 and n >= QUAD:
        read_vector(ahead, at, x, place, QUAD)
    else:
        for c in range(QUAD):
            ahead[at + c] = x[place + c] if c < n else np.float32(0)


@formula
def fetch(ahead, shape, thread, x, stride, is_aligned, first, n_rows, k, stop):
    """A thread's numbers of a panel of rows from `first` on, of k and what follows; 0 beyond row n_rows and k = stop.

    The operand x has rows, or lines, `stride` apart, which begin at multiples of 128 bits if `is_aligned` is not 0.
    Writes `ahead`, in registers.
    """
    across, rows, n_threads, code = shape
    lines = 1 if code == TF32 else 2
    if across:
        quads = rows // QUAD
        for turn in range(ahead.size // (QUAD * lines)):
            t = thread + turn * n_threads
            row, inner = first + QUAD * np.int64(t % quads), k + lines * np.int64(t // quads)
            for line in range(lines):
                n, at = n_rows - row if inner + line < stop else 0, QUAD * (turn * lines + line)
                fetch_quad(ahead, at, x, (inner + line) * stride + row, n, is_aligned)
    else:
        quads = lines * STAGE // QUAD
        for turn in range(ahead.size // QUAD):
            t = thread + turn * n_threads
            row, inner = first + np.int64(t // quads), k + QUAD * np.int64(t % quads)
            n = stop - inner if row < n_rows else 0
            fetch_quad(ahead, QUAD * turn, x, row * stride + inner, n, is_aligned)


@formula
def put(panel, begin, shape, thread, ahead, words):
    """Write what `fetch` brought, rounded, to the panel that begins at `begin`; words (4,) are registers for that."""
    across, rows, n_threads, code = shape
    if across:
        quads = rows // QUAD
        for turn in range(ahead.size // (QUAD if code == TF32 else 2 * QUAD)):
            t = thread + turn * n_threads
            for c in range(QUAD):
                if code == TF32:
                    words[c] = as_tf32(ahead[QUAD * turn + c])
                else:
                    words[c] = narrow_pair(code, ahead[2 * QUAD * turn + c], ahead[2 * QUAD * turn + QUAD + c])
            write_vector(panel, begin + place_across(rows, QUAD * (t % quads), t // quads), words, 0, QUAD)
    else:
        quads = STAGE // QUAD if code == TF32 else 2 * STAGE // QUAD
        for turn in range(ahead.size // QUAD):
            t, at = thread + turn * n_threads, QUAD * turn
            row, quad = t // quads, t % quads
            if code == TF32:
                for c in range(QUAD):
                    words[c] = as_tf32(ahead[at + c])
                write_vector(panel, begin + place_along(row, QUAD * quad), words, 0, QUAD)
            else:
                for c in range(2):
                    words[c] = narrow_pair(code, ahead[at + 2 * c], ahead[at + 2 * c + 1])
                write_vector(panel, begin + place_along(row, 2 * quad), words, 0, 2)


@formula
def read_a(words, panel, begin, shape, lane, row, word):
    """A lane's words of A of 16 rows a tile, from `row` on, and of eight words from `word` on.

    All lanes of a warp together. Writes words (tiles, 4), in registers.
    """
    across, rows, _, _ = shape
    for i in range(words.shape[0]):
        if across:
            for register in range(4):
                own, place = row + ROWS * i + row_of_a(lane, register), word + word_of_a(lane, register)
                words[i, register] = panel[begin + place_across(rows, own, place)]
        else:
            # lane l says where row l % 8 begins of what register l / 8 holds of all lanes
            own = row + ROWS * i + row_of_a(4 * (lane & 7), lane >> 3)
            at = begin + place_along(own, word + word_of_a(0, lane >> 3))
            words[i, 0], words[i, 1], words[i, 2], words[i, 3] = load_matrices(panel, at)


@formula
def read_b(words, panel, begin, shape, lane, column, word):
    """A lane's words of B of eight columns a tile, likewise; along k, two tiles at a time. Writes words (tiles, 2)."""
    across, rows, _, _ = shape
    for j in range(0, words.shape[0], 2):
        if across:
            for tile in range(2):
                own = column + COLUMNS * (j + tile) + column_of_b(lane)
                for register in range(2):
                    at = begin + place_across(rows, own, word + word_of_b(lane, register))
                    words[j + tile, register] = panel[at]
        else:
            own = column + COLUMNS * (j + (lane >> 4)) + column_of_b(4 * (lane & 7))
            at = begin + place_along(own, word + word_of_b(0, lane >> 3 & 1))
            words[j, 0], words[j, 1], words[j + 1, 0], words[j + 1, 1] = load_matrices(panel, at)
