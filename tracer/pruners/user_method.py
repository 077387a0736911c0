"""A pruning method of the user's own: `package.module:function`, called as f(model, sparsity).

It is imported from the working directory or the environment, after the installed packages. What it
selects by is known if the function says so, as `by_norm.selects_by = "norm of a channel"`.
"""

from __future__ import annotations

import importlib
import inspect
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
# Errors that say enough by themselves, since the user's code is not at fault or is missing.
_PASSED_ON = (PrunescopeError, MemoryError, torch.OutOfMemoryError, ImportError)
_FOLDERS = re.compile(r"(?<![\w.])(?:~|[A-Za-z]:)?[/\\][^\s'\"]*[/\\]")
_LONGEST = 200  # characters of an error message


def load_method(spec: str) -> Callable[[Any, float], Any]:
    """Import the callable that `spec` names, such as `package.module:function`.

    Raises:
        PrunescopeError: There is no such callable, or it does not take two arguments.
    """
    module_name, _, name = spec.partition(":")
    here = str(Path.cwd())
    # It comes last, so that a user's folder `analysis/` or `tracer/` does not hide ours.
    added = here not in sys.path
    if added:
        sys.path.append(here)
    try:
        with _errors_explained(f"importing {module_name}"):
            module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise PrunescopeError(f"{module_name} cannot be imported ({error})", hint=_HINT) from error
    finally:
        if added:
            sys.path.remove(here)
    method = getattr(module, name, None)
    if not callable(method):
        raise PrunescopeError(f"{module_name} has no function {name!r}", hint=_HINT)
    try:
        inspect.signature(method).bind(None, 0.5)
    except TypeError:
        raise PrunescopeError(
            f"{spec} does not take two arguments, a model and a sparsity", hint=_HINT
        ) from None
    except ValueError:  # it is written in C, and its call will show
        pass
    return method


def apply_method(spec: str, model: nn.Module, point: Point) -> Applied:
    """Run the user's method on a model, which it may change in place.

    What it draws from torch is drawn again alike when the same request resumes.

    Raises:
        PrunescopeError: The method raises an error, or returns something other than a model.
    """
    function = load_method(spec)
    with _errors_explained(spec), torch.random.fork_rng():
        torch.manual_seed(point.seed)
        pruned = function(model, point.sparsity)
    if not isinstance(pruned, nn.Module):
        raise PrunescopeError(
            f"{spec} returned {type(pruned).__name__}, not a model",
            hint="return the model, also if it was changed in place",
        )
    for parameter in pruned.parameters():
        if parameter.is_floating_point() or parameter.is_complex():
            # The dense baseline has it too, and torch chooses kernels by it
            # (tracer.model.narrow.successor).
            parameter.requires_grad_()
    selects_by = _selects_by(spec, function)
    record = {} if selects_by is None else {"selection": selects_by}
    return Applied(model=pruned.eval(), record=record)


def _selects_by(spec: str, function: Any) -> str | None:
    """Return what a function says it selects by; None if it says nothing.

    Raises:
        PrunescopeError: Its `selects_by` is no text of one line.
    """
    selects_by = getattr(function, "selects_by", None)
    if selects_by is None:
        return None
    if not isinstance(selects_by, str) or not selects_by.isprintable() or len(selects_by) > 80:
        raise PrunescopeError(
            f"{spec}.selects_by is no text of one line",
            hint='name what it selects by, as in by_norm.selects_by = "norm of a channel"',
        )
    return selects_by or None


def check_returned(spec: str, model: nn.Module) -> None:
    """Check that the model that the method `spec` returned runs.

    Raises:
        PrunescopeError: It does not; the message is the model's error.
    """
    try:
        probe(model, f"pruned with {spec}")
    except PrunescopeError as error:
        raise PrunescopeError(
            error.problem, hint=f"the model that {spec} returns must run like the dense model"
        ) from error


@contextmanager
def _errors_explained(action: str) -> Iterator[None]:
    """Turn an error in the user's code into one sentence, without folders of this machine.

    The user's lines of the traceback become a note.
    """
    try:
        yield
    except (Exception, SystemExit) as error:  # user code may raise anything
        terminated = isinstance(error, SystemExit) and error.code == 128 + signal.SIGTERM
        if terminated or isinstance(error, _PASSED_ON):
            raise
        raise _explained(action, error) from error


def _explained(action: str, error: BaseException) -> PrunescopeError:
    """Write the error of the user's code as a PrunescopeError."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _is_users(f)]
    line = error.lineno if isinstance(error, SyntaxError) else None
    if isinstance(error, SyntaxError) and error.filename:
        where = f" ({Path(error.filename).name}, line {line})"
    else:
        where = f" ({_file_line(frames[-1])})" if frames else ""
    words = _FOLDERS.sub("", next(iter(str(error).strip().splitlines()), ""))[:_LONGEST]
    reason = f"{type(error).__name__}: {words}" if words else type(error).__name__
    failure = PrunescopeError(
        f"{action} raised {reason}{where}",
        hint="the error is in your own code: fix it and run again",
    )
    for frame in frames:
        failure.add_note(f"  {_file_line(frame)}, in {frame.name}: {frame.line}")
    return failure


def _is_users(frame: traceback.FrameSummary) -> bool:
    """Return whether a frame is neither ours, nor a library's, nor Python's."""
    path = Path(frame.filename).absolute()
    paths = sysconfig.get_paths()
    libraries = [Path(paths[name]) for name in ("stdlib", "purelib", "platlib")]
    outside = not frame.filename.startswith("<") and Path(__file__).parent not in path.parents
    return outside and not any(folder in path.parents for folder in libraries)


def _file_line(frame: traceback.FrameSummary) -> str:
    """Return the file and line of a frame, without its folder."""
    return f"{Path(frame.filename).name}, line {frame.lineno}"
