"""A sweep of three methods by hand: two phases, two batches, one disturbed, one within noise."""

from __future__ import annotations

from typing import Any

from msgspec import structs

from prunescope.analysis.pareto.cells import recompute
from prunescope.analysis.schema.pareto import (
    Loss,
    Pareto,
    ParetoPhase,
    SweepCell,
    SweepPoint,
    SweepSubject,
)
from tests.analysis.pareto_points import point

DENSE_PPL = 10.0


def result(
    family: str, speed: float, loss: float, batch: int, phase: str, **more: Any
) -> SweepPoint:
    """A point with a perplexity of 10·(1 + loss) and its memory: 20 MB, dense 30 MB."""
    measured = Loss(
        perplexity=DENSE_PPL * (1 + loss), dense_perplexity=DENSE_PPL, perplexity_rel=loss,
        ci95=[loss - 0.01, loss + 0.01], scored_tokens=4096,
    )  # fmt: skip
    share = more.pop("sparsity", 0.25)
    plain: dict[str, Any] = {
        "id": f"{family}-{share}-{phase}-{batch}", "batch": batch, "sparsity": share,
        "sparsities": [share], "prompt_len": 64,
        "peak_memory_bytes": 20_000_000, "dense_peak_memory_bytes": 30_000_000, "samples": 12,
        "placements": 3, "parameter_sparsity": 0.2,
    }  # fmt: skip
    return structs.replace(point(family, speed, None, **{**plain, **more}), loss=measured)


def study() -> Pareto:
    """Ours is faster beyond noise at batch 1, within noise at batch 4; decode is disturbed once."""
    ours = {"display_name": "Ours"}
    phases: dict[str, list[SweepPoint]] = {"prefill": [], "decode": []}
    for phase, points in phases.items():
        for batch, speed in ((1, 1.40), (4, 1.31)):
            disturbed = (phase, batch) == ("decode", 4)
            points += [
                result("static-nk", 1.30, 0.30, batch, phase),
                result("mine:by_norm", speed, 0.20, batch, phase, **ours,
                       timing_valid=not disturbed),
                result("static-nk", 1.70, 0.90, batch, phase, sparsity=0.5),
                result("mine:by_norm", 1.90, 0.60, batch, phase, sparsity=0.5, **ours,
                       peak_memory_bytes=14_000_000),
            ]  # fmt: skip
    cells = [SweepCell(batch=batch, prompt_len=64, dense_ns={}) for batch in (1, 4)]
    return recompute(
        Pareto(
            tool="prunescope 0",
            subject=SweepSubject(
                model="tiny-llama", device="AMD EPYC", dtype="fp32", threads=2,
                text={"source": "a book"}, config={"decode_steps": 8},
            ),
            phases={
                name: ParetoPhase(points=points, cells=list(cells))
                for name, points in phases.items()
            },
        )
    )  # fmt: skip
