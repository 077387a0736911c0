"""The inputs of a comparison: units, what should remain of them, and the ledger in its time base.

In: units, the nominal sparsity and the unprofiled samples (ns) of both sides. Out:
AttributionInputs.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from msgspec import Struct

from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.ledger.alignment import with_dense_layer
from prunescope.analysis.ledger.ledger import Ratios, Split, Times, ratios
from prunescope.analysis.ledger.noise import (
    FewSteps,
    Replicates,
    TimeBase,
    bootstrap,
    choose_time_base,
    few_steps,
    mean_times,
    point,
)
from prunescope.analysis.ledger.pairing import Floats, Units, UnitSums
from prunescope.analysis.ledger.samples import Samples


class AttributionInputs(Struct, frozen=True):
    """The inputs of the rows, ladder and overhead of a phase.

    Attributes:
        units: The units of both sides.
        nominal: The requested sparsity; None where it is unknown.
        ratio: What should remain of each dense unit.
        time_base: The wall that the ledger explains.
        times: The times of the ledger, one replicate.
        ledger: The ledger, one replicate.
        replicates: Bootstrap replicates of the ledger; None where nothing can be resampled.
        few_steps: Replicates over single steps that are too few for intervals; None otherwise.
        promises: Whether a speedup was promised at all.
    """

    units: Units
    nominal: float | None
    ratio: Ratios
    time_base: TimeBase
    times: Times
    ledger: Split
    replicates: Replicates | None
    few_steps: FewSteps | None = None
    promises: bool = True

    def dense_rows(self, dense: Kernels) -> pl.DataFrame:
        """Return the frame of the dense side with the columns `unit_layer` and `ns`.

        `ns` is busy time in the time base of the ledger, so that no loss of an op exceeds the time
        of its row.
        """
        frame = dense.frame.with_columns(unit_layer=pl.col("layer"))
        return self._with_ns(frame, self.units.dense, self.times.dense.busy)

    def pruned_rows(self, pruned: Kernels) -> pl.DataFrame:
        """Return the frame of the pruned side with `unit_layer` and `ns`.

        `unit_layer` is the layer of the dense model.
        """
        frame = with_dense_layer(pruned.frame, self.units.alignment)
        return self._with_ns(frame, self.units.pruned, self.times.pruned.busy)

    def _with_ns(self, frame: pl.DataFrame, side: UnitSums, scaled: Floats) -> pl.DataFrame:
        """Add `ns`, the busy time of each row times the factor by which its unit was scaled."""
        recorded = side.busy.mean(axis=1)
        factor = scaled[:, 0] / np.where(recorded > 0, recorded, 1.0)
        table, on = self.units.table.with_columns(factor=factor), ["unit_layer", "role", "class"]
        matched = frame[on].join(table, on=on, how="left", nulls_equal=True, maintain_order="left")
        return frame.hstack([(frame["busy"] * matched["factor"]).alias("ns")])


def attribution_inputs(
    units: Units,
    *,
    nominal: float | None,
    samples_ns: tuple[Samples | list[int], Samples | list[int]],
    on_device: bool,
    in_turns: bool = False,
    promises: bool = True,
) -> AttributionInputs:
    """Split the time of a pair of sides, and resample it.

    Args:
        units: The units of both sides.
        nominal: The requested sparsity; None where it is unknown.
        samples_ns: Unprofiled samples of the dense and of the pruned side, ns.
        on_device: Whether the traces hold device events.
        in_turns: Whether the run says that both sides took turns.
        promises: False where no pruning was shown, so that the whole dense time is what was
            promised.
    """
    ratio = ratios(units, nominal if promises else 0.0)
    base = choose_time_base(units, *samples_ns, on_device=on_device, in_turns=in_turns)
    replicates = bootstrap(units, ratio, base)
    return AttributionInputs(
        units=units,
        nominal=nominal,
        ratio=ratio,
        time_base=base,
        times=mean_times(units, base),
        ledger=point(units, ratio, base),
        replicates=replicates,
        few_steps=few_steps(units, ratio, base) if replicates is None else None,
        promises=promises,
    )
