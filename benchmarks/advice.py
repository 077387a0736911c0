"""Keep score of advice: planted faults and placebos on three architectures, by `prunescope.fix`.

    python benchmarks/advice.py [--out FOLDER] [--architecture llama hybrid mixture]
                                [--only NAME ...] [--phase prefill] [--placements 8] [--repeats 16]
    python benchmarks/advice.py --page FOLDER      writes benchmarks/advice.md of what was measured

In: the faults and placebos of planted.py. Out: a folder FOLDER/ARCHITECTURE/NAME for each, which
the same command resumes, and a page: how often advice helped, by how much its prediction was off,
and where it was wrong. Nothing else may run on the machine.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from planted import FAULTS, PLACEBOS

import prunescope
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.fixes import FIXES

_COMMON = {
    "hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8,
    "num_key_value_heads": 4, "intermediate_size": 1536, "vocab_size": 2048,
    "max_position_embeddings": 2048, "pad_token_id": None,
}  # fmt: skip
# The type of each architecture, and what its config has beyond the common one.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "hybrid": (
        "falcon_h1",
        {"mamba_n_heads": 16, "mamba_d_head": 32, "mamba_d_ssm": 512, "mamba_d_state": 32,
         "mamba_chunk_size": 64},
    ),
    "mixture": (
        "qwen2_moe",
        {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 384,
         "shared_expert_intermediate_size": 1536},
    ),
}  # fmt: skip


def main() -> None:
    """Measure, or write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("traces/advice"))
    parser.add_argument("--architecture", nargs="+", default=list(ARCHITECTURES))
    parser.add_argument("--only", nargs="+", default=[*FAULTS, *PLACEBOS], metavar="NAME")
    parser.add_argument("--phase", default="prefill", choices=("prefill", "decode", "both"))
    parser.add_argument("--prompt-len", type=int, default=256)
    parser.add_argument("--placements", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=16)
    parser.add_argument("--page", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    if options.page is not None:
        page = Path(__file__).with_suffix(".md")
        page.write_text("\n".join(_page(options.page)) + "\n", encoding="utf-8")
        return
    for architecture in options.architecture:
        model = _saved(options.out / "models" / architecture, architecture)
        # Placebos are tried on one architecture, in turn.
        names = [n for n in options.only if n in FAULTS or _is_of(n, architecture)]
        for name in names:
            _measure(options, architecture, model, name)


def _is_of(placebo: str, architecture: str) -> bool:
    """Return whether a placebo is measured on an architecture: each on one of the three."""
    return list(PLACEBOS).index(placebo) % len(ARCHITECTURES) == [*ARCHITECTURES].index(
        architecture
    )


def _saved(folder: Path, architecture: str) -> Path:
    """Return the folder of a model with random weights, made once."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if not folder.exists():
        kind, own = ARCHITECTURES[architecture]
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, **{**_COMMON, **own})
        AutoModelForCausalLM.from_config(config).eval().save_pretrained(folder)
    return folder


def _measure(options: Any, architecture: str, model: Path, name: str) -> None:
    """Measure one fault or placebo, and print its line."""
    try:
        fixed = prunescope.fix(
            str(model),
            method=f"planted:{name}",
            sparsity=0.5,
            phase=options.phase,
            prompt_len=options.prompt_len,
            dtype="float32",
            placements=options.placements,
            repeats=options.repeats,
            out=options.out / architecture / name,
        )
    except PrunescopeError as error:
        sys.stdout.write(f"{architecture} {name}: {error.problem}\n")
        return
    kept = [row.id for row in fixed.repairs if row.kept]
    sys.stdout.write(f"{architecture} {name}: {', '.join(kept) or 'nothing'} {fixed.gain or ''}\n")
    sys.stdout.flush()


def _results(folder: Path) -> Iterator[tuple[str, str, prunescope.Fixed]]:
    """Yield what was measured, by architecture and name."""
    for architecture in ARCHITECTURES:
        for name in (*FAULTS, *PLACEBOS):
            path = folder / architecture / name
            if (path / FIXES).is_file():
                yield architecture, name, prunescope.Fixed.load(path)


def _page(folder: Path) -> Iterator[str]:
    """Yield the lines of the page."""
    results = list(_results(folder))
    if not results:
        raise SystemExit(f"{folder} holds no result: run this without --page first")
    faults = [entry for entry in results if entry[1] in FAULTS]
    placebos = [entry for entry in results if entry[1] in PLACEBOS]
    yield "# Advice, and what it gained"
    yield ""
    yield (
        f"`python benchmarks/advice.py`: {len(faults)} planted faults and {len(placebos)} placebos "
        f"on {os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}. A "
        "gain is the time before over the time after, timed in turns over placements in memory, "
        "with its 95 % interval. Predicted: from `predicted_ns` of the finding."
    )
    yield ""
    yield from _score(faults, placebos)
    yield ""
    yield "| architecture | planted | repair | finding | predicted | measured | outputs | outcome |"
    yield "|---|---|---|---|---|---|---|---|"
    for architecture, name, fixed in faults:
        for row in fixed.repairs:
            if row.outcome != "nothing_to_change":
                yield _line(architecture, name, row)
    yield ""
    yield "## Placebos"
    yield ""
    yield "| architecture | planted | tried | kept |"
    yield "|---|---|---|---|"
    for architecture, name, fixed in placebos:
        tried = [row.id for row in fixed.repairs if row.gain is not None]
        kept = [row.id for row in fixed.repairs if row.kept]
        cells = architecture, name, ", ".join(tried) or "–", ", ".join(kept) or "nothing"
        yield f"| {' | '.join(cells)} |"


def _score(faults: list[Any], placebos: list[Any]) -> Iterator[str]:
    """Yield how often advice helped, by how much it was off, and where it was wrong."""
    valid = [f for _, _, f in faults if not any(r.outcome == "timing_not_valid" for r in f.repairs)]
    helped = [f for f in valid if any(row.kept for row in f.repairs)]
    rows = [row for fixed in valid for row in fixed.repairs if row.gain and row.predicted_gain]
    off = [abs(math.log(row.gain / row.predicted_gain)) for row in rows]
    wrong = [row for row in rows if row.outcome == "not_faster"]
    kept = sum(any(row.kept for row in fixed.repairs) for _, _, fixed in placebos)
    yield f"- Advice helped in {len(helped)} of {len(valid)} faults with valid times."
    if off:
        median = math.expm1(statistics.median(off))
        yield (
            f"- {len(rows)} predictions were off by {median:.0%} in the median, and by "
            f"{math.expm1(max(off)):.0%} at most."
        )
    yield f"- {len(wrong)} predictions were wrong: the repair was not faster beyond noise."
    yield f"- Of {len(placebos)} placebos {kept} kept a repair."


def _line(architecture: str, name: str, row: Any) -> str:
    """Return one row of the table of faults."""
    interval = f" [{row.ci95[0]:.2f}, {row.ci95[1]:.2f}]" if row.ci95 else ""
    cells = [
        architecture,
        name,
        row.id,
        row.finding or "–",
        "–" if row.predicted_gain is None else f"{row.predicted_gain:.2f}×",
        "–" if row.gain is None else f"{row.gain:.2f}×{interval}",
        "–" if row.difference is None else f"{row.difference:.0e}",
        "kept" if row.kept else row.why or "",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
