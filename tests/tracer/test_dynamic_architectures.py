"""The dynamic families on architectures that are not built as Llama: fused projections, layers in
parallel, norms after a sublayer, scaled residuals, windows, experts, learned positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from taxonomy.architectures import describe
from taxonomy.errors import PrunescopeError
from taxonomy.keep import kept_count
from taxonomy.roles import locate
from tests.tracer.dynamic_reference import (
    assert_logits,
    prune,
    recorded,
    seen_blocks,
    served,
    steps,
    tokens,
)
from tests.tracer.tiny_models import TINY, tiny_model
from tracer import compat
from tracer.census import dynamic_stats
from tracer.layers import decoder_layers
from tracer.pruners.dynamic_m import Rows
from tracer.sublayers import roots

pytestmark = pytest.mark.torch
PROMPT, ALL = 19, 23  # beyond the windows of 8
FAMILIES: dict[str, dict[str, Any]] = {
    "dynamic-m": {}, "dynamic-nk": {"block": 4}, "dynamic-depth": {}, "dynamic-width": {},
    "token-drop": {"after": 1}, "kv-evict": {},
}  # fmt: skip
EXPERTS = ("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss")
NAMES = (
    "mistral", "gemma2", "gemma3", "phi3", "phi", "gpt2", "gpt_neox", "gpt_neox sequential",
    "olmo2", "granite", "stablelm", "stablelm parallel", "smollm3", "falcon", "falcon grouped",
    "falcon multi-head", "opt", "cohere", *EXPERTS,
)  # fmt: skip
ABSENT = {
    **dict.fromkeys(EXPERTS, ("dynamic-width",)),
    "mistral": ("dynamic-nk", "kv-evict"),
}
CASES = [(n, f) for n in NAMES for f in FAMILIES if f not in ABSENT.get(n, ())]


@pytest.mark.parametrize(("name", "family"), CASES)
def test_at_zero_it_is_the_dense_model(name: str, family: str) -> None:
    dense, ids = tiny_model(name), tokens(2, ALL)
    model = prune(family, dense, 0.0, **FAMILIES[family]).model
    (found, cache), (wanted, full) = steps(model, ids, PROMPT), steps(dense, ids, PROMPT)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert [x.keys.shape for x in cache.layers] == [x.keys.shape for x in full.layers]


@pytest.mark.parametrize(("name", "family"), CASES)
def test_at_half_it_does_less_and_says_so(name: str, family: str) -> None:
    dense, ids = tiny_model(name), tokens(2, ALL)
    model = prune(family, dense, 0.5, **FAMILIES[family]).model
    found, _ = steps(model, ids, PROMPT)
    assert all(bool(out.isfinite().all()) for out in found)
    rows = dynamic_stats(model).values()
    assert sum(sum(row["active"]) for row in rows) < sum(sum(row["total"]) for row in rows)
    added = model.state_dict().keys() - dense.state_dict().keys()
    assert not dense.state_dict().keys() - model.state_dict().keys()
    assert all(".router." in name for name in added)


@pytest.mark.parametrize("name", TINY)
def test_families_says_which_of_them_a_model_takes(name: str) -> None:
    dense = tiny_model(name)
    said = {one["id"]: one["realised"] for one in describe(dense.config.to_dict())["families"]}
    for family, knobs in FAMILIES.items():
        if said[family]:
            prune(family, dense, 0.5, **knobs)
        else:
            with pytest.raises(PrunescopeError):
                prune(family, dense, 0.5, **knobs)


@pytest.mark.parametrize("name", NAMES)
def test_dynamic_m_given_its_routes(name: str) -> None:
    dense, ids = tiny_model(name), tokens(2, ALL)
    model = prune("dynamic-m", dense, 0.5).model
    routes = recorded(model, ".router")
    found, _ = steps(model, ids, PROMPT)
    active: dict[tuple[int | None, bool], torch.Tensor] = {}
    for path, calls in routes.items():
        place = locate(path)
        if isinstance(calls[0], Rows):  # else a router of the model's own
            active[place.layer, place.scope == "attention"] = served(calls, 2, PROMPT, ALL)
    assert len(active) == 4  # two layers of two sublayers
    assert_logits(
        found, masked(dense, ids, rows=lambda i, part: active[i, part == "attention"]), PROMPT
    )


@pytest.mark.parametrize("leave", ["skip", "early"])
@pytest.mark.parametrize("name", NAMES)
def test_dynamic_depth_given_its_layers(name: str, leave: str) -> None:
    dense, ids = tiny_model(name), tokens(2, ALL)
    model = prune("dynamic-depth", dense, 0.5, exit=leave).model
    found, _ = steps(model, ids, PROMPT)
    ran = {locate(path).layer: row["active"] for path, row in dynamic_stats(model).items()}
    assert {sum(row[t] for row in ran.values()) for t in range(ALL - PROMPT + 1)} <= {0, 1, 2}

    def rows(layer: int, _part: str) -> torch.Tensor:
        flags = [ran[layer][0]] * PROMPT + ran[layer][1:]
        return torch.tensor(flags).bool().expand(2, -1)

    def seen(layer: int) -> torch.Tensor:
        return rows(layer, "")[:, None, None] | torch.eye(ALL).bool()

    assert_logits(found, masked(dense, ids, rows=rows, seen=seen), PROMPT)


@pytest.mark.parametrize("name", NAMES)
def test_token_drop_given_its_tokens(name: str) -> None:
    """Behind the drop the others are no keys, and a window counts places, not what is left."""
    dense, ids = tiny_model(name), tokens(2, ALL)
    model = prune("token-drop", dense, 0.5, after=1).model
    kept = recorded(model, ".1.router")
    found, _ = steps(model, ids, PROMPT)
    (((_, places),),) = [calls[:1] for calls in kept.values()]
    stays = torch.ones(2, ALL, dtype=torch.bool)
    stays[:, :PROMPT] = False
    stays.scatter_(1, places, True)  # noqa: FBT003
    assert int(stays.sum()) == 2 * (9 + ALL - PROMPT)  # int(19 x .5) and the answer

    def seen(layer: int) -> torch.Tensor:
        return stays[:, None, None] if layer else torch.ones(1, 1, 1, ALL).bool()

    wanted = masked(dense, ids, seen=seen)
    if found[0].shape[1] == PROMPT:  # GPT-2 gives its hidden states the prompt's shape
        found[0] = torch.stack([found[0][b, places[b]] for b in range(2)])
    assert_logits(found, torch.stack([wanted[b, stays[b]] for b in range(2)]), 9)


@pytest.mark.parametrize("family", ["dynamic-nk", "kv-evict"])
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ABSENT or name in EXPERTS])
def test_attention_to_fewer_keys_given_which(name: str, family: str) -> None:
    dense, ids = tiny_model(name), tokens(2, ALL)
    knobs = {"block": 4} if family == "dynamic-nk" else {"keep": "recent"}
    model = prune(family, dense, 0.5, **knobs).model
    routes = recorded(model, ".router")
    blocks = {locate(p).layer: calls for p, calls in routes.items() if "attn" in p or "attent" in p}
    found, _ = steps(model, ids, PROMPT)
    recent = torch.ones(ALL, ALL).bool()
    for t in range(PROMPT, ALL):
        recent[t, : t + 1 - kept_count(t + 1, 0.5)] = False
    full = [window is None for window in compat.windows(dense)]

    def seen(layer: int) -> torch.Tensor:
        if not full[layer]:
            return torch.ones(1, 1, 1, ALL).bool()
        return recent if family == "kv-evict" else of_blocks(blocks[layer], dense.config)

    assert any(full)
    assert_logits(found, masked(dense, ids, seen=seen), PROMPT)


def of_blocks(calls: list[Any], config: Any) -> torch.Tensor:
    """[B, n_q, L, L]: the keys of a KV head are seen by each head of its group."""
    seen = seen_blocks(calls, 4, PROMPT, ALL)
    return seen.repeat_interleave(config.num_attention_heads // seen.shape[1], dim=1)


@torch.no_grad()
def masked(
    model: Any,
    ids: torch.Tensor,
    *,
    rows: Callable[[int, str], torch.Tensor] | None = None,
    seen: Callable[[int], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Logits [B, L, V] of the dense model, where sublayers put out zeros for all tokens but
    `rows(layer, "attention" | "mlp")`, [B, L], and queries see no keys but `seen(layer)`."""
    name, layers = decoder_layers(model)
    handles = []
    for index, layer in enumerate(layers):
        paths = roots(layer, f"{name}.{index}")
        for part in ("attention", "mlp"):
            last = next(p for p in reversed(paths[part]) if _weighs(model.get_submodule(p)))
            module = model.get_submodule(last)
            if rows is not None:
                handles.append(module.register_forward_hook(_zeroed(rows(index, part))))
            if seen is not None and part == "attention":
                hook = _hidden(seen(index))
                handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    logits: torch.Tensor = model(ids, use_cache=False).logits
    for handle in handles:
        handle.remove()
    return logits


def _weighs(module: torch.nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _zeroed(active: torch.Tensor) -> Any:
    def hook(_module: Any, _args: Any, output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) else output
        only = torch.where(active.reshape(*first.shape[:-1], 1), first, 0.0)
        return (only, *output[1:]) if isinstance(output, tuple) else only

    return hook


def _hidden(seen: torch.Tensor) -> Any:
    def hook(module: Any, args: Any, arguments: dict[str, Any]) -> Any:
        given = arguments.get("attention_mask")
        allowed = torch.ones(ALL, ALL).tril().bool()
        if given is not None:
            allowed = given if given.dtype == torch.bool else given == 0
        mask: torch.Tensor = allowed & seen
        mask = mask.expand(2, -1, -1, -1) if mask.dim() == 4 else mask.expand(2, 1, -1, -1)
        if module.config._attn_implementation == "eager":
            mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
        return args, {**arguments, "attention_mask": mask}

    return hook
