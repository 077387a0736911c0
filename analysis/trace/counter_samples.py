"""Samples of a device's counters: events of a Chrome trace with the phase `C`, by their names.

In: such events. Out: rows of a table (ns, name, number of the device, value), and the counters of a
whole trace by name. Counters are kept if they say how busy the device is, or its clock, power or
used memory, in a unit that the name states; all others are dropped while they are read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from prunescope.analysis.trace.event import decode_json
from prunescope.taxonomy.lazy_pattern import lazy_pattern

SMS, TENSOR, READ, WRITTEN = "SMs active", "tensor cores active", "memory read", "memory written"
CLOCK, POWER, MEMORY = "clock", "power", "memory used"
# The names that Nsight Systems, CUPTI's PM sampling and GPU monitors use.
KINDS = {
    SMS: lazy_pattern(r"\bSMs?[ _]active|sm__cycles_active", re.IGNORECASE),
    TENSOR: lazy_pattern(r"\btensor[ _]active|pipe_tensor", re.IGNORECASE),
    READ: lazy_pattern(r"\bDRAM[ _]read|dram__(?:bytes_)?read", re.IGNORECASE),
    WRITTEN: lazy_pattern(r"\bDRAM[ _]write|dram__(?:bytes_)?write", re.IGNORECASE),
    CLOCK: lazy_pattern(r"\b(?:GPC|SM|GFX|graphics|shader|core)[ _]?(?:clock|clk)|\bsclk\b",
                      re.IGNORECASE),
    POWER: lazy_pattern(r"(?<![a-z])power(?!.*(?:limit|cap))", re.IGNORECASE),
    MEMORY: lazy_pattern(r"\bmem(?:ory)?[ _](?:used|usage)|\bused[ _]memory", re.IGNORECASE),
}  # fmt: skip
# A name for the counters of each kind, in the plain unit. It states only what is read of them.
_PLAIN = {SMS: "SM Active [%]", TENSOR: "Tensor Active [%]", READ: "DRAM Read [%]",
          WRITTEN: "DRAM Write [%]", CLOCK: "SM Clock [Hz]", POWER: "Power [W]",
          MEMORY: "Memory used [B]"}  # fmt: skip
_PERCENT = lazy_pattern(r"%|pct|percent", re.IGNORECASE)
_UNITS = {
    CLOCK: (lazy_pattern(r"(?<![A-Za-z])([GMk]?)Hz(?![a-z])"),
            {"G": 1e9, "M": 1e6, "k": 1e3, "": 1}),
    POWER: (lazy_pattern(r"(?<![A-Za-z])([mk]?)W(?:atts?)?(?![A-Za-z])"),
            {"m": 1e-3, "k": 1e3, "": 1}),
    MEMORY: (lazy_pattern(r"(?<![A-Za-z])((?:[GMK]i?|k)?)B(?:ytes)?(?![A-Za-z/])"),
             {"": 1, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "Ki": 2**10, "Mi": 2**20,
              "Gi": 2**30}),
}  # fmt: skip
_DEVICE = lazy_pattern(r"\b(?:GPU|device)[ :#]?(\d{1,4})\b[ :/]*", re.IGNORECASE)
_VALUE = ("value", "values")  # names that do not describe an argument
_NAME = 80  # characters of a name
_MOST_ARGS = 4096  # bytes of the values of one event
_MOST_SERIES = 64  # of one trace
_MOST_DEVICE = 1 << 40
_NONE = -1
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Row = tuple[Any, str, int, float]


class Sample(msgspec.Struct, gc=False):
    """One event of any kind, with the fields that counters need; `args` stays undecoded."""

    ph: Any = None
    name: Any = None
    pid: Any = None
    ts: Any = None
    args: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""))


def kind_of_counter(name: str) -> str | None:
    """Return the quantity that a counter measures, by its name; None for others."""
    return next((kind for kind, pattern in KINDS.items() if pattern.search(name)), None)


def factor(kind: str, name: str) -> float | None:
    """Return the factor from a counter's unit to Hz, W or bytes; None if its name has no unit."""
    pattern, factors = _UNITS[kind]
    unit = pattern.search(name)
    return None if unit is None else factors[unit[1]]


def rows_of(samples: Sequence[Sample]) -> Iterator[Row]:
    """Yield time (in the unit of the file), name, device and value of each sample that is kept.

    The device is -1 where it is unknown.
    """
    for sample in samples:
        values = _numbers(sample.args) if isinstance(sample.name, str) else {}
        for key, value in values.items():
            name = sample.name if key.lower() in _VALUE else f"{sample.name} {key}"
            kind = kind_of_counter(name)
            if kind is None or not _states_unit(kind, name):
                continue
            device = _DEVICE.search(name)
            number = sample.pid if device is None else int(device[1])
            known = type(number) is int and 0 <= number < _MOST_DEVICE
            yield sample.ts, _DEVICE.sub("", name)[:_NAME], number if known else _NONE, value


def plain_counter(name: str, value: float) -> tuple[str, float]:
    """Rename a counter that `rows_of` gave after its kind, and convert it to the plain unit.

    Raises ValueError for a name of no known kind.
    """
    kind = kind_of_counter(name)
    if kind is None:
        raise ValueError(name)
    return _PLAIN[kind], value * (factor(kind, name) or 1.0) if kind in _UNITS else value


def _states_unit(kind: str, name: str) -> bool:
    """Return whether a counter's name states the unit that its kind needs."""
    if kind in _UNITS:
        return factor(kind, name) is not None
    return _PERCENT.search(name) is not None


def _numbers(raw: msgspec.Raw) -> dict[str, float]:
    """Return the finite numbers among the values of an event."""
    text = bytes(raw)
    if not 0 < len(text) <= _MOST_ARGS:
        return {}
    decoded = decode_json(text)
    numbers = decoded.items() if isinstance(decoded, dict) else ()
    return {
        key: float(value)
        for key, value in numbers
        if type(value) in (int, float) and abs(value) < 1 << 62 and math.isfinite(value)
    }


def counters_of(
    table: dict[str, Ints], names: Sequence[str], devices: Ints
) -> dict[str, tuple[Ints, Floats]]:
    """Return times and values of the counters of a trace's device, by name.

    If a series samples several devices, those of the trace's device are kept. In a trace of several
    devices it is unknown which one is meant, and the series is left out.
    """
    counters: dict[str, tuple[Ints, Floats]] = {}
    if not len(table["name"]):
        return counters
    used = np.unique(devices)
    for i in np.unique(table["name"])[:_MOST_SERIES].tolist():
        rows = table["name"] == i
        if len(np.unique(table["device"][rows])) > 1:
            rows &= (table["device"] == used[0]) & (len(used) == 1)
        if rows.any():
            counters[names[i]] = table["ts"][rows], table["value"][rows].view(np.float64)
    return counters
