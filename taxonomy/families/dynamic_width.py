"""Dynamic width: channels of the MLP, and query heads, are chosen at run time."""

from __future__ import annotations

from msgspec.structs import replace

from prunescope.taxonomy.applies import NO, Applies, to_mlp
from prunescope.taxonomy.architecture_traits import Traits
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families.static_nk import with_channels
from prunescope.taxonomy.family import ALIGNMENT, Family, FamilyPoint, Knob, pattern, recorded
from prunescope.taxonomy.keep import kept_kv_heads
from prunescope.taxonomy.plan import Piece, Plan, Workload
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.theory import dense_plan

_MLP = ("gate", "up", "down", "experts")
# The matrices in which heads that are not chosen are left out, and the axis that shrinks.
_HEADS = {"queries": {"q": "n", "o": "k"}, "heads": {"q": "n", "k": "n", "v": "n", "o": "k"}}


def plans(shape: ModelShape, work: Workload, point: FamilyPoint) -> list[Plan]:
    """Return the forward in which f' = int(f·p), aligned, of the f channels run (p = 1 − s).

    With `attention` only n_kv' groups of query heads attend. One set for a forward: it reads f'/f
    of the weights. One set for each of T tokens: each computes f' channels, and a channel is read
    if any token uses it, with probability 1 − (1 − f'/f)^T; heads likewise. For `queries` k and v
    are dense; the cache is full.

    Raises:
        PrunescopeError: The heads are of latent attention, whose queries and keys have no own
            weight.
    """
    narrow = with_channels(shape, point)
    dense = {
        shape.mlp.intermediate,
        shape.experts.intermediate,
        shape.experts.shared_intermediate,
    } - {0}
    kept = {
        narrow.mlp.intermediate,
        narrow.experts.intermediate,
        narrow.experts.shared_intermediate,
    } - {0}
    channels, heads = max(kept) / max(dense), _head_share(shape, point)
    axes = _HEADS.get(str(point.knobs.get("attention", "dense")), {})
    tokens = work.rows if point.knobs.get("sets", "forward") == "token" else 1

    def read(share: float) -> float:
        """Weights that all sets of a forward read, over those that one set reads."""
        return (1 - (1 - share) ** tokens) / share

    def linear(role: str, n: int, k: int) -> tuple[Piece, ...]:
        if role in _MLP:
            return (Piece(n, k, stored=read(channels)),)
        if role in axes:
            n, k = (round(n * heads), k) if axes[role] == "n" else (n, round(k * heads))
            return (Piece(n, k, stored=read(heads)),)
        return (Piece(n, k),)

    return [replace(dense_plan(narrow, work), linear=linear, heads=heads)]


def _head_share(shape: ModelShape, point: FamilyPoint) -> float:
    """Return the share of heads that a token uses: whole groups of a KV head, one at least."""
    if point.knobs.get("attention", "dense") == "dense":
        return 1.0
    if shape.attention.kv_rank is not None:
        raise PrunescopeError(
            "heads of latent attention cannot be chosen at run time: all share one latent",
            hint="leave attention=dense",
        )
    return kept_kv_heads(shape.attention.kv_heads, point.sparsity) / shape.attention.kv_heads


def applies(traits: Traits) -> Applies:
    """Answer for an MLP that is not a set of experts."""
    if traits.shape and traits.shape.experts.count:
        return Applies(NO, "its experts are chosen by a router of its own")
    return to_mlp(traits)


FAMILY = Family(
    id="dynamic-width",
    title="Dynamic width",
    dynamics="dynamic",
    axes=pattern("- - - - N K"),
    unit="MLP channels, per forward or token",
    cuts=("channels",),
    applies=applies,
    scorer="router",
    methods=("WIDE", "Deja Vu", "PowerInfer"),
    plans=plans,
    extension=True,
    knobs={
        "sets": Knob(
            "forward",
            "what a set of channels is chosen for: a forward (its slices of the weights are "
            "gathered for all tokens), or each token (kernels skip what it does not use), in "
            "predict",
            ("forward", "token"),
            predicted_only=True,
        ),
        "attention": Knob(
            "dense",
            "which projections run on chosen heads alone: none, q and o (WIDE), or k and v too "
            "(Deja Vu), in predict",
            ("dense", "queries", "heads"),
            predicted_only=True,
        ),
        "align": ALIGNMENT,
    },
    adds=("reduction", "routing", "gather_scatter"),
    keeps_weights=True,
    unrecorded=recorded,
)
