"""The setting of a phase in words, for captions and sentences.

In: a Phase. Out: its sparsity, inputs, format and machine, in the order in which papers say them.
"""

from __future__ import annotations

from collections.abc import Iterator

from prunescope.analysis.schema.report import Phase
from prunescope.analysis.schema.workload import PhaseWorkload
from prunescope.taxonomy import numbers
from prunescope.taxonomy.words import plural, shortened

LONGEST = 48  # characters of a name: about a line, and no line can be broken in it


def setting_words(phase: Phase, name: str, device: str | None = None) -> list[str]:
    """Return the words of a setting: `s = 0.5`, `prefill`, `batch 1`, `64 tokens`, `bf16`.

    Args:
        phase: The phase.
        name: Its name.
        device: The device of the report, where the phase does not name it.
    """
    workload = phase.workload or None
    words = [*_sparsity(phase), name]
    words += [] if workload is None else _inputs(phase, workload)
    machine = (workload.device if workload else None) or device
    words += [shortened(machine, LONGEST)] if machine else []
    if workload is not None and workload.on_host and workload.threads:
        words.append(f"{workload.threads} thread{plural(workload.threads)}")
    return words


def _sparsity(phase: Phase) -> Iterator[str]:
    """Yield the nominal sparsity, or where none was named the share of FLOPs that went."""
    nominal, flop = phase.sparsity.get("nominal"), phase.sparsity.get("flop")
    if nominal is not None:
        yield f"s = {nominal:g}"
    elif flop and phase.shows_pruning:
        yield f"{numbers.percent(flop)} of the FLOPs removed"


def _inputs(phase: Phase, workload: PhaseWorkload) -> Iterator[str]:
    """Yield batch, lengths, format and mode."""
    yield f"batch {workload.batch:,}"
    if phase.items_per_s is None:
        yield f"{workload.prompt_len:,} token{plural(workload.prompt_len)}"
        if workload.new_tokens and workload.new_tokens != workload.prompt_len:
            yield f"{workload.new_tokens:,} new token{plural(workload.new_tokens)}"
    yield workload.dtype
    if workload.mode != "eager":
        yield workload.mode


def run_words(phase: Phase) -> str:
    """Return how the samples of a run were taken; empty for a trace without run.json."""
    workload = phase.workload or None
    if workload is None:
        return ""
    facts = [
        f"order of samples: {workload.order}" if workload.order else "",
        f"{workload.warmup} sample{plural(workload.warmup)} discarded as warm-up",
        "last-level cache flushed before each sample" if workload.flushed else "",
        clock_words(workload),
    ]
    return f"run: {'; '.join(filter(None, facts))}"


def clock_words(workload: PhaseWorkload) -> str:
    """Return the clocks before and after a capture; empty if they cannot be read."""
    clocks = []
    for name, (before, after) in workload.clocks_hz.items():
        ends = [f"{hz / 1e9:.2f} GHz" for hz in (before, after) if hz is not None]
        clocks.append(f"{name.removesuffix('_hz')} {' before, '.join(ends)}")
    return f"clocks: {', '.join(clocks)} after" if clocks else ""
