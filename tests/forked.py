"""Processes of their own that need not import everything anew. No test in it.

`run` is what `subprocess.run([sys.executable, "-m", module, *words])` is, text captured, but forked
from one process that has imported torch and prunescope already: 0.05 s in place of 1 to 6. Not for
what is about a start itself: imports, signals in them, `sys.orig_argv`.

    python -m tests.forked: the process that forks; a JSON request a line in, an answer a line out.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from prunescope.taxonomy import presets

ROOT = Path(__file__).resolve().parents[1]
# With these a child begins at once; what else a module imports, it imports as ever.
PRELOADED = ("torch", "transformers.models.llama.modeling_llama", "prunescope.cli",
             "prunescope.tracer.capture.session", "prunescope.analysis.pipeline",
             "prunescope.analysis.report.write", "prunescope.deliver", "matplotlib.figure",
             "matplotlib.backends.backend_agg", "matplotlib.backends.backend_pdf",
             "matplotlib.backends.backend_svg")  # fmt: skip


_read = presets._read


class Forked:
    """A process that was forked: as much of `subprocess.Popen` as the tests need."""

    def __init__(self, pid: int, folder: Path) -> None:
        self.pid = pid
        self.folder = folder

    def wait(self, timeout: float) -> subprocess.CompletedProcess[str]:
        """Its end. Raises TimeoutError, and kills it, where there is none in time."""
        answer = _asked({"wait": self.pid, "timeout": timeout})
        if answer["code"] is None:
            raise TimeoutError(f"no end of process {self.pid} within {timeout} s")
        out, err = ((self.folder / n).read_text(errors="replace") for n in ("out", "err"))
        return subprocess.CompletedProcess([], answer["code"], out, err)


def start(
    module: str,
    words: Sequence[str],
    *,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
) -> Forked:
    """Begin `python -m module words`."""
    folder = Path(tempfile.mkdtemp(dir=_folder()))
    asked = {"module": module, "words": list(words), "cwd": str(cwd), "folder": str(folder),
             "env": dict(os.environ if env is None else env)}  # fmt: skip
    return Forked(_asked(asked)["pid"], folder)


def run(
    module: str,
    words: Sequence[str],
    *,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    """The whole of it."""
    return start(module, words, cwd=cwd, env=env).wait(timeout)


@cache
def _folder() -> str:
    held = tempfile.TemporaryDirectory(prefix="forked-")
    atexit.register(held.cleanup)
    return held.name


@cache
def _server() -> subprocess.Popen[str]:
    found = subprocess.Popen(
        [sys.executable, "-m", "tests.forked"], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip

    def end() -> None:
        found.stdin.close()  # type: ignore[union-attr]
        found.wait(10)

    atexit.register(end)
    return found


def _asked(request: dict[str, Any]) -> dict[str, Any]:
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    answer: dict[str, Any] = json.loads(server.stdout.readline())
    return answer


def serve() -> None:
    """Fork what is asked for, until nobody asks any more."""
    for name in PRELOADED:
        __import__(name)
    presets._read = _of_two_layers
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            answer = {"code": _end_of(asked["wait"], asked["timeout"])}
        elif pid := os.fork():
            answer = {"pid": pid}
        else:
            _child(asked)
        print(json.dumps(answer), file=answers, flush=True)


def _of_two_layers(name: str) -> dict[str, Any]:
    """A preset as tests with a model have it: tiny-llama with two of its 8 layers."""
    found = _read(name)
    if name == "tiny-llama":
        found["config"]["num_hidden_layers"] = 2
    return found


def _end_of(pid: int, timeout: float) -> int | None:
    """The exit code as `subprocess` tells it; None where there was no end in time."""

    def stop(*_: Any) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(int(timeout))
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except TimeoutError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return None
    finally:
        signal.alarm(0)


def _child(asked: dict[str, Any]) -> NoReturn:
    code = 1
    try:
        code = _main(asked)
        atexit._run_exitfuncs()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _main(asked: dict[str, Any]) -> int:
    os.setsid()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for number, name in enumerate(("/dev/null", "out", "err")):
        file = os.open(Path(asked["folder"]) / name, os.O_RDWR | os.O_CREAT, 0o600)
        os.dup2(file, number)
        os.close(file)
    sys.stdin, sys.stdout, sys.stderr = (
        open(n, "r" if n == 0 else "w", closefd=False) for n in range(3)  # noqa: SIM115
    )  # fmt: skip
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    tempfile.tempdir = None  # read from the environment anew
    sys.argv = [asked["module"], *asked["words"]]
    try:
        runpy.run_module(asked["module"], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 255
        sys.stderr.write(f"{end.code}\n")
        return 1
    except BaseException:  # noqa: BLE001 - what a process of its own would print
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    serve()
