"""Losses of another model than the one that was timed are withheld, with the reason."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from prunescope.analysis.pareto.points import why_unscored
from prunescope.analysis.pareto.summary import summary
from prunescope.taxonomy.runs.run_blocks import Pruning
from prunescope.taxonomy.runs.sweep_files import SweepResult
from tests.analysis.paper.test_paper_figures import at, sweep

BY_RANK = {"choose": "rank"}


def reason(active: int, total: int, *, mode: str = "compile", **pruning: Any) -> str | None:
    """That of a decode step that runs `active` of `total` rows, at s = 0.5."""
    part = {"method": "dynamic-m", "sparsity": 0.5, "selection": "random", "knobs": BY_RANK}
    entry = {"id": "a", "family": "dynamic-m", "sparsity": 0.5, "phase": "decode", "batch": total,
             "prompt_len": 64, "draw": 0, "seed": 0, "mode": mode, "state": "done"}  # fmt: skip
    wanted = msgspec.convert(part | pruning, Pruning)
    ran = {"rows of mlp": active / total}
    return why_unscored(msgspec.convert(entry, SweepResult), wanted, ran)


def test_a_step_of_one_row_is_the_dense_model() -> None:
    assert reason(1, 1) == "a compile step of 1 row always runs: this point is the dense model"
    assert reason(1, 3) == (
        "each compile step runs 33 % of its 3 rows, the model that was scored 50 % on average"
    )


@pytest.mark.parametrize(
    "how",
    [
        {"active": 1, "total": 1, "mode": "eager"},
        {"active": 4, "total": 8},  # as many as the scored model lets through on average
        {"active": 1, "total": 1, "knobs": {"choose": "threshold"}},  # times 0 or 1
        {"active": 1, "total": 1, "selection": "importance"},
        {"active": 1, "total": 1, "recovery": {"routers": [{"unit": "rows", "trained": 16}]}},
    ],
)
def test_steps_of_the_scored_model_keep_their_loss(how: dict[str, Any]) -> None:
    assert reason(**how) is None


def test_the_summary_says_which_points_ran_every_row() -> None:
    whole = at("dynamic-m", 1.0, mode="compile", ran={"rows of mlp": 1.0}, unscored="it is dense")
    some = at("dynamic-m", 1.2, ran={"rows of mlp": 0.5})
    lines = "\n".join(summary(sweep({"decode": [whole, some]})))
    assert (
        "Every row ran: dynamic-m 0.5 (" in lines
        and "No loss: dynamic-m 0.5: it is dense." in lines
    )
