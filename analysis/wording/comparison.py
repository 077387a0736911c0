"""The words of differences between two runs, and of what only one of them recorded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from prunescope.analysis.schema.pair_comparison import (
    BATCH_SIZE,
    CODE,
    CUT,
    FIRST_CALLS,
    FORWARDS,
    GRAPHS,
    INPUTS,
    LENGTH,
    MODULES,
    OWN_CONFIG,
    PARALLELISM,
    ROLES,
    ROWS,
    SHAPES,
    STEPS,
    UNPAIRED,
    Difference,
    OneSided,
)
from prunescope.taxonomy.numbers import brief_time
from prunescope.taxonomy.recorder import recorder_called
from prunescope.taxonomy.words import plural, shortened

EAGER_OPTIONS = {"dense": "--baseline-eager-trace", "pruned": "--eager-trace"}
_INPUTS = {ROWS: "batch or length", BATCH_SIZE: "the batch", LENGTH: "the length"}
_TIMES = {0.5: "half", 2.0: "twice"}


def one_sided_text(record: OneSided) -> str:
    """Return what is ignored on both sides, and the capture or option that gives it."""
    with_it = "dense" if record.missing == "pruned" else "pruned"
    if record.kind == SHAPES and record.refused is not None:
        return (
            f"only the {with_it} side has shapes, for {record.trace} {record.refused}; "
            f"{OWN_CONFIG[record.missing]}; until then what was pruned, FLOPs and bounds are "
            "unknown"
        )
    if record.kind == SHAPES:
        return (
            f"only one side recorded shapes, {record.trace} has none: capture it again with "
            f"{recorder_called(record.profiler).shapes}; until then what was pruned, FLOPs and "
            "bounds are unknown"
        )
    if record.kind == ROLES:
        return (
            f"only on the {with_it} side do modules give roles, in {record.trace} they name too "
            "few linears: roles and layers of both come from the order of kernels, or where that "
            "tells none, those of products from these modules"
        )
    if record.kind == MODULES:
        return (
            f"only the {with_it} side recorded modules, {record.trace} has none: roles and "
            "layers of both come from the order of kernels, or where that tells none, those of "
            "products from these modules; recording modules slows "
            f"the host, so host and idle time of the {with_it} side are larger and their rows "
            f"are no evidence: capture both sides with {recorder_called(record.profiler).modules}, "
            "or both without"
        )
    return (
        f"only one side has shapes: pass {EAGER_OPTIONS[record.missing]} for the graph replays of "
        f"{record.trace}; until then replays are compared by the names of their kernels, and "
        "shares of FLOPs and bytes are null"
    )


def cut_text(dense: object, pruned: object) -> str:
    """Return which of the two files are cut off."""
    sides = [name for name, file in (("dense", dense), ("pruned", pruned)) if file == "cut off"]
    which = f"the {sides[0]} trace is" if len(sides) == 1 else "both traces are"
    return f"{which} cut off: what stood behind the cut is missing"


def _unpaired_text(dense: object, pruned: object) -> str:
    return (
        f"nothing pairs: matrices are multiplied in {dense} layers and roles of the dense side and "
        f"in {pruned} of the pruned side, of which none is the same"
    )


def _input_text(difference: Difference) -> str | None:
    """Return a difference of inputs in words; None for another kind of difference."""
    if difference.kind == FORWARDS:
        return (
            f"every GEMM runs {difference.pruned:g} × as often a step, in the same shapes: other "
            f"inputs ({difference.pruned:g} × the forwards a step, as of gradients that are "
            "accumulated)"
        )
    if difference.kind == INPUTS:
        return f"other inputs: {difference.pruned}, the dense side {difference.dense}"
    if difference.kind not in _INPUTS or not isinstance(difference.pruned, int | float):
        return None
    which = _INPUTS[difference.kind]
    if difference.kind != ROWS:
        which = f"{_TIMES.get(difference.pruned, f'{difference.pruned:g} ×')} {which}"
    return f"M of every linear is {difference.pruned:.3g} × the dense one: other inputs ({which})"


def _first_calls_text(difference: Difference) -> str:
    sides = (("the baseline", difference.dense), ("the pruned run", difference.pruned))
    held = [(name, ns) for name, ns in sides if isinstance(ns, int | float) and ns > 0]
    most = max(held, key=lambda side: side[1])
    others = [f"{name} {brief_time(ns)}" for name, ns in held if name != most[0]]
    rest = others[0] if others else f"{next(n for n, _ in sides if n != most[0])} none"
    return f"{most[0]} holds first calls or compilation, {brief_time(most[1])} a step, and {rest}"


# Kind of a difference -> why the verdict cannot see past it.
_WHY: dict[str, Callable[[object, object], str]] = {
    CUT: cut_text,
    UNPAIRED: _unpaired_text,
    CODE: lambda _dense, pruned: (
        f"the {'pruned' if pruned == 'compiled' else 'dense'} side runs compiled code "
        "(torch.compile), whose fused loops stand for many ops; trace both sides compiled, or "
        "neither"
    ),
    PARALLELISM: lambda dense, pruned: (
        f"the pruned side runs on {pruned}, the dense one on {dense}; what a rank does not run, "
        "another does, which is no pruning"
    ),
    GRAPHS: lambda dense, pruned: (
        f"CUDA graphs are {pruned} on the pruned side, and {dense} on the dense one; record both "
        "with nsys profile --cuda-graph-trace=node"
    ),
    STEPS: lambda dense, pruned: (
        f"steps: {dense} on the dense side, {pruned} on the pruned one; how many a whole trace "
        "holds is not known: annotate them (schedule and step() of the profiler)"
    ),
    "phase": lambda dense, pruned: f"the pruned side is {pruned}, the dense one {dense}",
    "model type": lambda dense, pruned: (
        f"the model is of type {pruned}, the dense one of type {dense}"
    ),
    "linears": lambda dense, pruned: (
        f"no linear has the same size in both models, and pruning cannot turn {dense} into "
        f"{pruned}: these are two models"
    ),
    "widths": lambda dense, pruned: (
        f"the model has {pruned}, the dense one {dense}: all differ, no linear has the same size "
        "in both, and no pruning widens a model or adds layers: these are two models"
    ),
    "window": lambda dense, pruned: (
        f"the attention window differs: {pruned} in the pruned run, {dense} in the dense run"
    ),
}


def difference_text(difference: Difference) -> str:
    """Return a difference as a line of evidence: both values."""
    if difference.kind == FIRST_CALLS:
        return _first_calls_text(difference)
    if (text := _input_text(difference)) is not None:
        return text
    if difference.kind == CUT:
        return cut_text(difference.dense, difference.pruned)
    if difference.kind == STEPS:
        return f"steps: {difference.dense} against {difference.pruned}"
    if difference.kind == UNPAIRED:
        return _unpaired_text(difference.dense, difference.pruned)
    if difference.kind == PARALLELISM:  # its sides are of several words
        return f"parallelism: dense on {difference.dense}, pruned on {difference.pruned}"
    return f"{difference.kind}: {difference.dense} dense, {difference.pruned} pruned"


def not_comparable_text(difference: Difference) -> str:
    """Return why two sides do not compare, for the verdict."""
    if (text := _input_text(difference)) is not None:
        return f"not comparable: {text}"
    dense, pruned = difference.dense, difference.pruned
    if (why := _WHY.get(difference.kind)) is not None:
        return f"not comparable: {why(dense, pruned)}"
    is_other = f"{difference.kind} is {pruned}, that of the dense run {dense}"
    return f"not comparable: {is_other}: other inputs"


def _replacement(*, kernel: str, count: int, replaced: str, taken_for: str) -> str:
    return (
        f"{count} kernels {shortened(kernel)} a step stand where the other side has "
        f"{shortened(replaced)}: taken for {taken_for}"
    )


def _more_calls(*, op: str, shape: Sequence[Any], dense: int, pruned: int) -> str:
    size = "×".join(map(str, shape))
    return f"{op} [{size}] × {pruned} a step, {dense} in the dense trace"


_SOURCES = {
    "order": "the order of kernels",
    "nn.Module": "classes of modules",
    "graph": "the annotations of a graph",
    "eager pass": "the eager trace",
    "config": "the config",
    "partner": "the other side",
}


def _roles_disagree(
    *, count: int, sources: tuple[str, str], roles: Sequence[tuple[str, str]]
) -> str:
    pairs = ", ".join(" or ".join(pair) for pair in roles)
    first, second = (_SOURCES.get(source, source) for source in sources)
    if first == second:
        return (
            f"{count} products have another role on the other side, by order and shape: {pairs}; "
            "each side keeps its own"
        )
    kernels = f"{count} kernel{plural(count)}"
    return f"{first} and {second} give {kernels} two roles, of which the second holds: {pairs}"


WORDS: dict[str, str | Callable[..., str]] = {
    "one-sided": one_sided_text,
    "not-comparable": not_comparable_text,
    "only-launches-placed": (
        "only launches have layers and roles, and {trace} replays a graph, whose kernels have "
        "none: both sides are compared by the kinds of their kernels (--baseline-eager-trace and "
        "--eager-trace give those of replays)"
    ),
    "folded-layers": lambda runs, dense, pruned, layers: (
        f"both sides run {runs:g} layers a step, numbered to {dense} and to {pruned} by the order "
        f"of kernels: taken for {layers} layers, {runs / layers:g} times a step"
    ),
    "fused-on-one-side": (
        "the {apart} side multiplies {roles:list} in GEMMs of their own, the other one in one: "
        "they are compared as {fused}"
    ),
    "unordered-qkv": "the order of kernels does not separate q, k and v: they are compared as qkv",
    "roles-of-other-side": (
        "the other side names these products, with which both sides were aligned by order and "
        "shape: {roles:list}"
    ),
    "inputs-unsolved": (
        "attentions differ, and batch and length of the {side} side are unknown: its attentions "
        "and linears do not agree on them"
    ),
    "roles-disagree": _roles_disagree,
    "layers-by-repeats": (
        "neither side names layers: the {count} parts of its sequence that repeat are taken for "
        "them"
    ),
    "replaced-in-scopes": (
        "kernels of unknown kind do the work of the other side's in: {roles:list}"
    ),
    "replaced-in-place": _replacement,
    "more-calls": _more_calls,
}
