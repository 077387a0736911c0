"""Added work shared out among the parts of an overhead, in every replicate of the ledger.

In: inputs with replicates, and the recorded busy time of each part in each unit and step. Out: ns a
step of each part, [replicates], in the ledger's domain.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from prunescope.analysis.ledger.attribution import AttributionInputs
from prunescope.analysis.ledger.noise import Replicates
from prunescope.analysis.ledger.pairing import Floats


def shared_out(
    inputs: AttributionInputs, drawn: Replicates, spent: pl.DataFrame
) -> dict[str, Floats]:
    """Replicates of each part. `spent`: a row for each unit (its index), step and part, with `busy`
    (ns, as recorded on the pruned side).

    A part takes of a unit's time what it takes of it over all steps, and what it took more than
    that in the steps that were drawn: so that the parts of a replicate sum to its units, and a
    part whose unit holds others too has the spread that is its own.
    """
    recorded = inputs.units.pruned.busy
    mean = recorded.mean(axis=1)
    mean = np.where(mean > 0, mean, 1.0)  # what took no time has no part of it
    told = inputs.times.t_p[:, 0] / mean
    out = {}
    for (part,), rows in spent.group_by("part", maintain_order=True):
        own = np.zeros_like(recorded)
        own[rows["unit"].to_numpy(), rows["step"].to_numpy()] = rows["busy"].to_numpy()
        share = own.mean(axis=1) / mean
        more = own - share[:, None] * recorded
        out[str(part)] = np.asarray(share @ drawn.times.t_p + told @ more @ drawn.steps[1])
    return out
