"""What steps of fixed shapes (mode compile or graph) cannot show of rows that are chosen in decode.

In: a plan. Out: sentences, each with the number of results that it is about.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from prunescope.taxonomy.arguments import number
from prunescope.taxonomy.families import families
from prunescope.taxonomy.family import read_selection
from prunescope.taxonomy.keep import kept_count
from prunescope.taxonomy.method_names import method_parts
from prunescope.taxonomy.sweep_files import Planned
from prunescope.tracer.sweep.plan import SweepPlan

_EAGER = "mode: eager skips them"


def limits_of_fixed_steps(plan: SweepPlan) -> list[str]:
    """Sentences; empty where every result can be timed as the model that is scored."""
    chosen = [
        (result, sparsity)
        for result in plan.results
        if result.problem is None and result.mode != "eager" and result.phase == "decode"
        for sparsity in _row_shares(result)
    ]
    by_threshold = [one for one, _ in chosen if _by_threshold(plan, one)]
    by_count = [
        one
        for one, sparsity in chosen
        if not _by_threshold(plan, one)
        and not math.isclose(kept_count(one.batch, sparsity) / one.batch, 1 - sparsity)
    ]
    found = []
    if by_threshold:
        found.append(
            f"{len(by_threshold)} of {len(plan.results)} results decode "
            f"{_names(by_threshold)} by a threshold in steps of fixed shapes, which compute "
            "all rows and multiply by 0 or 1: never faster "
            f"by construction; {_EAGER}"
        )
    if by_count:
        found.append(
            f"{len(by_count)} of {len(plan.results)} results decode "
            f"{_names(by_count)} in steps of fixed shapes, which run "
            "max(1, int((1 − s)·B)) of B rows, another share than 1 − s (at batch 1 all: "
            f"the dense model), and get no loss; {_EAGER}"
        )
    return found


def _routed() -> set[str]:
    """The families that choose rows of a decode step."""
    return {one.id for one in families() if one.routes_rows}


def _names(results: Sequence[Planned]) -> str:
    return ", ".join(dict.fromkeys(one.family for one in results))


def _row_shares(result: Planned) -> list[float]:
    """The sparsities of the parts of a method that choose rows."""
    own = [own for name, own in method_parts(result.family) if name in _routed()]
    shares = [result.sparsity if one is None else number(one) for one in own]
    return [share for share in shares if share is not None]


def _by_threshold(plan: SweepPlan, result: Planned) -> bool:
    """Whether scores decide and not a number of rows: of routers that are fitted or trained, or
    where the option asks for it."""
    if plan.config.recover is not None or "choose=threshold" in result.set:
        return True
    select = result.select or plan.config.selections[0]
    return read_selection(select) == "importance"
