"""A short run of the fuzzer in every test run: fixed files, each refused in words or a report.

`make fuzz` runs it for ten minutes, with limits of time and memory.
"""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.trace.load import load
from prunescope.taxonomy.errors import PrunescopeError
from tests.fuzz.mutate import mutated
from tests.fuzz.seeds import seeds
from tests.fuzz.target import attempt, check

ROOT = Path(__file__).resolve().parents[2]
# Files that were faults once; each has a test of its own beside what was mended.
FOUND = ("1795627446:349", "1795627446:2409")


@pytest.mark.parametrize("index", range(8))
def test_a_seed_is_a_whole_report(index: int, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_bytes(seeds()[index])
    report = analyze(path).report
    assert report.phases
    assert not report.partial
    for phase in report.phases.values():
        assert phase.busy_ns > 0
        check(phase)


@pytest.mark.parametrize("block", range(2))
def test_random_files(block: int, tmp_path: Path) -> None:
    """Both answers occur: else the mutations are too weak or too strong to test anything."""
    seen = {attempt(f"test:{block * 40 + i}", tmp_path) for i in range(40)}
    assert seen == {"report", "refused"}


@pytest.mark.parametrize("seed", FOUND)
def test_what_the_fuzzer_found_stays_mended(seed: str, tmp_path: Path) -> None:
    assert attempt(seed, tmp_path) in ("report", "refused")


def test_a_seed_tells_its_file() -> None:
    first, second = (mutated(random.Random("s:7")) for _ in range(2))
    assert first == second
    assert mutated(random.Random("s:8")) != first


def test_noise_and_headers_of_noise_are_refused(tmp_path: Path) -> None:
    rng = random.Random(5)
    for head in (b"", b"{", b"[", b'{"traceEvents":[', b"\x1f\x8b\x08\x00", b"PK\x03\x04", b"[{"):
        for size in (0, 1, 30, 3000):
            path = tmp_path / "t.json"
            path.write_bytes(head + rng.randbytes(size))
            with pytest.raises(PrunescopeError):
                load(path)


def test_the_fuzzer_sees_a_fault() -> None:
    """A worker that dies on its third file names it, and the exit code says so."""
    code = (
        "import sys, tests.fuzz.run as r\n"
        "def attempt(seed, folder):\n"
        "    if seed.endswith(':2'): raise KeyError('boom')\n"
        "    return 'report'\n"
        "r.attempt = attempt\n"
        "sys.exit(r.work('s', 0, 5))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "at 2"
    assert "KeyError: 'boom'" in done.stderr
