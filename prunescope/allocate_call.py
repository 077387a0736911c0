"""What `prunescope.allocate` takes. Light: the API imports it."""

from dataclasses import dataclass

from prunescope.analysis.predict.allocation_request import AllocateRequest
from prunescope.tracer.capture.progress import Progress


@dataclass(kw_only=True)
class AllocateCall(AllocateRequest):
    """A request, and what shows its progress."""

    progress: Progress | None = None
