"""Zeros of each weight of a model, and the pattern that they have.

A model comes in; a dict for each matrix goes out, with the fields of `Matrix` in run.json except
layer and role, which follow from its name. Shares are 0 … 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList


@torch.no_grad()
def weight_rows(model: nn.Module) -> list[dict[str, Any]]:
    """Return the row of each weight of two or more dimensions."""
    rows = []
    for path, module in model.named_modules():
        name = path.replace(".base_layer", "")  # the linear inside an adapter of peft
        for parameter_name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() >= 2 and parameter.numel() and parameter.is_floating_point():
                rows.append(_row(name, module, parameter_name, parameter))
    return rows


def _row(
    name: str, module: nn.Module, parameter_name: str, parameter: torch.Tensor
) -> dict[str, Any]:
    """Return the row of a parameter as it is used.

    `applied` names what recomputes the weight in every call: a mask of torch.nn.utils.prune or a
    parametrisation.
    """
    applied = None
    if hasattr(module, "weight_fake_quant"):  # torch.ao.nn.qat
        applied = "torch.ao.quantization"
    if isinstance(module, ParametrizationList):
        name, _, parameter_name = name.rpartition(".parametrizations.")
        parameter, applied = module(), "torch.nn.utils.parametrize"
    elif parameter_name.endswith("_orig"):
        weight_name = parameter_name[: -len("_orig")]
        mask = getattr(module, f"{weight_name}_mask", None)
        if isinstance(mask, torch.Tensor):
            parameter_name = weight_name
            parameter, applied = parameter * mask, "torch.nn.utils.prune"
    leaf = "" if parameter_name == "weight" else f".{parameter_name}"
    zeros = zeros_of(_as_output_by_input(module, parameter))
    return {"name": f"{name}{leaf}", **zeros, "applied": applied}


def zeros_of(weight: torch.Tensor) -> dict[str, Any]:
    """Return the shape and the zeros of one weight [..., N, K]."""
    zero = (weight == 0).contiguous()
    whole = zero.shape[-1] // 4 * 4
    flags = zero.view(torch.uint8)  # amin is six times as fast as `all`
    return {
        "shape": list(weight.shape),
        "zeros": _share(zero),
        "groups_2_of_4": _share(_two_of_four(zero[..., :whole])) if whole else None,
        "zero_rows": _share(flags.amin(-1)),
        "zero_columns": _share(flags.amin(-2)),
    }


def _two_of_four(zero: torch.Tensor) -> torch.Tensor:
    """Return a flag for each group of four that has two zeros at least.

    Clearing the lowest flag of a group's word leaves another one.
    """
    words = zero.reshape(-1).view(torch.int32)
    return (words & (words - 1)) != 0


def _share(flags: torch.Tensor) -> float:
    """Return the share of flags that are set."""
    return int(flags.count_nonzero()) / flags.numel()


def _as_output_by_input(module: nn.Module, parameter: torch.Tensor) -> torch.Tensor:
    """Return a weight as [..., N, K].

    GPT-2's Conv1D stores [K, N], and packed weights are unpacked.
    """
    dense = parameter.detach()
    if type(parameter.data) is not torch.Tensor and hasattr(parameter.data, "to_dense"):
        dense = parameter.data.to_dense()
    return dense.transpose(-1, -2) if type(module).__name__ == "Conv1D" else dense
