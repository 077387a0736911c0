"""Token dropping: from one layer on, the int(p·S) most attended of S prompt tokens stay, p = 1 − s.

With `schedule` or `stages` they leave in steps, each ranked by an attention before it; a token that
left stays away. The last prompt token always stays. Positions are kept, the caches of later layers
are shorter, and their mixers see the kept tokens alone. Logits of all tokens have rows for the kept
tokens alone. A forward of prompt and answer together ranks by another last token, so that its
tokens may differ from those of prefill and decode.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import StaticLayer

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families.token_drop import drop_layers, tokens_left
from prunescope.taxonomy.family import FamilyPoint, Value
from prunescope.tracer.attention.attention_parts import AttentionParts
from prunescope.tracer.attention.counted_cache import LayerPlace, last_columns, layer_places
from prunescope.tracer.attention.plain_attention import PlainAttention
from prunescope.tracer.attention.rotation import taken_rotary
from prunescope.tracer.calibration.point import Point
from prunescope.tracer.model import compat
from prunescope.tracer.model.forwards import extend, name_arguments
from prunescope.tracer.model.static_step import static_step
from prunescope.tracer.pruners import Applied
from prunescope.tracer.routing.decisions import Counted, Sampler, Tally, flat_positions, with_first
from prunescope.tracer.routing.learning import NothingTrained
from prunescope.tracer.routing.rebuild import (
    check_runs,
    has_mixers,
    layer_attentions,
    movable_layers,
    rebuild,
)

_DROPPED = "with tokens dropped"


def prune(model: PreTrainedModel, point: Point) -> Applied:
    """Drop tokens before the layers that the knobs name; no weights are removed."""
    layers = movable_layers(model)
    attentions = layer_attentions(model)
    afters = drop_layers(point.knobs, range(attentions[0].layer + 1, len(layers)))
    watched = {
        after: next(parts for parts in reversed(attentions) if parts.layer < after)
        for after in afters
    }
    if len({parts.layer for parts in watched.values()}) < len(afters):
        raise PrunescopeError(
            f"tokens leave after layers {_listed(afters)} with no attention between two of them",
            hint="name layers with an attention between: --set schedule=8,16,24",
        )
    places = layer_places(model, layers)
    drop = _Drop(any(place.is_tracked for place in places))
    sampler = Sampler(point, "token-drop")
    rankers = [
        TokenRanker(sampler.share_stream(), step, len(afters), knobs=point.knobs)
        for step in range(1, len(afters) + 1)
    ]

    def build() -> list[TokenRanker]:
        for place, layer in zip(places, layers, strict=True):
            parts: Any = layer
            extend(layer, _Dropping)
            parts.place, parts.drop, parts.tally = place, drop, Tally("rows")
            parts.late = place.number >= afters[0]
        for parts in {attention.layer: attention for attention in watched.values()}.values():
            model.set_submodule(parts.path, _WatchedAttention(parts, drop))
        for after, ranker in zip(afters, rankers, strict=True):
            late: Any = layers[after]
            late.router = ranker
        return rankers

    rebuild(model, build, sparsity=point.sparsity)
    asked = FamilyPoint(sparsity=point.sparsity, knobs=point.knobs)
    compat.set_static_layers(model, _static_layers(places, afters, asked))
    try:
        check_runs(model, _DROPPED, sampler.stream)
    except PrunescopeError:
        # Some models reshape hidden states to the prompt, so the last layer restores all rows.
        drop.last = len(layers) - 1
        check_runs(model, _DROPPED, sampler.stream)
    kept: dict[str, Any] = {"tokens": 1 - point.sparsity, "after": afters[0]}
    if removed := int(point.knobs.get("removed", 0)):
        kept = {"removed": removed, "after": afters[0]}
    notes = [
        f"ranked by the attention of layer {parts.layer}, the last before the drop"
        for after, parts in watched.items()
        if parts.layer < after - 1
    ]
    if len(afters) > 1:
        kept["schedule"] = afters
        notes.append(f"tokens leave in {len(afters)} steps, after layers {_listed(afters)}")
    if has_mixers(model):
        notes.append("mixers after the drop see the kept tokens alone")
    trained = NothingTrained("trained on all tokens: no weight ranks them", rankers)
    return Applied(model=model, record={"kept": kept, "notes": notes}, learners=[trained])


def _static_layers(
    places: list[LayerPlace], afters: list[int], point: FamilyPoint
) -> compat.StaticLayers:
    """Return a function that makes the shorter layers of a static cache, behind a drop."""

    def layers(prompt: int, more: int) -> dict[int, StaticLayer]:
        shorter = {}
        for place in places:
            if place.is_tracked:
                raise PrunescopeError(
                    f"layer {place.number} attends by a mask or a window, which counts tokens",
                    hint="use --mode eager: a static cache cannot leave tokens out of them",
                )
            step = sum(after <= place.number for after in afters)
            if step and place.attends:
                left = tokens_left(point, prompt, step, len(afters), merged=False)
                shorter[place.cached] = StaticLayer(left + more)
        return shorter

    return layers


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


@dataclass
class _Drop:
    """The state that the layers share in one forward.

    It has the number of `tokens`, the ranking `query` (scaled) and `keys`, then the `positions` [B,
    k] of the kept tokens (None: all), and the arguments `taken` for them. `counted` tells whether
    caches count tokens, for masks of windows. `last` is the layer that restores all rows, with
    zeros for dropped tokens; None: no layer does. `mask` is that of late layers in a static step,
    and `stale` while it is still that of the layers before.
    """

    counted: bool
    last: int | None = None
    tokens: int = 0
    query: Tensor | None = None
    keys: Tensor | None = None
    positions: Tensor | None = None
    taken: list[tuple[Any, Any]] = field(default_factory=list)
    mask: Tensor | None = None
    stale: bool = True

    def saved(self) -> dict[str, Any]:
        """Return a copy of the state; see ForwardState."""
        return {**vars(self), "taken": list(self.taken)}

    def restore(self, saved: dict[str, Any]) -> None:
        """Set the state to a copy that `saved` made."""
        vars(self).update(saved, taken=list(saved["taken"]))

    def reduce_arguments(self, arguments: dict[str, Any], positions: Tensor) -> dict[str, Any]:
        """Reduce the arguments of a layer to the kept tokens at `positions`."""
        kept = dict(arguments)
        for name, take in (("position_embeddings", taken_rotary), ("position_ids", _taken_ids)):
            value: Any = arguments.get(name)
            if value is not None:
                known = [taken for given, taken in self.taken if _first(given) is _first(value)]
                if not known:
                    known = [take(value, positions)]
                    self.taken.append((value, known[0]))
                kept[name] = known[0]
        return kept


class TokenRanker(nn.Module):
    """A ranker that keeps the tokens that the last token attends to most, over all heads."""

    def __init__(
        self, sampler: Sampler, step: int, steps: int, *, knobs: Mapping[str, Value] | None = None
    ) -> None:
        super().__init__()
        self.sparsity, self.sampler, self.step, self.steps = 0.0, sampler, step, steps
        self.knobs = dict(knobs or {})

    def forward(
        self, hidden: Tensor, query: Tensor, keys: Tensor, *, prompt: int
    ) -> tuple[Tensor, Tensor]:
        """Keep k of the S tokens that are left of a `prompt`, which had that many tokens.

        They are ranked by the last token's query [B, n_q, 1, d] (scaled) and all keys [B, n_kv, S,
        d]. The result is their hidden states [B, k, h] in order, and their places [B, k] among the
        S.
        """
        batch, heads, length, _ = keys.shape
        grouped = query.view(batch, heads, -1, query.shape[-1])  # [B, n_kv, G, d]
        mass = (grouped @ keys.transpose(-1, -2)).softmax(-1).mean((1, 2))  # [B, S]
        scores = self.sampler.replace(mass)
        scores[:, -1] = float("inf")  # the next token follows from the last one
        point = FamilyPoint(sparsity=self.sparsity, knobs=self.knobs)
        kept = tokens_left(point, prompt, self.step, self.steps, merged=False)
        positions = scores.topk(kept).indices.sort().values
        flat = flat_positions(positions, length).flatten()
        rows = hidden.reshape(batch * length, -1).index_select(0, flat)
        return rows.view(*positions.shape, -1), positions


class _WatchedAttention(PlainAttention):
    """Dense attention that stores its last query and its keys for the ranking."""

    def __init__(self, parts: AttentionParts, drop: _Drop) -> None:
        super().__init__(parts)
        self.drop = drop

    def attend_causally(
        self, q: Tensor, k: Tensor, v: Tensor, given: Tensor | None = None
    ) -> Tensor:
        """Attend as the dense layer does, and store the last query and the keys of a prompt."""
        if q.shape[2] == k.shape[2] > 1:  # it is a prompt on an empty cache
            self.drop.query, self.drop.keys = q[:, :, -1:] * self.scaling, k
        return super().attend_causally(q, k, v, given)


class _Dropping(Counted):
    """A decoder layer before the drop, at it (with a router) or after it (`late`)."""

    router: TokenRanker
    drop: _Drop
    place: LayerPlace
    late: bool

    @property
    def forward_state(self) -> _Drop:
        """The state that earlier layers leave: which tokens are kept."""
        return self.drop

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the layer on the tokens that are left: [B, S, h] to [B, S or k, h]."""
        arguments = name_arguments(self, args, kwargs)
        cache, mask = compat.cache_in(arguments), arguments.get("attention_mask")
        past, drop = self.place.past(cache), self.drop
        if self.place.number == 0:
            drop.tokens = hidden_states.shape[1]
            self.place.refuse_padding(mask, drop.tokens, past)
        if hasattr(self, "router"):
            hidden_states = self._drop_tokens(hidden_states)
        positions = drop.positions if self.late else None
        if positions is not None:
            arguments = drop.reduce_arguments(arguments, positions)
        batch, rows = hidden_states.shape[:2]
        self.tally.add(batch * rows, batch * drop.tokens)
        if self.place.attends:  # a mixer takes the remaining tokens, without a mask
            arguments["attention_mask"] = self._mask_of(mask, cache, past, rows)
        output = super().forward(hidden_states, **arguments)  # type: ignore[misc]
        if positions is None or self.place.number != drop.last:
            return output
        return with_first(output, lambda y: self._restore(y, positions))

    def _mask_of(self, mask: Any, cache: Any, past: int, rows: int) -> Any:
        """Reduce the mask given to the layer to the `rows` that are left."""
        drop, positions = self.drop, self.drop.positions if self.late else None
        if static_step() is not None:
            if self.late and drop.stale:
                drop.mask = compat.static_mask(cache, self.place.cached, rows, like=mask)
                drop.stale = False
            return drop.mask if self.late else mask
        if not drop.counted:
            return last_columns(mask, past + rows)
        cached = self.place.counted(cache) or self.place.empty()
        reduced = cached.mask_of(mask, rows, positions)
        # Positions count the dropped tokens too.
        cached.seen += drop.tokens - rows
        return reduced

    def _restore(self, hidden: Tensor, positions: Tensor) -> Tensor:
        """Put rows [B, k, h] at their positions [B, k] in the prompt: [B, S, h], zero elsewhere."""
        zeros = hidden.new_zeros(hidden.shape[0], self.drop.tokens, hidden.shape[2])
        return zeros.scatter_(1, positions.unsqueeze(-1).expand_as(hidden), hidden)

    def _drop_tokens(self, hidden: Tensor) -> Tensor:
        """Return the hidden states of kept tokens; all of them if no query was stored."""
        drop, query, keys = self.drop, self.drop.query, self.drop.keys
        before = drop.positions if self.router.step > 1 else None
        drop.query = drop.keys = None
        drop.positions, drop.stale = before, True
        if query is None or keys is None:
            drop.taken = []
            return hidden
        hidden, kept = self.router(hidden, query, keys, prompt=drop.tokens)
        drop.positions = kept if before is None else before.gather(1, kept)
        drop.taken = []
        return hidden


def _first(value: Any) -> Any:
    """Return the tensor that identifies an argument: torch.compile does not compare tuples."""
    return value[0] if isinstance(value, tuple) else value


def _taken_ids(ids: Tensor, positions: Tensor) -> Tensor:
    """Return the position ids [1 or B, S] of the tokens at `positions` [B, k]."""
    return ids.expand(positions.shape[0], -1).gather(1, positions)
