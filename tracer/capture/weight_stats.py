"""Weight statistics: zeros and their pattern in each matrix, and the counts of dynamic modules.

In: a model. Out: WeightStats, which is `census` of run.json.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from prunescope.taxonomy.roles import locate
from prunescope.taxonomy.run_blocks import Matrix, ModuleCounts, WeightStats
from prunescope.tracer.model.compat import inner


@torch.no_grad()
def weight_stats(model: nn.Module) -> WeightStats:
    """Statistics of each weight of two or more dimensions."""
    rows = []
    for path, module in inner(model).named_modules():
        name = path.replace(".base_layer", "")  # the linear inside an adapter of peft
        for parameter_name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() >= 2 and parameter.numel() and parameter.is_floating_point():
                rows.append(_row(name, module, parameter_name, parameter))
    return WeightStats(matrices=rows)


def _row(name: str, module: nn.Module, parameter_name: str, parameter: torch.Tensor) -> Matrix:
    """The statistics of a parameter in use: `applied` names what recomputes the weight in
    every call, a mask of torch.nn.utils.prune or a parametrisation."""
    applied = None
    if hasattr(module, "weight_fake_quant"):  # torch.ao.nn.qat
        applied = "torch.ao.quantization"
    if isinstance(module, ParametrizationList):
        name, _, parameter_name = name.rpartition(".parametrizations.")
        parameter, applied = module(), "torch.nn.utils.parametrize"
    elif parameter_name.endswith("_orig"):
        mask = getattr(module, f"{parameter_name.removesuffix('_orig')}_mask", None)
        if isinstance(mask, torch.Tensor):
            parameter_name = parameter_name.removesuffix("_orig")
            parameter, applied = parameter * mask, "torch.nn.utils.prune"
    leaf = "" if parameter_name == "weight" else f".{parameter_name}"
    return matrix_row(f"{name}{leaf}", _as_output_by_input(module, parameter), applied=applied)


def matrix_row(name: str, weight: torch.Tensor, *, applied: str | None = None) -> Matrix:
    """The statistics of one weight [..., N, K]."""
    place = locate(name)
    zero = (weight == 0).contiguous()
    whole = zero.shape[-1] // 4 * 4
    flags = zero.view(torch.uint8)  # amin is six times as fast as `all`
    return Matrix(
        name=name,
        layer=place.layer,
        role=place.role,
        shape=list(weight.shape),
        zeros=_share(zero),
        groups_2_of_4=_share(_two_of_four(zero[..., :whole])) if whole else None,
        zero_rows=_share(flags.amin(-1)),
        zero_columns=_share(flags.amin(-2)),
        applied=applied,
    )


def _two_of_four(zero: torch.Tensor) -> torch.Tensor:
    """A flag for each group of four: clearing the lowest flag of the word leaves another one."""
    words = zero.reshape(-1).view(torch.int32)
    return (words & (words - 1)) != 0


def dynamic_stats(model: nn.Module) -> dict[str, ModuleCounts]:
    """Counts by module name since the last call; see `tracer.pruners.Counting`."""
    return {
        name: module.prunescope_stats()
        for name, module in model.named_modules()
        if callable(getattr(module, "prunescope_stats", None))
    }


def add_stats(counted: dict[str, ModuleCounts], stats: Mapping[str, ModuleCounts]) -> None:
    """Add the counts of further steps."""
    for name, new in stats.items():
        counts = counted.setdefault(name, ModuleCounts(unit=new.unit))
        counts.active += new.active
        counts.total += new.total


def skips_no_block(stats: Mapping[str, ModuleCounts]) -> bool:
    """Whether, by `dynamic_stats`, there are blocks and all of them were read."""
    blocks = [counts for counts in stats.values() if counts.unit == "blocks"]
    return bool(blocks) and all(counts.active == counts.total for counts in blocks)


def _share(flags: torch.Tensor) -> float:
    return int(flags.count_nonzero()) / flags.numel()


def _as_output_by_input(module: nn.Module, parameter: torch.Tensor) -> torch.Tensor:
    """The weight as [..., N, K]: GPT-2's Conv1D stores [K, N]; packed weights are unpacked."""
    dense = parameter.detach()
    if type(parameter.data) is not torch.Tensor and hasattr(parameter.data, "to_dense"):
        dense = parameter.data.to_dense()
    return dense.transpose(-1, -2) if type(module).__name__ == "Conv1D" else dense
