"""Experts are dropped or merged, or a token goes to fewer of them.

Removed equals masked, scores are those of the publication, and what cannot be pruned is refused.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.shape import ModelShape
from prunescope.tracer.calibration.collect import collect_experts
from prunescope.tracer.calibration.point import Calibration, Point
from prunescope.tracer.model.expert_counts import watch_experts
from prunescope.tracer.model.layers import text_config
from prunescope.tracer.model.mixtures import find_mixtures
from prunescope.tracer.pruners import Applied, family_point, pruner
from prunescope.tracer.pruners.method import read_method
from tests.tracer.mixtures import MIXTURES, TOP_K, E, listed, mixture

pytestmark = [pytest.mark.torch, pytest.mark.four_layers]
IDS = torch.randint(512, (2, 12), generator=torch.Generator().manual_seed(3))
FEW = Calibration(batches=tuple(IDS.split(1)), record={"text": "few"})
IMPLEMENTATIONS = ("eager", "batched_mm", "grouped_mm")


def prune(
    family: str, model: Any, sparsity: float = 0.5, select: str = "random", **knobs: str
) -> Applied:
    asked = Point(sparsity=sparsity, knobs=knobs, select=select, calibration=FEW)
    with torch.no_grad():
        return pruner(family).prune(model, family_point(family, asked))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = model(IDS).logits
    return output


def masked_logits(
    monkeypatch: pytest.MonkeyPatch, model: Any, kept: dict[str, list[int]]
) -> torch.Tensor:
    """Compute the logits of the dense model with −∞ for experts that are not kept.

    The router's logits and the terms that are added to them are both set so. Layers route one after
    the other.
    """
    linear, rows = nn.functional.linear, iter([*kept.values()] * 2)

    def masked(x: torch.Tensor, weight: torch.Tensor, bias: Any = None) -> torch.Tensor:
        output = linear(x, weight, bias)
        if weight.shape[0] != E:
            return output
        gone = torch.ones(E, dtype=torch.bool)
        gone[next(rows)] = False
        return output.masked_fill(gone, float("-inf"))

    for path, index in kept.items():
        block = model.get_submodule(path.rpartition(".")[0])
        for name, buffer in block.named_buffers():
            if name.endswith("e_score_correction_bias"):
                gone = [i for i in range(E) if i not in index]
                buffer[gone] = float("-inf")
    with monkeypatch.context() as patch:
        patch.setattr(nn.functional, "linear", masked)
        return logits(model)


def close(actual: torch.Tensor, wanted: torch.Tensor, share: float = 1e-5) -> bool:
    return float((actual - wanted).abs().max()) <= share * float(wanted.abs().max())


@pytest.mark.parametrize("model_type", MIXTURES)
@pytest.mark.parametrize("select", ["random", "importance"])
def test_dropped_equals_masked(
    model_type: str, select: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = mixture(model_type)
    applied = prune("static-experts", mixture(model_type), select=select)
    masked = masked_logits(monkeypatch, mixture(model_type), applied.kept)
    assert close(logits(applied.model), masked)
    assert not close(masked, logits(dense), 0.01)
    assert {len(index) for index in applied.kept.values()} == {E // 2}
    shape = ModelShape.from_config(applied.model.config.to_dict())
    assert (shape.experts.count, shape.experts.per_token) == (E // 2, TOP_K)
    assert all(p.is_contiguous() for p in applied.model.parameters())


def test_dropped_equals_masked_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums in another order: 8 bits of a mantissa, a few roundings a layer."""
    applied = prune("static-experts", mixture("qwen2_moe").bfloat16())
    masked = masked_logits(monkeypatch, mixture("qwen2_moe").bfloat16(), applied.kept)
    assert applied.model.model.layers[0].mlp.experts.down_proj.dtype == torch.bfloat16
    assert close(logits(applied.model), masked, 0.02)


@pytest.mark.parametrize("model_type", ["mixtral", "gpt_oss"])
def test_implementations_agree(model_type: str) -> None:
    """All count the same tokens, and the pruned models compute the same."""
    actual, counts, scores = [], [], []
    for name in IMPLEMENTATIONS:
        model = mixture(model_type, name)
        seen = collect_experts(model, FEW.batches)
        counts.append([item.counts.tolist() for item in seen.values()])
        scores.append(
            torch.stack([item.scores for item in seen.values() if item.scores is not None])
        )
        actual.append(logits(prune("static-experts", model, select="importance").model))
    assert counts[0] == counts[1] == counts[2]
    assert sum(counts[0][0]) == IDS.numel() * TOP_K
    assert all(torch.allclose(item, scores[0], rtol=1e-4) for item in scores)
    assert all(close(item, actual[0]) for item in actual)


def test_a_score_is_the_mean_of_gate_times_norm() -> None:
    """Of one layer, token by token: silu(x·Wgᵀ)∘(x·Wuᵀ)·Wdᵀ, in plain products."""
    model = mixture("mixtral", "eager")
    block, seen = model.model.layers[0].mlp, []
    handle = block.register_forward_pre_hook(lambda _m, args: seen.append(args[0][0]))
    actual = collect_experts(model, FEW.batches)["model.layers.0.mlp.experts"]
    handle.remove()
    sums, tokens = torch.zeros(E).double(), torch.zeros(E).long()
    for x in torch.cat(seen):
        gates, index = (x @ block.gate.weight.T).softmax(0).topk(TOP_K)
        for gate, e in zip(gates / gates.sum(), index.tolist(), strict=True):
            a, b = (block.experts.gate_up_proj[e] @ x).chunk(2)
            output = block.experts.down_proj[e] @ (nn.functional.silu(a) * b)
            sums[e] += float(gate * output.norm())
            tokens[e] += 1
    assert actual.counts.tolist() == tokens.tolist()
    assert actual.scores is not None and torch.allclose(actual.scores, sums, rtol=1e-4)
    kept = prune("static-experts", model, select="importance").kept["model.layers.0.mlp.experts"]
    means = sums / tokens.clamp(min=1)
    assert kept == sorted(means.topk(8).indices.tolist())
    most = prune("static-experts", mixture("mixtral"), select="frequency").kept
    chosen = most["model.layers.0.mlp.experts"]
    gone = [i for i in range(E) if i not in chosen]
    assert tokens[chosen].min() >= tokens[gone].max()


def test_experts_in_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """As stacked ones, but for the gate of each token, which a list does not show."""
    stacked = prune("static-experts", mixture("mixtral", "eager"), select="frequency")
    applied = prune("static-experts", listed(), select="frequency")
    assert applied.kept == stacked.kept
    assert close(logits(applied.model), logits(stacked.model))
    assert close(masked_logits(monkeypatch, listed(), applied.kept), logits(applied.model))
    merged = prune("static-experts", listed(), how="merge").model
    assert close(
        logits(merged), logits(prune("static-experts", mixture("mixtral"), how="merge").model)
    )
    with pytest.raises(PrunescopeError, match="a list of experts does not show"):
        prune("static-experts", listed(), select="importance")


def test_merged_experts_are_weighted_means() -> None:
    """An expert that goes joins the kept one whose router row is nearest.

    By frequency its weight is the number of its tokens.
    """
    path = "model.layers.0.mlp.experts"
    dense = mixture("mixtral")
    counts = collect_experts(dense, FEW.batches)[path].counts
    applied = prune("static-experts", mixture("mixtral"), select="frequency", how="merge")
    rows = nn.functional.normalize(dense.model.layers[0].mlp.gate.weight, dim=1)
    kept = applied.kept[path]
    nearest = {e: max(kept, key=lambda k: float(rows[k] @ rows[e])) for e in range(E)}
    for place, expert in enumerate(kept):
        members = [e for e in range(E) if nearest[e] == expert or e == expert]
        share = counts[members] / counts[members].sum()
        for name, axes in (("gate_up_proj", "e,enk->nk"), ("down_proj", "e,enk->nk")):
            whole = getattr(dense.get_submodule(path), name)[members]
            actual = getattr(applied.model.get_submodule(path), name)[place]
            assert torch.allclose(actual, torch.einsum(axes, share, whole), atol=1e-6)
        row = share @ dense.model.layers[0].mlp.gate.weight[members]
        assert torch.allclose(applied.model.model.layers[0].mlp.gate.weight[place], row, atol=1e-6)
    assert any("parts by frequency" in note for note in applied.record["notes"])


def test_groups_keep_the_same_number_and_as_many_as_a_token_needs() -> None:
    """Two of four groups of four experts are open to a token: its four experts need two of each.

    DeepSeek V3 ranks a group by its two best.
    """
    for sparsity, left in ((0.25, 3), (0.3, 3), (0.5, 2), (0.9, 2)):
        applied = prune("static-experts", mixture("deepseek_v3"), sparsity)
        (kept,) = applied.kept.values()
        assert [sum(i // 4 == group for i in kept) for group in range(4)] == [left] * 4
        logits(applied.model)
    assert "8 of 16 experts of a layer stay" in " ".join(applied.record["notes"])
    assert applied.record["kept"]["experts"] == [None, kept]  # the first layer is dense


@pytest.mark.parametrize("model_type", MIXTURES)
def test_a_token_goes_to_fewer_experts(model_type: str) -> None:
    applied = prune("static-topk", mixture(model_type))
    handles, actual = watch_experts(applied.model)
    pruned = logits(applied.model)
    for handle in handles:
        handle.remove()
    assert all(int(routed.counts.sum()) == 2 * IDS.numel() for routed in actual.values())
    assert not close(pruned, logits(mixture(model_type)), 0.01)
    shape = ModelShape.from_config(applied.model.config.to_dict())
    assert (shape.experts.count, shape.experts.per_token) == (E, 2)
    # The model's own code with a config of two experts a token.
    config = text_config(mixture(model_type))
    name = "top_k_experts" if hasattr(config, "top_k_experts") else "num_experts_per_tok"
    setattr(config, name, 2)
    again = type(applied.model)(config).eval()
    again.load_state_dict(mixture(model_type).state_dict())
    assert close(pruned, logits(again))


def test_at_zero_nothing_moves() -> None:
    dense = logits(mixture("deepseek_v3"))
    for family in ("static-experts", "static-topk"):
        assert torch.equal(logits(prune(family, mixture("deepseek_v3"), 0.0).model), dense)


def test_what_is_refused(tiny: Any) -> None:
    for family in ("static-experts", "static-topk"):
        with pytest.raises(PrunescopeError, match="has routed experts"):
            prune(family, tiny)
    table = mixture("mixtral")
    table.model.layers[0].mlp.gate.tid2eid = nn.Buffer(torch.zeros(512, TOP_K, dtype=torch.long))
    with pytest.raises(PrunescopeError, match="it chooses by a table"):
        prune("static-experts", table)
    blind = mixture("mixtral")
    del blind.model.layers[1].mlp.gate.weight
    with pytest.raises(PrunescopeError, match="no matrix of 16 rows"):
        find_mixtures(blind)
    narrow = mixture("deepseek_v3")
    for router in find_mixtures(narrow)[0].routers:
        router.topk_group = 1
    with pytest.raises(PrunescopeError, match="no expert of model.layers.1.mlp.experts can go"):
        prune("static-experts", narrow)
    single = mixture("llama4_text")
    for routed in find_mixtures(single):
        routed.route_to(1)
    with pytest.raises(PrunescopeError, match="goes to a single expert"):
        prune("static-topk", single)


def test_frequency_is_of_experts_alone() -> None:
    for method in ("static-m", "static-topk"):
        with pytest.raises(PrunescopeError, match="frequency is not available") as caught:
            read_method(method, sparsity=0.5, knobs={}, select="frequency")
        assert caught.value.hint.endswith("for static-experts")
    (part,) = read_method("static-experts", sparsity=0.5, knobs={}, select="frequency") or ()
    assert part.reads_text
