"""Speculative decoding with a pruned model as the draft.

A Setting, the workload of a decode step and the share of drafted tokens that are accepted give a
Drafting. A cycle is γ steps of the pruned model and one step of the dense one over γ + 1 tokens a
sequence, which is priced as any other forward is and not taken for one plain step.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from prunescope.analysis.predict.constants import Constants
from prunescope.analysis.predict.costs import estimate_costs, total_ns
from prunescope.analysis.predict.evidence import evidence_of, half_width, kind_of
from prunescope.analysis.predict.ranges import (
    differences,
    host_modes,
    mix_differences,
    uncertainty_of,
)
from prunescope.analysis.predict.setting import Setting
from prunescope.analysis.predict.side import predicted_side
from prunescope.analysis.schema.prediction import AcceptedDrafts, Drafting, Execution
from prunescope.taxonomy.plan import Workload

ASSUMED = (
    "acceptance is given, not predicted: what pruning does to it has to be measured; each drafted "
    "token is accepted as often as any other (arXiv 2211.17192); each step of a cycle pays an "
    "engine's step; sampling and the draft's own prompt are not counted"
)
_MECHANISM = "drafts"  # of which measurements.json has no measurement
_HALVINGS = 40


def expected_tokens(acceptance: float, draft_tokens: int) -> float:
    """Return the mean number of tokens of a cycle: (1 − α^(γ+1)) / (1 − α) (arXiv 2211.17192)."""
    return (1 - acceptance ** (draft_tokens + 1)) / (1 - acceptance)


def least_paying_acceptance(cycle_over_step: float, draft_tokens: int) -> float | None:
    """Return the acceptance at which a cycle gives as many tokens as plain steps in its time.

    Returns None where not even γ + 1 tokens do.
    """
    if cycle_over_step >= draft_tokens + 1:
        return None
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if expected_tokens(middle, draft_tokens) < cycle_over_step:
            low = middle
        else:
            high = middle
    return low


def predict_drafting(
    setting: Setting,
    work: Workload,
    step: Execution,
    *,
    draft_tokens: int,
    acceptance: Sequence[float],
) -> Drafting:
    """Predict decoding in which the pruned model drafts and the dense one verifies.

    Args:
        setting: The setting, whose pruned side drafts.
        work: A plain decode step.
        step: The expected time of this step on both sides.
        draft_tokens: γ, the tokens drafted in a cycle.
        acceptance: The lowest and the highest share of these that are accepted.

    Returns:
        The times of a cycle and its speedup over plain decoding.
    """
    dense, draft = predicted_side(setting, work, pruned=False), predicted_side(setting, work)
    several = replace(
        work, step_tokens=draft_tokens + 1, context=work.keys + draft_tokens, logits="all"
    )
    verify, terms = predicted_side(setting, several, pruned=False), frozenset(setting.terms)
    verify_ns = total_ns(verify, terms)
    cycle_ns = draft_tokens * step.pruned_ns + verify_ns

    def steps_in_a_cycle(c: Constants) -> float:
        """Return a plain step over a cycle, with other constants."""
        plain, drafted, verified = (
            estimate_costs(side).total_ns(c, terms) for side in (dense, draft, verify)
        )
        return plain / (draft_tokens * drafted + verified)

    kind = msgspec.structs.replace(kind_of(draft), mechanism=_MECHANISM)
    parts = [
        (draft_tokens * step.pruned_ns, differences(dense, draft, terms)),
        (verify_ns, differences(dense, verify, terms)),
    ]
    spread = uncertainty_of(
        steps_in_a_cycle,
        draft,
        terms,
        differences=mix_differences(parts, routing=parts[0][1].routing),
        modes=host_modes(steps_in_a_cycle, dense, terms),
    )
    ratio, draft_share = step.dense_ns / cycle_ns, step.pruned_ns / step.dense_ns
    ends = replace(spread, kinds=half_width(kind)).range_of(ratio)
    memory = (side.forward.weight_bytes + side.forward.kv_bytes for side in (draft, verify))
    return Drafting(
        draft_tokens=draft_tokens,
        batch=work.batch,
        context=work.keys,
        dense_ns=step.dense_ns,
        draft_ns=step.pruned_ns,
        verify_ns=verify_ns,
        cycle_ns=cycle_ns,
        at=[
            AcceptedDrafts(
                acceptance=share,
                tokens=tokens,
                token_ns=cycle_ns / tokens,
                speedup=tokens * ratio,
                range=[tokens * end for end in ends],
                one_step_speedup=tokens / (draft_tokens * draft_share + 1),
            )
            for share in dict.fromkeys(acceptance)
            for tokens in [expected_tokens(share, draft_tokens)]
        ],
        pays_from=least_paying_acceptance(1 / ratio, draft_tokens),
        memory_bytes=round(sum(memory)),
        evidence=evidence_of(kind, "tokens drafted by a pruned model, and verified"),
    )
