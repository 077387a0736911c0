"""The architectures (MLA, mixers, ALiBi, …) that a family applies to, as several families share it.

In: Traits. Out: Applies (yes, partly or no, and why), or a sentence that says why the tool does not
prune an architecture so, "" if it does. What a single family asks for stands in its own file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from prunescope.taxonomy.architecture_traits import Traits
from prunescope.taxonomy.errors import PrunescopeError

YES, PARTLY, NO = "yes", "partly", "no"
STATE = "a recurrent state has no keys to leave out and no heads that a cache holds"
NO_MLP = "it has no MLP of its own"
CROSSED = "every layer attends to all tokens of the encoder"
ALIBI = "its positions are a slope for each head (ALiBi)"
# Matrices of experts, slices of stacked tensors that some families leave dense.
EXPERT_MATRICES = ("experts gate_up", "experts down", "shared gate_up", "shared down")
# Matrices of an MLP that each token passes: a plain layer's and those of shared experts.
DENSE_MATRICES = ("gate", "up", "gate_up", "down", "shared gate_up", "shared down")


class Applies(NamedTuple):
    """The answer YES, PARTLY or NO, and the sentence that says why not, or where."""

    answer: str
    why: str = ""


def check_applies(name: str, applies: Callable[[Traits], Applies], traits: Traits) -> None:
    """Raise PrunescopeError, with the reason, if a family of this `name` cannot be applied."""
    answer, why = applies(traits)
    if answer == NO:
        raise PrunescopeError(
            f"{name} cannot be applied to this model: {why}",
            hint="`prunescope families --architecture CONFIG` says which families can",
        )


def everywhere(_traits: Traits) -> Applies:
    """Answer for families that apply to every architecture."""
    return Applies(YES)


def realised(_traits: Traits) -> str:
    """Answer "" for families that the tool prunes wherever they apply."""
    return ""


def to_layers(traits: Traits) -> Applies:
    """Answer for families that cut whole layers: every architecture has them."""
    return Applies(YES) if traits.shape else Applies(YES, f"layers of {traits.mixer} go whole")


def to_mlp(traits: Traits) -> Applies:
    """Answer for families that cut MLP channels."""
    return Applies(YES) if traits.shape else Applies(NO, NO_MLP)


def to_experts(traits: Traits) -> Applies:
    """Answer for families that cut experts behind a router."""
    shape = traits.shape
    if shape is None or not shape.experts.count:
        return Applies(NO, "no layer has experts")
    if shape.moe_layers < shape.layers:
        where = f"in {shape.moe_layers} of {shape.layers} layers: the others have no experts"
        return Applies(PARTLY, where)
    return Applies(YES)


def to_heads(traits: Traits) -> Applies:
    """Answer for families that cut KV heads with their query heads."""
    shape, reason = traits.shape, no_heads(traits)
    if shape is None or reason:
        return Applies(NO, reason)
    if shape.attention.kv_rank is not None:
        latent = "heads are rows of q_b and kv_b; the latents and the cache stay as they are"
        return Applies(PARTLY, latent)
    if traits.mixer:
        where = (
            "attention"
            if traits.parallel_mixer
            else f"{traits.layers - traits.mixer_layers} layers"
        )
        return Applies(PARTLY, f"heads of {where} alone: {traits.mixer} keeps a recurrent state")
    return Applies(YES)


def no_heads(traits: Traits) -> str:
    """Return why no head can be cut; "" if some can."""
    if traits.shape is None:
        return STATE
    if traits.shape.attention.kv_heads == 1:
        return "one KV head serves all query heads, so that no group can go"
    if traits.alibi:
        return f"{ALIBI}, counted from the first"
    return traits.entry.no_heads if traits.entry else ""


def to_keys(traits: Traits) -> Applies:
    """Answer for families that cut the keys that a query attends to."""
    shape = traits.shape
    if shape is None:
        return Applies(NO, STATE)
    if shape.cross.heads:
        return Applies(PARTLY, f"keys of the decoder's own tokens: {CROSSED}")
    full = shape.full_layers
    if not full:
        window = f"no layer sees more than {shape.attention.window} keys"
        return Applies(PARTLY, window) if shape.attention.window else Applies(NO, STATE)
    if shape.other_layers:
        return Applies(PARTLY, f"in {full} of {shape.layers} layers: {STATE}")
    if shape.sliding_layers:
        sliding = f"{shape.sliding_layers} layers see {shape.attention.window} keys as they are"
        return Applies(PARTLY, sliding)
    if traits.parallel_mixer:
        return Applies(PARTLY, f"attention alone: the {traits.mixer} in parallel reads no keys")
    return Applies(YES)


def to_projections(traits: Traits, *also: str) -> Applies:
    """Answer for families that change single matrices of attention and MLP.

    Args:
        traits: The mechanisms of the model.
        also: Sentences on what else stays dense in the family.
    """
    shape, mixer = traits.shape, traits.mixer
    if shape is None:
        return Applies(PARTLY, "the projections into and out of its mixers, not the state")
    reasons = [f"{mixer} stays dense"] if mixer else []
    reasons += also
    if shape.experts.count:
        shared = ", and shared ones with them" if shape.experts.shared_intermediate else ""
        reasons.append(f"routed experts, slices of stacked tensors, stay dense{shared}")
    return Applies(PARTLY, "; ".join(reasons)) if reasons else Applies(YES)


def no_parts(traits: Traits, *, whole_layers: bool = False) -> str:
    """Return why a family that decides at run time is not realised; "" if it is.

    Its attention cannot be taken apart, or, for `whole_layers`, cannot be left out.
    """
    shape, entry = traits.shape, traits.entry
    if shape is None or entry is None:
        return ""
    if traits.alibi or entry.no_heads:
        return f"{ALIBI}, added to every key"
    return "" if whole_layers else entry.no_parts


def no_keys(traits: Traits) -> str:
    """Return why keys are not left out at run time; "" if they are."""
    shape = traits.shape
    windowed = shape is not None and shape.attention.window and not shape.full_layers
    return no_parts(traits) or ("every layer attends through a sliding window" if windowed else "")
