"""One spelling per number format, and the many spellings found in traces, configs and kernels.

Our names: fp64 fp32 tf32 bf16 fp16 fp8 fp4 nvfp4 mxfp4 int64 int32 int16 int8 int4 bool.
Sizes are bytes per element.
"""

from __future__ import annotations

from collections.abc import Mapping

ITEMSIZE: dict[str, float] = {
    "fp64": 8, "fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "fp4": 0.5,
    # Blocks of 16 numbers with a scale of 8 bits (NVIDIA), and of 32 (Open Compute Project).
    "nvfp4": 4.5 / 8, "mxfp4": 4.25 / 8,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "int4": 0.5, "bool": 1,
}  # fmt: skip

# Formats that weights and inputs are converted to before a product runs in them.
QUANTISED = frozenset({"int8", "fp8", "fp4", "nvfp4", "mxfp4"})

# The spellings of kineto ("c10::BFloat16"), torch ("torch.bfloat16"), configs and kernel names.
_WRITTEN = {
    "fp64": ("double", "float64"),
    "fp32": ("float", "float32"),
    "bf16": ("c10::bfloat16", "bfloat16"),
    "fp16": ("c10::half", "half", "float16"),
    "fp8": (
        "c10::float8_e4m3fn", "c10::float8_e5m2", "c10::float8_e4m3fnuz", "c10::float8_e5m2fnuz",
        "c10::float8_e8m0fnu", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz",
        "float8_e5m2fnuz", "float8_e8m0fnu", "float8", "fp8_e4m3", "fp8_e5m2", "fp8e4nv", "fp8e5",
    ),
    "fp4": ("c10::float4_e2m1fn_x2", "float4_e2m1fn_x2"),
    "int64": ("long int", "long", "long long", "int64_t", "unsigned long", "unsigned long int"),
    "int32": ("int", "unsigned int"),
    "int16": ("short", "short int", "unsigned short"),
    "int8": (
        "signed char", "unsigned char", "char", "uint8", "uint8_t", "int8_t", "c10::quint8",
        "c10::qint8",
    ),
}  # fmt: skip
_SPELLINGS = {spelling: name for name, spellings in _WRITTEN.items() for spelling in spellings}


def dtype(spelling: str | None) -> str | None:
    """Return our name for a number format, from any known spelling; None if it is not one."""
    if not spelling:
        return None
    name = spelling.strip().lower().removeprefix("torch.")
    return name if name in ITEMSIZE else _SPELLINGS.get(name)


def itemsize(name: str | None) -> float | None:
    """Return the bytes per element of one of our dtype names; None if the name is unknown."""
    return None if name is None else ITEMSIZE.get(name)


# fp32 as three products of TF32, as CUTLASS calls it.
THREE_TF32 = "3xtf32"


def three_tf32_rate(rates: Mapping[str, float]) -> float | None:
    """Return the FLOP/s of fp32 as three products of TF32, a third of TF32's; None: not known."""
    tf32 = rates.get("tf32")
    return None if tf32 is None else tf32 / 3
