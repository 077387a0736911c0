"""The cost at which each dynamic family skips work, on SmolLM2-135M: router to host time, and
break-even.

    python benchmarks/overhead.py [--model NAME] [--prompt-len N] [--batches B ...] [--repeats N]

Writes overhead.md next to this file: a table for each phase and batch, read from the traces by
`analyze`. All variants share the dense model's weights and take turns with it. Give it the machine:
what was timed while other work ran is marked. Eight placements of a sample each, three of which are
profiled too: 22 forwards of prefill and 155 of decode a variant. Three placements that are all
profiled have 12 and 75, with the same traces to analyse: less than twice their time.
"""

from __future__ import annotations

import argparse
import copy
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunescope.taxonomy.runs.run_blocks import DeviceEntry

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    from prunescope.analysis.schema.report import Phase
    from prunescope.tracer.capture.request import TraceRequest
    from prunescope.tracer.capture.runs import Capture
    from prunescope.tracer.model.load import Loaded

# One decision a family; keys are evicted by attention, so that there is one to pay for.
FAMILIES: dict[str, dict[str, str]] = {
    "dynamic-m": {},
    "dynamic-nk": {},
    "dynamic-depth": {},
    "dynamic-width": {},
    "token-drop": {},
    "kv-evict": {"keep": "attention"},
}
SPARSITIES, BATCHES = (0.25, 0.5), (1, 4)
DECODE_STEPS, WARMUP, STEPS, THREADS = 8, 1, 3, 2
PLACEMENTS = REPEATS = 8
Measured = dict[tuple[str, int], list[tuple[str, float, "Phase"]]]  # by phase and batch


def main() -> None:
    """Capture, analyse and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--prompt-len", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    started = time.monotonic()
    found, device, busy = measured(options)
    text = page(options, found, device, seconds=time.monotonic() - started, busy=busy)
    options.out.write_text(text, encoding="utf-8")
    sys.stderr.write(f"wrote {options.out.name}\n")


def measured(options: argparse.Namespace) -> tuple[Measured, DeviceEntry, bool]:
    """The phases of every family, sparsity and batch, the device, and whether it was busy."""
    import torch

    from prunescope.tracer.capture.progress import Silent
    from prunescope.tracer.capture.session import capture
    from prunescope.tracer.capture.variants import Variant
    from prunescope.tracer.model.load import load_model
    from prunescope.tracer.sweep.plan import SweptRequest

    torch.set_num_threads(THREADS)
    loaded = load_model(options.model, dtype="auto", device=torch.device("cpu"), attn="sdpa")
    points = [(family, s) for family in FAMILIES for s in SPARSITIES]
    found: Measured = {}
    peaks, busy, device = None, False, DeviceEntry()
    placements = min(PLACEMENTS, options.repeats)
    for batch in options.batches:
        request = SweptRequest(
            model=options.model, out=Path(), method=points[0][0], prompt_len=options.prompt_len,
            batch=batch, decode_steps=DECODE_STEPS, warmup=WARMUP, repeats=options.repeats,
            placements=placements, max_placements=placements, steps=STEPS, device="cpu",
            threads=THREADS,
        )  # fmt: skip
        variants = [Variant(name="dense", model=loaded.model, loaded=loaded)]
        variants += [_variant(request, family, s, loaded) for family, s in points]
        captures = capture(request, Silent(), peaks=peaks, variants=variants)
        device = captures["dense"].run.device
        peaks = device.peaks
        for family, s in points:
            pair = captures["dense"], captures[_name(family, s)]
            for name, phase in _analysed(*pair).items():
                busy |= not _is_valid(phase)
                found.setdefault((name, batch), []).append((family, s, phase))
        sys.stderr.write(f"batch {batch} done\n")
    return found, device, busy


def _is_valid(phase: Phase) -> bool:
    return not phase.invalid_times


def _name(family: str, sparsity: float) -> str:
    return f"{family} {sparsity:g}"


def _variant(request: TraceRequest, family: str, sparsity: float, loaded: Loaded) -> Any:
    from prunescope.tracer.capture.application import apply_request
    from prunescope.tracer.capture.variants import Variant

    shared = {id(p): p for p in loaded.model.parameters()}  # dynamic families change no weight
    own = replace(loaded, model=copy.deepcopy(loaded.model, shared))
    asked = replace(request, method=family, sparsity=sparsity, knobs=FAMILIES[family])
    applied, record = apply_request(asked, own)
    return Variant(
        name=_name(family, sparsity), model=applied.model, loaded=loaded, pruning=record,
        layer_map=applied.layer_map,
    )  # fmt: skip


def _analysed(dense: Capture, pruned: Capture) -> dict[str, Phase]:
    from prunescope.analysis.pipeline import analyze
    from prunescope.tracer.capture.runs import write_runs

    pruned.run.variant = "pruned"
    with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
        out = Path(folder) / "run"
        write_runs(out, {"dense": dense, "pruned": pruned}, None)
        return analyze(out).report.phases


def page(
    options: argparse.Namespace,
    found: Measured,
    device: DeviceEntry,
    *,
    seconds: float,
    busy: bool,
) -> str:
    """overhead.md."""
    import torch
    import transformers

    lines = [
        f"# Overhead of dynamic families, {options.model}",
        "",
        f"Prefill of {options.prompt_len} tokens, and decode after it; decisions are random, at "
        "the full cost of making them. Times are ms a step and, in brackets, shares of the dense "
        "step. *Added in all* sums the columns before it; *k, v* and *weights* are not added but "
        "not saved: k and v run for skipped tokens too, and weights are read for the few that are "
        "left. Break-even: the share of the FLOPs that the family touches at which gain equals "
        "overhead, with its 95 % interval; *removed* is that share here. How each is read from the "
        "trace: analysis/ledger/dynamic_overhead.py.",
        "",
    ]
    if busy:
        lines += ["**The machine had other work: these times are not valid.**", ""]
    for (phase, batch), rows in found.items():
        lines += [f"## {phase}, batch {batch}", "", *table(rows), ""]
    lines.append(
        f"Made by `python {' '.join(sys.argv)}` in {seconds:.0f} s: {device.name}, "
        f"{THREADS} threads, {options.repeats} samples in {min(PLACEMENTS, options.repeats)} "
        f"placements and {STEPS} profiled forwards of prefill, "
        f"{DECODE_STEPS} tokens of decode. Python {platform.python_version()}, torch "
        f"{torch.__version__}, transformers {transformers.__version__}."
    )
    return "\n".join([*lines, ""])


def table(rows: list[tuple[str, float, Phase]]) -> Iterator[str]:
    """A row a family and sparsity."""
    from prunescope.analysis.ledger.dynamic_overhead import ADDED, HOST, KEY_VALUE, WEIGHTS
    from prunescope.taxonomy.numbers import percent, ratio

    parts = [*ADDED, HOST]
    heads = ["family", "s", "dense", "speedup", *parts, "added in all", "k, v", "weights"]
    heads += ["removed", "break-even"]
    yield "| " + " | ".join(heads) + " |"
    yield "|:--|" + "--:|" * (len(heads) - 1)
    for family, sparsity, phase in rows:
        walls = {row.row: row.ns for row in phase.ledger or []}
        speedup = ratio(phase.ladder.realised if phase.ladder else None)
        speedup += "" if _is_valid(phase) else " (not valid)"
        start = [family, f"{sparsity:g}", f"{walls['dense'] / 1e6:.2f}", speedup]
        paid = phase.overhead
        if paid is None:
            named = phase.family.id if phase.family else "unknown"
            rest = [f"read as {named}", *[""] * (len(heads) - len(start) - 1)]
        else:
            shown = {part.name: _time(part.ns, walls["dense"]) for part in paid.parts}
            rest = [*(shown[name] for name in parts), _time(paid.added_ns, walls["dense"])]
            rest += [shown[KEY_VALUE], shown[WEIGHTS], percent(paid.sparsity), _break_even(phase)]
        yield "| " + " | ".join([*start, *rest]) + " |"


def _time(ns: float | None, dense_ns: float) -> str:
    if ns is None:
        return "–"
    return f"{ns / 1e6:.3f} ({ns / dense_ns:.1%})" if ns else "0"


def _break_even(phase: Phase) -> str:
    from prunescope.taxonomy.numbers import percent

    paid = phase.overhead
    assert paid is not None
    if paid.break_even is None:
        return f"none: {paid.why}"
    if not paid.added_ns:
        return "nothing is added"
    if paid.break_even_ci95 is None:
        return percent(paid.break_even)
    low, high = ("none" if end is None else percent(end) for end in paid.break_even_ci95)
    return f"{percent(paid.break_even)} [{low}, {high}]"


if __name__ == "__main__":
    main()
