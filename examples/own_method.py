"""A pruning method of your own, traced against its dense baseline and explained.

python examples/own_method.py [FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import prunescope


def narrow_mlps(model: torch.nn.Module, sparsity: float) -> torch.nn.Module:
    """Keep the first channels of every MLP: N of gate and up falls, and K of down."""
    for layer in model.model.layers:
        mlp = layer.mlp
        keep = round(mlp.up_proj.out_features * (1 - sparsity))
        for linear in (mlp.gate_proj, mlp.up_proj):
            linear.weight = torch.nn.Parameter(linear.weight[:keep].detach().clone())
            linear.out_features = keep
        mlp.down_proj.weight = torch.nn.Parameter(mlp.down_proj.weight[:, :keep].detach().clone())
        mlp.down_proj.in_features = keep
    return model


def main(folder: Path) -> None:
    """Trace a tiny model of random weights, and show what became of the promise."""
    sys.path.insert(0, str(Path(__file__).parent))  # so that own_method can be imported by name
    run = prunescope.trace(
        "tiny-llama", method="own_method:narrow_mlps", sparsity=0.5, phase="prefill",
        prompt_len=128, repeats=5, steps=2, out=folder / "own-method", overwrite=True,
    )  # fmt: skip
    report = prunescope.analyze(run)
    report.show()
    assert report.phases["prefill"].family.id == "static-nk-mlp"


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "traces"))
