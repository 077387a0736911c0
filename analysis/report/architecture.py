"""Which families apply to an architecture: in, what `taxonomy.architectures` gives; out, a
rich renderable. Dimensions are those of one layer's GEMMs; every string goes in as Text.
"""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from prunescope.analysis.report.escape import clean
from prunescope.taxonomy.architecture_gemms import LayerGemm
from prunescope.taxonomy.architectures import Applicable, Described, Mechanism

_APPLIES = {"yes": "green", "partly": "yellow", "no": "red"}
_PRODUCTS = {"qk": "QKᵀ", "pv": "PV"}
_LEGEND = (
    "T tokens of a forward, S queries and L keys of a sequence; count: so many a layer",
    "moves: the axis that shrinks, and in which GEMMs; heads: fewer of them, each as large",
)


def applicable(found: Described) -> RenderableType:
    """Mechanisms, the GEMMs of a layer, and one row a family: applies, moves, why not."""
    title = found.title or "no entry in the table of architectures"
    lines = [Text(clean(f"{found.model_type or 'a model without a type'}: {title}"), "bold")]
    lines += [_mechanism(one) for one in found.mechanisms]
    parts: list[RenderableType] = list(lines)
    if found.gemms:
        parts.append(_gemms(found.gemms))
    parts.append(_families(found))
    return Group(*parts, *(Text(line, "dim") for line in _LEGEND[not found.gemms :]))


def _mechanism(one: Mechanism) -> Text:
    layers = f"{one.layers} layer{'s' * (one.layers != 1)}"
    return Text(clean(f"  {one.id} in {layers}: {one.text}"))


def _gemms(rows: list[LayerGemm]) -> Table:
    table = _table("GEMM", "M", "N", "K", "count")
    for row in rows:
        name = _PRODUCTS.get(row.group, row.role)
        cells = (name, *(_known(value) for value in (row.m, row.n, row.k, row.count)))
        table.add_row(*(Text(clean(cell)) for cell in cells))
    return table


def _known(value: object) -> str:
    return "?" if value is None else str(value)


def _families(found: Described) -> Table:
    table = _table("family", "applies", "moves", "why")
    for one in found.families:
        applies = Text(one.applies, _APPLIES[one.applies])
        table.add_row(Text(one.id), applies, Text(clean(_moves(one))), Text(clean(one.why)))
    return table


def _moves(one: Applicable) -> str:
    """ "N of q, k, v; K of o": GEMMs by axis; "-" where no dimension moves."""
    by_axis: dict[str, list[str]] = {}
    for group, moved in one.gemms.items():
        names = [_PRODUCTS[group]] if group in _PRODUCTS else list(moved.matrices)
        by_axis.setdefault(moved.axis, []).extend(names)
    return "; ".join(f"{axis} of {', '.join(names)}" for axis, names in by_axis.items()) or "-"


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        short = column in ("family", "applies", "GEMM")
        numeric = column in ("M", "N", "K", "count")
        table.add_column(
            column, overflow="fold", no_wrap=short, justify="right" if numeric else "left"
        )
    return table
