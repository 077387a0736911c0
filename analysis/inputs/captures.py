"""The capture of a CUDA graph for the batch of a step, from a folder with one trace per batch size.

In: a folder in which an engine wrote what it captured, and the batch of the steps that replay it.
The batch of a capture is in the name of its file (SGLang: `bs_32_rank0.json.gz`), else in an
annotation inside (vLLM: `capture_32_FULL`). Out: the trace of the smallest captured batch that
holds these sequences, as engines pad a batch to the next size that they captured.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from prunescope.analysis.timeline.engine_steps import decode_batch
from prunescope.analysis.trace.load import load
from prunescope.analysis.trace.rank_files import rank_in_name, trace_files
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.lazy_pattern import lazy_pattern

_BATCH = lazy_pattern(
    r"(?<![a-z])(?:capture|bs|batch(?:_?size)?)[_=-]?(\d{1,9})(?!\d)", re.IGNORECASE
)
_NAME_LIMIT = 200
_SHOWN = 12  # batches in a message


def usual_batch(steps: Sequence[str]) -> int | None:
    """Return the most common batch size in the annotations of the steps; None if they name none."""
    known = Counter(batch for name in steps if (batch := decode_batch(name)) is not None)
    return known.most_common(1)[0][0] if known else None


def captured_pass(folder: Path, batch: int | None, rank: str | None = None) -> Path:
    """Choose the trace in `folder` that was captured for a batch.

    Args:
        folder: The folder of captures.
        batch: The number of sequences; None if it is unknown.
        rank: Where several ranks captured, the one whose trace is chosen.

    Raises:
        PrunescopeError: The batch is unknown, or no capture holds it.
    """
    files = trace_files(folder)
    if len(files) == 1:
        return files[0]
    sizes = {file: batches for file in files if (batches := _batches([file.name]))}
    sizes = sizes or {file: batches for file in files if (batches := _batches(load(file).names))}
    if not sizes:
        raise PrunescopeError(
            f"{folder.name}/ holds {len(files)} traces, and no name states a batch size",
            hint="give the trace of one batch, or a folder with names like capture_32.json.gz",
        )
    known = sorted(set().union(*sizes.values()))
    shown = ", ".join(map(str, known[:_SHOWN])) + (", …" if len(known) > _SHOWN else "")
    if batch is None:
        raise PrunescopeError(
            f"{folder.name}/ holds captures of the batches {shown}, and no annotation of the steps "
            "names one",
            hint="name the batch with --batch, or give the trace of one batch",
        )
    padded = next((size for size in known if size >= batch), None)
    if padded is None:
        raise PrunescopeError(
            f"the steps have batch {batch}, and {folder.name}/ holds captures of {shown}",
            hint="steps of a larger batch than any captured run without a graph: leave "
            "--eager-trace out, or give another folder",
        )
    chosen = [file for file, batches in sizes.items() if padded in batches]
    number = None if rank is None else rank_in_name(rank)
    of_rank = [file for file in chosen if rank_in_name(file.name) == (number or 0)]
    return (of_rank or chosen)[0]


def _batches(names: Iterable[str]) -> set[int]:
    """Return the batch sizes in names of files or annotations."""
    return {int(size[1]) for name in names if (size := _BATCH.search(name[:_NAME_LIMIT]))}
