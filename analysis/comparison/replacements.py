"""Kernels of unknown kind that stand where the other side has a known one: replaced, not added.

In: the kernels of both sides. Out: those of one side with the role and class of the kernels that
they replace, and with the kind of an attention; what replaces a GEMM is no GEMM for that. In the
scope of a module, the role says where a kernel stands. Without one, the number of kernels that both
sides run before it in a step says it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from prunescope.analysis.kernels.frame import ATTENTION, PRODUCTS, Kernels
from prunescope.analysis.schema.notice import Notice, note
from prunescope.taxonomy.roles import UNPLACED

_UNKNOWN = "unknown"
_LEAST = 0.01  # of a step: kernels that take less are not worth a place
_SAME_PLACE = 0.9  # of the calls: a few are launched in another order by another thread or graph
_WHAT = ["role", "class", "kind"]


def with_replacements(kernels: Kernels, reference: Kernels) -> Kernels:
    """Give kernels of unknown kind the role and class of the kernels in whose places they stand.

    Those in the place of an attention get its kind too. `reference` is the other side.
    """
    if not (kernels.frame["kind"] == _UNKNOWN).any():
        return kernels
    frame, scopes = _matched_by_scope(kernels.frame, reference.frame)
    replacements = list(_matched_by_place(replace(kernels, frame=frame), reference))
    for replacement in replacements:
        here = (pl.col("name") == replacement.name) & _is_unknown_unplaced()
        frame = frame.with_columns(
            pl.when(here).then(pl.lit(value)).otherwise(pl.col(column)).alias(column)
            for column, value in zip(_WHAT, replacement.what, strict=True)
        )
        frame = _with_layers(frame, replacement)
    notes = [*scopes, *(replacement.note for replacement in replacements)]
    if not notes:
        return kernels
    return replace(kernels, frame=frame, notes=[*kernels.notes, *notes])


def _with_layers(frame: pl.DataFrame, replacement: _Replacement) -> pl.DataFrame:
    """Give each kernel of a step the layer of the one that it replaces, where it has none."""
    if all(layer is None for layer in replacement.layers):
        return frame
    place = pl.when(pl.col("name") == replacement.name).then("launched")
    number = place.rank("ordinal").over("step").cast(pl.Int64) - 1
    layers = dict(enumerate(replacement.layers))
    layer = number.replace_strict(layers, default=None, return_dtype=frame.schema["layer"])
    return frame.with_columns(layer=pl.coalesce("layer", layer))


def _is_unknown_unplaced() -> pl.Expr:
    """Select kernels of unknown kind without a role."""
    return (pl.col("kind") == _UNKNOWN) & pl.col("role").is_in(UNPLACED)


# -- in the scope of a module ---------------------------------------------------------------------


def _matched_by_scope(
    frame: pl.DataFrame, reference: pl.DataFrame
) -> tuple[pl.DataFrame, list[Notice]]:
    """Give unknown kernels of a role the class whose work is missing there."""
    at = ["layer", "role"]
    placed = pl.col("role").is_in(UNPLACED).not_()
    classes = (
        reference.filter(placed)
        .group_by("role", "class")
        .agg(pl.col("kind").first(), pl.col("busy").sum())
    )
    # A class that is unknown on both sides pairs as it is.
    unknown = classes.filter(pl.col("class") == _UNKNOWN).select("role")
    classes = classes.join(unknown, on="role", how="anti")
    places = frame.filter(placed & (pl.col("class") == _UNKNOWN)).select(at).unique()
    missing = (
        places.join(classes, on="role")
        .join(frame.select(*at, "class").unique(), on=[*at, "class"], how="anti", nulls_equal=True)
        .sort(pl.col("class").is_in(PRODUCTS), "busy", descending=True)
        .unique(at, keep="first", maintain_order=True)
    )
    if missing.is_empty():
        return frame, []
    table = missing.select(*at, _class="class", _kind="kind")
    joined = frame.join(table, on=at, how="left", nulls_equal=True, maintain_order="left")
    here = (pl.col("class") == _UNKNOWN) & pl.col("_class").is_not_null()
    attends = here & (pl.col("_class") == ATTENTION)
    frame = joined.with_columns(
        pl.when(here).then("_class").otherwise("class").alias("class"),
        pl.when(attends).then("_kind").otherwise("kind").alias("kind"),
    ).drop("_class", "_kind")
    roles = sorted(missing["role"].unique().to_list())
    return frame, [note("replaced-in-scopes", roles=roles)]


# -- by place in the step -------------------------------------------------------------------------


class _Name(Struct, frozen=True):
    """The kernels of one name in a step.

    Attributes:
        name: Their name.
        busy: Their time, ns.
        places: How many kernels that both sides run came before each.
        what: Their role, class and kind.
        layers: The layer of each.
    """

    name: str
    busy: int
    places: NDArray[np.int64]
    what: tuple[str, str, str]  # role, class, kind
    layers: list[int | None]


class _Replacement(Struct, frozen=True):
    name: str
    what: tuple[str, str, str]
    layers: list[int | None]
    note: Notice


def _matched_by_place(kernels: Kernels, reference: Kernels) -> Iterator[_Replacement]:
    """Yield the kernels without a role that replace one that the other side alone has.

    Both run equally often, each in the same place.
    """
    own, reference_step = _one_step(kernels), _one_step(reference)
    counts = (
        own["name"]
        .value_counts()
        .join(reference_step["name"].value_counts(), on="name", suffix="_of_other")
    )
    both = counts.filter(pl.col("count") == pl.col("count_of_other"))["name"]
    candidates = _names(
        own.filter(_is_unknown_unplaced()), own, both, without=reference_step["name"]
    )
    known = pl.col("class").is_in(PRODUCTS) | pl.col("role").is_in(UNPLACED).not_()
    targets = _names(reference_step.filter(known), reference_step, both, without=own["name"])
    for candidate in candidates:
        fits = [
            target
            for target in targets
            if len(target.places) == len(candidate.places)
            and _are_in_place(candidate.places, target.places)
        ]
        if not fits:
            continue
        target = fits[0]
        targets.remove(target)
        role, cls, _ = target.what
        about = note(
            "replaced-in-place",
            kernel=candidate.name,
            count=len(candidate.places),
            replaced=target.name,
            taken_for=cls if role in UNPLACED else role,
        )
        yield _Replacement(candidate.name, target.what, target.layers, about)


def _are_in_place(places: NDArray[np.int64], targets: NDArray[np.int64]) -> bool:
    """Return whether most kernels are nearer to the one that they replace than to the next one.

    Other kernels, whose names happen to be as frequent on both sides, move places a little.
    """
    gaps = np.diff(targets, prepend=targets[:1], append=targets[-1:])
    gaps[[0, -1]] = gaps[1:-1].max(initial=0)  # the ends have one neighbour
    nearest = np.minimum(gaps[:-1], gaps[1:])
    away = np.abs(places - targets)
    return float(((away == 0) | (2 * away < nearest)).mean()) >= _SAME_PLACE


def _one_step(kernels: Kernels) -> pl.DataFrame:
    """Return the rows of a step with as many kernels as most steps, in the order of launches."""
    counts = np.array(kernels.kernels_per_step)
    usual = np.bincount(counts).argmax()
    step = int(np.flatnonzero(counts == usual)[0])
    rows = kernels.frame.filter((pl.col("step") == step) & pl.col("name").is_not_null())
    return rows.sort("launched", "start")


def _names(
    rows: pl.DataFrame, step: pl.DataFrame, both: pl.Series, *, without: pl.Series
) -> list[_Name]:
    """List the names of `rows` that the other side lacks, the largest first.

    Args:
        rows: The kernels to choose from.
        step: All kernels of the step.
        both: The names that both sides run equally often.
        without: The names of the other side.
    """
    is_both = step["name"].is_in(both.implode()).cast(pl.Int64)
    before = step.select("name", "layer", place=is_both.cum_sum() - is_both)
    places = before.group_by("name", maintain_order=True).agg("place", layers="layer")
    sums = (
        rows.filter(pl.col("name").is_in(without.implode()).not_())
        .group_by("name", maintain_order=True)
        .agg(pl.col("busy").sum(), *(pl.col(column).first() for column in _WHAT), pl.len())
        .filter(pl.col("busy") >= _LEAST * int(step["busy"].sum()))
        .join(places, on="name")
        .sort("busy", "name", descending=[True, False])
    )
    return [
        _Name(
            row["name"],
            row["busy"],
            np.array(row["place"], np.int64),
            (
                row["role"],
                row["class"],
                row["kind"] if row["class"] == ATTENTION else _UNKNOWN,
            ),
            row["layers"],
        )
        for row in sums.iter_rows(named=True)
        if row["len"] == len(row["place"])  # all kernels of the name, or it stands for several
    ]
