"""Dynamic M: each token is routed past sublayers, or past whole layers."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from prunescope.taxonomy.applies import NO, PARTLY, YES, Applies, no_parts
from prunescope.taxonomy.architecture_traits import Traits
from prunescope.taxonomy.family import Family, FamilyPoint, Knob, Value, pattern
from prunescope.taxonomy.plan import Plan, Workload
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.theory import dense_plan

_ROUTED = (
    "q", "q_a", "q_b", "o", "cross_q", "cross_o", "gate", "up", "down", "experts", "shared_expert",
    "router",
)  # fmt: skip
# A token that is routed past a sublayer is still a key and a value for the others, or none.
_KEPT = ("k", "v", "kv_a", "kv_b")


def plans(shape: ModelShape, work: Workload, point: FamilyPoint) -> list[Plan]:
    """Return the forward in which q, o and the MLP compute p·T rows of T tokens, where p = 1 − s.

    k and v compute all rows, and the p·T queries attend to all keys. With `keys=routed` k and v
    compute p·T rows too: p·p of the pairs of a query and a key are left, and p of the cache.

    A weight is read if any of the step's T tokens is routed to it: with probability 1 − s^T.
    """
    s = point.sparsity
    if s == 0:
        return [dense_plan(shape, work)]
    p = 1 - s
    cached = p if point.knobs["keys"] == "routed" else 1.0
    routed: tuple[str, ...] = _ROUTED if work.prefill else (*_ROUTED, "kv_b")
    if cached < 1:
        routed = (*_ROUTED, *_KEPT)
    rows = dict.fromkeys((*routed, "mlp_norm", "activation"), p)
    if cached < 1 and not work.prefill:
        rows["kv_b"] = p * cached  # expands the cached latents of active sequences
    return [
        replace(
            dense_plan(shape, work),
            rows=rows,
            read=dict.fromkeys(routed, 1 - s**work.rows),
            scores=p * cached,
            queries=p,
            keys=p * cached,
            cached=cached,
            routers=("attention", "mlp") if point.knobs["unit"] == "sublayer" else ("attention",),
            runs=1 - s**work.rows,
        )
    ]


def applies(traits: Traits) -> Applies:
    """Answer for tokens of attention and MLP: a recurrence takes every token."""
    if traits.shape is None:
        return Applies(NO, "a recurrent state needs every token, and there is no MLP next to it")
    if traits.mixer:
        state = f"attention and MLP: {traits.mixer} keeps a state, which needs every token"
        return Applies(PARTLY, state)
    return Applies(YES)


def unrecorded(knobs: Mapping[str, Value]) -> str:
    """Return why a graph cannot hold the steps; "" if it can."""
    if knobs["keys"] == "routed":
        return "with keys=routed the cache grows by the active tokens alone, whose number varies"
    return ""


FAMILY = Family(
    id="dynamic-m",
    title="Dynamic M",
    dynamics="dynamic",
    axes=pattern("M M M M M M"),
    unit="tokens, per sublayer or layer",
    cuts=("tokens",),
    applies=applies,
    not_implemented=no_parts,
    leaves=_KEPT,
    scorer="router",
    unrecorded=unrecorded,
    routes_layers=True,
    routes_rows=True,
    methods=("MoD", "SkipGPT", "D-LLM"),
    plans=plans,
    adds=("gemm", "routing", "gather_scatter", "elementwise"),
    knobs={
        "unit": Knob(
            "sublayer",
            "what a token can skip: attention and MLP each on its own, or whole layers",
            ("sublayer", "layer"),
        ),
        "choose": Knob(
            "rank",
            "which tokens of a prompt pass: the best 1 − s of each sequence, which depend on later "
            "tokens, or those with a score above a threshold, one by one as in decode",
            ("rank", "threshold"),
        ),
        "keys": Knob(
            "all",
            "whose keys and values there are: of all tokens (SkipGPT), or of those that are not "
            "routed past the attention (MoD, D-LLM)",
            ("all", "routed"),
        ),
    },
    keeps_weights=True,
    calibration="text",
)
