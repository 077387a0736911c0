"""What a finding reads, and when a ledger row is more than noise. Times are ns a step."""

from __future__ import annotations

import re
from dataclasses import dataclass

import msgspec

from prunescope.analysis.inputs.side import Side, SidePhase
from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.ledger.gemms import Pair
from prunescope.analysis.schema.report import GemmRow, LedgerPart, Phase, Row, is_beyond_noise
from prunescope.analysis.verdict.caveats import Caveat
from prunescope.analysis.verdict.evidence import Detection, Evidence
from prunescope.taxonomy.run import PhaseRun

LITTLE = 0.001  # of the recorded wall: nothing to warn of
_BETWEEN_WORDS = re.compile(r"(?<=\w)(?=[^A-Za-z0-9])|(?<=\W)(?=\w)")


@dataclass(frozen=True, kw_only=True)
class Context:
    """One phase of the subject, `own`, and the same of its baseline, `twin`: None without one.

    `phase`: without its findings; `seen`: the families of the verdict; `untouched`: the (role,
    class) that pruning left whole.
    """

    phase: Phase
    own: SidePhase
    caveats: list[Caveat]
    twin: SidePhase | None = None
    pairs: list[Pair] | None = None
    evidence: Evidence | None = None
    seen: tuple[Detection, ...] = ()
    untouched: frozenset[tuple[str, str]] = frozenset()

    @property
    def name(self) -> str:
        """The name of the phase."""
        return self.own.name

    @property
    def pruned(self) -> Kernels:
        """The subject's kernels."""
        return self.own.kernels

    @property
    def dense(self) -> Kernels | None:
        """Those of the baseline."""
        return self.twin.kernels if self.twin else None

    @property
    def side(self) -> Side:
        """The subject."""
        return self.own.side

    @property
    def side_dense(self) -> Side | None:
        """The baseline."""
        return self.twin.side if self.twin else None

    def is_little(self, ns: float) -> bool:
        """Whether a time is too small a part of the recorded step for a warning."""
        return ns < LITTLE * self.phase.wall_ns

    def row(self, name: str) -> Row | None:
        """A ledger row by name, None without a ledger."""
        return next(
            (r for r in self.phase.ledger or [] if r.row == name and r.ns is not None), None
        )

    @property
    def dense_ns(self) -> float | None:
        """The dense wall of the ledger."""
        row = self.row("dense")
        return row.ns if row else None

    @property
    def run(self) -> PhaseRun | None:
        """What the manifest says of this phase, None for a bare trace."""
        return self.own.run

    @property
    def run_dense(self) -> PhaseRun | None:
        """The same of the dense side."""
        return self.twin.run if self.twin else None


def is_significant(row: Row | LedgerPart | None, *, of: float | None, share: float) -> bool:
    """Whether a row is at least `share` of `of`, and evidence (`is_beyond_noise`)."""
    if row is None or row.ns is None or of is None or abs(row.ns) < share * of:
        return False
    return is_beyond_noise(row)


def communication(row: Row | None) -> Row:
    """The part of a ledger row that is communication: of waiting for other ranks too. Its interval
    and noise are those of its parts one beside the other, as wide as if all moved together."""
    parts = [part for part in row.parts if part.cls == "comm"] if row is not None else []
    ends = [part.ci95 for part in parts if part.ci95 is not None]
    noise = [part.noise_ns for part in parts if part.noise_ns is not None]
    known = len(ends) == len(parts) > 0
    return Row(
        row="communication",
        ns=sum(part.ns for part in parts),
        ci95=[sum(low for low, _ in ends), sum(high for _, high in ends)] if known else None,
        noise_ns=sum(noise) if len(noise) == len(parts) > 0 else None,
        parts=parts,
    )


def without_communication(row: Row | None) -> Row | None:
    """The rest of that row, with its interval and noise."""
    comm = communication(row).moves_ns
    if row is None or not comm:
        return row
    ci95 = [bound - comm for bound in row.ci95] if row.ci95 else None
    parts = [part for part in row.parts if part.cls != "comm"]
    return msgspec.structs.replace(row, ns=row.moves_ns - comm, ci95=ci95, parts=parts)


def ms(ns: float) -> str:
    """Milliseconds with three decimals, microseconds below one."""
    return f"{ns / 1e6:.3f} ms" if abs(ns) >= 1e6 else f"{ns / 1e3:.1f} µs"


def sized(gemm: GemmRow) -> str:
    """`role MxNxK` of a row of the GEMM table; the role and its kernel where no size is known."""
    if gemm.m is None or gemm.n is None or gemm.k is None:
        return f"{gemm.role} {shortened(gemm.kernels[0])}" if gemm.kernels else gemm.role
    return f"{gemm.role} {gemm.m}×{gemm.n}×{gemm.k}"


def shortened(name: str, longest: int = 80) -> str:
    """A kernel's name, cut between two of its words where it is long."""
    if len(name) <= longest:
        return name
    cuts = [m.start() for m in _BETWEEN_WORDS.finditer(name[:longest])]
    cut = cuts[-1] if cuts and cuts[-1] > longest // 2 else longest - 1
    return f"{name[:cut].rstrip(' ,:<(_')}…"
