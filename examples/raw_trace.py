"""A torch.profiler trace that can be explained: shapes, a warm-up, and a name for each step.

python examples/raw_trace.py [FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import LlamaConfig, LlamaForCausalLM

import prunescope


def trace(intermediate: int, path: Path) -> None:
    """Three profiled prefills of a tiny Llama, as a Chrome trace."""
    config = LlamaConfig(
        hidden_size=128, intermediate_size=intermediate, num_hidden_layers=4, vocab_size=512,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    ids = torch.arange(128).reshape(1, 128)
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        model, ids = model.cuda(), ids.cuda()
        activities.append(ProfilerActivity.CUDA)
    with torch.no_grad():
        for _ in range(3):
            model(ids)
        with profile(activities=activities, record_shapes=True) as profiler:
            for step in range(3):
                with record_function(f"ProfilerStep#{step}"):
                    model(ids)
    profiler.export_chrome_trace(str(path))


def main(folder: Path) -> None:
    """Trace both sides, and name the pruning from the traces alone."""
    folder.mkdir(parents=True, exist_ok=True)
    dense, pruned = folder / "dense.json", folder / "pruned.json"
    trace(512, dense)
    trace(256, pruned)
    report = prunescope.analyze(pruned, baseline=dense, sparsity=0.5)
    report.show()
    assert next(iter(report.phases.values())).family.id == "static-nk-mlp"


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "traces"))
