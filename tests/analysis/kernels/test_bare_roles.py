"""Roles without modules: from the order of attention and weight GEMMs, or not at all."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from prunescope.analysis.inputs.options import Options
from prunescope.analysis.pipeline import analyze
from tests.analysis.replays import replayed
from tests.analysis.timeline.test_scopes import KV, F, H, Q, add, attention, mm
from tests.chrome import chrome, k, module, op, save, step

SEPARATE = (*(mm(n, H) for n in (Q, KV, KV)), attention(), mm(H, Q), mm(F, H), mm(F, H), mm(H, F))
FUSED = (mm(Q + 2 * KV, H), attention(), mm(H, Q), mm(2 * F, H), mm(H, F))
EMBED = op("aten::embedding", [100, H], [32], kernels=[k(us=1, name="indexSelectLargeIndex")])
HEAD = mm(100, H)
PLAIN = (*(mm(n, H) for n in (Q, KV, KV)), attention(), mm(H, Q), mm(F, H), mm(H, F))


def roles(tmp_path: Path, *items: Any) -> list[tuple[int | None, str]]:
    rows = analyze(save(chrome(*items), tmp_path / "t.json")).frames["trace"]
    rows = rows.filter(pl.col("kind").is_in(["gemm", "gemv", "attention"]))
    return list(zip(rows["layer"].to_list(), rows["role"].to_list(), strict=True))


@pytest.mark.parametrize(
    ("layer", "names"),
    [
        (SEPARATE, ["q", "k", "v", "attention", "o", "gate", "up", "down"]),
        (FUSED, ["qkv", "attention", "o", "gate_up", "down"]),
        (PLAIN, ["q", "k", "v", "attention", "o", "up", "down"]),
    ],
    ids=["separate", "fused", "no gate"],
)
@pytest.mark.parametrize("head", [True, False])
def test_layers_of_a_decoder(
    layer: tuple[Any, ...], names: list[str], tmp_path: Path, *, head: bool
) -> None:
    last = [mm(100, H)] if head else []
    got = roles(tmp_path, EMBED, *[x for _ in range(4) for x in (add(), *layer)], *last)
    want: list[tuple[int | None, str]] = [(i, name) for i in range(4) for name in names]
    assert got == want + ([(None, "lm_head")] if head else [])


def test_an_uneven_sequence_is_unknown(tmp_path: Path) -> None:
    """Five, then seven GEMMs between attentions: no order to read roles from."""
    uneven = (*SEPARATE, mm(H, H), mm(H, H), *FUSED, *SEPARATE)
    assert {role for _, role in roles(tmp_path, *uneven)} <= {"unknown", "attention"}


def test_gemms_without_attention_are_unknown(tmp_path: Path) -> None:
    assert {role for _, role in roles(tmp_path, mm(Q, H), mm(H, Q), mm(F, H))} == {"unknown"}


def test_the_report_says_where_roles_come_from(tmp_path: Path) -> None:
    trace = save(chrome(*SEPARATE * 3), tmp_path / "t.json")
    assert any("order" in note for note in analyze(trace).report.phases["trace"].notes)


def test_a_real_trace_without_modules_has_the_same_roles(
    real_trace: Callable[[str], Path], tmp_path: Path
) -> None:
    """All 168 linears of 24 layers as its modules name them."""
    path = real_trace("h100_qwen1.5-0.5b_prefill.json.gz")
    trace = json.loads(gzip.decompress(path.read_bytes()))
    trace["traceEvents"] = [e for e in trace["traceEvents"] if e.get("cat") != "python_function"]
    linears = pl.col("kind").is_in(["gemm", "attention"])
    told, bare = (
        analyze(p).frames["trace"].filter(linears).select("start", "layer", "role")
        for p in (path, save(trace, tmp_path / "t.json"))
    )  # fmt: skip
    assert len(told) == 192
    assert bare.equals(told)


def stepped(*passes: tuple[Any, ...]) -> list[Any]:
    """Each pass in a step of its own, with an embedding before and the head after its layers."""
    return [
        module(f"ProfilerStep#{i}", EMBED, *(x for layer in layers for x in layer), HEAD)
        for i, layers in enumerate(passes)
    ]


ONE = [(i, name) for i in range(3) for name in ("qkv", "attention", "o", "gate_up", "down")]


def test_layers_are_numbered_anew_in_every_step(tmp_path: Path) -> None:
    """Three layers in each of two steps are three layers, with a head each: a fifth of the gaps
    between attentions holds the head too (5 GEMMs of 4)."""
    got = roles(tmp_path, *stepped((FUSED,) * 3, (FUSED,) * 3))
    assert got == [*ONE, (None, "lm_head")] * 2


def test_passes_without_steps_begin_where_tokens_are_embedded(tmp_path: Path) -> None:
    """A prefill and two decodes in a trace without steps; the last is cut off in its layer 1."""
    whole = (EMBED, *FUSED * 3, HEAD)
    got = roles(tmp_path, *whole, *whole, EMBED, *FUSED * 2)
    assert got == [*ONE, (None, "lm_head")] * 2 + ONE[:10]


def test_an_embedding_in_every_layer_is_no_beginning(tmp_path: Path) -> None:
    """Rotary tables that are looked up in each layer."""
    got = roles(tmp_path, *(EMBED, *FUSED) * 3)
    assert got == ONE


def test_passes_of_unequal_length_are_not_told_apart(tmp_path: Path) -> None:
    """Two layers, then three (a draft and its target): nothing says which layer 0 is meant."""
    got = roles(tmp_path, EMBED, *FUSED * 2, EMBED, *FUSED * 3)
    assert [layer for layer, role in got if role == "attention"] == [0, 1, 2, 3, 4]


def test_another_number_of_steps_is_no_pruning(tmp_path: Path) -> None:
    """Three steps against five of one model: three layers, all of them in every step."""
    few, many = (
        save(chrome(*stepped(*[(SEPARATE,) * 3] * n)), tmp_path / f"{n}.json") for n in (3, 5)
    )
    phase = analyze(few, baseline=many).report.phases["trace"]
    assert phase.family is not None
    assert phase.family.evidence[0].startswith("no GEMM moved")
    assert phase.pairing is not None
    assert phase.pairing.layers == "0 of 3 layers removed"
    assert [row.layer for row in phase.anatomy.layers] == [0, 1, 2, None]


def test_the_order_of_gemms_names_no_family(tmp_path: Path) -> None:
    """Half of the MLP's channels are gone, in gate, up and down: down reads what up makes. Where it
    reads a quarter, only modules would say whether they belong together."""
    for read, named in ((F // 2, "static-nk-mlp"), (F // 4, "unknown")):
        half = (*SEPARATE[:5], mm(F // 2, H), mm(F // 2, H), mm(H, read))
        pruned, dense = (
            save(chrome(*stepped((layer,) * 3)), tmp_path / f"{i}.json")
            for i, layer in enumerate((half, SEPARATE))
        )
        family = analyze(pruned, baseline=dense).report.phases["trace"].family
        assert family is not None
        assert family.id == named
        assert family.alternatives == ["static-nk-mlp"] * (named == "unknown")
        assert family.confidence <= 0.7
        assert ("with_stack=True" in family.evidence[0]) == (named == "unknown")


def test_layers_that_are_gone_are_counted_in_a_step(tmp_path: Path) -> None:
    """Three of four layers, three steps each: 1 of 4 is gone, not 3 of 12."""
    dense, pruned = (
        save(chrome(*stepped(*[(SEPARATE,) * n] * 3)), tmp_path / f"{n}.json") for n in (4, 3)
    )
    phase = analyze(pruned, baseline=dense).report.phases["trace"]
    assert phase.family is not None
    assert phase.family.id == "static-m"
    assert phase.family.evidence[0].startswith("1 of 4 layers removed")


def test_steps_of_unequal_depth_are_said(tmp_path: Path) -> None:
    trace = save(chrome(*stepped((FUSED,) * 3, (FUSED,) * 2)), tmp_path / "t.json")
    phase = analyze(trace).report.phases["trace"]
    assert any("steps have 2 to 3 layers" in note for note in phase.notes)
    assert any(f.id == "unequal-steps" for f in phase.findings)


@pytest.mark.parametrize("eager_is", ["dense", "pruned"])
def test_as_many_layers_in_replays_as_in_passes_without_steps(
    eager_is: str, tmp_path: Path
) -> None:
    """Three replays of two layers, named by one eager pass, against three eager passes that no step
    and no embedding tells apart: six layers run on both sides, and two is what there is."""
    once = save(chrome(*FUSED * 2), tmp_path / "once.json")
    thrice = save(chrome(*FUSED * 6), tmp_path / "thrice.json")
    replay = save(replayed(chrome(*FUSED * 2), times=3), tmp_path / "replay.json")
    if eager_is == "dense":
        report = analyze(replay, baseline=thrice, options=Options(eager_trace=once)).report
    else:
        options = Options(baseline_eager_trace=once)
        report = analyze(thrice, baseline=replay, options=options).report
    phase = report.phases["trace"]
    assert phase.pairing is not None
    assert phase.pairing.layers == "0 of 2 layers removed"
    assert phase.family is not None
    assert phase.family.evidence[0].startswith("no GEMM moved")
    assert any("2 layers, 3 times a step" in note for note in phase.notes)


@pytest.mark.parametrize("embedded", [True, False])
@pytest.mark.parametrize(("n", "head"), [(100, True), (99, False), (8 * F, True), (2 * F, False)])
def test_a_head_has_a_vocabulary(n: int, tmp_path: Path, *, head: bool, embedded: bool) -> None:
    """As many columns as the embedding has rows, or a width far beyond any other; no classifier."""
    first = [EMBED] if embedded else [add()]
    items = [x for i in range(4) for x in in_modules(i)]
    outside = module("model.score", mm(n, H))
    got = roles(tmp_path, step(0, *first, *items, outside))
    assert got[-1] == (None, "lm_head" if head and embedded else "unknown")


def in_modules(i: int) -> list[Any]:
    """The linears of a layer in scopes of their own, and attention."""
    layer = f"model.layers.{i}"
    return [
        module(layer, module(f"{layer}.self_attn",
                             module(f"{layer}.self_attn.c_attn", mm(3 * H, H)), attention(),
                             module(f"{layer}.self_attn.c_proj", mm(H, H))),
               module(f"{layer}.mlp", module(f"{layer}.mlp.c_fc", mm(F, H)),
                      module(f"{layer}.mlp.c_proj", mm(H, F))))
    ]  # fmt: skip


@pytest.mark.parametrize("which", ["all", "mlp"])
def test_two_gemms_through_a_rank_have_the_role_of_one(which: str, tmp_path: Path) -> None:
    """Rank 24, of all linears or of the MLP's alone: as many layers and roles as without."""

    def low(n: int, k_: int) -> tuple[Any, ...]:
        return mm(24, k_), mm(n, 24)

    o = low(H, Q) if which == "all" else (mm(H, Q),)
    qkv = low(Q + 2 * KV, H) if which == "all" else (mm(Q + 2 * KV, H),)
    layer = (add(), *qkv, attention(), *o, add(), *low(F, H), add(), *low(H, F))
    got = roles(tmp_path, EMBED, *[x for _ in range(4) for x in layer])
    twice = 2 if which == "all" else 1
    one = ["qkv"] * twice + ["attention"] + ["o"] * twice + ["up"] * 2 + ["down"] * 2
    assert got == [(i, name) for i in range(4) for name in one]


def test_a_vocabulary_that_a_generated_kernel_looks_up(tmp_path: Path) -> None:
    """The head of a compiled model, whose embedding is fused into a Triton kernel."""
    table = op("triton_per_fused_add_embedding_native_layer_norm_2", [4, 8], [1000, H], [H],
               [32, H], kernels=[k(us=1, name="triton_per_fused_add_embedding")])  # fmt: skip
    got = roles(tmp_path, table, *[x for _ in range(4) for x in (add(), *PLAIN)], mm(1000, H))
    assert got[-1] == (None, "lm_head")


def bmm(n: int, kk: int, batch: int = 4) -> Any:
    return op("aten::bmm", [batch, 32, kk], [batch, kk, n], kernels=[k(us=3, name="gemm")])


def softmax(keys: int = 32) -> Any:
    return op(
        "ScaledUpperTriangMaskedSoftmax",
        [4, 32, keys],
        kernels=[k(us=2, name="scaled_upper_triang_masked_softmax_warp_forward")],
    )


def test_an_attention_of_separate_ops_is_one(tmp_path: Path) -> None:
    """As Megatron runs it: scores of 32 keys, a masked softmax, and their product with 16 values of
    each head; the table's rows are looked up by an index, and its matrix is the head."""
    layer = (mm(Q + 2 * KV, H), bmm(32, 16), softmax(), bmm(16, 32), mm(H, Q), mm(F, H), mm(H, F))
    table = op("aten::index", [100, H], [], kernels=[k(us=1, name="index_elementwise_kernel")])
    analysis = analyze(save(chrome(table, *(layer * 3), mm(100, H)), tmp_path / "t.json"))
    assert analysis.report.phases["trace"].shapes == {"recorded": 1.0}  # a softmax has no M, N, K
    rows = analysis.frames["trace"]
    of_layer = ["qkv", *["attention"] * 3, "o", "up", "down"]
    assert rows["role"].to_list() == ["unknown", *of_layer * 3, "lm_head"]
    assert rows["layer"].to_list() == [None, *[i for i in range(3) for _ in of_layer], None]
    assert rows.filter(pl.col("role") == "attention")["class"].unique().to_list() == ["attention"]


def test_products_that_do_not_fit_around_a_softmax_are_no_attention(tmp_path: Path) -> None:
    """A router's softmax between two batched products; scores of other keys; none between."""
    for items in (
        (bmm(32, 16), softmax(), bmm(16, 48)),
        (bmm(32, 16), softmax(), bmm(16, 32, batch=2)),
        (bmm(32, 16), bmm(16, 32), softmax()),
        (bmm(32, 16), softmax(), mm(H, H), bmm(16, 32)),
    ):
        rows = analyze(save(chrome(*items), tmp_path / "t.json")).frames["trace"]
        assert set(rows["role"]) == {"unknown"}


@pytest.mark.parametrize(
    ("items", "want"),
    [
        ((EMBED, mm(F, H), mm(H, F), HEAD), ["unknown", "unknown", "lm_head"]),
        # Another matrix; a product that runs more often than tokens are looked up.
        ((EMBED, mm(F, H), mm(H, F), mm(100, F)), ["unknown"] * 3),
        ((EMBED, HEAD, mm(H, 100), HEAD), ["unknown"] * 3),
        # Rows that are picked behind a product are tokens on their way to an expert.
        (
            (mm(H, H), op("aten::index", [100, H], [], kernels=[k(us=1, name="index")]), HEAD),
            ["unknown"] * 2,
        ),
    ],
)
def test_a_tied_head_is_the_matrix_that_tokens_were_looked_up_in(
    items: tuple[Any, ...], want: list[str], tmp_path: Path
) -> None:
    """Without attention no order tells a head; the rows and the width of the table do."""
    assert [role for _, role in roles(tmp_path, *items)] == want


def test_annotations_name_parts_and_their_pass(tmp_path: Path) -> None:
    """As DualPipe's code annotates them: attn(F), MLP(B); linears of an MLP by their number."""
    silu = op("aten::silu", [32, F], kernels=[k(us=1, name="silu")])
    rows = analyze(
        save(
            chrome(
                module("attn(F)", mm(3 * H, H), attention(), mm(H, H)),
                module("MLP(F)", mm(2 * F, H), silu, mm(H, F)),
                module("MLP(B)", mm(F, H), silu),
                module("attn(W)", mm(H, H)),
                module("1F1B", mm(H, H)),
            ),
            tmp_path / "t.json",
        )
    )
    assert rows.frames["trace"]["role"].to_list() == [
        "qkv", "attention", "o", "gate_up", "activation", "down",
        "unknown backward", "activation backward", "unknown backward", "unknown",
    ]  # fmt: skip
    kind = rows.report.phases["trace"].phase_kind
    assert kind is not None
    assert kind["kind"] == "training"


def noted(tmp_path: Path, trace: dict[str, Any]) -> str:
    return " ".join(analyze(save(trace, tmp_path / "t.json")).report.phases["trace"].notes)


def test_roles_that_are_missing_come_with_the_line_that_gives_them(tmp_path: Path) -> None:
    """Four GEMMs of 7 us around an attention of 5 us stand in no order that is known; of a compiled
    model no line gives roles, and a model without attention would have none."""
    text = noted(tmp_path, chrome(*[mm(F, H)] * 3, attention(), mm(F, H)))
    assert "85 % of the time of GEMMs and attention has no role" in text
    assert "profile(..., record_shapes=True, with_stack=True)" in text
    assert "has no role" not in noted(tmp_path, chrome(*[mm(F, H)] * 4))
    compiled = op("Torch-Compiled Region: 0/0", inner=[mm(F, H), attention()], us=0)
    text = noted(tmp_path, chrome(compiled))
    assert "torch.compile records no modules" in text
    for named in ([x for _ in range(3) for x in SEPARATE], [module("nn.Module: X_0", mm(F, H))]):
        trace = chrome(*named)
        for event in trace["traceEvents"]:
            if event["name"].startswith("nn.Module: "):
                event["cat"] = "python_function"
        assert "has no role" not in noted(tmp_path, trace)
