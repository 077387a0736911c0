"""KV eviction: a cache of L tokens holds int(L·p) keys after the prompt and every new token.

p = 1 − s. `keep=recent` keeps the latest keys (a window), and `keep=sinks` the first four too
(StreamingLLM). `keep=attention` chooses once, at the end of the prompt: the last prompt tokens and
the keys that they attend to most, for each KV head (SnapKV), or for all heads that share a latent.
Kept keys are ordered with the first to be evicted in front, so that decode evicts by slicing.
`keep=accumulated` chooses again in every step: the latest keys, and those that all queries so far
have attended to most (H2O). Prefill attends to the whole prompt; a forward of prompt and answer
together would see keys that decode has evicted.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunescope.taxonomy.families.kv_evict import OBSERVED
from prunescope.taxonomy.keep import kept_count
from prunescope.taxonomy.plan import RANKED_AT_ONCE
from prunescope.tracer.attention.attention_parts import AttentionParts
from prunescope.tracer.attention.counted_cache import CountedKeys, counted_layer
from prunescope.tracer.attention.plain_attention import PlainAttention, lower_right, refuse_padding
from prunescope.tracer.attention.projections import KV
from prunescope.tracer.attention.rotation import Rotary
from prunescope.tracer.attention.static_layers import MassLayer, QueueLayer
from prunescope.tracer.calibration.point import Point
from prunescope.tracer.model import compat
from prunescope.tracer.model.static_step import static_step
from prunescope.tracer.pruners import Applied
from prunescope.tracer.routing.decisions import Counted, Sampler, Tally, flat_key_rows, take_rows
from prunescope.tracer.routing.learning import NothingTrained
from prunescope.tracer.routing.rebuild import rebuild, whole_attentions

SINKS = 4  # first keys that keep=sinks never evicts (StreamingLLM's start_size)


def prune(model: PreTrainedModel, point: Point) -> Applied:
    """Give every attention an eviction policy; no weights are removed."""
    attentions = whole_attentions(model)
    sampler = Sampler(point, "kv-evict")
    kind = _POLICIES[str(point.knobs["keep"])]

    def build() -> list[_EvictingAttention]:
        built = [kind(parts, point, sampler) for parts in attentions]
        for attention in built:
            model.set_submodule(attention.parts.path, attention)
        return built

    rebuild(model, build, sparsity=point.sparsity)

    def static_layers(prompt: int, more: int) -> dict[int, Any]:
        return {
            module.layer_idx: module.static_layer(prompt + more)
            for module in model.modules()
            if isinstance(module, _EvictingAttention)
        }

    compat.set_static_layers(model, static_layers)
    trained = NothingTrained("trained on forwards without a cache, which evict nothing")
    record = {"kept": {"keys": 1 - point.sparsity}}
    return Applied(model=model, record=record, learners=[trained])


class _Ranker(nn.Module):
    """A ranker of keys by attention, or at random in its place."""

    def __init__(self, sampler: Sampler) -> None:
        super().__init__()
        self.sampler = sampler


class KeyRanker(_Ranker):
    """A ranker of a prompt's keys by the attention of its last tokens, for each KV head."""

    def forward(self, q: Tensor, keys: Tensor, *, count: int, scaling: float, sets: int) -> Tensor:
        """Return the rows of the `count` keys to keep in each of the cache's `sets`.

        A set is a KV head, or all heads that share latents. The keys [B, n_kv, S, d] are ranked by
        the last queries [B, n_q, w, d], and the least attended come first. The newest min(w, count
        // 2) keys always stay, since few queries can attend to them.
        """
        batch, heads, _, width = keys.shape
        grouped = q.reshape(batch, heads, -1, width)  # [B, n_kv, G·w, d]
        scores = grouped @ keys.transpose(-1, -2) * scaling
        mask = lower_right(q.shape[2], keys.shape[2], like=q)
        scores = scores.unflatten(2, (-1, q.shape[2])) + mask
        mass = scores.softmax(-1).mean((2, 3))  # [B, n_kv, S]
        if sets < heads:
            mass = mass.unflatten(1, (sets, -1)).mean(2)
        mass = self.sampler.replace(mass)
        mass[..., keys.shape[2] - min(q.shape[2], count // 2) :] = float("inf")
        return flat_key_rows(mass.topk(count).indices.flip(-1), keys.shape[2])


class MassRanker(_Ranker):
    """A ranker of cached keys by the attention of all queries so far, for each KV head."""

    def forward(
        self, q: Tensor, keys: Tensor, mass: Tensor | None, *, count: int, scaling: float, sets: int
    ) -> tuple[Tensor | None, Tensor]:
        """Rank the keys of each of the cache's `sets`, and return the `count` that stay.

        New queries [B, n_q, T, d] add to the attention that the keys [B, n_kv, L, d] got before,
        `mass` [B, sets, L − T]; None if all keys are new. The newest half of the kept keys always
        stays, since few queries can attend to them.

        Returns:
            The rows of the kept keys, in the order of the keys (None if all stay), and the
            attention
            that they got, [B, sets, count].
        """
        added = attention_mass(q, keys, scaling=scaling)
        if sets < keys.shape[1]:
            added = added.unflatten(1, (sets, -1)).mean(2)
        if mass is not None:
            added[..., : mass.shape[-1]] += mass
        if count >= keys.shape[2]:
            return None, added
        scores = self.sampler.replace(added).clone()
        scores[..., keys.shape[2] - count // 2 :] = float("inf")
        index = scores.topk(count).indices.sort().values
        return flat_key_rows(index, keys.shape[2]), added.gather(-1, index)


def attention_mass(q: Tensor, keys: Tensor, *, scaling: float) -> Tensor:
    """Add up the attention weights of the newest queries [B, n_q, T, d] to keys [B, n_kv, L, d].

    They are summed over the queries and averaged over the heads of a group: [B, n_kv, L] in
    float32.
    """
    batch, heads, length, width = keys.shape
    mass = torch.zeros(batch, heads, length, device=keys.device)
    for first in range(0, q.shape[2], RANKED_AT_ONCE):
        part = q[:, :, first : first + RANKED_AT_ONCE]
        rows = part.shape[2]
        seen = length - q.shape[2] + first + rows
        scores = part.reshape(batch, heads, -1, width) @ keys[:, :, :seen].transpose(-1, -2)
        scores = scores.mul_(scaling).unflatten(2, (-1, rows))  # [B, n_kv, G, rows, seen]
        if rows > 1:
            scores = scores + lower_right(rows, seen, like=scores)
        mass[..., :seen] += scores.softmax(-1, dtype=torch.float32).sum(3).mean(2)
    return mass


class _EvictingAttention(PlainAttention, Counted):
    """Dense attention to a cache that holds some of the keys: the latest."""

    kept_first = 0  # first keys that stay; `sinks` are parameters of some models

    def __init__(self, parts: AttentionParts, point: Point, sampler: Sampler) -> None:
        super().__init__(parts)
        self.sparsity, self.tally = point.sparsity, Tally("keys")
        self.add_router(sampler.stream_for(point, f"layer {self.layer_idx}"))

    def add_router(self, sampler: Sampler) -> None:
        """Add the policy's ranker, if attention ranks the keys."""

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: Rotary | None = None,
        attention_mask: Any = None,
        cache: Any = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """Attend to the keys in the cache, and evict: [B, T, h] to [B, T, h]."""
        q, k, v = self.project(hidden_states, position_embeddings)
        step = static_step()
        if step is not None:
            layer = cache.layers[self.layer_idx]
            act = self._static_prompt if step.prompt else self._static_token
            return self.project_output(act(layer, q, (k, v))), None
        if cache is None:
            k, v = self.expand(k, v)
            return self.project_output(self.attend_causally(q, k, v, attention_mask)), None
        held = counted_layer(cache, self.layer_idx)
        if not self.is_masked:
            refuse_padding(attention_mask, q.shape[2], held.seen)
        budget = self._budget(held.seen + q.shape[2])
        first = not held.seen
        if not first:
            self.make_room(held, held.held + q.shape[2] - budget)
        k, v = self.expand(*held.update(k, v))
        attended = self.attend_causally(q, k, v, attention_mask if first else None)
        self.tally.add(min(budget, held.held), held.seen)
        self.evict(held, q, k, first=first)
        return self.project_output(attended), None

    def _static_prompt(self, layer: Any, q: Tensor, kv: KV) -> Tensor:
        """Attend with a prompt on an empty static cache, then fill it: [B, T, n_q·d]."""
        tokens = q.shape[2]
        keys, values = self.expand(*kv)
        attended = self.attend_causally(q, keys, values)
        self.fill(layer, q, kv, keys)
        self._count_keys(layer, tokens, first=True)
        return attended

    def _static_token(self, layer: Any, q: Tensor, kv: KV) -> Tensor:
        """Attend with one token on a filled static cache: [B, 1, n_q·d]."""
        k, v = self.expand(*layer.update(*kv))
        seen = layer.seen()  # [1 or B, 1 or sets, L]
        mask = torch.where(seen, 0.0, float("-inf")).to(q.dtype).unsqueeze(2)
        if mask.shape[1] > 1:
            mask = mask.repeat_interleave(q.shape[1] // mask.shape[1], dim=1)
        attended = self.attend(q, k, v, mask)
        self.static_evict(layer, q, k, mask)
        self._count_keys(layer, 1, first=False)
        return attended

    def _count_keys(self, layer: Any, new: int, *, first: bool) -> None:
        """Count the keys read, and the tokens: a static cache does not tell the host its length."""
        if not torch.compiler.is_compiling():
            layer.tokens = new if first else layer.tokens + new
            self.tally.add(self._budget(layer.tokens), layer.tokens)

    def static_layer(self, length: int) -> Any:
        """Make a layer of a static cache for `length` tokens."""
        return QueueLayer([self._budget(n) for n in range(length + 1)])

    def fill(self, layer: Any, q: Tensor, kv: KV, keys: Tensor) -> None:
        """Put into a static layer the budget of keys that stay after a prompt.

        They are chosen by the prompt's queries `q`, its cached keys and values `kv`, and its
        expanded `keys`.
        """
        tokens = q.shape[2]
        budget = self._budget(tokens)
        k, v = self.select_kept(q, kv, keys, budget)
        # In decode the newest key needs one place behind the pinned ones.
        pinned = min(self.kept_first, max(0, budget - 2))
        layer.fill(k, v, tokens=tokens, pinned=pinned)

    def select_kept(
        self,
        q: Tensor,  # noqa: ARG002
        kv: KV,
        keys: Tensor,  # noqa: ARG002
        budget: int,
    ) -> KV:
        """Return the `budget` keys and values of a prompt that stay.

        The first to leave are in front, behind the sinks.
        """
        evicted = kv[0].shape[2] - budget
        if not evicted:
            return kv
        first = min(self.kept_first, budget - 1)
        return _without(kv[0], first, evicted), _without(kv[1], first, evicted)

    def static_evict(self, layer: Any, q: Tensor, k: Tensor, mask: Tensor) -> None:
        """Evict after a token on a static cache; a queue needs nothing."""

    def make_room(self, held: CountedKeys, count: int) -> None:
        """Drop the oldest `count` keys behind the sinks before new keys come.

        The next update copies the others.
        """
        if (count := min(count, held.held)) > 0:
            first = max(0, min(self.kept_first, held.held - count - 1))
            held.keys = _without(held.keys, first, count)
            held.values = _without(held.values, first, count)

    def evict(self, held: CountedKeys, q: Tensor, k: Tensor, *, first: bool) -> None:
        """Reduce the cache of a prompt (`first`) to its budget, after its queries have attended.

        The kept keys are copied, so that memory is freed.
        """
        if first:
            budget = min(self._budget(held.seen), held.held)  # skipped tokens leave no keys
            keys, values = self.select_kept(q, (held.keys, held.values), k, budget)
            held.keys, held.values = keys.contiguous(), values.contiguous()

    def _budget(self, seen: int) -> int:
        """Return the number of keys that a cache holds after `seen` tokens."""
        return kept_count(seen, self.sparsity)


class _SinkAttention(_EvictingAttention):
    """Attention to a cache in which the first keys stay, and the latest."""

    kept_first = SINKS


class _RankedAttention(_EvictingAttention):
    """Attention to a cache of the keys that the prompt's end attends to most, and the latest."""

    def add_router(self, sampler: Sampler) -> None:
        """Add the router, which ranks once, at the end of the prompt."""
        self.router = KeyRanker(sampler)

    def select_kept(self, q: Tensor, kv: KV, keys: Tensor, budget: int) -> KV:
        """Return the keys and values that the end of the prompt attends to most."""
        if budget == kv[0].shape[2]:
            return kv
        queries, sets = q[:, :, -OBSERVED:], kv[0].shape[1]
        rows = self.router(queries, keys, count=budget, scaling=self.scaling, sets=sets)
        return take_rows(kv[0], rows), take_rows(kv[1], rows)


class _AccumulatingAttention(_EvictingAttention):
    """Attention to a cache of the keys that all queries attended to most, and the latest."""

    def add_router(self, sampler: Sampler) -> None:
        """Add the router, which ranks in every forward."""
        self.router = MassRanker(sampler)

    def static_layer(self, length: int) -> Any:
        """Make a layer of a static cache for `length` tokens."""
        return MassLayer([self._budget(n) for n in range(length + 2)])

    def fill(self, layer: Any, q: Tensor, kv: KV, keys: Tensor) -> None:
        """Put into a static layer the keys that the prompt attended to most."""
        tokens, sets = q.shape[2], kv[0].shape[1]
        count = self._budget(tokens + 1) - 1
        rows, mass = self.router(q, keys, None, count=count, scaling=self.scaling, sets=sets)
        k, v = kv if rows is None else (take_rows(kv[0], rows), take_rows(kv[1], rows))
        layer.fill(k, v, mass, tokens=tokens)

    def static_evict(self, layer: Any, q: Tensor, k: Tensor, mask: Tensor) -> None:
        """Add the attention of a token to the mass, and make room for the next token."""
        sets = layer.mass.shape[1]
        scores = q.unflatten(1, (k.shape[1], -1)).squeeze(3) @ k.transpose(-1, -2)
        mask = mask.expand(-1, q.shape[1], -1, -1).unflatten(1, (k.shape[1], -1))
        scores = scores * self.scaling + mask.squeeze(3)
        added = scores.softmax(-1, dtype=torch.float32).mean(2)  # [B, n_kv, L]
        layer.mass.add_(added.unflatten(1, (sets, -1)).mean(2))
        layer.evict(self.router.sampler.replace(layer.mass))

    def make_room(self, held: CountedKeys, count: int) -> None:
        """Do nothing, since the forward before made room."""

    def evict(self, held: CountedKeys, q: Tensor, k: Tensor, *, first: bool) -> None:
        """Keep, after each forward, as many keys as leave room for the next token's."""
        layer: Any = held
        rows, layer.mass = self.router(
            q,
            k,
            None if first else layer.mass,
            count=self._budget(held.seen + 1) - 1,
            scaling=self.scaling,
            sets=held.keys.shape[1],
        )
        if rows is not None:
            held.keys, held.values = take_rows(held.keys, rows), take_rows(held.values, rows)


_POLICIES = {
    "recent": _EvictingAttention,
    "sinks": _SinkAttention,
    "attention": _RankedAttention,
    "accumulated": _AccumulatingAttention,
}


def _without(x: Tensor, first: int, count: int) -> Tensor:
    """Return x [B, n, L, d] without the `count` keys from number `first` on."""
    if not first:
        return x[:, :, count:]
    return torch.cat((x[:, :, :first], x[:, :, first + count :]), dim=2)
