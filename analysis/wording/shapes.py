"""The words of shapes that a model's config gives, and of what contradicts that config."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from prunescope.taxonomy.words import percent, when

Intervals = Sequence[tuple[int, int]]
_RANGES = 8  # of widths in a sentence: a plain layer has seven GEMMs, and there is the head
_ROWS = 4  # values of M in a sentence


def intervals(allowed: Intervals | None) -> str:
    """Return intervals of integers, "833–896" or several; "any" of None."""
    if allowed is None:
        return "any"
    return " or ".join(f"{a:,}" if a == b else f"{a:,}–{b:,}" for a, b in allowed[:3]) or "none"


def _either(values: Sequence[float]) -> str:
    return " or ".join(f"{value:,}" for value in values)


def _given(
    *,
    model: str,
    ranks: int,
    share: float,
    by_order: bool,
    rows: Sequence[int],
    unknown: Sequence[Intervals | None],
) -> str:
    each = [f"M = {m:,}" for m in rows]
    if unknown:
        within = when(unknown[0] is not None, f", {intervals(unknown[0])} by the grids")
        each.append(f"M is not known{within}")
    how = "aligned with its layers by order" if by_order else "by module"
    of_ranks = when(ranks > 1, f", on each of {ranks} ranks")
    return (
        f"shapes from the model's config ({model}{of_ranks}): {percent(share, 1)} of the time of "
        f"GEMMs and attention, {how}; {', '.join(each[:_ROWS])}"
    )


def _ranges(*, ranges: Sequence[dict[str, Any]], outside: Sequence[tuple[str, int]]) -> str:
    each = [
        f"{width['role']} {intervals(width['allowed'])} by its {width['how']}" for width in ranges
    ]
    if len(each) > _RANGES:
        each = [*each[:_RANGES], f"and {len(each) - _RANGES} others"]
    config = "the config's value is within this range"
    if outside:
        values = ", ".join(f"{n:,} of {role}" for role, n in outside)
        config = f"the config's value is not ({values})"
    return f"the trace fits N of {', '.join(each)}: {config}"


def _suggested(
    *, model: str, grade: str, matches: Sequence[str], presets: int, rivals: Sequence[str]
) -> str:
    others = f"{', '.join(rivals)} would fit its sizes" if rivals else "no other fits"
    return (
        f"--model auto: the trace would be of {model}, {grade} by {', '.join(matches)}; of "
        f"{presets} presets {others}; a fine-tuned or pruned model of the same sizes would too: "
        f"give --model {model} to take its shapes"
    )


def _whole_experts(*, covered: int | None) -> str:
    how = "an all-to-all a layer"
    if covered is not None:
        how = f"the grid of its kernel, {covered:,} channels in tiles"
    return f"a rank runs whole experts, by {how}: M is what the router chose, and null"


def _time(ns: float) -> str:
    return f"{ns / 1e3:.1f} µs"


def _rates_apart(*, gemms: Sequence[dict[str, Any]], apart: float, limit: float, same: bool) -> str:
    takes = " and ".join(
        f"{gemm['role']} with N·K = {gemm['size']:,} takes {_time(gemm['ns'])}" for gemm in gemms
    )
    return (
        f"{takes}: their rates are {apart:.2f} times apart, those of "
        f"{'one kernel' if same else 'two kernels'} {limit:.2f} at most"
    )


WORDS: dict[str, str | Callable[..., str]] = {
    "config-unused-on-host": (
        "--model {model} is not used: this is a CPU trace, and a config gives shapes only to "
        "kernels of a GPU (record_shapes=True keeps those of a CPU's ops)"
    ),
    "config-not-needed": "--model {model} is not needed: the trace has the shapes",
    "config-adds-nothing": "--model {model} adds no shapes to those of the trace",
    "config-unlike-weights": "{text}",
    "config-shapes": _given,
    "config-ranges": _ranges,
    # -- --model auto --
    "no-preset-fits": lambda presets, layers, attentions: (
        f"--model auto: none of {presets} presets fits the trace ("
        f"{f'{layers} layers' if layers else f'{attentions} attentions'}): give the model's "
        "config.json"
    ),
    "several-presets-fit": (
        "--model auto: {models:list} are each {grade}, by {matches:list}: give the one that it is "
        "with --model"
    ),
    "preset-fits": _suggested,
    # -- why nothing is taken from a config --
    "config-refused": "no shapes are taken from the config {model}: {problems:notices}",
    "fits-without-workload": "without the workload that was given nothing contradicts it",
    "several-degrees-fit": lambda ranks: (
        f"the model may be shared out over {_either(ranks)} ranks, by all that the trace says"
    ),
    "no-degree-fits": "its dimensions cannot be shared out over the ranks of the trace",
    # -- what is not taken from it --
    "steps-without-shapes": (
        "{count} of {steps} steps get no shapes from the config {model}: {problems:notices}"
    ),
    "config-of-another-model": ("the config {model} may be that of another model: {sign:notice}"),
    "blocks-off-the-tiles": (
        "{role} with N = {n:,} has {tiles:,} tiles of {tile}, and {blocks:,} blocks in the trace; "
        "other GEMMs on its kernel have a block for every tile"
    ),
    "head-without-shape": lambda n, allowed, rows: (
        f"lm_head gets no shape: with N = {n:,} its grid needs M {intervals(allowed)}, and it "
        f"would run {_either(rows)} rows"
    ),
    "activations-of-another-width": (
        "activations have a width of {seen:,}, by their grids, the MLP {width:,} in the config "
        "{model}, which the times of its GEMMs do not contradict"
    ),
    "rows-off-the-grids": lambda rows, source, allowed: (
        f"M = {rows:,} ({source}) does not fit the grids of the linears, which allow "
        f"{intervals(allowed)}"
    ),
    "rows-off-the-tokens": (
        "M = {rows:,} ({source}) does not fit the kernels that run one block a token, which have "
        "{counted:,}"
    ),
    "given-rows-off-annotation": (
        "M = {rows:,} is given, and a step is annotated with {annotated:,} tokens"
    ),
    "unused-workload": (
        "--phase {phase} and its workload are not used: steps are annotated as {annotated}"
    ),
    # -- experts on ranks --
    "experts-in-parts": (
        "each of {ranks} ranks runs its part of the channels of every expert, by the grid of its "
        "kernel, {covered:,} channels in tiles"
    ),
    "experts-whole": _whole_experts,
    "experts-unknown": (
        "M, N and K of the experts are null: ranks share out whole experts or their channels, and "
        "neither the grid of their kernels nor an all-to-all a layer says which"
    ),
    # -- contradictions of layers --
    "another-number-of-layers": "{layers} layers in the trace, {config} in the config",
    "layers-lack-kernels": (
        "{layers} layers in the trace, {config} in the config (or so: {damaged} of them lack "
        "kernels)"
    ),
    "layers-of-several-kinds": (
        "the order of kernels does not identify layers of several kinds: the trace has no modules"
    ),
    "layers-of-several-sizes": (
        "the order of kernels does not identify layers that differ in size and in kind"
    ),
    "unequal-passes": "the passes of a step differ in their kernels",
    "no-repeated-layers": (
        "no repetition of layers is found in the order of kernels ({attentions} attentions, "
        "{layers} layers in the config)"
    ),
    "another-order-of-layers": (
        "{attentions} attentions and {mixers} mixers in the trace, {config_attentions} and "
        "{config_mixers} in the config, or in another order"
    ),
    "layers-run-other-kernels": (
        "of {layers} layers of a kind no more than half run the same kernels"
    ),
    "layers-run-in-several-ways": "layers of one kind would run in several ways",
    "experts-in-unknown-order": lambda shared, ways: (
        "experts run one after the other, "
        f"{'in addition to a shared one' if shared else f'{ways} ways fit'}: their order is not "
        "sure"
    ),
    "another-number-of-attentions": (
        "{attentions} attentions in the trace, {layers} layers with attention in the config"
    ),
    "segments-of-other-gemms": (
        "{count} of {segments} segments between attentions run as many GEMMs as the config says"
    ),
    "several-orders-of-gemms": "the GEMMs of a layer may run in {orders} orders, by their times",
    "too-many-gemms": "a layer runs {gemms} GEMMs, more than any that the config predicts",
    "another-number-of-gemms": lambda gemms, config: (
        f"a layer runs {gemms} GEMMs besides attention in the trace, {_either(config)} in the "
        "config"
    ),
    "gemm-time-unexplained": (
        "{share:percent} of the GEMM time of a layer is explained by the config, less than "
        "{least:percent}"
    ),
    "several-choices-of-gemms": (
        "a layer runs {gemms} GEMMs, the config predicts {config}, and more than one choice of "
        "them fits"
    ),
    # -- contradictions of sizes --
    "no-rows-fit-grid": "no M fits the grid of {role} ({grid} blocks) with N = {n:,}",
    "no-rows-fit-all-grids": lambda role, n, needed, allowed: (
        f"no M fits all grids: {role} with N = {n:,} needs M {intervals(needed)}, the others "
        f"{intervals(allowed)}"
    ),
    "counted-rows-off-the-grids": lambda rows, allowed: (
        f"kernels that run one block a token count {rows:,} rows, and the grids of the linears "
        f"allow {intervals(allowed)}"
    ),
    "counted-elements-off-the-rows": lambda counted, rows, source: (
        f"residual adds and activations count {intervals(counted)} rows of the config's widths, "
        f"and M is {rows:,} ({source}): one of them is wrong"
    ),
    "residual-adds-off-the-rows": (
        "residual adds have {elements:,} elements, by their grids; {rows:,} rows of {hidden:,} "
        "have {expected:,}"
    ),
    "activations-off-the-adds": (
        "activations have {seen:.2f} times as many elements as residual adds, by their grids; in "
        "the config the MLP is {config:.2f} times as wide as the hidden state"
    ),
    "mlp-of-another-width": (
        "the MLP has {width:,} channels in the config; activations have {seen:,}, by their grids, "
        "and the times of its GEMMs do not contradict that"
    ),
    "rates-apart": _rates_apart,
    "narrow-gemm-too-slow": lambda role, n, ns, wide, wide_n, wide_ns, fair_ns: (
        f"{role} with N = {n:,} takes {_time(ns)}; compared with {wide} with N = {wide_n:,}, which "
        f"takes {_time(wide_ns)} on the same kernel, it would take {_time(fair_ns)}"
    ),
    "gemm-above-peak": lambda role, m, n, k, ns, flop_per_s, peak: (
        f"{role} with M = {m:,}, N = {n:,}, K = {k:,} in {_time(ns)} would be "
        f"{flop_per_s / 1e12:.0f} TFLOP/s, of a peak of {peak / 1e12:.0f}"
    ),
    "weights-above-bandwidth": lambda role, bytes, ns, peak: (
        f"the weights of {role} ({bytes / 1e6:.0f} MB) in {_time(ns)} would be "
        f"{bytes / ns:.0f} GB/s, of a peak of {peak / 1e9:.0f}"
    ),
    "another-recorded-size": (
        "{role} has N = {n:,}, K = {k:,} in the trace, N = {config_n:,}, K = {config_k:,} in the "
        "config"
    ),
    "cache-of-another-width": lambda bytes, keys, each: (
        f"the cache takes {bytes:,} bytes of keys a token, the config has {keys:,} numbers of "
        f"{_either(each)} bytes"
    ),
    "norm-too-narrow": (
        "the widest norm kernel holds rows of {widest:,}, the config's are {hidden:,} wide"
    ),
    "another-group-of-queries": (
        "the attention kernel is made for {queries} query heads a key, the config has {config}"
    ),
    "another-head-dimension": (
        "the attention kernel is made for heads of {size}, the config has {config}"
    ),
    "another-number-of-heads": lambda heads, config: (
        f"the grid of attention has {heads} query heads, the config {_either(config)} a rank"
    ),
}
