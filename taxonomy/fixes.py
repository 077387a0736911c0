"""The result of `prunescope fix`, fix.json, and the measurements that let it resume, trials.json.

Times are ns of a whole run: a prompt, and the tokens that were asked for after it. A gain is the
time before over the time after. Null is unknown, and never 0.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from prunescope.taxonomy.formats import Block, Interval, Name, Number, OmitDefault

FIXES, TRIALS, REPAIRS_FILE, TRACE = "fix.json", "trials.json", "repairs.py", "trace"
Text = Annotated[str, Meta(max_length=2000)]
Texts = Annotated[list[Text], Meta(max_length=64)]
# What became of a repair, in the order in which it is decided.
Outcome = Literal[
    "kept",
    "nothing_to_change",
    "fails",
    "other_outputs",
    "not_timed",
    "timing_not_valid",
    "not_faster",
    "repeats_another",
]


class FixTime(Block, kw_only=True):
    """The time of a model: of a whole run, and of a step of each phase."""

    ns: Number
    phases: dict[str, Number]


class GainTrial(Block, kw_only=True):
    """One measurement of two models in turns, over placements.

    `noise` is the farthest from 1 that the model and its own copy may differ by, as a ratio; null
    where no copy was timed beside them. `samples_ns` holds the whole runs of each side, by
    placement.
    """

    gain: Number
    ci95: Interval | None
    noise: Number | None
    before: FixTime
    after: FixTime
    placements: int
    disturbed_by: Texts = []  # what makes the times no evidence
    samples_ns: dict[str, list[list[int]]] = {}


class GainTrials(Block, kw_only=True):
    """The measurements of a request, by what was measured on top of what."""

    schema: Literal[1] = 1
    request: Name
    trials: dict[str, GainTrial] = {}


class TriedRepair(Block, kw_only=True):
    """One repair with its prediction, its measurement, and whether it was kept.

    `difference` is the largest of the outputs, as a share of the largest one; `on_top_of` names the
    repairs that were applied before it was timed. `loss` is the mean KL divergence in nats a
    position, for repairs that change numbers.
    """

    id: Name
    does: Text
    of: Literal["model", "call"]
    finding: Name | None
    predicted_gain: Number | None = None
    gain: Number | None = None
    ci95: Interval | None = None
    outcome: Outcome = "not_timed"
    kept: bool = False
    difference: Number | None = None
    why: Text | None = None
    on_top_of: Texts = []
    call: OmitDefault[Text] = ""
    loss: OmitDefault[Number | None] = None


class Fixes(Block, kw_only=True):
    """The repairs of a model, and the whole before and after, measured again.

    `before` and `after` are null where nothing was timed; `after` is `before` where nothing was
    kept.
    """

    schema: Literal[1] = 1
    tool: Name = ""
    model: Name
    method: Name | None = None
    phases: Annotated[list[Name], Meta(max_length=16)]
    before: FixTime | None = None
    after: FixTime | None = None
    gain: Number | None = None
    ci95: Interval | None = None
    noise: Number | None = None
    repairs: Annotated[list[TriedRepair], Meta(max_length=256)] = []
    notes: Texts = []
