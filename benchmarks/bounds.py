"""Do measured peaks bound every GEMM of SmolLM2-135M on this CPU, and which peak binds which?

    python benchmarks/bounds.py

Calibrates, traces the dense model (prefill of 512 tokens, decode), analyses it and writes bounds.md
next to this file. Exit code 1 where one of the claims in it does not hold, the first of which is
that nothing else ran concurrently.
"""

from __future__ import annotations

import platform
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import prunescope
from prunescope.analysis.kernels.role import GEMM_KINDS
from prunescope.analysis.schema.report import NOT_VALID, GemmRow, Report
from prunescope.taxonomy.formats import plain
from prunescope.tracer.machine.calibrate import calibrate
from prunescope.tracer.model.load import DEMO

TOKENS, STEPS, REPEATS, DECODED = 512, 5, 5, 8
MOST = 1.05  # times the bound
COMPUTE = ("q", "o", "gate", "up", "down")
LINEAR = (*COMPUTE, "k", "v", "lm_head")
RIDGE = ("k", "v")  # 192 columns: on either side


@dataclass(frozen=True)
class Claim:
    """A claim about one or many GEMMs, and whether it holds."""

    text: str
    holds: bool
    seen: str


def main() -> int:
    """Measure, check, write."""
    entry = plain(calibrate("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        run = prunescope.trace(
            model=DEMO, phase="both", prompt_len=TOKENS, decode_steps=DECODED, repeats=REPEATS,
            steps=STEPS, device="cpu", out=Path(folder) / "run",
        )  # fmt: skip
        report = prunescope.analyze(run)
    claims = list(checked(report))
    text = page(report, entry, claims)
    Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    return 0 if all(claim.holds for claim in claims) else 1


def checked(report: Report) -> Iterator[Claim]:
    """Every claim, with what was seen."""
    caveats = [
        f"{name}: {line}"
        for name, phase in report.phases.items()
        for finding in phase.findings
        if finding.id == NOT_VALID
        for line in finding.evidence
    ]
    yield Claim(
        "nothing else ran during the timing", not caveats,
        "; ".join(caveats) or f"{len(report.phases)} phases",
    )  # fmt: skip
    rows = [(name, g) for name, p in report.phases.items() for g in p.gemms if g.ideal_ns]
    phase, top = max(rows, key=lambda row: row[1].efficiency or 0.0)
    yield Claim(
        f"no GEMM takes less than its bound ÷ {MOST}", (top.efficiency or 0.0) <= MOST,
        f"highest: {phase} {top.role}, {top.efficiency:.3f} of {len(rows)}",
    )  # fmt: skip
    linear = [g for g in report.phases["decode"].gemms if g.role in LINEAR]
    bounds = {f"{g.role} {g.bound}" for g in linear if g.bound != "memory"}
    yield Claim(
        "the linears of decode are memory-bound", bool(linear) and not bounds,
        ", ".join(sorted(bounds)) or f"{len(linear)} of {len(linear)}",
    )  # fmt: skip
    rows_of = {g.role: g for g in report.phases["prefill"].gemms if g.kind in GEMM_KINDS}
    for role in COMPUTE:
        bound = rows_of[role].bound if role in rows_of else "absent"
        yield Claim(f"{role} of prefill is compute-bound", bound == "compute", str(bound))


def page(report: Report, entry: dict[str, Any], claims: list[Claim]) -> str:
    """bounds.md."""
    measured = entry["measured"]
    peaks = report.device["peaks"]
    rates = ", ".join(f"{d} {r / 1e12:.3g} TFLOP/s" for d, r in peaks["dense_flop_per_s"].items())
    agree = "agree within 10 %" if measured["agree"] else "do not agree within 10 %"
    lines = [f"| {c.text} | {'yes' if c.holds else '**no**'} | {c.seen} |" for c in claims]
    table = [row(name, g) for name, p in report.phases.items() for g in p.gemms if g.count]
    ridge = ", ".join(RIDGE)
    return f"""# Peaks against GEMMs: SmolLM2-135M-Instruct on a CPU

Prefill of {TOKENS} tokens and decode, dense. Peaks: {rates}, {peaks["byte_per_s"] / 1e9:.3g} GB/s,
{report.device["source"]}; {measured["passes"]} passes of `calibrate` {agree}
(copy {measured["copy_byte_per_s"] / 1e9:.3g} GB/s, read in cache
{measured["cache_byte_per_s"] / 1e9:.3g} GB/s, an op from call to call
{measured["dispatch_ns"] / 1e3:.3g} µs).

| claim | holds | seen |
|---|---|---|
{chr(10).join(lines)}

The {ridge} of prefill have 192 columns and lie on the ridge: nothing is claimed of them.

| phase | role | batch | M | N | K | count | ms | bound | % of its bound |
|---|---|---|---|---|---|---|---|---|---|
{chr(10).join(table)}

Made by `python benchmarks/bounds.py`: {platform.machine()} CPU, {torch.get_num_threads()} threads,
Python {platform.python_version()}, torch {torch.__version__}.
"""


def row(phase: str, gemm: GemmRow) -> str:
    """A row of the table; time of a step."""
    dims = " | ".join("–" if d is None else str(d) for d in (gemm.batch, gemm.m, gemm.n, gemm.k))
    share = "–" if gemm.efficiency is None else f"{gemm.efficiency:.3f}"
    return (
        f"| {phase} | {gemm.role} | {dims} | {gemm.count:g} | {gemm.busy_ns / 1e6:.3f} "
        f"| {gemm.bound or '–'} | {share} |"
    )


if __name__ == "__main__":
    sys.exit(main())
