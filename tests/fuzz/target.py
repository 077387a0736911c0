"""What a fuzzed file is given to, and what must hold whatever stands in it.

A file is refused with a PrunescopeError, or gives a report that is whole. All else is a fault.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from prunescope.analysis.inputs.options import Options
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Phase, from_json, to_json
from prunescope.taxonomy.errors import PrunescopeError
from tests.fuzz.mutate import mutated
from tests.fuzz.seeds import seeds


def attempt(seed: str, folder: Path) -> str:
    """One random file and one way to analyze it: "report" or "refused". Raises what is a fault."""
    rng = random.Random(seed)
    name, data = mutated(rng)
    path = folder / name
    path.write_bytes(data)
    given = _options(rng, path, folder)
    try:
        report = analyze(path, **given).report
    except PrunescopeError as error:
        assert error.hint
        assert str(folder) not in f"{error}", "an error names a folder of this machine"
        return "refused"
    text = to_json(report)
    assert from_json(text).phases.keys() == report.phases.keys()
    assert str(folder).encode() not in text
    for phase in report.phases.values():
        check(phase)
    return "report"


def check(phase: Phase) -> None:
    """What holds for every phase: it closes, and shares are shares."""
    parts = phase.busy_ns + phase.gap_ns + phase.tail_ns
    assert abs(parts - phase.wall_ns) <= 1e-9 * max(1.0, phase.wall_ns), "busy + gap + tail != wall"
    assert min(phase.busy_ns, phase.gap_ns, phase.tail_ns) >= 0
    assert all(0 <= share <= 1 for share in phase.coverage.values()), phase.coverage
    four = sum(phase.bound[name] for name in ("compute", "memory", "latency", "unknown"))
    assert abs(four - phase.busy_ns) <= 1e-6 * max(1.0, phase.busy_ns), "bounds do not sum to busy"
    if phase.ledger:
        ns = {row.row: row.ns for row in phase.ledger if row.ns is not None}
        total = sum(v for name, v in ns.items() if name not in ("dense", "pruned"))
        size = sum(abs(v) for v in ns.values())
        assert abs(total - ns["pruned"]) <= 1e-6 * max(1.0, size), "the ledger does not close"


def _options(rng: random.Random, path: Path, folder: Path) -> dict[str, Any]:
    """Often alone; else against a whole trace, itself, with an eager trace or a pattern."""
    whole = folder / "whole.json"
    whole.write_bytes(seeds()[rng.choice((0, 2, 5))])
    how = rng.randrange(8)
    if how == 0:
        return {"baseline": whole}
    if how == 1:
        return {"baseline": path, "options": Options(sparsity=0.5)}
    if how == 2:
        return {"options": Options(eager_trace=rng.choice((whole, path)))}
    if how == 3:
        return {"options": Options(phase_pattern=rng.choice((".", "step#", "layers", "(", "x*")))}
    if how == 4:
        return {"options": Options(device="h100-sxm")}
    return {}
