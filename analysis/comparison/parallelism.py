"""The number of ranks that share a model on each side, by the collectives of its steps.

In: a phase of both sides. Out: a Difference where the ranks are not as many on both. A rank of
tensor, expert, pipeline or sequence parallelism runs a part of the model, which looks pruned. A
side without collectives runs alone, however many processes there are. One with collectives runs on
as many ranks as its metadata says, else on several.
"""

from __future__ import annotations

from collections import Counter

import polars as pl
from msgspec import Struct

from prunescope.analysis.inputs.side import SidePhase
from prunescope.analysis.schema.pair_comparison import PARALLELISM, Difference
from prunescope.taxonomy.lazy_pattern import lazy_pattern
from prunescope.taxonomy.roles import BACKWARD

_MOST = 1 << 20
_NAME_LIMIT = 400
_ALONE = "1 rank"
_SHARDS = "sequence parallelism or sharded weights"
# What a collective is, and the kind of parallelism that it serves; the first pattern decides.
_COLLECTIVES = (
    (
        "all-to-all",
        "expert parallelism",
        r"all_?to_?all|all2all|deep_ep|internode|intranode|moe_?a2a",
    ),
    ("reduce-scatter", _SHARDS, r"reduce_?scatter"),
    ("all-gather", _SHARDS, r"all_?gather"),
    ("send and receive", "pipeline parallelism", r"send|recv"),
    ("all-reduce", "tensor parallelism", r"all_?reduce|multimem|one_?shot|two_?shot|cross_device"),
)
_NAMED = tuple((name, serves, lazy_pattern(pattern)) for name, serves, pattern in _COLLECTIVES)


class Ranks(Struct, frozen=True):
    """The ranks that share out a step.

    Attributes:
        number: How many they are; None where only the collectives are known.
        collectives: How often a step runs each kind of collective.
        in_forward: Whether any runs in a forward pass, and not only to sum gradients.
    """

    number: int | None
    collectives: dict[str, float]
    in_forward: bool

    def __str__(self) -> str:
        if self.number == 1:
            return _ALONE
        number = "several" if self.number is None else str(self.number)
        kinds = [f"{count:g} × {name}" for name, count in self.collectives.items()]
        serves = [kind for name, kind, _ in _COLLECTIVES if name in self.collectives]
        purpose = f": {serves[0]}" if serves and self.in_forward else ""
        return f"{number} ranks ({', '.join(kinds)} a step{purpose})"


def parallelism(dense: SidePhase, pruned: SidePhase) -> Difference | None:
    """Return the difference in ranks; None where both run on as many, or that is not known.

    It hides a pruning where a side communicates in its forward pass: ranks that only sum gradients
    hold the whole model each.
    """
    old, new = ranks_of(dense), ranks_of(pruned)
    if not _differ(old, new):
        return None
    hides = old.in_forward or new.in_forward
    return Difference(PARALLELISM, str(old), str(new), hides_pruning=hides)


def _differ(old: Ranks, new: Ranks) -> bool:
    """Return whether two sides share a step out differently.

    If both run on several ranks and one does not say on how many, the kinds of collectives decide.
    """
    numbers = {old.number, new.number}
    if len(numbers) > 1 and (1 in numbers or None not in numbers):
        return True
    return numbers != {1} and not old.collectives.keys() & new.collectives.keys()


def ranks_of(phase: SidePhase) -> Ranks:
    """Return the ranks that a side runs a step on.

    A broadcast or a barrier shares nothing out.
    """
    if "comm" not in phase.kernels.values("kind"):
        return Ranks(1, {}, in_forward=False)
    frame, world = phase.kernels.frame, _recorded_world_size(phase)
    rows = frame.select("kind", "op", "name", "role", "layer").filter(pl.col("kind") == "comm")
    rows = rows.with_columns(text=pl.concat_str("op", "name", separator=" ", ignore_nulls=True))
    names = {text: _name_collective(text) for text in rows["text"].unique()}
    rows = rows.filter(
        pl.col("text").is_in([text for text, collective in names.items() if collective])
    )
    if rows.is_empty() or world == 1:
        return Ranks(1, {}, in_forward=False)
    gradients = pl.col("role").str.ends_with(BACKWARD) | (pl.col("role") == "optimizer")
    forward = rows.filter(gradients.not_())
    if phase.kernels.backward_roles:  # outside of any layer it may sum gradients
        forward = forward.filter(pl.col("layer").is_not_null())
    counts: Counter[str] = Counter()
    shown = rows if forward.is_empty() else forward
    for text, count in shown.group_by("text").len().iter_rows():
        counts[names[text] or ""] += count
    steps = phase.kernels.num_steps
    per_step = {collective: count / steps for collective, count in counts.most_common()}
    return Ranks(world, per_step, in_forward=not forward.is_empty())


def _name_collective(name: str) -> str | None:
    """Return the kind of a collective that shares out work; None for any other kernel."""
    text = name[:_NAME_LIMIT].lower()
    return next((kind for kind, _, pattern in _NAMED if pattern.search(text)), None)


def _recorded_world_size(phase: SidePhase) -> int | None:
    """Return the number of ranks that the profiler recorded; None if it did not."""
    side = phase.side
    info = side.bare.source.meta.get("distributedInfo") if side.bare is not None else None
    world = info.get("world_size") if isinstance(info, dict) else None
    return world if type(world) is int and 0 < world <= _MOST else None
