"""Are placements as different from each other as new processes are?

    python benchmarks/same_places.py one MODEL COUNT     log ratios of COUNT placements in a process

In: a model. Out: places.json in a folder: log ratios of the times of a model and its own copy, of
20 new processes with one placement each, and of one process with 20 placements. Where weights lie
is what differs; as much in both, where placements sample it again.
"""

from __future__ import annotations

import copy
import json
import math
import os
import random
import statistics
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from same_cases import in_new_process, keep, kept
from same_costs import plain_steps

PLACES, ROUNDS, WARMUP = 20, 16, 2
FILE = "places.json"
WAYS = {"processes": "new processes", "placements": "placements of one process"}
RESAMPLES = 2000


def places(model: str, out: Path) -> None:
    """Measure both ways, and add them to places.json."""
    found = {
        "model": model,
        "placements": in_new_process(__file__, "one", model, PLACES),
        "processes": [
            ratios for _ in range(PLACES) for ratios in in_new_process(__file__, "one", model, 1)
        ],
    }
    keep(out, FILE, found)


def spread(folder: Path) -> list[str]:
    """The lines of the page on this spread, where it was measured."""
    rows = []
    for found in kept(folder, FILE):
        for phase in ("prefill", "decode"):
            own = {way: [one[phase] for one in found[way]] for way in WAYS}
            cells = [f"{_spread(v):.2%} | {statistics.fmean(v):+.2%}" for v in own.values()]
            low, high = _ratio(own["placements"], own["processes"])
            ratio = _spread(own["placements"]) / _spread(own["processes"])
            rows.append(
                f"| {found['model']} | {phase} | {' | '.join(cells)} | {ratio:.2f} [{low:.2f}, "
                f"{high:.2f}] |"
            )
    if not rows:
        return []
    return [
        "## Placements and new processes",
        "",
        "`python benchmarks/same.py places`: the logarithm of the time of a model over that of its "
        f"own copy, {PLACES} placements each way, {ROUNDS} samples of both in turns a placement.",
        "",
        "| model | phase | "
        + " | ".join(f"{way}: standard deviation | mean" for way in WAYS.values())
        + " | placements over processes, 95 % bootstrap |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
    ]


def _one(name: str, count: int) -> list[dict[str, float]]:
    """Log ratios of a model and its copy, in `count` placements."""
    import torch

    from prunescope.tracer.capture.placements import move_weights
    from prunescope.tracer.model.load import load_model

    model = load_model(name, dtype="auto", device=torch.device("cpu"), attn="sdpa").model
    models, random_numbers = [model, copy.deepcopy(model)], random.Random(os.getpid())
    found = []
    with torch.inference_mode():
        for _ in range(count):
            move_weights(models, random_numbers)
            times = _sampled(models)
            medians = {phase: [statistics.median(ns) for ns in own] for phase, own in times.items()}
            found.append({phase: math.log(a / b) for phase, (a, b) in medians.items()})
    return found


def _sampled(models: list[Any]) -> dict[str, tuple[list[float], list[float]]]:
    """ns of both models by phase, in ABBA order."""
    times: dict[str, tuple[list[float], list[float]]] = {"prefill": ([], []), "decode": ([], [])}
    for number in range(WARMUP + ROUNDS):
        for which in (0, 1) if number % 2 else (1, 0):
            for phase, ns, _ in plain_steps(models[which]):
                if number >= WARMUP:
                    times[phase][which].append(ns)
    return times


def _spread(values: list[float]) -> float:
    return statistics.stdev(values)


def _ratio(a: list[float], b: list[float]) -> tuple[float, float]:
    """The 95 % bootstrap of the ratio of both spreads."""
    random_numbers = random.Random(0)
    ratios = sorted(
        _spread(random_numbers.choices(a, k=len(a))) / _spread(random_numbers.choices(b, k=len(b)))
        for _ in range(RESAMPLES)
    )
    return ratios[round(0.025 * RESAMPLES)], ratios[round(0.975 * RESAMPLES) - 1]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_one(sys.argv[2], int(sys.argv[3]))) + "\n")
