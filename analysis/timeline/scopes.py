"""Module scopes: which layer and role the host was in when it launched a kernel or ran an op.

In: the annotations of a trace (our scopes are annotations named by module path, as are those that
serving engines' hooks write as NVTX ranges; PyTorch's `with_stack` gives `nn.Module: Class_i`;
ranges named `layer_3` give the layer alone). Out: for every row the index of a Place, or -1.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from prunescope.analysis.ops.kind import op_kind
from prunescope.analysis.timeline.intervals import innermost, parents
from prunescope.analysis.trace.collect import MODULE, NONE, OWN_PREFIX, Ints, unique_ids
from prunescope.analysis.trace.events import Trace
from prunescope.taxonomy.roles import Place, locate_all

_PATH = re.compile(r"[A-Za-z_]\w*(?:\.\w+)*$")
# TensorRT's layers of an ONNX graph: `/model/layers.0/mlp/down_proj/MatMul`.
_SLASHED = re.compile(r"/?[A-Za-z_][\w.]{0,200}(?:/[\w.]{1,200}){1,40}")
# A layer by its number alone: `layer_3`, `Layer 12`, `decoder_layer.3`, `layer=7`, `block3`.
_NUMBERED = re.compile(r"(?:[A-Za-z]{1,40}[_ .])?(?:layer|block)[_ .=#:]?(\d{1,5})", re.IGNORECASE)
_LAYER_CLASS = re.compile(r"(?:Decoder|Encoder)?(?:Layer|Block)$")
_ATTENTION_CLASS = re.compile(r"Attention|Attn")
_MLP_CLASS = re.compile(r"MLP|Mlp|FeedForward|FFN?(?:$|[A-Z])|MoE|Moe|Mixture|Expert|Act\w*Dense$")
# A module of experts, or its model: HF's Qwen3MoeMLP is one expert, or a plain MLP.
_MIXTURE_CLASS = re.compile(r"MoE|Moe|MOE|Mixture|Experts")
_EXPERTS_CLASS = re.compile(r"FusedMoE|Experts")  # all experts in one module
_HEAD_CLASS = re.compile(r"(?:LMHead|LmHead)(?!Model)")  # GPT2LMHeadModel is all of a model
_UP_CLASS = re.compile(r"Intermediate$")
_DOWN_CLASS = re.compile(r"(?<!Self)(?<!Attention)(?<!Cross)Output$")
_OUTPUT_CLASS = re.compile(r"Output$")  # of attention or of an MLP: a linear, a sum, a norm
_LINEAR_CLASS = re.compile(r"Linear|Conv1D|LMHead(?!Model)")
# Norms over channels or groups of them stand behind convolutions; a transformer's are over rows.
_CONV_CLASS = re.compile(r"Conv(?!1D)")  # GPT-2's Conv1D is a linear
_CHANNEL_NORM = re.compile(r"(?:Batch|Instance|Group)Norm")
_UNKNOWN = "unknown"
_BESIDE_ATTENTION = "a layer that calls attention and its MLP's linears itself"
_EXPERTS = ("experts", "shared_expert")
_SEVERAL = 2  # MLPs of one class inside another one
_THROUGH_A_RANK = 2  # linears in place of one


@dataclass(frozen=True)
class Scopes:
    """`place`: index into `places` for every row, -1 for none; `call`: the annotation that the row
    is in (one call of one module), -1 for none. `source`: "modules" | "nn.Module" | "layers" (their
    numbers alone) | "none"."""

    place: Ints
    call: Ints
    places: list[Place]
    source: str


def find_scopes(trace: Trace, thread: Ints, ts: Ints) -> Scopes:
    """The scope of every row, from the host thread and time of its launch or op.

    With our hooks, an op outside every scope belongs to the one closed last on its thread.
    """
    modules, places, source = _places(trace)
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
    # Told apart by identity first: hashing a place for each of a million annotations takes long.
    objects = {id(p): p for p in places}
    distinct = {p: i for i, p in enumerate(dict.fromkeys(objects.values()))}
    number = {key: distinct[p] for key, p in objects.items()}
    of_annotation = np.array([number[id(p)] for p in places])
    return Scopes(np.where(inner >= 0, of_annotation[inner], NONE), inner, list(distinct), source)


def no_scopes(rows: int) -> Scopes:
    """The scopes of a trace that recorded no module."""
    none = np.full(rows, NONE)
    return Scopes(none, none, [], "none")


def modules_that_ran(trace: Trace) -> frozenset[tuple[int, str]]:
    """(layer, role) of the modules whose calls our hooks recorded; empty for other traces."""
    if not _has_own(trace):
        return frozenset()
    _, places, _ = _places(trace)
    distinct = {id(p): p for p in places}.values()
    return frozenset((p.layer, p.role) for p in distinct if p.layer is not None)


def _closed_last(spans: dict[str, Ints], thread: Ints, ts: Ints) -> Ints:
    end = spans["ts"] + spans["dur"]
    out = np.full(len(ts), NONE)
    for t in unique_ids(thread):
        rows = np.flatnonzero(spans["thread"] == t)
        rows = rows[np.argsort(end[rows], kind="stable")]
        wanted = np.flatnonzero(thread == t)
        at = np.searchsorted(end[rows], ts[wanted], side="right") - 1
        out[wanted] = np.where(at >= 0, rows[np.maximum(at, 0)], NONE) if len(rows) else NONE
    return out


def _has_own(trace: Trace) -> bool:
    """Whether our hooks recorded the modules."""
    return any(name.startswith(OWN_PREFIX) for name in trace.names)


def _places(trace: Trace) -> tuple[Ints, list[Place], str]:
    """The annotations that are module scopes, and the place of each."""
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
    """Ranges named by module paths; where they tell no more than layers, "layers"."""
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
    """The module path that the name of a range says, empty for none: that of a layer for a layer's
    number alone."""
    if _PATH.match(name):
        numbered = _NUMBERED.fullmatch(name)
        return f"layers.{int(numbered[1])}" if numbered else name
    if _SLASHED.fullmatch(name):
        return name.strip("/").replace("/", ".")
    numbered = _NUMBERED.fullmatch(name)
    return f"layers.{int(numbered[1])}" if numbered else ""


def _class_places(trace: Trace, modules: Ints) -> list[Place]:
    """Places from class names and nesting: `nn.Module: Linear_5` is known by its position."""
    places: list[Place] = [Place(None, _UNKNOWN, "model")] * len(modules)
    begin, dur, name, thread = (
        trace.annotations[column][modules] for column in ("ts", "dur", "name", "thread")
    )
    found: list[tuple[Ints, list[str], list[int]]] = []  # of each thread: rows, labels, parents
    for t in unique_ids(thread):
        rows = np.flatnonzero(thread == t)
        rows = rows[np.lexsort((-dur[rows], begin[rows]))]
        up = parents(begin[rows], begin[rows] + dur[rows]).tolist()
        found.append((rows, [trace.names[i][len(MODULE) :] for i in name[rows]], up))
    distinct = {_class_of(trace.names[i][len(MODULE) :]) for i in unique_ids(name)}
    numbers: dict[str, int] = {}
    if sum(map(_is_layer, distinct)) > 1:
        outer = [
            (int(begin[rows[i]]), labels[i])
            for rows, labels, up in found
            for i in _outer_layers(labels, up)
        ]
        numbers = _numbers_of_classes([label for _, label in sorted(outer)])
    for rows, labels, up in found:
        multiplies = _multiply(trace, thread[rows[0]], begin[rows], dur[rows])
        nested = _nested_places(labels, up, numbers, multiplies)
        for row, place in zip(rows, nested, strict=True):
            places[int(row)] = place
    return places


def _multiply(trace: Trace, thread: int, begin: Ints, dur: Ints) -> list[bool]:
    """Whether an op that multiplies by one matrix begins in each of these calls of modules."""
    product = np.array([op_kind(name, None) in _BY_ONE_MATRIX for name in trace.names], bool)
    own = (trace.ops["thread"] == thread) & product[trace.ops["name"]]
    at = np.sort(trace.ops["ts"][own])
    inside = np.searchsorted(at, begin + dur) > np.searchsorted(at, begin)
    return [bool(one) for one in inside]


_BY_ONE_MATRIX = ("gemm", "gemv", "sparse_gemm")  # kinds of ops; attention's are batched


def _outer_layers(labels: list[str], up: list[int]) -> list[int]:
    """The calls of layers that are in no other layer."""
    is_inside = [False] * len(labels)
    found = []
    for i, label in enumerate(labels):
        is_inside[i] = up[i] >= 0 and is_inside[up[i]]
        if not is_inside[i] and _is_layer(_class_of(label)):
            is_inside[i] = True
            found.append(i)
    return found


def _numbers_of_classes(labels: list[str]) -> dict[str, int]:
    """The number of each layer, by the calls of all layers in order; empty where they are of one
    class. PyTorch counts the modules of a class, so that layers of several classes (an encoder and
    a decoder, a vision tower and a language model, attention and scans in turns) have the same
    numbers: these are counted in the order of their first calls."""
    distinct = list(dict.fromkeys(labels))
    if len({_class_of(label) for label in distinct}) <= 1:
        return {}
    return {label: i for i, label in enumerate(distinct)}


_WITH_ADAPTER = 3  # linears: the one that is adapted, and two through a rank


def _nested_places(
    labels: list[str], up: list[int], numbers: dict[str, int], multiplies: list[bool]
) -> list[Place]:
    """`numbers`: of the layers whose own is not theirs, by label; `multiplies`: which calls hold a
    product by a matrix."""
    nest = _nest(labels, up, numbers, multiplies)
    out = [Place(nest.layer[i], _UNKNOWN, nest.scope[i]) for i in range(len(labels))]
    behind = _behind_layers(nest.layer, up)
    for around, children in nest.inside.items():
        for i, role in _roles_of_children(nest, around, children).items():
            known = role != "final_norm" or i in behind
            out[i] = Place(nest.layer[i], role if known else _UNKNOWN, nest.scope[i])
    for i in _adapters(nest):
        out[i] = Place(nest.layer[i], "adapter", nest.scope[i])
    return _inherit(out, up, nest.classes)


def _adapters(nest: _Nest) -> list[int]:
    """Linears of adapters: a linear that holds three or more linears (one and pairs) is the first
    of them, followed by a pair through a rank for each adapter (peft)."""
    found = []
    for i, held in nest.inside.items():
        if i < 0 or nest.scope[i] not in ("attention", "mlp"):
            continue
        if i in nest.whole or _is_linear(nest.classes[i]):
            inner = [j for j in held if _is_linear(nest.classes[j])]
            if len(inner) >= _WITH_ADAPTER and len(inner) % 2:
                found += inner[1:]
    return found


@dataclass(frozen=True)
class _Nest:
    """The calls of modules on one thread in order of their begin, by index. `labels`: the class of
    each with its number in the trace. `inside`: the calls directly inside of each (-1: of none).
    `linear`: whether one is or holds a linear; `part`: whether it holds an attention or an MLP;
    `whole`: those that stand for one linear."""

    labels: list[str]
    classes: list[str]
    layer: list[int | None]
    scope: list[str]
    inside: dict[int, list[int]]
    linear: list[bool]
    part: list[bool]
    whole: set[int]


def _nest(
    labels: list[str], up: list[int], numbers: dict[str, int], multiplies: list[bool]
) -> _Nest:
    classes = [_class_of(label) for label in labels]
    layer: list[int | None] = [None] * len(labels)
    scope = ["model"] * len(labels)
    inside: dict[int, list[int]] = defaultdict(list)
    for i, name in enumerate(classes):
        above = up[i]
        layer[i], scope[i] = (layer[above], scope[above]) if above >= 0 else (None, "model")
        if layer[i] is None and _is_layer(name):
            layer[i], scope[i] = numbers.get(labels[i], _number(labels[i])), "layer"
        elif layer[i] is not None and scope[i] == "layer":
            scope[i] = _scope_of_class(name)
        inside[above].append(i)
    leaves = _linears_of_own(classes, scope, inside, multiplies)
    linear = [_is_linear(name) or i in leaves for i, name in enumerate(classes)]
    part = [False] * len(labels)
    for i in range(len(labels) - 1, -1, -1):  # what a module holds begins after it
        if (above := up[i]) >= 0:
            linear[above] = linear[above] or linear[i]
            part[above] = part[above] or part[i] or scope[i] in ("attention", "mlp")
    whole = leaves | _linears_of_linears(classes, scope, inside)
    return _Nest(labels, classes, layer, scope, inside, linear, part, whole)


def _linears_of_linears(
    classes: list[str], scope: list[str], inside: dict[int, list[int]]
) -> set[int]:
    """The modules of a user's own class that hold linears and nothing else, next to others of an
    attention or MLP: each stands for one linear, as two through a rank do for what they replace.
    Alone in its part such a module may hold all linears of it."""
    found: set[int] = set()
    for above, children in inside.items():
        if above < 0 or above in found or scope[above] not in ("attention", "mlp"):
            continue
        wrapped = {i for i in children if _holds_linears_alone(i, classes, inside)}
        if len(wrapped) + sum(_is_linear(classes[i]) for i in children) > 1:
            found |= wrapped
    return found


def _holds_linears_alone(i: int, classes: list[str], inside: dict[int, list[int]]) -> bool:
    held = inside.get(i, [])
    return (
        0 < len(held) <= _THROUGH_A_RANK
        and all(_is_linear(classes[j]) for j in held)
        and _is_of_own_class(classes[i])
    )


def _is_of_own_class(name: str) -> bool:
    """Whether the name of a class says neither a part of a layer nor a linear."""
    known = (_ATTENTION_CLASS, _MLP_CLASS, _UP_CLASS, _OUTPUT_CLASS, _LINEAR_CLASS)
    return not any(pattern.search(name) for pattern in known)


def _linears_of_own(
    classes: list[str], scope: list[str], inside: dict[int, list[int]], multiplies: list[bool]
) -> set[int]:
    """The modules of somebody's own class in an attention or MLP that hold no module and multiply
    by a matrix: each stands for one linear, as a quantised or masked one does."""
    return {
        i
        for i, name in enumerate(classes)
        if multiplies[i]
        and scope[i] in ("attention", "mlp")
        and not inside.get(i)
        and _is_of_own_class(name)
        and _role_of_class(name) is None
    }


def _behind_layers(layer: list[int | None], up: list[int]) -> set[int]:
    """The modules of no layer behind the first layer of the smallest module around them that holds
    any; in order of their begin."""
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


def _inherit(places: list[Place], up: list[int], classes: list[str]) -> list[Place]:
    """A module inside one whose role is known has that role (a quantised Linear's inner parts), and
    all inside an expert is the expert's; a linear inside a norm computes its scale, and is none."""
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
    """`Linear` of `Linear_5`."""
    return label.rsplit("_", 1)[0]


def _number(label: str) -> int | None:
    number = label.rsplit("_", 1)[-1]
    return int(number) if number.isascii() and number.isdigit() and len(number) < 9 else None


@lru_cache(maxsize=4096)
def _is_layer(name: str) -> bool:
    return _LAYER_CLASS.search(name) is not None


@lru_cache(maxsize=4096)
def _role_of_class(name: str) -> str | None:
    return next((role for role, pattern in _BY_CLASS if pattern.search(name)), None)


@lru_cache(maxsize=4096)
def _is_linear(name: str) -> bool:
    return _LINEAR_CLASS.search(name) is not None


@lru_cache(maxsize=4096)
def _scope_of_class(name: str) -> str:
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
    """Roles of the modules called directly inside one call of module `above` (-1: of none), by
    class, then by order."""
    classes, layer = nest.classes, nest.layer
    around = classes[above] if above >= 0 else ""
    if above in nest.whole or _is_linear(around):
        return {}
    if any(_ATTENTION_CLASS.search(classes[i]) for i in children):
        around = _BESIDE_ATTENTION
    roles: dict[int, str] = {}
    linears = [i for i in children if i in nest.whole or _is_linear(classes[i])]
    for i in children:
        role = _role_of_class(classes[i])
        if role == "embedding" and layer[i] is not None:
            role = None
        if classes[i] == "RadixAttention" or classes[i] == "Attention" and not linears:
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
    """The first call of each module among some calls, with all of its calls: a module that is
    called again is one module more often, and not one more of its parent's linears. Modules
    without a number in the trace cannot be told apart: each call counts as one."""
    first: dict[str, int] = {}
    calls: dict[int, list[int]] = {}
    for i in linears:
        one = first.setdefault(labels[i], i) if _number(labels[i]) is not None else i
        calls.setdefault(one, []).append(i)
    return calls


def _norm_roles(nest: _Nest, above: int, children: list[int]) -> dict[int, str]:
    """Roles of the norms among the modules inside one, by the modules next to them."""
    classes, scope = nest.classes, nest.scope
    # A wrapper of a norm and of what reads it is no norm (PreNorm).
    norms = [i for i in children if "Norm" in classes[i] and not nest.part[i]]
    others = [i for i in children if i not in norms]
    attentions = [i for i in others if _ATTENTION_CLASS.search(classes[i])]
    attends = bool(attentions)
    has_mlp = any(scope[i] == "mlp" or scope[i] == "layer" and nest.linear[i] for i in others)
    convolves = any(_CONV_CLASS.search(classes[i]) for i in others)
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
    """Roles inside a mixture of experts: modules that hold linears, in one that is called a mixture
    or holds several MLPs of one class; next to experts in one module, such a module is shared, and
    a linear is a router."""
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
    (role, re.compile(pattern))
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
    """Roles of linears in one call of `around`, a part of a layer, by how many they are."""
    known = roles_by_number(scope, len(linears))
    if scope == "mlp" and len(linears) == 1:
        known = ("up",) if _UP_CLASS.search(around) else ()
        known = ("down",) if _DOWN_CLASS.search(around) else known
    elif scope == "layer" and around in ("Sequential", _BESIDE_ATTENTION):
        known = _UP_DOWN if len(linears) == len(_UP_DOWN) else known
    return dict(zip(linears, known, strict=True)) if known else {}


def roles_by_number(scope: str, number: int) -> tuple[str, ...]:
    """The roles of so many linears in one part of a layer; empty where their number gives none."""
    return _BY_COUNT.get((scope, number), ())
