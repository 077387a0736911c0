"""Does the tool measure what a plain loop takes? Unprofiled medians of both, in turns.

    python benchmarks/same_plain.py MODEL COUNT     log ratios of COUNT placements in a process

In: a model. Out: plain.json in a folder: log ratios of the time of prunescope's loops over that of
a plain `from_pretrained().eval()` in a loop that has nothing of prunescope's, on the same tokens.
Both models are put into fresh memory for each placement, since where weights lie moves a time by
more than a loop does.
"""

from __future__ import annotations

import json
import math
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from same_cases import PHASES, keep, kept  # noqa: E402
from same_costs import PROMPT, TOKENS  # noqa: E402

PLACES, ROUNDS, WARMUP = 20, 8, 2
FILE = "plain.json"


def measure(model: str, out: Path) -> None:
    """Measure, and add it to plain.json."""
    command = [sys.executable, __file__, model, str(PLACES)]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    keep(out, FILE, {"model": model, "places": json.loads(ran.stdout.splitlines()[-1])})


def told(folder: Path) -> list[str]:
    """What the page says of it, where it was measured."""
    rows = []
    for found in kept(folder, FILE):
        for phase in PHASES:
            logs = [one[phase]["log_ratio"] for one in found["places"]]
            plain_ms = statistics.median(one[phase]["plain_ns"] for one in found["places"]) / 1e6
            error = statistics.stdev(logs) / math.sqrt(len(logs))
            mean = math.exp(statistics.fmean(logs))
            rows.append(
                f"| {found['model']} | {phase} | {plain_ms:.2f} | {len(logs)} | {mean:.3f} ± "
                f"{error:.3f} | {statistics.stdev(logs):.3f} |"
            )
    if not rows:
        return []
    return [
        "## A plain loop",
        "",
        "`python benchmarks/same.py plain`: unprofiled samples of prunescope's loops over those "
        f"of `from_pretrained().eval()` in a loop of its own on the same tokens, {ROUNDS} of both "
        "in turns a placement. Ratio: exp of the mean log ratio of medians, ± its standard error.",
        "",
        "| model | phase | plain step, ms | placements | prunescope ÷ plain | standard deviation "
        "over placements |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
    ]


def _placed(name: str, count: int) -> list[dict[str, dict[str, float]]]:
    """By placement and phase: the plain loop's median ns a step, and the log ratio of ours."""
    import torch
    from transformers import AutoModelForCausalLM

    from prunescope.tracer.capture.seatings import place
    from prunescope.tracer.capture.timing import collector_resting
    from prunescope.tracer.model.load import load_model

    ours = load_model(name, dtype="auto", device=torch.device("cpu"), attn="sdpa").model
    with tempfile.TemporaryDirectory() as folder:
        ours.save_pretrained(folder)
        plain = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    draw = random.Random(0)
    found = []
    with torch.inference_mode():
        for _ in range(count):
            place([ours, plain], draw)
            with collector_resting():
                found.append(_sampled(ours, plain))
    return found


def _sampled(ours: Any, plain: Any) -> dict[str, dict[str, float]]:
    import torch

    from prunescope.tracer.capture.phases import DecodeLoop, PrefillLoop

    ids = torch.randint(0, 100, (1, PROMPT + TOKENS))
    loops = {
        "prefill": PrefillLoop(ours, ids[:, :PROMPT], logits="last"),
        "decode": DecodeLoop(ours, ids, prompt_len=PROMPT, logits="last"),
    }
    times: dict[str, tuple[list[float], list[float]]] = {phase: ([], []) for phase in PHASES}
    for number in range(WARMUP + ROUNDS):
        for is_ours in (True, False) if number % 2 else (False, True):
            for phase, ns in _our_steps(loops) if is_ours else _plain_steps(plain, ids):
                if number >= WARMUP:
                    times[phase][is_ours].append(ns)
    return {
        phase: {
            "plain_ns": statistics.median(theirs),
            "log_ratio": math.log(statistics.median(own) / statistics.median(theirs)),
        }
        for phase, (theirs, own) in times.items()
    }


def _our_steps(loops: dict[str, Any]) -> list[tuple[str, float]]:
    found = []
    for phase, loop in loops.items():
        loop.prepare()
        begun = time.perf_counter_ns()
        output = loop.sample()
        found.append((phase, (time.perf_counter_ns() - begun) / loop.steps_per_sample))
        del output
    return found


def _plain_steps(model: Any, ids: Any) -> list[tuple[str, float]]:
    """As anybody would write it: a forward of the prompt, then of a token at a time."""
    tokens = ids[:, PROMPT:].split(1, dim=1)
    begun = time.perf_counter_ns()
    out = model(ids[:, :PROMPT], use_cache=True, logits_to_keep=1)
    prompt_ns, begun = time.perf_counter_ns() - begun, time.perf_counter_ns()
    for token in tokens:
        out = model(token, past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1)
    ns = time.perf_counter_ns() - begun
    return [("prefill", float(prompt_ns)), ("decode", ns / TOKENS)]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_placed(sys.argv[1], int(sys.argv[2]))) + "\n")
