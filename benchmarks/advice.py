"""Keep score of advice: planted faults and placebos on three architectures, by `prunescope.fix`.

    python benchmarks/advice.py [--out FOLDER] [--architecture llama hybrid mixture]
                                [--only NAME ...] [--phase prefill] [--placements 8] [--repeats 16]
    python benchmarks/advice.py --page      writes benchmarks/advice.md of benchmarks/advice/

In: the faults and placebos of planted.py. Out: a folder FOLDER/ARCHITECTURE/NAME for each, which
the same command resumes, and a page: how often advice helped, by how much its prediction was off,
and where it was wrong. Nothing else may run on the machine.
"""

from __future__ import annotations

import argparse
import json
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

import prunescope
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.fixes import FIXES

MEASURED = "measured.json"  # in the folder of what was measured: what was planted, and where
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
    parser.add_argument("--only", nargs="+", metavar="NAME")
    parser.add_argument("--phase", default="prefill", choices=("prefill", "decode", "both"))
    parser.add_argument("--prompt-len", type=int, default=256)
    parser.add_argument("--placements", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=16)
    parser.add_argument("--page", action="store_true", help="write the page of what is kept")
    options = parser.parse_args()
    if options.page:
        Path(__file__).with_suffix(".md").write_text(page(), encoding="utf-8")
        return
    # Imports torch, which the page does without.
    from planted import FAULTS, PLACEBOS

    measured = {
        "command": "python benchmarks/advice.py",
        "settings": {
            name: getattr(options, name)
            for name in ("phase", "prompt_len", "placements", "repeats")
        },
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "faults": [*FAULTS],
        "placebos": [*PLACEBOS],
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / MEASURED).write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    for architecture in options.architecture:
        model = _saved(options.out / "models" / architecture, architecture)
        # Each placebo is tried on one of the architectures, in turn.
        turn = [*ARCHITECTURES].index(architecture)
        placebos = [n for i, n in enumerate(PLACEBOS) if i % len(ARCHITECTURES) == turn]
        for name in (*FAULTS, *placebos):
            if options.only is None or name in options.only:
                _measure(options, architecture, model, name)


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


def _results(folder: Path, names: list[str]) -> Iterator[tuple[str, str, prunescope.Fixed]]:
    """Yield what was measured of faults or placebos, by architecture and name."""
    for architecture in ARCHITECTURES:
        for name in names:
            path = folder / architecture / name
            if (path / FIXES).is_file():
                yield architecture, name, prunescope.Fixed.load(path)


def page() -> str:
    """Return the page of what is kept next to this file, in advice/."""
    return "\n".join(_page(Path(__file__).with_suffix(""))) + "\n"


def _page(folder: Path) -> Iterator[str]:
    """Yield the lines of the page."""
    measured = json.loads((folder / MEASURED).read_bytes())
    settings = measured["settings"]
    faults = list(_results(folder, measured["faults"]))
    placebos = list(_results(folder, measured["placebos"]))
    yield "# Advice, and what it gained"
    yield ""
    yield (
        f"`{measured['command']}`: {len(faults)} planted faults and {len(placebos)} placebos "
        f"on {measured['cores']} cores, {measured['machine']}, Python {measured['python']}: "
        f"{settings['phase']} of {settings['prompt_len']} tokens. A gain is the time before over "
        f"the time after, timed in turns, {settings['repeats']} times over "
        f"{settings['placements']} placements in memory, with its 95 % interval. Predicted: from "
        "`predicted_ns` of the finding."
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
