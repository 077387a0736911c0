"""What the coverage bound says of a run that passed it, beyond doubt or within its interval."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from prunescope.analysis.findings import time
from prunescope.analysis.schema.report import Ladder


@pytest.mark.parametrize(
    ("realised", "ci95", "ends"),
    [
        (1.30, [1.28, 1.32], "1.35× at most"),
        (1.38, [1.31, 1.44], "1.35× at most; 1.38× was realised, whose interval holds that"),
        (1.38, [1.36, 1.40], "1.38× was realised, for those that remain ran faster"),
        (1.38, None, "1.38× was realised, for those that remain ran faster"),  # one step
    ],
)
def test_a_run_beyond_the_coverage_bound(
    realised: float, ci95: list[float] | None, ends: str
) -> None:
    ladder = Ladder(nominal=1.5, flop=1.5, coverage=1.35, roofline=1.35, busy=1.4,
                    realised=realised, realised_ci95=ci95, share_of_bound=None)  # fmt: skip
    c = cast("Any", SimpleNamespace(phase=SimpleNamespace(ladder=ladder)))
    assert time._limit(c).endswith(ends)
