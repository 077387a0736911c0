"""Perplexity of random against calibrated selection on SmolLM2-135M, family by family.

    python benchmarks/calibrated.py [FAMILY ...] [--out FILE.md]

Half of Python's reference text calibrates, the other half is scored; both selections remove the
same amount. Exit code 1 where calibrated is not the better one.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import sys
import textwrap
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from prunescope.tracer.calibration.collect import text_calibration
from prunescope.tracer.calibration.point import Calibration, Point
from prunescope.tracer.model.layers import decoder_layers
from prunescope.tracer.model.load import DEMO, load_model, load_tokenizer
from prunescope.tracer.pruners import family_point, pruner
from prunescope.tracer.quality.quality import Passage, quality, text_passage

THREADS, SEEDS, TOKENS, CONTEXT = 2, (0, 1, 2), 2048, 512


@dataclass(frozen=True)
class Case:
    """A point of a family. `random`: knobs of the random selection alone; `seeds`: used by it."""

    family: str
    sparsity: float
    knobs: dict[str, str] = field(default_factory=dict)
    random: dict[str, str] = field(default_factory=dict)
    seeds: tuple[int, ...] = SEEDS
    what: str = ""


CASES = (
    Case("static-m", 0.2),
    Case("static-m", 0.2, {"unit": "attention"}),
    Case("static-m", 0.2, {"unit": "mlp"}),
    Case("static-k-24", 0.5),
    Case("static-k-mask", 0.5, random={"score": "random"}),
    Case("static-k-mask", 0.5, seeds=(0,), what="magnitude"),
    Case("static-k-lowrank", 0.25, seeds=(0,), what="plain SVD"),
    Case("static-nk", 0.25),
    Case("static-nk-heads", 0.34),
    Case("static-nk-mlp", 0.25),
    Case("static-nk-cross", 0.25, {"junctions": "same"}),
    Case("static-nk-cross", 0.25, {"junctions": "different"}),
    Case("dynamic-m", 0.1),
    Case("dynamic-m", 0.25),
)
ROUTED = "dynamic-m"
CHOSEN_BY = (
    ("block influence, 1 − cosine of what enters and leaves", "static-m"),
    ("|w|·‖x‖", "static-k-24, static-k-mask"),
    ("truncated SVD of W·C^½", "static-k-lowrank"),
    ("‖W[:, k]‖²·E[x_k²] summed over a head group or taken by channel", "static-nk and its halves"),
    ("principal directions of the normalised residual stream", "static-nk-cross"),
    ("routers fitted to ‖f(x)‖ / ‖x‖ of each token, which also gives each sublayer its share of "
     "the tokens", ROUTED),
)  # fmt: skip


def main() -> int:
    """Run the cases of the families named, or every case, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="[default: all]")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    given = parser.parse_args()
    cases = [case for case in CASES if case.family in given.families or not given.families]
    started = time.monotonic()
    torch.set_num_threads(THREADS)
    loaded = load_model(DEMO, dtype="auto", device=torch.device("cpu"), attn="sdpa")
    tokenizer = load_tokenizer(loaded)
    vocabulary = loaded.model.get_input_embeddings().num_embeddings
    passage = text_passage(
        tokenizer, None, vocabulary=vocabulary, longest=CONTEXT, seed=0, tokens=TOKENS
    )
    calibration = text_calibration(loaded.model, tokenizer)
    dense = float(quality(loaded.model, passage)["perplexity"])
    rows, better = [], True
    for case in cases:
        row, wins = measured(case, loaded.model, passage, calibration)
        better = better and wins
        rows.append(row)
        sys.stderr.write(f"{time.monotonic() - started:4.0f} s  {row}\n")
    seconds = time.monotonic() - started
    text = page(rows, dense, calibration, passage, seconds)
    given.out.write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    return 0 if better else 1


def measured(
    case: Case, model: Any, passage: Passage, calibration: Calibration
) -> tuple[str, bool]:
    """A row of the table, and whether calibrated is better than every draw."""
    point = Point(sparsity=case.sparsity, knobs=case.knobs, calibration=calibration)
    perplexities, shares = [], []
    for seed in case.seeds:
        random = replace(point, knobs={**case.knobs, **case.random}, seed=seed)
        perplexity, share = one(case.family, random, model, passage)
        perplexities.append(perplexity)
        shares.append(share)
    chosen, realised = one(case.family, replace(point, select="importance"), model, passage)
    if max(abs(share - realised) for share in shares) > 0.002:
        raise RuntimeError(f"{case.family}: {shares} drawn against {realised} calibrated")
    knobs = ", ".join(f"{key}={value}" for key, value in case.knobs.items())
    seen = " / ".join(number(value) for value in sorted(perplexities))
    seen += f" ({case.what})" if case.what else ""
    gain = statistics.median(perplexities) / chosen
    row = (
        f"| {case.family} | {knobs or '–'} | {case.sparsity:g} | {_share(realised)} "
        f"| {seen} | {number(chosen)} | {number(float(f'{gain:.2g}'))}× |"
    )
    return row, chosen < min(perplexities)


def one(name: str, point: Point, model: Any, passage: Passage) -> tuple[float, float]:
    """(perplexity, realised sparsity) of a pruned copy of the model."""
    with torch.no_grad():
        applied = pruner(name).prune(copy.deepcopy(model), family_point(name, point))
    perplexity = quality(applied.model, passage)["perplexity"]
    return float(perplexity), 1 - numbers(applied.model) / numbers(model)


def numbers(model: Any) -> int:
    """Weights of the decoder layers that are stored and not zero."""
    _, layers = decoder_layers(model)
    return sum(int(torch.count_nonzero(p)) for p in layers.parameters())


def _share(realised: float) -> str:
    """The share of the weights that was removed; a dynamic family removes none and adds its
    routers."""
    return f"{realised:.3f}" if realised > 0 else "–"


def number(value: float) -> str:
    """Three digits, or two and a power of ten from a million on."""
    if value >= 1e6:
        return f"{value:.1e}".replace("e+0", "e").replace("e+", "e")
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def page(
    rows: list[str],
    dense: float,
    calibration: Calibration,
    passage: Passage,
    seconds: float,
) -> str:
    """calibrated.md."""
    read = calibration.record["tokens"]
    chosen = "; ".join(f"{by} ({families})" for by, families in CHOSEN_BY)
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return f"""# Random against calibrated selection, SmolLM2-135M-Instruct

Perplexity on {passage.record["source"]} ({TOKENS:,} tokens of the second half, contexts of
{CONTEXT}); dense {dense:.2f}. Calibrated on {read:,} tokens of the first half.
No weight was trained after pruning. s is the nominal sparsity, realised the share of the decoder
layers' weights that is removed or zero (residual maps counted against it); random and calibrated
agree in it to 0.002. {ROUTED} takes no weight away: s is the share of the tokens that skip
a sublayer.
Gain: median of the random selections / calibrated.

| family | knobs | s | realised | random, {len(SEEDS)} seeds | calibrated | gain |
|---|---|---|---|---|---|---|
{chr(10).join(rows)}

{textwrap.fill(f"Calibrated by: {chosen}.", 99, break_on_hyphens=False)}

The weights are dequantised from a 4-bit file and run in bfloat16. Made by
`python {" ".join(sys.argv)}` in {seconds:.0f} s: {platform.machine()} CPU, {THREADS} threads,
Python {platform.python_version()}, {versions}.
"""


if __name__ == "__main__":
    sys.exit(main())
