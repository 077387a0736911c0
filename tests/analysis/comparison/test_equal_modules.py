"""Modules that one side alone recorded: no difference of the models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import prunescope
from prunescope.analysis.report.sentences import statistic
from prunescope.analysis.schema.pair_comparison import MODULES, ROLES, OneSided
from prunescope.analysis.schema.report import Phase, Report
from tests.analysis.decoder import Layer, decoder
from tests.analysis.kernels.test_bare_roles import SEPARATE
from tests.analysis.ledger.test_what_is_known import without_shapes
from tests.analysis.timeline.test_scopes import nn, nn_layer, pytorch
from tests.chrome import chrome, k, module, op, save, step

FULL, HALF = [Layer()] * 4, [Layer(f=48)] * 4  # 96 MLP channels, and half of them


def without_modules(trace: dict[str, Any]) -> dict[str, Any]:
    """As if with_stack had been off: the steps are marked, no module is."""
    trace["traceEvents"] = [
        event
        for event in trace["traceEvents"]
        if event["cat"] != "user_annotation" or event["name"].startswith("prunescope.step#")
    ]
    return trace


def compared(tmp_path: Path, dense: Any, pruned: Any, lacking: tuple[str, ...]) -> Report:
    sides = {"dense": decoder(dense), "pruned": decoder(pruned)}
    for name in lacking:
        sides[name] = without_modules(sides[name])
    paths = {name: save(trace, tmp_path / f"{name}.json") for name, trace in sides.items()}
    return prunescope.analyze(paths["pruned"], baseline=paths["dense"])


def phase_of(report: Report) -> Phase:
    return report.phases["trace"]


def added(phase: Phase) -> float:
    return next(row.moves_ns for row in phase.ledger or [] if row.row == "added_work")


@pytest.mark.parametrize("lacking", ["dense", "pruned"])
def test_one_model_twice_is_one_model(lacking: str, tmp_path: Path) -> None:
    """Four layers on both sides: nothing is added, and no layer is gone."""
    report = compared(tmp_path, FULL, FULL, (lacking,))
    phase = phase_of(report)
    assert phase.pairing is not None and phase.comparison is not None
    pairing = phase.pairing
    assert (pairing.added, pairing.removed) == (0, 0)
    assert added(phase) == 0
    assert phase.family is not None
    assert phase.family.evidence[0].startswith("no GEMM moved and no work was added")
    assert {gemm.axis for gemm in phase.gemms} == {"none"}
    assert phase.comparison.one_sided == [OneSided(MODULES, lacking, f"{lacking}.json")]


def test_missing_shapes_of_the_other_side_are_still_said(tmp_path: Path) -> None:
    """The pruned side is read again without its modules, which the dense one lacks."""
    dense = save(without_modules(decoder(FULL)), tmp_path / "dense.json")
    pruned = save(without_shapes(decoder(FULL)), tmp_path / "pruned.json")
    phase = phase_of(prunescope.analyze(pruned, baseline=dense))
    for said in ("only one side recorded shapes", "only the pruned side recorded modules"):
        assert sum(said in note for note in phase.notes) == 1


@pytest.mark.parametrize("lacking", ["dense", "pruned"])
def test_it_is_said_with_what_it_does_to_times(lacking: str, tmp_path: Path) -> None:
    report = compared(tmp_path, FULL, FULL, (lacking,))
    phase = phase_of(report)
    other = {"dense": "pruned", "pruned": "dense"}[lacking]
    for lines in (report.warnings, phase.notes):
        (line,) = (text for text in lines if "recorded modules" in text)
        assert f"only the {other} side recorded modules, {lacking}.json has none" in line
        assert f"host and idle time of the {other} side are larger" in line
        assert "no evidence" in line
    assert f"the {other} side alone recorded modules, which slows its host" in statistic(phase)
    has_none = "no scopes of linears in the trace: roles come from the order of kernels"
    assert (has_none in phase.notes) == (lacking == "pruned")


@pytest.mark.parametrize("lacking", [("dense",), ("pruned",), ("dense", "pruned"), ()])
def test_a_pruning_reads_the_same_whoever_recorded_modules(
    lacking: tuple[str, ...], tmp_path: Path
) -> None:
    """gate and up lose half of N, down half of K: of 4 layers, 96 → 48 channels. Bytes of bf16
    with 32 rows, 64 wide: 3 × 2 × (32·64 + 32·48 + 64·48) a layer are left of an MLP."""
    phase = phase_of(compared(tmp_path, FULL, HALF, lacking))
    assert phase.family is not None and phase.family.id == "static-nk-mlp"
    assert added(phase) == 0
    axes = {gemm.role: (gemm.axis, gemm.n, gemm.k) for gemm in phase.gemms}
    assert axes["gate"] == axes["up"] == ("N", 48, 64)
    assert axes["down"] == ("K", 64, 48)
    both = phase_of(compared(tmp_path, FULL, HALF, ()))
    assert phase.sparsity == both.sparsity
    assert phase.comparison is not None
    assert len(phase.comparison.one_sided) == (len(lacking) == 1)


def linears(channels: int, layers: int = 3) -> Any:
    """An MLP of two linears a layer, and no attention, so that their order tells nothing."""

    def mm(n: int, k_in: int) -> Any:
        return op("aten::mm", [32, k_in], [k_in, n], kernels=[k(us=10, name="gemm")])

    at = "model.layers.{}.mlp.{}_proj".format
    scopes = [
        module(at(i, role), mm(*size))
        for i in range(layers)
        for role, size in (("up", (channels, 64)), ("down", (64, channels)))
    ]
    return chrome(step(0, *scopes))


@pytest.mark.parametrize("lacking", ["dense", "pruned"])
def test_products_that_no_order_tells_take_the_modules_of_their_partners(
    lacking: str, tmp_path: Path
) -> None:
    """96 → 48 channels in three layers: up loses half of N, down half of K."""
    sides = {"dense": linears(96), "pruned": linears(48)}
    sides[lacking] = without_modules(sides[lacking])
    paths = {name: save(trace, tmp_path / f"{name}.json") for name, trace in sides.items()}
    phase = phase_of(prunescope.analyze(paths["pruned"], baseline=paths["dense"]))
    assert phase.family is not None and phase.family.id == "static-nk-mlp"
    assert added(phase) == 0
    assert {gemm.role: gemm.axis for gemm in phase.gemms} == {"up": "N", "down": "K"}
    assert phase.pairing is not None and (phase.pairing.added, phase.pairing.removed) == (0, 0)


def classes(*, named: bool) -> dict[str, Any]:
    """4 blocks as PyTorch records them: of classes that tell roles, or of a class of one's own."""
    blocks = [nn_layer(i) if named else nn(f"B_{i}", *SEPARATE) for i in range(4)]
    return pytorch(chrome(nn("M_0", *blocks)))


def test_modules_that_tell_no_roles_on_one_side(tmp_path: Path) -> None:
    """Both sides recorded modules, so that neither host is slower for it."""
    a = save(classes(named=True), tmp_path / "dense.json")
    b = save(classes(named=False), tmp_path / "pruned.json")
    report = prunescope.analyze(b, baseline=a)
    phase = phase_of(report)
    assert phase.comparison is not None
    assert phase.comparison.one_sided == [OneSided(ROLES, "pruned", "pruned.json")]
    assert {gemm.axis for gemm in phase.gemms} == {"none"}
    assert any("only on the dense side do modules give roles" in note for note in phase.notes)
    assert not any("slows" in text for text in (*report.warnings, *phase.notes))
    assert "slows" not in statistic(phase)
