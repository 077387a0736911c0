"""`prunescope demo`: several prunings of one model, each traced and explained.

In: demo.json next to this file, and a folder. Out: in the folder, a run with its report for each
pruning.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import prunescope


def run(out: Path) -> None:
    """Trace each pruning on this machine, and print its verdict.

    Args:
        out: The folder for the runs and their reports.
    """
    from prunescope.analysis.report.listings import verdict
    from prunescope.output import console_for
    from prunescope.tracer.capture.progress import Bar
    from prunescope.tracer.machine.device import pick_device
    from prunescope.tracer.machine.peaks import faster_dtype

    console, chosen = console_for(None), prunings()
    model, methods = chosen["model"], chosen["methods"]
    dtype = faster_dtype(pick_device("auto"), "bf16", "fp32")
    console.print(
        f"{model}, weights of 4 bits dequantised to {dtype}: about {len(methods)} minutes"
    )
    for method, sparsity in methods:
        with Bar() as bar:
            folder = prunescope.trace(
                model=model,
                method=method,
                sparsity=sparsity,
                prompt_len=128,
                decode_steps=4,
                dtype=dtype,
                warmup=1,
                repeats=10,
                steps=5,
                placements=5,
                max_placements=5,
                out=out / method,
                overwrite=True,
                argv=["demo"],
                progress=bar,
            )
        report = prunescope.analyze(folder)
        report.save(folder / "report")
        console.print(verdict(report, name=f"{method} {sparsity:g}", folder=folder))


def prunings() -> dict[str, Any]:
    """Return the model and its prunings: {"model", "methods": [[family, sparsity], ...]}."""
    text = resources.files("prunescope").joinpath("demo.json").read_text(encoding="utf-8")
    plain: dict[str, Any] = json.loads(text)
    return plain
