"""Large costs that no other finding names: a weight that is copied, a role far from its bound."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunescope.analysis.pipeline import analyze
from tests.analysis.finding_cases import H, K, M, N, V, copy_, found, head, mm, report
from tests.chrome import Op, chrome, module, save, step


def test_a_weight_that_is_copied_at_every_call(tmp_path: Path) -> None:
    copied = found(head(tmp_path, copy_(1, H, V)), "weight-copied")
    assert copied is not None and copied.severity == "critical"
    # Read and written: 2 * 256 * 4096 * 2 bytes; 50 us of 80.
    assert "weight of lm_head is copied at every call: 4.2 MB moved, 50.0 µs a step" in copied.text
    assert "62 % of it" in copied.text
    assert "logits_to_keep" in str(copied.change)
    assert copied.predicted_ns == 50_000


@pytest.mark.parametrize(
    ("made", "says"),
    [(copy_(V, H, source="float"), "dtype of the GEMM"), (copy_(V, H), "layout")],
)
def test_what_would_end_the_copy(made: Op, says: str, tmp_path: Path) -> None:
    copied = found(head(tmp_path, made), "weight-copied")
    assert copied is not None and says in str(copied.change)


@pytest.mark.parametrize(("us", "is_slow"), [(5, False), (40, True)])
def test_a_role_far_from_its_bound_is_named(us: float, tmp_path: Path, *, is_slow: bool) -> None:
    """256 x 4096 x 256 in bf16 need 1.3 us on an H100, and up 8.7 of its 20."""
    parts = (module("lm_head", mm(H, V, H, us=us)), module("model.layers.0.mlp.up_proj", mm(us=20)))
    phase = analyze(save(chrome(step(0, *parts)), tmp_path / "t.json")).report.phases["trace"]
    slow = found(phase, "largest-cost")
    assert (slow is not None) == is_slow
    if slow is not None:
        takes = "lm_head takes 67 % of the step (40.0 µs)"
        assert slow.text == f"{takes}, with a roofline efficiency of 3 %"
        assert "the peaks allow 1.29 µs" in str(slow.change)


@pytest.mark.parametrize(("sparsity", "named"), [(0.5, "coverage-limited"), (0.1, "largest-cost")])
def test_a_role_that_is_untouched_is_named_once(
    sparsity: float, named: str, tmp_path: Path
) -> None:
    """lm_head takes half of the pruned step: 20 of 40 us.

    Where the promise was kept, the coverage says nothing of it.
    """
    head = module("lm_head", mm(M, N, K, us=20))
    dense, pruned = (
        chrome(step(0, module("model.layers.0.mlp.up_proj", mm(M, n, K, us=us)), head))
        for n, us in ((N, 40), (N // 2, 20))
    )
    (phase,) = report(tmp_path, dense, pruned, sparsity).phases.values()
    both = {"coverage-limited", "largest-cost"}
    assert {f.id for f in phase.findings} & both == {named}
    finding = found(phase, named)
    assert finding is not None and "lm_head" in " ".join([finding.text, *finding.evidence])
    if named == "largest-cost":
        assert finding.severity == "info"
        assert "which this pruning does not shrink" in finding.text
