"""The words of notes on the kernels of a phase: roles, replays, concurrency, counters, formats."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prunescope.taxonomy.words import ms, percent, when

_FEWER_BYTES = "caches serve the rest, so less is memory-bound than the bounds say"
_MORE_BYTES = "kernels move more than their operands, so more is memory-bound than the bounds say"
_FEWER_FLOP = (
    "a part of the GEMMs does not run on tensor cores, or their peak is higher than the one given, "
    "so less is compute-bound than the bounds say"
)
_MORE_FLOP = (
    "the models lack GEMMs, or the peak given is too high, so more is compute-bound than the "
    "bounds say"
)


def _replayed(kernels: float, others: float) -> str:
    parts = [(kernels, "kernels"), (others, "copies and memsets")]
    counted = " and ".join(f"{count:,.6g} {what}" for count, what in parts if count)
    return f"{counted} a step were launched by graph replays and have no op"


def _basis(*, named: bool, gemms: int, compared: int) -> str:
    """Return the attributes by which replayed kernels and eager launches were matched."""
    if not named:
        return "the count of launches alone, for it has neither names nor grids of kernels"
    if not compared:
        return "launch order and kernel name, without grids of GEMMs to compare"
    of_gemms = "GEMMs" if compared >= gemms else f"{compared} of {gemms} GEMMs"
    return f"launch order, kernel name and the grid of {of_gemms}"


def _rivals(file: str, share: float, rows: Sequence[int]) -> str:
    shapes = f"M = {' or '.join(map(str, rows))}" + when(len(rows) == 1, " and other N or K")
    return (
        f"{file} holds several passes that match {percent(share, 1)} of the time of replayed "
        f"kernels equally well, with GEMMs of {shapes}: nothing says which one was replayed, and "
        "no shapes and roles are taken from them; give a trace of the right one alone"
    )


def _counters(
    *,
    samples: int,
    means: Mapping[str, float],
    device: Mapping[str, Any],
    bytes: Mapping[str, Any] | None,
    flop: Mapping[str, Any] | None,
) -> str:
    parts = [f"{label} {mean:,.0f} %" for label, mean in means.items()]
    if clock := device["clock"]:
        parts.append(f"clock {clock[0]:,.0f} MHz (lowest {clock[1]:,.0f})")
    if power := device["power"]:
        parts.append(f"power {power[0]:,.0f} W (highest {power[1]:,.0f})")
    if (memory := device["memory"]) is not None:
        parts.append(f"at most {memory:,.3g} GB of memory used")
    text = f"counters of the device, means of {samples:,} samples in the steps: {', '.join(parts)}"
    if bytes is not None:
        peak = "the work models move", "what the memory can"
        text += _compared(*peak, bytes, fewer=_FEWER_BYTES, more=_MORE_BYTES)
    if flop is not None:
        peak = "the work models compute", "what tensor cores can"
        text += _compared(*peak, flop, fewer=_FEWER_FLOP, more=_MORE_FLOP)
    return text


def _compared(who: str, peak: str, shares: Mapping[str, Any], *, fewer: str, more: str) -> str:
    """Return whether a counter confirms what the work models count, both in % of the peak."""
    verdicts = {"fewer": f": {fewer}", "more": f": {more}", "as many": ", which confirms it"}
    return (
        f"; {who} {shares['modelled']:,.0f} % of {peak} in that time, the counters show "
        f"{shares['measured']:,.0f} %{verdicts[shares['counted']]}"
    )


def _collectives(each: Sequence[Mapping[str, Any]], more: int) -> str:
    parts = map(_collective, each)
    rest = when(more > 0, f"; {more} more kinds or sizes are not shown")
    return f"collectives, a step: {'; '.join(parts)}{rest}"


def _collective(collective: Mapping[str, Any]) -> str:
    of = f" of {collective['elements']:,} {collective['unit']}" if collective["elements"] else ""
    ranks = f" over {collective['ranks']} ranks" if collective["ranks"] else ""
    rate = collective["gb_per_s"]
    on_bus = "" if rate is None else f", at least {rate:,.3g} GB/s on the bus"
    calls = f"{collective['count']:,.4g} {collective['name']}"
    return f"{calls}{of}{ranks}, {ms(collective['ns'])} each{on_bus}"


def _two_models(layers: Sequence[tuple[int, int]]) -> str:
    each = ", ".join(f"{width}{when(count > 0, f' (layers: {count})')}" for width, count in layers)
    return (
        "the trace holds several models, such as a target and the draft that it checks: their "
        f"heads read states of the widths {each}; a step, its shares and its tables are of all of "
        "them together"
    )


def _sparse(ops: Sequence[str], ns: float, unknown_ns: float) -> str:
    line = (
        "products with matrices that store some of their numbers (CSR, CSC, COO; "
        f"{', '.join(ops)}) take {ms(ns)} a step, and M, N, K do not say how much they multiply"
    )
    if unknown_ns:
        return (
            f"{line}: the trace does not hold how many numbers are stored, so FLOPs and bytes of "
            f"{ms(unknown_ns)} are unknown"
        )
    return f"{line}: their FLOPs and bytes count the numbers that are stored"


def _roles_by_order(*, modules_recorded: bool) -> str:
    why = "no scopes of linears in the trace"
    if modules_recorded:
        why = "the modules of the trace name fewer of its linears than their order does"
    return f"{why}: roles come from the order of kernels"


def _unnamed(*, share: float, compiled: bool, recorder: str) -> str:
    change = (
        "torch.compile records no modules: name an eager capture by --eager-trace"
        if compiled
        else f"capture with {recorder}"
    )
    return (
        f"{percent(share)} of the time of GEMMs and attention has no role, because no module was "
        f"recorded: {change}"
    )


def _without_ops(*, by_config: bool) -> str:
    unknown = "shapes are unknown (--model gives those of a decoder)"
    shapes = "shapes from the model's config" if by_config else unknown
    return f"no host ops in the trace: kinds come from kernel names, {shapes}"


def _replays_without_ops(*, kernels: float, others: float, by_config: bool) -> str:
    how = (
        "roles and shapes of their GEMMs come from the model's config"
        if by_config
        else "give --eager-trace, or --model with the model's config, for their shapes and roles"
    )
    return f"{_replayed(kernels, others)}: {how}"


def _concurrent(kinds: Sequence[tuple[str, float, float]]) -> str:
    each = ", ".join(f"{kind} {ms(ran)} ({ms(both)} concurrently)" for kind, ran, both in kinds)
    return (
        "kernels ran concurrently, and busy time counts for the kernel that began first; by kind "
        f"they ran {each} a step"
    )


def _graphs(*, count: int, cuda: bool, breaks: Sequence[str], unbroken: bool) -> str:
    graph = "CUDA graph" if cuda else "graph of torch.compile"
    many = f"one {graph}" if count == 1 else f"{count} {graph}s"
    text = when(unbroken, ", without a break")
    if breaks:
        text = f"; it broke off at: {'; '.join(breaks)}"
    return f"each step is {many}{text}"


def _no_gemm_has_shapes(
    *, phase: str, recorded: bool, pruned: bool, takes_config: bool, recorder: str
) -> str:
    give = when(takes_config, ", or give --model (a decoder's config)")
    change = f"capture again with {recorder}{give}"
    if recorded:
        change = (
            "record_shapes was on, but the profiler sees no tensors of these ops (compiled or "
            f"custom ops): capture without torch.compile{give}"
        )
    unknown = when(pruned, "what was pruned, ")
    return f"{phase}: no GEMM has shapes, so {unknown}FLOPs and bounds are unknown: {change}"


WORDS: dict[str, str | Callable[..., str]] = {
    "formats-of-names": (
        "number formats of {count:,} distinct op calls are those that the names of their kernels "
        "say: the trace holds none"
    ),
    "counters": _counters,
    "allocated-memory": lambda allocated, reserved, snapshots: (
        f"the allocator held at most {allocated:,.3g} GB of device memory in the steps"
        f"{when(reserved > 0, f' ({reserved:,.3g} GB were reserved)')}, by {snapshots:,} snapshots"
    ),
    "collectives": _collectives,
    # -- graph replays --
    "replays-take-no-time": lambda kernels, others: (
        f"{_replayed(kernels, others)}: none of them takes any time"
    ),
    "replays-mapped": lambda share, count, several_steps, basis: (
        f"{percent(share, 1)} of the time of {count} replayed kernels"
        f"{when(several_steps, ' of all steps')} was mapped to the eager pass by {_basis(**basis)}"
    ),
    "replays-of-several-passes": lambda kernels, others: (
        f"{_replayed(kernels, others)}: the eager trace holds several passes that may be theirs"
    ),
    "replays-of-another-step": lambda kernels, others, share: (
        f"{_replayed(kernels, others)}: the eager trace seems to be of another step "
        f"({percent(share, 1)} of their time is found in it)"
    ),
    "replays-without-ops": _replays_without_ops,
    "eager-pass-of-another-step": lambda file, share, basis: (
        f"{file} seems to be of another step: only {percent(share, 1)} of the time of replayed "
        f"kernels is found in it, by {_basis(**basis)}: no shapes and roles are taken from it"
    ),
    "eager-pass-without-names": (
        "{file} has neither names nor grids of kernels: its {launches} launches are taken for "
        "those of the replay because they are as many; whether they are of the same step and batch "
        "is not known"
    ),
    "eager-pass-unsure": lambda file, share: (
        f"{file} may be of another step: {percent(share, 1)} of the time of replayed kernels is "
        "found in it, the rest has no shapes and roles"
    ),
    "eager-pass-rivals": _rivals,
    "eager-pass-of-another-batch": (
        "{file}: the GEMMs that are found for a step annotated with a batch of {batch} have "
        "M = {rows}: a batch that was padded, or another pass"
    ),
    "steps-are-graphs": _graphs,
    # -- roles and shapes --
    "no-host-ops": _without_ops,
    "roles-by-order": _roles_by_order,
    "products-without-role": _unnamed,
    "unequal-layers": (
        "steps have {fewest} to {most} layers, numbered from the first in each step: which layers "
        "a step lacks is unknown"
    ),
    "two-models": _two_models,
    "sparse-products": _sparse,
    "no-gemm-has-shapes": _no_gemm_has_shapes,
    "backends": "backend of the method: {names:list}",
    # -- what ran at one time --
    "concurrent-kernels": _concurrent,
    "communication": (
        "communication kernels ran {ran_ns:ms} a step, {exposed_ns:ms} of it exposed (nothing else "
        "ran); they run until the last rank arrives: the {busy_ns:ms} of them that count as busy "
        "include waiting for other ranks, which the trace of one rank cannot separate"
    ),
    # -- ranks and pairs of captures --
    "captures-differ": (
        "{phase}: nothing was pruned, and the two captures differ by {ratio:.2f}× [{low:.2f}×, "
        "{high:.2f}×]: the cause is not in the shapes (a hook, a wait, another machine or time of "
        "day); unless one command traced both in turns on a quiet machine, a ratio of this size is "
        "no evidence"
    ),
    "rank-on-host": "{rank} has host ops only: it is not compared with the other ranks",
    "ranks-of-two-programs": (
        "{rank} and {other_rank} do not run the same program ({kernels:,.0f} and "
        "{other_kernels:,.0f} kernels a step, {same:percent} of them the same): ranks are not "
        "compared"
    ),
}
