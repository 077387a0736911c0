"""The setting of a phase in words, for captions and sentences.

In: a Phase. Out: its sparsity, inputs, format and machine, in the order in which papers say them.
"""

from __future__ import annotations

from collections.abc import Iterator

from prunescope.analysis.schema.report import Phase
from prunescope.taxonomy import numbers
from prunescope.taxonomy.words import plural


def setting_words(phase: Phase, name: str) -> list[str]:
    """Return the words of a setting: `s = 0.5`, `prefill`, `batch 1`, `64 tokens`, `bf16`.

    Args:
        phase: The phase.
        name: Its name.
    """
    return [*_sparsity(phase), name, *_inputs(phase)]


def _sparsity(phase: Phase) -> Iterator[str]:
    """Yield the nominal sparsity, or where none was named the share of FLOPs that went."""
    nominal, flop = phase.sparsity.get("nominal"), phase.sparsity.get("flop")
    if nominal is not None:
        yield f"s = {nominal:g}"
    elif flop and phase.shows_pruning:
        yield f"{numbers.percent(flop)} of the FLOPs removed"


def _inputs(phase: Phase) -> Iterator[str]:
    """Yield batch, lengths, format and machine; nothing of a trace without run.json."""
    workload = phase.workload
    if not workload:
        return
    yield f"batch {workload.batch:,}"
    if phase.items_per_s is None:
        yield f"{workload.prompt_len:,} tokens"
        if workload.context != workload.prompt_len:
            yield f"{workload.context:,} keys"
    yield workload.dtype
    if workload.mode != "eager":
        yield workload.mode
    if workload.device:
        yield workload.device
    if workload.threads and _is_cpu(phase):
        yield f"{workload.threads} thread{plural(workload.threads)}"


def _is_cpu(phase: Phase) -> bool:
    """Return whether ops ran on the host: only a device leaves launches behind."""
    return phase.anatomy is not None and phase.anatomy.dispatch_ns is None
