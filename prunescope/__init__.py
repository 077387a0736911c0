"""Explain from profiler traces why a pruned LLM is not as fast as promised: the Python API.

The names and defaults are those of the commands (`prunescope.cli`). Nothing heavy is imported
before it is used: `tracer` needs torch, `analysis` polars, and neither imports the other.
"""

from __future__ import annotations

from prunescope import signals  # first: it hears Ctrl-C while the others are imported

# isort: split
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunescope.taxonomy.errors import PrunescopeError

if TYPE_CHECKING:
    from prunescope.analysis.schema.report import Report
    from prunescope.cli import main
    from prunescope.tracer.capture.progress import Progress
    from prunescope.tracer.capture.user_capture import capture

__version__ = "0.1.0"
__all__ = ["PrunescopeError", "Report", "analyze", "capture", "main", "predict", "signals", "trace"]

_LAZY = {
    "Report": "prunescope.analysis.schema.report",
    "capture": "prunescope.tracer.capture.user_capture",
    "main": "prunescope.cli",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'prunescope' has no attribute {name!r}")


def trace(*, progress: Progress | None = None, **options: Any) -> Path:
    """Trace a model, and its dense twin interleaved with it; returns the folder of both runs.

    Takes the options of `prunescope trace`, with underscores (`--set` is `knobs`, a dict):
    prunescope.trace(model="tiny-llama", method="static-m", sparsity=0.5).
    """
    from prunescope.taxonomy.arguments import run_name
    from prunescope.tracer.capture.trace import TraceRequest
    from prunescope.tracer.capture.trace import trace as run

    if options.get("out") is None:
        words = (options["model"], options.get("method"), options.get("sparsity"))
        options["out"] = Path("traces", run_name(*words))
    return run(TraceRequest(**options), progress)


def analyze(subject: Path | str, *, baseline: Path | str | None = None, **options: Any) -> Report:
    """The Report of a run folder or a Chrome trace, against its dense twin or `baseline`.

    Takes the options of `prunescope analyze` that are not about output (`--peak` is `peaks`, a
    dict in TFLOP/s; `bandwidth` is in GB/s), and writes nothing.
    """
    from prunescope.analysis.pipeline import Options
    from prunescope.analysis.pipeline import analyze as run
    from prunescope.taxonomy.arguments import refuse_empty

    refuse_empty(path for path in (subject, baseline) if isinstance(path, str))
    dense = None if baseline is None else Path(baseline)
    return run(Path(subject), baseline=dense, options=Options(**options)).report


def predict(**options: Any) -> dict[str, Any]:
    """What a roofline promises without a run, or of one dense run (`from_run`).

    Takes the options of `prunescope predict`; gives a dict as `--json` writes it.
    """
    import msgspec

    from prunescope.analysis.predict.predict import PredictRequest

    request = PredictRequest(**options)
    if request.from_run is not None:
        from prunescope.analysis.predict_from import predict_from

        return dict(msgspec.to_builtins(predict_from(request)))
    from prunescope.analysis.predict.predict import predict as run

    return dict(msgspec.to_builtins(run(request)))
