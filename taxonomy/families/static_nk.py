"""Static NK: KV-head groups and MLP channels go, N of a producer with K of its consumer."""

from __future__ import annotations

from msgspec.structs import replace

from prunescope.taxonomy.applies import PARTLY, Applies, no_heads, to_heads
from prunescope.taxonomy.architecture_traits import Traits
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.family import ALIGNMENT, Family, FamilyPoint, Knob, pattern
from prunescope.taxonomy.keep import ROUNDINGS, kept_intermediate, kept_kv_heads
from prunescope.taxonomy.plan import Plan, Workload
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.theory import dense_plan

ROUNDING = Knob(
    "nearest",
    "how the kept share of the KV heads becomes a whole number",
    ROUNDINGS,
    only_sizes=True,
)
MIXERS = Knob(
    "whole",
    "what is cut of mixers without keys (state space, linear attention): nothing, whole heads, "
    "channels of each head, or numbers of state (Minitron-SSM)",
    ("whole", "heads", "channels", "state"),
    predicted_only=True,
)
LATENTS = ("q_a", "kv_a")  # they belong to no head


def with_heads(shape: ModelShape, point: FamilyPoint) -> ModelShape:
    """Return the model with n_kv' = max(1, round(n_kv·p)) KV heads, p = 1 − s.

    Each has G query heads of d dimensions: q N = G·n_kv'·d; k, v N = n_kv'·d; o K = G·n_kv'·d. The
    heads of an attention to an encoder alike.
    """
    rounding = str(point.knobs["rounding"])

    def narrow(layer: ModelShape) -> ModelShape:
        kept = kept_kv_heads(layer.attention.kv_heads, point.sparsity, rounding)
        return layer.change(kv_heads=kept, heads=kept * layer.attention.group)

    narrow_shape, cross = shape.map_layers(narrow), shape.cross
    if not cross.heads:
        return narrow_shape
    kept = kept_kv_heads(cross.kv_heads, point.sparsity, rounding)
    heads = kept * cross.heads // cross.kv_heads
    return narrow_shape.change(cross_kv_heads=kept, cross_heads=heads)


def with_channels(shape: ModelShape, point: FamilyPoint) -> ModelShape:
    """Return the model with f' = int(f·p) channels, p = 1 − s, aligned, and as many experts.

    gate, up N = f'; down K = f'.
    """

    def kept(width: int) -> int:
        return kept_intermediate(width, point.sparsity, point.align) if width else 0

    return shape.map_layers(
        lambda layer: layer.change(
            intermediate=kept(layer.mlp.intermediate),
            expert_intermediate=kept(layer.experts.intermediate),
            shared_intermediate=kept(layer.experts.shared_intermediate),
        )
    )


def with_mixers(shape: ModelShape, point: FamilyPoint) -> ModelShape:
    """Return the model whose mixers keep the share p = 1 − s of what the knob says.

    Raises:
        PrunescopeError: The mixer has no such part, or the model has no mixer.
    """
    what = str(point.knobs.get("mixers", "whole"))
    if what == "whole":
        return shape
    kind = shape.mixer.work
    if what not in kind.cuts:
        cuts = ", ".join(kind.cuts) or "nothing"
        raise PrunescopeError(
            f"{what} of a {kind.title or 'model without mixers'} cannot be cut",
            hint=f"--set mixers= takes {cuts} here: everything else is shared or stands alone",
        )
    return replace(shape, mixer=shape.mixer.cut(what, 1 - point.sparsity))


def plans(shape: ModelShape, work: Workload, point: FamilyPoint) -> list[Plan]:
    """Return the narrow forward.

    Attention and cache scale with the KV heads, the MLP with its channels, mixers as the knob says.
    """
    narrow = with_channels(with_heads(shape, point), point)
    return [dense_plan(with_mixers(narrow, point), work)]


def applies(traits: Traits) -> Applies:
    """Answer for heads and channels; for channels alone if no head can be cut."""
    reason = no_heads(traits)
    if reason and traits.shape and not traits.alibi:
        return Applies(PARTLY, f"the MLP alone: {reason}")
    return to_heads(traits)


def _not_realised(traits: Traits) -> str:
    entry = traits.entry
    return "use static-nk-mlp" if traits.alibi or (entry and entry.no_heads) else ""


FAMILY = Family(
    id="static-nk",
    title="Static NK",
    dynamics="static",
    axes=pattern("N M M K N K"),
    unit="KV-head groups and MLP channels",
    cuts=("heads", "channels"),
    applies=applies,
    not_implemented=_not_realised,
    leaves=LATENTS,
    methods=("LLM-Pruner", "FLAP", "Týr-the-Pruner"),
    plans=plans,
    knobs={"rounding": ROUNDING, "align": ALIGNMENT, "mixers": MIXERS},
    calibration="text",
)
