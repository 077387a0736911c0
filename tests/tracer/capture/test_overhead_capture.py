"""The overhead of dynamic families in real captures of tiny-llama: which parts are there, and that
they are the ledger's, whatever the run says that it did. No time is asserted."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from prunescope.analysis.ledger.dynamic_overhead import ADDED, KEY_VALUE, WEIGHTS
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Phase
from tests.small_capture import traced_together

pytestmark = pytest.mark.torch

MADE = {
    "dynamic-m": {"router", "index building", "gather", "scatter"},
    "dynamic-nk": {"estimator", "index building", "gather"},
    "dynamic-width": {"router", "index building", "gather"},
}


def test_parts_of_a_real_capture(tmp_path: Path) -> None:
    same = {"sparsity": 0.5, "batch": 4, "prompt_len": 64}
    asked = {method: {"method": method, **same} for method in MADE}
    for method, run in traced_together(tmp_path, asked, recorded=False).items():
        phases = analyze(run).report.phases
        assert phases.keys() == {"prefill", "decode"}
        for phase in phases.values():
            assert_parts(phase, method)


def assert_parts(phase: Phase, method: str) -> None:
    found = phase.overhead
    assert found is not None, method
    parts = {part.name: part.ns for part in found.parts}
    seen = {name for name in ADDED if parts[name]} - {"copies and other work"}
    assert seen == MADE[method], method
    ledger = {row.row: row.ns for row in phase.ledger or []}
    assert sum(parts[name] or 0.0 for name in ADDED) == pytest.approx(ledger["added_work"])
    assert found.saved_ns == pytest.approx(ledger["dense"] - ledger["pruned"] + found.added_ns)
    assert found.sparsity is not None
    assert 0.2 < found.sparsity < 0.8
    assert (parts[KEY_VALUE] or 0) > 0 if method == "dynamic-m" else parts[KEY_VALUE] == 0
    assert parts[WEIGHTS] is not None
    assert msgspec.json.decode(msgspec.json.encode(found))["parts"]
    if found.break_even is not None:
        assert (found.sparsity > found.break_even) == (ledger["pruned"] < ledger["dense"])
