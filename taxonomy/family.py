"""A pruning family: what it removes, which axes of which GEMMs it moves, and its theory.

In: one module in `taxonomy/families/` for each family, with a constant FAMILY. Out: `families()`
and `family(id)`. Adding a family means adding one file; ids must be unique.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from prunescope.taxonomy import families as folder
from prunescope.taxonomy.errors import PrunescopeError, nearest
from prunescope.taxonomy.keep import check_sparsity
from prunescope.taxonomy.plan import Op, Plan, Workload
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.theory import dense_plan, forward

GEMM_GROUPS = ("qkv", "qk", "pv", "o", "gate_up", "down")
DYNAMICS = ("static", "dynamic")
CALIBRATIONS = ("text", "input")
Value = str | int | float | bool


def pattern(letters: str) -> dict[str, str]:
    """Axis letters in the order of GEMM_GROUPS, "-" where nothing moves: "K - - K K K"."""
    return {
        group: ("none" if letter == "-" else letter)
        for group, letter in zip(GEMM_GROUPS, letters.split(), strict=True)
    }


@dataclass(frozen=True, slots=True)
class Knob:
    """A setting of a family: its default, what it means, and its choices where they are few."""

    default: Value
    text: str
    choices: tuple[Value, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What is asked of a family: nominal sparsity s in [0, 1) and knobs by name. `removed`: the
    layers that go, by what goes of them ("layer", "attention", "mlp"), where a run drew them."""

    sparsity: float
    knobs: Mapping[str, Value] = field(default_factory=dict)
    removed: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One family. `plans` turns a dense shape and a workload into what runs at a point."""

    id: str
    title: str
    dynamics: str
    axes: Mapping[str, str]  # GEMM group -> M N K heads ... | none
    unit: str
    methods: tuple[str, ...]
    plans: Callable[[ModelShape, Workload, Point], list[Plan]]
    extension: bool = False  # placed by us, not by the paper
    knobs: Mapping[str, Knob] = field(default_factory=dict)
    adds: tuple[str, ...] = ()  # kernels that only the pruned model runs
    keeps_weights: bool = False  # all dense weights stay in memory
    only: float | None = None  # the one sparsity that there is, beside 0
    # What `--select calibrated` chooses by: what the model does on a "text", or the attention of
    # the "input" itself, which reads none; None: parts can be drawn alone.
    calibration: str | None = None

    def point(self, sparsity: float, knobs: Mapping[str, Value] | None = None) -> Point:
        """A checked point with every knob filled in.

        Raises PrunescopeError for a sparsity outside [0, 1), an unknown knob or a bad choice.
        """
        given = dict(knobs or {})
        for name, value in given.items():
            if name not in self.knobs:
                known = ", ".join(self.knobs) or "none"
                raise PrunescopeError(
                    f"{self.id} has no knob {name!r}", hint=f"its knobs are: {known}"
                )
            given[name] = _typed(name, value, self.knobs[name])
        defaults = {name: knob.default for name, knob in self.knobs.items()}
        return Point(sparsity=sparsity, knobs={**defaults, **given})

    def theory(self, shape: ModelShape, work: Workload, point: Point) -> list[Op]:
        """The ops of one pruned forward, in order."""
        filled = self.point(point.sparsity, point.knobs)
        return forward(self.plans(shape, work, replace(filled, removed=point.removed)))

    def to_dict(self) -> dict[str, Any]:
        """As `families --json` prints it."""
        knobs = {
            name: {"default": k.default, "choices": list(k.choices), "text": k.text}
            for name, k in self.knobs.items()
        }
        return {
            "id": self.id,
            "title": self.title,
            "dynamics": self.dynamics,
            "axes": dict(self.axes),
            "unit": self.unit,
            "methods": list(self.methods),
            "extension": self.extension,
            "knobs": knobs,
            "adds": list(self.adds),
            "calibration": self.calibration,
        }


def identity(shape: ModelShape, work: Workload, _point: Point) -> list[Plan]:
    """The dense forward: a family that moves no dimension."""
    return [dense_plan(shape, work)]


@cache
def families() -> tuple[Family, ...]:
    """Every family, `dense` first, then those of the paper, then the extensions, by id."""
    found: dict[str, Family] = {}
    for module in pkgutil.iter_modules(folder.__path__):
        one: Family = importlib.import_module(f"{folder.__name__}.{module.name}").FAMILY
        register(one, found)
    return tuple(sorted(found.values(), key=lambda f: (f.id != "dense", f.extension, f.id)))


@cache
def dynamic_ids() -> frozenset[str]:
    """Ids of the families that decide at run time."""
    return frozenset(f.id for f in families() if f.dynamics == "dynamic")


def register(one: Family, found: dict[str, Family]) -> None:
    """Add a family to `found`. A second one of the same id, or a bad field, is a RuntimeError."""
    if one.id in found:
        raise RuntimeError(f"two families are called {one.id}")
    if one.dynamics not in DYNAMICS or set(one.axes) != set(GEMM_GROUPS):
        raise RuntimeError(f"family {one.id}: bad dynamics or axes")
    if one.calibration not in (None, *CALIBRATIONS):
        raise RuntimeError(f"family {one.id}: bad calibration {one.calibration!r}")
    found[one.id] = one


def family(name: str) -> Family:
    """The family of an id. Raises PrunescopeError with the nearest ids."""
    by_id = {f.id: f for f in families()}
    if name not in by_id:
        raise PrunescopeError(
            f"no pruning family is called {name!r}",
            hint=f"nearest: {nearest(name, by_id)}; `prunescope families` lists all",
        )
    return by_id[name]


def _typed(name: str, value: Value, knob: Knob) -> Value:
    """`value` in the type of the knob's default: the command line gives strings."""
    kind, bad = type(knob.default), f"knob {name}={value!r}"
    typed: Value = value
    try:
        if kind is bool and isinstance(value, str):
            typed = {"true": True, "1": True, "false": False, "0": False}[value.lower()]
        elif kind is not type(value):
            typed = kind(value)
    except (ValueError, KeyError):
        raise PrunescopeError(f"{bad} is no {kind.__name__}", hint=knob.text) from None
    if knob.choices and typed not in knob.choices:
        raise PrunescopeError(
            f"{bad} is no choice", hint=f"one of {', '.join(map(str, knob.choices))}"
        )
    return typed
