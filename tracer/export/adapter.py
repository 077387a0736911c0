"""The recovery training as a PEFT adapter next to the pruned weights, unmerged: `--save-adapter`.

In: the trained adapters of a model, before they are merged. Out: adapter/ in the folder of the
saved model, which `peft.PeftModel.from_pretrained` loads.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.tracer.export.checking import reference_logits

FOLDER = "adapter"
_FILE = "adapter_model.safetensors"  # as peft names it
_PREFIX = "base_model.model."  # of its keys


@dataclass(frozen=True, kw_only=True)
class UnmergedAdapter:
    """A trained adapter, and the weights without it.

    `matrices`: by the names that peft reads; `weights`: parameters that merging will change;
    `ids` and `logits`: those of `reference_logits`, with the adapter.
    """

    config: Any
    matrices: dict[str, torch.Tensor]
    weights: dict[str, torch.Tensor]
    ids: torch.Tensor
    logits: torch.Tensor


class AdapterKeeper:
    """A keeper of what a training leaves, as merging changes the weights in place."""

    def __init__(self) -> None:
        self.adapter: UnmergedAdapter | None = None

    def check(self, adapters: Any) -> None:
        """Refuse adapters that PEFT cannot hold, before they are trained.

        Raises:
            PrunescopeError: The zeros of some matrices stay zeros, which an adapter would fill.
        """
        if adapters.masked:
            raise PrunescopeError(
                f"an adapter would fill the zeros of {len(adapters.masked)} matrices, which stay "
                "zeros where it is merged",
                hint="remove --save-adapter: the trained weights are saved merged",
            )

    @torch.no_grad()
    def keep(self, adapters: Any) -> None:
        """Keep trained adapters, and the weights that they will be added to."""
        ids, logits = reference_logits(adapters.model)
        names = {id(p): n for n, p in adapters.model.named_parameters()}
        bases = {path: module.get_base_layer() for path, module in adapters.modules.items()}
        assert all(id(base.weight) in names for base in bases.values())
        self.adapter = UnmergedAdapter(
            config=adapters.config,
            matrices={
                f"{_PREFIX}{path}.lora_{letter}.weight": parameter.detach().cpu().clone()
                for name, parameter in adapters.parameters.items()
                for path, _, letter in (name.rpartition("."),)
            },
            weights={f"{path}.weight": b.weight.detach().clone() for path, b in bases.items()},
            ids=ids,
            logits=logits,
        )


def write_adapter(folder: Path, adapter: UnmergedAdapter, base: str) -> None:
    """Write an adapter into a subfolder of a saved model.

    Args:
        folder: The folder of the saved model.
        adapter: The adapter.
        base: The name of the saved model, for adapter_config.json.
    """
    target = folder / FOLDER
    target.mkdir()
    config = adapter.config
    config.task_type, config.base_model_name_or_path, config.inference_mode = (
        "CAUSAL_LM",
        base,
        True,
    )
    config.save_pretrained(target)
    save_file(adapter.matrices, target / _FILE, metadata={"format": "pt"})
