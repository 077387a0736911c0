"""Two checkouts in turns: how long one command takes in each, as a whole process.

    git worktree add ../old COMMIT
    python benchmarks/turns.py ../old . --repeats 7 -- analyze RUN

In: the roots of two checkouts that run on the packages of this interpreter, and the words of a
command. Out: a row a checkout, wall s: median, minimum to maximum, and the ratio to the first.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

# The folder of the process holds no package of its own; each checkout's is found first.
CODE = "import sys, prunescope; sys.exit(prunescope.main())"


def main() -> None:
    """Run the words in both checkouts in turn, and print the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkouts", type=Path, nargs=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("words", nargs="+", help="of the command, behind --; paths as they are")
    options = parser.parse_args()
    words = [str(Path(w).resolve()) if Path(w).exists() else w for w in options.words]
    roots = [root.resolve() for root in options.checkouts]
    taken: dict[Path, list[float]] = {root: [] for root in roots}
    for turn in range(options.repeats + 1):  # the first of each warms the caches of files
        for root in roots if turn % 2 else roots[::-1]:
            seconds = once(root, words)
            if turn:
                taken[root].append(seconds)
    first = statistics.median(taken[roots[0]])
    for root, seconds in taken.items():
        middle = statistics.median(seconds)
        sys.stdout.write(
            f"| {root.name} | {middle:.2f} | {min(seconds):.2f} to {max(seconds):.2f} | "
            f"{middle / first:.2f} |\n"
        )


def once(root: Path, words: Sequence[str]) -> float:
    """Wall seconds of one run. Raises CalledProcessError where it fails."""
    with tempfile.TemporaryDirectory(prefix="turns-") as out:
        begun = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", CODE, *words, "--out", str(Path(out) / "report")],
            cwd=out,
            env={**os.environ, "PYTHONPATH": str(root)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )
        return time.perf_counter() - begun


if __name__ == "__main__":
    main()
