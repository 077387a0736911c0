"""The dynamic families on architectures that are not built as Llama.

They have fused projections, layers in parallel, norms after a sublayer, scaled residuals, windows,
experts or learned positions.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.keep import kept_count
from prunescope.taxonomy.roles import locate
from prunescope.tracer.capture.weight_stats import dynamic_stats
from prunescope.tracer.model import compat
from prunescope.tracer.routing.row_router import Rows
from tests.described import describe
from tests.tracer.dynamic_masks import (
    ALL,
    PROMPT,
    assert_dropped,
    assert_less,
    assert_skipped,
    masked,
)
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

pytestmark = pytest.mark.torch
FAMILIES: dict[str, dict[str, Any]] = {
    "dynamic-m": {}, "dynamic-nk": {"block": 4}, "dynamic-depth": {}, "dynamic-width": {},
    "token-drop": {"after": 1}, "kv-evict": {},
}  # fmt: skip
# The first attention, which ranks the tokens, is in layer 1.
AFTER = dict.fromkeys(("qwen3_next", "granite4", "lfm2"), 2)
EXPERTS = ("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss")
LATENT = ("deepseek_v2", "deepseek_v3")
HYBRID = ("qwen3_next", "falcon_h1", "granite4", "lfm2")
NAMES = (
    "mistral", "gemma2", "gemma3", "phi3", "phi", "gpt2", "gpt_neox", "gpt_neox sequential",
    "olmo2", "granite", "stablelm", "stablelm parallel", "smollm3", "falcon", "falcon grouped",
    "falcon multi-head", "opt", "cohere", "cohere2", *EXPERTS, *LATENT, *HYBRID,
)  # fmt: skip
ABSENT = {
    **dict.fromkeys((*EXPERTS, *LATENT, "qwen3_next", "granite4"), ("dynamic-width",)),
    "mistral": ("dynamic-nk", "kv-evict"),
}


def knobs_of(family: str, name: str) -> dict[str, Any]:
    return {"after": AFTER[name]} if family == "token-drop" and name in AFTER else FAMILIES[family]


CASES = [(n, f) for n in NAMES for f in FAMILIES if f not in ABSENT.get(n, ())]
# Whose attention to the recorded keys is a mask of the dense one.
MASKED = [name for name in NAMES if name not in ABSENT or name in EXPERTS]


@cache
def dense_model(name: str) -> Any:
    """Return the dense model, one for all tests: pruning works on a copy, and hooks are removed."""
    return tiny_model(name)


@cache
def dense_run(name: str) -> tuple[list[torch.Tensor], list[list[Any]]]:
    """Logits of the dense model, and the sizes of its cache."""
    outs, full = steps(dense_model(name), tokens(2, ALL), PROMPT)
    return outs, sizes(full)


@pytest.mark.parametrize(("name", "family"), CASES)
def test_at_zero_it_is_the_dense_model(name: str, family: str) -> None:
    wanted, full = dense_run(name)
    model = prune(family, dense_model(name), 0.0, **knobs_of(family, name)).model
    actual, kept = steps(model, tokens(2, ALL), PROMPT)
    for ours, theirs in zip(actual, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert sizes(kept) == full


def sizes(cache: Any) -> list[list[Any]]:
    """Of each layer of a cache the shapes of its keys and of a mixer's states."""
    kept = [
        (getattr(x, "keys", None), *getattr(x, "conv_states", {}).values(),
         *getattr(x, "recurrent_states", {}).values())
        for x in cache.layers
    ]  # fmt: skip
    return [[None if x is None else x.shape for x in tensors] for tensors in kept]


@pytest.mark.parametrize("name", ["llama", "olmo2", "deepseek_v2", "deepseek_v3"])
def test_half_precision_at_zero(name: str) -> None:
    """OLMo 2 rotates by cosines in fp32 whatever the model is."""
    dense, ids = tiny_model(name).to(torch.bfloat16), tokens(2, ALL)
    model = prune("kv-evict", dense, 0.0).model
    (actual, _), (wanted, _) = steps(model, ids, PROMPT), steps(dense, ids, PROMPT)
    for ours, theirs in zip(actual, wanted, strict=True):
        assert ours.dtype == torch.bfloat16
        assert float((ours - theirs).abs().max()) <= 0.03 * float(theirs.abs().max())


@pytest.mark.parametrize(
    ("name", "family"),
    [
        (name, family)
        for name, family in CASES
        if family in ("dynamic-width", "kv-evict")
        or (family == "dynamic-nk" and name not in MASKED)
    ],
)
def test_at_half_it_does_less_and_says_so(name: str, family: str) -> None:
    """Here the cases that no test below, which gives a model its routes, looks at as well."""
    dense = dense_model(name)
    model = prune(family, dense, 0.5, **knobs_of(family, name)).model
    actual, _ = steps(model, tokens(2, ALL), PROMPT)
    assert all(bool(output.isfinite().all()) for output in actual)
    assert_less(model, dense, dynamic_stats(model))


@pytest.mark.parametrize("name", TINY)
def test_families_says_which_of_them_a_model_takes(name: str) -> None:
    """The other tests prune all that are said to be; those of three names nobody else does."""
    dense = dense_model(name)
    said = {
        entry["id"]: entry["realised"] for entry in describe(dense.config.to_dict())["families"]
    }
    if name in NAMES:
        assert {f for f in FAMILIES if said[f]} == {f for n, f in CASES if n == name}
    for family in FAMILIES:
        knobs = knobs_of(family, name)
        if not said[family]:
            with pytest.raises(PrunescopeError):
                prune(family, dense, 0.5, **knobs)
        elif name not in NAMES:
            prune(family, dense, 0.5, **knobs)


@pytest.mark.parametrize("name", NAMES)
def test_dynamic_m_given_its_routes(name: str) -> None:
    dense, ids = dense_model(name), tokens(2, ALL)
    model = prune("dynamic-m", dense, 0.5).model
    routes = recorded(model, ".router")
    actual, _ = steps(model, ids, PROMPT)
    assert_less(model, dense, dynamic_stats(model))
    active: dict[tuple[int | None, bool], torch.Tensor] = {}
    for path, calls in routes.items():
        place = locate(path)
        if isinstance(calls[0], Rows):  # else a router of the model's own
            active[place.layer, place.scope == "attention"] = served(calls, 2, PROMPT, ALL)
    assert len(active) == 4  # two layers of two sublayers; or an attention and three MLPs
    assert_logits(
        actual, masked(dense, ids, rows=lambda i, part: active[i, part == "attention"]), PROMPT
    )


@pytest.mark.parametrize("leave", ["skip", "early"])
@pytest.mark.parametrize("name", NAMES)
def test_dynamic_depth_given_its_layers(name: str, leave: str) -> None:
    assert_skipped(dense_model(name), leave)


@pytest.mark.parametrize("name", NAMES)
def test_token_drop_given_its_tokens(name: str) -> None:
    """Behind the drop the other tokens have no keys and enter no state.

    A window counts places in the sequence, not the tokens that are left.
    """
    assert_dropped(dense_model(name), AFTER.get(name, 1))


@pytest.mark.parametrize("family", ["dynamic-nk", "kv-evict"])
@pytest.mark.parametrize("name", MASKED)
def test_attention_to_fewer_keys_given_which(name: str, family: str) -> None:
    dense, ids = dense_model(name), tokens(2, ALL)
    knobs = {"block": 4} if family == "dynamic-nk" else {"keep": "recent"}
    model = prune(family, dense, 0.5, **knobs).model
    routes = recorded(model, ".router")
    blocks = {locate(p).layer: calls for p, calls in routes.items() if "attn" in p or "attent" in p}
    actual, _ = steps(model, ids, PROMPT)
    assert_less(model, dense, dynamic_stats(model))
    recent = torch.ones(ALL, ALL).bool()
    for t in range(PROMPT, ALL):
        recent[t, : t + 1 - kept_count(t + 1, 0.5)] = False
    full = [window is None for window in compat.windows(dense)]

    def seen(layer: int) -> torch.Tensor:
        if not full[layer]:
            return torch.ones(1, 1, 1, ALL).bool()
        return recent if family == "kv-evict" else seen_by_head(blocks[layer], dense.config)

    assert any(full)
    assert_logits(actual, masked(dense, ids, seen=seen), PROMPT)


def seen_by_head(calls: list[Any], config: Any) -> torch.Tensor:
    """[B, n_q, L, L]: the keys of a KV head are seen by each head of its group."""
    seen = seen_blocks(calls, 4, PROMPT, ALL)
    return seen.repeat_interleave(config.num_attention_heads // seen.shape[1], dim=1)
