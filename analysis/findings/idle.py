"""Why the device idles: in, a Context; out, a Finding, or None. ns a step."""

from __future__ import annotations

import polars as pl

from prunescope.analysis.findings.context import Context, ms
from prunescope.analysis.schema.report import Finding

_MUCH, _MOST = 0.25, 0.4  # of the wall


def launch_bound(c: Context) -> Finding | None:
    """The device idles while the host prepares the next launch, and is in no copy or wait."""
    phase, host = c.phase, _gaps(c, "host")
    share = _much(c, host)
    if share is None:
        return None
    return Finding(
        id="launch-bound",
        severity="critical" if share > _MOST else "warning",
        text=f"launch-bound: the device waits for a late host for {share:.0%} of the step (it "
        f"idles for {phase.gap_ns / phase.wall_ns:.0%}); smaller kernels cannot make that faster",
        evidence=[
            f"{ms(host)} of {ms(phase.gap_ns)} idle time end with a launch that began after the "
            "device ran dry, and are no copy and no wait of the host"
        ],
        change="shorten what the host does between two replays (the step is a graph already), or "
        "batch more"
        if _is_replay(c)
        else "capture the step in a CUDA graph (trace --mode graph), or batch more",
        predicted_ns=host,
    )


def host_waits(c: Context) -> Finding | None:
    """The device idles beside copies between host and device, and where the host waits for it."""
    copies, waits = _gaps(c, "memcpy"), _gaps(c, "sync")
    share = _much(c, copies + waits)
    if share is None:
        return None
    parts = [f"copies ({ms(copies)})"] * bool(copies)
    parts += [f"waits of the host for it ({ms(waits)})"] * bool(waits)
    return Finding(
        id="host-waits",
        severity="warning",
        text=f"the device idles for {share:.0%} of the step beside {' and '.join(parts)}: neither "
        "smaller kernels nor a CUDA graph make that faster",
        evidence=_largest(c, "memcpy", "sync"),
        change="keep data on the device (no .item(), .cpu() or synchronise in a step), and copy "
        "from pinned memory with non_blocking=True",
        predicted_ns=None,
    )


def held_back(c: Context) -> Finding | None:
    """The device idles although the next kernel was launched long before: its stream waits."""
    share = _much(c, _gaps(c, "held"))
    if share is None:
        return None
    return Finding(
        id="held-back",
        severity="warning",
        text=f"the device idles for {share:.0%} of the step although the next kernel had been "
        "launched: its stream waits for another one, or for an event",
        evidence=_largest(c, "held"),
        change="compare steps without that wait: it is no work of the model",
        predicted_ns=None,
    )


def _much(c: Context, ns: float) -> float | None:
    """Idle time as a share of the step of a device; None where that is little."""
    share = ns / c.phase.wall_ns if c.phase.wall_ns else 0.0
    return share if c.pruned.on_device and share >= _MUCH else None


def _gaps(c: Context, cause: str) -> float:
    gaps = c.pruned.frame.filter(pl.col("cause") == cause)["gap"]
    return float(gaps.sum()) / c.pruned.num_steps


def _is_replay(c: Context) -> bool:
    """Whether graph replays make most of the busy time."""
    linked = c.pruned.linked
    return bool(2 * linked.busy[linked.replayed].sum() > linked.busy.sum())


def _largest(c: Context, *causes: str) -> list[str]:
    """The longest gaps of these causes, by what ended them."""
    rows = c.pruned.frame.filter(pl.col("cause").is_in(causes))
    sums = rows.group_by("name").agg(pl.col("gap").sum(), pl.len())
    sums = sums.sort(["gap", "name"], descending=[True, False]).head(3)
    steps = c.pruned.num_steps
    return [
        f"{ms(gap / steps)} in {count / steps:g} gaps before {(name or '?')[:60]}"
        for name, gap, count in sums.iter_rows()
    ]
