"""What a finding reads, and when a ledger row is more than noise. Times are ns a step."""

from __future__ import annotations

from dataclasses import dataclass, field

from analysis.evidence import Evidence
from analysis.frame import Kernels
from analysis.gemms import Pair
from analysis.report.model import Part, Phase, Row
from analysis.subject import Side
from analysis.trust import Doubt
from taxonomy.run import PhaseRun


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
