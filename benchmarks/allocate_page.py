"""The page of benchmarks/allocate.py: plans against families at equal measured speed.

    python benchmarks/allocate_page.py FOLDER...                  # of finished stages, one a model
    python benchmarks/allocate_page.py benchmarks/allocate.json

Out: allocate.md next to this file, and its JSON with speeds, their intervals and the nats of each
block of tokens, from which the page is made. A family's loss at the speed of a plan lies on the
line between its two neighbouring points (the dense model is one); where several pairs of
neighbours have the speed between them, the least counts. Intervals of differences are those of
2,000 samples: blocks of tokens are resampled, the same for both sides, and speeds from their
intervals.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import prunescope
from prunescope.analysis.schema.report import INVALID_TIMES
from prunescope.taxonomy.allocations.allocation_plan import (
    KeptLayer,
    PlanOfLayers,
)
from prunescope.taxonomy.numbers import loss, ratio, ratios
from prunescope.taxonomy.runs.run import read_run

DENSE = "dense"
HOW = (
    "Each plan was made from a dense run and the losses of single removals alone, then measured. "
    "Its loss is compared with that of the best family at the measured speed of the plan: "
    "static-nk and static-nk-mlp by importance, static-m without the layers whose removal alone "
    "loses least, which the plans know too. The best family is the one with the least loss on the "
    "very text that judges, which favours families."
)
LOSS_HEAD = (
    "| target | plan | best family at its speed | its loss | plan − family, nats | the plan |",
    "|:--|--:|:--|--:|:--|:--|",
)
UNKNOWN = (
    "?: something else ran while it was timed. Such a point is shown, and no loss at the speed of "
    "a plan is read from it."
)
VERDICTS = ("loses less", "undecided", "loses more")
STAGES = {"before": "without training", "after": "after training"}
_SAMPLES, _SEED, _Z95 = 2000, 0, 1.96


class Speed(msgspec.Struct, kw_only=True):
    """Dense over pruned, measured, with its 95 % interval over placements."""

    realised: float
    ci95: tuple[float, float]
    valid: bool


class Variant(msgspec.Struct, kw_only=True):
    """A plan, a family at a sparsity, or the dense model. `nats`: of each block, by stage and
    text. `family`: null of a plan and of the dense model."""

    name: str
    family: str | None = None
    sparsity: float | None = None
    speeds: dict[str, Speed] = {}
    nats: dict[str, dict[str, list[float]]]


class Target(msgspec.Struct, kw_only=True):
    """A target and its plan. `variant`: the name of what was measured; null: refused."""

    phase: str
    speedup: float
    variant: str | None = None
    refused: str = ""
    expected: float | None = None
    range: tuple[float, float] | None = None
    summed: float | None = None  # the loss that the plan adds up, nats a token
    kept: str = ""


class Measured(msgspec.Struct, kw_only=True):
    """One model."""

    model: str
    machine: str
    setting: str
    texts: dict[str, str]
    ended: str
    targets: list[Target]
    variants: list[Variant]


class Published(msgspec.Struct, kw_only=True):
    """The data of the page."""

    models: list[Measured]


def main() -> None:
    """Read folders or the JSON, and write the page and its JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("sources", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=HERE / "allocate.md")
    asked = parser.parse_args()
    first: Path = asked.sources[0]
    found = read(first) if first.suffix == ".json" else Published(models=[*map(of, asked.sources)])
    asked.out.with_suffix(".json").write_bytes(stored(found))
    asked.out.write_text(text(found), encoding="utf-8")


def read(path: Path) -> Published:
    """The JSON of an earlier run."""
    return msgspec.json.decode(path.read_bytes(), type=Published)


def stored(found: Published) -> bytes:
    """The JSON next to the page: a line a variant."""
    plain = msgspec.to_builtins(found)
    for model in plain["models"]:
        model["variants"] = [f"@{json.dumps(one)}@" for one in model["variants"]]
    lines = json.dumps(plain, indent=1, ensure_ascii=False)
    for model in plain["models"]:
        for line in model["variants"]:
            lines = lines.replace(json.dumps(line), line[1:-1])
    return f"{lines}\n".encode()


def of(work: Path) -> Measured:
    """A model, from the folder of its stages."""
    import allocate  # type: ignore[import-not-found]

    run = read_run(work / "dense" / "dense")
    found = []
    for one in (allocate.Variant(DENSE, ""), *allocate.variants(work)):
        kept = work / "losses" / f"{one.name}.json"
        nats = json.loads(kept.read_bytes()) if kept.exists() else {}
        times = {phase: work / "times" / f"{one.name}-{phase}" for phase in one.phases}
        speeds = {phase: speed_of(out, phase) for phase, out in times.items() if out.exists()}
        if "before" not in nats or not (speeds or one.name == DENSE):
            continue  # not measured: not on the page
        family = None if one.sparsity is None else one.method
        found.append(
            Variant(name=one.name, family=family, sparsity=one.sparsity, speeds=speeds, nats=nats)
        )
    measured = {one.name for one in found}
    planned_on = next((plan.text for _, _, plan in allocate.planned(work)), {})
    targets = [target_of(*one) for one in allocate.planned(work)]
    targets = [one for one in targets if one.variant in measured]
    targets += [
        Target(phase=phase, speedup=speedup, refused=why)
        for phase, speedup, why in allocate.refused(work)
    ]
    timed = json.loads((work / "times.json").read_bytes())
    threads = f"{timed['threads']} thread{'s' * (timed['threads'] != 1)}"
    scored = json.loads((work / "texts.json").read_bytes())
    stamp = max(path.stat().st_mtime for path in (work / "times").iterdir())
    versions = ", ".join(f"{name} {run.versions[name]}" for name in ("torch", "transformers"))
    return Measured(
        model=re.sub(r"\.(Q\w+-[0-9a-f]{12}|gguf)$", "", str(run.model.id)),  # as of a GGUF file
        machine=f"{run.device.name}, {threads}, {run.dtype}, {versions}",
        setting=(
            f"Plans: removals measured on {planned_on.get('tokens', 0):,} tokens of "
            f"{planned_on.get('text')}. {timed['said']} {scored['said']}"
        ),
        texts=scored["texts"],
        ended=datetime.datetime.fromtimestamp(stamp, datetime.UTC).date().isoformat(),
        targets=targets,
        variants=found,
    )


def speed_of(folder: Path, phase: str) -> Speed:
    """The speedup of a capture."""
    entry = prunescope.analyze(folder).phases[phase]
    low, high = entry.ladder.realised_ci95
    valid = INVALID_TIMES.isdisjoint(finding.id for finding in entry.findings)
    return Speed(realised=entry.ladder.realised, ci95=(low, high), valid=valid)


def target_of(phase: str, speedup: float, plan: PlanOfLayers) -> Target:
    """A target and what its plan expects."""
    expected = plan.expected
    return Target(
        phase=phase,
        speedup=speedup,
        variant=f"{phase}-{speedup:g}",
        expected=expected.speedup,
        range=(expected.range[0], expected.range[1]),
        summed=expected.loss,
        kept=kept_text(plan.layers),
    )


def kept_text(layers: Sequence[KeptLayer]) -> str:
    """The kept parts in words: layers, KV heads and channels."""
    left = [one for one in layers if not one.dropped]
    parts = [f"{len(left)} of {len(layers)} layers"]
    for name, now, dense in (
        ("KV heads", [one.kv_heads for one in left], [one.dense_kv_heads for one in left]),
        ("channels", [one.channels for one in left], [one.dense_channels for one in left]),
    ):
        cut = [(a, b) for a, b in zip(now, dense, strict=True) if a and b and a < b]
        if cut:
            least, most = min(a for a, _ in cut), max(a for a, _ in cut)
            sizes = f"{least:,}" if least == most else f"{least:,} to {most:,}"
            parts.append(f"{sizes} of {max(b for _, b in cut):,} {name} in {len(cut)}")
    return ", ".join(parts)


def text(found: Published) -> str:
    """The page."""
    return "\n".join(itertools.chain(_head(found), *(_model(one) for one in found.models))) + "\n"


def _head(found: Published) -> Iterator[str]:
    names = " and ".join(one.model for one in found.models)
    yield "# Plans of `allocate` against families that cut all layers alike"
    yield ""
    yield f"{names}. {HOW}"
    yield from ("", *_outcome(found), "")
    yield "```"
    yield from (
        line.strip()
        for line in (HERE / "allocate.py").read_text().split('"""')[1].splitlines()[2:7]
    )
    yield "```"


def _outcome(found: Published) -> Iterator[str]:
    """How many plans reach their speed, and what they lose on each text."""
    timed = [(one, target) for one in found.models for target in one.targets if target.variant]
    inside = sum(_is_inside(target, _by_name(one)) for one, target in timed)
    yield f"- {inside} of {len(timed)} plans are as fast as they expect, within their range."
    held: dict[tuple[str, str], list[str]] = {}
    for one in found.models:
        for name, stage in itertools.product(one.texts, STAGES):
            if all(stage in v.nats for v in one.variants):
                of_targets = [_verdict(one, target, name, stage) for target in one.targets]
                held.setdefault((one.texts[name], stage), []).extend(v for v in of_targets if v)
    for (title, stage), verdicts in held.items():
        less, undecided, more = map(verdicts.count, VERDICTS)
        yield (
            f"- On {title}, {STAGES[stage]}: less is lost by {less} of {len(verdicts)} plans, more "
            f"by {more}; {undecided} are undecided."
        )


def _verdict(one: Measured, target: Target, name: str, stage: str) -> str | None:
    """How a plan does against the best family; None where none is as fast."""
    by_name = _by_name(one)
    held = best_family(one, by_name, target, name, stage) if target.variant else None
    return None if held is None else _interval_text(held[2], held[3])


def _interval_text(low: float, high: float) -> str:
    less, undecided, more = VERDICTS
    return less if high < 0 else more if low > 0 else undecided


def _by_name(one: Measured) -> dict[str, Variant]:
    return {v.name: v for v in one.variants}


def _is_inside(target: Target, by_name: Mapping[str, Variant]) -> bool:
    assert target.variant is not None and target.range is not None
    low, high = target.range
    return low <= by_name[target.variant].speeds[target.phase].realised <= high


def _model(one: Measured) -> Iterator[str]:
    yield from ("", f"## {one.model}", "")
    yield f"{one.machine}. {one.setting} Timed on {one.ended}."
    yield from ("", "### Does a plan reach its speed?", "")
    yield "| target | expected (range) | measured [95 %] | inside | its losses add up to | keeps |"
    yield "|:--|:--|:--|:--|--:|:--|"
    by_name = _by_name(one)
    for target in one.targets:
        yield _speed_row(target, by_name)
    for name, title in one.texts.items():
        for stage, when in STAGES.items():
            if all(stage in v.nats for v in one.variants):  # else a family is missing
                yield from ("", f"### Loss on {title}, {when}", "", *LOSS_HEAD)
                yield from _losses(one, by_name, name, stage)
    yield from ("", "### Points of the families", "")
    yield from _points(one)
    if any(not speed.valid for v in one.variants for speed in v.speeds.values()):
        yield from ("", UNKNOWN)


def _speed_row(target: Target, by_name: Mapping[str, Variant]) -> str:
    name = f"{target.speedup:g}× {target.phase}"
    if target.variant is None:
        return f"| {name} | refused: {target.refused} | – | – | – | – |"
    assert target.range is not None
    speed = by_name[target.variant].speeds[target.phase]
    inside = _is_inside(target, by_name)
    low, high = target.range
    return (
        f"| {name} | {ratio(target.expected)} ({low:.2f} to {high:.2f}) | {_measured(speed)} "
        f"| {'yes' if inside else 'no'} | {loss(math.expm1(target.summed or 0.0))} "
        f"| {target.kept} |"
    )


def _measured(speed: Speed) -> str:
    """A speedup with its interval; marked where its times are no evidence."""
    return f"{ratio(speed.realised)}{'' if speed.valid else ' ?'} {ratios(list(speed.ci95))}"


def _losses(one: Measured, by_name: Mapping[str, Variant], name: str, stage: str) -> Iterator[str]:
    for target in one.targets:
        if target.variant is None:
            continue
        plan = by_name[target.variant]
        base = _mean(by_name[DENSE], stage, name)
        own = math.expm1(_mean(plan, stage, name) - base)
        at = f"| {target.speedup:g}× {target.phase} | {loss(own)} "
        held = best_family(one, by_name, target, name, stage)
        if held is None:
            yield f"{at}| none is as fast | – | – | – |"
            continue
        family, nats, low, high = held
        difference = _mean(plan, stage, name) - nats
        verdict = _interval_text(low, high)
        yield (
            (
                f"{at}| {family} | {loss(math.expm1(nats - base))} "
                f"| {difference:+.3f} [{low:+.3f}, {high:+.3f}] | {verdict} |"
            )
            .replace("| -", "| −")
            .replace("[-", "[−")
            .replace(", -", ", −")
        )


def _mean(one: Variant, stage: str, name: str) -> float:
    return float(np.mean(one.nats[stage][name]))


def best_family(
    one: Measured, by_name: Mapping[str, Variant], target: Target, name: str, stage: str
) -> tuple[str, float, float, float] | None:
    """(family, its nats at the measured speed of the plan, 95 % interval of plan − family); None
    where no family is as fast."""
    assert target.variant is not None
    plan = by_name[target.variant]
    best: tuple[str, float] | None = None
    families = dict.fromkeys(v.family for v in one.variants if v.family is not None)
    points = {family: _family(one, family, target.phase) for family in families}
    speed = plan.speeds[target.phase].realised
    for family, known in points.items():
        pairs = [(at.speeds[target.phase].realised, _mean(at, stage, name)) for at in known]
        nats = at_speed([(1.0, _mean(by_name[DENSE], stage, name)), *pairs], speed)
        if nats is not None and (best is None or nats < best[1]):
            best = family, nats
    if best is None:
        return None
    chance = np.random.default_rng(_SEED)
    known = points[best[0]]
    blocks = len(plan.nats[stage][name])
    sides = np.array([side.nats[stage][name] for side in (plan, by_name[DENSE], *known)])
    speeds = np.array([_sampled(side.speeds[target.phase], chance) for side in (plan, *known)])
    differences = []
    for sample in range(_SAMPLES):
        mine, dense, *others = sides[:, chance.integers(blocks, size=blocks)].mean(1)
        at = [(1.0, dense), *zip(speeds[1:, sample], others, strict=True)]
        nats = at_speed(at, speeds[0, sample])
        if nats is not None:
            differences.append(mine - nats)
    low, high = np.quantile(differences, [0.025, 0.975])
    return best[0], best[1], float(low), float(high)


def _sampled(speed: Speed, chance: np.random.Generator) -> np.ndarray:
    """Speeds sampled from the interval of one, whose logarithm is normal."""
    low, high = np.log(speed.ci95)
    samples: np.ndarray = np.exp(
        chance.normal(np.log(speed.realised), (high - low) / (2 * _Z95), _SAMPLES)
    )
    return samples


def at_speed(points: Sequence[tuple[float, float]], speed: float) -> float | None:
    """The least nats at a speed on the lines between neighbouring (speed, nats); None where it lies
    between no neighbours."""
    found = []
    for (a, low), (b, high) in itertools.pairwise(points):
        if min(a, b) <= speed <= max(a, b):
            share = (speed - a) / (b - a) if a != b else 0.0
            found.append(low + share * (high - low))
    return min(found, default=None)


def _family(one: Measured, family: str, phase: str) -> list[Variant]:
    """Return its points whose times in a phase are valid, by sparsity."""
    points = [
        v
        for v in one.variants
        if v.family == family and phase in v.speeds and v.speeds[phase].valid
    ]
    return sorted(points, key=lambda v: v.sparsity or 0.0)


def _points(one: Measured) -> Iterator[str]:
    dense = next(v for v in one.variants if v.name == DENSE)
    phases = list(dict.fromkeys(p for v in one.variants for p in v.speeds))
    columns = [(name, stage) for name in one.texts for stage in STAGES if stage in dense.nats]
    heads = [f"{one.texts[name]}, {STAGES[stage]}" for name, stage in columns]
    yield "| family | s | " + " | ".join([*phases, *heads]) + " |"
    yield "|:--|:--|" + "--:|" * (len(phases) + len(heads))
    for v in one.variants:
        if v.family is None:
            continue
        cells = [_measured(v.speeds[p]) if p in v.speeds else "–" for p in phases]
        cells += [
            loss(math.expm1(_mean(v, stage, name) - _mean(dense, stage, name)))
            if stage in v.nats
            else "–"
            for name, stage in columns
        ]
        yield f"| {v.family} | {v.sparsity:g} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
