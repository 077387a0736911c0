"""The timelines of the page: their data, and a walk through the page in a browser."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import prunescope
from prunescope.analysis.pipeline import Analysis, analyze
from prunescope.analysis.report.explorer import MOST, SideTimeline, timelines
from prunescope.analysis.report.html import render_html
from tests.analysis.report.devtools import Walk, needs_chromium, walked

ROOT = Path(__file__).resolve().parents[3]
PRUNED = ROOT / "traces/stories/odd-width/pruned.json.gz"
DENSE = ROOT / "traces/stories/odd-width/dense.json.gz"
RUN = ROOT / "traces/tiny-static-nk"
FRAME_MS = 50  # the longest that a frame may take to draw, at 5,000 kernels a side


def sides_of(done: Analysis, name: str) -> list[SideTimeline]:
    """Both sides of a phase, as the page gets them."""
    held = done.held
    layers = held.dense_layers[name]
    return [
        SideTimeline("dense", held.dense[name], held.dense_host[name]),
        SideTimeline("pruned", held.pruned[name], held.pruned_host[name], layers),
    ]


def added_up(differences: list[int]) -> list[int]:
    return [sum(differences[: i + 1]) for i in range(len(differences))]


def first_step(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.filter(pl.col("step") == frame["step"].min()).sort("start")


def test_every_kernel_of_one_step_is_in_it() -> None:
    """Its times are whole ns that add up to the busy time, on both sides."""
    done = analyze(PRUNED, baseline=DENSE)
    ((name, phase),) = done.report.phases.items()
    both = sides_of(done, name)
    data = json.loads(timelines(phase, both))
    for side, sent in zip(both, data["sides"], strict=True):
        first, kernels = first_step(side.kernels), sent["kernels"]
        assert sent["left_out"] == 0 and len(kernels["start"]) == first.height
        assert sum(kernels["duration"]) == first["duration"].sum()
        starts = added_up(kernels["start"])
        assert [a - starts[0] for a in starts] == (first["start"] - first["start"][0]).to_list()
        names = {data["words"]["name"][data["groups"][group][0]] for group in kernels["group"]}
        assert names == set(first["name"].to_list())
        steps = side.kernels["step"].n_unique()
        means = {group: sum(ns) / len(ns) for group, _, *ns in sent["sums"]}
        assert sum(means.values()) == pytest.approx(side.kernels["busy"].sum() / steps)
    assert ["down", "matmul"] in data["rows"]["kernel_efficiency"]
    sizes = {words for sent in data["sides"] for words in sent["sizes"].values()}
    assert all(text.count("×") == 2 for text in sizes) and sizes


def test_a_row_is_about_the_parts_that_moved_it() -> None:
    """A part of a thousandth of the largest is rounding, and chooses no kernel."""
    done = analyze(PRUNED, baseline=DENSE)
    ((name, phase),) = done.report.phases.items()
    data = json.loads(timelines(phase, sides_of(done, name)))
    for row in phase.ledger or []:
        most = max((abs(part.ns) for part in row.parts), default=0)
        kept = [[p.role, p.cls] for p in row.parts if p.role and abs(p.ns) >= 0.01 * most]
        assert data["rows"][row.row] == kept


def test_the_host_stands_in_rows_that_do_not_overlap() -> None:
    done = analyze(PRUNED, baseline=DENSE)
    ((name, phase),) = done.report.phases.items()
    for sent in json.loads(timelines(phase, sides_of(done, name)))["sides"]:
        host = sent["host"]
        assert {text for text in host["rows"] if text} >= {"op", "launch"}
        rows: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for start, ns, row in zip(
            added_up(host["start"]), host["duration"], host["row"], strict=True
        ):
            rows[row].append((start, start + ns))
        for spans in rows.values():
            assert all(a[1] <= b[0] for a, b in pairwise(spans))


def test_layers_have_the_numbers_of_the_dense_model() -> None:
    """Of 8 layers the run kept 6 under new numbers: a layer of both sides has one number."""
    done = analyze(ROOT / "traces/tiny-static-m")
    for name, phase in done.report.phases.items():
        both = sides_of(done, name)
        data = json.loads(timelines(phase, both))
        kept = set(both[1].dense_layers.values())
        seen = {data["groups"][group][4] for group in data["sides"][1]["kernels"]["group"]}
        assert seen - {None} == kept and len(kept) < both[0].kernels["layer"].n_unique() - 1


def test_a_long_step_says_what_is_left_out() -> None:
    done = analyze(PRUNED)
    ((name, phase),) = done.report.phases.items()
    first = first_step(done.frames[name])
    many = pl.concat([first] * (MOST // first.height + 1))
    (side,) = json.loads(timelines(phase, [SideTimeline("step", many)]))["sides"]
    assert len(side["kernels"]["start"]) == MOST and side["left_out"] == many.height - MOST


def test_no_name_ends_the_element_that_holds_it() -> None:
    done = analyze(PRUNED)
    ((name, phase),) = done.report.phases.items()
    frame = done.frames[name].with_columns(name=pl.lit("</script><img src=x onerror=alert(1)>"))
    side = SideTimeline("step", frame, done.held.pruned_host[name].with_columns(name=pl.lit("<b")))
    text = timelines(phase, [side])
    assert "<" not in text and "</script>" in json.loads(text)["words"]["name"][0]
    assert "<img" not in render_html(done.report, {name: [side]})


def test_a_report_without_frames_has_no_timeline() -> None:
    page = render_html(analyze(PRUNED).report)
    assert 'data-view="timeline"' not in page


def rows_listed(walk: Walk) -> list[str]:
    """The kernels that the table under the timelines lists."""
    code = "[...document.querySelectorAll('.chosen tbody tr')].map(row => row.cells[1].textContent)"
    return list(walk.ask(code))


def marked(walk: Walk) -> list[str]:
    """The ids of what is marked as selected, kernels of the table aside."""
    code = "[...document.querySelectorAll('[id][aria-selected=true]')].map(row => row.id)"
    return list(walk.ask(code))


def errors(walk: Walk) -> list[dict[str, Any]]:
    return [one for one in walk.seen if one.get("method") == "Runtime.exceptionThrown"]


@needs_chromium
def test_a_walk_through_the_page(tmp_path: Path) -> None:
    """A row of the ledger, a kernel, a search, a filter, keys, the wheel, and a deep link."""
    prunescope.analyze(PRUNED, baseline=DENSE).save(tmp_path, formats="html")
    with walked(tmp_path / "report.html", tmp_path) as walk:
        assert marked(walk) == [] and rows_listed(walk) == []
        walk.click('a.label[href="#trace/ledger/kernel_efficiency"]')
        assert marked(walk) == ["trace/ledger/kernel_efficiency"]
        assert "down" in rows_listed(walk)
        assert walk.ask("document.querySelectorAll('.chosen tr[aria-selected=true]').length") > 0

        # A kernel of the canvas: its role and class are chosen, and the address says so.
        walk.ask("document.querySelector('[data-do=align]').click()")
        x, y = walk.place(".lanes canvas")
        rows = walk.ask("document.querySelector('.lanes canvas').height")
        walk.click_at(x, y + rows / 2 - 25)
        assert walk.ask("location.hash").startswith("#trace/part/") and len(rows_listed(walk)) >= 1

        walk.click("input[type=search]")
        walk.send("Input.insertText", text="cublas")
        walk.frame()
        names = "[...document.querySelectorAll('.chosen tbody tr')].map(r => r.textContent)"
        texts = walk.ask(names)
        assert texts and all("cublas" in text for text in texts)
        walk.click("[data-do=clear]")
        assert rows_listed(walk) == []

        walk.ask("""(() => { const role = document.querySelector('[data-by=role]');
            role.value = [...role.options].find(o => o.textContent === 'down').value;
            role.dispatchEvent(new Event('change')) })()""")
        assert set(rows_listed(walk)) == {"down"}

        picture = "document.querySelector('.lanes canvas').toDataURL()"
        seen = [walk.ask(picture)]
        walk.wheel(*walk.place(".lanes canvas"), by=-400)
        walk.frame()
        seen.append(walk.ask(picture))
        walk.ask("document.querySelector('.lanes canvas').focus()")
        for key in ("ArrowRight", "0"):
            walk.key(key)
            seen.append(walk.ask(picture))
        assert all(before != after for before, after in pairwise(seen))

        walk.click(".map td a")
        assert walk.ask("location.hash").startswith("#trace/cell/")
        walk.click(".findings a.severity")
        (finding,) = marked(walk)
        assert finding.startswith("trace/finding/")
        walk.ask("location.hash = 'trace/ledger/coverage'")
        walk.frame()
        assert marked(walk) == ["trace/ledger/coverage"] and len(rows_listed(walk)) > 1
        assert errors(walk) == []


@needs_chromium
def test_the_kernels_that_are_chosen_are_counted(tmp_path: Path) -> None:
    """Names are rows of the list: the count above it is that of calls, as above the timelines."""
    prunescope.analyze(PRUNED, baseline=DENSE).save(tmp_path, formats="html")
    with walked(tmp_path / "report.html", tmp_path) as walk:
        labels = "[...document.querySelectorAll('.lanes .note')].map(e => e.textContent)"
        kernels = [text.split()[1] for text in walk.ask(labels)]
        walk.click('a.label[href="#trace/ledger/dense"]')
        said = walk.ask("document.querySelector('.count').textContent")
        rows = len(rows_listed(walk))
        assert said.startswith(f"Kernels: {' → '.join(kernels)}, in {rows} rows: ")


@needs_chromium
def test_a_link_to_nothing_chooses_nothing(tmp_path: Path) -> None:
    prunescope.analyze(PRUNED, baseline=DENSE).save(tmp_path, formats="html")
    with walked(tmp_path / "report.html", tmp_path) as walk:
        for place in ("trace/ledger/constructor", "trace/finding/toString", "constructor/a/b",
                      "__proto__/x", "trace/ledger/%E0%A4%A"):  # fmt: skip
            walk.ask(f"location.hash = '{place}'")
            walk.frame()
            assert (marked(walk), rows_listed(walk)) == ([], []), place
        assert errors(walk) == []


@needs_chromium
def test_keys_of_the_browser_are_left_to_it(tmp_path: Path) -> None:
    """Ctrl+F finds and Alt+← goes back, also where a timeline has the focus."""
    prunescope.analyze(PRUNED, baseline=DENSE).save(tmp_path, formats="html")
    with walked(tmp_path / "report.html", tmp_path) as walk:
        held = ("f", "ctrlKey"), ("ArrowLeft", "altKey"), ("0", "metaKey"), ("f", "shiftKey")
        for key, with_key in held:
            options = f"{{key: '{key}', {with_key}: true, bubbles: true, cancelable: true}}"
            press = f"dispatchEvent(new KeyboardEvent('keydown', {options}))"
            assert walk.ask(f"!document.querySelector('.lanes canvas').{press}") is (
                with_key == "shiftKey"
            )


@needs_chromium
def test_a_command_is_copied_as_it_stands(tmp_path: Path) -> None:
    """From a file there may be no clipboard: then the command is marked, and copied so."""
    prunescope.analyze(RUN).save(tmp_path, formats="html")
    with walked(tmp_path / "report.html", tmp_path) as walk:
        walk.ask("""Object.defineProperty(navigator, "clipboard", {value: {writeText: text => {
            window.copied = text; return Promise.resolve(); }}})""")
        command = walk.ask("document.querySelector('.command code').textContent")
        walk.click(".command .copy")
        walk.frame()
        assert command.startswith("prunescope ") and walk.ask("window.copied") == command
        assert walk.ask("document.querySelector('.command .copy').textContent") == "copied"
        assert walk.ask("getSelection().toString()") == command


@needs_chromium
def test_each_key_of_a_legend_has_a_colour(tmp_path: Path) -> None:
    prunescope.analyze(PRUNED, baseline=DENSE).save(tmp_path, formats="html")
    with walked(tmp_path / "report.html", tmp_path) as walk:
        colours = walk.ask("[...document.querySelectorAll('.roles .key')]"
                           ".map(e => getComputedStyle(e).backgroundColor)")  # fmt: skip
        assert len(set(colours)) == 2 and "rgba(0, 0, 0, 0)" not in colours
        assert "Full colour: " in walk.ask("document.querySelector('.roles .note').textContent")


@needs_chromium
def test_two_fingers_zoom_and_one_pans_on_a_telephone(tmp_path: Path) -> None:
    prunescope.analyze(PRUNED, baseline=DENSE).save(tmp_path, formats="html")
    picture = "document.querySelector('.lanes canvas').toDataURL()"
    with walked(tmp_path / "report.html", tmp_path, size=(390, 844)) as walk:
        assert walk.ask("document.documentElement.scrollWidth") == 390
        x, y = walk.place(".lanes canvas")
        seen = [walk.ask(picture)]
        for spread in (20, 60, 100):
            points = [{"x": x - spread, "y": y, "id": 1}, {"x": x + spread, "y": y, "id": 2}]
            kind = "touchStart" if spread == 20 else "touchMove"
            walk.send("Input.dispatchTouchEvent", type=kind, touchPoints=points)
        walk.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        walk.frame()
        seen.append(walk.ask(picture))
        for kind, by in (("touchStart", 0), ("touchMove", 30), ("touchMove", 60)):
            points = [{"x": x - by, "y": y, "id": 1}]
            walk.send("Input.dispatchTouchEvent", type=kind, touchPoints=points)
        walk.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        walk.frame()
        seen.append(walk.ask(picture))
        assert len(set(seen)) == 3 and errors(walk) == []


@needs_chromium
@pytest.mark.parametrize("kernels", [5_000, pytest.param(60_000, marks=pytest.mark.slow)])
def test_frames_take_no_longer_than_a_reader_notices(kernels: int, tmp_path: Path) -> None:
    """Nine of ten frames of a zoom into both sides, and of a pan; more by levels of detail."""
    done = analyze(PRUNED, baseline=DENSE)
    ((name, phase),) = done.report.phases.items()
    both = [
        SideTimeline(side.name, lengthened(first_step(side.kernels), kernels), side.host)
        for side in sides_of(done, name)
    ]
    (tmp_path / "report.html").write_text(render_html(done.report, {name: both}))
    with walked(tmp_path / "report.html", tmp_path) as walk:
        x, y = walk.place(".lanes canvas")
        walk.ask("performance.clearMeasures()")
        for by in [-120] * 12 + [120] * 12:
            walk.wheel(x, y, by=by)
            walk.frame()
        walk.ask("document.querySelector('.lanes canvas').focus()")
        for key in ("ArrowRight",) * 6:
            walk.key(key)
        took = walk.ask("performance.getEntriesByName('prunescope-frame').map(e => e.duration)")
        assert len(took) >= 20
        assert sorted(took)[9 * len(took) // 10] <= FRAME_MS, sorted(took)
        assert errors(walk) == []


def lengthened(step: pl.DataFrame, kernels: int) -> pl.DataFrame:
    """A step repeated until it has as many kernels, one repetition behind the other."""
    long = (step["start"] + step["duration"]).max() - step["start"].min()  # type: ignore[operator]
    times = -(-kernels // step.height)
    moved = ["start", "launched"]
    parts = [step.with_columns(pl.col(moved) + i * long) for i in range(times)]
    return pl.concat(parts).head(kernels)
