"""The plan of a sweep: a configuration, and the results that it asks for, with stable ids.

In: a SweepConfig for each document of a sweep file or preset. Out: Planned results. Points of a
family whose dimensions are equal are one result. Nothing here loads a model.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, cast

import msgspec

from prunescope.taxonomy.applies import check_applies
from prunescope.taxonomy.architecture_traits import Traits, traits_of
from prunescope.taxonomy.arguments import number
from prunescope.taxonomy.errors import PrunescopeError, nearest
from prunescope.taxonomy.families import cutting, families, family
from prunescope.taxonomy.family import GEMM_GROUPS, Family, read_selection
from prunescope.taxonomy.method_names import is_plan, method_parts
from prunescope.taxonomy.option import Option, Phase, options_of
from prunescope.taxonomy.plan import Workload
from prunescope.taxonomy.runs.run_setting import RunSetting
from prunescope.taxonomy.runs.sweep_files import Planned, family_slug
from prunescope.taxonomy.scrub import scrub_values
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.words import when
from prunescope.tracer.capture.request import (
    DecodeSteps,
    Dtype,
    Placements,
    Repeats,
    Seed,
    Selection,
    Steps,
    Threads,
    TraceRequest,
    Until,
    check_until,
    not_recorded,
)
from prunescope.tracer.recovery.settings import Recovery
from prunescope.tracer.sweep.budget import Budget

MAX_RESULTS = 100_000
# The options of the request that captures a result.
_OPTIONS = {named.name: named for named in options_of(TraceRequest)}


def _lists(name: str, *, least: float | None = None) -> Option:
    """Return an Option that lists values of an option of `trace`, with the help of that option."""
    return Option(help=_OPTIONS[name].option.help, lists=name, least=least)


@dataclass(kw_only=True)
class SweptRequest(TraceRequest):
    """The capture of a result, whose `steps` are not raised to one per placement."""

    profile_every_placement: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """The keys of a sweep file.

    Each value of a key that lists values of an option makes results of its own. All other keys have
    one value in a sweep.
    """

    model: Annotated[str, Option(help="Folder, hub id, FILE.gguf or preset.", example="tiny-llama")]
    families: Annotated[
        tuple[str, ...],
        Option(
            help="Families, functions package.module:function, plans of `allocate`, or folders of "
            "pruned checkpoints.",
            lists="method",
            example=f"[{cutting('layers')}, {cutting('heads', 'channels')}]",
        ),
    ]
    names: Annotated[
        Mapping[str, str],
        Option(
            help="Names of methods in tables and figures, by their entry in families; without it, "
            "that entry. They may change between calls.",
            example="{'mine:prune': Ours}",
        ),
    ] = dataclasses.field(default_factory=dict, hash=False)
    sparsities: Annotated[tuple[float, ...], _lists("sparsity")] = (0.125, 0.25, 0.375, 0.5)
    phases: Annotated[
        tuple[Phase, ...], Option(help="Phases of inference to run.", lists="phase")
    ] = ("prefill", "decode")
    batches: Annotated[tuple[int, ...], _lists("batch", least=1)] = (1,)
    prompt_lens: Annotated[tuple[int, ...], _lists("prompt_len", least=1)] = (512,)
    decode_steps: DecodeSteps = TraceRequest.decode_steps
    draws: Annotated[
        int,
        Option(
            help="Number of random selections to capture at each point, with consecutive seeds.",
            least=1,
            lists="seed",
        ),
    ] = 1
    select: Annotated[
        str | tuple[str, ...],
        Option(help=f"{_OPTIONS['select'].option.help} Or a list, of which each makes a point."),
    ] = TraceRequest.select
    knobs: Annotated[
        tuple[str, ...],
        Option(
            help="Options of one family each, with one value in the whole sweep: "
            "FAMILY.OPTION=VALUE, as `families` lists them.",
            example=f"[{cutting('layers')}.unit=mlp]",
        ),
    ] = ()
    text: Annotated[
        Path | None,
        Option(
            help="UTF-8 text, or wikitext2 or c4 (extra `datasets`): one half scores importance "
            "and trains, one measures perplexity.",
            example="text.txt",
        ),
    ] = None
    other_text: Annotated[
        Path | None,
        Option(
            help="Second text, as `text`, to measure perplexity on; it never selects or trains.",
            example="other.txt",
        ),
    ] = None
    recover: Annotated[
        Recovery | None, Option(help=_OPTIONS["recover"].option.help, example="steps=100,rank=16")
    ] = None
    repeats: Repeats = TraceRequest.repeats
    steps: Steps = TraceRequest.steps
    placements: Placements = TraceRequest.placements
    until: Until = TraceRequest.until
    seed: Seed = TraceRequest.seed
    threads: Threads = TraceRequest.threads
    dtype: Dtype = TraceRequest.dtype
    tasks: Annotated[
        tuple[str, ...],
        Option(help="Tasks of lm-evaluation-harness (extra `eval`).", example="[arc_easy]"),
    ] = ()
    tasks_path: Annotated[
        Path | None, Option(help="Folder of task files of your own.", example="tasks")
    ] = None
    mode: Annotated[tuple[Literal["eager", "compile", "graph"], ...], _lists("mode")] = (
        TraceRequest.mode,
    )
    attn: Annotated[tuple[str, ...], _lists("attn")] = (TraceRequest.attn,)
    logits: Annotated[tuple[Literal["last", "all"], ...], _lists("logits")] = (TraceRequest.logits,)
    set: Annotated[
        Mapping[str, tuple[str, ...]],
        Option(
            help="Options to vary, by name, in every family that has them: a value or a list, of "
            "which each makes a point.",
            lists="knobs",
            example="{align: [odd, just-8, 16]}",
        ),
    ] = dataclasses.field(default_factory=dict, hash=False)
    flush: Annotated[tuple[bool, ...], _lists("flush")] = (TraceRequest.flush,)
    warmup: Annotated[tuple[int, ...], _lists("warmup", least=0)] = (TraceRequest.warmup,)
    only: Annotated[tuple[Literal["model", "layer"], ...], _lists("only")] = (TraceRequest.only,)

    @property
    def selections(self) -> tuple[str, ...]:
        """The selections to compare, at least one."""
        return (self.select,) if isinstance(self.select, str) else self.select

    def identity(self) -> dict[str, Any]:
        """Return the settings that comparable results share, as JSON without local paths.

        These are the keys that list nothing, without the names in tables, which change no number.
        plan.json holds them, and a folder has results of one identity.
        """
        listing = {named.name for named in options_of(SweepConfig) if named.option.lists}
        listing.add("names")
        values = {
            field.name: _without_path(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.name not in listing
        }
        tasks = {"names": list(self.tasks), "folder": values.pop("tasks_path")}
        values |= {"model": Path(self.model).name, "tasks": tasks if self.tasks else None}
        values["knobs"] = values["knobs"] or None  # as in folders of versions without them
        values["logits"] = "last"  # as in those folders; results name what they have
        return dict(scrub_values(values))


def _without_path(value: Any) -> Any:
    """Return a value as JSON; a path becomes its name."""
    if isinstance(value, Recovery):
        return value.plain()
    if isinstance(value, Path):
        return value.name
    return list(value) if isinstance(value, tuple) else value


def model_name(result: Planned) -> str:
    """Return the name of the model of a result. Results of the same name run the same model."""
    return result_name(msgspec.structs.asdict(result), model=True)


# The fields of a result by the option of `trace` that they vary, in the order of the result's name.
VARIED = {
    "method": "family", "sparsity": "sparsity", "phase": "phase", "batch": "batch",
    "prompt_len": "prompt_len", "seed": "draw", "select": "select", "mode": "mode", "attn": "attn",
    "logits": "logits", "knobs": "set", "flush": "flush", "warmup": "warmup", "only": "only",
}  # fmt: skip


def result_name(values: Mapping[str, Any], *, model: bool = False) -> str:
    """Return the id of a result with these fields.

    Args:
        values: The fields of the result.
        model: Whether to return the name of its model instead, which has only those options that
            make another model.
    """
    parts = []
    for option, field in VARIED.items():
        value, known = values.get(field), _OPTIONS[option].option
        if value is None or (model and not known.model):
            continue
        if not known.default_in_name and (not value or value == _OPTIONS[option].default):
            continue
        parts.append(f"{known.in_name}{_format_value(field, value)}")
    return "-".join(parts)


def _format_value(field: str, value: Any) -> str:
    """Return a value as the id of a result holds it; empty for a switch, whose name says it all."""
    if isinstance(value, bool):
        return ""
    if isinstance(value, tuple):  # KNOB=VALUE words
        return "-".join(re.sub(r"[^A-Za-z0-9.]+", "", word) for word in value)
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return family_slug(text) if field == "family" else text


@dataclass(frozen=True)
class SweepPlan:
    """All results of a sweep, those of one model next to each other, and notes about them."""

    config: SweepConfig
    results: tuple[Planned, ...]
    notes: tuple[str, ...] = ()
    budget: Budget | None = None  # the part that runs now; None means all that is left

    def groups(self) -> dict[str, list[Planned]]:
        """Return the results by the name of their model, in order."""
        groups: dict[str, list[Planned]] = {}
        for result in self.results:
            groups.setdefault(model_name(result), []).append(result)
        return groups


def make_plan(configs: Sequence[SweepConfig], shape: ModelShape | None) -> SweepPlan:
    """Plan the results of all configurations, each result once.

    Args:
        configs: The configurations. Those of one folder differ only in keys that list values.
        shape: The shape of the dense model; None if it is unknown, and then no points are merged.

    Returns:
        The plan.

    Raises:
        PrunescopeError: There are too many results, or a knob or a name of a family is invalid.
    """
    planned: dict[str, Planned] = {}
    notes: dict[str, None] = {}
    for config in configs:
        _check_count(config)
        _check_knobs(config)
        check_until(SweptRequest(model=config.model, **_sampling(config)))
        _check_names(config.families)
        _check_display_names(config)
        if SweepConfig.placements != config.placements > config.repeats:
            notes[
                f"placements: {config.placements:,} requested, {config.repeats:,} measured: each "
                "needs a sample of its own (repeats)"
            ] = None
        for method in config.families:
            points, point_notes = _all_points(config, method, shape)
            ways = _possible_selections(config, method).names
            lacks = [way for way in config.selections if way not in ways]
            if lacks and not is_plan(method):
                point_notes.append(f"{method}: chosen {_chosen(ways)}, not {_chosen(lacks)}")
            notes |= dict.fromkeys(point_notes)
            selections: tuple[str | None, ...] = ways if len(config.selections) > 1 else (None,)
            for point in points:
                for select in selections:
                    results = list(_results(config, method, point, select))
                    planned |= {result.id: result for result in results}
                    problems = (
                        recording_problem(r.family, r.mode, knobs_of(config, r.family, r.set))
                        for r in results
                    )
                    notes |= dict.fromkeys(filter(None, problems))
    order = {model_name(r): i for i, r in reversed(list(enumerate(planned.values())))}
    ordered = sorted(planned.values(), key=lambda r: order[model_name(r)])
    return SweepPlan(configs[0], tuple(ordered), tuple(notes))


def _check_count(config: SweepConfig) -> None:
    axes = _axes(config).values()
    sizes = (config.families, config.sparsities, config.phases, *axes, *config.set.values())
    count = math.prod(map(len, sizes)) * config.draws
    if count > MAX_RESULTS:
        raise PrunescopeError(
            f"the sweep asks for {count:,} results, and {MAX_RESULTS:,} are the most",
            hint="fewer `draws`, sparsities, batches or prompt lengths; or several sweeps",
        )


def _check_knobs(config: SweepConfig) -> None:
    """Check that each knob belongs to a family of the sweep and has a valid value.

    Raises:
        PrunescopeError: One does not.
    """
    names = {name for method in config.families for name, _ in _parts(method)}
    for word in config.knobs:
        left, equals, value = word.partition("=")
        name, _, knob = left.partition(".")
        if not (equals and knob) or name not in names:
            raise PrunescopeError(
                f"knobs: {word!r} is not FAMILY.OPTION=VALUE of a family of this sweep",
                hint=f"its families: {', '.join(sorted(names)) or 'none'}",
            )
        family(name).point(0.0, {knob: value})
    having = settable(config.families)
    for knob, values in config.set.items():
        if knob not in having:
            raise PrunescopeError(
                f"set: no family of this sweep has an option {knob!r}",
                hint=f"their options: {', '.join(sorted(having)) or 'none'}",
            )
        for value in values:
            having[knob].point(0.0, {knob: value})


def settable(methods: Sequence[str]) -> dict[str, Family]:
    """Return the options that `set` may give, each with the first family that has it.

    Args:
        methods: The methods of the sweep.
    """
    names = {name for method in methods for name, _ in _parts(method)}
    by_knob: dict[str, Family] = {}
    for known in families():
        if known.id in names:
            by_knob = {**dict.fromkeys(known.knobs, known), **by_knob}
    return by_knob


def knob_points(config: SweepConfig, method: str) -> list[tuple[str, ...]]:
    """Return the OPTION=VALUE words of each point of a method under `set`.

    Each value is combined with each value of the other knobs that one of the families has. The only
    point is empty if they have none.
    """
    has = {knob for part, _ in _known_parts(method) for knob in part.knobs}
    lists = [
        [f"{knob}={value}" for value in values]
        for knob, values in config.set.items()
        if knob in has
    ]
    return [tuple(words) for words in itertools.product(*lists)]


def knobs_of(config: SweepConfig, method: str, words: Sequence[str] = ()) -> dict[str, str]:
    """Return the knobs of the families of a method, as `--set` takes them.

    A knob has the name of its family in front if the method has several families.

    Args:
        config: The configuration of the sweep.
        method: The method.
        words: The OPTION=VALUE words of a point, for the families that have the option.
    """
    names = [name for name, _ in _parts(method)]
    knobs = {}
    for left, _, value in (word.partition("=") for word in config.knobs):
        name, _, knob = left.partition(".")
        if name in names:
            knobs[left if len(names) > 1 else knob] = value
    for knob, _, value in (word.partition("=") for word in words):
        for part, _ in _known_parts(method):
            if knob in part.knobs:
                knobs[f"{part.id}.{knob}" if len(names) > 1 else knob] = value
    return knobs


def _parts(method: str) -> list[tuple[str, str | None]]:
    return [] if is_checkpoint(method) else method_parts(method)


def _known_parts(method: str) -> list[tuple[Family, str | None]]:
    """Return the families of a method that prunescope has, each with the sparsity of its own."""
    by_id = {known.id: known for known in families()}
    return [(by_id[name], own) for name, own in _parts(method) if name in by_id]


def _select_knobs(part: Family, method: str, knobs: Mapping[str, str]) -> dict[str, str]:
    """Return the knobs of one part of a method, from those that `knobs_of` gives the method."""
    before = when(len(_parts(method)) > 1, f"{part.id}.")
    return {knob: knobs[before + knob] for knob in part.knobs if before + knob in knobs}


def shard_of(plan: SweepPlan, shard: tuple[int, int]) -> list[Planned]:
    """Return part i of n (from 0) of the results.

    Parts are divided by models, so that each model is prepared and judged in one place.
    """
    index, count = shard
    mine = [group for i, group in enumerate(plan.groups().values()) if i % count == index]
    return [result for group in mine for result in group]


def read_shard(text: str | None) -> tuple[int, int]:
    """Read (i, n) from "i/n", with i from 0; None is (0, 1).

    Raises:
        PrunescopeError: The text is anything else.
    """
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text or "0/1")
    index, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if index >= count:
        raise PrunescopeError(
            f"--shard {text} is not a part i/n with i from 0 to n-1", hint="for example 0/4 ... 3/4"
        )
    return index, count


def request_of(
    config: SweepConfig, result: Planned, *, out: Path, argv: Sequence[str] = ()
) -> TraceRequest:
    """Return the request that captures a result.

    Args:
        config: The configuration of the sweep.
        result: The result.
        out: The folder to write to.
        argv: The command line, which run.json keeps.
    """
    checkpoint = is_checkpoint(result.family)
    ways = _possible_selections(config, result.family)
    select = cast(Selection, read_selection(result.select or ways.names[0]))
    recover = None if checkpoint else config.recover
    if recover is not None and recover.text is None:
        recover = dataclasses.replace(recover, text=config.text)
    reads = select in ("greedy", "frequency") or (
        select == "importance" and "text" in ways.calibrations
    )
    return SweptRequest(
        model=result.family if checkpoint else config.model,
        baseline_model=config.model if checkpoint else None,
        method=None if checkpoint else result.family,
        name=None if checkpoint else config.names.get(result.family),
        sparsity=0.0 if result.sparsity is None else result.sparsity,
        knobs=knobs_of(config, result.family, result.set),
        out=out,
        phase=result.phase,
        **msgspec.structs.asdict(result.setting),
        decode_steps=config.decode_steps,
        dtype=config.dtype,
        select=select,
        text=config.text if reads or recover is not None else None,
        recover=recover,
        steps=config.steps,
        **_sampling(config),
        seed=config.seed + result.draw,
        threads=config.threads,
        argv=list(argv),
    )


def _sampling(config: SweepConfig) -> dict[str, Any]:
    """Return the options of `trace` that say how many samples and placements a result has."""
    return {
        "repeats": config.repeats,
        "placements": config.placements,
        "max_placements": config.placements,
        "until": config.until,
    }


def is_checkpoint(family: str) -> bool:
    """Return whether this names a model folder or file rather than a way of pruning."""
    return ("/" in family or family.endswith(".gguf")) and not is_plan(family)


def is_file(family: str) -> bool:
    """Return whether this is a single point: a checkpoint, or a plan of `allocate`."""
    return is_checkpoint(family) or is_plan(family)


@dataclass(frozen=True)
class _Selections:
    """The selections of a sweep that a method has; random if it has none of them.

    `calibrations` names what importance is measured on. It is empty if a part has no importance,
    and for a checkpoint or a function.
    """

    names: tuple[str, ...]
    calibrations: frozenset[str]


def _possible_selections(config: SweepConfig, method: str) -> _Selections:
    by_id = {known.id: known for known in families()}
    parts = [by_id.get(name) for name, _ in _parts(method)]
    measured = [part.calibration if part else None for part in parts]
    calibrations = frozenset() if None in measured else frozenset(filter(None, measured))
    able = {
        "random": True,
        "importance": bool(calibrations),
        "greedy": bool(parts) and all(part is not None and part.greedy for part in parts),
        "frequency": bool(parts) and all(part is not None and part.cuts_experts for part in parts),
    }
    names = [way for way in config.selections if able[read_selection(way)]]
    if not names and able["importance"] and "greedy" in config.selections:
        names = ["importance"]  # the selection nearest to greedy
    return _Selections(tuple(names) or ("random",), calibrations)


_CHOSEN = {
    "random": "at random", "importance": "by importance", "greedy": "greedily",
    "frequency": "by frequency",
}  # fmt: skip


def _chosen(ways: Iterable[str]) -> str:
    return " or ".join(_CHOSEN[read_selection(way)] for way in ways)


@dataclass(frozen=True)
class _Point:
    sparsity: float | None
    sparsities: tuple[float, ...]
    problem: str | None = None
    set: tuple[str, ...] = ()


def _all_points(
    config: SweepConfig, name: str, shape: ModelShape | None
) -> tuple[list[_Point], list[str]]:
    """Return the points of a family under each choice of the knobs of `set`, and notes on them."""
    points: list[_Point] = []
    notes: list[str] = []
    for words in knob_points(config, name):
        new, point_notes = _points(config, name, shape, words)
        points += [dataclasses.replace(point, set=words) for point in new]
        notes += [f"{note} ({', '.join(words)})" if words else note for note in point_notes]
    return points, notes + _note_equal_models(config, name, shape, points)


def _note_equal_models(
    config: SweepConfig, name: str, shape: ModelShape | None, points: Sequence[_Point]
) -> list[str]:
    """Return notes on points of a family that are one model under several names.

    Their dimensions are equal, as a sparsity may align by itself to more than an option asks for.
    """
    same: dict[Any, list[_Point]] = {}
    for point in points:
        if point.set and point.sparsity is not None and point.problem is None and shape is not None:
            knobs = knobs_of(config, name, point.set)
            same.setdefault(_signature(name, point.sparsity, shape, knobs), []).append(point)
    return [_describe_equal_models(name, group) for group in same.values() if len(group) > 1]


def _describe_equal_models(name: str, group: Sequence[_Point]) -> str:
    """Return a sentence on points of equal dimensions."""
    sparsities = list(dict.fromkeys(f"{point.sparsity:g}" for point in group))
    differ = len(sparsities) > 1
    names = [" ".join(point.set) + when(differ, f" at s = {point.sparsity:g}") for point in group]
    where = name if differ else f"{name}, s = {sparsities[0]}"
    aligned = any(word.startswith("align=") for word in group[0].set)
    instead = when(aligned, "; align=just-4 is a multiple of 4 and of no larger power of two")
    return (
        f"{where}: {', '.join(names)} give equal dimensions: {len(group)} points are the same "
        f"model{instead}"
    )


def _points(
    config: SweepConfig, name: str, shape: ModelShape | None, words: Sequence[str]
) -> tuple[list[_Point], list[str]]:
    """Return the points of a family, with equal ones merged, and notes on them."""
    wanted = sorted(set(config.sparsities))
    knobs = knobs_of(config, name, words)
    if is_file(name):
        kind = "plan" if is_plan(name) else "checkpoint"
        return [_Point(None, ())], [f"{family_slug(name)}: a {kind}, one point"]
    reason = None if shape is None else _why_impossible(name, traits_of(shape))
    if reason is not None:
        return [_Point(s, (s,), reason) for s in wanted], [reason]
    known = {family.id: family for family in families()}
    if name not in known:
        return [_Point(s, (s,), _composite_problem(name, s, shape)) for s in wanted], []
    merged: dict[Any, list[float]] = {}
    problems: list[_Point] = []
    for sparsity in wanted:
        try:
            signature = _dimensions(known[name], sparsity, shape, knobs)
        except PrunescopeError as error:
            problems.append(_Point(sparsity, (sparsity,), error.problem))
            continue
        merged.setdefault(signature, []).append(sparsity)
    notes = [
        f"{name}: s = {' = '.join(f'{s:g}' for s in same)} give equal dimensions, one point"
        for same in merged.values()
        if len(same) > 1
    ]
    return [_Point(same[0], tuple(same)) for same in merged.values()] + problems, notes


def _why_impossible(name: str, traits: Traits) -> str | None:
    """Return why a family, or a part of a combination, cannot prune this model at any sparsity.

    Returns:
        The reason; None if it can.
    """
    for part, _ in _known_parts(name):
        try:
            check_applies(part.id, part.applies, traits)
        except PrunescopeError as error:
            return error.problem
        # Families that are only predicted are refused when the file is read.
        is_known = traits.entry is not None and not part.predicted_only
        reason = part.not_implemented(traits) if is_known else ""
        if reason:
            return f"{part.id} is not implemented for this model: {reason}"
    return None


def _composite_problem(name: str, sparsity: float, shape: ModelShape | None) -> str | None:
    """Return why a part of a combination cannot prune this model at its sparsity.

    Names that are no family are refused when the method is read.

    Returns:
        The reason; None if all parts can.
    """
    for part, own in _known_parts(name):
        share = sparsity if own is None else number(own)
        if share is not None:
            try:
                part.check(share)
                _dimensions(part, share, shape, {})
            except PrunescopeError as error:
                return f"{part.id}: {error.problem}"
    return None


def _signature(
    method: str, sparsity: float, shape: ModelShape, knobs: Mapping[str, str]
) -> tuple[Any, ...]:
    """Return a value that is equal for two points of a method that make the same model.

    It consists of the `_dimensions` of the parts. A method that is no family of prunescope may do
    anything, so that its signature has every option.
    """
    parts = _known_parts(method)
    shares = [sparsity if own is None else number(own) for _, own in parts]
    if len(parts) < len(_parts(method)) or None in shares:
        return method, sparsity, *sorted(knobs.items())
    return tuple(
        (part.id, _dimensions(part, share, shape, _select_knobs(part, method, knobs)))
        for (part, _), share in zip(parts, shares, strict=True)
        if share is not None
    )


def _dimensions(
    family: Family, sparsity: float, shape: ModelShape | None, knobs: Mapping[str, str]
) -> Any:
    """Return a value that is equal for two points of a family that make the same model.

    It consists of the dimensions and of every option that says more than how large they are. If
    dimensions do not say all, it also has the sparsity. If dimensions are unknown, it is the
    sparsity and all options.
    """
    point = family.point(sparsity, knobs)
    if shape is None:
        return sparsity, *sorted(point.knobs.items())
    ops = family.theory(shape, Workload(phase="prefill", prompt_len=64), point)
    knobs_beyond_sizes = [
        (knob, value)
        for knob, value in sorted(point.knobs.items())
        if not family.knobs[knob].only_sizes
    ]
    moves = any(family.axes[group] != "none" for group in GEMM_GROUPS)
    nominal = () if moves and not family.is_dynamic else (sparsity,)
    sizes = ((op.name, op.layers, op.gemms, op.flop, op.parameters) for op in ops)
    return *nominal, *knobs_beyond_sizes, *sizes


# The keys of a sweep file that list the values of each field of a setting.
_AXES = {
    named.option.lists: named.name
    for named in options_of(SweepConfig)
    if named.option.lists in RunSetting.__struct_fields__
}


def _axes(config: SweepConfig) -> dict[str, tuple[Any, ...]]:
    """Return the values of each field of a setting that a sweep asks for."""
    return {field: getattr(config, key) for field, key in _AXES.items()}


def _results(
    config: SweepConfig, family: str, point: _Point, select: str | None
) -> Iterable[Planned]:
    axes = {
        "draw": range(1 if point.sparsity is None else config.draws),
        **_axes(config),
        "phase": config.phases,
    }
    for combined in itertools.product(*axes.values()):
        values = {
            "family": family,
            "select": select,
            **dict(zip(axes, combined, strict=True)),
            **dataclasses.asdict(point),
        }
        if values["logits"] == "all" and values["phase"] == "decode" and "last" in config.logits:
            continue  # a decode step computes the logits of its one token either way
        if point.problem is None:
            knobs = knobs_of(config, family, point.set)
            values["problem"] = recording_problem(family, values["mode"], knobs)
        yield Planned(id=result_name(values), **values)


def recording_problem(method: str, mode: str, knobs: Mapping[str, str]) -> str | None:
    """Return why steps of a method cannot be recorded in a mode.

    Args:
        method: The method.
        mode: The mode: eager, compile or graph.
        knobs: The knobs that `knobs_of` gives the method.

    Returns:
        The reason; None if they can be recorded.
    """
    problems = (
        not_recorded(mode, part.id, _select_knobs(part, method, knobs))
        for part, _ in _known_parts(method)
    )
    return next(filter(None, problems), None)


def _check_display_names(config: SweepConfig) -> None:
    """Check that each display name belongs to a method of the sweep, and to no other one.

    Raises:
        PrunescopeError: One does not.
    """
    shown = {method: config.names.get(method, method) for method in config.families}
    for method in config.names:
        if method not in shown:
            raise PrunescopeError(
                f"names: {method!r} is not in families",
                hint=f"nearest: {nearest(method, config.families)}",
            )
    for method, name in shown.items():
        others = [other for other in shown if other != method and shown[other] == name]
        if others:
            raise PrunescopeError(
                f"names: {method!r} and {others[0]!r} are both called {name!r}",
                hint="give each method a name of its own",
            )


def _check_names(names: Iterable[str]) -> None:
    seen: dict[str, str] = {}
    for name in names:
        slug = family_slug(name)
        if slug in seen:
            raise PrunescopeError(
                f"families {seen[slug]!r} and {name!r} have the same name in results",
                hint="list a family once, and name model folders differently",
            )
        seen[slug] = name
