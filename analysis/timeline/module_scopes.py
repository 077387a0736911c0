"""Module scopes: which layer and role the host was in when it launched a kernel or ran an op.

In: the annotations of a trace. Our own are named by module path, as are those that hooks of serving
engines write as NVTX ranges; PyTorch's `with_stack` gives `nn.Module: Class_i`; ranges named
`layer_3` give the layer alone. Out: for every row the index of a Place, or -1.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from functools import lru_cache

import numpy as np
from msgspec import Struct

from prunescope.analysis.ops.kernel_kinds import op_kind
from prunescope.analysis.timeline.intervals import innermost, parents
from prunescope.analysis.trace.collector import MODULE, NONE, OWN_PREFIX, Ints, unique_ids
from prunescope.analysis.trace.trace_columns import Trace
from prunescope.taxonomy.lazy_pattern import lazy_pattern
from prunescope.taxonomy.roles import Place, locate_all

_PATH = lazy_pattern(r"[A-Za-z_]\w*(?:\.\w+)*$")
# TensorRT's layers of an ONNX graph: `/model/layers.0/mlp/down_proj/MatMul`.
_SLASHED = lazy_pattern(r"/?[A-Za-z_][\w.]{0,200}(?:/[\w.]{1,200}){1,40}")
# A layer by its number alone: `layer_3`, `Layer 12`, `decoder_layer.3`, `layer=7`, `block3`.
_NUMBERED = lazy_pattern(
    r"(?:[A-Za-z]{1,40}[_ .])?(?:layer|block)[_ .=#:]?(\d{1,5})", re.IGNORECASE
)
_LAYER_CLASS = lazy_pattern(r"(?:Decoder|Encoder)?(?:Layer|Block)$")
_ATTENTION_CLASS = lazy_pattern(r"Attention|Attn")
_MLP_CLASS = lazy_pattern(
    r"MLP|Mlp|FeedForward|FFN?(?:$|[A-Z])|MoE|Moe|Mixture|Expert|Act\w*Dense$"
)
# A module of experts, or its model: HF's Qwen3MoeMLP is one expert, or a plain MLP.
_MIXTURE_CLASS = lazy_pattern(r"MoE|Moe|MOE|Mixture|Experts")
_EXPERTS_CLASS = lazy_pattern(r"FusedMoE|Experts")  # all experts in one module
_HEAD_CLASS = lazy_pattern(r"(?:LMHead|LmHead)(?!Model)")  # GPT2LMHeadModel is all of a model
_UP_CLASS = lazy_pattern(r"Intermediate$")
_DOWN_CLASS = lazy_pattern(r"(?<!Self)(?<!Attention)(?<!Cross)Output$")
_OUTPUT_CLASS = lazy_pattern(r"Output$")  # of attention or of an MLP: a linear, a sum, a norm
_LINEAR_CLASS = lazy_pattern(r"Linear|Conv1D|LMHead(?!Model)")
# Norms over channels or groups of them stand behind convolutions; a transformer's are over rows.
_CONV_CLASS = lazy_pattern(r"Conv(?!1D)")  # GPT-2's Conv1D is a linear
_CHANNEL_NORM = lazy_pattern(r"(?:Batch|Instance|Group)Norm")
_UNKNOWN = "unknown"
_NEXT_TO_ATTENTION = "a layer that calls attention and its MLP's linears itself"
_EXPERTS = ("experts", "shared_expert")
_SEVERAL = 2  # MLPs of one class inside another one
_THROUGH_A_RANK = 2  # linears in place of one


class Scopes(Struct, frozen=True):
    """The place of every row.

    `place` is an index into `places`, and `call` the annotation that the row is in (one call of one
    module); both are -1 for none. `source` is "modules", "nn.Module", "layers" (their numbers
    alone), "graph" or "none".
    """

    place: Ints
    call: Ints
    places: list[Place]
    source: str


def find_scopes(trace: Trace, thread: Ints, ts: Ints) -> Scopes:
    """Find the scope of every row, from the host thread and time of its launch or op.

    With our hooks, an op outside every scope belongs to the one that closed last on its thread.
    """
    modules, places, source = _find_places(trace)
    if not places:
        return no_scopes(len(ts))
    spans = {k: trace.annotations[k][modules] for k in ("ts", "dur", "thread")}
    if source == "modules":
        # Of two scopes with equal times, the module with the shorter path is the outer one.
        paths = trace.annotations["name"][modules]
        spans["order"] = np.array([len(trace.names[i]) for i in paths], np.int64)
    inner = innermost(spans, thread, ts)
    outside = np.flatnonzero((inner < 0) & (thread >= 0))
    if _has_own(trace) and len(outside):
        inner[outside] = _closed_last(spans, thread[outside], ts[outside])
    # Compared by identity first: hashing a place for each of a million annotations takes long.
    objects = {id(p): p for p in places}
    distinct = {p: i for i, p in enumerate(dict.fromkeys(objects.values()))}
    number = {key: distinct[p] for key, p in objects.items()}
    of_annotation = np.array([number[id(p)] for p in places])
    return Scopes(np.where(inner >= 0, of_annotation[inner], NONE), inner, list(distinct), source)


def no_scopes(rows: int) -> Scopes:
    """Return the scopes of a trace that recorded no module."""
    none = np.full(rows, NONE)
    return Scopes(none, none, [], "none")


def modules_that_ran(trace: Trace) -> frozenset[tuple[int, str]]:
    """Return (layer, role) of the modules whose calls our hooks recorded; empty without hooks."""
    if not _has_own(trace):
        return frozenset()
    _, places, _ = _find_places(trace)
    distinct = {id(p): p for p in places}.values()
    return frozenset((p.layer, p.role) for p in distinct if p.layer is not None)


def _closed_last(spans: dict[str, Ints], thread: Ints, ts: Ints) -> Ints:
    """Return the span that closed last on each thread before each time, -1 for none."""
    end = spans["ts"] + spans["dur"]
    closed = np.full(len(ts), NONE)
    for t in unique_ids(thread):
        rows = np.flatnonzero(spans["thread"] == t)
        rows = rows[np.argsort(end[rows], kind="stable")]
        wanted = np.flatnonzero(thread == t)
        at = np.searchsorted(end[rows], ts[wanted], side="right") - 1
        closed[wanted] = np.where(at >= 0, rows[np.maximum(at, 0)], NONE) if len(rows) else NONE
    return closed


def _has_own(trace: Trace) -> bool:
    """Return whether our hooks recorded the modules."""
    return any(name.startswith(OWN_PREFIX) for name in trace.names)


def _find_places(trace: Trace) -> tuple[Ints, list[Place], str]:
    """Return the annotations that are module scopes, the place of each, and their source."""
    names, module = trace.annotations["name"], trace.annotations["module"]
    if _has_own(trace):
        path = np.array(
            [bool(_PATH.match(n)) and not n.startswith(OWN_PREFIX) for n in trace.names], bool
        )
        rows = np.flatnonzero((module == 0) & path[names])
        known = locate_all(trace.names[i] for i in unique_ids(names[rows]))
        return rows, [known[trace.names[i]] for i in names[rows]], "modules"
    rows = np.flatnonzero(module == 1)
    if len(rows):
        return rows, _class_places(trace, rows), "nn.Module"
    return _range_places(trace)


def _range_places(trace: Trace) -> tuple[Ints, list[Place], str]:
    """Return ranges named by module paths; their source is "layers" if they show nothing more."""
    names = trace.annotations["name"]
    paths = {i: module_path(trace.names[i]) for i in unique_ids(names).tolist()}
    known = locate_all(path for path in paths.values() if path)
    if all(place.layer is None for place in known.values()):
        return np.empty(0, np.int64), [], "nn.Module"
    named = np.zeros(len(trace.names), bool)
    named[[i for i, path in paths.items() if path]] = True
    rows = np.flatnonzero(named[names])
    places = [known[paths[i]] for i in names[rows].tolist()]
    has_roles = any(place.role != _UNKNOWN for place in known.values() if place.layer is not None)
    return rows, places, "modules" if has_roles else "layers"


def module_path(name: str) -> str:
    """Return the module path that the name of a range states, empty for none.

    The number of a layer alone gives the path of that layer.
    """
    if numbered := _NUMBERED.fullmatch(name):
        return f"layers.{int(numbered[1])}"
    if _PATH.match(name):
        return name
    return name.strip("/").replace("/", ".") if _SLASHED.fullmatch(name) else ""


def _class_places(trace: Trace, modules: Ints) -> list[Place]:
    """Return places from class names and nesting: `nn.Module: Linear_5` by its position."""
    places: list[Place] = [Place(None, _UNKNOWN, "model")] * len(modules)
    begin, dur, name, thread = (
        trace.annotations[column][modules] for column in ("ts", "dur", "name", "thread")
    )
    threads: list[tuple[Ints, list[str], list[int]]] = []  # of each thread: rows, labels, parents
    for t in unique_ids(thread):
        rows = np.flatnonzero(thread == t)
        rows = rows[np.lexsort((-dur[rows], begin[rows]))]
        up = parents(begin[rows], begin[rows] + dur[rows]).tolist()
        threads.append((rows, [trace.names[i][len(MODULE) :] for i in name[rows]], up))
    distinct = {_class_of(trace.names[i][len(MODULE) :]) for i in unique_ids(name)}
    numbers: dict[str, int] = {}
    if sum(map(_is_layer, distinct)) > 1:
        outer = [
            (int(begin[rows[i]]), labels[i])
            for rows, labels, up in threads
            for i in _find_outer_layers(labels, up)
        ]
        numbers = _numbers_of_classes([label for _, label in sorted(outer)])
    for rows, labels, up in threads:
        multiplies = _hold_gemms(trace, thread[rows[0]], begin[rows], dur[rows])
        nested = _nested_places(labels, up, numbers, multiplies)
        for row, place in zip(rows, nested, strict=True):
            places[int(row)] = place
    return places


def _hold_gemms(trace: Trace, thread: int, begin: Ints, dur: Ints) -> list[bool]:
    """Mark the calls of modules in which an op that multiplies by one matrix begins."""
    product = np.array([op_kind(name, None) in _BY_ONE_MATRIX for name in trace.names], bool)
    own = (trace.ops["thread"] == thread) & product[trace.ops["name"]]
    at = np.sort(trace.ops["ts"][own])
    return list((np.searchsorted(at, begin + dur) > np.searchsorted(at, begin)).tolist())


_BY_ONE_MATRIX = ("gemm", "gemv", "sparse_gemm")  # kinds of ops; attention's are batched


def _find_outer_layers(labels: list[str], up: list[int]) -> list[int]:
    """Return the calls of layers that are in no other layer."""
    is_inside = [False] * len(labels)
    outer = []
    for i, label in enumerate(labels):
        is_inside[i] = up[i] >= 0 and is_inside[up[i]]
        if not is_inside[i] and _is_layer(_class_of(label)):
            is_inside[i] = True
            outer.append(i)
    return outer


def _numbers_of_classes(labels: list[str]) -> dict[str, int]:
    """Count the layers of several classes in the order of their first calls, by label.

    `labels` are the calls of all layers in order. PyTorch counts the modules of each class, so that
    layers of several classes (an encoder and a decoder, a vision tower and a language model,
    attention and scans in turns) have the same numbers. The result is empty for layers of one
    class, whose own numbers are right.
    """
    distinct = list(dict.fromkeys(labels))
    if len({_class_of(label) for label in distinct}) <= 1:
        return {}
    return {label: i for i, label in enumerate(distinct)}


_WITH_ADAPTER = 3  # linears: the one that is adapted, and two through a rank


def _nested_places(
    labels: list[str], up: list[int], numbers: dict[str, int], multiplies: list[bool]
) -> list[Place]:
    """Return the place of each call of a module, by its class and its position.

    `numbers` are those of the layers whose own number is wrong, by label; `multiplies` marks the
    calls that hold a GEMM.
    """
    nest = _build_nest(labels, up, numbers, multiplies)
    places = [Place(nest.layer[i], _UNKNOWN, nest.scope[i]) for i in range(len(labels))]
    behind = _modules_behind_layers(nest.layer, up)
    for around, children in nest.inside.items():
        for i, role in _roles_of_children(nest, around, children).items():
            known = role != "final_norm" or i in behind
            places[i] = Place(nest.layer[i], role if known else _UNKNOWN, nest.scope[i])
    for i in _find_adapters(nest):
        places[i] = Place(nest.layer[i], "adapter", nest.scope[i])
    return _inherit_roles(places, up, nest.classes)


def _find_adapters(nest: _Nest) -> list[int]:
    """Return the linears of adapters.

    A linear that holds three or more linears (one and pairs) is adapted (peft): the first of them
    is its own, and a pair through a rank follows for each adapter.
    """
    adapters = []
    for i, held in nest.inside.items():
        if i < 0 or nest.scope[i] not in ("attention", "mlp"):
            continue
        if i in nest.whole or _is_linear(nest.classes[i]):
            inner = [j for j in held if _is_linear(nest.classes[j])]
            if len(inner) >= _WITH_ADAPTER and len(inner) % 2:
                adapters += inner[1:]
    return adapters


class _Nest(Struct, frozen=True):
    """The calls of modules on one thread in order of their begin, by index.

    `labels` are their classes with their numbers in the trace. `inside` lists the calls directly
    inside each one (-1: inside none). `linear` is set if a call is or holds a linear, `part` if it
    holds an attention or an MLP. `whole` are the calls that stand for one linear.
    """

    labels: list[str]
    classes: list[str]
    layer: list[int | None]
    scope: list[str]
    inside: dict[int, list[int]]
    linear: list[bool]
    part: list[bool]
    whole: set[int]


def _build_nest(
    labels: list[str], up: list[int], numbers: dict[str, int], multiplies: list[bool]
) -> _Nest:
    """Derive layer, scope and contents of each call of a module from the nesting of the calls."""
    classes = [_class_of(label) for label in labels]
    layer: list[int | None] = [None] * len(labels)
    scope = ["model"] * len(labels)
    inside: dict[int, list[int]] = defaultdict(list)
    for i, name in enumerate(classes):
        above = up[i]
        layer[i], scope[i] = (layer[above], scope[above]) if above >= 0 else (None, "model")
        if layer[i] is None and _is_layer(name):
            layer[i], scope[i] = numbers.get(labels[i], _parse_number(labels[i])), "layer"
        elif layer[i] is not None and scope[i] == "layer":
            scope[i] = _scope_of_class(name)
        inside[above].append(i)
    leaves = _leaf_linears(classes, scope, inside, multiplies)
    linear = [_is_linear(name) or i in leaves for i, name in enumerate(classes)]
    part = [False] * len(labels)
    for i in range(len(labels) - 1, -1, -1):  # what a module holds begins after it
        if (above := up[i]) >= 0:
            linear[above] = linear[above] or linear[i]
            part[above] = part[above] or part[i] or scope[i] in ("attention", "mlp")
    whole = leaves | _wrapped_linears(classes, scope, inside)
    return _Nest(labels, classes, layer, scope, inside, linear, part, whole)


def _wrapped_linears(
    classes: list[str], scope: list[str], inside: dict[int, list[int]]
) -> set[int]:
    """Return the modules of a user's own class that hold linears and nothing else.

    They have to be next to others of an attention or MLP. Each stands for one linear, as two
    through a rank do for the one that they replace. Alone in its part, such a module may hold all
    linears of it.
    """
    wrapping: set[int] = set()
    for above, children in inside.items():
        if above < 0 or above in wrapping or scope[above] not in ("attention", "mlp"):
            continue
        wrapped = {i for i in children if _holds_linears_alone(i, classes, inside)}
        if len(wrapped) + sum(_is_linear(classes[i]) for i in children) > 1:
            wrapping |= wrapped
    return wrapping


def _holds_linears_alone(i: int, classes: list[str], inside: dict[int, list[int]]) -> bool:
    """Return whether a module of a user's own class holds one or two linears and nothing else."""
    held = inside.get(i, [])
    return (
        0 < len(held) <= _THROUGH_A_RANK
        and all(_is_linear(classes[j]) for j in held)
        and _is_of_own_class(classes[i])
    )


def _is_of_own_class(name: str) -> bool:
    """Return whether the name of a class states neither a part of a layer nor a linear."""
    known = (_ATTENTION_CLASS, _MLP_CLASS, _UP_CLASS, _OUTPUT_CLASS, _LINEAR_CLASS)
    return not any(pattern.search(name) for pattern in known)


def _leaf_linears(
    classes: list[str], scope: list[str], inside: dict[int, list[int]], multiplies: list[bool]
) -> set[int]:
    """Return the modules of a user's own class that hold no module and multiply by a matrix.

    They are in an attention or MLP, and each stands for one linear, as a quantised or masked one
    does.
    """
    return {
        i
        for i, name in enumerate(classes)
        if multiplies[i]
        and scope[i] in ("attention", "mlp")
        and not inside.get(i)
        and _is_of_own_class(name)
        and _role_of_class(name) is None
    }


def _modules_behind_layers(layer: list[int | None], up: list[int]) -> set[int]:
    """Return the modules in no layer that follow the first layer of the module around them.

    That is the smallest module around them that holds any layer. All calls are in order of their
    begin.
    """
    first: dict[int, int] = {}  # by module: the first one in it that is of a layer
    for i in range(len(layer) - 1, -1, -1):
        if layer[i] is not None:
            first[i] = i
        if i in first:
            first[up[i]] = first[i]
    behind: set[int] = set()
    for i, number in enumerate(layer):
        if number is not None:
            continue
        above = up[i]
        while above >= 0 and above not in first:
            above = up[above]
        if first.get(above, i) < i:
            behind.add(i)
    return behind


def _inherit_roles(places: list[Place], up: list[int], classes: list[str]) -> list[Place]:
    """Give a module inside one whose role is known that role.

    These are the inner parts of a quantised Linear, and all modules inside an expert. A linear
    inside a norm computes its scale, and stays without a role.
    """
    for i, place in enumerate(places):
        above = places[up[i]] if up[i] >= 0 else None
        if above is None or above.role == _UNKNOWN:
            continue
        if place.role != _UNKNOWN and above.role not in _EXPERTS:
            continue
        if not (above.role.endswith("norm") and _is_linear(classes[i])):
            places[i] = Place(place.layer, above.role, place.scope)
    return places


def _class_of(label: str) -> str:
    """Return the class of a label: `Linear` of `Linear_5`."""
    return label.rsplit("_", 1)[0]


def _parse_number(label: str) -> int | None:
    """Return the number of a label: 5 of `Linear_5`; None without one."""
    number = label.rsplit("_", 1)[-1]
    return int(number) if number.isascii() and number.isdigit() and len(number) < 9 else None


@lru_cache(maxsize=4096)
def _is_layer(name: str) -> bool:
    """Return whether a class is that of a layer."""
    return _LAYER_CLASS.search(name) is not None


@lru_cache(maxsize=4096)
def _role_of_class(name: str) -> str | None:
    """Return the role that the name of a class states; None for none."""
    return next((role for role, pattern in _BY_CLASS if pattern.search(name)), None)


@lru_cache(maxsize=4096)
def _is_linear(name: str) -> bool:
    """Return whether a class is that of a linear."""
    return _LINEAR_CLASS.search(name) is not None


@lru_cache(maxsize=4096)
def _scope_of_class(name: str) -> str:
    """Return the part of a layer that the name of a class states, "layer" for none."""
    if _CHANNEL_NORM.search(name) or _CONV_CLASS.search(name):
        return "conv"
    if "Norm" in name:
        return "layer"
    if _ATTENTION_CLASS.search(name):
        return "attention"
    if _UP_CLASS.search(name) or _DOWN_CLASS.search(name):
        return "mlp"
    return "mlp" if _MLP_CLASS.search(name) else "layer"


def _roles_of_children(nest: _Nest, above: int, children: list[int]) -> dict[int, str]:
    """Return the roles of the modules called directly inside one call of a module.

    They are known by class, else by order. `above` is -1 for modules that are inside none.
    """
    classes, layer = nest.classes, nest.layer
    around = classes[above] if above >= 0 else ""
    if above in nest.whole or _is_linear(around):
        return {}
    if any(_ATTENTION_CLASS.search(classes[i]) for i in children):
        around = _NEXT_TO_ATTENTION
    roles: dict[int, str] = {}
    linears = [i for i in children if i in nest.whole or _is_linear(classes[i])]
    for i in children:
        role = _role_of_class(classes[i])
        if role == "embedding" and layer[i] is not None:
            role = None
        if classes[i] == "RadixAttention" or classes[i] == "Attention" and not nest.linear[i]:
            role = "attention"
        if role is not None:
            roles[i] = role
    roles.update(_norm_roles(nest, above, children))
    if mixture := _mixture_roles(nest, above, children):
        return {**roles, **mixture}
    once = _called_first(linears, nest.labels)
    of_first = _linear_roles([*once], classes, layer, nest.scope, around)
    for first, calls in once.items():
        if first in of_first:
            roles.update(dict.fromkeys(calls, of_first[first]))
    return roles


def _called_first(linears: list[int], labels: list[str]) -> dict[int, list[int]]:
    """Group calls of linears by module: its first call, with all of its calls.

    A module that is called again is not one more of its parent's linears. Modules without a number
    in the trace cannot be distinguished: each call counts as one module.
    """
    first: dict[str, int] = {}
    calls: dict[int, list[int]] = {}
    for i in linears:
        key = first.setdefault(labels[i], i) if _parse_number(labels[i]) is not None else i
        calls.setdefault(key, []).append(i)
    return calls


def _norm_roles(nest: _Nest, above: int, children: list[int]) -> dict[int, str]:
    """Return the roles of the norms among the modules inside one, by the modules next to them."""
    classes, scope = nest.classes, nest.scope
    # A wrapper of a norm and of its reader is no norm (PreNorm).
    norms = [i for i in children if "Norm" in classes[i] and not nest.part[i]]
    siblings = [i for i in children if i not in norms]
    attentions = [i for i in siblings if _ATTENTION_CLASS.search(classes[i])]
    attends = bool(attentions)
    has_mlp = any(scope[i] == "mlp" or scope[i] == "layer" and nest.linear[i] for i in siblings)
    convolves = any(_CONV_CLASS.search(classes[i]) for i in siblings)
    roles: dict[int, str] = {}
    for order, i in enumerate(norms):
        if _CHANNEL_NORM.search(classes[i]):
            continue
        if nest.layer[i] is None:
            roles[i] = "final_norm"
        elif scope[i] == "attention":
            # An attention without linears of its own reads the queries and keys of these norms.
            wraps = any(nest.linear[i] for i in attentions) or _OUTPUT_CLASS.search(classes[above])
            roles[i] = "attn_norm" if wraps else "qk_norm"
        elif scope[i] == "mlp" or has_mlp and not attends:
            roles[i] = "mlp_norm"
        elif attends and not has_mlp:
            roles[i] = "attn_norm"
        elif attends or not convolves:
            roles[i] = "attn_norm" if order < (len(norms) + 1) // 2 else "mlp_norm"
    return roles


def _mixture_roles(nest: _Nest, above: int, children: list[int]) -> dict[int, str]:
    """Return the roles inside a mixture of experts; empty for a module that is none.

    A mixture is called so, or holds several MLPs of one class; its experts are the modules that
    hold linears. Next to experts in one module, such a module is shared, and a linear is a router.
    """
    if above < 0 or nest.scope[above] != "mlp":
        return {}
    classes = nest.classes
    fused = [i for i in children if _EXPERTS_CLASS.search(classes[i])]
    apart = [
        i
        for i in children
        if i not in fused
        and not _is_linear(classes[i])
        and _role_of_class(classes[i]) is None
        and (nest.linear[i] or "Expert" in classes[i])
    ]
    mixes = _MIXTURE_CLASS.search(classes[above]) is not None
    names = Counter(classes[i] for i in apart if _MLP_CLASS.search(classes[i]))
    if not fused and not (mixes and apart) and max(names.values(), default=0) < _SEVERAL:
        return {}
    shared = {i for i in apart if fused or "Shared" in classes[i]}
    return {
        **{i: "router" for i in children if _is_linear(classes[i])},
        **{i: "shared_expert" if i in shared else "experts" for i in (*fused, *apart)},
    }


_BY_CLASS = tuple(
    (role, lazy_pattern(pattern))
    for role, pattern in (
        ("rope", r"Rotary"), ("embedding", r"Embedding"),
        ("activation", r"SiLU|GELU|ReLU|Activation|SiluAndMul|GeluAndMul"),
        ("router", r"Router|TopK|Gate$|Gating"), ("experts", _EXPERTS_CLASS.pattern),
    )
)  # fmt: skip
_UP_DOWN = ("up", "down")  # or a fused gate and up: the shapes decide
_BY_COUNT: dict[tuple[str, int], tuple[str, ...]] = {
    ("attention", 4): ("q", "k", "v", "o"),
    ("attention", 3): ("q", "k", "v"),  # with o in a module of its own
    ("attention", 2): ("qkv", "o"),
    ("attention", 1): ("o",),
    ("mlp", 3): ("gate", "up", "down"),
    ("mlp", 2): _UP_DOWN,
}


def _linear_roles(
    linears: list[int], classes: list[str], layer: list[int | None], scope: list[str], around: str
) -> dict[int, str]:
    """Return the roles of linears by their class, else by their number."""
    if not linears:
        return {}
    first = linears[0]
    if layer[first] is None:
        return {i: "lm_head" for i in linears if _HEAD_CLASS.search(classes[i])}
    named: dict[int, str] = {}
    for i in linears:
        if "QKV" in classes[i]:
            named[i] = "qkv"
        elif "Merged" in classes[i]:
            named[i] = "gate_up"
        elif "RowParallel" in classes[i]:
            named[i] = "o" if scope[i] == "attention" else "down"
    if named:
        return named
    return _roles_by_count(linears, scope[first], around)


def _roles_by_count(linears: list[int], scope: str, around: str) -> dict[int, str]:
    """Return the roles of linears in one call of `around`, a part of a layer, by their number."""
    known = roles_by_number(scope, len(linears))
    if scope == "mlp" and len(linears) == 1:
        known = ("up",) if _UP_CLASS.search(around) else ()
        known = ("down",) if _DOWN_CLASS.search(around) else known
    elif scope == "layer" and around in ("Sequential", _NEXT_TO_ATTENTION):
        known = _UP_DOWN if len(linears) == len(_UP_DOWN) else known
    return dict(zip(linears, known, strict=True)) if known else {}


def roles_by_number(scope: str, number: int) -> tuple[str, ...]:
    """Return the roles of so many linears in one part of a layer; empty if unknown."""
    return _BY_COUNT.get((scope, number), ())
