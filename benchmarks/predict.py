"""How near `predict` comes to published measurements, and which family wins where.

    python benchmarks/predict.py

Reads paper_figures.json, writes predict.md beside this file. No GPU, no weights; under a minute.
Exit code 1 where a goal of accuracy is missed.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from prunescope.analysis.predict.constants import TABLE, Constants  # noqa: E402
from prunescope.analysis.predict.execution import NAMES, total_ns  # noqa: E402
from prunescope.analysis.predict.setting import PredictRequest, Setting, resolve, workloads  # noqa: E402
from prunescope.taxonomy.errors import PrunescopeError  # noqa: E402
from prunescope.taxonomy.families import family  # noqa: E402
from prunescope.taxonomy.plan import Workload  # noqa: E402

PAPER = json.loads((Path(__file__).parent / "paper_figures.json").read_text(encoding="utf-8"))
FAMILIES = tuple(dict.fromkeys(row[0] for row in PAPER["figure_5"]))
# Of Fig. 5 by family, without its batch-1 32k column: (phase, batch, length, measured speed-up).
CELLS: dict[str, list[tuple[str, int, int, float]]] = {
    name: [tuple(row[1:]) for row in PAPER["figure_5"] if row[0] == name and row[2:4] != [1, 32768]]
    for name in FAMILIES
}
# Every constant at the value at which its mechanism costs nothing; shapes and ceilings stay.
NEUTRAL = Constants(
    gemm_share=1.0, stream_share=1.0, sparse_compute=1.0, gathered_kernel=1.0, unfused=1.0,
    ramp_ns=0.0, launch_ns=0.0, dispatch_ns=0.0, gather_rate=math.inf, cache_passes=0.0,
)  # fmt: skip
GOALS = {"static": 0.05, "dynamic": 0.12}
KINDS = {kind: [name for name in FAMILIES if family(name).dynamics == kind] for kind in GOALS}
NEAR, SHARE = 0.15, 0.90

MODELS = (
    ("llama-2-7b", "MHA"), ("llama-3.2-1b", "GQA"), ("llama-3.1-8b", "GQA"),
    ("llama-3.1-70b", "GQA"), ("gemma-2b", "MQA"), ("deepseek-v2-lite", "MLA, experts"),
    ("mistral-7b", "sliding window"), ("gemma-3-12b", "hybrid: 5 of 6 layers sliding"),
    ("gpt-oss-20b", "hybrid: 1 of 2 layers sliding, experts"),
    ("qwen3-next-80b-a3b", "hybrid: 3 of 4 layers linear attention, experts"),
    ("lfm2-1.2b", "hybrid: 10 of 16 layers short convolution"),
)  # fmt: skip
DEVICES = ("a100-80gb-sxm", "h100-sxm", "b200", "rtx-pro-6000-blackwell", "mi300x")
LOADS = (
    ("prefill", 1, 1024), ("prefill", 1, 32768), ("decode", 1, 1024), ("decode", 8, 1024),
    ("decode", 32, 1024), ("decode", 16, 32768),
)  # fmt: skip


def setting_of(
    method: str | None, phase: str, *, model: str = "llama-3.1-8b",
    device: str = "rtx-pro-6000-blackwell", load: tuple[int, int] = (1, 32768),
    logits: str = "all",
) -> tuple[Setting, Workload]:  # fmt: skip
    """A point at s = 0.5 and its workload."""
    request = PredictRequest(model=model, device=device, phase=phase, batch=load[0],
                             prompt_len=load[1], logits=logits)  # fmt: skip
    setting, _ = resolve(request, method, 0.5, [])
    (work,) = workloads(request, setting)
    return setting, work


def errors(constants: Constants | None, terms: Collection[str] = NAMES) -> dict[str, list[float]]:
    """Predicted over measured - 1 of the validation CELLS, by family."""
    found: dict[str, list[float]] = {name: [] for name in FAMILIES}
    for name, cells in CELLS.items():
        for phase, batch, length, measured in cells:
            setting, work = setting_of(name, phase, load=(batch, length))
            if constants is not None:
                setting = replace(setting, constants=constants)
            setting = replace(setting, terms=terms)
            found[name].append(setting.execution_gain(work) / measured - 1)
    return found


def summary(values: Iterable[float]) -> tuple[float, float, float]:
    """Median, 90th percentile (nearest rank) and share within 15 % of the sizes of errors."""
    sizes = sorted(abs(v) for v in values)
    rank = sizes[math.ceil(0.9 * len(sizes)) - 1]
    return statistics.median(sizes), rank, sum(v <= NEAR for v in sizes) / len(sizes)


def layer_ns(method: str | None, phase: str) -> float:
    """One layer of the model at batch 1 and 32k: a model of n layers less one of n - 1."""
    setting, work = setting_of(method, phase)
    fewer = replace(setting, shape=replace(setting.shape, layers=setting.shape.layers - 1))
    pruned = method is not None
    whole = total_ns(setting.side(work, pruned=pruned), NAMES)
    return whole - total_ns(fewer.side(work, pruned=pruned), NAMES)


def main() -> int:
    """Write the page; 1 where a goal is missed."""
    plain = errors(None, terms=())
    sets = {"all constants": errors(None), "none set": errors(NEUTRAL), "roofline": plain}
    text = [_head(), _accuracy(sets), _constants(), _layer(), _derived(), _winners()]
    out = Path(__file__).with_suffix(".md")
    out.write_text("\n\n".join(text) + "\n", encoding="utf-8")
    return 1 if _missed(sets["all constants"]) else 0


def _missed(found: dict[str, list[float]]) -> bool:
    every = [v for values in found.values() for v in values]
    medians = {kind: summary(_kind(found, kind))[0] for kind in GOALS}
    return any(medians[k] > GOALS[k] for k in GOALS) or summary(every)[2] < SHARE


def _kind(found: dict[str, list[float]], kind: str) -> list[float]:
    return [v for name in KINDS[kind] for v in found[name]]


def _head() -> str:
    return (
        "# What `predict` says, against published measurements\n\n"
        "Made by `python benchmarks/predict.py`; nothing is run. Measurements: "
        f"{PAPER['source']}. A cell is one family, phase, batch and length of its Fig. 5; the "
        "batch-1 32k column is left out, because Figs. 2 and 6, from which the constants are read, "
        "are of that point. 84 cells are left."
    )


def _accuracy(sets: dict[str, dict[str, list[float]]]) -> str:
    rows = [
        "## Error of the predicted speed-up\n",
        "Size of predicted ÷ measured − 1: median, 90th percentile, share within 15 %. *None set*: "
        "every constant where its mechanism costs nothing; tiles, waves, the published GEMM "
        "ceiling and the work that each family adds stay. *Roofline*: data sheet alone.\n",
        "| family | cells | all constants | none set | roofline | worst cell, all |",
        "|---|---|---|---|---|---|",
    ]
    groups = [(name, [name]) for name in FAMILIES]
    groups += [(f"**all {kind}**", names) for kind, names in KINDS.items()]
    groups.append(("**all**", list(FAMILIES)))
    for label, names in groups:
        cells = []
        for found in sets.values():
            median, p90, near = summary(v for n in names for v in found[n])
            cells.append(f"{median:.1%}, {p90:.1%}, {near:.0%}")
        every = [v for n in names for v in sets["all constants"][n]]
        worst = max(every, key=abs)
        rows.append(f"| {label} | {len(every)} | {' | '.join(cells)} | {worst:+.1%} |")
    return "\n".join([*rows, "", _far(sets["all constants"])])


def _far(found: dict[str, list[float]]) -> str:
    """The cells that are missed by more than 15 %."""
    missed = [
        f"{name} {phase} {batch}×{_short(length)} {measured * (1 + error):.2f}, {measured:.2f}"
        for name, cells in CELLS.items()
        for (phase, batch, length, measured), error in zip(cells, found[name], strict=True)
        if abs(error) > NEAR
    ]
    return (
        "Missed by more than 15 % (expected, measured): " + "; ".join(missed) + ". In decode at "
        "batch 32 most families are faster than expected, as if the dense GEMMs of 32 rows were "
        "slow; nothing in Figs. 2 and 6 says so, and it is left as it is."
    )


def _constants() -> str:
    rows = [
        "## Constants\n",
        "Each belongs to a mechanism. From and to say how far another device may differ; they make "
        "the range that `predict` prints.\n",
        "| constant | value | from–to | unit | term | mechanism | read from |",
        "|---|---|---|---|---|---|---|",
    ]
    rows += [
        f"| {name} | {c.value:g} | {c.low:g}–{c.high:g} | {c.unit} | {c.term} | {c.mechanism} "
        f"| {c.figure} |"
        for name, c in TABLE.items()
    ]
    return "\n".join(rows)


def _layer() -> str:
    rows = [
        "## One layer, batch 1, 32k (Fig. 6)\n",
        "The figure that the constants are read from. Dynamic M in decode: the mean of a layer "
        "that runs and one that is skipped. The model's dense prefill layer is slower than the "
        "figure: the paper's GEMM ceiling (347 TFLOP/s) is below what its own Fig. 2 implies "
        "for gate, up and down (431). Speed-ups are ratios, and closer.\n",
        "| family | prefill, ms: figure / model | speed-up | decode, µs: figure / model "
        "| speed-up |",
        "|---|---|---|---|---|",
    ]
    model = {
        phase: {n: layer_ns(None if n == "dense" else n, phase) for n in found}
        for phase, found in PAPER["figure_6_ns"].items()
    }
    for name in PAPER["figure_6_ns"]["prefill"]:
        cells = []
        for phase, per in (("prefill", 1e6), ("decode", 1e3)):
            figure = PAPER["figure_6_ns"][phase]
            mine = model[phase]
            cells.append(f"{figure[name] / per:.2f} / {mine[name] / per:.2f}")
            there, here = figure["dense"] / figure[name], mine["dense"] / mine[name]
            cells.append(f"{there:.2f} / {here:.2f}")
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _derived() -> str:
    """Three statements of the paper that follow from the model."""
    rows = ["## What follows\n", "Llama-3.1-8B, H100 SXM, s = 0.5.\n"]
    shares = {}
    for name in FAMILIES:
        setting, work = setting_of(name, "decode", device="h100-sxm", load=(1, 1024))
        shares[name] = setting.execution_gain(work) / setting.bound_gain(work)
    ranked = sorted(shares, key=lambda n: -shares[n])
    listed = ", ".join(f"{n} {shares[n]:.0%}" for n in ranked)
    rows.append(f"- Share of the roofline bound that decode (batch 1, 1k) keeps: {listed}.")
    gains = []
    for batch in (1, 2, 4, 8, 16, 32):
        setting, work = setting_of("dynamic-m", "decode", device="h100-sxm", load=(batch, 1024))
        gains.append(f"{setting.execution_gain(work):.2f} at {batch}")
    rows.append(f"- dynamic-m in decode by batch: {', '.join(gains)}.")
    for phase in ("prefill", "decode"):
        gains = []
        for length in (1024, 4096, 16384, 65536, 131072):
            setting, work = setting_of("dynamic-nk", phase, device="h100-sxm", load=(1, length))
            gains.append(f"{setting.execution_gain(work):.2f} at {length}")
        rows.append(f"- dynamic-nk in {phase} by length: {', '.join(gains)}.")
    return "\n".join(rows)


def _winners() -> str:
    rows = [
        "## Which family wins\n",
        "Expected speed-up at s = 0.5, logits of the last token, the two fastest and (after the "
        "bar) the families that are slower than dense. Equal s is not equal quality: see the "
        "loss of your own model. Recurrences and short convolutions are at their roofline, one "
        "kernel each, because no constant for them is known; the K families and dynamic-m leave "
        "these layers' mixers dense.\n",
    ]
    for model, kind in MODELS:
        heads = " | ".join(f"{phase} {b}×{_short(n)}" for phase, b, n in LOADS)
        rows += [f"**{model}** ({kind})\n", f"| device | {heads} |", "|---" * 7 + "|"]
        for device in DEVICES:
            cells = [_winner(model, device, load) for load in LOADS]
            rows.append(f"| {device} | {' | '.join(cells)} |")
        rows.append("")
    return "\n".join(rows).rstrip()


def _winner(model: str, device: str, load: tuple[str, int, int]) -> str:
    phase, batch, length = load
    gains: dict[str, float] = {}
    for name in FAMILIES:
        try:
            setting, work = setting_of(name, phase, model=model, device=device,
                                       load=(batch, length), logits="last")  # fmt: skip
            gains[name] = setting.execution_gain(work)
        except PrunescopeError:
            continue
    ranked = sorted(gains, key=lambda n: -gains[n])
    best = ", ".join(f"{_name(n)} {gains[n]:.2f}" for n in ranked[:2])
    slow = [f"{_name(n)} {gains[n]:.2f}" for n in ranked if gains[n] < 0.995]
    return f"{best} \\| {', '.join(slow)}" if slow else best


def _name(family: str) -> str:
    short: dict[str, Any] = {"static-k-lowrank": "low rank", "static-k-24": "2:4",
                             "static-nk-cross": "cross"}  # fmt: skip
    return str(short.get(family, family))


def _short(tokens: int) -> str:
    return f"{tokens // 1024}k"


if __name__ == "__main__":
    raise SystemExit(main())
