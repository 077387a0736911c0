"""The words of peak rates that were disturbed, are unknown, or differ between two measurements."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

_BANDWIDTH = "bandwidth"
_USED = {
    "before": "the higher one",
    "after": "the higher one",
    "reached": "what a GEMM of the run reached",
    "calibrated": "what `prunescope calibrate` measured",
    "given": "the one that was given",
}


def rate(per_s: float, peak: str) -> str:
    """Return a peak with its unit: "989 TFLOP/s", or of the bandwidth "3.35e+03 GB/s"."""
    if peak == _BANDWIDTH:
        return f"{per_s / 1e9:.3g} GB/s"
    return f"{per_s / 1e12:.3g} TFLOP/s"


def _named(peak: str) -> str:
    return "the bandwidth" if peak == _BANDWIDTH else f"the {peak} peak"


def _moved(peaks: Sequence[Mapping[str, Any]]) -> str:
    each = "; ".join(_moved_peak(**numbers) for numbers in peaks)
    return f"{each}: something else ran, or the clock fell"


def _moved_peak(peak: str, before: float, after: float, used: str) -> str:
    return (
        f"{_named(peak)} was measured as {rate(before, peak)} before the capture and "
        f"{rate(after, peak)} after it (bounds use {_USED[used]})"
    )


def _below(peaks: Sequence[Mapping[str, Any]]) -> str:
    each = "; ".join(_lower_peak(**numbers) for numbers in peaks)
    return (
        f"by `prunescope calibrate` {each}: the device was slower then, or the calibration is of "
        "another time; shares of bounds may be too low"
    )


def _lower_peak(peak: str, calibrated: float, most: float) -> str:
    return (
        f"{_named(peak)} is {rate(calibrated, peak)}, and was at most {rate(most, peak)} around "
        "this capture"
    )


def _unknown(*, device: str | None, on_device: bool, like: Sequence[str]) -> str:
    name = device or "a device that the trace does not name"
    how = "name one with --device, or give --peak bf16=TFLOPS and --bandwidth GB/s"
    if not on_device:
        name = "the CPU that it ran on"
        how = (
            "`prunescope calibrate` there measures them for --peak fp32=TFLOPS and --bandwidth GB/s"
        )
    if like:
        how = f"its SMs and memory are those of {' and '.join(like)}: --device {like[0]}"
    return f"peaks of {name} are not known: bounds are null; {how}"


WORDS: dict[str, str | Callable[..., str]] = {
    "peaks-moved": _moved,
    "peaks-below-calibration": _below,
    "peaks-disturbed": (
        "every measurement of the peaks was disturbed ({reasons:list}): they may be too low, and "
        "shares of a bound too high"
    ),
    "peaks-unknown": _unknown,
    "peaks-of-another-device": (
        "{phase} ran on {device}, and the peaks are those of {peaks}: its bounds are null; "
        "--device takes the peaks of one device for all ranks"
    ),
    "peaks-of-sides-differ": lambda peak, dense, pruned: (
        f"the {peak} peak was measured as {rate(dense, peak)} around the dense run and "
        f"{rate(pruned, peak)} around the pruned one: something else ran, or the clock fell; "
        "bounds of both use the higher one"
    ),
}
