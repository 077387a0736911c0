"""A trace repeated: in, a Chrome trace and a number of events; out, a file of at least so many.

    python benchmarks/scale.py SOURCE OUT EVENTS     prints how many it has

Every copy comes after the one before, with ids of its own, so that links stay inside a copy.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import msgspec

# Ids that tell events of one trace apart, where they stand.
_IDS = ("correlation", "External id", "external id", "Ev Idx", "Python id", "Python parent id")
_STEP = "ProfilerStep#"


def scale(source: Path, out: Path, *, events: int) -> int:
    """Write `source` to `out` as often as it takes for `events` events; returns how many it has."""
    data = source.read_bytes()
    trace = json.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    one = trace.pop("traceEvents")
    copies = -(-events // len(one))
    timed = [e for e in one if isinstance(e.get("ts"), (int, float)) and e.get("ph") == "X"]
    first = min(e["ts"] for e in timed)
    span = max(e["ts"] + e.get("dur", 0) for e in timed) - first + 1000
    width = 1 + max(i for e in one for i in _numbers(e))
    encode = msgspec.json.Encoder().encode
    with out.open("wb") as file:
        file.write(encode(trace)[:-1] + b',"traceEvents":[')
        for copy in range(copies):
            moved = [_moved(e, copy, by=span * copy, ids=width * copy) for e in one]
            file.write((b",\n" if copy else b"\n") + encode(moved)[1:-1])
        file.write(b"]}\n")
    return copies * len(one)


def _numbers(event: dict[str, Any]) -> list[int]:
    args = event.get("args") or {}
    found = [args.get(key) for key in _IDS] + [event.get("id")]
    return [i for i in found if type(i) is int]


def _moved(event: dict[str, Any], copy: int, *, by: float, ids: int) -> dict[str, Any]:
    if copy == 0:
        return event
    out = dict(event)
    if isinstance(out.get("ts"), (int, float)):
        out["ts"] = round(out["ts"] + by, 3)
    if type(out.get("id")) is int:
        out["id"] += ids
    args = out.get("args")
    if isinstance(args, dict):
        out["args"] = {
            key: value + ids if key in _IDS and type(value) is int and value >= 0 else value
            for key, value in args.items()
        }
    name = str(out.get("name"))
    if name.startswith(_STEP):
        out["name"] = f"{_STEP}{int(name[len(_STEP) :]) + copy}"
    return out


if __name__ == "__main__":
    sys.stdout.write(str(scale(Path(sys.argv[1]), Path(sys.argv[2]), events=int(sys.argv[3]))))
