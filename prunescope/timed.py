"""`--timings` of the long commands: where their time went, written also where they fail.

In: a file or -, and the command as a block. Out: {total_s, forwards_s, parts}, from the start of
the process to the end of the block.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress

from prunescope import signals
from prunescope.output import check_target, kept_for_json, write_json
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.timings import process_start_ns, recorded


@contextmanager
def timings_written(target: str, *, beside: str | None) -> Iterator[None]:
    """Record the block, and write where its time went.

    Args:
        target: A file, or "-" for standard output, where all else then goes to standard error.
        beside: The target of the command's own JSON, which must be another.

    Raises:
        PrunescopeError: Both have one target, or it cannot be written.
    """
    if target == beside:
        raise PrunescopeError(
            f"--timings and --json both write to {target}", hint="give one of them a file"
        )
    check_target(target)
    begun = process_start_ns() if signals.IS_COMMAND else time.monotonic_ns()
    moved = kept_for_json() if target == "-" else nullcontext()
    with recorded(begun) as watch:
        try:
            with moved:
                yield
        except BaseException:
            with suppress(PrunescopeError):  # the first error counts
                write_json(watch.to_dict(), target)
            raise
        write_json(watch.to_dict(), target)
