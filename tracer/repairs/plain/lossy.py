"""Changes of the numbers of a model: half precision, and 2:4 storage.

In: a model. Out: the same model, whose outputs differ by more than rounding.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.sparse import to_sparse_semi_structured

from prunescope.tracer.repairs.plain.linear_maps import FAILURES, DoesNotApply, working_dtype


@torch.no_grad()
def use_half_precision(model: nn.Module) -> nn.Module:
    """Convert the model to bfloat16."""
    dtype = working_dtype(model)
    if dtype not in (torch.float32, torch.float64):
        raise DoesNotApply(f"the model computes in {dtype}")
    return model.to(torch.bfloat16)


@torch.no_grad()
def store_two_of_four(model: nn.Module) -> nn.Module:
    """Store weights of which two in four are zero in the format of sparse tensor cores."""
    count = 0
    for module in model.modules():
        if not isinstance(module, nn.Linear) or module.weight.shape[1] % 4:
            continue
        groups = (module.weight.view(len(module.weight), -1, 4) != 0).sum(-1)
        if int(groups.max()) > 2:
            continue
        try:
            sparse = to_sparse_semi_structured(module.weight.data)
        except FAILURES as error:
            raise DoesNotApply("this device or format has no 2:4 kernels") from error
        module.weight = nn.Parameter(sparse, requires_grad=False)
        count += 1
    if not count:
        raise DoesNotApply("no weight has two zeros in every four")
    return model
