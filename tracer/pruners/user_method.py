"""A pruning method of the user's own: `package.module:function`, called as f(model, sparsity).

It is imported from the working directory or the environment, and never instead of our packages.
"""

from __future__ import annotations

import importlib
import re
import signal
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.tracer.calibration.point import Point
from prunescope.tracer.model.logits import probe
from prunescope.tracer.pruners import Applied

_HINT = "give package.module:function, a callable (model, sparsity) -> model"
# Told elsewhere: memory, the end of the process, what is one of ours already, no such module.
_OTHERS = (PrunescopeError, MemoryError, torch.OutOfMemoryError, ImportError)
_FOLDERS = re.compile(r"(?<![\w.])(?:~|[A-Za-z]:)?[/\\][^\s'\"]*[/\\]")
_LONGEST = 200  # of the words of an error


def load_method(spec: str) -> Callable[[Any, float], Any]:
    """The callable that `spec` names. Raises PrunescopeError where there is none."""
    module_name, _, name = spec.partition(":")
    here = str(Path.cwd())
    # Last: a folder `analysis/` or `tracer/` of the user's must not stand before ours.
    added = here not in sys.path
    if added:
        sys.path.append(here)
    try:
        with _told(f"importing {module_name}"):
            module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise PrunescopeError(f"{module_name} cannot be imported ({error})", hint=_HINT) from error
    finally:
        if added:
            sys.path.remove(here)
    method = getattr(module, name, None)
    if not callable(method):
        raise PrunescopeError(f"{module_name} has no function {name!r}", hint=_HINT)
    return method


def apply_method(spec: str, model: nn.Module, point: Point) -> Applied:
    """Run the user's method on a model that is its own to change."""
    function = load_method(spec)
    with _told(spec):
        pruned = function(model, point.sparsity)
    if not isinstance(pruned, nn.Module):
        raise PrunescopeError(
            f"{spec} returned {type(pruned).__name__}, not a model",
            hint="return the model, also where it was changed in place",
        )
    for parameter in pruned.parameters():
        if parameter.is_floating_point() or parameter.is_complex():
            # As in its dense baseline: torch chooses kernels by it (see
            # tracer.model.narrow.successor).
            parameter.requires_grad_()
    return Applied(model=pruned.eval(), record={})


def check_returned(spec: str, model: nn.Module) -> None:
    """Raises PrunescopeError, with the error of the model, where what the method returned does not
    run."""
    try:
        probe(model, f"pruned with {spec}")
    except PrunescopeError as error:
        raise PrunescopeError(
            error.problem, hint=f"what {spec} returned must run as the dense model does: mend it"
        ) from error


@contextmanager
def _told(what: str) -> Iterator[None]:
    """An error in code of the user's own, in one sentence; their lines of the traceback as a note.
    None of it holds a folder of this machine."""
    try:
        yield
    except (Exception, SystemExit) as error:  # theirs may be any
        terminated = isinstance(error, SystemExit) and error.code == 128 + signal.SIGTERM
        if terminated or isinstance(error, _OTHERS):
            raise
        raise _explained(what, error) from error


def _explained(what: str, error: BaseException) -> PrunescopeError:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_theirs(frame)]
    line = error.lineno if isinstance(error, SyntaxError) else None
    if isinstance(error, SyntaxError) and error.filename:
        where = f" ({Path(error.filename).name}, line {line})"
    else:
        where = f" ({_place(frames[-1])})" if frames else ""
    words = _FOLDERS.sub("", next(iter(str(error).strip().splitlines()), ""))[:_LONGEST]
    said = f"{type(error).__name__}: {words}" if words else type(error).__name__
    failure = PrunescopeError(
        f"{what} raised {said}{where}", hint="it is code of your own: mend it, and run this again"
    )
    for frame in frames:
        failure.add_note(f"  {_place(frame)}, in {frame.name}: {frame.line}")
    return failure


def _is_theirs(frame: traceback.FrameSummary) -> bool:
    """Neither ours, nor a library's, nor Python's."""
    path = Path(frame.filename).absolute()
    paths = sysconfig.get_paths()
    libraries = [Path(paths[name]) for name in ("stdlib", "purelib", "platlib")]
    theirs = not frame.filename.startswith("<") and Path(__file__).parent not in path.parents
    return theirs and not any(folder in path.parents for folder in libraries)


def _place(frame: traceback.FrameSummary) -> str:
    return f"{Path(frame.filename).name}, line {frame.lineno}"
