"""Prefill or decode: which phase a trace of the user's own is, with what says so.

In: the kernels and GEMM rows of a bare trace. Out: {"kind", "evidence"}; kind is prefill (many
query tokens at once), decode (one a sequence), mixed, training or unknown.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from analysis.engines import engine_step
from analysis.frame import Kernels
from analysis.report.model import Gemm

_MANY, _FEW = 1024, 32  # rows of a linear: more are no batch of a decode, fewer no prompts
_BACKWARD = "autograd::engine::evaluate_function"


def phase_kind(kernels: Kernels, gemms: list[Gemm]) -> dict[str, str]:
    """The phase of a bare trace: as a serving engine annotates it, else as its shapes say."""
    for tell in (_annotated, _trained):
        if found := tell(kernels):
            return {"kind": found[0], "evidence": found[1]}
    kind, evidence = _by_shape(gemms)
    return {"kind": kind, "evidence": evidence}


def _annotated(kernels: Kernels) -> tuple[str, str] | None:
    """All steps are annotated, as one phase or several."""
    names = kernels.windows.names
    seen = {engine_step(name) for name in names}
    if None in seen or "unknown" in seen or not seen:
        return None
    steps = "the step is" if len(names) == 1 else f"{len(names)} steps are, the first"
    kind = seen.pop() if len(seen) == 1 else "mixed"
    return str(kind), f"{steps} annotated {names[0][:80]}"


def _trained(kernels: Kernels) -> tuple[str, str] | None:
    backward = sum(call.name.startswith(_BACKWARD) for call in kernels.calls)
    return ("training", "the trace holds backward passes") if backward else None


def _by_shape(gemms: list[Gemm]) -> tuple[str, str]:
    linear = _usual(
        (g.m, g.busy_ns) for g in gemms
        if g.group not in ("qk", "pv", "lm_head", "router") and g.kind != "batched_gemm"
        and (g.batch or 1) == 1
    )  # fmt: skip
    queries = _usual((g.m, g.busy_ns) for g in gemms if g.group == "qk")
    rows = "M of the linears is unknown" if linear is None else f"M of the linears is {linear}"
    if queries is not None:
        kind = "decode" if queries == 1 else "prefill"
        return (
            kind,
            f"{rows}; attention has {queries} quer{'y' if queries == 1 else 'ies'} at a time",
        )
    if linear is None:
        return "unknown", "no shapes of linears or attention in the trace"
    if linear >= _MANY:
        return "prefill", rows
    if linear <= _FEW:
        return "decode", rows
    head = _usual((g.m, g.busy_ns) for g in gemms if g.role == "lm_head")
    if head is not None and head != linear:
        return "prefill", f"{rows}, that of lm_head {head}"
    return "unknown", f"{rows}, which both phases may have, and attention has no shapes"


def _usual(rows: Iterable[tuple[int | None, float]]) -> int | None:
    """The value with the most time; None where no row has one."""
    sums: defaultdict[int, float] = defaultdict(float)
    for value, ns in rows:
        if value is not None:
            sums[value] += ns
    return max(sums, key=lambda value: (sums[value], value)) if sums else None
