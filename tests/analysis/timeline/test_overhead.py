"""Where the records of a step lie: counted by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from prunescope.analysis.timeline.link import link
from prunescope.analysis.timeline.overhead import SPAN, profiler_notes, weigh_records
from prunescope.analysis.timeline.step_windows import find_windows
from prunescope.analysis.trace.load import load
from prunescope.analysis.wording.sentence import sentence
from tests.chrome import chrome, gap, k, module, op, save, step


def view() -> object:
    return op("aten::view", [4, 4], us=1)


def test_every_record_lies_in_the_part_around_it(tmp_path: Path) -> None:
    """Two steps alike. In each: a span, a wrapper and addmm before the outermost row; in addmm a
    view, copy_ and one view more; in copy_ a view; before relu a span and relu; at the end a view.
    """
    copy = op("aten::copy_", [4, 4], [4, 4], us=2, inner=[view()])
    addmm = op("aten::addmm", [4], [4, 4], [4, 4], us=9, inner=[view(), copy, view()])
    mlp = module("model.layers.0.mlp", op("aten::linear", [4, 4], [4, 4], inner=[addmm], us=1))
    act = module("model.layers.0.act", gap(us=1), op("aten::relu", [4, 4], us=3))
    items = mlp, gap(us=5), act, gap(us=5), view(), gap(us=1)
    trace = load(save(chrome(step(0, *items), step(1, *items), cpu=True), tmp_path / "t.json"))
    windows = find_windows(trace)
    linked = link(trace, windows)
    names = [trace.names[i] for i in trace.ops["name"][linked.op]]
    assert names == ["aten::addmm", "aten::copy_", "aten::relu"] * 2
    weights = weigh_records(trace, linked, windows)
    assert weights.inside.tolist() == [3, 1, 0] * 2
    assert weights.before.tolist() == [SPAN + 2, 0, SPAN + 1] * 2
    assert weights.after.tolist() == [1, 1]
    marks = len(trace.annotations["ts"]) - len(windows)
    everything = len(trace.ops["ts"]) + SPAN * marks
    assert np.concatenate([weights.inside, weights.before, weights.after]).sum() == everything


def test_the_rows_of_a_device_are_not_slowed(tmp_path: Path) -> None:
    mm = op("aten::mm", [4, 5], [5, 6], us=9, kernels=[k(us=7)])
    trace = load(save(chrome(step(0, module("model.layers.0.mlp", mm))), tmp_path / "t.json"))
    windows = find_windows(trace)
    weights = weigh_records(trace, link(trace, windows), windows)
    assert not weights.inside.any()
    assert not weights.before.any()
    assert weights.after.tolist() == [0]


def test_the_profilers_own_work_while_the_device_idles_is_named(tmp_path: Path) -> None:
    """In the middle of each pause of the device between two kernels a flush of 2 µs, and code that
    the driver loads."""
    product = op("aten::mm", [4, 5], [5, 6], us=9, kernels=[k(us=7)])
    trace = chrome(step(0, product, gap(us=50), product))
    kernels = [event for event in trace["traceEvents"] if event.get("cat") == "kernel"]
    begin, end = kernels[0]["ts"] + kernels[0]["dur"], kernels[1]["ts"]
    flush = {"ph": "X", "cat": "overhead", "pid": -1, "tid": 0, "ts": (begin + end) / 2, "dur": 2}
    for name in ("Buffer Flush", "Lazy Function Loading"):
        trace["traceEvents"].append({**flush, "name": name})
    loaded = load(save(trace, tmp_path / "t.json"))
    assert [*map(sentence, profiler_notes(loaded, link(loaded, find_windows(loaded))))] == [
        "while the device idled in the steps, the profiler did work of its own (Buffer Flush "
        "2.0 µs): it may have caused a part of that idle time, which a run without a profiler "
        "does not have"
    ]
