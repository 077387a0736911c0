"""The rate of fused attention kernels on prompts, by generation, head size and length.

A device and the sizes of an attention give the share of the data sheet's peak that its kernel
reaches. It is apart from that of GEMMs: exponentials and the exchange between the two products cost
more the faster the matrix units are. A generation that nobody measured has the rate of its best
GEMM.
"""

from __future__ import annotations

from msgspec import Struct

from prunescope.analysis.device.hardware import Device


class AttentionRate(Struct, frozen=True):
    """The share of the 16-bit peak that attention of a head size of 128 reaches on long prompts."""

    value: float
    figure: str


ATTENTION = {
    "ampere-100": AttentionRate(
        0.65, "FlashAttention-2 on an A100: 0.50 to 0.73 of the peak by length (arXiv 2307.08691)"
    ),
    "hopper": AttentionRate(
        0.62,
        "594 and 610 of 989 TFLOP/s at 16k and 64k keys, H200 (TensorRT-LLM tech blog 16); 616 at "
        "16k by FlashAttention-3, H100 (arXiv 2407.08608)",
    ),
    "blackwell-100": AttentionRate(
        0.46,
        "1,029 and 1,038 of 2,250 TFLOP/s at 16k and 64k keys, B200 (TensorRT-LLM tech blog 16)",
    ),
}
# Causal attention of a head size of 128 on an H100 by FlashAttention-3 reaches 292, 423, 521, 579,
# 602 and 616 TFLOP/s at 512 to 16k keys (arXiv 2407.08608): S / (S + 500) of the last, within 7 %.
HALF_LENGTH = 500
# A head size of 64 reaches 473 TFLOP/s where 128 reaches 616, and 256 reaches 642 (same source).
SMALL_HEAD, SMALL_HEAD_SHARE = 64, 0.77


def attention_share(device: Device, *, keys: int, head: int) -> float:
    """Return the share of the peak that attention over `keys` keys reaches; 0 where not measured.

    `head` is the size of a head.
    """
    rate = ATTENTION.get(device.architecture or "")
    if rate is None:
        return 0.0
    narrow = SMALL_HEAD_SHARE if head <= SMALL_HEAD else 1.0
    return rate.value * narrow * keys / (keys + HALF_LENGTH)
