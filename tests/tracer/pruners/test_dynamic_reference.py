"""Each dynamic family, prefill and decode, equals the dense model with the same parts masked."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch

from prunescope.taxonomy.keep import kept_count
from prunescope.tracer.attention.attention_parts import read_attentions
from prunescope.tracer.attention.plain_attention import PlainAttention
from prunescope.tracer.capture.weight_stats import dynamic_stats
from prunescope.tracer.pruners.kv_evict import attention_mass
from prunescope.tracer.routing.row_router import RowRouter
from tests.tracer.dynamic_reference import (
    ARCHITECTURES,
    assert_logits,
    causal,
    prune,
    recorded,
    reference,
    seen_blocks,
    served,
    small,
    steps,
    tokens,
)

pytestmark = pytest.mark.torch
PROMPT, ALL = 19, 23
each_architecture = pytest.mark.parametrize(
    ("model_type", "fields"), ARCHITECTURES, ids=[name for name, _ in ARCHITECTURES]
)
each_batch = pytest.mark.parametrize("batch", [1, 3])


@each_architecture
@each_batch
def test_dynamic_m_given_its_routes(model_type: str, fields: dict[str, Any], batch: int) -> None:
    dense, ids = small(model_type, **fields), tokens(batch, ALL)
    model = prune("dynamic-m", dense, 0.5).model
    routes = recorded(model, ".router")
    actual, _ = steps(model, ids, PROMPT)

    def rows(layer: int, part: str) -> torch.Tensor:
        name = "self_attn" if part == "attention" else "mlp"
        return served(routes[f"model.layers.{layer}.{name}.router"], batch, PROMPT, ALL)

    assert_logits(actual, reference(dense, ids, rows=rows), PROMPT)
    assert int(rows(0, "attention")[:, :PROMPT].sum()) == batch * 9  # int(19 x .5)
    assert not torch.equal(rows(0, "attention"), rows(0, "mlp"))
    decode = [rows(i, part)[:, PROMPT:] for i in range(4) for part in ("attention", "mlp")]
    share = torch.cat(decode).float().mean()
    assert 0.25 < share < 0.75
    assert not torch.allclose(actual[0], reference(dense, ids)[:, :PROMPT], atol=1e-2)


def test_rows_that_fill_up_a_sequence_are_no_keys() -> None:
    """Rows that fill up a sequence count for nothing: each sequence is as if it ran alone.

    By a threshold the sequences of a batch have different numbers of active tokens, and one with
    fewer is filled up.
    """
    dense, ids = small("qwen2"), tokens(3, ALL)
    model = prune("dynamic-m", dense, 0.5, keys="routed", choose="threshold", select="random").model
    for module in model.modules():
        if isinstance(module, RowRouter):  # by their own scores, whatever stands beside them
            module.sampler.is_random, module.threshold = False, 0.0
    routes = recorded(model, "self_attn.router")
    together, _ = steps(model, ids, PROMPT)
    filled = [rows.gate for calls in routes.values() for rows in calls[:1] if rows is not None]
    assert any(gate is not None and not bool(gate.all()) for gate in filled)
    for b in range(3):
        alone, _ = steps(model, ids[b : b + 1], PROMPT)
        for ours, theirs in zip(together, alone, strict=True):
            torch.testing.assert_close(ours[b : b + 1], theirs, rtol=1e-4, atol=1e-4)


@each_batch
@pytest.mark.parametrize("unit", ["sublayer", "layer"])
def test_dynamic_m_with_keys_of_its_routes_alone(batch: int, unit: str) -> None:
    """A token that is routed past an attention is no key of it, for its sequence alone."""
    dense, ids = small("qwen2"), tokens(batch, ALL)
    model = prune("dynamic-m", dense, 0.5, keys="routed", unit=unit).model
    routes = recorded(model, ".router")
    actual, cache = steps(model, ids, PROMPT)

    def rows(layer: int, part: str) -> torch.Tensor:
        name = "mlp" if part == "mlp" and unit == "sublayer" else "self_attn"
        return served(routes[f"model.layers.{layer}.{name}.router"], batch, PROMPT, ALL)

    def seen(layer: int) -> torch.Tensor:
        keys = rows(layer, "attention")[:, None, None] | torch.eye(ALL).bool()
        return causal(batch, 4, ALL) & keys

    assert_logits(actual, reference(dense, ids, rows=rows, seen=seen), PROMPT)
    assert cache.get_seq_length() == ALL
    for index, layer in enumerate(cache.layers):
        active = rows(index, "attention")
        any_of = int(active[:, PROMPT:].any(0).sum())
        assert layer.keys.shape[2] == 9 + any_of  # int(19 x .5), and a slot a step that any runs
        if layer.present is not None:
            assert layer.present[:, 9:].sum() == active[:, PROMPT:].sum()
    assert not torch.allclose(actual[0], reference(dense, ids, rows=rows)[:, :PROMPT], atol=1e-2)


def block_mask(calls: list[Any], block: int) -> torch.Tensor:
    """[B, 4 heads, L, L] of keys that were chosen and came before."""
    seen = seen_blocks(calls, block, PROMPT, ALL)
    return seen.repeat_interleave(2, dim=1) & causal(len(seen), 4, ALL)


@each_architecture
@pytest.mark.parametrize(("batch", "block"), [(1, 4), (3, 4), (2, 3), (1, 18)])
def test_dynamic_nk_given_its_blocks(
    model_type: str, fields: dict[str, Any], batch: int, block: int
) -> None:
    dense, ids = small(model_type, **fields), tokens(batch, ALL)
    model = prune("dynamic-nk", dense, 0.5, block=block).model
    blocks = recorded(model, ".router")
    actual, _ = steps(model, ids, PROMPT)

    def seen(layer: int) -> torch.Tensor:
        return block_mask(blocks[f"model.layers.{layer}.self_attn.router"], block)

    assert_logits(actual, reference(dense, ids, seen=seen), PROMPT)
    counts = next(iter(dynamic_stats(model).values()))
    num = math.ceil(PROMPT / block)
    assert counts.total[:2] == [num * (num + 1) // 2, math.ceil((PROMPT + 1) / block)]
    assert counts.active[0] == sum(max(1, round((i + 1) / 2)) for i in range(num))
    if num > 2:
        assert not torch.equal(seen(0), seen(1))
        assert counts.active[1] == max(1, round(counts.total[1] / 2))


def test_dynamic_nk_of_values_given_its_blocks() -> None:
    dense, ids = small("qwen2"), tokens(2, ALL)
    model = prune("dynamic-nk", dense, 0.5, block=4, blocks="value").model
    blocks = recorded(model, ".router")
    actual, _ = steps(model, ids, PROMPT)
    masked = copy.deepcopy(dense)
    for index, layer in enumerate(masked.model.layers):
        calls = blocks[f"model.layers.{index}.self_attn.router"]
        plain = PlainAttention(read_attentions(dense)[index])
        layer.self_attn = _ValuesMasked(plain, block_mask(calls, 4))
    assert_logits(actual, reference(masked, ids), PROMPT)


class _ValuesMasked(torch.nn.Module):
    """Softmax over all keys, then only the values of `seen`."""

    def __init__(self, original: Any, seen: torch.Tensor) -> None:
        super().__init__()
        self.original, self.seen = original, seen

    def forward(
        self, x: torch.Tensor, position_embeddings: Any, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor]:
        parts = self.original
        q = parts.project_queries(x, position_embeddings)
        k, v = (
            y.repeat_interleave(2, 1) for y in parts.project_keys_values(x, position_embeddings)
        )
        scores = q @ k.transpose(-1, -2) * self.original.scaling + attention_mask
        output = torch.where(self.seen, scores.softmax(-1), 0.0) @ v
        return (parts.project_output(output.transpose(1, 2).flatten(2)),)


@each_architecture
@each_batch
@pytest.mark.parametrize("keep", ["recent", "sinks", "attention"])
def test_kv_evict_given_its_keys(
    model_type: str, fields: dict[str, Any], batch: int, keep: str
) -> None:
    dense, ids = small(model_type, **fields), tokens(batch, ALL)
    model = prune("kv-evict", dense, 0.5, keep=keep).model
    ranked = recorded(model, ".router")
    actual, cache = steps(model, ids, PROMPT)
    assert {layer.keys.shape[2] for layer in cache.layers} == {kept_count(ALL, 0.5)}
    assert cache.get_seq_length() == ALL

    def seen(layer: int) -> torch.Tensor:
        output = causal(batch, 2, ALL)
        order = torch.arange(PROMPT - 9, PROMPT).expand(batch, 2, -1)  # int(19 x .5) latest
        if keep == "attention":
            rows = ranked[f"model.layers.{layer}.self_attn.router"][0]
            order = (rows % PROMPT).view(batch, 2, 9)
        first = 4 if keep == "sinks" else 0
        for b in range(batch):
            for head in range(2):
                held = order[b, head].tolist()
                for t in range(PROMPT, ALL):
                    held = [*held, t][first - kept_count(t + 1, 0.5) :]
                    seen_keys = torch.tensor([*range(first), *held])
                    output[b, head, t] = torch.isin(torch.arange(ALL), seen_keys)
        return output.repeat_interleave(2, dim=1)

    assert_logits(actual, reference(dense, ids, seen=seen), PROMPT)
    if keep == "attention":
        assert not torch.equal(seen(0), seen(1))


@each_batch
@pytest.mark.parametrize("select", ["random", "importance"])
def test_kv_evict_by_the_attention_of_all_queries(batch: int, select: str) -> None:
    """Each query sees what its head has not evicted yet.

    An independent loop over positions adds up the attention that every key got, and evicts the
    least attended of the older half.
    """
    dense, ids = small("llama"), tokens(batch, ALL)
    model = prune("kv-evict", dense, 0.5, keep="accumulated", select=select).model
    ranked = recorded(model, ".router")
    actual, cache = steps(model, ids, PROMPT)
    assert {layer.keys.shape[2] for layer in cache.layers} == {kept_count(ALL + 1, 0.5) - 1}

    def seen(layer: int) -> torch.Tensor:
        output = causal(batch, 2, ALL)
        calls = ranked[f"model.layers.{layer}.self_attn.router"]
        for b, head in itertools.product(range(batch), range(2)):
            held = list(range(PROMPT))
            for t, (rows, _mass) in enumerate(calls, PROMPT - 1):
                if t >= PROMPT:
                    held.append(t)
                    assert len(held) == kept_count(t + 1, 0.5)
                    output[b, head, t] = torch.isin(torch.arange(ALL), torch.tensor(held))
                if rows is not None:
                    own = rows.view(batch, 2, -1)[b, head] - (b * 2 + head) * len(held)
                    newest = set(held[len(held) - len(own) // 2 :])
                    held = [held[int(i)] for i in own]
                    assert newest <= set(held)
        return output.repeat_interleave(2, dim=1)

    assert_logits(actual, reference(dense, ids, seen=seen), PROMPT)
    assert not torch.equal(seen(0), seen(1))


def test_the_mass_of_keys_is_the_attention_of_all_queries() -> None:
    """In chunks of queries, and step by step, as of the whole matrix at once."""
    torch.manual_seed(0)
    q, k = torch.randn(2, 4, 150, 8), torch.randn(2, 2, 150, 8)
    scores = q.unflatten(1, (2, 2)) @ k.unsqueeze(2).transpose(-1, -2) * 0.3
    wanted = (scores + torch.full((150, 150), -math.inf).triu(1)).softmax(-1).mean(2).sum(2)
    torch.testing.assert_close(attention_mass(q, k, scaling=0.3), wanted)
    by_step = attention_mass(q[:, :, :149], k[:, :, :149], scaling=0.3)
    last = attention_mass(q[:, :, 149:], k, scaling=0.3)
    last[..., :149] += by_step
    torch.testing.assert_close(last, wanted)


@each_batch
@pytest.mark.parametrize("leave", ["skip", "early", "lower"])
def test_dynamic_depth_given_its_layers(batch: int, leave: str) -> None:
    dense, ids = small("llama"), tokens(batch, ALL)
    model = prune("dynamic-depth", dense, 0.5, exit=leave).model
    actual, cache = steps(model, ids, PROMPT)
    ran = {name: row.active for name, row in dynamic_stats(model).items()}

    def rows(layer: int, _part: str) -> torch.Tensor:
        active = ran[f"model.layers.{layer}"]
        flags = torch.tensor([active[0]] * PROMPT + active[1:]).bool()
        return flags.expand(batch, -1)

    def seen(layer: int) -> torch.Tensor:
        cached = rows(layer, "")[:, None, None] | torch.eye(ALL).bool()
        return causal(batch, 4, ALL) & cached

    assert_logits(actual, reference(dense, ids, rows=rows, seen=seen), PROMPT)
    per_step = [sum(active[t] for active in ran.values()) for t in range(ALL - PROMPT + 1)]
    if leave == "lower":  # a prompt runs through all, a step through the first and the last
        assert list(ran.values()) == [[1] * 5, *[[1, 0, 0, 0, 0]] * 2, [1] * 5]
    else:
        assert all(count == 2 if leave == "skip" else 1 <= count <= 3 for count in per_step)
    assert len({tuple(row[t] for row in ran.values()) for t in range(len(per_step))}) > 1
    held = [0 if layer.keys is None else layer.keys.shape[2] for layer in cache.layers]
    assert held == [int(rows(i, "")[0].sum()) for i in range(4)]


@each_batch
def test_tokens_leave_in_steps(batch: int) -> None:
    """After 1, 2 and 3 layers a fifth of the rest: 15, 11 and 9 of 19 tokens are left."""
    dense, ids = small("llama"), tokens(batch, ALL)
    model = prune("token-drop", dense, 0.5, stages=4).model
    kept = recorded(model, ".router")
    actual, cache = steps(model, ids, PROMPT)
    left = [kept_count(PROMPT, 1 - 0.5 ** (i / 3)) for i in (1, 2)] + [9]
    answer = ALL - PROMPT
    assert left == [15, 11, 9]
    assert [layer.keys.shape[2] - answer for layer in cache.layers] == [PROMPT, *left]
    stays = torch.ones(4, batch, ALL, dtype=torch.bool)
    places = torch.arange(PROMPT).expand(batch, -1)
    for index in (1, 2, 3):
        places = places.gather(1, kept[f"model.layers.{index}.router"][0][1])
        stays[index, :, :PROMPT] = False
        stays[index].scatter_(1, places, True)
    rows = {index: stays[index] for index in range(4)}
    wanted = reference(
        dense,
        ids,
        rows=lambda layer, _part: rows[layer],
        seen=lambda layer: (
            causal(batch, 4, ALL) & (rows[layer][:, None, None] | torch.eye(ALL).bool())
        ),
    )
    wanted = torch.stack([wanted[b, stays[3, b]] for b in range(batch)])
    assert_logits(actual, wanted, 9)


@each_architecture
@each_batch
def test_token_drop_given_its_tokens(model_type: str, fields: dict[str, Any], batch: int) -> None:
    dense, ids = small(model_type, **fields), tokens(batch, ALL)
    model = prune("token-drop", dense, 0.5, after=1).model
    kept = recorded(model, "layers.1.router")
    actual, cache = steps(model, ids, PROMPT)
    assert [layer.keys.shape[2] for layer in cache.layers] == [ALL, *[9 + ALL - PROMPT] * 3]

    with torch.no_grad():
        x = dense.model.embed_tokens(ids)
        cos, sin = dense.model.rotary_emb(x, position_ids=torch.arange(ALL).unsqueeze(0))
        x = dense.model.layers[0](x, position_embeddings=(cos, sin), attention_mask=None)
        rows, places = kept["model.layers.1.router"][0]  # [B, 9, h] and [B, 9]
        assert bool((places[:, -1] == PROMPT - 1).all())
        answer = torch.arange(PROMPT, ALL).expand(batch, -1)
        index = torch.cat((places, answer), dim=1)
        x = torch.stack([x[b, index[b]] for b in range(batch)])
        torch.testing.assert_close(x[:, :9], rows, rtol=1e-4, atol=1e-4)
        for layer in dense.model.layers[1:]:
            x = layer(x, position_embeddings=(cos[0][index], sin[0][index]), attention_mask=None)
        assert_logits(actual, dense.lm_head(dense.model.norm(x)), 9)


@each_architecture
@each_batch
def test_dynamic_width_given_its_channels(
    model_type: str, fields: dict[str, Any], batch: int
) -> None:
    dense, ids = small(model_type, **fields), tokens(batch, PROMPT)
    model = prune("dynamic-width", dense, 0.5).model
    channels = recorded(model, ".router")
    actual, _ = steps(model, ids, PROMPT)
    masked = copy.deepcopy(dense)
    for index, layer in enumerate(masked.model.layers):
        used = channels[f"model.layers.{index}.mlp.router"][0]
        assert used.numel() == 32  # up16(int(64 x .5))
        gone = torch.ones(64, dtype=torch.bool)
        gone[used] = False
        layer.mlp.down_proj.weight.data[:, gone] = 0
    torch.testing.assert_close(actual[0], reference(masked, ids), rtol=1e-4, atol=1e-4)
