"""Explain from profiler traces why a pruned LLM is not as fast as promised: the Python API.

>>> import prunescope
>>> folder = prunescope.trace("tiny-llama", method="static-m", sparsity=0.5)
>>> prunescope.analyze(folder).show()

The names and defaults are those of the commands (`prunescope --help`). Importing this loads neither
torch nor polars.
"""

from __future__ import annotations

from prunescope import signals as signals  # first: handles Ctrl-C during the other imports

# isort: split
import importlib
from typing import TYPE_CHECKING, Any

from prunescope.model_trees import use_module_trees
from prunescope.taxonomy.errors import PrunescopeError

if TYPE_CHECKING:
    from prunescope.api import (
        allocate,
        analyze,
        bundle,
        capture_engine,
        check,
        cite,
        claim,
        compare,
        devices,
        families,
        fix,
        gemm,
        history,
        pareto,
        predict,
        reproduce,
        sweep,
        trace,
        verify,
    )
    from prunescope.results.allocation_plan import AllocationPlan
    from prunescope.results.citations import Citations
    from prunescope.results.claim import Claim
    from prunescope.results.comparison import Comparison
    from prunescope.results.fixed import Fixed
    from prunescope.results.history import History
    from prunescope.results.pareto import Pareto
    from prunescope.results.prediction import Prediction
    from prunescope.results.replayed import Replayed
    from prunescope.results.report import Report
    from prunescope.results.reproduction import Reproduction
    from prunescope.results.verified import Verified
    from prunescope.tracer.capture.user_capture import capture

use_module_trees()

__version__ = "0.3.0"
__all__ = [
    "AllocationPlan",
    "Citations",
    "Claim",
    "Comparison",
    "Fixed",
    "History",
    "Pareto",
    "Prediction",
    "PrunescopeError",
    "Replayed",
    "Report",
    "Reproduction",
    "Verified",
    "allocate",
    "analyze",
    "bundle",
    "capture",
    "capture_engine",
    "check",
    "cite",
    "claim",
    "compare",
    "devices",
    "families",
    "fix",
    "gemm",
    "history",
    "pareto",
    "predict",
    "reproduce",
    "sweep",
    "trace",
    "verify",
]
_LAZY = {
    "AllocationPlan": "prunescope.results.allocation_plan",
    "Citations": "prunescope.results.citations",
    "Claim": "prunescope.results.claim",
    "Comparison": "prunescope.results.comparison",
    "Fixed": "prunescope.results.fixed",
    "History": "prunescope.results.history",
    "Pareto": "prunescope.results.pareto",
    "Prediction": "prunescope.results.prediction",
    "Replayed": "prunescope.results.replayed",
    "Report": "prunescope.results.report",
    "Reproduction": "prunescope.results.reproduction",
    "Verified": "prunescope.results.verified",
    "capture": "prunescope.tracer.capture.user_capture",
    "main": "prunescope.cli",
}


def __getattr__(name: str) -> Any:
    # All else is a function: their requests take longer to import than `--help` to print.
    module = _LAZY.get(name, "prunescope.api" if name in __all__ else None)
    if module is None:
        raise AttributeError(f"module 'prunescope' has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return sorted(__all__)
