"""`make fuzz`: random files for as long as it is told, in a process that is watched.

In: --minutes, --seed, --only SEED:NUMBER. Out: a line a fault on standard output, with the number
that brings it back; exit code 1 where there is one. Limits of a file: 120 s, 3 GiB of addresses.
"""

from __future__ import annotations

import argparse
import faulthandler
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.fuzz.target import attempt

LIMIT_S = 120.0  # of wall clock: a busy machine may well take 30
LIMIT_BYTES = 3 << 30
_DONE, _FAULT = 0, 1


def main() -> int:
    """Start workers one after the other until the time is over; one that dies names its file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", default="0")
    parser.add_argument("--only", help="SEED:NUMBER of one file, without limits")
    parser.add_argument("--from", dest="first", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        with tempfile.TemporaryDirectory() as folder:
            sys.stdout.write(attempt(given.only, Path(folder)) + "\n")
        return _DONE
    if given.first is not None:
        return work(given.seed, given.first, given.minutes * 60)
    return watch(given.seed, given.minutes * 60)


def watch(seed: str, seconds: float) -> int:
    """Runs workers; a fault in one does not end the others."""
    begin, first, faults = time.monotonic(), 0, 0
    while (left := seconds - (time.monotonic() - begin)) > 0:
        command = [sys.executable, "-m", "tests.fuzz.run", "--seed", seed, "--from", str(first),
                   "--minutes", str(left / 60)]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = done.stdout.splitlines()
        last = next((int(x.split()[1]) for x in reversed(lines) if x.startswith("at ")), first)
        sys.stdout.writelines(f"{x}\n" for x in lines if not x.startswith("at "))
        if done.returncode != _DONE:
            faults += 1
            tail = "\n".join(done.stderr.splitlines()[-12:])
            sys.stdout.write(f"FAULT {seed}:{last} (exit code {done.returncode})\n{tail}\n")
        sys.stdout.flush()
        first = last + 1
    sys.stdout.write(f"{first} files, {faults} faults, {time.monotonic() - begin:.0f} s\n")
    return _FAULT if faults else _DONE


def work(seed: str, first: int, seconds: float) -> int:
    """Files from number `first` on, until the time is over or one is a fault."""
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    end, number, seen = time.monotonic() + seconds, first, Counter[str]()
    with tempfile.TemporaryDirectory(prefix="prunescope-fuzz-") as folder:
        while time.monotonic() < end:
            sys.stdout.write(f"at {number}\n")
            sys.stdout.flush()
            faulthandler.dump_traceback_later(LIMIT_S, exit=True)
            seen[attempt(f"{seed}:{number}", Path(folder))] += 1
            number += 1
    faulthandler.cancel_dump_traceback_later()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sys.stdout.write(f"{dict(seen)}, peak {peak:.0f} MB\n")
    return _DONE


if __name__ == "__main__":
    sys.exit(main())
