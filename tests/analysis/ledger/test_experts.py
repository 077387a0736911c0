"""GEMMs of experts: by the shape of their weights, however a router sends tokens about."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunescope.analysis.inputs.options import Options
from prunescope.analysis.ops.work import work_of
from prunescope.analysis.pipeline import Analysis, analyze
from prunescope.analysis.report.gemm_table import gemm_table
from prunescope.analysis.report.ledger_view import shown_bounds
from prunescope.analysis.schema.report import GemmRow, Phase
from prunescope.analysis.trace.load import load
from tests.analysis.mixture import F, H, V, copied, layer, mixture, mm, on_all_tokens
from tests.chrome import chrome, k, module, op, save, step


def compared(
    dense: list[tuple[int, ...]], pruned: list[tuple[int, ...]], path: Path, width: int = F
) -> Analysis:
    """Dense layers, and pruned ones whose experts are `width` wide."""
    traces = []
    for name, layers, wide in (("dense", dense, F), ("pruned", pruned, width)):
        traces.append(save(mixture(*layers, width=wide), path / f"{name}.json"))
    return analyze(traces[1], baseline=traces[0])


def rows_of(phase: Phase) -> list[GemmRow]:
    rows = [g for g in phase.gemms if g.role == "experts"]
    return sorted(rows, key=lambda g: g.k or 0)


def only(analysis: Analysis) -> Phase:
    return next(iter(analysis.report.phases.values()))


def test_an_expert_pruned_model_has_two_rows(tmp_path: Path) -> None:
    """Of four experts two are left; the same 16 rows go to them. Gate and up are one row."""
    phase = only(compared([(3, 0, 5, 8), (4, 4, 4, 4)], [(7, 9), (8, 8)], tmp_path))
    up, down = rows_of(phase)
    for row, per_expert in ((up, 2), (down, 1)):
        assert (row.axis, row.keep) == ("G", {"groups": 0.5})
        assert (row.count, row.dense_count) == (4 * per_expert, 8 * per_expert)
        # Three and four of the dense experts saw tokens, and both of the pruned ones: 32 rows of
        # seven, and of four.
        assert (row.dense_groups, row.groups) == (3.5, 2)
        assert (row.m, row.dense_m, row.m_min, row.m_max) == (8, 5, 7, 9)
    assert (up.n, up.k, down.n, down.k) == (F, H, H, F)
    assert (up.group, down.group) == ("gate_up", "down")
    assert phase.family is not None
    assert (phase.family.id, phase.family.confidence) == ("static-experts", 0.9)
    # Nothing multiplies less: 2·16·F·H·3 a layer on both sides.
    assert phase.sparsity is not None
    assert phase.sparsity["flop"] == pytest.approx(0, abs=0.01)


def test_experts_that_see_other_tokens_did_not_move(tmp_path: Path) -> None:
    """The same experts, other rows, and one that is hit on one side alone."""
    phase = only(compared([(3, 0, 5, 8)], [(6, 2, 1, 7)], tmp_path))
    assert [(row.axis, row.keep) for row in rows_of(phase)] == [("none", {})] * 2


def test_narrower_experts_moved_along_their_widths(tmp_path: Path) -> None:
    phase = only(compared([(3, 0, 5, 8)], [(6, 2, 1, 7)], tmp_path, width=48))
    assert [(row.axis, row.keep) for row in rows_of(phase)] == [
        ("K", {"k": 0.5}),
        ("N", {"n": 0.5}),
    ]


def test_fewer_experts_a_token_see_fewer_rows(tmp_path: Path) -> None:
    phase = only(compared([(4, 4, 4, 4)], [(2, 2, 2, 2)], tmp_path))
    assert [(row.axis, row.keep) for row in rows_of(phase)] == [("M", {"m": 0.5})] * 2
    kept = gemm_table(phase)
    assert "50 %" in str(kept)


def test_a_grouped_gemm_has_the_groups_of_its_weights(tmp_path: Path) -> None:
    """16 rows over 8 experts; of 4 rows at most 4 experts' weights are read."""
    for tokens, read in ((16, 8), (4, 4)):
        grouped = op("aten::_grouped_mm", [tokens, H], [8, H, F], [8],
                     dtypes=["c10::BFloat16", "c10::BFloat16", "int"],
                     kernels=[k(us=3, name="grouped_gemm")])  # fmt: skip
        trace = chrome(step(0, module("model.layers.0.mlp.experts", grouped)))
        (row,) = only(analyze(save(trace, tmp_path / "t.json"))).gemms
        assert (row.groups, row.m, row.n, row.k) == (read, tokens, F, H)
        assert row.bytes == 2 * (tokens * H + read * H * F + tokens * F)


def test_the_table_says_how_many_experts_ran(tmp_path: Path) -> None:
    phase = only(compared([(3, 0, 5, 8)], [(7, 9)], tmp_path))
    notes = gemm_table(phase).notes
    assert f"experts {F}×{H}: 3→2 a layer and step, pruned M 7 to 9" in notes
    assert "G: fewer groups, which are experts, each as wide as before" in notes


def test_fewer_experts_that_do_as_much_are_not_untouched(tmp_path: Path) -> None:
    """Experts that copy their matrices for each token do and read as much with 8 as with 16: the
    pruning touched them all the same, and no family that cuts experts is to be added to it."""
    traces = [save(copied(n, 6), tmp_path / f"{n}.json") for n in (8, 16)]
    phase = only(analyze(traces[0], baseline=traces[1], options=Options(sparsity=0.5)))
    assert phase.family is not None
    assert phase.family.id == "static-experts"
    coverage = next(row for row in phase.ledger or [] if row.row == "coverage")
    names = {part.name for part in coverage.parts if part.role == "experts"}
    assert names == {"as much work: experts (matmul)", "as much work: experts (gather_scatter)"}
    by_id = {finding.id: finding for finding in phase.findings}
    limited = by_id["coverage-limited"].change or ""
    assert "each token goes to as many experts as before" in limited
    assert not any("touches experts" in (finding.change or "") for finding in phase.findings)


@pytest.mark.parametrize("named", [True, False])
def test_parameters_by_the_weights_of_a_trace(named: bool, tmp_path: Path) -> None:
    """No run lists them: q, k, v, o of 64 x 64, a router of 8 or 4 rows of 64, and gate, up and
    down of every expert, whether or not it got a token."""
    sides = ((8, 8, *[0] * 6), (8, 8, 0, 0))
    traces = [
        save(mixture(experts, experts, named=named), tmp_path / f"{len(experts)}.json")
        for experts in sides
    ]
    phase = only(analyze(traces[1], baseline=traces[0]))
    dense, pruned = (4 * H * H + n * H + n * 3 * F * H for n in (8, 4))
    assert phase.ladder is not None
    assert phase.ladder.parameters == pytest.approx(dense / pruned)
    assert phase.ladder.parameters_of == "gemms"  # embeddings and norms are not among them
    assert shown_bounds(phase.ladder)["parameters"][0] == "parameters in GEMMs"


def test_the_rows_of_linears_are_not_those_of_an_expert(tmp_path: Path) -> None:
    """Most GEMMs are of experts with 2 of 8 tokens; q, k, v and o see all of them."""
    head = module("lm_head", mm(8, V, H))
    trace = chrome(step(0, *layer(0, (2,) * 8), *layer(1, (2,) * 8), head))
    kind = only(analyze(save(trace, tmp_path / "t.json"))).phase_kind
    assert kind is not None
    assert "M of the linears is 8" in kind["evidence"]


def test_copies_of_experts_follow_the_rows(tmp_path: Path) -> None:
    """Half of the experts a token is half of the copies, which no op of a trace tells but the
    product behind them: of 34 us only those of the two routers, 6 us, stay: 34/(28/2 + 6)."""
    traces = [save(copied(8, 6, n), tmp_path / f"{n}.json") for n in (2, 4)]
    phase = only(analyze(traces[0], baseline=traces[1], options=Options(sparsity=0.5)))
    assert phase.ladder is not None
    assert phase.ladder.coverage == pytest.approx(34 / 20)
    coverage = next(row for row in phase.ledger or [] if row.row == "coverage")
    assert "experts" not in {part.role for part in coverage.parts}


def test_copies_of_a_stack_are_as_many_as_its_view(tmp_path: Path) -> None:
    """6 copies of 32 x 16 numbers of 4 bytes, read and written."""
    stack = [8, 32, 16]
    view = op("aten::as_strided", stack, [], [], us=0, dtypes=["float", "ScalarList", "ScalarList"],
              concrete=["", "[6, 32, 16]", "[0, 16, 1]"])  # fmt: skip
    index = op("aten::index", stack, [], dtypes=["float", ""], inner=[view], us=5)
    trace = load(save(chrome(index, cpu=True), tmp_path / "t.json"))
    works = [work for call in trace.calls if call.result and (work := work_of(call)) is not None]
    assert [work.bytes for work in works] == [2 * 6 * 32 * 16 * 4]


def test_one_product_of_all_experts_is_along_their_number(tmp_path: Path) -> None:
    """Each expert sees all 12 tokens with 8 experts and with 4: what halved is the groups."""
    traces = [save(on_all_tokens(n, 12), tmp_path / f"{n}.json") for n in (4, 8)]
    phase = only(analyze(traces[0], baseline=traces[1], options=Options(sparsity=0.5)))
    assert phase.family is not None
    assert phase.family.id == "static-experts"
    kept = [(row.axis, row.keep, row.dense_batch, row.batch) for row in rows_of(phase)]
    assert kept == [("G", {"groups": 0.5}, 8, 4)] * 2
    (text,) = [finding.text for finding in phase.findings if finding.id == "experts-on-all-tokens"]
    assert "every token by all 4 experts of a layer, 8 before" in text
    # Copies for the experts of a token are no product of all experts.
    for experts, tokens, each in ((8, 6, 2), (4, 1, 4)):  # one token that takes all: as many
        trace = save(copied(experts, tokens, each), tmp_path / "copied.json")
        phase = only(analyze(trace))
        assert "experts-on-all-tokens" not in {finding.id for finding in phase.findings}
