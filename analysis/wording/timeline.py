"""The words of how steps were found, and how rows were linked to launches, ops and the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from prunescope.taxonomy.words import ms, percent, plural, shortened, when

_UNLINKED = {
    "no-ids": "they have no correlation id",
    "no-launches": "the trace has no launches",
    "other-ids": "their correlation ids are those of no launch",
}


def _devices(file: str, times: Mapping[str, float]) -> str:
    total = sum(times.values())
    shares = ", ".join(f"{device}: {percent(ns / total)}" for device, ns in times.items())
    return (
        f"kernels of {file} ran on {len(times)} devices ({shares} of the time that they ran): all "
        "count on one timeline, where a device that idles hides behind another, and bounds are "
        "those of one"
    )


def _profiler_work(times: Sequence[tuple[str, float]]) -> str:
    each = ", ".join(f"{name} {ms(ns)}" for name, ns in times)
    return (
        f"while the device idled in the steps, the profiler did work of its own ({each}): it may "
        "have caused a part of that idle time, which a run without a profiler does not have"
    )


def _split(
    tokens: Mapping[str, float],
    linear_ns: Mapping[str, float],
    attention_ns: Mapping[str, float] | None,
) -> str:
    linears = (
        f"{tokens['prompts']:,.0f} of {tokens['prompts'] + tokens['single']:,.0f} tokens of a "
        f"mixed step are of prompts: by tokens linears take {linear_ns['prompts'] / 1e3:,.0f} µs "
        f"for them and {linear_ns['single'] / 1e3:,.0f} µs for single tokens"
    )
    if attention_ns is None:
        return f"{linears}; attention is not split, its kernels serve both"
    return (
        f"{linears}; attention, by its kernels, {attention_ns['prompts'] / 1e3:,.0f} µs and "
        f"{attention_ns['single'] / 1e3:,.0f} µs"
    )


_WHY_MISSED = {
    "limit": "--placements and --max-placements allow no more than {placements} placements",
    "disturbed": "other work disturbed samples, so that no more were taken",
    "blocks": (
        "the two models do not fit into memory together, and {placements} placements were measured"
    ),
}


def _until_missed(asked: float, reached: float | None, of: str, ended: str, placements: int) -> str:
    value = "no interval" if reached is None else f"±{100 * reached:.2g} %"
    why = _WHY_MISSED[ended].format(placements=placements)
    what = "the speedup" if of == "speedup" else "the time of a step"
    return f"--until {100 * asked:.2g}%: {what} is known to {value}: {why}"


WORDS: dict[str, str | Callable[..., str]] = {
    # -- how steps were found --
    "whole-trace": "no step marker in the trace: all of it counts as one step",
    "steps-end-at-update": "steps end where {name:short} ends",
    "steps-begin-at-zero-grad": "steps begin where {name:short} begins",
    "steps-of-annotation": (
        "steps are the spans of the annotation {name:short}, which holds nearly all of the time; "
        "--phase-pattern picks others"
    ),
    "steps-of-compiled-code": "steps begin where the compiled code {name:short} is called",
    "steps-of-sequence": (
        "no step marker in the trace: steps are a sequence of work that repeats {count} times; "
        "--phase-pattern picks others"
    ),
    "annotations-without-launches": (
        "{name:short} and similar annotations: these annotations contain no launches, so they are "
        "not the steps"
    ),
    "steps-without-work": lambda name, count: (
        f"{shortened(name)}{when(count > 1, f' and {count - 1} more windows of steps')} "
        f"contain{when(count == 1, 's')} no work: {'they are' if count > 1 else 'it is'} no "
        f"step{plural(count)}, and in no mean or count"
    ),
    "whole-microseconds": "all times of the trace are whole µs: each may be off by up to 1 µs",
    # -- how rows were linked --
    "linked-by-external-id": lambda count, events, cause: (
        f"{count} of {events} device events were linked to their op by External id, for "
        f"{_UNLINKED[cause]}: when they were launched is known no better than by that op"
    ),
    "events-without-op": lambda count, events, cause: (
        f"{count} of {events} device events have no op: {_UNLINKED[cause]}, and no External id "
        "names an op before them"
    ),
    "nameless-launches": (
        "{kernels:,} kernels have no correlation id and {launches:,} launches no kernel: they are "
        "taken for those of one another, and which is which is unknown"
    ),
    "unread-device-work": (
        "{count:,} events of the device ({ns:ms} in all) are of categories that are not read "
        "({categories:list}): they are in no time and no count"
    ),
    "stream-waits": (
        "{count:,} events in which a stream waits for another one ({ns:ms} in all) are no work, "
        "and no kernels"
    ),
    "profiler-work-while-idle": _profiler_work,
    "fused-loops-without-ops": (
        "{ns:ms} a step lie between the ops of compiled code: on a CPU the loops that "
        "torch.compile fuses run there, which record no op, so that their time counts as idle; "
        "torch._inductor.config.cpp.enable_kernel_profile = True records them"
    ),
    "early-kernels": lambda early, launched, ns: (
        f"{early:,} of {launched:,} kernels start before their own launch call, by up to "
        f"{ns / 1e3:,.0f} µs"
    ),
    "clocks-differ": (
        "{file}: {seen:notice}: the clocks of host and device differ, so causes of idle time and "
        "launch delays are unreliable"
    ),
    "several-devices": _devices,
    "launches-lost": "{file}: {lost:,} of {count:,} kernel launches have no kernel in it",
    "launches-captured": (
        "{file}: {captured:,} of {count:,} kernel launches were captured into a graph and did not "
        "run"
    ),
    # -- the events that a step does not hold --
    "work-before-step": lambda events, ns, name, name_ns, name_events: (
        f"{events:,.4g} events a step ran for {ms(ns)} before the previous step had ended: no busy "
        f"time contains that; the largest part is {shortened(name)} {ms(name_ns)} "
        f"({name_events:,.4g} events)"
    ),
    "late-events-left-out": (
        "{phase}: {events:,.0f} of {whole:,.0f} device events have no launch in the trace and are "
        "left out, {ns:ms} of {whole_ns:ms}: the step below is incomplete"
    ),
    "phase-unsure": lambda phase, owner, doubt: (
        f"{when(owner is not None, f'{owner}: ')}{phase}: {doubt}"
    ),
    "in-phase": "{phase}: {about:notice}",
    "step-is-prompt-and-tokens": "{phase}: a step is a prompt and tokens after it: {change}",
    "until-missed": _until_missed,
    "phase-of-trace": "{evidence}: {phase}",
    "mixed-steps": _split,
    "unequal-step-counts": (
        "profiled steps: {dense} of the dense side, {pruned} of the pruned one; each mean is over "
        "its own, and they differ where keys grow or first steps are slow"
    ),
    "not-in-turns": (
        "dense and pruned were captured one after the other, not in turns: what the machine did "
        "between the two is in their ratio"
    ),
}
