"""What a prediction assumes of the model and its engine, in sentences.

In: a Setting. Out: sentences about layers that stay, stages, experts, attention and formats.
"""

from __future__ import annotations

from collections.abc import Iterator

from prunescope.analysis.predict.constants import MARLIN
from prunescope.analysis.predict.setting import WIDE_ITEMSIZE, Setting
from prunescope.taxonomy.expert_routing import Routing
from prunescope.taxonomy.keep import kept_routes
from prunescope.taxonomy.words import spread, when

_ROUNDED = 0.01  # how much of the sparsity rounding to whole experts may change without a note


def list_assumptions(setting: Setting) -> list[str]:
    """List the assumptions about the engine behind a prediction, in sentences."""
    sentences = []
    if setting.layers_kept < 1:
        left = round(setting.layers_kept * setting.shape.layers)
        sentences.append(f"the pruned model has {left} of {setting.shape.layers} layers")
    if setting.pp > 1:
        sentences.append(
            f"{setting.pp} stages of equal layers, as nearly as whole layers allow, with lm_head "
            f"on the last; memory is that of the fullest stage with {setting.pp} batches in flight"
        )
    if setting.tp > 1 and setting.family is not None and "ranks" in setting.family.cuts:
        sentences.append(
            "of each low-rank pair one factor is replicated: every device holds and multiplies it "
            f"whole, and the other is split over {setting.tp}"
        )
    if setting.shape.parts:
        sentences.append(
            "a prompt goes to the encoder, and the decoder begins with one token; keys and values "
            "of its attention to the prompt are computed once and cached, and --context counts them"
        )
    if setting.shape.experts.count:
        sentences += _expert_assumptions(setting)
    sentences += _attention_assumptions(setting)
    if setting.sparse_library == MARLIN:
        bits = round(8 * (setting.stored_itemsize or WIDE_ITEMSIZE))
        sentences.append(
            f"both sides store the weights of linear layers in {bits} bits and multiply them in "
            f"{setting.dtype} by Marlin kernels"
        )
    if setting.kv_itemsize is not None:
        sentences.append(
            f"the cache holds its keys and values in {round(8 * setting.kv_itemsize)} bits, "
            "without the scales of a block; attention multiplies them in 16 bits"
        )
    if setting.runtime is None:
        return sentences
    sentences.append(setting.runtime.assumed)
    if setting.wide_flop_per_s is not None:
        sentences.append(
            f"linear layers multiply in {setting.dtype}; lm_head, attention, its cache and what "
            "lies between stay in 16 bits"
        )
    return sentences


def _attention_assumptions(setting: Setting) -> Iterator[str]:
    """Tell how attention reads keys that heads share."""
    attention = setting.shape.attention
    if attention.kv_rank is not None:
        yield _latent_assumption(setting)
    elif setting.launch == "eager" and setting.attn == "sdpa" and attention.group > 1:
        yield (
            "SDPA expands grouped keys and values (repeat_kv) in each decode step, as transformers "
            "4.57 does beside a mask; 5.24 does not: --attn flash is nearer to it"
        )


def _latent_assumption(setting: Setting) -> str:
    """Tell how decode reads a cache of latents."""
    shape = setting.shape
    numbers = f"{shape.cache_elements():,} numbers a cached token and layer"
    if setting.absorbs:
        return (
            f"latent attention reads {numbers} in decode: its queries are multiplied into them, as "
            "serving engines do"
        )
    more = shape.attention.kv_elements / shape.cache_elements()
    return (
        f"latent attention expands all of its {numbers} in each decode step, as transformers does, "
        f"and reads {more:.0f} times as many; serving engines do not: --runtime vllm or sglang"
    )


def _rounding_notes(setting: Setting) -> list[str]:
    """Tell how many experts stay, or a token goes to, where that is not the requested share.

    A router needs as many experts as a token goes to, and a token needs one.
    """
    family, shape, requested = setting.family, setting.shape, setting.sparsity
    if family is None or not family.changes_experts or not shape.experts.count:
        return []
    parts = [part for part in shape.mlp_parts() if part.moe_layers]
    if family.cuts_experts:
        unit = "experts of a layer stay"
        pairs = [(part.experts.kept(requested), part.experts.count) for part in parts]
    else:
        unit = "experts of each token stay"
        routes = [part.experts.per_token for part in parts]
        pairs = [(kept_routes(count, requested), count) for count in routes]
    layers = [part.moe_layers for part in parts]
    left, there = (
        sum(n * m for n, m in zip(counts, layers, strict=True))
        for counts in zip(*pairs, strict=True)
    )
    if abs(1 - left / there - requested) < _ROUNDED:
        return []
    kept, count = (spread(min(counts), max(counts)) for counts in zip(*pairs, strict=True))
    return [
        f"{kept} of {count} {unit}: {1 - left / there:.1%} fewer; {requested:.1%} were requested"
    ]


def _expert_assumptions(setting: Setting) -> list[str]:
    """Tell how many experts are kept, how tokens spread over them, and which devices hold them."""
    sentences = _rounding_notes(setting)
    if setting.routing is None:
        sentences.append(
            "every expert is chosen as often; a real router is uneven and reads fewer experts: "
            "give --routing"
        )
    else:
        cuts = setting.family is not None and setting.family.cuts_experts
        order = when(cuts, "; of experts that are removed, the least chosen go first")
        picks = _format_picks(setting.routing)
        sentences.append(
            f"experts are chosen as often as in {setting.routing.source}{picks}{order}"
        )
        phases = setting.routing.phases.values()
        most = max((len(counts) for layers in phases for counts in layers), default=0)
        if most > setting.shape.experts.count:
            sentences.append(
                f"{setting.routing.source} counts {most} experts of a layer, and the model has "
                f"{setting.shape.experts.count}: taken for those that were chosen most"
            )
    if setting.loops_experts:
        sentences.append(
            "the host calls each expert that got a token on its own, as eager experts of "
            "transformers do; grouped ones (its default from 5.0 on where it has them) take as "
            "many calls for any number of experts"
        )
    if setting.ep > 1:
        whose = (
            "each has sequences of its own, --batch of them"
            if setting.tp == 1
            else "all share every other layer"
        )
        sentences.append(
            f"{setting.ep} devices hold the experts in their order, as whole ones; {whose}; times "
            "are those of the device whose experts get most tokens"
        )
    return sentences


def _format_picks(routing: Routing) -> str:
    """Return how many picks were counted, in brackets; empty where none were."""
    if not routing.picks:
        return ""
    sizes = {f"{picks:,.0f}" for picks in routing.picks.values()}
    if len(sizes) == 1:
        return f" ({sizes.pop()} picks a layer)"
    by_phase = ", ".join(f"{phase} {picks:,.0f}" for phase, picks in routing.picks.items())
    return f" (picks a layer: {by_phase})"
