"""The loss of a model without parts of its layers, measured and interpolated.

In: a model, calibration tokens and the sizes that each layer may keep. Out: ModelLosses, the rise
of the loss in nats a token at each size. A few sizes of each part are measured one by one; the
others are interpolated linearly in the share of the importance that is removed. Measured losses are
kept in a file; a later call continues from it, also for another plan in the same folder.
"""

from __future__ import annotations

import hashlib
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import torch
from msgspec import Meta

from prunescope.taxonomy.allocation import PARTS, LayerOption
from prunescope.taxonomy.allocation_candidates import (
    Candidates,
    LayerLosses,
    Removal,
    measured_sizes,
    removals_of,
)
from prunescope.taxonomy.allocation_plan import Additivity
from prunescope.taxonomy.atomic_write import write_file
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import Name, Number, decode_file
from prunescope.tracer.allocation.parts import ModelParts, find_parts
from prunescope.tracer.calibration.collect import statistics_cached
from prunescope.tracer.calibration.greedy import Stack
from prunescope.tracer.calibration.point import Calibration
from prunescope.tracer.calibration.texts import read_text
from prunescope.tracer.model.layers import counts_without
from prunescope.tracer.model.weights import weights_fingerprint

SEQUENCES = 4  # of the calibration, 512 tokens each where the model has as many positions
PAIRS = 8  # of removals that are measured together
PAIR = " + "  # between the keys of two removals
# Nats a token of a removal after which the model gives no number: far above a random guess.
_BROKEN = 100.0
# Nats a token that removing all of a part loses at least: far below what so few tokens can tell, it
# only says that of two removals without a loss the smaller one is chosen.
_LEAST = 1e-4
_SAVED_EVERY_S = 2.0
Advance = Callable[[], None]


class LossFile(msgspec.Struct, kw_only=True):
    """PLAN.losses.json: the loss of the dense model and of each removal that was measured, in nats
    a token; null where the model gave no number. They hold for one model and one text."""

    schema: Literal[1] = 1
    model: Name | None = None  # the last part of its path; null in older files
    weights: Name
    text: dict[str, Any]
    dense: Number
    removed: Annotated[dict[Name, Number | None], Meta(max_length=1 << 20)] = {}


def read_losses(path: Path) -> LossFile | None:
    """The measured losses of a file; None where there is none. Raises PrunescopeError for a damaged
    one."""
    return decode_file(
        path, LossFile, where=path.name, hint=f"remove {path.name}: losses are measured again"
    )


def losses_nearby(path: Path) -> Iterator[tuple[Path, LossFile]]:
    """The measured losses of a file, PLAN.losses.json, then those of the other plans in its folder:
    plans for other targets need the same ones. Damaged files of other plans are passed over."""
    if (found := read_losses(path)) is not None:
        yield path, found
    for other in sorted(path.parent.glob("*" + "".join(path.suffixes[-2:]))):
        if other.name != path.name:
            with suppress(PrunescopeError):
                if (found := read_losses(other)) is not None:
                    yield other, found


def losses_of_others(found: LossFile, *, model: str, text: Path | None) -> str:
    """The model or text of a file's losses, if it differs; else "". By the names and the
    text alone: the weights are compared once the model is loaded."""
    if found.model not in (None, model):
        return str(found.model)
    known = found.text.get("sha256")
    return str(found.text.get("text")) if known not in (None, read_text(text).sha256) else ""


@dataclass(kw_only=True)
class ModelLosses:
    """Losses of one model on one text; `measure` fills them in. `name`: of the model, kept with
    them."""

    model: Any
    calibration: Calibration
    sizes: Sequence[Candidates]
    path: Path | None = None
    name: str | None = None
    parts: ModelParts = field(init=False)
    file: LossFile = field(init=False)
    resumed: int = field(init=False)  # removals that the file had
    _stack: Stack = field(init=False)
    _saved: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        with torch.no_grad():
            self.parts = find_parts(self.model, self.calibration.batches)
            self._stack = Stack(self.model, self.calibration.batches[:SEQUENCES])
            self._stack.begin_round([])
            tokens = sum(ids.numel() for ids in self._stack.batches)
            text = {**self.calibration.record, "tokens": tokens}
            text["sequences"] = len(self._stack.batches)
            weights = weights_fingerprint(self.model)
            nearby = iter(()) if self.path is None else losses_nearby(self.path)
            ours = (one for _, one in nearby if (one.weights, one.text) == (weights, text))
            found = next(ours, None)
            if found is None:
                dense = self._stack.loss([])
                if not math.isfinite(dense):
                    raise PrunescopeError(
                        "the dense model gives no finite loss on this text",
                        hint="give another --dtype or --text",
                    )
                found = LossFile(model=self.name, weights=weights, text=text, dense=dense)
        self.file, self.resumed = found, len(found.removed)
        self.sizes = [self._possible(i, one) for i, one in enumerate(self.sizes)]

    def _possible(self, number: int, sizes: Candidates) -> Candidates:
        """The sizes whose parts were found in the model, which the config alone does not tell."""
        parts = self.parts.layers[number]
        return Candidates(
            **{part: sizes.of(part) if parts.of(part) else () for part in PARTS},
            may_go=sizes.may_go and counts_without(self.model, [number]),
        )

    @property
    def dense_sizes(self) -> list[tuple[int, int]]:
        """KV heads and channels of each layer; 0 where none can be cut."""
        found = [(one.kv_heads, one.channels) for one in self.parts.layers]
        return [(a.total if a else 0, b.total if b else 0) for a, b in found]

    def measure(self, advance: Advance) -> None:
        """Measure each removal that the file does not have; `advance` is called after each."""
        try:
            # Sizes of one part in a row need the same second moments.
            with statistics_cached({}):
                for one in removals_of(self.sizes, self.dense_sizes):
                    self._rise([one])
                    advance()
        finally:
            self._save()

    def layers(self) -> list[LayerLosses]:
        """The losses of every size of every layer."""
        return [
            LayerLosses(
                parts={part: self._curve(number, part, sizes.of(part)) for part in PARTS},
                dropped=max(2 * _LEAST, self._rise([Removal(number, "layer")]))  # of both parts
                if sizes.may_go
                else None,
            )
            for number, sizes in enumerate(self.sizes)
        ]

    def together(self, options: Sequence[LayerOption]) -> float:
        """The rise of the loss with an option a layer."""
        found = self._rise([r for i, one in enumerate(options) for r in _removals(i, one)])
        self._save()
        return found

    def additivity(self, advance: Advance) -> Additivity:
        """Pairs of measured removals in two layers, chosen at random, against the sum of both."""
        known = [
            one
            for one in removals_of(self.sizes, self.dense_sizes)
            # What breaks the model alone does so in a pair, whatever the other is.
            if 0 < self._rise([one]) < self.file.dense
        ]
        chance = random.Random(0)
        pairs: set[tuple[Removal, Removal]] = set()
        for _ in range(4 * PAIRS):
            if len(known) > 1 and len(pairs) < PAIRS:
                first, second = sorted(chance.sample(known, 2), key=lambda one: one.layer)
                if first.layer != second.layer:
                    pairs.add((first, second))
        both, sums = [], []
        for first, second in sorted(pairs, key=lambda pair: pair[0].key + pair[1].key):
            both.append(self._rise([first, second]))
            sums.append(self._rise([first]) + self._rise([second]))
            advance()
        self._save()
        errors = [x - y for x, y in zip(both, sums, strict=True)]
        return Additivity(
            pairs=len(both),
            correlation=_correlation(both, sums),
            worst_error=max(errors, key=abs) if errors else None,
        )

    def _curve(self, number: int, what: str, sizes: Sequence[int]) -> dict[int, float]:
        """Losses of all sizes. A narrower part never loses less than a wider one, and none less
        than nothing: on so short a text such a gain is chance."""
        ranked = self.parts.layers[number].of(what)
        if ranked is None or not sizes:
            return {}
        points, most = [(0.0, 0.0)], 0.0
        for size in sorted(measured_sizes(sizes, ranked.total), reverse=True):
            most = max(most, self._rise([Removal(number, what, size)]))
            points.append((ranked.removed_share(size), most))
        removed = {size: ranked.removed_share(size) for size in sizes}
        return {n: max(_between(points, share), _LEAST * share) for n, share in removed.items()}

    def _rise(self, removals: Sequence[Removal]) -> float:
        """The rise of the loss by these removals together, from the file where it has them."""
        if not removals:
            return 0.0
        key = PAIR.join(one.key for one in removals)
        if len(removals) > 2:
            key = f"plan {hashlib.sha256(key.encode()).hexdigest()[:16]}"
        if key not in self.file.removed:
            loss = self._loss(removals)
            self.file.removed[key] = loss if math.isfinite(loss) else None
            if time.monotonic() - self._saved > _SAVED_EVERY_S:
                self._save()
        loss_now = self.file.removed[key]
        return _BROKEN if loss_now is None else loss_now - self.file.dense

    @torch.no_grad()
    def _loss(self, removals: Sequence[Removal]) -> float:
        removed = [one.layer for one in removals if one.what == "layer"]
        cut = [one for one in removals if one.what in PARTS]
        found = [(self.parts.layers[one.layer].of(one.what), one.size) for one in cut]
        # Low ranks are fitted to what the whole model gives, before anything is masked.
        changes = [part.masked(size) for part, size in found if part is not None]
        with ExitStack() as masks:
            for change in changes:
                masks.enter_context(change)
            return self._stack.loss_from(min(one.layer for one in removals), removed)

    def _save(self) -> None:
        self._saved = time.monotonic()
        if self.path is not None:
            write_file(self.path, msgspec.json.format(msgspec.json.encode(self.file), indent=1))


def _removals(number: int, option: LayerOption) -> list[Removal]:
    if option.dropped:
        return [Removal(number, "layer")]
    return [Removal(number, what, size) for what, size in option.sizes.items()]


def _between(points: Sequence[tuple[float, float]], share: float) -> float:
    """The loss at a share of the importance, on lines between the points; those are ascending."""
    for (x, low), (y, high) in pairwise(points):
        if share <= y:
            return low + (high - low) * (share - x) / (y - x) if y > x else low
    return points[-1][1]


def _correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Pearson's; None for fewer than three pairs, or where one side does not vary."""
    if len(first) < 3:
        return None
    a, b = (torch.tensor(side, dtype=torch.float64) for side in (first, second))
    a, b = a - a.mean(), b - b.mean()
    spread = float(a.norm() * b.norm())
    return float(a @ b) / spread if spread > 0 else None
