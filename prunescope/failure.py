"""How an error is shown: as text on standard error, with an exit code.

In: an exception that reached the front door. Out: the text, the exit code, and the JSON if JSON was
asked for.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import PurePath

import typer

from prunescope.analysis.report.escape import clean
from prunescope.signals import INTERRUPTED, ended_by, raising_signals
from prunescope.taxonomy.errors import PrunescopeError

_PARTIAL, _INTERRUPTED, _TERMINATED = 3, 130, 143  # the latter: 128 + SIGINT, SIGTERM
_FAILURES = (
    ModuleNotFoundError, OSError, MemoryError, KeyboardInterrupt, typer.Abort, SystemExit,
    UnicodeEncodeError,
)  # fmt: skip
_LOOP = "Symlink loop"  # what Path.resolve raises RuntimeError with before Python 3.13
_LONGEST = 700  # of a problem or a hint; they may quote what was given
_OURS = ("prunescope",)
# What a command with partial results says in JSON; for people its output says it in place.
_INCOMPLETE = {
    "analyze": ("the results are partial", "`warnings` says what was cut off or left out"),
    "check": ("a rule does not hold, or is undecided", "`verdicts` says which and why"),
    "verify": (
        "the bundle does not verify, or not all of it",
        "`failed` and `not_compared` name each file and why",
    ),
    "sweep": (
        "results of the sweep are missing",
        "the same command again resumes it",
    ),
    "doctor": ("something that is needed does not work here", "`hint` of each check is its fix"),
}


def exit_code(command: Callable[[], object], as_json: bool, words: Sequence[str] = ()) -> int:  # noqa: FBT001
    """Run a command, and print what went wrong.

    Args:
        command: The command, which returns its exit code or None.
        as_json: Whether an error or partial result is also an object on standard error.
        words: The words of the command line, of which the first is the name of the command.

    Returns:
        0, 2 for a mistake, 3 for a partial result, 130 or 143 if interrupted.

    Raises:
        Exception: It is a bug of ours, or how shell completion ends.
    """
    _prepare_streams()
    try:
        with raising_signals():
            code = command()
            sys.stdout.flush()
        if code == _INTERRUPTED:  # typer makes it of Ctrl-C
            raise KeyboardInterrupt
    except BrokenPipeError:
        if (ended := ended_by()) is not None:
            return show_error(ended, as_json=as_json, words=words)
        # The reader left. Python would complain once more when it closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (PrunescopeError, typer.TyperException, *_FAILURES) as error:
        return show_error(ended_by() or error, as_json=as_json, words=words)
    except Exception as error:
        if (ended := ended_by()) is not None:  # a library made this of it
            return show_error(ended, as_json=as_json, words=words)
        if not (isinstance(error, RuntimeError) and str(error).startswith(_LOOP)):
            raise
        loop = PrunescopeError(str(error), hint="a link leads to itself: give the folder it means")
        return show_error(loop, as_json=as_json, words=words)
    if code == _PARTIAL and as_json:
        problem, hint = _INCOMPLETE.get(
            next(iter(words), ""), ("the results are partial", "the output says which")
        )
        partial = {"problem": problem, "hint": hint, "exit_code": _PARTIAL}
        sys.stderr.write(json.dumps({"error": partial}) + "\n")
    return code if isinstance(code, int) else 0


def _prepare_streams() -> None:
    """Replace missing standard streams, and write `?` for what an encoding lacks.

    A service may start without standard streams. Words then go nowhere, and not into a file that is
    opened next and would get the number of a stream.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115
    if isinstance(sys.stdout, io.TextIOWrapper) and "utf" not in sys.stdout.encoding.lower():
        sys.stdout.reconfigure(errors="replace")


def show_error(error: BaseException, *, as_json: bool, words: Sequence[str]) -> int:
    """Print what was wrong and what to do.

    Args:
        error: The error.
        as_json: Whether it is also written as JSON.
        words: The words of the command line.

    Returns:
        The exit code.

    Raises:
        BaseException: The error itself, if it is a bug of ours: a module of the package is missing.
    """
    if isinstance(error, SystemExit) and error.code != _TERMINATED:
        raise error  # shell completion ends so
    # They may quote a trace, which is untrusted, and a command line, which may hold a token: logs
    # of CI are read by many.
    told, hint = _problem_and_hint(error)
    problem, hint = map(_safe_text, (_with_given_paths(told, words), hint))
    notes = [_safe_text(note) for note in getattr(error, "__notes__", ())]
    sys.stderr.write("\n".join([*notes, f"error: {problem}", f"  hint: {hint}", ""]))
    if as_json:
        sys.stderr.write(json.dumps({"error": {"problem": problem, "hint": hint}}) + "\n")
    if isinstance(error, SystemExit):
        return _TERMINATED
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return _INTERRUPTED
    return error.exit_code if isinstance(error, PrunescopeError) else 2


def _with_given_paths(problem: str, words: Sequence[str]) -> str:
    """Write a path as it was given, such as `./x`, where a problem begins or ends with `x`."""
    for word in words:
        given = word.partition("=")[2] if word.startswith("--") else word
        path = str(PurePath(given))
        if path != given and path != os.curdir:
            place = rf"(?:^|(?<=: )){re.escape(path)}(?![\w/.-])|(?<=\s){re.escape(path)}$"
            problem = re.sub(place, given.replace("\\", r"\\"), problem)
    return problem


def _safe_text(text: str) -> str:
    """Return a text without secrets and control characters, shortened in the middle."""
    from prunescope.taxonomy.scrub import without_secrets  # errors alone need its patterns

    safe, half = clean(without_secrets(text)), _LONGEST // 2
    return safe if len(safe) <= _LONGEST else f"{safe[:half]} ... {safe[-half:]}"


def _problem_and_hint(error: BaseException) -> tuple[str, str]:
    """Return what is wrong and what to do about it."""
    if isinstance(error, PrunescopeError):
        return error.problem, error.hint
    if isinstance(error, KeyboardInterrupt | typer.Abort | SystemExit):
        return INTERRUPTED
    if isinstance(error, UnicodeEncodeError):
        text = error.object[max(0, error.start - 20) : error.end + 20]
        return f"{text!r} cannot be written as {error.encoding}", "rename it, or set PYTHONUTF8=1"
    if isinstance(error, MemoryError):
        return "out of memory", "a trace of fewer steps, or a machine with more memory"
    if isinstance(error, ModuleNotFoundError):
        library = (error.name or "").split(".")[0]
        if library in _OURS:
            raise error
        return f"{library} is not installed", f"pip install {library}"
    if isinstance(error, OSError):
        parts = (error.filename, error.strerror or error)
        problem = ": ".join(str(part) for part in parts if part)
        return problem, "check the path, its permissions and the space left"
    # A usage error of typer: unknown option, bad value, ...
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "prunescope"
    sentence = getattr(error, "format_message", lambda: str(error))()
    return sentence.replace("Value error, ", ""), f"see `{command} --help`"
