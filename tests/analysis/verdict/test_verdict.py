"""The family of small pairs, each read from its traces and census: the right id, with evidence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import FamilyVerdict, Phase
from tests.analysis.decoder import Layer, Setting, census, decoder, write_pair
from tests.analysis.finding_cases import layers, mm, of_pair
from tests.chrome import k, op, save

FULL = Layer()
FOUR = [FULL] * 4
HEADS = Layer(heads=2, kv_heads=1)
NARROW = Layer(f=48)
LOW = Layer(rank={"q": 16, "o": 16, "gate": 16, "up": 16, "down": 16})
ALL = ("q", "k", "v", "o", "gate", "up", "down")


def compared(tmp_path: Path, dense: Any, pruned: Any) -> Phase:
    d = save(decoder(*dense) if isinstance(dense, tuple) else decoder(dense), tmp_path / "d.json")
    p = save(
        decoder(*pruned) if isinstance(pruned, tuple) else decoder(pruned), tmp_path / "p.json"
    )
    return analyze(p, baseline=d).report.phases["trace"]


def told(phase: Phase) -> FamilyVerdict:
    assert phase.family is not None
    assert phase.family.evidence
    assert all(phase.family.evidence)
    assert 0 < phase.family.confidence <= 1
    return phase.family


PAIRS: dict[str, tuple[str, Any]] = {
    "layers with holes": ("static-m", {0: FULL, 3: FULL}),
    "layers renumbered": ("static-m", [FULL] * 2),
    "attention sublayers": ("static-m", [FULL, replace(FULL, attention=False)] * 2),
    "mlp sublayers": ("static-m", [FULL, replace(FULL, mlp=False), FULL, FULL]),
    "both sublayers": (
        "static-m", [replace(FULL, attention=False), replace(FULL, mlp=False), FULL, FULL],
    ),
    "heads": ("static-nk-heads", [HEADS] * 4),
    "heads of some layers": ("static-nk-heads", [FULL, FULL, HEADS, HEADS]),
    "mlp": ("static-nk-mlp", [NARROW] * 4),
    "heads and mlp": ("static-nk", [replace(HEADS, f=48)] * 4),
    "cross": ("static-nk-cross", [Layer(h=32)] * 4),
    "cross with maps": ("static-nk-cross", [Layer(h=32, maps=True)] * 4),
    "low rank": ("static-k-lowrank", [LOW] * 4),
    "low rank of one role": ("static-k-lowrank", [Layer(rank={"down": 16})] * 4),
    "2:4": ("static-k-24", [Layer(sparse=ALL)] * 4),
    "2:4 of the mlp": ("static-k-24", [Layer(sparse=("gate", "up", "down"))] * 4),
    "nothing": ("unknown", FOUR),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("cpu", [False, True])
def test_the_family_is_named(name: str, tmp_path: Path, *, cpu: bool) -> None:
    want, pruned = PAIRS[name]
    setting = Setting(cpu=cpu)
    phase = compared(tmp_path, (FOUR, setting), (pruned, setting))
    assert told(phase).id == want
    rows = {r.row: r.moves_ns for r in phase.ledger or []}
    assert sum(rows[r] for r in rows if r not in ("dense", "pruned")) == pytest.approx(
        rows["pruned"]
    )


@pytest.mark.parametrize("name", [n for n, (want, _) in PAIRS.items() if want != "unknown"])
def test_the_other_way_round_is_no_pruning(name: str, tmp_path: Path) -> None:
    """A subject that has more than its baseline was not pruned."""
    phase = compared(tmp_path, PAIRS[name][1], FOUR)
    assert told(phase).id in ("outside", "unknown")


def test_two_families_at_once(tmp_path: Path) -> None:
    """Three layers, narrower MLPs: both are named, with the shares of time that they touch."""
    family = told(compared(tmp_path, FOUR, dict.fromkeys((0, 1, 3), NARROW)))
    assert set(family.id.split("+")) == {"static-m", "static-nk-mlp"}
    assert sum(p["share"] for p in family.parts) == pytest.approx(1)
    assert {p["id"] for p in family.parts} == {"static-m", "static-nk-mlp"}


def test_evidence_counts_and_names(tmp_path: Path) -> None:
    holes = told(compared(tmp_path, FOUR, {0: FULL, 3: FULL}))
    assert holes.evidence == ["2 of 4 layers removed: 1, 2"]
    renumbered = told(compared(tmp_path, FOUR, [FULL] * 2))
    assert renumbered.evidence == ["2 of 4 layers removed"]
    (line,) = told(compared(tmp_path, FOUR, [NARROW] * 4)).evidence
    assert "N of 8 gate/up and K of 4 down, down K 96 → 48" in line
    (line,) = told(compared(tmp_path, FOUR, [HEADS] * 4)).evidence
    assert "N of 12 projections and K of 4 o, v N 32 → 16" in line


OUTSIDE: dict[str, tuple[Any, str]] = {
    "another dtype": ((FOUR, Setting(dtype="c10::Half")), "fp16"),
    "another batch": ((FOUR, Setting(rows=64)), "other inputs"),
    "another attention": ((FOUR, Setting(attention="eager")), "attention runs as"),
    "a new kernel": ([Layer(added=(op("aten::index_select", [32, 64], [], [16],
                     kernels=[k(us=2, name="indexSelect")]),))] * 4, "units added"),
}  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_what_is_no_pruning_is_outside(name: str, tmp_path: Path) -> None:
    pruned, says = OUTSIDE[name]
    family = told(compared(tmp_path, FOUR, pruned))
    assert family.id == "outside"
    assert any(says in line for line in family.evidence), family.evidence


def test_heads_of_an_attention_of_separate_ops(tmp_path: Path) -> None:
    """The number of heads fell: the batch of QKᵀ and PV, never their M, N, K."""
    setting = Setting(attention="eager")
    phase = compared(tmp_path, (FOUR, setting), ([HEADS] * 4, setting))
    assert told(phase).id == "static-nk-heads"
    for group in ("qk", "pv"):
        (row,) = (g for g in phase.gemms if g.group == group)
        assert (row.axis, row.batch, row.count) == ("heads", 2, 4)
        assert row.keep == {"heads": 0.5}


@pytest.mark.parametrize(
    "broken",
    [Layer(f=48, f_down=96), Layer(f_down=48)],
    ids=["down stayed", "gate and up stayed"],
)
def test_a_broken_propagation_is_said(broken: Layer, tmp_path: Path) -> None:
    phase = compared(tmp_path, FOUR, [broken] * 4)
    family = told(phase)
    assert family.id in ("static-nk-mlp", "unknown")
    assert any("broken" in line for line in family.evidence)
    assert family.confidence < 1
    assert "broken-propagation" in [f.id for f in phase.findings]


CENSUS: dict[str, tuple[str, dict[str, Any]]] = {
    "masked": ("static-k-mask", census(0.5, 0.6)),
    "a little": ("dense", census(0.001)),
    "2:4 zeros": ("static-k-24", census(0.5, 1.0)),
    "zeros everywhere": ("static-k-mask", census(0.9, 1.0)),
    "none": ("dense", census(0.0)),
}


@pytest.mark.parametrize("name", CENSUS)
def test_zeros_are_read_from_the_weight_statistics(name: str, tmp_path: Path) -> None:
    want, of_pruned = CENSUS[name]
    run = write_pair(tmp_path / "r", decoder(FOUR), decoder(FOUR), census=of_pruned,
                     dense_census=census(0.0))  # fmt: skip
    assert told(analyze(run).report.phases["prefill"]).id == want


def test_zeros_that_the_dense_model_has_were_not_pruned(tmp_path: Path) -> None:
    run = write_pair(tmp_path / "r", decoder(FOUR), decoder(FOUR), both_census=census(0.5, 0.6))
    assert told(analyze(run).report.phases["prefill"]).id == "dense"


def test_the_verdict_does_not_read_what_the_tool_did(tmp_path: Path) -> None:
    run = write_pair(tmp_path / "r", decoder(FOUR), decoder([NARROW] * 4),
                     pruning={"method": "static-m", "sparsity": 0.5})  # fmt: skip
    assert told(analyze(run).report.phases["prefill"]).id == "static-nk-mlp"


def test_a_layer_map_gives_exact_indices(tmp_path: Path) -> None:
    run = write_pair(tmp_path / "r", decoder(FOUR), decoder([FULL] * 2), layer_map=[0, 2])
    phase = analyze(run).report.phases["prefill"]
    assert told(phase).evidence == ["2 of 4 layers removed: 1, 3"]
    assert phase.pairing is not None
    assert phase.pairing.alignment == "map"
    assert all(g.layers == [1, 3] for g in phase.gemms if g.axis == "gone")


def test_a_bare_trace_cannot_show_zeros(tmp_path: Path) -> None:
    """Same shapes on dense kernels: a dense model, or zeros that only a census would tell."""
    family = told(compared(tmp_path, FOUR, FOUR))
    assert family.id == "unknown"
    assert family.alternatives == ["dense", "static-k-24", "static-k-mask"]
    assert "which a trace does not show" in family.evidence[0]
    assert not family.parts


@pytest.mark.parametrize("of_pruned", [census(0.5, 0.6), census(0.5, 1.0)], ids=["mask", "2:4"])
def test_masked_weights_are_unknown_without_their_run(
    of_pruned: dict[str, Any], tmp_path: Path
) -> None:
    """The traces of a masked pair, away from their run.json, and beside it."""
    run = write_pair(tmp_path / "r", decoder(FOUR), decoder(FOUR), census=of_pruned,
                     dense_census=census(0.0))  # fmt: skip
    assert told(analyze(run).report.phases["prefill"]).id.startswith("static-k-")
    dense, pruned = (next((run / name).glob("*.trace.json*")) for name in ("dense", "pruned"))
    bare = analyze(pruned, baseline=dense).report.phases["trace"]
    assert told(bare).id == "unknown"


def named_stats(zeros: dict[int, float], layers: int) -> dict[str, Any]:
    """A census with the names of modules, and a share of zeros in down of some layers."""
    rows = census(0.0, layers=layers)["matrices"]
    for row in rows:
        row["name"] = f"model.layers.{row['layer']}.{row['role']}_proj"
        if row["role"] == "down":
            row["zeros"] = zeros.get(row["layer"], 0.0)
    return {"matrices": rows}


@pytest.mark.parametrize(
    ("before", "after", "want"),
    [
        ({3: 0.05}, {1: 0.05}, "static-m"),  # layer 3 is layer 1 now: its zeros were there
        ({}, {1: 0.05}, "static-k-mask+static-m"),
        ({0: 0.05}, {1: 0.05}, "static-k-mask+static-m"),  # those were of another layer
    ],
)
def test_zeros_that_were_there_before_are_no_pruning(
    before: dict[int, float], after: dict[int, float], want: str, tmp_path: Path
) -> None:
    """Layers 0 and 3 of four stay and are renumbered; a weight's zeros go with its layer."""
    folder = write_pair(
        tmp_path / "r", decoder(FOUR), decoder([FULL] * 2),
        dense_census=named_stats(before, 4), census=named_stats(after, 2),
        layer_map=[0, 3],
    )  # fmt: skip
    phase = analyze(folder).report.phases["prefill"]
    assert set(told(phase).id.split("+")) == set(want.split("+"))
    assert any(f.id == "zeros-in-dense" for f in phase.findings) == ("mask" in want)


def test_a_rank_that_explains_all_shapes_leaves_no_channels(tmp_path: Path) -> None:
    """Whatever is called up_proj and down_proj: each GEMM became two through a rank of 8. By names
    alone, N of up fell from 64 to 8 and with it nothing."""
    rank, narrow, wide = 8, 32, 64
    whole = [("mlp.up_proj", mm(n=wide, k_=narrow)), ("mlp.down_proj", mm(n=narrow, k_=wide))]
    halves = [
        ("mlp.up_proj", mm(n=rank, k_=narrow)),
        ("mlp.extra", mm(n=wide, k_=rank)),
        ("mlp.down_proj", mm(n=rank, k_=wide)),
        ("mlp.more", mm(n=narrow, k_=rank)),
    ]
    family = of_pair(tmp_path, layers(*whole), layers(*halves)).family
    assert family is not None
    assert family.id == "static-k-lowrank"
