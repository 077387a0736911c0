"""A recovered run in a bundle: its record and losses, and the table that verify rebuilds."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.bundle import bundle as bundling
from prunescope.analysis.bundle.archive import zip_bytes
from prunescope.analysis.bundle.bundle import SUMS, sums_text
from prunescope.analysis.bundle.verify import verify
from prunescope.analysis.pareto.pareto import judge
from prunescope.tracer.sweep.sweep import sweep
from tests.hostile.case import TEXT_FORMATS
from tests.tracer.recovery.test_recovered_sweep import asked

__all__ = ["asked"]
pytestmark = [pytest.mark.torch, pytest.mark.four_layers]


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_frontier_is_rebuilt_from_the_bundle(
    asked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundling, "FORMATS", TEXT_FORMATS)  # figures take seconds
    request = asked("s", families=["static-m", "static-nk-mlp"], phases=["prefill"])
    sweep(request)
    for anonymous in (True, False):
        out = bundling.bundle([request.out], tmp_path / f"b{anonymous}.zip", anonymous=anonymous)
        assert verify(out)["ok"]
        files = members(out)
        assert_table(request.out, files)
    assert_forgeries_are_seen(files, tmp_path / "forged.zip")


def assert_table(swept: Path, files: dict[str, bytes]) -> None:
    rows = list(csv.DictReader(io.StringIO(files["frontier.csv"].decode())))
    points = {p.family: p for p in judge(swept).phases["prefill"].points}
    assert {row["family"] for row in rows} == set(points)
    for row in rows:
        loss = points[row["family"]].loss
        assert loss is not None and loss.other_text is not None
        assert float(row["perplexity_rel_recovered"]) == loss.perplexity_rel_recovered
        assert float(row["other_text"]) == loss.other_text.perplexity_rel
        assert float(row["speedup"]) == pytest.approx(points[row["family"]].realised, rel=1e-6)
        assert row["timing_valid"] == ("yes" if points[row["family"]].timing_valid else "no")
        assert row["on_frontier"] == ("yes" if points[row["family"]].on_frontier else "no")
        assert row["steps"] == "8"
    manifests = [n for n in files if n.endswith("pruned/run.json")]
    record = json.loads(files[manifests[0]])["pruning"]["recovery"]
    assert len(record["weights_sha256"]) == len(record["train_sha256"]) == 64
    assert record["losses"]["held_out"]["after"] < record["losses"]["held_out"]["before"]


def assert_forgeries_are_seen(files: dict[str, bytes], forged: Path) -> None:
    # The rule of the frontier is that of the version that wrote the table; its numbers are not.
    older = {
        **files,
        "bundle.json": files["bundle.json"].replace(b'"prunescope ', b'"prunescope 9'),
    }
    for change, ok in (((b",yes\n", b",no\n"), True), ((b",8,", b",9,"), False)):
        moved = {**older, "frontier.csv": files["frontier.csv"].replace(*change)}
        moved[SUMS] = sums_text(moved).encode()
        forged.write_bytes(zip_bytes(moved))
        assert ("frontier.csv" not in {f["file"] for f in verify(forged)["failed"]}) is ok
    # A number of the table that is changed, and the sums with it, is seen.
    files["frontier.csv"] = files["frontier.csv"].replace(b",8,", b",9,")
    files[SUMS] = sums_text(files).encode()
    forged.write_bytes(zip_bytes(files))
    assert [f["file"] for f in verify(forged)["failed"]] == ["frontier.csv"]
