"""What a finding reads, and when a ledger row is more than noise. Times are ns a step."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from prunescope.analysis.inputs.subject import Side
from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.ledger.gemms import Pair
from prunescope.analysis.schema.report import Gemm, Part, Phase, Row
from prunescope.analysis.verdict.doubts import Doubt
from prunescope.analysis.verdict.evidence import Evidence
from prunescope.taxonomy.run import PhaseRun

_BETWEEN_WORDS = re.compile(r"(?<=\w)(?=[^A-Za-z0-9])|(?<=\W)(?=\w)")


@dataclass(frozen=True, kw_only=True)
class Context:
    """One phase of the subject; the dense side is None without a baseline."""

    name: str
    phase: Phase
    pruned: Kernels
    side: Side
    doubts: list[Doubt] = field(default_factory=list)
    dense: Kernels | None = None
    side_dense: Side | None = None
    pairs: list[Pair] | None = None
    evidence: Evidence | None = None

    def row(self, name: str) -> Row | None:
        """A ledger row by name, None without a ledger."""
        return next((r for r in self.phase.ledger or [] if r.row == name), None)

    @property
    def dense_ns(self) -> float | None:
        """The dense wall of the ledger."""
        row = self.row("dense")
        return row.ns if row else None

    @property
    def run(self) -> PhaseRun | None:
        """What the manifest says of this phase, None for a bare trace."""
        return self.side.phase(self.name)

    @property
    def run_dense(self) -> PhaseRun | None:
        """The same of the dense side."""
        return self.side_dense.phase(self.name) if self.side_dense else None


def stands(row: Row | Part | None, *, of: float | None, share: float) -> bool:
    """Whether a row is at least `share` of `of` and outside its noise and interval."""
    if row is None or of is None or abs(row.ns) < share * of:
        return False
    if row.noise_ns is not None and abs(row.ns) <= 2 * row.noise_ns:
        return False
    return row.ci95 is None or not row.ci95[0] <= 0 <= row.ci95[1]


def ms(ns: float) -> str:
    """Milliseconds with three decimals, microseconds below one."""
    return f"{ns / 1e6:.3f} ms" if abs(ns) >= 1e6 else f"{ns / 1e3:.1f} µs"


def sized(gemm: Gemm) -> str:
    """`role MxNxK` of a row of the GEMM table; the role and its kernel where no size is known."""
    if gemm.m is None or gemm.n is None or gemm.k is None:
        return f"{gemm.role} {shortened(gemm.kernels[0])}" if gemm.kernels else gemm.role
    return f"{gemm.role} {gemm.m}×{gemm.n}×{gemm.k}"


def shortened(name: str, longest: int = 80) -> str:
    """A kernel's name, cut between two of its words where it is long."""
    if len(name) <= longest:
        return name
    cuts = [
        m.start() for m in re.finditer(r"(?<=\w)(?=[^A-Za-z0-9])|(?<=\W)(?=\w)", name[:longest])
    ]
    cut = cuts[-1] if cuts and cuts[-1] > longest // 2 else longest - 1
    return f"{name[:cut].rstrip(' ,:<(_')}…"
