"""Machine costs for same.py's page: the cost of a record, and of the known wait.

In: nothing. Out: costs.json in a folder, ns. `record`: to record an op, and a module's span, under
the profiler. `wait`: by how much a plain loop, without any of prunescope's, becomes slower when the
first layer waits: at its place, and in all. The ops behind a wait find colder caches, and their
time is no less real than the wait's.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WAIT_NS = 2_000_000
PROMPT, TOKENS, ROUNDS = 256, 8, 60


def busy_wait() -> None:
    """Wait as a method does that keeps the thread for itself."""
    end = time.perf_counter_ns() + WAIT_NS
    while time.perf_counter_ns() < end:
        pass


def costs(out: Path) -> None:
    """Measure both, and write costs.json."""
    found = {"record": _record(), "wait": _wait()}
    out.mkdir(parents=True, exist_ok=True)
    (out / "costs.json").write_text(json.dumps(found), encoding="utf-8")
    sys.stderr.write(f"{found}\n")


def cost_lines(folder: Path) -> list[str]:
    """The lines of the page on these costs, where they were measured."""
    file = folder / "costs.json"
    if not file.is_file():
        return []
    found = json.loads(file.read_text("utf-8"))
    record = found["record"]
    lines = [
        f"`python benchmarks/same.py costs`: to record an op takes {record['op_ns'] / 1e3:.1f} µs "
        f"here, a module's span with its two hooks {record['span_ns'] / 1e3:.1f} µs (median of 9 "
        f"rounds of 2,000). In a plain loop of tiny-llama, of {PROMPT} tokens, without profiler "
        "and without prunescope, the wait makes a step longer by",
        "",
        "| phase | at its place, ms | in all, ms (median of pairs, quartiles) |",
        "|---|---|---|",
    ]
    for phase, one in found["wait"].items():
        low, middle, high = (x / 1e6 for x in one["longer_ns"])
        lines.append(
            f"| {phase} | {one['inside_ns'] / 1e6:.2f} | {middle:.2f} ({low:.2f}–{high:.2f}) |"
        )
    return [
        *lines,
        "",
        "What is more than the wait itself is the ops behind it, which find colder caches: the "
        "ledger has it in both rows, and their sum is what the plain loop shows.",
        "",
    ]


def _record() -> dict[str, int]:
    import torch
    from torch.profiler import ProfilerActivity, profile

    from prunescope.tracer.capture.scopes import module_scopes

    one = torch.ones(1)
    model = torch.nn.Sequential(torch.nn.Identity())

    def each(work: Callable[[], Any]) -> float:
        """Median of 9 rounds of 2,000, ns."""
        rounds = []
        for _ in range(9):
            begun = time.perf_counter_ns()
            for _ in range(2000):
                work()
            rounds.append((time.perf_counter_ns() - begun) / 2000)
        return statistics.median(rounds)

    def profiled(work: Callable[[], Any]) -> float:
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True):
            return each(work)

    with torch.inference_mode():
        op = profiled(lambda: torch.neg(one)) - each(lambda: torch.neg(one))
        plain = each(lambda: model(one))
        with module_scopes(model):
            span = profiled(lambda: model(one)) - plain
    return {"op_ns": round(op), "span_ns": round(span)}


def _wait() -> dict[str, dict[str, Any]]:
    """{phase: {"inside_ns", "longer_ns": [quartile, median, quartile]}} of steps in ABBA order."""
    import torch

    from prunescope.tracer.model.load import load_model

    model = load_model("tiny-llama", dtype="auto", device=torch.device("cpu"), attn="sdpa").model
    waits, inside = False, 0

    def hook(*_: Any) -> None:
        nonlocal inside
        begun = time.perf_counter_ns()
        if waits:
            busy_wait()
        inside += time.perf_counter_ns() - begun

    model.model.layers[0].mlp.register_forward_pre_hook(hook)
    times: dict[tuple[str, bool], list[float]] = {}
    held: dict[str, list[float]] = {"prefill": [], "decode": []}
    with torch.inference_mode():
        for number in range(2 * ROUNDS):
            for waits in (False, True, True, False) if number % 2 else (True, False, False, True):
                for phase, ns, within in plain_steps(model, lambda: inside):
                    times.setdefault((phase, waits), []).append(ns)
                    if waits:
                        held[phase].append(within)
    found = {}
    for phase, own in held.items():
        pairs = zip(times[phase, True], times[phase, False], strict=True)
        longer = statistics.quantiles([a - b for a, b in pairs], n=4)
        found[phase] = {"inside_ns": statistics.median(own), "longer_ns": longer}
    return found


def plain_steps(
    model: Any, inside: Callable[[], int] = lambda: 0
) -> list[tuple[str, float, float]]:
    """(phase, ns a step, ns of it by the counter `inside`) of one prefill and of the decode after
    it, in a loop that has nothing of prunescope's."""
    import torch

    ids = torch.randint(0, 100, (1, PROMPT))
    before, begun = inside(), time.perf_counter_ns()
    out = model(ids, use_cache=True, logits_to_keep=1)
    found = [("prefill", float(time.perf_counter_ns() - begun), float(inside() - before))]
    token = out.logits[:, -1:].argmax(-1)
    before, begun = inside(), time.perf_counter_ns()
    for _ in range(TOKENS):
        out = model(token, cache=out.cache, use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1:].argmax(-1)
    ns, within = time.perf_counter_ns() - begun, inside() - before
    return [*found, ("decode", ns / TOKENS, within / TOKENS)]
