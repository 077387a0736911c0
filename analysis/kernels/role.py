"""The role and layer of every row: where in the decoder its work belongs.

In: scopes (places), kinds and op calls. Out: columns `layer` and `role`. Where no module is known,
roles come from the order of attention and GEMMs in each step, and `source` says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from prunescope.analysis.kernels.role_mixture import find_mixture
from prunescope.analysis.kernels.role_shapes import (
    LaunchedRows,
    Roles,
    Size,
    eager_attentions,
    is_adapter,
    is_fused_qkv,
    is_sum,
    is_through_rank,
    keep_heads,
    last_head,
    mark_adapters,
    name_gated,
    name_residuals,
    name_tied_heads,
    name_work_on_weights,
    remove_heads_of_activations,
    rename_adapted,
    with_embeddings,
)
from prunescope.analysis.ops.call import OpCall
from prunescope.analysis.timeline.layer_parts import Parts
from prunescope.analysis.timeline.module_scopes import Scopes
from prunescope.analysis.trace.collector import NONE, Ints, unique_ids
from prunescope.taxonomy.roles import BACKWARD, UNPLACED, Place

GEMM_KINDS = ("gemm", "gemv", "batched_gemm", "sparse_gemm", "grouped_gemm")
PRODUCT_KINDS = (*GEMM_KINDS, "attention")
_PRODUCTS = ("aten::mul", "aten::mul_", "aten::div", "aten::div_")
_ROTATES = ("aten::neg", "aten::sin", "aten::cos", "aten::cat", "aten::addcmul", "aten::addcmul_",
            "aten::polar", "aten::view_as_complex")  # fmt: skip
_NORMS = ("attn_norm", "mlp_norm", "final_norm", "qk_norm")
POINTWISE = ("norm", "activation", "rope", "softmax", "elementwise", "reduction")


def find_roles(scopes: Scopes, rows: LaunchedRows, parts: Parts | None = None) -> Roles:
    """Find the roles of rows.

    Classes of modules (`Linear_0`) say less than paths: where they place less of the time of GEMMs
    than order does, roles come from order.

    Args:
        scopes: The module or range that each row is in.
        rows: The rows.
        parts: What annotations name where no module is known.
    """

    def ordered() -> Roles:
        roles = _roles_by_order(_with_whole_attentions(rows))
        _add_roles_of_annotations(parts, rows, roles)
        name_tied_heads(roles, rows)
        name_gated(roles, rows)
        return roles

    if scopes.source in ("none", "layers"):
        return _with_layers_of_ranges(ordered(), scopes) if scopes.source == "layers" else ordered()
    by_modules = _roles_of_modules(scopes, rows)
    if scopes.source != "nn.Module":
        return by_modules
    placed, whole = _placed(by_modules, rows)
    if placed == whole:
        return by_modules
    by_order = ordered()
    places_more = _placed(by_order, rows)[0] > placed
    return by_order if by_order.source == "order" and places_more else by_modules


def _placed(roles: Roles, rows: LaunchedRows) -> tuple[int, int]:
    """Return the time of GEMMs that have a role, and of all GEMMs."""
    gemm = np.isin(rows.kinds, GEMM_KINDS)
    known = ~np.isin(roles.role, UNPLACED)
    return int(rows.busy[gemm & known].sum()), int(rows.busy[gemm].sum())


def _roles_of_modules(scopes: Scopes, rows: LaunchedRows) -> Roles:
    """Find roles from the modules that rows are in."""
    kinds, calls, sizes = rows.kinds, rows.calls, rows.sizes
    layer = np.full(len(kinds), NONE)
    named = [False] * len(kinds)
    role: list[str] = []
    layered = any(place.layer is not None for place in scopes.places)
    experts = "grouped_gemm" in kinds or any(
        place.role in ("experts", "shared_expert") for place in scopes.places
    )
    attended: set[int] = set()  # calls of attention modules whose attention has been seen
    behind: dict[int, bool] = {}  # by layer: attention has been seen, its projection has not
    numbers, scope_calls = scopes.place.tolist(), scopes.call.tolist()
    for i, kind in enumerate(kinds):
        place = scopes.places[numbers[i]] if numbers[i] >= 0 else None
        if place is None:
            role.append("sampling" if kind == "sampling" else "unknown")
            continue
        if place.layer is not None:
            layer[i] = place.layer
        own_role = place.role
        # A norm multiplies by no matrix: its module was the last to be named.
        if own_role in _NORMS and kind in ("gemm", "gemv"):
            own_role = "unknown"
        named[i] = own_role == "lm_head"
        if own_role == "unknown":
            scope_call = scope_calls[i]
            if place.scope == "model":
                own_role = _role_outside_layers(kind, layered=layered)
            else:
                after = scope_call in attended
                own_role = _role_in_scope(place, kind, calls[i], after=after, experts=experts)
            if place.scope == "attention" and _is_attention(kind, calls[i]):
                attended.add(scope_call)
        if place.scope == "attention":
            by_order = _projection_role(own_role, kind, calls[i], sizes[i], behind, int(layer[i]))
            # The name of a module says more than the number of its linears.
            by_name = scopes.source == "modules" and place.role != "unknown"
            own_role = own_role if by_name else by_order
        role.append(own_role)
    _follow_projections(role, scopes)
    roles = Roles(layer, role, scopes.source)
    _name_around_experts(role, scopes)
    # Rows before attention that may rotate queries and keys: no module's name says that they do.
    unnamed = {
        number
        for number, place in enumerate(scopes.places)
        if place.scope == "attention" and place.role == "unknown"
    }
    guessed = [i for i, own in enumerate(role) if own == "rope" and numbers[i] in unnamed]
    _keep_rotations(role, guessed, rows, scope_calls)
    remove_heads_of_activations(roles, rows, scope_calls)
    keep_heads(roles, rows, named)
    if scopes.source == "nn.Module":  # whose classes give roles by the number of linears
        products = [i for i, size in enumerate(sizes) if size is not None and numbers[i] >= 0]
        parts = {i: scopes.places[numbers[i]].scope for i in products}
        rename_adapted(roles, rows, parts)
    mark_adapters(roles, rows)
    name_gated(roles, rows)
    name_residuals(roles, rows)
    name_work_on_weights(roles, rows)
    return roles


def _follow_projections(role: list[str], scopes: Scopes) -> None:
    """Give what runs in the module of a linear the role that order gave the linear, in place."""
    numbers = scopes.place.tolist()
    renamed = {
        number
        for number, given in zip(numbers, role, strict=True)
        if given == "o" and number >= 0 and scopes.places[number].role == "v"
    }
    for i, number in enumerate(numbers):
        if role[i] == "v" and number in renamed:
            role[i] = "o"


def _with_layers_of_ranges(ordered: Roles, scopes: Scopes) -> Roles:
    """Return roles by order, with the layers that ranges around launches name."""
    layers = np.array([NONE, *(NONE if p.layer is None else p.layer for p in scopes.places)])
    return replace(ordered, layer=layers[scopes.place + 1])


def _name_around_experts(role: list[str], scopes: Scopes) -> None:
    """Set the role of a mixture's work outside its experts, in place.

    It is routing before they run, and the gathering of their results after. None of it is the
    activation that it would be in an MLP.
    """
    mixtures = {place.layer for place in scopes.places if place.role == "experts"}
    if not mixtures:
        return
    ran: set[int | None] = set()  # layers in which experts ran, since their router did
    for i, number in enumerate(scopes.place.tolist()):
        place = scopes.places[number] if number >= 0 else None
        if place is None or place.layer not in mixtures:
            continue
        if place.role == "experts":
            ran.add(place.layer)
        elif place.role == "router":
            ran.discard(place.layer)
        elif place.role == "unknown" and role[i] == "activation":
            role[i] = "experts" if place.layer in ran else "router"


def _add_roles_of_annotations(parts: Parts | None, rows: LaunchedRows, roles: Roles) -> None:
    """Set roles and layers of rows that order leaves open, from the parts that annotations name.

    The linears in one call of an MLP are named by their number.
    """
    if parts is None:
        return
    linears: dict[int, list[int]] = {}  # by call: linears of an MLP
    behind: dict[int, bool] = {}  # by call, as in `_projection_role`
    numbers, notes = parts.place.tolist(), parts.call.tolist()
    for i, kind in enumerate(rows.kinds):
        if numbers[i] < 0:
            continue
        call, place = rows.calls[i], parts.places[numbers[i]]
        if place.scope == "attention" and roles.role[i] == "attention":
            behind[notes[i]] = True
        if roles.role[i] != "unknown":
            continue
        role = place.role
        if role == "unknown":
            after = behind.get(notes[i], False)
            role = _role_in_scope(place, kind, call, after=after, experts=True)
        if place.scope == "attention":
            role = _projection_role(role, kind, call, rows.sizes[i], behind, notes[i])
        elif role == "unknown" and kind in _WEIGHED and not parts.backward[i]:
            linears.setdefault(notes[i], []).append(i)
        roles.role[i] = f"{role}{BACKWARD}" if parts.backward[i] else role
        roles.layer[i] = NONE if place.layer is None else place.layer
    for in_mlp in linears.values():
        _name_mlp(in_mlp, roles.role)


def _name_mlp(linears: list[int], role: list[str]) -> None:
    """Name the linears in one call of an MLP by their number."""
    for i, name in zip(linears, _MLPS.get(len(linears), ()), strict=False):
        role[i] = name


_MLPS = {2: ("up", "down"), 3: ("gate", "up", "down")}  # by their number; shapes tell a fused gate


def _projection_role(
    own_role: str,
    kind: str,
    call: OpCall | None,
    size: Size | None,
    behind: dict[int, bool],
    layer: int,
) -> str:
    """Return the role of a product by a weight that an attention module runs itself.

    That is a fused QKV before attention, and `o` after it. `behind` notes by layer whether
    attention has been seen, and its projection has not.
    """
    if _is_attention(kind, call):
        behind[layer] = True
        return own_role
    if kind not in ("gemm", "gemv") or own_role not in ("v", "o", "qkv", "unknown"):
        return own_role
    if behind.get(layer):
        behind[layer] = False
        # Of three linears, q, k and v by their number, one behind attention is no v.
        return "o" if own_role in ("v", "unknown") else own_role
    # Where attention runs outside of any recorded op, the module's role stays.
    return "qkv" if is_fused_qkv(size) else own_role


def _is_attention(kind: str, call: OpCall | None) -> bool:
    """Return whether a row is attention, or one of the products and the softmax of an eager one.

    A product by a weight is not.
    """
    if kind in GEMM_KINDS:
        return call is None or kind == "batched_gemm"
    return kind in ("attention", "softmax")


def _role_in_scope(
    place: Place, kind: str, call: OpCall | None, *, after: bool, experts: bool
) -> str:
    """Return the role of work that a module with children does itself.

    Args:
        place: Where the module is.
        kind: The kind of the row.
        call: Its op call.
        after: Whether attention has been seen in the module.
        experts: Whether the model has experts; else what gathers in an MLP are rows that a router
            chose.
    """
    if place.scope == "attention":
        return _role_in_attention(kind, call, after=after)
    if place.scope == "mlp":
        if kind in ("routing", "sampling"):
            return "router"
        if kind in ("grouped_gemm", "gather_scatter"):
            return "experts" if experts else "router"
        return "activation" if kind in (*POINTWISE, "layout") else "unknown"
    if place.scope == "conv":
        return "unknown"  # what copies and normalises for a convolution adds no residual
    if place.scope == "layer":
        return "residual" if kind in (*POINTWISE, "layout") else "unknown"
    # A module called a mixer may hold attention (Nemotron-H).
    return kind if kind in ("conv", "scan", "attention") else "scan"


def _role_outside_layers(kind: str, *, layered: bool) -> str:
    """Return the role of work outside all layers.

    A model with layers multiplies by one weight outside of them: its head, if it has one.
    """
    if layered and kind in ("gemm", "gemv"):
        return "lm_head"
    return kind if kind in ("embedding", "sampling", "rope") else "unknown"


def _role_in_attention(kind: str, call: OpCall | None, *, after: bool) -> str:
    """Return the role of work that an attention module does itself."""
    if _is_attention(kind, call):
        return "attention"
    if kind in GEMM_KINDS:
        return "unknown"
    if kind == "rope":
        return "rope"
    if _appends(call):
        return "kv_update"
    pointwise = kind in ("elementwise", "reduction", "layout", "norm", "activation")
    return "rope" if pointwise and not after and not _copies(call) else "attention"


def _keep_rotations(
    role: list[str], guessed: list[int], rows: LaunchedRows, scope_calls: list[int]
) -> None:
    """Turn rows that were guessed to be rope into `attention`, where nothing in their call rotates.

    Queries that are scaled by a number next to a rotation are attention too.
    """
    kinds, calls = rows.kinds, rows.calls
    rotating = {scope_calls[i] for i in guessed if kinds[i] == "rope" or _may_rotate(calls[i])}
    for i in guessed:
        if role[i] == "rope" and (scope_calls[i] not in rotating or _is_scaling(calls[i])):
            role[i] = "attention"


def _may_rotate(call: OpCall | None) -> bool:
    """Return whether a call can be part of a rotation x·cos + rotate_half(x)·sin.

    True for unknown ops. No rotation divides, as what normalises queries does, or joins biases.
    """
    if call is None or not call.name.startswith("aten::"):
        return True
    if call.name in _PRODUCTS:
        return "mul" in call.name and bool(call.shapes) and not _is_scaling(call)
    if call.name == "aten::cat" and call.shapes and isinstance(call.shapes[0], tuple):
        return any(isinstance(part, tuple) and len(part) > 1 for part in call.shapes[0])
    return call.name in _ROTATES or is_sum(call)


def _is_scaling(call: OpCall | None) -> bool:
    """Return whether a call multiplies a tensor by one number."""
    if call is None or call.name not in _PRODUCTS or len(call.shapes) < 2:
        return False
    return any(s == () for s in call.shapes[:2])


def _appends(call: OpCall | None) -> bool:
    """Return whether a call writes keys or values into a cache.

    That is an index_copy, or a cat of two unequal parts.
    """
    if call is None:
        return False
    if call.name in ("aten::index_copy_", "aten::index_copy", "aten::_index_put_impl_"):
        return True
    if call.name != "aten::cat" or not call.shapes or not isinstance(call.shapes[0], tuple):
        return False
    parts = call.shapes[0]
    return len(parts) == 2 and parts[0] != parts[1]


def _copies(call: OpCall | None) -> bool:
    return call is not None and call.name in ("aten::copy_", "aten::clone", "aten::repeat")


class _Pass(Struct, frozen=True):
    """The attentions and weight GEMMs of one forward pass.

    Attributes:
        attention: The rows of attentions.
        gemms: The rows of GEMMs by a weight, without those of `mixture`, `adapters` and `seconds`.
        before: How many of the GEMMs stand before each attention.
        seconds: The row of the second of two GEMMs through a rank, by that of the first: they
            are one.
        mixture: The roles of routers and experts, by row.
        adapters: The row of the linear that an adapter's GEMM is added to, by row.
    """

    attention: Ints
    gemms: Ints
    before: Ints
    seconds: dict[int, int]
    mixture: Mapping[int, str]
    adapters: Mapping[int, int]


_ATTENDED = "attended"  # the rows of an attention of separate ops behind its first one


def _with_whole_attentions(rows: LaunchedRows) -> LaunchedRows:
    """Return the rows with the kinds that order reads.

    An attention of separate ops is one attention where it begins, and rows of a table of tokens
    that are picked are an embedding.
    """
    kinds = with_embeddings(rows)
    for first, last in eager_attentions(rows.kinds, rows.calls):
        kinds[first] = "attention"
        kinds[first + 1 : last + 1] = [_ATTENDED for _ in range(first, last)]
    return replace(rows, kinds=kinds)


def _roles_by_order(rows: LaunchedRows) -> Roles:
    """Find roles by the order of attention and of the GEMMs by a weight.

    Attention kernels divide the GEMMs into o, MLP and the next q, k, v: between two attentions of a
    pass stand o, the MLP's GEMMs and the projections of the next layer. Layers are numbered anew in
    every pass. Where no model has as many GEMMs, two of them through a rank next to a linear of the
    same inputs and outputs may be its adapter (LoRA).

    Limitations: A sequence whose segments differ in length (an encoder next to a decoder) is left
    unknown.
    """
    plain = _ordered_roles(rows, adapted=False)
    if plain.source == "order":
        return plain
    adapted = _ordered_roles(rows, adapted=True)
    return adapted if adapted.source == "order" else plain


def _ordered_roles(rows: LaunchedRows, *, adapted: bool) -> Roles:
    """Find roles by order, with adapters next to linears or without (`adapted`)."""
    kinds, layer = rows.kinds, np.full(len(rows.kinds), NONE)
    named = {_ATTENDED: "attention", **{k: k for k in ("attention", "embedding", "sampling")}}
    role = [named.get(kind, "unknown") for kind in kinds]
    candidates = (_pass(rows, members, adapted=adapted) for members in _passes(rows))
    passes = [p for p in candidates if len(p.attention)]
    if adapted and not any(p.adapters for p in passes):
        return Roles(layer, role, "none")
    inner = np.concatenate([np.diff(p.before) for p in passes]) if passes else np.zeros(0, int)
    if not len(inner):
        return Roles(layer, role, "none")
    usual = int(np.bincount(inner).argmax())
    routed = any(p.mixture for p in passes)
    names, alike = _names(inner, usual, _count_projections(passes, rows), routed=routed)
    if alike <= _ALIKE:
        return Roles(layer, role, "none")
    for forward in passes:
        _name_pass(forward, names, usual, layer, role)
        for i in forward.attention.tolist():  # the rows behind the first of separate ops
            for j in range(i + 1, len(kinds)):
                if kinds[j] != _ATTENDED:
                    break
                layer[j] = layer[i]
        after_last = forward.gemms[forward.before[-1] + len(names[usual][1]) :]
        head = last_head(after_last, rows)
        if head is not None and role[head] == "unknown":
            role[head] = "lm_head"
    return Roles(layer, role, "order", alike)


Names = tuple[tuple[str, ...], tuple[str, ...]]  # of projections, of what follows attention


def _count_projections(passes: list[_Pass], rows: LaunchedRows) -> tuple[int, int]:
    """Count the GEMMs before the first attention: all of them, and the last that read one input.

    Others may embed patches or a time.
    """
    first = passes[0].gemms[: passes[0].before[0]][::-1]
    read = [
        None if size is None else (size[0], size[2]) for size in map(rows.sizes.__getitem__, first)
    ]
    others = [i for i, size in enumerate(read) if size is None or size != read[0]]
    every = int(np.bincount([p.before[0] for p in passes]).argmax())
    return every, min(others, default=len(read))


def _names(
    inner: Ints, usual: int, first: tuple[int, int], *, routed: bool
) -> tuple[dict[int, Names], float]:
    """Return the names of the GEMMs around an attention, by their number up to the next one.

    With them comes the share of the segments that they name. Layers of a plain model are alike; in
    a mixture some have an MLP instead of experts.

    Args:
        inner: The number of GEMMs between two attentions, for each pair.
        usual: The most common of these numbers.
        first: The number of GEMMs before the first attention, and of the projections among them.
        routed: Whether the model is a mixture of experts.
    """
    if not routed:
        plain = _SEGMENTS.get((usual, first[0])) or _SEGMENTS.get((usual, first[1]))
        if plain is None:
            return {}, 0.0
        return dict.fromkeys(inner.tolist(), plain), float((inner == usual).mean())
    projections = _PROJECTIONS.get(first[0], ())
    segments: dict[int, Names] = {first[0] + len(after): (projections, after) for after in _AFTER}
    is_known = projections and usual in segments
    return segments, float(np.isin(inner, [*segments]).mean()) if is_known else 0.0


def _name_pass(
    forward: _Pass, names: Mapping[int, Names], usual: int, layer: Ints, role: list[str]
) -> None:
    """Put the layers and roles of one pass into the columns.

    What follows the last attention is what follows most attentions.
    """
    numbers = np.searchsorted(forward.attention, [*forward.mixture]) - 1
    for (i, label), number in zip(forward.mixture.items(), numbers.tolist(), strict=True):
        layer[i], role[i] = number, label
    segments = [*np.diff(forward.before).tolist(), usual]
    for n, (i, at) in enumerate(zip(forward.attention, forward.before, strict=True)):
        projections, after = names.get(segments[n], names[usual])
        layer[i] = n
        left = forward.gemms[max(0, at - len(projections)) : at]
        right = forward.gemms[at : at + len(after)]
        for rows, labels in ((left, projections), (right, after)):
            for first, label in zip(rows.tolist(), labels, strict=False):
                for j in (first, forward.seconds.get(first, first)):
                    layer[j], role[j] = n, label
    for i, linear in forward.adapters.items():
        layer[i], role[i] = layer[linear], "adapter"


def _pass(rows: LaunchedRows, members: Ints, *, adapted: bool) -> _Pass:
    """Divide a forward pass into attentions, GEMMs by a weight, routers and experts."""
    attention = np.array([i for i in members if rows.kinds[i] == "attention"], np.int64)
    mixture = find_mixture(rows, members.tolist())
    plain = [i for i in members.tolist() if i not in mixture]
    every = [i for i in plain if rows.kinds[i] in _WEIGHED]
    seconds = _pair_through_ranks(rows, plain)
    adapters = _adapters(every, rows.sizes, seconds) if adapted else {}
    not_own = {*seconds.values(), *adapters}
    gemms = np.array([i for i in every if i not in not_own], np.int64)
    return _Pass(attention, gemms, np.searchsorted(gemms, attention), seconds, mixture, adapters)


def _adapters(
    products: list[int], sizes: list[Size | None], seconds: Mapping[int, int]
) -> dict[int, int]:
    """Return the row of the linear that both GEMMs of each adapter run next to, by their rows."""
    linears: dict[int, int] = {}
    at = {i: n for n, i in enumerate(products)}
    for first, second in seconds.items():
        near = [at[first] - 1, at[second] + 1]
        for linear in (products[n] for n in near if 0 <= n < len(products)):
            if is_adapter(sizes[linear], sizes[first], sizes[second]):
                linears[first] = linears[second] = linear
                break
    return linears


def _pair_through_ranks(rows: LaunchedRows, members: list[int]) -> dict[int, int]:
    """Pair GEMMs, one right behind the other, through a rank that is no width of other GEMMs."""
    pairs: dict[int, int] = {}
    last = NONE  # the GEMM right before, with only auxiliary kernels between
    kinds, sizes = rows.kinds, rows.sizes
    for i in members:
        if kinds[i] not in _WEIGHED:
            last = last if kinds[i] in _AUXILIARY else NONE
        elif last != NONE and is_through_rank(sizes[last], sizes[i]):
            pairs[last], last = i, NONE
        else:
            last = i
    if not pairs:
        return pairs
    inner = {*pairs.values()}
    known = {i: size for i in members if (size := sizes[i]) is not None}
    widths = {n for i, (_, n, _) in known.items() if i not in pairs}
    widths |= {k for i, (_, _, k) in known.items() if i not in inner}
    return {i: j for i, j in pairs.items() if known[i][1] not in widths}


def _passes(rows: LaunchedRows) -> Iterator[Ints]:
    """Yield the rows of each forward pass.

    A pass is a step, cut where tokens are embedded again, if that gives passes of as many layers
    (the last of several may be cut off).
    """
    for number in unique_ids(rows.step):
        members = np.flatnonzero(rows.step == number)
        begins, layers = _beginnings([rows.kinds[i] for i in members])
        whole, last = layers[:-1], layers[-1]
        alike = len(set(whole)) == 1 and whole[0] > 1
        cut_off = len(whole) > 1 and last < whole[0]
        if alike and (last == whole[0] or cut_off):
            yield from np.split(members, begins)
        else:
            yield members


def _beginnings(kinds: list[str]) -> tuple[list[int], list[int]]:
    """Return the places where an embedding follows attention, and the attentions between them.

    The counts are those up to each place, and from the last place on.
    """
    begins: list[int] = []
    layers = [0]
    for i, kind in enumerate(kinds):
        if kind == "attention":
            layers[-1] += 1
        elif kind == "embedding" and layers[-1]:
            begins.append(i)
            layers.append(0)
    return begins, layers


_WEIGHED = ("gemm", "gemv", "sparse_gemm")
_AUXILIARY = ("memset", "memcpy", "reduction")  # kinds of kernels that a GEMM's op also launches
_ALIKE = 0.9  # of the segments between two attentions
# (GEMMs between two attentions, projections before the first) -> projections, and what comes
# behind attention.
_SEGMENTS = {
    (7, 3): (("q", "k", "v"), ("o", "gate", "up", "down")),
    (4, 1): (("qkv",), ("o", "gate_up", "down")),
    (6, 3): (("q", "k", "v"), ("o", "up", "down")),
    (5, 1): (("qkv",), ("o", "gate", "up", "down")),
    (6, 2): (("q", "kv_b"), ("o", "gate", "up", "down")),
}
# Of a model with routers: projections by the number of GEMMs before the first attention, and what
# follows an attention but for router and experts.
_PROJECTIONS: dict[int, tuple[str, ...]] = {
    1: ("qkv",),
    3: ("q", "k", "v"),
    4: ("q_a", "q_b", "kv_a", "kv_b"),
}
_AFTER: tuple[tuple[str, ...], ...] = (
    ("o",),
    ("o", "gate_up", "down"),
    ("o", "gate", "up", "down"),
)
