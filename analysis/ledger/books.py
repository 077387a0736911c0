"""The books of a comparison: units, what should remain of them, and the ledger in its domain.

In: units, the nominal sparsity and the unprofiled samples (ns) of both sides. Out: Books.
"""

from __future__ import annotations

from dataclasses import dataclass

from prunescope.analysis.inputs.subject import SidePhase
from prunescope.analysis.ledger.ledger import Ratios, Split, ratios
from prunescope.analysis.ledger.noise import Domain, bootstrap, busy_factor, choose_domain, point
from prunescope.analysis.ledger.pairing import Floats, Units
from prunescope.analysis.ledger.samples import Samples


@dataclass(frozen=True)
class Books:
    """The comparison of a phase. `nominal`: the sparsity that was asked for, None where nobody says
    it; `replicates`: of the ledger, None with one step."""

    units: Units
    nominal: float | None
    ratio: Ratios
    domain: Domain
    ledger: Split
    replicates: Split | None

    def busy_factors(self, dense: SidePhase, pruned: SidePhase) -> tuple[float, float]:
        """From recorded busy time to the ledger's domain, of each side."""
        return (
            self._factor(self.ledger.dense, dense),
            self._factor(self.ledger.pruned, pruned),
        )

    def _factor(self, walls: Floats, one: SidePhase) -> float:
        recorded = one.kernels.wall / one.kernels.num_steps
        return busy_factor(self.domain, wall_ns=float(walls[0]), recorded_ns=recorded)


def keep_books(
    units: Units,
    *,
    nominal: float | None,
    samples_ns: tuple[Samples | list[int], Samples | list[int]],
    on_device: bool,
) -> Books:
    """The books of a pair. `samples_ns`: unprofiled ones of the dense and of the pruned side."""
    ratio = ratios(units, nominal)
    domain = choose_domain(units, *samples_ns, on_device=on_device)
    return Books(
        units=units,
        nominal=nominal,
        ratio=ratio,
        domain=domain,
        ledger=point(units, ratio, domain),
        replicates=bootstrap(units, ratio, domain),
    )
