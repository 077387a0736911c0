"""Work beside an attention that stays as it was, and attention whose keys nobody counted."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from prunescope.analysis.inputs.options import Options
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Phase
from tests.analysis.finding_cases import BF16, found, layers, mm, of_pair, sdpa
from tests.chrome import k, op

STORY = Path(__file__).resolve().parents[3] / "traces" / "stories" / "nsys" / "dense.sqlite"
_KERNELS = """select k.rowid, k.start, k.end, s.value from CUPTI_ACTIVITY_KIND_KERNEL k
    join StringIds s on s.id = k.demangledName order by k.start"""
_MOVED = "update CUPTI_ACTIVITY_KIND_KERNEL set start = ?, end = ? where rowid = ?"
SCORES = [16, 512, 512]
RANKING = [
    op("aten::bmm", [16, 512, 64], [16, 64, 512], dtype=BF16,
       kernels=[k(us=30, name="a_gemm_kernel")]),
    op("aten::_softmax", SCORES, [], [], dtype=BF16,
       kernels=[k(us=40, name="softmax_warp_forward")]),
    op("aten::sum", SCORES, [], [], dtype=BF16, kernels=[k(us=20, name="reduce_kernel")]),
]  # fmt: skip


def rows_of(phase: Phase) -> dict[str, float | None]:
    return {row.row: row.ns for row in phase.ledger or []}


def test_scores_beside_a_fused_attention_are_added_work(tmp_path: Path) -> None:
    """Two layers of attention (100 us) and q (50 us); a ranking of keys adds 30 + 40 + 20 us to
    each: 180 us of added work, and nothing else moves."""
    dense = layers(("self_attn", [sdpa(100)]), ("self_attn.q_proj", mm(us=50)))
    ranked = layers(("self_attn", [sdpa(100), *RANKING]), ("self_attn.q_proj", mm(us=50)))
    phase = of_pair(tmp_path, dense, ranked)
    rows = rows_of(phase)
    assert rows["added_work"] == pytest.approx(180_000)
    for row in ("coverage", "roofline_shift", "kernel_efficiency"):
        assert not rows[row], row
    added = found(phase, "added-work")
    assert added is not None and "an estimate that several layers share" in str(added.change)
    assert "no gain is to be expected" not in phase.summary


def test_a_shorter_attention_without_shapes_is_not_said_to_be_faster(tmp_path: Path) -> None:
    """Every attention of an export takes half of its time, as it does with half of the keys."""
    path = Path(shutil.copy(STORY, tmp_path / "evicted.sqlite"))
    path.chmod(0o644)
    with sqlite3.connect(path) as file:
        earlier = 0  # ns by which what follows begins earlier
        for row, start, end, name in file.execute(_KERNELS).fetchall():
            saved = (end - start) // 2 if "flash" in name else 0
            file.execute(_MOVED, (start - earlier, end - earlier - saved, row))
            earlier += saved
    phase = analyze(path, baseline=STORY, options=Options(model="qwen2.5-0.5b")).report.phases[
        "trace"
    ]
    for text in (phase.summary, getattr(found(phase, "above-bound"), "text", "")):
        assert "faster kernels" not in text and "shapes did not move" not in text
    attention = next(row for row in phase.ledger or [] if row.row == "kernel_efficiency")
    assert attention.ns is not None and attention.ns < 0
    assert phase.is_mostly_of_unknown_keys(attention)
    assert "as with key eviction" in phase.summary
