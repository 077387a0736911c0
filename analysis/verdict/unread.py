"""Products of which nothing is known: a verdict that nothing changed does not cover them.

In: the kernels of a side. Out: Unread: their share of the busy time and the ops with most of it.
"""

from __future__ import annotations

import polars as pl
from msgspec import Struct

from prunescope.analysis.kernels.columns import is_one_of
from prunescope.analysis.kernels.frame import ATTENTION, PRODUCTS, Kernels
from prunescope.analysis.schema.notice import Notice, caveat
from prunescope.taxonomy.roles import LINEARS, WEIGHT_ROLES
from prunescope.taxonomy.words import shortened

_LITTLE = 0.001  # of the busy time: as little as a finding leaves out
_SHOWN = 3
_OF_LIBRARY = r"^[A-Za-z_]\w*::"
_OF_TORCH = r"^(?:aten|prim|torch|autograd)::"


class Unread(Struct, frozen=True):
    """The work of a side without a model.

    Attributes:
        share: Its share of the busy time.
        ops: The ops that take most of it.
        without_attention: The share of the busy time without attention.
    """

    share: float = 0.0
    ops: tuple[str, ...] = ()
    without_attention: float = 0.0

    @property
    def may_hide(self) -> bool:
        """Whether it is enough to hide a pruning."""
        return self.share > _LITTLE

    @property
    def hides_gemms(self) -> bool:
        """Whether it is enough to hide GEMMs that became smaller."""
        return self.without_attention > _LITTLE

    def caveat(self, side: str) -> Notice:
        """Return a caveat of this work of a side."""
        return caveat("unread-work", side, share=self.share, ops=[*self.ops])


def unread(kernels: Kernels) -> Unread:
    """Find the work of a side without a model.

    It is products without a work model, work of no known kind, and ops of libraries without a model
    in the place of a linear that runs no known product.
    """
    frame = kernels.frame
    product, in_weights = (
        is_one_of(frame[column], values)
        for column, values in (("class", PRODUCTS), ("role", {*LINEARS, *WEIGHT_ROLES}))
    )
    may_hide = ~frame["modelled"] & ~frame["auxiliary"]
    may_hide = may_hide & (product | in_weights | (frame["kind"] == "unknown"))
    total = int(frame["busy"].sum())
    if not total or not frame["busy"].filter(may_hide).sum():
        return Unread()
    read = frame[["layer", "role"]].filter(product & frame["modelled"])
    columns = ["layer", "role", "class", "kind", "op", "name", "busy"]
    rows = frame[columns].filter(may_hide)
    rows = rows.join(
        read.unique().with_columns(read=pl.lit(value=True)),
        on=["layer", "role"],
        how="left",
        nulls_equal=True,
        maintain_order="left",
    )
    of_library = pl.col("op").str.contains(_OF_LIBRARY) & ~pl.col("op").str.contains(_OF_TORCH)
    in_place = pl.col("role").is_in([*LINEARS, *WEIGHT_ROLES]) & pl.col("read").is_null()
    hidden = rows.filter(
        pl.col("class").is_in(PRODUCTS)
        | (pl.col("kind") == "unknown")
        | (in_place & of_library.fill_null(value=False) & (pl.col("kind") != "comm"))
    )
    busy = int(hidden["busy"].sum())
    if not busy:
        return Unread()
    sums = (
        hidden.group_by(name=pl.coalesce("op", "name", pl.lit("?")))
        .agg(pl.col("busy").sum())
        .sort("busy", "name", descending=[True, False])
    )
    names = [shortened(name) for name in sums["name"].head(_SHOWN)]
    outside_attention = int(hidden.filter(pl.col("class") != ATTENTION)["busy"].sum())
    if len(sums) > _SHOWN:
        names.append("…")
    return Unread(busy / total, tuple(names), outside_attention / total)
