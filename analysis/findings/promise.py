"""What was promised, and whether both sides ran at one clock: nominal and realised, clocks.

In: a Context. Out: a Finding, or None. Shares are 0..1, clocks Hz.
"""

from __future__ import annotations

from typing import Any

from prunescope.analysis.findings.context import Context
from prunescope.analysis.schema.report import Finding
from prunescope.taxonomy.words import percent

_OFF = 0.1  # of the nominal sparsity
_GREW = 0.0005  # a share that rounds to something
_CLOCK = 0.05


def nominal_differs(c: Context) -> Finding | None:
    """The sparsity that was asked for is not the one that the model has."""
    shares = c.phase.sparsity
    nominal = shares.get("nominal")
    names = (("parameters", "parameters"), ("flop", "FLOPs"), ("bytes", "bytes"))
    known = [(label, share) for key, label in names if (share := shares.get(key)) is not None]
    if not nominal or not known:
        return None
    if all(abs(share - nominal) <= _OFF * nominal for _, share in known):
        return None
    went = [f"{percent(abs(share), 1)} of the {name}" for name, share in known if share > -_GREW]
    parts = [f"what went is {', '.join(went)}"] if went else []
    parts += [
        f"the {name} grew by {percent(-share, 1)}" for name, share in known if share <= -_GREW
    ]
    return Finding(
        id="nominal-differs",
        severity="info",
        text="; ".join([f"nominal sparsity is {percent(nominal, 1)}", *parts]),
        evidence=[_why_other(c, [share for _, share in known], nominal)],
        change="report both, and compare methods at equal FLOPs or parameters",
        predicted_ns=None,
    )


def _why_other(c: Context, shares: list[float], nominal: float) -> str:
    """Why shares are others than the nominal one, in the direction in which they are."""
    if c.side.run is None:
        return "the nominal share was given; the others are counted from the ops of both traces"
    if all(share < _GREW for share in shares):
        return (
            "nothing was taken out: what hides work (masks, skipped steps) or adds some (adapters) "
            "removes neither weights nor FLOPs"
        )
    if all(share <= nominal for share in shares):
        return (
            "what pruning leaves alone (embeddings, lm_head and the like) and whole heads, layers "
            "and multiples of 16 make the difference"
        )
    return "whole heads, layers and multiples of 16 make the difference, and what s is a share of"


def clock_trouble(c: Context) -> Finding | None:
    """The clocks moved while the samples were taken, or differ between the two runs."""
    clocks = [(name, _clocks(side)) for name, side in (("dense", c.side_dense), ("pruned", c.side))]
    lines = []
    for name, (before, after) in clocks:
        lines += [
            f"{name}: {_named(key)} clock {before[key] / 1e9:.2f} GHz before, "
            f"{after[key] / 1e9:.2f} GHz after"
            for key in before.keys() & after.keys()
            if _apart(before[key], after[key])
        ]
    dense, pruned = clocks[0][1][0], clocks[1][1][0]
    lines += [
        f"{_named(key)} clock {dense[key] / 1e9:.2f} GHz in the dense run, "
        f"{pruned[key] / 1e9:.2f} GHz in the pruned one"
        for key in sorted(dense.keys() & pruned.keys())
        if _apart(dense[key], pruned[key])
    ]
    if not lines:
        return None
    return Finding(
        id="clock-trouble",
        severity="warning",
        text="the clocks were not steady: times of different clocks are compared",
        evidence=sorted(set(lines))[:4],
        change="lock the clocks, let the device warm up longer, and trace again",
        predicted_ns=None,
    )


def _clocks(side: Any) -> tuple[dict[str, float], dict[str, float]]:
    found = side.run.device.clocks if side is not None and side.run else None
    return ({}, {}) if found is None else (_numbers(found.before), _numbers(found.after))


def _numbers(clocks: Any) -> dict[str, float]:
    pairs = clocks.items() if isinstance(clocks, dict) else ()
    return {k: float(v) for k, v in pairs if isinstance(v, int | float) and v > 0}


def _named(key: str) -> str:
    return key.removesuffix("_hz").replace("_", " ")


def _apart(a: float, b: float) -> bool:
    return abs(a - b) > _CLOCK * max(a, b)
