"""The meaning of an NVTX range's text: an op that torch ran, a module's call, or an annotation.

In: texts. Out: `Range`. torch's `emit_nvtx` writes `aten::addmm, seq = 7, op_id = 9, sizes =
[[4], [2, 3], [3, 4]]`; the layer hooks of vLLM, SGLang and TensorRT-LLM write `{'Module':
'model.layers.0.mlp.down_proj', 'TrainableParams': {'weight': [2, 3]}, 'Inputs': [[4, 3]]}`.
Whatever else a range is called is its name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from prunescope.analysis.trace.collect import NONE

_SEQUENCE, _OP_ID, _SIZES, _INPUTS = ", seq = ", ", op_id = ", ", sizes = ", ", input_op_ids = "
_MOST_DIGITS = 19  # of an id
# Ops and nodes of autograd have a namespace or a number in autograd; what is not written as a
# function's name is the text of a `record_function`.
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*(?:::[\w.]+)+|nccl:\w+|record_param_comms|triton_\w+")
_NODE = "autograd::engine::evaluate_function"
_HOOK = "{'Module': '"
_MODULE = re.compile(r"\{'Module': '([^']{1,500})'")
_DIMS = r"(\[[\d\[\], ]{0,2000}\])"
_WEIGHT, _FED = re.compile(rf"'weight': {_DIMS}"), re.compile(rf"'Inputs': {_DIMS}")
_LINEAR = "aten::linear"


@dataclass(frozen=True, slots=True)
class Range:
    """`op`: the name of an op with its numbers and the text of its inputs' sizes (JSON), empty for
    none; `name`: that of an annotation or of a module's path, empty for an op alone."""

    name: str
    op: str = ""
    op_id: int = NONE
    sequence: int = NONE
    sizes: str = ""


def read_range(text: str) -> Range:
    """The text of a range, read."""
    if text.startswith(_HOOK):
        return _call_of_hook(text)
    if ", " not in text:
        return Range(text)
    rest, _, _ = text.partition(_INPUTS)
    rest, _, sizes = rest.partition(_SIZES)
    rest, _, op_id = rest.partition(_OP_ID)
    name, _, sequence = rest.partition(_SEQUENCE)
    if not op_id and not sequence and not sizes:
        return Range(text)
    if sequence or _is_op(name):
        return Range("", name, _number(op_id), _number(sequence), sizes)
    return Range(name)


@lru_cache(maxsize=4096)
def _is_op(name: str) -> bool:
    return name.startswith(_NODE) or _FUNCTION.fullmatch(name) is not None


def _call_of_hook(text: str) -> Range:
    """The call of a module: of a linear with its sizes, those of `aten::linear`."""
    found = _MODULE.match(text)
    if found is None:
        return Range(text)
    weight, fed = _WEIGHT.search(text), _FED.search(text)
    if weight is None or fed is None:
        return Range(found[1])
    rows, columns = fed[1].rpartition("]")[0], weight[1]
    inside = rows.partition("]")[0].strip("[ ").split(",")
    matrix = columns.strip("[] ").split(",")
    if len(matrix) != 2 or not inside or inside[-1].strip() != matrix[1].strip():
        return Range(found[1])  # a norm, or a weight that is packed
    first = f"[{', '.join(part.strip() for part in inside)}]"
    return Range(found[1], _LINEAR, NONE, NONE, f"[{first}, {columns}]")


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < _MOST_DIGITS else NONE
