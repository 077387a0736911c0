"""Figures for print of the commands that compare nothing: their width, caption and type."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

import prunescope
from prunescope.analysis.history.series import series_of
from prunescope.cli import app
from prunescope.results.allocation_plan import AllocationPlan
from prunescope.results.history import History
from prunescope.results.replayed import Replayed
from prunescope.results.result import Result
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.replays import ReplayDevice, ReplayPeaks, Replays, StepCurve
from tests.analysis.history.test_series import line
from tests.analysis.report.test_legends import plan

_POINTS = 178 / 25.4 * 72


def history(count: int = 1) -> History:
    lines = [line(x, ns, device=f"gpu{i}") for i in range(count) for x, ns in (("a", 1), ("b", 2))]
    return History(series=series_of(lines))


def replayed(count: int = 1) -> Replayed:
    curve = StepCurve(axis="N", m=64, k=64, dtype="fp32", sizes=[8, 16, 24, 32], ns=[1, 2, 3, 4])
    device = ReplayDevice(name="cpu_1", threads=2)
    return Replayed(Replays(device=device, peaks=ReplayPeaks(), curves=[curve] * count, repeats=7))


RESULTS: dict[str, Callable[[], Result]] = {
    "history": history,
    "gemms": replayed,
    "reproduction": prunescope.reproduce,
    "plan": lambda: AllocationPlan.of(plan()),
}


@pytest.mark.parametrize("stem", RESULTS)
def test_each_draws_at_a_width_with_a_caption_and_a_label(stem: str, tmp_path: Path) -> None:
    result = RESULTS[stem]()
    look = {"width": "page", "font": "serif", "label_prefix": "a"}
    result.save(tmp_path, ["pdf", "tex"], **look)  # type: ignore[attr-defined]
    pdf = (tmp_path / f"{stem}.pdf").read_bytes()
    box = re.search(rb"/MediaBox\s*\[\s*0 0 ([\d.]+) ", pdf)
    assert box is not None and float(box[1]) == pytest.approx(_POINTS, abs=0.5)
    assert b"/Type3" not in pdf and b"STIX" in pdf and b"/Subject" in pdf
    text = (tmp_path / f"figure-{stem}.tex").read_text()
    assert f"\\prunescopedraw{{figure*}}{{{stem}}}" in text
    assert re.search(rf"\\caption{{.{{60,}}}}\\label{{fig:a-{stem}}}", text)


@pytest.mark.parametrize(("make", "stem"), [(history, "history"), (replayed, "gemms")])
def test_what_does_not_fit_on_a_page_has_several(
    make: Callable[[int], History | Replayed], stem: str, tmp_path: Path
) -> None:
    """Four panels a figure; the fifth was left out without a word."""
    make(5).save(tmp_path, ["png", "tex"])
    names = {path.name for path in tmp_path.iterdir()}
    assert {f"{stem}.png", f"{stem}-2.png", f"figure-{stem}-2.tex"} <= names


def test_a_plan_has_its_numbers_beside_its_picture(tmp_path: Path) -> None:
    AllocationPlan.of(plan()).save(tmp_path, "csv")
    rows = (tmp_path / "plan.csv").read_text().splitlines()
    assert len(rows) == 4 and rows[0].startswith('"layer","dropped","kv_heads"')


def test_a_width_that_nothing_fits_into_is_refused_before_anything_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("it was timed")

    monkeypatch.setattr(Replayed, "compute", never)
    command = ["gemm", "--m", "8", "--n", "8", "--k", "8", "--out", str(tmp_path)]
    for more in (["--width", "3"], ["--format", "gif"]):
        done = CliRunner().invoke(app, [*command, *more])
        assert isinstance(done.exception, PrunescopeError) and repr(more[1]) in str(done.exception)


def test_the_command_passes_its_options_on(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    lines = [line(name, ns) for name, ns in (("a", 10), ("b", 11))]
    file.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    more = ["--format", "tex,pdf", "--width", "121", "--label-prefix", "x"]
    done = CliRunner().invoke(app, ["history", str(file), "--out", str(tmp_path / "o"), *more])
    assert done.exit_code == 0, done.output
    assert "fig:x-history" in (tmp_path / "o" / "figure-history.tex").read_text()
