"""Workers that begin before anything else is imported are copies of the command's process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.trace.shares import read_share
from prunescope.analysis.trace.workers import search_path

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks are made on Linux alone")

BEGIN = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from pathlib import Path
from prunescope.analysis.trace import workers
workers.count_for = lambda _: 2
path = Path(sys.argv[2])
"""
KINDS = "[type(one).__name__ for found in workers._begun.values() for one in found.processes]"


def event(i: int, **more: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": "cpu_op", "name": f"aten::op{i % 7}", "pid": 1, "tid": 1,
            "ts": i * 10.5, "dur": 3.25, "args": {"External id": i}, **more}  # fmt: skip


def write(path: Path, count: int, **more: Any) -> Path:
    events = [event(i, **more) for i in range(count)]
    path.write_text(json.dumps({"traceEvents": events}, indent=1), encoding="utf-8")
    return path


def told(code: str, path: Path) -> Any:
    words = [sys.executable, "-c", BEGIN + code, search_path(), str(path)]
    done = subprocess.run(words, capture_output=True, check=False, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return json.loads(done.stdout)


def test_early_ones_are_forks_that_read_the_same(tmp_path: Path) -> None:
    path = write(tmp_path / "t.json", 9000)  # 1.4 MB: two blocks, and more than a pipe holds
    code = f"""
workers.begin_early([str(path)])
kinds = {KINDS}
print(json.dumps([kinds, [part.hex() for part in workers.shares_of(path)]]))
"""
    kinds, parts = told(code, path)
    assert kinds == ["_Forked", "_Forked"]
    assert parts == [read_share(path, None, index=i, count=2).hex() for i in range(2)]


def test_none_is_made_where_there_are_threads(tmp_path: Path) -> None:
    path = write(tmp_path / "t.json", 9)
    code = f"""
{{}}
workers.begin_early([str(path)])
print(json.dumps({KINDS}))
"""
    own = ["_Started", "_Started"]
    assert told(code.format("import polars"), path) == own
    thread = (
        "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()"
    )
    assert told(code.format(thread), path) == own


def test_one_that_fails_leaves_it_to_this_process(tmp_path: Path) -> None:
    """A boundary that stands inside a string, found out by the first of them; and none at all."""
    path = write(tmp_path / "t.json", 400, odd="},{" * 5000)
    code = """
import os
from prunescope.analysis.trace.load import (load)
workers.begin_early([str(path)])
failed = workers.shares_of(path) is None
ops = len(load(path).ops["ts"])
def full():
    raise OSError
os.fork = full
workers.begin_early([str(path)])
print(json.dumps([failed, ops, len(workers._begun)]))
"""
    assert told(code, path) == [True, 400, 0]


def test_they_end_with_the_command(tmp_path: Path) -> None:
    """Nobody asked for what they read, which is more than a pipe holds: they wait to be read."""
    path = write(tmp_path / "t.json", 9000)
    code = """
workers.begin_early([str(path)])
print(json.dumps([one.pid for found in workers._begun.values() for one in found.processes]))
"""
    for pid in told(code, path):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_they_end_where_the_command_is_killed(tmp_path: Path) -> None:
    """Nobody reads what they write any more."""
    path = write(tmp_path / "t.json", 9000)
    code = """
import os, signal
workers.begin_early([str(path)])
pids = [one.pid for found in workers._begun.values() for one in found.processes]
print(json.dumps(pids), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    words = [sys.executable, "-c", BEGIN + code, search_path(), str(path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout is not None
        pids = json.loads(command.stdout.readline())
    until = time.monotonic() + 30
    while left := [pid for pid in pids if at_work(pid)]:
        assert time.monotonic() < until, left
        time.sleep(0.05)


def at_work(pid: int) -> bool:
    """Whether a process runs; one that has ended may wait for whoever asks how."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return False
