"""Does the tool measure what a plain loop takes? Unprofiled medians of both, in turns.

    python benchmarks/same_plain.py MODEL COUNT     log ratios of COUNT placements in a process

In: a model. Out: plain.json in a folder: log ratios of the time of prunescope's loops over that of
a plain `from_pretrained().eval()` in a loop that has nothing of prunescope's, on the same tokens.
Both models are put into fresh memory for each placement, since where weights lie moves a time by
more than a loop does. There are two plain loops, for what an allocator gives back between prompts
moves a time too: one makes its cache before the clock runs and holds it until the next prompt, as
prunescope does, one leaves the cache to the model and lets go of everything after each prompt.
"""

from __future__ import annotations

import json
import math
import random
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from same_cases import PHASES, in_new_process, keep, kept
from same_costs import PROMPT, TOKENS

PLACES, ROUNDS, WARMUP = 20, 8, 2
FILE = "plain.json"
OURS = "prunescope"
WAYS = {
    "held": "made before the clock runs, held until the next prompt",
    "let go": "made by the model, let go of after the prompt",
}


def measure(model: str, out: Path) -> None:
    """Measure, and add it to plain.json."""
    keep(out, FILE, {"model": model, "places": in_new_process(__file__, model, PLACES)})


def lines(folder: Path) -> list[str]:
    """The lines of the page on the plain loop, where it was measured."""
    rows = []
    for found in kept(folder, FILE):
        for phase in PHASES:
            ours = _column(found, OURS, phase, "ns")
            for way, words in WAYS.items():
                plain = _column(found, way, phase, "ns")
                logs = [math.log(own / theirs) for own, theirs in zip(ours, plain, strict=True)]
                error = statistics.stdev(logs) / math.sqrt(len(logs))
                faults = (
                    f"{statistics.median(_column(found, name, phase, 'faults')):,.0f}"
                    for name in (way, OURS)
                )
                mean = math.exp(statistics.fmean(logs))
                rows.append(
                    f"| {found['model']} | {phase} | {words} | {statistics.median(plain) / 1e6:.2f}"
                    f" | {' | '.join(faults)} | {len(logs)} | {mean:.3f}"
                    f" ± {error:.3f} | {statistics.stdev(logs):.3f} |"
                )
    if not rows:
        return []
    return [
        "## A plain loop",
        "",
        "`python benchmarks/same.py plain`: unprofiled samples of prunescope's loops over those "
        f"of `from_pretrained().eval()` in loops of its own on the same tokens, {ROUNDS} of each "
        "in turns a placement. Ratio: exp of the mean log ratio of medians, ± its standard error. "
        "Pages: that were touched for the first time in a step, median.",
        "",
        "| model | phase | the plain loop's cache | plain step, ms | pages, plain | pages, "
        "prunescope | placements | prunescope ÷ plain | standard deviation over placements |",
        "|---|---|---|---|---|---|---|---|---|",
        *rows,
        "",
    ]


def _column(found: dict[str, Any], way: str, phase: str, key: str) -> list[float]:
    return [place[way][phase][key] for place in found["places"]]


def _placed(name: str, count: int) -> list[dict[str, Any]]:
    """The times of each placement, {way: {phase: medians of ns a step and of pages first touched in
    it}}."""
    import torch
    from transformers import AutoModelForCausalLM

    from prunescope.tracer.capture.placements import move_weights
    from prunescope.tracer.capture.timing import collector_paused
    from prunescope.tracer.model.load import load_model

    ours = load_model(name, dtype="auto", device=torch.device("cpu"), attn="sdpa").model
    with tempfile.TemporaryDirectory() as folder:
        ours.save_pretrained(folder)
        plain = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    random_numbers = random.Random(0)
    found = []
    with torch.inference_mode():
        for _ in range(count):
            move_weights([ours, plain], random_numbers)
            with collector_paused():
                found.append(_sampled(ours, plain, random_numbers))
    return found


def _sampled(ours: Any, plain: Any, random_numbers: random.Random) -> dict[str, Any]:
    import torch

    from prunescope.tracer.capture.phases import DecodeLoop, PrefillLoop

    ids = torch.randint(0, 100, (1, PROMPT + TOKENS))
    loops = {
        "prefill": PrefillLoop(ours, ids[:, :PROMPT], logits="last"),
        "decode": DecodeLoop(ours, ids, prompt_len=PROMPT, logits="last"),
    }
    ways: dict[str, Any] = {
        OURS: lambda: _our_steps(loops),
        "held": _HeldLoop(plain, ids).steps,
        "let go": lambda: _steps_let_go(plain, ids),
    }
    found: dict[str, dict[str, list[Clock]]] = {way: {p: [] for p in PHASES} for way in ways}
    for number in range(WARMUP + ROUNDS):
        for way in random_numbers.sample(list(ways), len(ways)):
            for phase, clock in zip(PHASES, ways[way](), strict=True):
                if number >= WARMUP:
                    found[way][phase].append(clock)
    return {
        way: {
            phase: {
                "ns": statistics.median(one.ns for one in clocks),
                "faults": statistics.median(one.faults for one in clocks),
            }
            for phase, clocks in phases.items()
        }
        for way, phases in found.items()
    }


class Clock:
    """Times what stands in its block: ns and pages first touched, of one of `steps`."""

    def __init__(self, steps: int = 1) -> None:
        self.steps, self.ns, self.faults = steps, 0.0, 0.0

    def __enter__(self) -> Clock:
        self._faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        self._begun = time.perf_counter_ns()
        return self

    def __exit__(self, *_: object) -> None:
        self.ns = (time.perf_counter_ns() - self._begun) / self.steps
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - self._faults
        self.faults = faults / self.steps


def _our_steps(loops: dict[str, Any]) -> list[Clock]:
    found = []
    for loop in loops.values():
        loop.prepare()
        with Clock(loop.steps_per_sample) as clock:
            output = loop.sample()
        del output
        found.append(clock)
    return found


class _HeldLoop:
    """A prompt, then a token at a time; the cache stays until another takes its place."""

    def __init__(self, model: Any, ids: Any) -> None:
        self.model, self.prompt = model, ids[:, :PROMPT]
        self.tokens = ids[:, PROMPT:].split(1, dim=1)
        self.cache: Any = None

    def steps(self) -> list[Clock]:
        from transformers import DynamicCache

        self.cache = DynamicCache(config=self.model.config)
        with Clock() as prefill:
            self.model(self.prompt, cache=self.cache, use_cache=True, logits_to_keep=1)
        with Clock(TOKENS) as decode:
            for token in self.tokens:
                self.model(token, cache=self.cache, use_cache=True, logits_to_keep=1)
        return [prefill, decode]


def _steps_let_go(model: Any, ids: Any) -> list[Clock]:
    """The same, where nothing is left when it is over."""
    tokens = ids[:, PROMPT:].split(1, dim=1)
    with Clock() as prefill:
        out = model(ids[:, :PROMPT], use_cache=True, logits_to_keep=1)
    with Clock(TOKENS) as decode:
        for token in tokens:
            out = model(token, cache=out.cache, use_cache=True, logits_to_keep=1)
    return [prefill, decode]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_placed(sys.argv[1], int(sys.argv[2]))) + "\n")
