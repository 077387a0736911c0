"""What stays of counters in a trimmed trace, and that times may be texts."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.bundle.trim import trim
from prunescope.analysis.inputs.options import Options
from prunescope.analysis.pipeline import analyze
from tests.chrome import chrome, k, op, save, step


def sampled() -> dict[str, Any]:
    """One kernel of 8 us; samples 1 and 5 us after it begins, and a second before all events."""
    product = op("aten::mm", [64, 32], [32, 48], kernels=[k(us=8, name="ampere_sgemm_128x64_tn")])
    trace = chrome(step(0, product))
    begin = next(e["ts"] for e in trace["traceEvents"] if e.get("cat") == "kernel")
    for after in (-1_000_000, 1, 5):
        for name, value in (("fred's SM Active %", 40 + after), ("rack 7 power (mW)", 3e5 + after),
                            ("DRAM Read %", 30), ("fan", 9)):  # fmt: skip
            trace["traceEvents"].append({"ph": "C", "name": name, "pid": 0, "ts": begin + after,
                                         "args": {"value": value}})  # fmt: skip
    return trace


def test_counters_of_the_kept_span_stay_under_plain_names(tmp_path: Path) -> None:
    path = save(sampled(), tmp_path / "t.json")
    data = trim(path)
    events = json.loads(gzip.decompress(data))["traceEvents"]
    counters = [event for event in events if event["ph"] == "C"]
    assert {event["name"] for event in counters} == {"SM Active [%]", "Power [W]", "DRAM Read [%]"}
    assert [e["args"]["value"] for e in counters if e["name"] == "Power [W]"] == [
        pytest.approx(300.001),
        300.005,
    ]
    (tmp_path / "trimmed.json.gz").write_bytes(data)
    options = Options(bandwidth=10)
    left, whole = (
        analyze(tmp_path / name, options=options).report.phases["trace"].notes
        for name in ("trimmed.json.gz", "t.json")
    )
    assert left == whole
    assert any(text.startswith("counters of the device") for text in left)


def test_times_that_are_texts_stay_texts(tmp_path: Path) -> None:
    trace = sampled()
    for event in trace["traceEvents"]:
        if "dur" in event:
            event |= {"ts": f"{event['ts']:.3f}", "dur": f"{event['dur']:.3f}"}
    (tmp_path / "trimmed.json.gz").write_bytes(trim(save(trace, tmp_path / "t.json")))
    left, whole = (
        analyze(tmp_path / name).report.phases["trace"] for name in ("trimmed.json.gz", "t.json")
    )
    assert (left.wall_ns, left.busy_ns) == (whole.wall_ns, whole.busy_ns)
