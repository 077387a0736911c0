"""The timelines of the page: their data, and what the script does with it in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import polars as pl
import pytest

import prunescope
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.report.explorer import MOST, timelines
from prunescope.analysis.report.html import render_html

ROOT = Path(__file__).resolve().parents[3]
PRUNED = ROOT / "traces/stories/odd-width/pruned.json.gz"
DENSE = ROOT / "traces/stories/odd-width/dense.json.gz"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def test_every_kernel_of_one_step_is_in_it() -> None:
    """Its times are whole ns that add up to the busy time, on both sides."""
    done = analyze(PRUNED, baseline=DENSE)
    ((name, phase),) = done.report.phases.items()
    frames = {"dense": done.dense_frames[name], "pruned": done.frames[name]}
    data = json.loads(timelines(phase, frames["pruned"], frames["dense"]))
    for side in data["sides"]:
        frame = frames[side["name"]]
        first = frame.filter(pl.col("step") == frame["step"].min())
        assert len(side["kernels"]) == first.height and side["left_out"] == 0
        assert sum(kernel[1] for kernel in side["kernels"]) == first["duration"].sum()
        names = {data["words"]["name"][kernel[5]] for kernel in side["kernels"]}
        assert names == set(first["name"].to_list())
    assert ["down", "matmul"] in data["rows"]["kernel_efficiency"]


def test_a_long_step_says_what_is_left_out() -> None:
    done = analyze(PRUNED)
    ((name, phase),) = done.report.phases.items()
    frame = done.frames[name]
    first = frame.filter(pl.col("step") == frame["step"].min())
    many = pl.concat([first] * (MOST // first.height + 1))
    (side,) = json.loads(timelines(phase, many, None))["sides"]
    assert len(side["kernels"]) == MOST and side["left_out"] == many.height - MOST


def test_no_name_ends_the_element_that_holds_it() -> None:
    done = analyze(PRUNED)
    ((name, phase),) = done.report.phases.items()
    frame = done.frames[name].with_columns(name=pl.lit("</script><img src=x onerror=alert(1)>"))
    text = timelines(phase, frame, None)
    assert "<" not in text and "</script>" in json.loads(text)["words"]["name"][0]
    page = render_html(done.report, {name: frame})
    assert "<img" not in page


def test_a_report_without_frames_has_no_timeline() -> None:
    page = render_html(analyze(PRUNED).report)
    assert 'data-view="timeline"' not in page


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_link_to_a_row_opens_it_and_lists_its_kernels(tmp_path: Path) -> None:
    prunescope.analyze(PRUNED, baseline=DENSE).save(tmp_path, formats="html")
    dom = subprocess.run(
        [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000",
         "--dump-dom", f"file://{tmp_path}/report.html#trace/ledger/kernel_efficiency"],
        capture_output=True, text=True, check=True, timeout=120,
    ).stdout  # fmt: skip
    (marked,) = re.findall(r'<tr[^>]*aria-selected="true"[^>]*>', dom)
    assert 'data-row="kernel_efficiency"' in marked
    chosen = dom[dom.index('class="sortable chosen"') :].partition("</table>")[0]
    assert chosen.count("<tr>") > 1 and ">down<" in chosen
