"""The meaning of an NVTX range's text: an op that torch ran, a module's call, or an annotation.

In: texts. Out: `Range`. torch's `emit_nvtx` writes `aten::addmm, seq = 7, op_id = 9, sizes = [[4],
[2, 3], [3, 4]]`. The layer hooks of vLLM, SGLang and TensorRT-LLM write `{'Module':
'model.layers.0.mlp.down_proj', 'TrainableParams': {'weight': [2, 3]}, 'Inputs': [[4, 3]]}`. Any
other text is the name of an annotation.
"""

from __future__ import annotations

from functools import lru_cache

from msgspec import Struct

from prunescope.analysis.trace.collector import NONE
from prunescope.taxonomy.lazy_pattern import lazy_pattern

_SEQUENCE, _OP_ID, _SIZES, _INPUTS = ", seq = ", ", op_id = ", ", sizes = ", ", input_op_ids = "
_MOST_DIGITS = 19  # of an id
# Ops and nodes of autograd have a namespace or a number in autograd; what is not written as a
# function's name is the text of a `record_function`.
_FUNCTION = lazy_pattern(r"[A-Za-z_][\w.]*(?:::[\w.]+)+|nccl:\w+|record_param_comms|triton_\w+")
_NODE = "autograd::engine::evaluate_function"
_HOOK = "{'Module': '"
_MODULE = lazy_pattern(r"\{'Module': '([^']{1,500})'")
_DIMS = r"(\[[\d\[\], ]{0,2000}\])"
_WEIGHT, _FED = lazy_pattern(rf"'weight': {_DIMS}"), lazy_pattern(rf"'Inputs': {_DIMS}")
_LINEAR = "aten::linear"


class Range(Struct, frozen=True):
    """An op, an annotation, or both.

    `op` is the name of an op, empty for none, and `sizes` are the sizes of its inputs as JSON.
    `name` is that of an annotation, or the path of a module; it is empty for an op alone.
    """

    name: str
    op: str = ""
    op_id: int = NONE
    sequence: int = NONE
    sizes: str = ""


def read_range(text: str) -> Range:
    """Parse the text of a range."""
    if text.startswith(_HOOK):
        return _read_hook(text)
    if ", " not in text:
        return Range(text)
    front, _, _ = text.partition(_INPUTS)
    front, _, sizes = front.partition(_SIZES)
    front, _, op_id = front.partition(_OP_ID)
    name, _, sequence = front.partition(_SEQUENCE)
    if not op_id and not sequence and not sizes:
        return Range(text)
    if sequence or _is_op(name):
        return Range("", name, _to_number(op_id), _to_number(sequence), sizes)
    return Range(name)


@lru_cache(maxsize=4096)
def _is_op(name: str) -> bool:
    """Return whether a name is written like that of an op or of a node of autograd."""
    return name.startswith(_NODE) or _FUNCTION.fullmatch(name) is not None


def _read_hook(text: str) -> Range:
    """Parse the call of a module that a layer hook wrote; one of a linear is an `aten::linear` too.

    A norm, or a weight that is packed, is read as a module only: its sizes are not those of a GEMM.
    """
    module = _MODULE.match(text)
    if module is None:
        return Range(text)
    weight, fed = _WEIGHT.search(text), _FED.search(text)
    if weight is None or fed is None:
        return Range(module[1])
    rows, columns = fed[1].rpartition("]")[0], weight[1]
    inside = rows.partition("]")[0].strip("[ ").split(",")
    matrix = columns.strip("[] ").split(",")
    if len(matrix) != 2 or not inside or inside[-1].strip() != matrix[1].strip():
        return Range(module[1])  # a norm, or a packed weight
    first = f"[{', '.join(part.strip() for part in inside)}]"
    return Range(module[1], _LINEAR, NONE, NONE, f"[{first}, {columns}]")


def _to_number(text: str) -> int:
    """Parse an id; NONE if the text is no number or too long."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < _MOST_DIGITS else NONE
