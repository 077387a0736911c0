"""Decoding only what becomes a column gives the columns that decoding all gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from prunescope.analysis.trace.collector import Collector
from prunescope.analysis.trace.event import (
    DEVICE_CATEGORIES,
    LAUNCH_CATEGORIES,
    LEAN,
    OP_CATEGORIES,
    SKIPPED,
    Args,
)
from prunescope.analysis.trace.reader import Event, Source

TRACES = sorted((Path(__file__).parents[3] / "traces").rglob("*.trace.json.gz"))[:2]
KNOWN = (*DEVICE_CATEGORIES, *LAUNCH_CATEGORIES, *OP_CATEGORIES,
         "user_annotation", "python_function", *SKIPPED)  # fmt: skip
RAWS = {"Input Dims", "Input dims", "Input type", "Input Strides", "Concrete Inputs"}


def all_args(i: int) -> dict[str, Any]:
    """Return a value of every argument that is read, each another number."""
    names = [field.encode_name for field in msgspec.structs.fields(Args)]
    args: dict[str, Any] = {name: 100 * i + k for k, name in enumerate(names)}
    args |= {name: [[i, k]] for k, name in enumerate(names) if name in RAWS}
    return args | {"grid": [i, 1, 1], "block": [32, i, 1], "kernel": f"of_{i}"}


def event(i: int, category: str | None, **more: Any) -> dict[str, Any]:
    cat = {} if category is None else {"cat": category}
    return {"ph": "X", **cat, "name": f"e{i % 5}", "pid": 1, "tid": i % 3, "ts": 1000.25 * i,
            "dur": 150.5, "args": all_args(i), **more}  # fmt: skip


def tables(path: Path, **how: Any) -> tuple[Source, Collector]:
    source, collect = Source(path, **how), Collector()
    for events in source.blocks():
        collect.add(events)
    return source, collect


def assert_same(path: Path) -> Collector:
    lean_source, lean = tables(path, decoder=LEAN)
    source, full = tables(path)
    assert (lean_source.malformed, lean_source.meta) == (source.malformed, source.meta)
    for name in ("names", "threads", "calls", "grids"):
        assert list(getattr(lean, name).items()) == list(getattr(full, name).items()), name
    for group, table in full.tables.items():
        assert np.array_equal(lean.tables[group].together(), table.together()), group
    assert (lean.dropped, lean.stacks) == (full.dropped, full.stacks)
    return lean


def write(path: Path, events: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps({"traceEvents": events}), encoding="utf-8")
    return path


@pytest.mark.parametrize("category", KNOWN)
def test_every_field_of_a_category(category: str, tmp_path: Path) -> None:
    events = [event(i, category) for i in range(1, 9)]
    events[3].pop("args")
    for name in ("External id", "stream", "device", "Input Dims", "grid"):  # as older ones wrote
        events[5]["args"].pop(name)
    path = write(tmp_path / "t.json", events)
    LEAN.decode(json.dumps(events))  # it is not the reading in full that answers
    counts = {name: table.count for name, table in assert_same(path).tables.items()}
    assert any(counts.values()) == (category not in SKIPPED)


@pytest.mark.parametrize("path", TRACES, ids=lambda p: p.parent.name)
def test_real_traces(path: Path) -> None:
    assert_same(path)


@pytest.mark.parametrize(
    "odd",
    [event(9, None), event(9, "a_new_one"), event(9, "cpu_op", name=5), event(9, "cpu_op", cat=5),
     event(9, "kernel", ts=float(1 << 43) + 0.25), event(9, "kernel", ts="soon"),
     event(9, "kernel", args={"stream": [7]})],
    ids=["no category", "a new one", "bad name", "bad category", "exact", "no time", "bad args"],
)  # fmt: skip
def test_what_is_not_known_is_read_in_full(odd: dict[str, Any], tmp_path: Path) -> None:
    events = [event(1, "cpu_op"), odd, event(2, "kernel")]
    with pytest.raises(msgspec.ValidationError):
        LEAN.decode(json.dumps(events))
    assert_same(write(tmp_path / "t.json", events))


def test_what_nobody_reads_is_not_looked_at(tmp_path: Path) -> None:
    """An arrow with a field of a wrong type is not counted among the events that cannot be read."""
    path = write(tmp_path / "t.json", [event(1, "cpu_op"), event(2, "ac2g", name=5)])
    assert tables(path, decoder=LEAN)[0].malformed == 0
    assert tables(path)[0].malformed == 1


def test_lean_events_have_the_fields_of_events() -> None:
    """So that what reads one reads the other."""
    [decoded] = LEAN.decode(json.dumps([event(1, "python_function")]))
    assert all(hasattr(decoded, name) for name in Event.__struct_fields__ if name != "id")
