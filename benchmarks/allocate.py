"""A plan of `allocate` against families that cut all layers alike, on SmolLM2-135M.

    python benchmarks/allocate.py --measure traces/allocation   # alone on a core, half an hour
    python benchmarks/evidence.py traces/allocation allocation
    python benchmarks/allocate.py                               # writes allocate.md

The plan is made from a dense run and from the losses of single removals, then measured next to
three families at about its speed, and scored on the half of the text that it has not seen. A
command that was done is not run again. The page follows from benchmarks/runs/allocation.tar.xz.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from evidence import unpacked

import prunescope
from prunescope.taxonomy.runs.run import read_run

PAGE = HERE / "allocate.md"
SPEEDUP, PLAN = 1.3, "plan"
_MODEL = "--model smollm2-135m-instruct"
_TRACE = (
    f"prunescope trace {_MODEL} --phase prefill --prompt-len 256 --repeats 12 --placements 6 "
    "--max-placements 6 --perplexity"
)
# By the folder or file that each leaves.
COMMANDS = {
    "dense": f"prunescope trace {_MODEL} --prompt-len 256 --repeats 12 --placements 6 --out dense",
    "plan.json": f"prunescope allocate {_MODEL} --from-run dense --speedup {SPEEDUP} "
    "--phase prefill --prompt-len 256 --out plan.json",
    PLAN: f"{_TRACE} --method plan.json --out plan",
    "static-nk-mlp": f"{_TRACE} --method static-nk-mlp --sparsity 0.45 --select importance "
    "--out static-nk-mlp",
    "static-nk": f"{_TRACE} --method static-nk --sparsity 0.25 --select importance --out static-nk",
    "static-m": f"{_TRACE} --method static-m --sparsity 0.23 --select importance --out static-m",
}
FAMILIES = [name for name in COMMANDS if name.startswith("static")]


def measure(folder: Path) -> None:
    """Run the commands whose results are not in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, command in COMMANDS.items():
        if not (folder / name).exists():
            module = [sys.executable, "-m", *shlex.split(command)]
            subprocess.run(module, cwd=folder, check=True)


def page(runs: Path) -> str:
    """Return the page of the runs in a folder."""
    plan = prunescope.AllocationPlan.load(runs / "plan.json").to_dict()
    measured = {name: _measured(runs / name) for name in (PLAN, *FAMILIES)}
    run = read_run(runs / PLAN / "dense")
    dense = run.quality
    assert dense is not None and dense.text is not None and dense.perplexity is not None
    expected, ours = plan["expected"], measured[PLAN]
    low, high = expected["range"]
    is_inside = low <= ours["speedup"] <= high
    lines = [
        "# A plan of `allocate` against families that cut all layers alike",
        "",
        f"SmolLM2-135M-Instruct, {run.dtype}, one core of an {run.device.name} that did nothing "
        f"else (`taskset -c 0`), torch {run.versions['torch']}, transformers "
        f"{run.versions['transformers']}. Prefill of 256 tokens; 12 samples of each model in turns "
        "over 6 placements of the weights in memory.",
        "",
        "```",
        *COMMANDS.values(),
        "```",
        "",
        f"**The plan reaches {_times(ours['speedup'], ours['speedup_ci95'])}** of the "
        f"{SPEEDUP:g}× that was asked for, {'inside' if is_inside else 'outside'} its expected "
        f"range of {low:.2f} to {high:.2f}.",
        "",
        f"Loss: perplexity ÷ that of the dense model ({dense.perplexity:.2f}) − 1, without "
        f"training, on {dense.scored_tokens:,} tokens of the evaluation half of "
        f"{dense.text.source}. The plan's removals were measured on the calibration half of the "
        f"same text: single ones add up to "
        f"{expected['loss']:.3f} nats a token there, all together cost "
        f"{expected['loss_measured']:.3f}. 95 % intervals in brackets.",
        "",
        "| model | sparsity | speedup | loss | beside the plan |",
        "|:--|--:|--:|--:|:--|",
        *_rows(measured),
        "",
        *_kept(plan),
        "",
        "Runs: runs/allocation.tar.xz; `make pages` makes this page from them and packs them as "
        "benchmarks/bundles/allocation.zip.",
        "",
    ]
    return "\n".join(lines)


def _measured(run: Path) -> dict[str, Any]:
    """Return speedup and loss of a run, each with its interval of 95 %, and what it pruned."""
    ladder = prunescope.analyze(run).to_dict()["phases"]["prefill"]["ladder"]
    pruned = read_run(run / "pruned")
    quality, pruning = pruned.quality, pruned.pruning
    assert quality is not None and pruning is not None
    return {
        "speedup": ladder["realised"],
        "speedup_ci95": ladder["realised_ci95"],
        "loss": quality.perplexity_rel,
        "loss_ci95": quality.perplexity_rel_ci95,
        "sparsity": pruning.sparsity,
    }


def _rows(measured: dict[str, dict[str, Any]]) -> Iterator[str]:
    ours = measured[PLAN]
    for name, theirs in measured.items():
        low, high = (f"{100 * bound:+.1f} %" for bound in theirs["loss_ci95"])
        loss = f"{100 * theirs['loss']:+.1f} % [{low}, {high}]"
        speed = _times(theirs["speedup"], theirs["speedup_ci95"])
        sparsity = "by layer" if name == PLAN else f"{theirs['sparsity']:g}"
        yield f"| {name} | {sparsity} | {speed} | {loss} | {_verdict(ours, theirs)} |"


def _verdict(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """Return how a model compares with the plan: what intervals that overlap leave undecided."""
    if theirs is ours:
        return "–"
    words = []
    for key, more, less in (("speedup", "faster", "slower"), ("loss", "loses more", "loses less")):
        low, high = theirs[f"{key}_ci95"]
        our_low, our_high = ours[f"{key}_ci95"]
        undecided = f"{key} undecided"
        words.append(more if low > our_high else less if high < our_low else undecided)
    return ", ".join(words)


def _kept(plan: dict[str, Any]) -> Iterator[str]:
    """Yield a table of what the plan keeps, layers that keep the same in one row."""
    layers: dict[tuple[int, int], list[str]] = {}
    for layer in plan["layers"]:
        kept = (0, 0) if layer.get("dropped") else (layer["kv_heads"], layer["channels"])
        layers.setdefault(kept, []).append(str(layer["layer"]))
    yield "| KV heads of 3 | channels of 1,536 | layers |"
    yield "|--:|--:|:--|"
    for (heads, channels), numbers in sorted(layers.items(), reverse=True):
        yield f"| {heads} | {channels:,} | {', '.join(numbers)} |"


def _times(value: float, interval: list[float]) -> str:
    return f"{value:.2f}× [{interval[0]:.2f}, {interval[1]:.2f}]"


def main() -> None:
    """Measure into a folder, or write the page of the kept runs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--measure", type=Path, metavar="FOLDER", help="run what is not in it")
    folder = parser.parse_args().measure
    if folder is not None:
        measure(folder)
        return
    with unpacked("allocation") as runs:
        PAGE.write_text(page(runs), encoding="utf-8")


if __name__ == "__main__":
    main()
