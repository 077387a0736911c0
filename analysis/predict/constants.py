"""The numbers of the execution model that no shape gives: one a mechanism, none a family.

Each is read from a figure of arXiv 2606.09080 for one layer or one model (RTX Pro 6000, batch 1,
32k, s = 0.5), or from published ceilings; `low` and `high` say how far other devices may differ.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace


@dataclass(frozen=True, slots=True)
class Constant:
    """A number of one mechanism: its value, the range elsewhere, and where it is read from."""

    value: float
    low: float
    high: float
    unit: str
    term: str
    mechanism: str
    figure: str


TABLE: dict[str, Constant] = {
    "gemm_share": Constant(
        0.80, 0.51, 0.87, "of the data sheet", "achievable",
        "the best GEMM, on a device without a published ceiling",
        "published ceilings: A100 0.87, H100 0.80, B200 0.78, RTX Pro 6000 0.69, MI300X 0.51"),
    "stream_share": Constant(
        0.85, 0.75, 0.92, "of the data sheet", "achievable",
        "a kernel that streams from memory",
        "Fig. 2, decode: lm_head reads 1.05 GB in 4.6 % of 14.97 ms, 1,525 of 1,792 GB/s"),
    "sparse_compute": Constant(
        1.68, 1.1, 2.0, "x half of the dense time", "sparse_kernel",
        "a compute-bound 2:4 GEMM",
        "Fig. 6, prefill, 2:4: 64.11 of 67.32 ms, less its layout copies"),
    "gathered_kernel": Constant(
        1.22, 1.0, 1.4, "x the time of contiguous rows", "gathered",
        "a kernel on rows that are chosen at run time",
        "Fig. 6, prefill, dynamic M: 44.32 of 67.32 ms, less gather, scatter and what is kept"),
    "unfused": Constant(
        2.0, 1.0, 3.0, "x the traffic of fused ones", "elementwise",
        "element-wise kernels read again what their neighbours wrote",
        "Fig. 2, prefill: element-wise 10.8 % of 2.19 s"),
    "ramp_ns": Constant(
        2600, 1500, 4000, "ns a kernel", "kernel",
        "a kernel fills the device and drains it",
        "Fig. 2, decode: element-wise 3.4 % of 14.97 ms over 6 kernels of 32 layers"),
    "launch_ns": Constant(
        1700, 800, 2500, "ns a kernel", "launch",
        "the device idles between two kernels of a replayed graph",
        "Fig. 2, decode: graph launch 5.2 % of 14.97 ms; Fig. 6, decode: 7 more kernels of low "
        "rank are +31 % of what is not GEMM or attention"),
    "dispatch_ns": Constant(
        8000, 4000, 20000, "ns a kernel", "launch",
        "the host dispatches one kernel in eager mode",
        "not in the paper (graphs everywhere): a guess"),
    "gather_rate": Constant(
        0.32, 0.15, 0.85, "of a streaming kernel", "added",
        "rows gathered and scattered by index",
        "Fig. 6, prefill, dynamic M: +42 % of what is not GEMM or attention"),
    "cache_passes": Constant(
        1.0, 0.0, 1.5, "passes over the KV cache", "added",
        "attention on rows chosen at run time prepares its cache in every layer, skipped or not",
        "Fig. 6, decode, dynamic M: 597.93 and, skipped, 184.97 us: both about 100 us above "
        "their parts; one pass over 134 MB is 88 us"),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """The values in use, by name; units as in TABLE."""

    gemm_share: float = TABLE["gemm_share"].value
    stream_share: float = TABLE["stream_share"].value
    sparse_compute: float = TABLE["sparse_compute"].value
    gathered_kernel: float = TABLE["gathered_kernel"].value
    unfused: float = TABLE["unfused"].value
    ramp_ns: float = TABLE["ramp_ns"].value
    launch_ns: float = TABLE["launch_ns"].value
    dispatch_ns: float = TABLE["dispatch_ns"].value
    gather_rate: float = TABLE["gather_rate"].value
    cache_passes: float = TABLE["cache_passes"].value


DEFAULT = Constants()


def ends(terms: frozenset[str]) -> list[tuple[str, Constants, Constants]]:
    """(name, low, high) of every constant of `terms`, the others at their values."""
    return [
        (
            field.name,
            replace(DEFAULT, **{field.name: TABLE[field.name].low}),
            replace(DEFAULT, **{field.name: TABLE[field.name].high}),
        )
        for field in fields(Constants)
        if TABLE[field.name].term in terms
    ]
