"""What the coverage bound says of a run that passed it, beyond doubt or within its interval."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from prunescope.analysis.findings import losses
from prunescope.analysis.schema.report import Ladder, Row

FASTER = {"kernel_efficiency": -9e6, "launch_idle": 2e6}
CLOSER = {"kernel_efficiency": 4e6, "launch_idle": -9e6}  # kernels slower, gaps gone


@pytest.mark.parametrize(
    ("realised", "ci95", "rows", "ends"),
    [
        (1.30, [1.28, 1.32], FASTER, "1.35× at most"),
        (
            1.38,
            [1.31, 1.44],
            FASTER,
            "at most, and 1.38× was realised, whose interval contains the bound",
        ),
        (
            1.38,
            [1.36, 1.40],
            FASTER,
            "realised, because the remaining kernels ran faster",
        ),
        (
            1.38,
            None,
            FASTER,
            "realised, because the remaining kernels ran faster",
        ),  # one step
        (
            1.38,
            [1.36, 1.40],
            CLOSER,
            "because there was less idle time between kernels",
        ),
        (1.38, [1.36, 1.40], {}, "1.38× was realised, which no row of the ledger explains"),
    ],
)
def test_a_run_beyond_the_coverage_bound(
    realised: float, ci95: list[float] | None, rows: dict[str, float], ends: str
) -> None:
    """What it gained beyond its bound is told by the row that gave most of it."""
    ladder = Ladder(nominal=1.5, flop=1.5, coverage=1.35, roofline=1.35, busy=1.4,
                    realised=realised, realised_ci95=ci95, share_of_bound=None)  # fmt: skip
    ledger = {name: Row(row=name, ns=ns, ci95=None, noise_ns=None) for name, ns in rows.items()}
    c = cast(
        "Any",
        SimpleNamespace(
            phase=SimpleNamespace(ladder=ladder),
            row=ledger.get,
            kernels=SimpleNamespace(on_device=True),
        ),
    )
    assert losses._limit(c).endswith(ends)
    for row in ledger.values():
        row.noise_ns = 5e6  # twice of it is more than any of them
    if "because" in ends:
        assert losses._limit(c).endswith("which no row of the ledger beyond its noise explains")
