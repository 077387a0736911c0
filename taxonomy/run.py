"""The run manifest `run.json`: what one variant of a model is, how it was run and timed.

Version 1. Times are integer ns, memory is bytes. No host, user, path or environment value.
`pruning` says what the tool did; `census` says what the weights are. A verdict reads the census.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from itertools import accumulate
from math import exp, log
from pathlib import Path
from typing import Any

from prunescope.taxonomy import json_fields
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.json_fields import left_out
from prunescope.taxonomy.run_blocks import (
    BaselineRef,
    DeviceEntry,
    InputText,
    ModelEntry,
    Pruning,
    TimingNote,
    WeightStats,
)
from prunescope.taxonomy.run_quality import Quality
from prunescope.taxonomy.run_schema import first_wrong

SCHEMA = 1
MANIFEST = "run.json"
# Width of the interval of a speedup, as a share of it, at which a capture draws no more placements.
NARROW = 0.08
_DISTURBED = 0.1  # of the samples of a placement, which a median bears, and so of all placements
MAX_BYTES = 64 << 20  # a census of 100,000 matrices is a third of it


@dataclass(kw_only=True)
class Placement:
    """One placement of the weights in memory: its share of a phase's samples and profiled steps."""

    samples: int  # of samples_ns, in order
    steps: int  # of the profiled steps, in order
    cost_ns: int = 0  # to put the weights there and to warm up, beside the samples
    retaken: int = 0  # samples that something disturbed, and that were taken again
    disturbed: int = 0  # of `samples`, those that were disturbed all the same
    reasons: list[str] = field(default_factory=list)  # what disturbed them
    # what disturbed the profiled steps, which were taken again once (not those of a user's loop)
    steps_disturbed: list[str] = field(default_factory=list)
    switches: int = left_out(int)  # involuntary context switches of ours in `samples`


@dataclass(kw_only=True)
class PhaseRun:
    """One phase of a run: its inputs, its unprofiled samples and its trace."""

    batch: int
    prompt_len: int
    positions: list[int]  # [first, last + 1] cache positions of the query tokens
    context: int  # L: mean number of keys a query of the last token sees, with the new token
    logits: str  # "last" | "all"
    cache: str  # "dynamic" | "static" | "none": the model takes none
    attention: str  # attention implementation: "sdpa", "eager", ...
    mode: str  # "eager" | "compile" | "graph"
    steps: int  # profiled steps in the trace
    tokens_per_step: int  # tokens through the model in one step, over the batch
    warmup: int
    samples_ns: list[int] = field(default_factory=list)  # unprofiled, one a repeat
    interleaved: str = "alternating"  # "alternating" | "blocks" | "alone"
    trace: str = ""  # file name beside run.json
    sha256: str = ""
    eager_trace: str | None = None  # for graph and compile: where shapes and roles come from
    peak_memory_bytes: int | None = None
    kv_bytes: int | None = None
    # One entry: placement was not drawn. Empty: a run of before, of which nothing is known.
    placements: list[Placement] = field(default_factory=list)
    # Those that were asked for, where others were drawn: more since intervals were wide, or fewer
    # since each has a sample of its own.
    placements_requested: int | None = left_out()

    @property
    def has_disturbed_samples(self) -> bool:
        """Whether something else ran beside more of the samples kept than a few. Every placement
        weighs as much, as in the time of a step: samples that were added to some hide no other."""
        kept = [one.disturbed / one.samples for one in self.placements if one.samples]
        return sum(kept) > _DISTURBED * len(kept)

    @property
    def has_disturbed_steps(self) -> bool:
        """Whether most profiled steps are of placements in which something else ran beside them."""
        found = sum(placement.steps for placement in self.placements if placement.steps_disturbed)
        return 2 * found > sum(placement.steps for placement in self.placements)

    @property
    def is_disturbed(self) -> bool:
        """Whether its times are not valid: of samples, or of most profiled steps."""
        return self.has_disturbed_samples or self.has_disturbed_steps

    @property
    def samples_by_placement(self) -> list[list[int]]:
        """`samples_ns` by placement; one list where placement was not drawn."""
        counts = [placement.samples for placement in self.placements]
        if len(counts) < 2 or sum(counts) != len(self.samples_ns):
            return [self.samples_ns]
        ends = list(accumulate(counts))
        return [self.samples_ns[end - n : end] for end, n in zip(ends, counts, strict=True)]

    @property
    def time_ns(self) -> float | None:
        """The time of a step as reports give it: the geometric mean over placements of the medians
        of their samples; None without samples."""
        from statistics import fmean, median  # an analysis needs neither

        medians = [median(samples) for samples in self.samples_by_placement if samples]
        if not medians or min(medians) <= 0:
            return None
        return exp(fmean(map(log, medians)))


@dataclass(kw_only=True)
class Run:
    """The manifest of one variant. Unknown keys of a newer minor version are kept in `extra`."""

    variant: str  # "dense" | "pruned"
    model: ModelEntry
    phases: dict[str, PhaseRun]
    dtype: str
    device: DeviceEntry
    versions: dict[str, str]
    seeds: dict[str, int]
    argv: list[str]
    weight_bytes: int | None = None
    parameters: int | None = None
    layer_map: list[int] | None = None  # entry i: the dense layer that layer i was
    pruning: Pruning | None = None
    census: WeightStats | None = None
    twin: BaselineRef | None = None
    schema: int = SCHEMA
    tool: str = ""
    inputs: InputText | None = left_out()
    timing: TimingNote | None = left_out()
    quality: Quality | None = left_out()
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def is_disturbed(self) -> bool:
        """Whether something else ran beside a phase, so that its times are not valid."""
        return any(one.is_disturbed for one in self.phases.values())

    def to_json(self) -> str:
        """The manifest as it is written, keys in the order of the fields."""
        written = json_fields.plain(self)
        written.update(written.pop("extra"))
        head = {"schema": written.pop("schema"), "tool": written.pop("tool")}
        return json.dumps({**head, **written}, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, *, where: str = MANIFEST) -> Run:
        """Read a manifest. Raises PrunescopeError on anything that is not one of version 1."""
        try:
            plain = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise PrunescopeError(
                f"{where} is not JSON ({error})", hint="trace the model again, or restore the file"
            ) from None
        if not isinstance(plain, dict) or plain.get("schema") != SCHEMA:
            raise PrunescopeError(
                f"{where} is not a run manifest of schema {SCHEMA}",
                hint="use the prunescope version that wrote it, or trace the model again",
            )
        _rename_old_keys(plain)
        wrong = first_wrong(plain)
        if wrong is not None:
            raise PrunescopeError(
                f"{where}: {wrong} is not what a run manifest has there",
                hint="trace the model again, or restore the file",
            )
        known = {f.name for f in dataclasses.fields(cls)} - {"extra"}
        extra = {k: v for k, v in plain.items() if k not in known}
        try:
            own = {k: v for k, v in plain.items() if k in known}
            return json_fields.read(cls, {**own, "extra": extra})
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise PrunescopeError(
                f"{where} lacks a field of a run manifest ({error})",
                hint="trace the model again with this version",
            ) from None


# Keys of phases as versions before 0.2 wrote them, and what they are now.
_OLD_KEYS = {"seatings": "placements", "seatings_asked": "placements_requested"}


def _rename_old_keys(plain: dict[str, Any]) -> None:
    phases = plain.get("phases")
    for phase in phases.values() if isinstance(phases, dict) else ():
        if isinstance(phase, dict):
            renamed = {_OLD_KEYS.get(key, key): value for key, value in phase.items()}
            phase.clear()
            phase.update(renamed)


def read_run(folder: Path) -> Run:
    """The manifest of a run folder. Raises PrunescopeError where there is none."""
    path = folder / MANIFEST
    if not path.is_file():
        raise PrunescopeError(
            f"no {MANIFEST} in {folder.name}/",
            hint="give the folder that `prunescope trace --out` wrote, or a Chrome trace file",
        )
    where = f"{folder.name}/{MANIFEST}"
    if path.stat().st_size > MAX_BYTES:
        raise PrunescopeError(
            f"{where} is too large for a run manifest", hint="restore the file, or trace again"
        )
    return Run.from_json(path.read_bytes(), where=where)


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
