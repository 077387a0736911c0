"""Time of a capture apart from its samples, by stage.

    python benchmarks/stages.py [--model NAME] [--method FAMILY] [--repeats 3]

In: a model, and the settings of the demo. Out: a row a stage, s: minimum to maximum over the
repeats; unprofiled samples apart, profiled steps with the placements that they belong to. Give it
the machine.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

METHOD = "static-m"
# As `prunescope demo` captures each of its methods.
SETTINGS = {"prompt_len": 128, "decode_steps": 4, "placements": 5, "max_placements": 5,
            "repeats": 10,
            "warmup": 1, "steps": 5}  # fmt: skip


class Stages:
    """Progress that keeps how long each stage took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._name, self._begun = "import", time.perf_counter()

    def stage(self, name: str, total: int | None = None) -> None:  # noqa: ARG002 - a Progress
        """A new stage: those of all placements are one."""
        now = time.perf_counter()
        kept = "placements" if self._name.startswith("placement ") else self._name
        self.seconds[kept] = self.seconds.get(kept, 0.0) + now - self._begun
        self._name, self._begun = name, now

    def advance(self) -> None:
        """Nothing."""

    def describe(self, text: str) -> None:
        """Nothing."""


def main() -> None:
    """Capture, and print the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--method", default=METHOD)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    taken = [once(options.model, options.method) for _ in range(options.repeats)]
    for name in taken[0]:
        seconds = [one.get(name, 0.0) for one in taken]
        sys.stdout.write(f"| {name} | {min(seconds):.1f} to {max(seconds):.1f} |\n")


def once(model: str, method: str) -> dict[str, float]:
    """Seconds by stage of one capture of both phases; the samples are taken out of the
    placements."""
    import prunescope
    from prunescope.taxonomy.runs.run import read_run

    stages = Stages()
    with tempfile.TemporaryDirectory(prefix="stages-") as folder:
        out = Path(folder) / "run"
        prunescope.trace(model, method=method, out=out, progress=stages, **SETTINGS)
        stages.stage("end")
        runs = [read_run(out / variant) for variant in ("dense", "pruned")]
    sampled = 0.0
    for run in runs:
        for name, phase in run.phases.items():
            tokens = SETTINGS["decode_steps"] if name == "decode" else 1
            sampled += sum(phase.samples_ns) * tokens / 1e9
    found = {**stages.seconds}
    found["placements"] -= sampled
    whole = sum(found.values())
    return {**found, "all of these": whole, "samples": sampled}


if __name__ == "__main__":
    main()
