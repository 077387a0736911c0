"""Static K, 2:4: two of every four weights along K are zeroed, in every projection of the layers.

On NVIDIA GPUs with sparse tensor cores the weights are stored packed and multiplied by sparse
kernels. Elsewhere they are zeros in dense tensors on dense kernels, which the record notes.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.sparse import to_sparse_semi_structured
from transformers import PreTrainedModel

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families.static_k_24 import checked
from prunescope.taxonomy.runs.run_blocks import Record
from prunescope.tracer.calibration.collect import input_squares
from prunescope.tracer.calibration.point import Point
from prunescope.tracer.calibration.scores import random_scores, weight_scores
from prunescope.tracer.machine.backends import HIP, backend_of
from prunescope.tracer.model.weights import expert_notes, layer_matrices, weight_of
from prunescope.tracer.pruners import Applied

# The compute capability of the first GPUs with sparse tensor cores.
_FIRST_SPARSE = (8, 0)


def prune(model: PreTrainedModel, point: Point) -> Applied:
    """Zero the two lowest scores of each four along K, and pack the weights if the device can."""
    checked(point.sparsity)
    matrices = layer_matrices(model)
    record: Record = {"matrices": len(matrices), "notes": expert_notes(model)}
    packed = _wants_packed(str(point.knobs["backend"]), next(iter(matrices.values())), record)
    squares = input_squares(model, point, names=matrices.keys(), record=record)
    zeros = total = 0
    for path, module in matrices.items():
        weight = weight_of(module)
        if point.uses_importance:
            scores = weight_scores(weight, squares[path])
        else:
            scores = random_scores(weight.shape, seed=point.seed, what=f"2:4 {path}")
        mask = lowest_two_of_four(scores).to(weight.device)
        weight.masked_fill_(mask, 0)
        zeros, total = zeros + int(mask.sum()), total + mask.numel()
    record |= {"zeros": zeros / total, "backend": "semi-structured" if packed else "masked"}
    if packed:
        _pack(matrices, record, strict=point.knobs["backend"] == "semi-structured")
    return Applied(model=model, record=record)


def lowest_two_of_four(scores: Tensor) -> Tensor:
    """Mark the two lowest scores of every four neighbours along the last axis of [N, K].

    The K mod 4 last columns are in no group and stay.
    """
    whole = scores.shape[1] // 4 * 4
    mask = torch.zeros_like(scores, dtype=torch.bool)
    groups = scores[:, :whole].unflatten(1, (-1, 4))
    lowest = groups.topk(2, dim=-1, largest=False).indices
    chosen = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, lowest, value=True)
    mask[:, :whole] = chosen.flatten(1)
    return mask


def _wants_packed(backend: str, module: nn.Module, record: Record) -> bool:
    """Return whether to pack the weights, and note the reason if not.

    Raises:
        PrunescopeError: Packing was requested and is not possible.
    """
    if backend == "masked":
        reason = "backend=masked"
    else:
        reason = _missing(module.weight)  # type: ignore[arg-type]
        if backend == "semi-structured" and reason:
            raise PrunescopeError(
                f"backend=semi-structured cannot be used: {reason}",
                hint="backend=auto masks weights that cannot be packed, and notes it",
            )
    if reason:
        record["notes"].append(f"zeros are in dense tensors on dense kernels: {reason}")
    return not reason


def _missing(weight: Tensor) -> str:
    """Return why the device or dtype cannot use sparse tensor cores; an empty text if it can."""
    backend = backend_of(weight.device)
    if not backend.has_sparse_units:
        device = "an AMD GPU" if backend is HIP else f"the device {weight.device.type}"
        return f"torch packs 2:4 weights for NVIDIA GPUs, and this is {device}"
    capability = backend.call("get_device_capability", weight.device)
    if capability < _FIRST_SPARSE:
        return f"compute capability {capability[0]}.{capability[1]} has no sparse tensor cores"
    if weight.dtype not in (torch.float16, torch.bfloat16):
        return f"packed weights are float16 or bfloat16, and these are {weight.dtype}"
    return ""


def _pack(matrices: dict[str, nn.Module], record: Record, *, strict: bool) -> None:
    """Store each masked weight as half its values and their indices, if its shape allows it."""
    left = []
    for path, module in matrices.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # it says that the API is a prototype
                flag = weight_of(module).requires_grad
                module.weight = nn.Parameter(_packed(module), requires_grad=flag)
        except (RuntimeError, ValueError) as error:
            left.append(path)
            reason = next(iter(str(error).splitlines()), type(error).__name__)
    record["packed"] = len(matrices) - len(left)
    if not left:
        return
    sentence = f"{len(left)} of {len(matrices)} matrices cannot be packed ({reason[:160]})"
    if strict:
        raise PrunescopeError(sentence, hint="backend=auto leaves those masked, and notes it")
    record["notes"].append(f"{sentence}: they stay dense tensors")
    if not record["packed"]:
        record["backend"] = "masked"


def _packed(module: nn.Module) -> Tensor:
    if not isinstance(module, nn.Linear):
        raise ValueError(f"{type(module).__name__} stores its weight transposed")
    return to_sparse_semi_structured(module.weight.detach())
