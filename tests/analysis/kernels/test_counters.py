"""Counter events of Chrome traces: by hand, beside what the work models say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunescope.analysis.inputs.options import Options
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.trace import reader
from prunescope.analysis.trace.counter_samples import factor, kind_of_counter
from prunescope.analysis.trace.load import load
from prunescope.analysis.trace.shares import join_shares, read_share
from tests.chrome import chrome, k, op, save, step


def counter(ts: float, name: str, pid: Any = 0, **args: Any) -> dict[str, Any]:
    return {"ph": "C", "name": name, "pid": pid, "ts": ts, "args": args}


def one_kernel() -> tuple[dict[str, Any], float]:
    """A trace with one kernel of 8 µs, and when it begins, µs: 64 × 32 by 32 × 48 floats."""
    product = op("aten::mm", [64, 32], [32, 48], kernels=[k(us=8, name="ampere_sgemm_128x64_tn")])
    trace = chrome(step(0, product))
    return trace, next(e["ts"] for e in trace["traceEvents"] if e.get("cat") == "kernel")


def notes_of(path: Path) -> list[str]:
    notes = analyze(path, options=Options(bandwidth=10)).report.phases["trace"].notes
    return [text for text in notes if text.startswith("counters")]


def test_counters_stand_beside_the_bound(tmp_path: Path) -> None:
    """Samples 1 and 5 µs after the kernel begins count, those 1 µs before and 9 µs after do not.
    4 bytes × (2048 + 1536 + 3072) are 26,624 bytes in 8 µs: 3.328 of 10 GB/s."""
    trace, begin = one_kernel()
    values = {"SM Active [%]": (40, 60), "dram__read_throughput.pct": (10, 30),
              "DRAM Write %": (5, 15), "SM Clock (MHz)": (1400, 1500), "Power (W)": (300, 500),
              "Memory used (MiB)": (100, 200)}  # fmt: skip
    for name, (one, two) in values.items():
        for after, value in ((-1, 99), (1, one), (5, two), (9, 99)):
            trace["traceEvents"].append(counter(begin + after, name, value=value))
    assert notes_of(save(trace, tmp_path / "t.json")) == [
        "counters of the device, means of 2 samples in the steps: SMs active 50 %, memory read "
        "20 %, memory written 10 %, clock 1,450 MHz (lowest 1,400), power 400 W (highest 500), at "
        "most 0.21 GB of memory used; the work models move 33 % of what the memory can in that "
        "time, the counters show 30 %, which confirms it"
    ]


@pytest.mark.parametrize(
    ("share", "said"),
    [(60, "kernels move more than their operands, so more is memory-bound than the bounds say"),
     (5, "caches serve the rest, so less is memory-bound than the bounds say")],
)  # fmt: skip
def test_counters_contradict_the_bound(tmp_path: Path, share: float, said: str) -> None:
    trace, begin = one_kernel()
    trace["traceEvents"].append(counter(begin + 1, "DRAM Read [%]", value=share))
    (text,) = notes_of(save(trace, tmp_path / "t.json"))
    assert text.endswith(
        f"33 % of what the memory can in that time, the counters show {share} %: {said}"
    )


def test_tensor_cores_beside_the_bound(tmp_path: Path) -> None:
    """2·4096·2048·2048 FLOP at a peak of 100 TFLOP/s take 344 of 1000 us: 34 %."""
    halves = {"dtype": "c10::BFloat16"}
    product = op(
        "aten::mm", [4096, 2048], [2048, 2048], kernels=[k(us=1000, name="gemm_bf16")], **halves
    )
    trace = chrome(step(0, product))
    begin = next(e["ts"] for e in trace["traceEvents"] if e.get("cat") == "kernel")
    for value, said in (
        (35, "which confirms it"),
        (3, "so less is compute-bound than the bounds say"),
    ):
        events = [*trace["traceEvents"], counter(begin + 1, "Tensor Active [%]", value=value)]
        path = save({**trace, "traceEvents": events}, tmp_path / f"{value}.json")
        options = Options(peaks={"bf16": 100}, bandwidth=1000)
        notes = analyze(path, options=options).report.phases["trace"].notes
        (text,) = [one for one in notes if one.startswith("counters")]
        assert "the work models compute 34 % of what tensor cores can in that time" in text
        assert text.endswith(said)


def test_several_values_of_one_event_and_several_devices(tmp_path: Path) -> None:
    """The kernel runs on device 0; a number in a name says more than the process of the event."""
    trace, begin = one_kernel()
    for gpu, watts in ((0, 200), (1, 700)):
        both = {"power (mW)": 1000 * watts, "gpc clock [GHz]": 1.5 + gpu, "fan": 30}
        trace["traceEvents"].append(counter(begin + 1, f"GPU {gpu}", pid=77, **both))
    found = load(save(trace, tmp_path / "t.json")).counters
    assert {name: values.tolist() for name, (_, values) in found.items()} == {
        "power (mW)": [200_000.0], "gpc clock [GHz]": [1.5]
    }  # fmt: skip
    assert notes_of(tmp_path / "t.json") == [
        "counters of the device, means of 1 samples in the steps: clock 1,500 MHz (lowest 1,500), "
        "power 200 W (highest 200)"
    ]


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("SM Active %", {"value": "50"}),
        ("SM Active %", {"value": True}),
        ("SM Active %", {"value": None}),
        ("SM Active %", [50]),
        ("SM Active %", {"value": 10**30}),
        ("SM Active %", {"value": 50, "rest": "x" * 5000}),
        ("SM Active", {"value": 0.5}),
        ("Power", {"value": 300}),
        ("Power limit (W)", {"value": 700}),
        ("memory clock (MHz)", {"value": 2600}),
        (["SM Active %"], {"value": 50}),
    ],
)
def test_what_says_no_number_or_no_unit_is_dropped(tmp_path: Path, name: Any, args: Any) -> None:
    trace, begin = one_kernel()
    trace["traceEvents"].append({**counter(begin + 1, name), "args": args})
    assert load(save(trace, tmp_path / "t.json")).counters == {}


def test_shares_beyond_100_percent_are_none(tmp_path: Path) -> None:
    trace, begin = one_kernel()
    trace["traceEvents"].append(counter(begin + 1, "SM Active %", value=5000))
    assert notes_of(save(trace, tmp_path / "t.json")) == []


def test_counters_change_no_other_number(tmp_path: Path) -> None:
    trace, begin = one_kernel()
    without = analyze(save(trace, tmp_path / "without.json")).report.phases["trace"]
    trace["traceEvents"] += [counter(begin + i, "SM Active %", value=i) for i in range(8)]
    path = save(trace, tmp_path / "with.json")
    found = analyze(path).report.phases["trace"]
    assert (found.wall_ns, found.kernels) == (without.wall_ns, without.kernels)
    ts, values = load(path).counters["SM Active %"]
    assert values.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert (np.diff(ts) == 1000).all()
    assert json.loads(path.read_text())["traceEvents"][-1]["ph"] == "C"


@pytest.mark.parametrize("count", [1, 3])
def test_processes_that_share_a_file_find_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(reader, "BLOCK", 2048)
    trace, begin = one_kernel()
    trace["traceEvents"] += [counter(begin + i, "SM Active %", value=i / 3) for i in range(300)]
    path = save(trace, tmp_path / "t.json")
    shares = [read_share(path, None, index=i, count=count) for i in range(count)]
    joined = join_shares(path, None, shares)
    assert joined is not None
    table = joined[1].tables["samples"].frozen()
    assert table["value"].view(np.float64).tolist() == [i / 3 for i in range(300)]
    assert [list(joined[1].names)[i] for i in set(table["name"].tolist())] == ["SM Active %"]


@pytest.mark.parametrize(
    ("dense", "pruned", "lines"),
    [
        ((1900, 1910), (1900, 1890), 0),
        ((1900, 1910), (1400, 1410), 2),  # another clock
        ((1900, 1910), (1900, 1400), 2),  # it fell
        ((), (1900, 1400), 1),
    ],
)
def test_clocks_that_moved_or_differ_by_their_samples(
    tmp_path: Path, dense: tuple[float, ...], pruned: tuple[float, ...], lines: int
) -> None:
    paths = []
    for name, clocks in (("dense", dense), ("pruned", pruned)):
        trace, begin = one_kernel()
        for i, mhz in enumerate(clocks):
            trace["traceEvents"].append(counter(begin + i, "SM clock (MHz)", value=mhz))
            trace["traceEvents"].append(counter(begin + i, "power (W)", value=mhz / 2))
        paths.append(save(trace, tmp_path / f"{name}.json"))
    report = analyze(paths[1], baseline=paths[0]).report
    of = report.phases["trace"].findings
    findings = [one for one in of if one.id == "unsteady-clocks"]
    found = [line for one in findings for line in one.evidence]
    assert len(found) == lines
    watts = f"power {sum(pruned) / 4:,.0f} W in the mean"
    assert not lines or any(text.startswith("pruned") and watts in text for text in found)


@pytest.mark.parametrize(
    ("name", "kind", "unit"),
    [
        ("GPC Clock Frequency [MHz]", "clock", 1e6),
        ("graphics clock (Hz)", "clock", 1),
        ("power_draw mW", "power", 1e-3),
        ("Power [Watts]", "power", 1),
        ("memory used GiB", "memory used", 2**30),
        ("used memory [bytes]", "memory used", None),
        ("memory used, MB", "memory used", 1e6),
    ],
)
def test_kinds_and_units(name: str, kind: str, unit: float | None) -> None:
    assert kind_of_counter(name) == kind
    assert factor(kind, name) == unit
