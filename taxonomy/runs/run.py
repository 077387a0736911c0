"""The run manifest `run.json`: what one variant of a model is, how it was run and timed.

Version 1. Times are integer ns, memory is bytes. Neither what is written nor what is read of a file
from elsewhere holds a host, user, path, secret or environment value. `pruning` is what the tool
did; `census` holds statistics of the weights, which the verdict reads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from itertools import accumulate
from math import exp, log
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import (
    Block,
    Count,
    Counts,
    FileName,
    Layers,
    Name,
    Names,
    Number,
    OmitDefault,
    Size,
    decode,
    plain,
    unique_keys,
)
from prunescope.taxonomy.runs.run_blocks import (
    BaselineRef,
    DeviceEntry,
    InputText,
    LayerAlone,
    ModelEntry,
    Pruning,
    TimingNote,
    Until,
    WeightStats,
)
from prunescope.taxonomy.runs.run_quality import Quality
from prunescope.taxonomy.scrub import scrub_values, scrub_words

MANIFEST = "run.json"
CARD = "model-card.md"  # the README.md of the model that a run saved, next to its manifest
RECORDER = "recorder"  # the `source` of a model whose run the file of `prunescope recorder` wrote
# A capture adds no placements once the interval of a speedup is narrower than this share of it.
NARROW = 0.08
_DISTURBED = 0.1  # share of disturbed samples that a median tolerates
MAX_SAMPLES = 20_000
MAX_BYTES = 64 << 20  # weight statistics of 100,000 matrices take a third
LayerNumber = Annotated[
    str, Meta(pattern=r"\A(0|[1-9][0-9]{0,4})\Z", description="the number of a layer")
]
ExpertTokens = Annotated[list[Count], Meta(max_length=1 << 14)]


class Placement(Block, kw_only=True):
    """One placement of the weights in memory: its share of a phase's samples and profiled steps."""

    samples: Count  # of samples_ns, in order
    steps: Count  # of the profiled steps, in order
    cost_ns: Count = 0  # to place the weights and to warm up, without the samples
    retaken: Count = 0  # samples that something disturbed, and that were taken again
    disturbed: Count = 0  # of `samples`, those that were disturbed all the same
    reasons: Names = []  # what disturbed them
    # What disturbed the profiled steps, which were taken again once (not those of a user's loop).
    steps_disturbed: Names = []
    switches: OmitDefault[Count] = 0  # involuntary context switches of ours in `samples`


def are_disturbed(placements: Iterable[tuple[int, int]]) -> bool:
    """Return whether more than a tenth of the samples were disturbed.

    Args:
        placements: The numbers of disturbed samples and of all samples of each placement.
    """
    shares = [disturbed / samples for disturbed, samples in placements if samples]
    return sum(shares) > _DISTURBED * len(shares)


class PhaseRun(Block, kw_only=True):
    """One phase of a run: its inputs, its unprofiled samples and its trace."""

    batch: Size
    prompt_len: Size
    positions: Counts  # [first, last + 1] cache positions of the query tokens
    context: Size  # L: mean number of keys a query of the last token sees, with the new token
    logits: Name  # "last" | "all"
    cache: Name  # "dynamic" | "static" | "none": the model takes none
    attention: Name  # attention implementation: "sdpa", "eager", ...
    mode: Name  # "eager" | "compile" | "graph"
    steps: Size  # profiled steps in the trace
    tokens_per_step: Size  # tokens through the model in one step, over the batch
    warmup: Count
    samples_ns: Annotated[list[Size], Meta(max_length=MAX_SAMPLES)] = []  # unprofiled, one a repeat
    interleaved: Name = "alternating"  # "alternating" | "blocks" | "alone"
    trace: FileName = ""  # name of a file next to run.json
    sha256: Name = ""
    eager_trace: FileName | None = None  # for graph and compile: where shapes and roles come from
    peak_memory_bytes: Count | None = None
    kv_bytes: Count | None = None
    # One entry: the weights were not moved. Empty: unknown (an older version wrote the run).
    placements: Annotated[list[Placement], Meta(max_length=MAX_SAMPLES)] = []
    # The number requested, where it differs from the number measured: more because intervals were
    # wide, or fewer because each placement needs a sample.
    placements_requested: OmitDefault[Size | None] = None
    until: OmitDefault[Until | None] = None  # what `--until` asked for; None: it was not given
    # The number of graphs of a recorded step, and why torch.compile broke off, a line per reason:
    # empty if it never did. None: the step is not recorded, or an older version wrote the run.
    graphs: OmitDefault[Count | None] = None
    breaks: OmitDefault[Names | None] = None
    # The buffer that flushed the last-level cache before each sample and step; None: no flush.
    flush_bytes: OmitDefault[Count | None] = None
    # One decoder layer ran alone, and samples, steps and traces are its; None: the whole model.
    alone: OmitDefault[LayerAlone | None] = None

    @property
    def attn(self) -> str:
        """The attention implementation, as a RunSetting calls it."""
        return self.attention

    @property
    def flush(self) -> bool:
        """Whether the last-level cache was flushed before each sample and step."""
        return self.flush_bytes is not None

    @property
    def only(self) -> str:
        """What ran: the whole "model", or one decoder "layer" of it alone."""
        return "layer" if self.alone else "model"

    @property
    def has_disturbed_samples(self) -> bool:
        """Whether more than a tenth of the samples were disturbed.

        The share is the mean over placements, each with equal weight as in `time_ns`, so that extra
        samples of one hide no other.
        """
        return are_disturbed((p.disturbed, p.samples) for p in self.placements)

    @property
    def has_disturbed_steps(self) -> bool:
        """Whether most profiled steps are of placements whose profiled steps were disturbed."""
        disturbed = sum(
            placement.steps for placement in self.placements if placement.steps_disturbed
        )
        return 2 * disturbed > sum(placement.steps for placement in self.placements)

    @property
    def is_disturbed(self) -> bool:
        """Whether the times are not valid: those of samples, or of most profiled steps."""
        return self.has_disturbed_samples or self.has_disturbed_steps

    @property
    def is_sequential(self) -> bool:
        """Whether placements were added until an interval was narrow, which widens intervals."""
        return self.until is not None and self.until.looks > 0

    @property
    def samples_by_placement(self) -> list[list[int]]:
        """The `samples_ns` by placement; one list if the weights were not moved."""
        counts = [placement.samples for placement in self.placements]
        if len(counts) < 2 or sum(counts) != len(self.samples_ns):
            return [self.samples_ns]
        ends = list(accumulate(counts))
        return [self.samples_ns[end - n : end] for end, n in zip(ends, counts, strict=True)]

    @property
    def time_ns(self) -> float | None:
        """The time of a step as reports give it; None without samples.

        It is the geometric mean over placements of the medians of their samples.
        """
        from statistics import fmean, median  # imported late: an analysis needs neither

        medians = [median(samples) for samples in self.samples_by_placement if samples]
        if not medians or min(medians) <= 0:
            return None
        return exp(fmean(map(log, medians)))


class Run(Block, kw_only=True):
    """The manifest of one variant. Unknown keys of a newer minor version are kept."""

    schema: Literal[1] = 1
    tool: Name = ""
    variant: Annotated[str, Meta(pattern="^(dense|pruned)$", description="dense or pruned")]
    model: ModelEntry
    phases: Annotated[dict[str, PhaseRun], Meta(max_length=16)]
    dtype: Name
    device: DeviceEntry
    versions: dict[str, str]
    seeds: dict[str, int]
    argv: list[str]
    weight_bytes: Count | None = None
    parameters: Count | None = None
    layer_map: Layers | None = None  # entry i: the dense layer that layer i was
    pruning: Pruning | None = None
    census: WeightStats | None = None
    twin: BaselineRef | None = None
    inputs: OmitDefault[InputText | None] = None
    timing: OmitDefault[TimingNote | None] = None
    # By phase and layer, in steps outside of those that were timed: the tokens that each expert
    # got, one entry per expert, summed over the steps; and how many experts got one, per step.
    routing: OmitDefault[dict[str, dict[LayerNumber, ExpertTokens]]] = {}
    distinct_experts: OmitDefault[dict[str, dict[LayerNumber, Number]]] = {}
    quality: OmitDefault[Quality | None] = None

    @property
    def is_disturbed(self) -> bool:
        """Whether another program ran during a phase, so that its times are not valid."""
        return any(phase.is_disturbed for phase in self.phases.values())

    def to_json(self) -> str:
        """Return the manifest as it is written, keys in the order of the fields."""
        return json.dumps(_scrubbed(plain(self)), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, *, where: str = MANIFEST) -> Run:
        """Read a manifest.

        Raises:
            PrunescopeError: The text is anything but a valid manifest of version 1.
        """
        run = decode(text, cls, where=where, hint="trace the model again, or restore the file")
        if run.model.source == RECORDER:
            from prunescope.taxonomy.runs.recorded import complete  # few runs need it

            complete(run.model, run.census or WeightStats())
        return run

    @classmethod
    def upgraded(cls, plain: dict[str, Any]) -> dict[str, Any]:
        """Rename the keys of phases that versions before 0.2 wrote, and scrub every string.

        Raises:
            KeyTwiceError: A phase has a key by its old and by its new name.
        """
        plain = _scrubbed(plain)
        phases = plain.get("phases")
        if not isinstance(phases, dict):
            return plain
        new = {"seatings": "placements", "seatings_asked": "placements_requested"}
        renamed = {
            name: unique_keys([(str(new.get(key, key)), value) for key, value in phase.items()])
            if isinstance(phase, dict)
            else phase
            for name, phase in phases.items()
        }
        return {**plain, "phases": renamed}


def _scrubbed(plain: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest without secrets, mail addresses and paths.

    The names of its traces stay as they are on disk, and so does the path of its baseline.
    """
    model: Any = plain.get("model")
    words = plain.get("argv")
    scrubbed: dict[str, Any] = scrub_values({**plain, "argv": None})
    if isinstance(words, list) and all(isinstance(word, str) for word in words):
        is_public = isinstance(model, dict) and model.get("source") == "hub"
        scrubbed["argv"] = scrub_words(words, public=model.get("id") if is_public else None)
    else:
        scrubbed["argv"] = words
    kept: list[tuple[Any, Any, tuple[str, ...]]] = [
        (plain.get("twin"), scrubbed.get("twin"), ("path",))
    ]
    if isinstance(phases := plain.get("phases"), dict):
        pairs = zip(phases.values(), scrubbed["phases"].values(), strict=True)
        kept += [(old, new, ("trace", "eager_trace")) for old, new in pairs]
    for old, new, names in kept:
        if isinstance(old, dict) and isinstance(new, dict):
            new.update({name: old[name] for name in names if name in old})
    return scrubbed if "argv" in plain else {k: v for k, v in scrubbed.items() if k != "argv"}


def read_run(folder: Path) -> Run:
    """Read the manifest of a run folder.

    Raises:
        PrunescopeError: The folder has no manifest, or it is damaged or too large.
    """
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
    """Return the hex SHA-256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
