"""Embedding: a row of a table for each category number."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nbbp import initializers
from nbbp.layers.base import Layer, check_name, check_switches, positive_integer

__all__ = ["Embedding"]

#: Categories, at most: every number below it is exact in float32, the dtype of the data.
MOST_CATEGORIES = 1 << 24
#: Columns of the data, at most: each is looked at by itself.
MOST_COLUMNS = 1 << 16


@dataclass(frozen=True, init=False)
class Embedding(Layer):
    """Rows of tables in place of category numbers: the first layer of networks for integer columns.

    Only `Flatten` and `Reshape` may come before it.

    ``Embedding(100, 8)``: every column of X holds a category 0 … 99; each becomes the 8 numbers of its row in one
    table, ``"0.weight"`` (100, 8). ``Embedding({0: 12, 3: 7}, 4)``: columns 0 and 3 hold categories, each with a table
    of its own, ``"0.weight_0"`` (12, 4) and ``"0.weight_3"`` (7, 4); the other columns pass. The output has the columns
    that pass first, in their order, then the rows of the tables, in the order of the columns.

    Parameters
    ----------
    n_categories : int, or mapping of column to int
        At least 1, at most 2**24.
    n_out : int, or mapping of column to int
        Numbers per category.
    weight_initializer : str or initializer, default "normal"
    name : str, optional
        For tables and messages.
    trainable : bool, default True
        False freezes the tables.

    Raises
    ------
    TypeError, ValueError
        For what cannot be a layer; the message says what was expected and what came. Data with a number that is no
        category are refused before anything changes.

    Examples
    --------
    >>> Embedding({0: 12, 3: 7}, 4).width(5)
    11
    """

    tables: tuple[tuple[int | None, int, int], ...]
    weight_initializer: Any
    name: str | None = None
    trainable: bool = True

    def __init__(
        self,
        n_categories: int | Mapping[int, int],
        n_out: int | Mapping[int, int],
        weight_initializer: Any = "normal",
        name: str | None = None,
        trainable: bool = True,
    ) -> None:
        fields = {
            "tables": _tables(n_categories, n_out),
            "weight_initializer": initializers.get(weight_initializer),
            "name": name,
            "trainable": trainable,
        }
        for attribute, value in fields.items():
            object.__setattr__(self, attribute, value)
        check_switches(self, "trainable")
        check_name(self)

    @property
    def has_parameters(self) -> bool:
        return True

    def columns(self, n_in: int) -> tuple[tuple[int, ...], tuple[tuple[int, int, int, int], ...]]:
        """Where each output comes from.

        Returns
        -------
        passed : tuple of int
            Columns that pass.
        looked_up : tuple of (column, n_categories, n_out, offset)
            Columns of categories; `offset` is where the column's table begins among the layer's parameters.

        Raises
        ------
        ValueError
            If a column is not there, or there are too many.
        """
        self._check_columns(n_in)
        if self.tables[0][0] is None:
            _, categories, width = self.tables[0]
            return (), tuple((column, categories, width, 0) for column in range(n_in))
        found, offset = [], 0
        for column, categories, width in self.tables:
            found.append((column, categories, width, offset))
            offset += categories * width
        taken = {column for column, *_ in found}
        return tuple(column for column in range(n_in) if column not in taken), tuple(found)

    def _check_columns(self, n_in: int) -> None:
        if n_in > MOST_COLUMNS:
            raise ValueError(f"Embedding takes samples of at most {MOST_COLUMNS:,} features; got {n_in:,}")
        column = self.tables[-1][0]
        if column is not None and column >= n_in:
            raise ValueError(f"Embedding looks up column {column}; got samples of {n_in} features")

    def width(self, n_in: int) -> int:
        self._check_columns(n_in)
        if self.tables[0][0] is None:
            return n_in * self.tables[0][2]
        return n_in - len(self.tables) + sum(width for *_, width in self.tables)

    def parameter_shapes(self, n_in: int) -> dict[str, tuple[int, ...]]:
        return {
            "weight" if column is None else f"weight_{column}": (categories, width)
            for column, categories, width in self.tables
        }

    def initializer(self, kind: str, shape: tuple[int, ...]) -> Any:
        return self.weight_initializer


def _tables(n_categories: Any, n_out: Any) -> tuple[tuple[int | None, int, int], ...]:
    """(column, categories, numbers per category) of every table; the column is None where one serves all."""
    if not isinstance(n_categories, Mapping):
        if isinstance(n_out, Mapping):
            raise TypeError("n_out of Embedding can differ by column only where n_categories does")
        return ((None, _categories(n_categories), positive_integer("n_out of Embedding", n_out)),)
    if not n_categories:
        raise ValueError("n_categories of Embedding must name at least one column; got an empty mapping")
    unused = sorted(set(n_out) - set(n_categories), key=str) if isinstance(n_out, Mapping) else []
    if unused:
        raise ValueError(f"n_out of Embedding names column {unused[0]!r}, which n_categories does not")
    tables = []
    for column, count in n_categories.items():
        if isinstance(column, bool) or not isinstance(column, numbers.Integral) or column < 0:
            raise TypeError(f"columns of Embedding must be integers from 0 on; got {column!r}")
        if isinstance(n_out, Mapping) and column not in n_out:
            raise ValueError(f"n_out of Embedding has no entry for column {column}; it has {sorted(n_out)}")
        width = n_out[column] if isinstance(n_out, Mapping) else n_out
        tables.append((int(column), _categories(count), positive_integer("n_out of Embedding", width)))
    return tuple(sorted(tables))


def _categories(count: Any) -> int:
    count = positive_integer("n_categories of Embedding", count)
    if count > MOST_CATEGORIES:
        raise ValueError(f"n_categories of Embedding must be at most {MOST_CATEGORIES:,}; got {count:,}")
    return count
