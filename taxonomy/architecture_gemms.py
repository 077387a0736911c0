"""The GEMMs of an architecture's layer, and which of them a family moves.

In: Traits. Out: LayerGemm, MovedAxis. (N, K) are output and input features; None is not known.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from prunescope.taxonomy.applies import no_heads
from prunescope.taxonomy.architecture_traits import Traits
from prunescope.taxonomy.family import Family
from prunescope.taxonomy.roles import GROUPS

_HEADS = ("qkv", "qk", "pv", "o")
Size = int | str | None  # a number, "T", "S", "L", "expert rows"; None: not known


@dataclass(frozen=True, kw_only=True)
class LayerGemm:
    """A GEMM of a layer, `count` times: T tokens of a forward, S queries and L keys."""

    role: str
    group: str
    m: Size
    n: Size
    k: Size
    count: int


@dataclass(frozen=True)
class MovedAxis:
    """The axis of a group that a family shrinks, and in which matrices, [N, K] by role."""

    axis: str
    matrices: dict[str, list[int | None]]


def matrices(traits: Traits) -> dict[str, tuple[int | None, int | None]]:
    """(N, K) by role, as the architecture stores them: fused ones as one, the parts of a mixer's
    projection apart ("mixer_in.gates")."""
    return {**_attention_and_mlp(traits), **traits.mixer_linears}


def _attention_and_mlp(traits: Traits) -> dict[str, tuple[int, int]]:
    shape, entry = traits.shape, traits.entry
    if shape is None:
        return {}
    sizes = dict(shape.linears())
    if entry and entry.qkv:
        rows = sum(sizes.pop(role)[0] for role in ("q", "k", "v"))
        sizes = {"qkv": (rows, shape.hidden), **sizes}
    if entry and entry.gate_up and "gate" in sizes:
        rows = sizes.pop("gate")[0] + sizes.pop("up")[0]
        sizes = {**sizes, "gate_up": (rows, shape.hidden)}
    extra = {"experts": shape.expert_intermediate, "shared": shape.shared_intermediate}
    for name, width in extra.items():
        if shape.experts and width:
            sizes[f"{name} gate_up"] = (width * (1 + shape.gated), shape.hidden)
            sizes[f"{name} down"] = (shape.hidden, width)
    return sizes


def products(traits: Traits) -> list[LayerGemm]:
    """Every GEMM of a layer, `count` times: the matrices, and QKᵀ and PV of each query head. What a
    mixer does between its projections, a convolution and a recurrence, is no GEMM."""
    shape = traits.shape
    experts = shape.experts if shape else 0
    rows = [
        LayerGemm(
            role=role,
            group=_group(role),
            m="expert rows" if role.startswith("experts ") else "T",
            n=n,
            k=k,
            count=experts if role.startswith("experts ") else 1,
        )
        for role, (n, k) in matrices(traits).items()
    ]
    if shape is None:
        return rows
    head = LayerGemm(
        role="attention", group="qk", m="S", n="L", k=shape.head_dim, count=shape.heads
    )
    products = [head, replace(head, group="pv", n=shape.value_dim, k="L")]
    place = next((i for i, row in enumerate(rows) if row.group == "o"), len(rows))
    return [*rows[:place], *products, *rows[place:]]


def moved_gemms(one: Family, traits: Traits) -> dict[str, MovedAxis]:
    """By GEMM group, those that the family moves."""
    moved: dict[str, MovedAxis] = {}
    sizes = matrices(traits)
    heads = one.cuts_heads and not no_heads(traits)
    for group, axis in one.axes.items():
        inside = {
            r: list(s) for r, s in sizes.items() if _group(r) == group and r not in one.leaves
        }
        products = group in ("qk", "pv") and traits.shape is not None
        if axis == "none" or (one.cuts_heads and not heads and group in _HEADS):
            continue
        if heads and products:
            axis = "heads"  # M, N and K of one head stay: there are fewer of them
        if products or inside:
            moved[group] = MovedAxis(axis, inside)
    mixers = {r: list(s) for r, s in sizes.items() if r.startswith("mixer_")}
    if mixers and one.mixers == "rows":
        moved["other"] = MovedAxis("M", mixers)
    elif mixers and one.mixers == "stream":
        stream = {r: s for r, s in mixers.items() if s[r.startswith("mixer_in")] == traits.hidden}
        moved["other"] = MovedAxis("NK", stream)  # K of what reads, N of what writes
    return moved


def _group(role: str) -> str:
    return GROUPS.get(role.rpartition(" ")[2], "other")
