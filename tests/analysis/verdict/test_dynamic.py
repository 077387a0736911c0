"""Dynamic families are read back from traces and census; what only looks like one is not named."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from prunescope.analysis.ledger.alignment import Alignment
from prunescope.analysis.ledger.call import Call
from prunescope.analysis.ledger.gemms import Pair, pair_calls
from prunescope.analysis.ledger.pairing import Units, UnitSums
from prunescope.analysis.schema.report import FamilyVerdict, Phase
from prunescope.analysis.verdict.detectors.run_time import layer_shares
from prunescope.analysis.verdict.evidence import Evidence
from prunescope.analysis.verdict.gathers import Gather
from prunescope.analysis.verdict.verdict import verdict as judged
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import read
from prunescope.taxonomy.gemm import Gemm
from prunescope.taxonomy.runs.run_blocks import Matrix, ModuleCounts, WeightStats
from tests.small_capture import phases_unrecorded, small_trace

NAMES = ("q", "k", "v", "o", "gate", "up", "down")
H, C, F, L = 64, 32, 128, 16


def verdict(e: Evidence) -> FamilyVerdict:
    return judged(e).family


def call(role: str, m: float, n: float, k: float, **fields: Any) -> Call:
    group = {"qk": "qk", "pv": "pv"}.get(fields.pop("group", ""), "other")
    values: dict[str, Any] = {
        "layer": 0, "role": role, "group": group, "op": "aten::mm", "kind": "gemm",
        "dtype": "fp32", "batch": 1.0, "m": m, "n": n, "k": k, "count": 1.0, "flop": None,
        "bytes": None, "busy": 10.0, "auxiliary": 0.0, "ideal": None, "bound": "unknown",
        "kernel": "mm", "split": False,
    }  # fmt: skip
    return Call(**{**values, **fields})


def model(rows: float, layers: int = 4) -> dict[Any, Call]:
    """GEMMs of a decoder, 4 heads of 16: prefill of `rows` tokens, or decode (1) on 16 keys."""
    dims = {"q": (H, H), "k": (C, H), "v": (C, H), "o": (H, H), "gate": (F, H), "up": (F, H),
            "down": (H, F)}  # fmt: skip
    calls: dict[Any, Call] = {}
    for layer in range(layers):
        for role, (n, k) in dims.items():
            calls[layer, role, role, 0] = call(role, rows, n, k)
        keys = rows if rows > 1 else L
        calls[layer, "attention", "qk", 0] = call(
            "attention", rows, keys, 16, batch=4.0, group="qk"
        )
        calls[layer, "attention", "pv", 0] = call(
            "attention", rows, 16, keys, batch=4.0, group="pv"
        )
    return calls


def changed(calls: dict[Any, Call], what: dict[Any, dict[str, float] | None]) -> dict[Any, Call]:
    """Of the calls whose (layer, role) is named: other fields, or gone (None)."""
    edited = {}
    for key, value in calls.items():
        edit = what.get(key[:2], {})
        if edit is not None:
            fields: dict[str, Any] = {k: v for k, v in edit.items() if k != "keys"}
            if "keys" in edit:
                fields["n" if key[2] == "qk" else "k"] = edit["keys"]
            edited[key] = replace(value, **fields)
    return edited


def evidence(
    dense: dict[Any, Call],
    pruned: dict[Any, Call],
    *,
    added: tuple[tuple[int, str, str], ...] = (),
    census: WeightStats | None = None,
    phase: str | None = None,
) -> Evidence:
    pairs: list[Pair] = pair_calls(dense, pruned)
    keys = [*{(k[0], k[1], "matmul") for k in dense}, *added]
    here = np.array([k not in added for k in keys])
    empty = np.zeros((len(keys), 1))
    side = UnitSums(*[empty] * 6, present=here, trailing_idle=np.zeros(1))
    left = {(k[0], k[1], "matmul") for k in pruned}
    there = np.array([k in left or k in added for k in keys])
    other = UnitSums(*[empty] * 6, present=there, trailing_idle=np.zeros(1))
    layers = sorted({k[0] for k in dense})
    alignment = Alignment({i: i for i in layers}, [], "identity", exact=True, num_dense=len(layers))
    units = Units(keys, side, other, alignment)
    return Evidence(pairs, units, WeightStats() if census else None, census, phase)


def counts(unit: str, active: int, total: int, phase: str = "decode") -> WeightStats:
    row = ModuleCounts(unit=unit, active=[active], total=[total])
    return WeightStats(dynamic={phase: {"model.layers.0.self_attn": row}})


ROUTER = ((0, "router", "matmul"),)
GATHER = ((0, "attention", "gather_scatter"),)
WEIGHTS = tuple((i, role, "gather_scatter") for i in range(4) for role in ("gate", "up", "down"))
ALL = range(4)
ATTENDING, MLP = ("q", "k", "v", "o"), ("gate", "up", "down")


def on(roles: tuple[str, ...], layers: Any = ALL, **fields: float) -> dict[Any, dict[str, float]]:
    return {(i, role): fields for i in layers for role in roles}


def test_nothing_changed_is_dense() -> None:
    known = evidence(model(64), model(64), census=WeightStats())
    assert verdict(known).id == "dense"
    assert verdict(evidence(model(64), model(64))).id == "unknown"


@pytest.mark.parametrize(
    ("wanted", "rows", "edits", "extra"),
    [
        ("dynamic-m", 64, on(("q", "o", "gate", "up", "down"), m=32), {"added": ROUTER}),
        ("dynamic-m", 64, on(("q", "o", "gate", "up", "down"), m=32), {}),
        ("dynamic-m", 64, on(("gate", "up", "down"), m=32), {"added": ROUTER}),
        # in decode sublayers run in some steps, or in none of a few
        ("dynamic-m", 1, on(("q", "o"), [1, 2], count=0.5), {"added": ROUTER}),
        ("dynamic-m", 1, dict.fromkeys(on(("q", "o", "attention"), [1, 2])), {"added": ROUTER}),
        ("dynamic-depth", 1, on((*NAMES, "attention"), [1, 3], count=0.5), {}),
        ("dynamic-depth", 64, dict.fromkeys(on((*NAMES, "attention"), [1])), {"added": ROUTER}),
        ("token-drop", 64, on(NAMES, [2, 3], m=32), {}),
        # merged behind the attention of layers 1 and 2
        ("token-drop", 64, {**on(MLP, [1], m=48), **on(ATTENDING, [2], m=48), **on(MLP, [2], m=32),
                            **on(NAMES, [3], m=32)}, {}),
        ("dynamic-nk", 64, on(("attention",), keys=32), {}),
        ("dynamic-nk", 1, on(("attention",), keys=8), {"added": GATHER}),
        ("dynamic-nk", 1, on(("attention",), keys=8), {"census": counts("blocks", 2, 4)}),
        ("kv-evict", 1, on(("attention",), keys=8), {"census": counts("keys", 8, 16)}),
        ("kv-evict", 64, {}, {"census": counts("keys", 32, 64, "prefill"), "phase": "prefill"}),
        ("token-drop", 1, on(("attention",), [2, 3], keys=8),
         {"census": counts("rows", 96, 128, "prefill"), "phase": "decode"}),
    ],
)  # fmt: skip
def test_named(wanted: str, rows: float, edits: Any, extra: dict[str, Any]) -> None:
    dense = model(rows)
    known = evidence(dense, changed(dense, edits), **extra)
    result = verdict(known)
    assert result.id == wanted
    assert result.evidence
    # Order tells less, but for what the run counted.
    most = 1.0 if "census" in extra else 0.7
    assert verdict(replace(known, by_order=True)).confidence <= most


@pytest.mark.parametrize(
    ("wanted", "rows", "edits", "extra"),
    [
        # layers and sublayers that are gone for good, without a router
        ("static-m", 64, dict.fromkeys(on((*NAMES, "attention"), [1])), {}),
        ("static-m", 64, dict.fromkeys(on(("gate", "up", "down"), [1])), {}),
        # other inputs: every row count by one ratio
        ("outside", 64, on(NAMES, m=32), {}),
        # other steps of one generation: as many keys fewer as the two traces have steps
        ("unknown", 1, on(("attention",), keys=14), {}),
        # a linear moved too, in a way of no family
        ("unknown", 1, {**on(("attention",), keys=8), **on(("up",), [1], k=32)}, {}),
    ],
)  # fmt: skip
def test_not_named_as_dynamic(wanted: str, rows: float, edits: Any, extra: dict[str, Any]) -> None:
    dense = model(rows)
    assert verdict(evidence(dense, changed(dense, edits), **extra)).id == wanted


def test_layers_of_which_the_order_alone_tells_are_counted_and_not_named() -> None:
    """Steps of 4, 3 and 2 of 4 layers: their places say how many ran, and not which."""
    dense = model(64)
    names = (*NAMES, "attention")
    edits = {**on(names, [2], count=2 / 3), **on(names, [3], count=1 / 3)}
    known = evidence(dense, changed(dense, edits))
    assert "2 of 4 layers do not run in every step (2 in some)" in verdict(known).evidence[0]
    by_order = verdict(replace(known, by_order=True))
    assert (by_order.id, by_order.confidence) == ("dynamic-depth", 0.7)
    assert by_order.evidence[0] == (
        "2 to 4 of 4 layers run in a step, 75 % of the layers run in a step; which ones, the order "
        "of kernels does not say"
    )


def test_tokens_that_leave_after_each_layer_have_the_rows_of_the_first_and_the_last() -> None:
    """64 rows: 56 from layer 1 on, 48 from 2, 40 in 3, and not 40 of 64 from layer 1 on."""
    edits = {k: v for i, m in ((1, 56), (2, 48), (3, 40)) for k, v in on(NAMES, [i], m=m).items()}
    dense = model(64)
    result = verdict(evidence(dense, changed(dense, edits)))
    assert result.id == "token-drop"
    assert "from layer 1 on every GEMM sees fewer rows" in result.evidence[0]
    assert "88 % in layer 1, 62 % in layer 3" in result.evidence[0]


@pytest.mark.parametrize("layers", [ALL, [2, 3]])
@pytest.mark.parametrize("counted", [{}, {"census": counts("keys", 8, 16, "prefill")}])
def test_fewer_keys_alone_in_decode_are_an_eviction_of_the_same_prompt(
    layers: Any, counted: dict[str, Any]
) -> None:
    """8 of 16 keys without a count of this phase, in all layers or in those without a window."""
    dense = model(1)
    edits = on(("attention",), layers, keys=8)
    result = verdict(evidence(dense, changed(dense, edits), phase="decode", **counted))
    assert (result.id, result.confidence, result.alternatives) == ("kv-evict", 0.5, ["dynamic-nk"])
    number = len(list(layers))
    assert f"attention of {number} of 4 layers reads fewer keys (16 → 8)" in result.evidence[0]
    assert "if both sides saw the same prompt" in result.evidence[0]
    # with a linear that moved too it is something else
    both = {**edits, **on(("up",), [1], n=96)}
    assert verdict(evidence(dense, changed(dense, both))).id != "kv-evict"


def test_layers_that_keep_other_numbers_of_keys_are_a_range() -> None:
    """4 of 16 keys in the first layer, 8 in the second, 12 in the others."""
    dense = model(1)
    edits = on(("attention",), [0], keys=4) | on(("attention",), [1], keys=8)
    result = verdict(evidence(dense, changed(dense, edits | on(("attention",), [2, 3], keys=12))))
    assert "reads fewer keys (16 → 4 to 12, by layer)" in result.evidence[0]


def test_fewer_keys_of_some_layers_of_a_prompt_may_be_two_families() -> None:
    dense = model(64)
    result = verdict(evidence(dense, changed(dense, on(("attention",), [2, 3], keys=32))))
    assert (result.id, result.alternatives) == ("unknown", ["dynamic-nk", "kv-evict"])
    assert "left the cache or were skipped" in result.evidence[0]


def test_a_cache_that_some_layers_cut_is_said_to_be_of_those() -> None:
    dense = model(1)
    edits = on(("attention",), [0], keys=8)
    judged_one = verdict(evidence(dense, changed(dense, edits), census=counts("keys", 8, 16)))
    assert judged_one.evidence[0] == (
        "the cache of 1 of 4 layers holds 50 % of the keys seen; no linear moved"
    )


EXPERTS = 4


def mixture(*, skipped: tuple[int, ...] = (), decides: bool = False) -> dict[Any, Call]:
    """One token through layers of 4 experts, two of them hit, with a gate (N = 1) of the shared
    one; `skipped`: layers whose MLP it is routed past, `decides`: by a router before each."""
    calls = {k: v for k, v in model(1).items() if k[1] not in ("gate", "up", "down")}
    for layer in range(4):
        own = [EXPERTS, 1] if layer not in skipped else []
        for i, n in enumerate([1, *own] if decides else own):
            calls[layer, "router", "router", i] = call("router", 1, n, H, layer=layer)
        for i in range(0 if layer in skipped else 6):
            calls[layer, "experts", "other", i] = call("experts", 1, F, H, layer=layer)
    return calls


def test_an_mlp_of_experts_that_a_token_is_routed_past() -> None:
    """Its own router goes with it, and the one that decides stands where that was."""
    for skipped in ((1,), (0, 2, 3)):
        result = verdict(evidence(mixture(), mixture(skipped=skipped, decides=True)))
        assert result.id == "dynamic-m", result
        assert f"the MLP of {len(skipped)} see fewer rows" in result.evidence[0]
    assert verdict(evidence(mixture(), mixture(skipped=(1,)))).id != "dynamic-m"
    assert verdict(evidence(mixture(), mixture())).id == "unknown"


def narrower(dim: int) -> dict[Any, Call]:
    """4 heads of `dim` instead of 16, and 2 KV heads: N of q is 4·dim, of k and v 2·dim."""
    edits = {**on(("q",), n=4 * dim), **on(("k", "v"), n=2 * dim), **on(("o",), k=4 * dim)}
    calls = changed(model(64), edits)
    for key in [k for k in calls if k[1] == "attention"]:
        calls[key] = replace(calls[key], **{"k" if key[2] == "qk" else "n": float(dim)})
    return calls


def test_a_narrower_head_is_of_no_family() -> None:
    """The linears listed smaller, as a run has them: attention's work fell with theirs."""
    stored = [
        Matrix(layer=i, role=role, shape=shape)
        for i in ALL
        for role, shape in (("q", [H, H]), ("k", [C, H]), ("v", [C, H]), ("o", [H, H]))
    ]
    halved = [msgspec.structs.replace(m, shape=[x // 2 for x in m.shape or ()]) for m in stored]
    e = evidence(model(64), narrower(8), census=WeightStats(matrices=halved))
    e = replace(e, stats_dense=WeightStats(matrices=stored))
    result = verdict(e)
    assert result.id == "unknown"
    assert "the head dimension fell from 16 to 8" in result.evidence[0]
    assert "N of 12 projections and K of 4 o" in result.evidence[0]
    # Beside a family it is said, and takes nothing from the family's name.
    slim = changed(narrower(8), {**on(("gate", "up"), n=64), **on(("down",), k=64)})
    result = verdict(evidence(model(64), slim))
    assert result.id == "static-nk-mlp"
    assert "the head dimension fell" in result.evidence[-1]


def test_fewer_kv_heads_for_the_same_queries_are_not_broken() -> None:
    """N of k and v 32 → 16, one KV head of 16 with G = 4: N(v)·G = 64 = K(o)."""
    result = verdict(evidence(model(64), changed(model(64), on(("k", "v"), n=16))))
    assert (result.id, result.confidence) == ("static-nk-heads", 1.0)
    assert "fewer KV heads 2 → 1, all query heads stay: N of 8 projections" in result.evidence[0]
    lost = changed(model(64), on(("q", "k", "v"), n=16))  # q fell and o did not
    result = judged(evidence(model(64), lost))
    assert result.seen[0].broken == (result.family.evidence[0],)
    assert "broken" in result.family.evidence[0]


def test_dense_needs_the_same_parameters_and_matrices() -> None:
    dense = WeightStats(matrices=[Matrix(layer=0, role="conv", shape=[64, 3])])
    same = replace(evidence(model(64), model(64), census=dense), stats_dense=dense)
    assert verdict(replace(same, parameters=(1000, 1000))).id == "dense"
    fewer = verdict(replace(same, parameters=(1000, 502)))
    assert fewer.id == "unknown"
    assert "parameters fell by 49.8 %" in fewer.evidence[0]
    other = WeightStats(matrices=[Matrix(layer=0, role="conv", shape=[32, 3])])
    assert verdict(replace(same, stats_pruned=other)).id == "unknown"


def test_slices_of_whole_weights_are_dynamic_width() -> None:
    dense = model(64)
    narrow = changed(dense, {**on(("gate", "up"), n=64), **on(("down",), k=64)})
    assert verdict(evidence(dense, narrow)).id == "static-nk-mlp"
    assert verdict(evidence(dense, narrow, added=WEIGHTS)).id == "dynamic-width"
    whole = Matrix(name="down", role="down", shape=[H, F])
    cut = msgspec.structs.replace(whole, shape=[H, 64])
    for matrix, wanted in ((whole, "dynamic-width"), (cut, "static-nk-mlp")):
        e = evidence(dense, narrow, added=WEIGHTS, census=WeightStats(matrices=[matrix]))
        e = Evidence(e.pairs, e.units, WeightStats(matrices=[whole]), e.stats_pruned)
        assert verdict(e).id == wanted


def test_attention_of_unknown_shape_does_not_do_less() -> None:
    """Blocks of keys are missing only where both sides say what they multiply."""
    dense = model(64)
    unread = changed(dense, on(("attention",), m=None, n=None, k=None))
    for before, after in ((dense, unread), (unread, dense)):
        result = verdict(evidence(before, after, added=GATHER))
        assert result.id == "unknown"
        assert not any("dense FLOPs" in line for line in result.evidence)
    fewer = changed(dense, on(("attention",), keys=32))
    assert verdict(evidence(dense, fewer, added=GATHER)).id == "dynamic-nk"


@pytest.mark.parametrize(("width", "wanted"), [(F, "outside"), (64, "static-nk-mlp")])
def test_what_is_quantised_may_be_pruned_too(width: int, wanted: str) -> None:
    dense = model(48)
    both = changed(dense, {**on(("gate", "up"), n=width), **on(("down",), k=width)})
    result = verdict(evidence(dense, {k: replace(v, dtype="int8") for k, v in both.items()}))
    assert result.id == wanted
    assert result.confidence < 1
    assert any("in int8, the dense ones in fp32: quantisation" in line for line in result.evidence)
    assert ("not pruning" in result.evidence[-1]) == (wanted == "outside")


@pytest.mark.parametrize(
    ("rows", "source", "wanted", "confidence"),
    [
        (48, (H, F), "dynamic-width", 1.0),
        (48, (F, H), "dynamic-width", 1.0),  # stored the other way round
        (48, (48, F), "static-nk-mlp", 1.0),  # features of activations are picked
        (48, (6, 8, F), "static-nk-mlp", 1.0),
        (64, (64, F), "dynamic-width", 0.5),  # as many tokens as features: it may be either
    ],
)
def test_dynamic_width_gathers_weights(
    rows: int, source: tuple[int, ...], wanted: str, confidence: float
) -> None:
    dense = model(rows)
    narrow = changed(dense, {**on(("gate", "up"), n=64), **on(("down",), k=64)})
    e = replace(evidence(dense, narrow, added=WEIGHTS), gathers=(Gather("down", 4, source),))
    assert (verdict(e).id, verdict(e).confidence) == (wanted, confidence)


def test_a_hostile_weight_statistics_is_refused_when_it_is_read() -> None:
    row = {"unit": "keys", "active": ["x", None, True], "total": "many"}
    for dynamic in ([], {"decode": 3}, {"decode": {"a": 1}}, {"decode": {"a": row}}):
        with pytest.raises(PrunescopeError, match="WeightStats: dynamic"):
            read(WeightStats, {"matrices": [], "dynamic": dynamic})


DYNAMIC = [
    ("dynamic-m", {}), ("dynamic-nk", {}), ("dynamic-nk", {"blocks": "value"}),
    ("dynamic-depth", {}), ("dynamic-depth", {"exit": "early"}), ("dynamic-width", {}),
    ("token-drop", {"after": "1"}), ("kv-evict", {}), ("kv-evict", {"keep": "recent"}),
]  # fmt: skip


Dense = Callable[[int], Path]


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Dense:
    """The dense run of a batch, which all methods are compared with."""

    @cache
    def of(batch: int) -> Path:
        run = tmp_path_factory.mktemp("dense") / "run"
        return small_trace(run, prompt_len=64, batch=batch) / "dense"

    return of


@pytest.mark.torch
@pytest.mark.parametrize(
    ("method", "knobs", "batch"), [*((*case, 1) for case in DYNAMIC), ("dynamic-m", {}, 3)]
)
def test_traced_and_named(
    method: str, knobs: dict[str, str], batch: int, dense: Dense, tmp_path: Path
) -> None:
    phases = traced(dense, tmp_path, method=method, knobs=knobs, batch=batch)
    for phase in phases.values():
        assert phase.family is not None
        assert phase.family.id == method
        added = next(row for row in phase.ledger or () if row.row == "added_work")
        classes = {(part.role, part.cls) for part in added.parts}
        if method in ("dynamic-m", "dynamic-nk", "dynamic-width"):
            scores = "estimator" if method == "dynamic-nk" else "router"
            assert (scores, "routing") in classes
            # With blocks=value the estimator is the attention itself.
            assert (scores, "matmul") in classes or knobs.get("blocks") == "value"
            assert any(cls == "gather_scatter" for _, cls in classes)
        assert phase.kinds.get("unknown", 0) == 0


@pytest.mark.torch
@pytest.mark.parametrize("method", ["static-m", "static-nk", "static-nk-mlp", "static-k-mask"])
def test_static_families_are_not_taken_for_dynamic_ones(
    method: str, dense: Dense, tmp_path: Path
) -> None:
    for phase in traced(dense, tmp_path, method=method, phase="decode").values():
        assert phase.family is not None
        assert phase.family.id == method


def traced(dense: Dense, folder: Path, *, batch: int = 1, **options: Any) -> dict[str, Phase]:
    run = small_trace(
        folder / "run", sparsity=0.5, prompt_len=64, batch=batch, baseline=dense(batch), **options
    )
    return phases_unrecorded(run)


def _call(m: int, n: int, k: int) -> Any:
    return SimpleNamespace(gemm=Gemm(m, n, k), m=m, n=n, k=k, count=1.0)


@pytest.mark.parametrize("smaller", [set(), {"qkv"}, {"q", "k", "v"}])
def test_fewer_outputs_of_q_k_and_v_are_no_fewer_rows_where_the_weights_are_smaller(
    smaller: set[str],
) -> None:
    """N of the three together fell from 256 to 128, as fewer rows of q would show it, too. In a
    compiled step their order tells them not apart, while the run lists each weight."""
    old, new = (_call(64, n, 128) for n in (256, 128))
    pair = Pair((0, "qkv", "qkv", 0), old, new, "N")
    seen: Any = SimpleNamespace(
        pairs=[pair],
        removed_weights=frozenset,
        smaller_weights=lambda: frozenset((0, role) for role in smaller),
    )
    (layer,) = layer_shares(seen).values()
    assert ("q" in layer.calls or bool(layer.reshaped)) is (not smaller)


@pytest.mark.parametrize(("rows", "without_queries"), [(64, False), (32, True)])
def test_one_smaller_product_for_q_k_and_v_leaves_queries_out_only_where_o_does(
    rows: int, *, without_queries: bool
) -> None:
    """N of q, k and v together fell from 768 to 384: fewer KV heads, unless o sees fewer rows."""
    qkv = Pair((0, "qkv", "qkv", 0), _call(64, 768, 256), _call(64, 384, 256), "N")
    o = Pair((0, "o", "o", 0), _call(64, 256, 256), _call(rows, 256, 256), "M")
    seen: Any = SimpleNamespace(
        pairs=[qkv, o], removed_weights=frozenset, smaller_weights=frozenset
    )
    (layer,) = layer_shares(seen).values()
    assert ("q" in layer.calls) is without_queries
    assert ("qkv" in layer.reshaped) is not without_queries
