"""What a sweep will do: a configuration, and the results that it asks for, with stable ids.

In: a YAML file or a preset. Out: SweepConfigs and Planned results. Points of a family whose
dimensions are equal are one result. Nothing here loads a model.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from prunescope.taxonomy.applies import check_applies
from prunescope.taxonomy.architecture_traits import Traits, traits_of
from prunescope.taxonomy.arguments import method_parts
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import families
from prunescope.taxonomy.family import GEMM_GROUPS, Family
from prunescope.taxonomy.plan import Workload
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.sweep_files import Planned, family_slug
from prunescope.tracer.capture.request import TraceRequest
from prunescope.tracer.recovery.settings import Recovery

MAX_RESULTS = 100_000


@dataclass(kw_only=True)
class SweptRequest(TraceRequest):
    """The capture of a result: as many profiled steps as are asked for, not one a placement."""

    seated_steps: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """The keys of a sweep file; a family is an id, package.module:function, or a model folder."""

    model: str
    families: tuple[str, ...]
    sparsities: tuple[float, ...] = (0.125, 0.25, 0.375, 0.5)
    phases: tuple[str, ...] = ("prefill", "decode")
    batches: tuple[int, ...] = (1,)
    prompt_lens: tuple[int, ...] = (512,)
    decode_steps: int = 8
    draws: int = 1
    select: str | tuple[str, ...] = "random"
    text: Path | None = None
    other_text: Path | None = (
        None  # a second one to judge by, which nothing was chosen or trained by
    )
    recover: Recovery | None = None
    repeats: int = 20
    steps: int = 5
    placements: int = 8
    seed: int = 0
    threads: int | None = None
    dtype: str = "auto"
    tasks: tuple[str, ...] = ()
    tasks_path: Path | None = None
    logits: str = "last"

    @property
    def selections(self) -> tuple[str, ...]:
        """The ways to choose, one at least."""
        return (self.select,) if isinstance(self.select, str) else self.select

    def identity(self) -> dict[str, Any]:
        """What makes results comparable, without local paths: a folder holds one of these."""
        names = (
            "decode_steps", "draws", "select", "repeats", "steps", "placements", "seed", "threads",
            "dtype", "logits",
        )  # fmt: skip
        values = {name: getattr(self, name) for name in names if name != "draws"}
        text = None if self.text is None else self.text.name
        values["select"] = self.select if isinstance(self.select, str) else list(self.select)
        added = {
            "other_text": None if self.other_text is None else self.other_text.name,
            "recover": None if self.recover is None else self.recover.plain(),
        }
        tasks = {"names": list(self.tasks), "folder": self.tasks_path and self.tasks_path.name}
        return {
            "model": Path(self.model).name,
            "text": text,
            **values,
            "tasks": tasks if self.tasks else None,
            **{name: value for name, value in added.items() if value is not None},
        }


@dataclass(frozen=True)
class SweepPlan:
    """All results of a sweep, those of one model next to each other, and notes about them."""

    config: SweepConfig
    results: tuple[Planned, ...]
    notes: tuple[str, ...] = ()

    def groups(self) -> dict[str, list[Planned]]:
        """Results by model key, in order."""
        found: dict[str, list[Planned]] = {}
        for result in self.results:
            found.setdefault(result.key, []).append(result)
        return found


def make_plan(configs: Sequence[SweepConfig], shape: ModelShape | None) -> SweepPlan:
    """The results of all `configs` (those of a preset differ in batches and lengths alone), once.

    `shape`: of the dense model, or None where it is not known; then nothing is merged.
    """
    found: dict[str, Planned] = {}
    notes: dict[str, None] = {}
    for config in configs:
        _check_count(config)
        _check_names(config.families)
        for family in config.families:
            points, said = _points(family, config.sparsities, shape)
            ways = _ways(config, family).names
            if lacks := [way for way in config.selections if way not in ways]:
                chosen = "at random" if ways == ("random",) else " or ".join(ways)
                said.append(f"{family}: chosen {chosen}, not {' or '.join(lacks)}")
            notes |= dict.fromkeys(said)
            own: tuple[str | None, ...] = ways if len(config.selections) > 1 else (None,)
            for point in points:
                for select in own:
                    results = _results(config, family, point, select)
                    found |= {result.id: result for result in results}
    order = {r.key: i for i, r in reversed(list(enumerate(found.values())))}
    ordered = sorted(found.values(), key=lambda r: order[r.key])
    return SweepPlan(configs[0], tuple(ordered), tuple(notes))


def _check_count(config: SweepConfig) -> None:
    sizes = (config.families, config.sparsities, config.phases, config.batches, config.prompt_lens)
    count = math.prod(map(len, sizes)) * config.draws
    if count > MAX_RESULTS:
        raise PrunescopeError(
            f"the sweep asks for {count:,} results, and {MAX_RESULTS:,} are the most",
            hint="fewer draws, sparsities, batches or prompt lengths; or several sweeps",
        )


def shard_of(plan: SweepPlan, shard: tuple[int, int]) -> list[Planned]:
    """Part i of n (from 0), by models, so that a model is prepared and judged in one place."""
    index, count = shard
    mine = [group for i, group in enumerate(plan.groups().values()) if i % count == index]
    return [result for group in mine for result in group]


def read_shard(text: str | None) -> tuple[int, int]:
    """(i, n) of "i/n", i from 0; (0, 1) for None. Raises PrunescopeError on anything else."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text or "0/1")
    index, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if index >= count:
        raise PrunescopeError(
            f"--shard {text} is not a part i/n with i from 0 to n-1", hint="for example 0/4 ... 3/4"
        )
    return index, count


def request_of(
    config: SweepConfig, result: Planned, *, out: Path, argv: Sequence[str] = ()
) -> TraceRequest:
    """The capture that a result is, into the folder `out`."""
    checkpoint = is_checkpoint(result.family)
    ways = _ways(config, result.family)
    select = result.select or ways.names[0]
    recover = None if checkpoint else config.recover
    if recover is not None and recover.text is None:
        recover = dataclasses.replace(recover, text=config.text)
    reads = select == "greedy" or (select == "calibrated" and "text" in ways.calibrations)
    return SweptRequest(
        model=result.family if checkpoint else config.model,
        baseline_model=config.model if checkpoint else None,
        method=None if checkpoint else result.family,
        sparsity=0.0 if result.sparsity is None else result.sparsity,
        out=out,
        phase=result.phase,
        batch=result.batch,
        prompt_len=result.prompt_len,
        decode_steps=config.decode_steps,
        logits=config.logits,
        dtype=config.dtype,
        select=select,
        text=config.text if reads or recover is not None else None,
        recover=recover,
        repeats=config.repeats,
        steps=config.steps,
        placements=config.placements,
        max_placements=config.placements,
        seed=config.seed + result.draw,
        threads=config.threads,
        argv=list(argv),
    )


def is_checkpoint(family: str) -> bool:
    """Whether this names a model folder or file rather than a way of pruning."""
    return "/" in family or family.endswith(".gguf")


@dataclass(frozen=True)
class _Ways:
    """Those of a sweep's ways to choose that a method has; random where it has none of them.
    `calibrations`: what a calibrated choice rests on; empty where a part has no such choice, and
    for a checkpoint or a function."""

    names: tuple[str, ...]
    calibrations: frozenset[str]


def _ways(config: SweepConfig, method: str) -> _Ways:
    by_id = {one.id: one for one in families()}
    parts = [] if is_checkpoint(method) else [by_id.get(name) for name, _ in method_parts(method)]
    rests = [one.calibration if one else None for one in parts]
    calibrations = frozenset(by for by in rests if by) if None not in rests else frozenset()
    able = {
        "random": True,
        "calibrated": bool(calibrations),
        "greedy": bool(parts) and all(one is not None and one.greedy for one in parts),
    }
    found = [way for way in config.selections if able[way]]
    if not found and able["calibrated"] and "greedy" in config.selections:
        found = ["calibrated"]  # the nearest to it
    return _Ways(tuple(found) or ("random",), calibrations)


@dataclass(frozen=True)
class _Point:
    sparsity: float | None
    sparsities: tuple[float, ...]
    problem: str | None = None


def _points(
    name: str, sparsities: Iterable[float], shape: ModelShape | None
) -> tuple[list[_Point], list[str]]:
    """The points of a family, equal ones merged, and what to say about it."""
    wanted = sorted(set(sparsities))
    if is_checkpoint(name):
        return [_Point(None, ())], [f"{family_slug(name)}: a checkpoint, one point"]
    why = None if shape is None else _cannot(name, traits_of(shape))
    if why is not None:
        return [_Point(s, (s,), why) for s in wanted], [why]
    known = {one.id: one for one in families()}
    if name not in known:
        return [_Point(s, (s,)) for s in wanted], []
    merged: dict[Any, list[float]] = {}
    problems: list[_Point] = []
    for sparsity in wanted:
        try:
            signature = _dimensions(known[name], sparsity, shape)
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


def _cannot(name: str, traits: Traits) -> str | None:
    """Why no sparsity of a family, or of one of several, can be had of this model; None where some
    may."""
    by_id = {one.id: one for one in families()}
    for part, _ in method_parts(name):
        one = by_id.get(part)
        if one is None:
            continue
        try:
            check_applies(part, one.applies, traits)
        except PrunescopeError as error:
            return error.problem
        # What no model is pruned by is a mistake in the file, and refused before anything runs.
        asked = traits.entry is not None and not one.theory_alone
        reason = one.not_realised(traits) if asked else ""
        if reason:
            return f"{part} is not realised for this model: {reason}"
    return None


def _dimensions(family: Family, sparsity: float, shape: ModelShape | None) -> Any:
    """Equal for two sparsities that make the same model; the sparsity where that is not known."""
    point = family.point(sparsity)
    if shape is None:
        return sparsity
    ops = family.theory(shape, Workload(phase="prefill", prompt_len=64), point)
    moves = any(family.axes[group] != "none" for group in GEMM_GROUPS)
    if family.dynamics == "dynamic" or not moves:
        return sparsity
    return tuple((op.name, op.layers, op.gemms, op.flop, op.parameters) for op in ops)


def _results(
    config: SweepConfig, family: str, point: _Point, select: str | None
) -> Iterable[Planned]:
    draws = 1 if point.sparsity is None else config.draws
    way = f"-{select}" if select else ""
    for draw in range(draws):
        for batch in config.batches:
            for prompt_len in config.prompt_lens:
                for phase in config.phases:
                    share = "" if point.sparsity is None else f"-s{point.sparsity:g}"
                    yield Planned(
                        id=f"{family_slug(family)}{share}-{phase}-b{batch}-p{prompt_len}-d{draw}{way}",
                        family=family,
                        phase=phase,
                        batch=batch,
                        prompt_len=prompt_len,
                        draw=draw,
                        select=select,
                        **dataclasses.asdict(point),
                    )


def _check_names(names: Iterable[str]) -> None:
    seen: Mapping[str, str] = {}
    for name in names:
        slug = family_slug(name)
        if slug in seen:
            raise PrunescopeError(
                f"families {seen[slug]!r} and {name!r} have the same name in results",
                hint="list a family once, and name model folders differently",
            )
        seen = {**seen, slug: name}
