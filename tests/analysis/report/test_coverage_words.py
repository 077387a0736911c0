"""The coverage line: what it names, and what is too small to be named."""

from __future__ import annotations

import msgspec
import pytest

from prunescope.analysis.report.sentences import coverage
from tests.analysis.report import example


@pytest.mark.parametrize(("kind", "named"), [(0.998, True), (0.9996, False), (1 - 4e-6, False)])
def test_a_kernel_without_a_kind_is_named_where_its_share_is_seen(kind: float, named: bool) -> None:
    """0.04 % reads as 0.0 %: then 100.0 % has a kind, and nothing is without one."""
    phase = example.two_phases().phases["prefill"]
    assert phase.unknown_kernels
    phase = msgspec.structs.replace(phase, coverage={**phase.coverage, "kind": kind})
    assert ("largest without a kind: " in coverage(phase)) == named
