"""The loss of a model without parts of its layers, measured and interpolated.

In: a model, calibration tokens and the sizes that each layer may keep. Out: ModelLosses, the rise
of the loss in nats per token at each size. A few sizes of each part are measured one by one; the
others are interpolated linearly in the share of the importance that is removed. All are screened on
the first sequence. Those that a plan rests on are confirmed on all sequences, the least certain
first, until what is left adds no more doubt than so short a text has anyway. Measured losses are
kept in a file; a later call continues from it, also for another plan in the same folder.
"""

from __future__ import annotations

import hashlib
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import torch
from msgspec import Meta

from prunescope.taxonomy.allocations.allocation import PARTS, LayerOption
from prunescope.taxonomy.allocations.allocation_candidates import (
    Candidates,
    LayerLosses,
    Removal,
    measured_sizes,
    removals_of,
)
from prunescope.taxonomy.allocations.allocation_plan import Additivity
from prunescope.taxonomy.atomic_write import write_file
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import Name, Number, decode_file
from prunescope.taxonomy.timings import part
from prunescope.tracer.allocation.parts import ModelParts, find_parts
from prunescope.tracer.calibration.collect import statistics_cached
from prunescope.tracer.calibration.greedy import Stack
from prunescope.tracer.calibration.point import Calibration
from prunescope.tracer.calibration.texts import read_text
from prunescope.tracer.model.layers import runs_without
from prunescope.tracer.model.weights import weights_fingerprint

SEQUENCES = 4  # of the calibration, 512 tokens each where the model has as many positions
SCREENED = 1  # of them: every removal is screened on so many
PAIRS = 8  # of removals that are measured together
PAIR = " + "  # between the keys of two removals
# Nats a token of a removal after which the model gives no number: far above a random guess.
_BROKEN = 100.0
# Nats a token that removing all of a part loses at least: far below what so few tokens can tell, it
# only says that of two removals without a loss the smaller one is chosen.
_LEAST = 1e-4
_SAVED_EVERY_S = 2.0
Advance = Callable[[], None]


Measured = Annotated[dict[Name, Number | None], Meta(max_length=1 << 20)]


class ScreenedLosses(msgspec.Struct, kw_only=True):
    """Losses on the first sequence, in nats per token; null: no number.

    `variances`: of the mean rise of the loss of a token, in nats², as if tokens were independent.
    """

    sequences: int
    dense: Number
    removed: Measured = {}
    variances: Annotated[dict[Name, Number], Meta(max_length=1 << 20)] = {}


class LossFile(msgspec.Struct, kw_only=True):
    """The file PLAN.losses.json: losses of the dense model and of removals.

    Losses are nats per token. A loss is null if the model gave no number. The losses hold for one
    model and one text. `screened` is null in older files, whose removals are all confirmed.
    """

    schema: Literal[1] = 1
    model: Name | None = None  # the last part of its path; null in older files
    weights: Name
    text: dict[str, Any]
    dense: Number
    removed: Measured = {}
    screened: ScreenedLosses | None = None


def read_losses(path: Path) -> LossFile | None:
    """Read the measured losses of a file.

    Args:
        path: The file.

    Returns:
        The losses; None if there is no file.

    Raises:
        PrunescopeError: The file is damaged.
    """
    return decode_file(
        path, LossFile, where=path.name, hint=f"remove {path.name}: losses are measured again"
    )


def losses_nearby(path: Path) -> Iterator[tuple[Path, LossFile]]:
    """Yield the measured losses of a file, then those of other plans in its folder.

    Plans for other targets need the same losses. Damaged files of other plans are skipped.

    Args:
        path: The file of this plan.

    Raises:
        PrunescopeError: The file of this plan is damaged.
    """
    if (losses := read_losses(path)) is not None:
        yield path, losses
    for neighbour in sorted(path.parent.glob("*" + "".join(path.suffixes[-2:]))):
        if neighbour.name != path.name:
            with suppress(PrunescopeError):
                if (losses := read_losses(neighbour)) is not None:
                    yield neighbour, losses


def differing_source(losses: LossFile, *, model: str, text: Path | None) -> str:
    """Return the model or the text that the losses of a file are of, if it differs from these.

    Limitations: only the names and the text are compared. The weights are compared once the model
    is loaded.

    Args:
        losses: The measured losses.
        model: The name of the model.
        text: The text; None means the default text.

    Returns:
        The name of the differing model or text; empty if both are the same.
    """
    if losses.model not in (None, model):
        return str(losses.model)
    known = losses.text.get("sha256")
    return str(losses.text.get("text")) if known not in (None, read_text(text).sha256) else ""


@dataclass(kw_only=True)
class ModelLosses:
    """The losses of one model on one text, which `screen` and `confirm` fill in.

    `name` is the name of the model, which the file of losses keeps. `resumed` is the number of
    losses that the file already had.
    """

    model: Any
    calibration: Calibration
    sizes: Sequence[Candidates]
    path: Path | None = None
    name: str | None = None
    parts: ModelParts = field(init=False)
    file: LossFile = field(init=False)
    screened: ScreenedLosses = field(init=False)
    resumed: int = field(init=False)
    _stack: Stack = field(init=False)
    _dense: torch.Tensor = field(init=False)  # the loss of each screened token
    _saved: float = field(init=False, default=0.0)

    @part("quality")
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
            alike = (
                losses for _, losses in nearby if (losses.weights, losses.text) == (weights, text)
            )
            file = next(alike, None)
            if file is None:
                dense = self._stack.loss([])
                if not math.isfinite(dense):
                    raise PrunescopeError(
                        "the dense model gives no finite loss on this text",
                        hint="give another --dtype or --text",
                    )
                file = LossFile(model=self.name, weights=weights, text=text, dense=dense)
            self._dense = self._stack.token_losses(None, sequences=SCREENED)
            if file.screened is None or file.screened.sequences != SCREENED:
                file.screened = ScreenedLosses(sequences=SCREENED, dense=float(self._dense.mean()))
        self.file, self.screened = file, file.screened
        self.resumed = len(file.removed) + len(file.screened.removed)
        self.sizes = [self._keep_possible(i, sizes) for i, sizes in enumerate(self.sizes)]

    def _keep_possible(self, number: int, sizes: Candidates) -> Candidates:
        """Return the sizes whose parts the model has, which its config alone does not tell."""
        parts = self.parts.layers[number]
        return Candidates(
            **{part: sizes.of(part) if parts.of(part) else () for part in PARTS},
            may_go=sizes.may_go and runs_without(self.model, [number]),
        )

    @property
    def dense_sizes(self) -> list[tuple[int, int]]:
        """The KV heads and channels of each layer; 0 if none can be cut."""
        pairs = [(layer.kv_heads, layer.channels) for layer in self.parts.layers]
        return [(a.total if a else 0, b.total if b else 0) for a, b in pairs]

    @part("quality")
    def screen(self, advance: Advance) -> None:
        """Measure each removal on the first sequence, if the file has no loss of it.

        Args:
            advance: The function to call after each removal.
        """
        wanted = removals_of(self.sizes, self.dense_sizes)
        self._measure_each(wanted, self._best_known, advance)

    @part("quality")
    def confirm(self, removals: Sequence[Removal], advance: Advance) -> None:
        """Measure removals on all sequences, if the file has no such loss of them.

        Args:
            removals: The removals, by layer and part.
            advance: The function to call after each removal.
        """
        self._measure_each(removals, lambda removal: self._rise([removal]), advance)

    def _measure_each(
        self,
        removals: Sequence[Removal],
        measure: Callable[[Removal], float],
        advance: Advance,
    ) -> None:
        """Measure removals one after the other, and keep what is known where it is interrupted."""
        try:
            # Sizes of one part in a row need the same second moments.
            with statistics_cached({}):
                for removal in removals:
                    measure(removal)
                    advance()
        finally:
            self._save()

    def measured_for(self, options: Sequence[LayerOption]) -> list[Removal]:
        """Return the removals from whose losses those of the options are interpolated."""
        return [
            measured
            for number, option in enumerate(options)
            for removal in _removals(number, option)
            for measured in self._neighbours(removal)
        ]

    def unsure(self, options: Sequence[LayerOption]) -> list[Removal]:
        """Return the removals to confirm before the loss of the options is believed.

        They are the least certain of those that were only screened. What stays unconfirmed has
        together no more variance than the sum of all has on all sequences.
        """
        needed = {removal.key: removal for removal in self.measured_for(options)}
        variances = {key: self.screened.variances.get(key, 0.0) for key in needed}
        share = min(1.0, SCREENED / len(self._stack.batches))
        allowed = share * math.fsum(variances.values())
        screened = [key for key in needed if key not in self.file.removed]
        screened.sort(key=lambda key: variances[key])
        left = 0.0
        while screened and left + variances[screened[0]] <= allowed:
            left += variances[screened.pop(0)]
        return [removal for key, removal in needed.items() if key in screened]

    def layers(self) -> list[LayerLosses]:
        """Return the losses of every size of every layer, confirmed where they are."""
        return [
            LayerLosses(
                parts={part: self._curve(number, part, sizes.of(part)) for part in PARTS},
                dropped=max(2 * _LEAST, self._best_known(Removal(number, "layer")))  # of both parts
                if sizes.may_go
                else None,
            )
            for number, sizes in enumerate(self.sizes)
        ]

    @part("quality")
    def together(self, options: Sequence[LayerOption]) -> float:
        """Return the rise of the loss with one option for each layer."""
        removals = [r for i, option in enumerate(options) for r in _removals(i, option)]
        rise = self._rise(removals)
        self._save()
        return rise

    @part("quality")
    def additivity(self, options: Sequence[LayerOption], advance: Advance) -> Additivity:
        """Compare pairs of confirmed removals that options rest on with the sum of both alone.

        The pairs are of two layers, chosen at random.

        Args:
            options: The options, one per layer.
            advance: The function to call after each pair.
        """
        known = [
            removal
            for removal in self.measured_for(options)
            if removal.key in self.file.removed
            # What breaks the model alone does so in every pair.
            and 0 < self._rise([removal]) < self.file.dense
        ]
        chance = random.Random(0)
        pairs: set[tuple[Removal, Removal]] = set()
        for _ in range(4 * PAIRS):
            if len(known) > 1 and len(pairs) < PAIRS:
                first, second = sorted(chance.sample(known, 2), key=lambda removal: removal.layer)
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

    def _neighbours(self, removal: Removal) -> list[Removal]:
        """Return the measured removals next to a size of a part: itself, or one on either side."""
        number, part, size = removal.layer, removal.what, removal.size
        ranked = self.parts.layers[number].of(part) if part in PARTS else None
        if ranked is None:
            return [removal]
        measured = measured_sizes(self.sizes[number].of(part), ranked.total)
        below = [n for n in measured if n <= size][-1:]
        above = [n for n in measured if n >= size][:1]
        return [Removal(number, part, n) for n in dict.fromkeys(below + above)]

    def _curve(self, number: int, part: str, sizes: Sequence[int]) -> dict[int, float]:
        """Return the losses of all sizes of a part of a layer.

        A narrower part never loses less than a wider one, and none loses less than nothing: on so
        short a text such a gain is chance. A screened loss gives way to a confirmed one that
        contradicts it.
        """
        ranked = self.parts.layers[number].of(part)
        if ranked is None or not sizes:
            return {}
        measured = [Removal(number, part, n) for n in measured_sizes(sizes, ranked.total)]
        rises, ceiling = [], math.inf
        for removal in measured:  # the narrowest first
            rise = self._best_known(removal)
            if removal.key in self.file.removed:
                ceiling = min(ceiling, rise)
            else:
                rise = min(rise, ceiling)
            rises.append(rise)
        points, most = [(0.0, 0.0)], 0.0
        for removal, rise in zip(reversed(measured), reversed(rises), strict=True):
            most = max(most, rise)
            points.append((ranked.removed_share(removal.size), most))
        removed = {size: ranked.removed_share(size) for size in sizes}
        return {n: max(_interpolate(points, share), _LEAST * share) for n, share in removed.items()}

    def _best_known(self, removal: Removal) -> float:
        """Return the confirmed rise of the loss by a removal, else the screened one."""
        if removal.key in self.file.removed:
            return self._rise([removal])
        return self._screened_rise(removal)

    def _rise(self, removals: Sequence[Removal]) -> float:
        """Return the rise of the loss by these removals together, from the file if it has them."""
        if not removals:
            return 0.0
        key = PAIR.join(removal.key for removal in removals)
        if len(removals) > 2:
            key = f"plan {hashlib.sha256(key.encode()).hexdigest()[:16]}"
        if key not in self.file.removed:
            loss = self._loss(removals)
            self.file.removed[key] = loss if math.isfinite(loss) else None
            self._save_now_and_then()
        return _known_rise(self.file, key)

    def _screened_rise(self, removal: Removal) -> float:
        """Return the rise of the loss by a removal on the first sequence, from the file if known.

        A model that gives no number there is broken, which no other sequence mends.
        """
        kept = self.screened
        if removal.key not in kept.removed:
            rises = self._screened_tokens(removal) - self._dense
            loss, variance = kept.dense + float(rises.mean()), float(rises.var() / len(rises))
            known = math.isfinite(loss)
            kept.removed[removal.key] = loss if known else None
            kept.variances[removal.key] = variance if known else 0.0
            self._save_now_and_then()
        return _known_rise(kept, removal.key)

    @torch.no_grad()
    def _screened_tokens(self, removal: Removal) -> torch.Tensor:
        """Return the loss of each token of the first sequence with a removal, in nats."""
        with self._without([removal]) as (first, removed):
            return self._stack.token_losses(first, removed, sequences=SCREENED)

    @torch.no_grad()
    def _loss(self, removals: Sequence[Removal]) -> float:
        """Return the mean loss of a token with removals, in nats."""
        with self._without(removals) as (first, removed):
            return self._stack.loss_from(first, removed)

    @contextmanager
    def _without(self, removals: Sequence[Removal]) -> Iterator[tuple[int, list[int]]]:
        """Mask the parts of removals; yield the first layer that changes and the removed layers."""
        removed = [removal.layer for removal in removals if removal.what == "layer"]
        cuts = [
            (self.parts.layers[removal.layer].of(removal.what), removal.size)
            for removal in removals
            if removal.what in PARTS
        ]
        # Low ranks are fitted to what the whole model gives, before anything is masked.
        changes = [part.masked(size) for part, size in cuts if part is not None]
        with ExitStack() as masks:
            for change in changes:
                masks.enter_context(change)
            yield min(removal.layer for removal in removals), removed

    def _save_now_and_then(self) -> None:
        if time.monotonic() - self._saved > _SAVED_EVERY_S:
            self._save()

    def _save(self) -> None:
        self._saved = time.monotonic()
        if self.path is not None:
            write_file(self.path, msgspec.json.format(msgspec.json.encode(self.file), indent=1))


def _known_rise(losses: LossFile | ScreenedLosses, key: str) -> float:
    """Return the rise of a known loss, in nats a token."""
    loss = losses.removed[key]
    return _BROKEN if loss is None else loss - losses.dense


def _removals(number: int, option: LayerOption) -> list[Removal]:
    if option.dropped:
        return [Removal(number, "layer")]
    return [Removal(number, part, size) for part, size in option.sizes.items()]


def _interpolate(points: Sequence[tuple[float, float]], share: float) -> float:
    """Return the loss at a share of the importance, on lines between the ascending points."""
    for (x, low), (y, high) in pairwise(points):
        if share <= y:
            return low + (high - low) * (share - x) / (y - x) if y > x else low
    return points[-1][1]


def _correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return Pearson's correlation; None for fewer than three pairs, or if a side does not vary."""
    if len(first) < 3:
        return None
    a, b = (torch.tensor(side, dtype=torch.float64) for side in (first, second))
    a, b = a - a.mean(), b - b.mean()
    spread = float(a.norm() * b.norm())
    return float(a @ b) / spread if spread > 0 else None
