"""Number formats of op calls whose sizes alone were recorded, from the kernels that ran them.

In: the kernels frame and calls without formats (torch's emit_nvtx writes none). Out: the calls,
with the format of their tensors where the name of their longest kernel says one. Only of ops all of
whose tensors have one format: a copy or an embedding reads and writes different ones.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import polars as pl

from prunescope.analysis.ops.call import OpCall
from prunescope.analysis.ops.kind import op_kind
from prunescope.analysis.schema.notice import Notice, note
from prunescope.analysis.shapes.slots import formats

_KINDS = ("gemm", "gemv", "batched_gemm", "attention", "norm", "activation", "softmax",
          "elementwise", "reduction")  # fmt: skip
# cuBLAS's nvjet kernels: letters of the operands, of what they add up in, and of the result.
_NVJET = re.compile(r"nvjet_(?:sm\d{2,3}_)?(t|h|s|d)(?:s|d|h)[thsd]_")
_LETTERS = {"t": "bf16", "h": "fp16", "s": "fp32", "d": "fp64"}
_ARGUMENT = re.compile(
    r"\b(?:BFloat16|bfloat16_t|__nv_bfloat16|half_t|__half|float|double)\b|c10::Half\b"
)
_SPELLED = {"float": "fp32", "double": "fp64"}
_NAME_LIMIT = 1024


def with_formats(frame: pl.DataFrame, calls: Sequence[OpCall]) -> list[OpCall]:
    """The calls, with formats where they had none. `frame`: columns call, name, duration."""
    bare = [i for i, call in enumerate(calls) if call.shapes and not call.dtypes]
    found = list(calls)
    if not bare:
        return found
    times = (
        frame.filter(pl.col("call").is_in(bare))
        .group_by("call", "name", maintain_order=True)
        .agg(pl.col("duration").sum())
        .sort("duration", descending=True, maintain_order=True)
    )
    for index, name, _ in times.iter_rows():
        call = found[index]
        if call.dtypes or op_kind(call.name, None) not in _KINDS:
            continue
        if (spelling := format_of(name)) is not None:
            # A size is () where the input is no tensor.
            dtypes = tuple(spelling if shape else "Scalar" for shape in call.shapes)
            found[index] = replace(call, dtypes=dtypes)
    return found


def format_notes(recorded: Sequence[OpCall], calls: Sequence[OpCall]) -> list[Notice]:
    """Return a note on the calls that got a format; none where all were recorded."""
    given = sum(bool(b.dtypes) and not a.dtypes for a, b in zip(recorded, calls, strict=False))
    return [note("formats-of-names", count=given)] if given else []


@lru_cache(maxsize=4096)
def format_of(kernel: str) -> str | None:
    """The format of what a kernel reads, by its name; None where it says none, or several."""
    kernel = kernel[:_NAME_LIMIT]
    if (letters := _NVJET.match(kernel)) is not None:
        return _LETTERS[letters[1]]
    seen = {_plain(word) for word in _ARGUMENT.findall(kernel)}
    if len(seen) == 2 and "fp64" not in seen:  # 16 bits are added up in 32
        seen.discard("fp32")
    if len(seen) == 1:
        return seen.pop()
    return formats(kernel, None)[0] if not seen else None


def _plain(word: str) -> str:
    return _SPELLED.get(word) or ("bf16" if "float16" in word.lower() else "fp16")
