"""The arguments of `prunescope.allocate`. Light: the API imports it.

Options are checked by the types of the fields, so that this file must not postpone annotations, as
that of the API does.
"""

from dataclasses import dataclass

from prunescope.analysis.predict.allocation_request import AllocateRequest
from prunescope.tracer.capture.progress import Progress


@dataclass(kw_only=True)
class AllocateCall(AllocateRequest):
    """A request, and what shows its progress."""

    progress: Progress | None = None
