"""The number of ranks that share a model on each side, by the collectives of its steps.

In: a phase of both sides. Out: a Difference where the ranks are not as many on both: a rank of
tensor, expert, pipeline or sequence parallelism runs a part of the model, which looks pruned.

    A side without collectives runs alone, however many processes there are. One with collectives
    runs on as many ranks as its metadata says, else on several.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

import polars as pl

from prunescope.analysis.inputs.side import SidePhase
from prunescope.analysis.schema.pair_comparison import PARALLELISM, Difference
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
_NAMED = tuple((name, serves, re.compile(found)) for name, serves, found in _COLLECTIVES)


@dataclass(frozen=True)
class Ranks:
    """`number`: of the ranks that share out a step, None where only its collectives are known;
    `collectives`: how often a step runs each; `in_forward`: whether any runs in a forward pass, not
    to sum gradients alone."""

    number: int | None
    collectives: dict[str, float]
    in_forward: bool

    def __str__(self) -> str:
        if self.number == 1:
            return _ALONE
        number = "several" if self.number is None else str(self.number)
        kinds = [f"{count:g} × {name}" for name, count in self.collectives.items()]
        serves = [kind for name, kind, _ in _COLLECTIVES if name in self.collectives]
        what = f": {serves[0]}" if serves and self.in_forward else ""
        return f"{number} ranks ({', '.join(kinds)} a step{what})"


def parallelism(dense: SidePhase, pruned: SidePhase) -> Difference | None:
    """The difference in ranks; None where both run on as many, or that is not known.

    It hides a pruning where a side communicates in its forward pass: ranks that only sum gradients
    hold the whole model each.
    """
    old, new = ranks_of(dense), ranks_of(pruned)
    if not _differ(old, new):
        return None
    hides = old.in_forward or new.in_forward
    return Difference(PARALLELISM, str(old), str(new), hides_pruning=hides)


def _differ(old: Ranks, new: Ranks) -> bool:
    """Whether two sides share a step out otherwise. Of several ranks each, whose number one side
    does not say, the kinds of collectives decide."""
    numbers = {old.number, new.number}
    if len(numbers) > 1 and (1 in numbers or None not in numbers):
        return True
    return numbers != {1} and not old.collectives.keys() & new.collectives.keys()


def ranks_of(phase: SidePhase) -> Ranks:
    """The ranks that a side runs a step on. A broadcast or a barrier shares nothing out."""
    if "comm" not in phase.kernels.values("kind"):
        return Ranks(1, {}, in_forward=False)
    frame, world = phase.kernels.frame, _world_size(phase)
    rows = frame.select("kind", "op", "name", "role", "layer").filter(pl.col("kind") == "comm")
    if rows.is_empty():
        return Ranks(1, {}, in_forward=False)
    rows = rows.with_columns(text=pl.concat_str("op", "name", separator=" ", ignore_nulls=True))
    names = {text: _collective(text) for text in rows["text"].unique()}
    rows = rows.filter(pl.col("text").is_in([text for text, what in names.items() if what]))
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
    per_step = {what: count / steps for what, count in counts.most_common()}
    return Ranks(world, per_step, in_forward=not forward.is_empty())


def _collective(name: str) -> str | None:
    """The collective that shares out work, by a name; None for any other."""
    text = name[:_NAME_LIMIT].lower()
    return next((what for what, _, pattern in _NAMED if pattern.search(text)), None)


def _world_size(phase: SidePhase) -> int | None:
    side = phase.side
    info = side.bare.source.meta.get("distributedInfo") if side.bare is not None else None
    world = info.get("world_size") if isinstance(info, dict) else None
    return world if type(world) is int and 0 < world <= _MOST else None
