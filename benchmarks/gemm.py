"""The GEMMs of one run, inside the model and alone: the example of docs/gemm.md.

    python benchmarks/gemm.py --measure traces/gemm    # alone on a core, three minutes
    python benchmarks/evidence.py traces/gemm gemm
    python benchmarks/gemm.py                          # writes gemm.md

In: benchmarks/runs/gemm.tar.xz: a run of SmolLM2-135M and the times of its GEMMs. Out: gemm.md,
whose tables docs/gemm.md and docs/reading-a-report.md show too.
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

PAGE = HERE / "gemm.md"
COMMANDS = (
    "prunescope trace --model smollm2-135m-instruct --method static-nk --sparsity 0.34 "
    "--phase prefill --prompt-len 128 --dtype float32 --placements 6 --out nk",
    "prunescope gemm nk --placements 6",
)
_MS = 1e6  # ns
_NAMES = {
    "dense": "dense, measured",
    "pruned": "pruned, measured",
    "launch_idle": "launch and idle",
}
_LADDER = (
    ("nominal", "nominal"),
    ("flop", "FLOP ratio"),
    ("coverage", "coverage bound"),
    ("roofline", "roofline bound"),
    ("busy", "kernel (busy)"),
    ("realised", "realised"),
)


def measure(folder: Path) -> None:
    """Run the commands in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for command in COMMANDS:
        subprocess.run([sys.executable, "-m", *shlex.split(command)], cwd=folder, check=True)


def page(runs: Path) -> str:
    """Return the page of the run in a folder."""
    run = read_run(runs / "nk" / "pruned")
    report = prunescope.analyze(runs / "nk", gemm=runs / "nk" / "gemms.json").to_dict()
    phase = report["phases"]["prefill"]
    answer = phase["answer"]
    lines = [
        "# The GEMMs of a run, inside the model and alone",
        "",
        f"SmolLM2-135M-Instruct, {run.dtype}, one core of an {run.device.name} (`taskset -c 0`), "
        f"torch {run.versions['torch']}, transformers {run.versions['transformers']}.",
        "",
        "```",
        *COMMANDS,
        "```",
        "",
        f"*{answer['verdict']} {answer['why']} {answer['do']}*",
        "",
        "| bound or measured ratio | dense ÷ pruned |",
        "|:--|--:|",
        *_ladder(phase["ladder"]),
        "",
        "| row | ms a step | of dense | 95 % interval | noise |",
        "|:--|--:|--:|--:|--:|",
        *_ledger(phase["ledger"]),
        "",
        "| GEMM | axis | kept | M | N | K | count | bound | time | promised | loss |",
        "|:--|:--|--:|--:|--:|--:|--:|:--|--:|--:|--:|",
        _gemm(next(gemm for gemm in phase["gemms"] if gemm["role"] == "gate")),
        "",
        "| role | M×N×K | in the model, ms a call | alone, warm [95 %] | alone, cold | lost in the "
        "ledger, ms a step [95 %] | lost alone [95 %] |",
        "|:--|:--|--:|--:|--:|--:|--:|",
        *map(_line, phase["replay"]["lines"]),
        "",
        "Runs: runs/gemm.tar.xz; `make pages` makes this page from them and packs them as "
        "benchmarks/bundles/gemm.zip.",
        "",
    ]
    return "\n".join(lines)


def _ladder(ladder: dict[str, Any]) -> Iterator[str]:
    for key, name in _LADDER:
        ends = ladder.get(f"{key}_ci95")
        yield f"| {name} | {ladder[key]:.2f}×{'' if ends is None else _ends(ends, 1, 2)} |"


def _ledger(rows: list[dict[str, Any]]) -> Iterator[str]:
    dense = rows[0]["ns"]
    for row in rows:
        name = _NAMES.get(row["row"], row["row"].replace("_", " "))
        ns, noise = row["ns"], row.get("noise_ns")
        is_total = row["row"] in ("dense", "promised", "pruned")
        value = f"{ns / _MS:.2f}" if is_total else _signed(ns / _MS, 2)
        ends = _ends(row["ci95"], _MS, 2).strip()
        shown = f"±{noise / _MS:.2f}" if noise else ""
        yield f"| {name} | {value} | {_minus(f'{100 * ns / dense:.1f}')} % | {ends} | {shown} |"


def _gemm(gemm: dict[str, Any]) -> str:
    """Return the row of a GEMM whose N was pruned."""
    share = 100 * gemm["keep"]["n"]
    time, promised, loss = (gemm[f"{key}_ns"] / _MS for key in ("busy", "promised", "loss"))
    return (
        f"| {gemm['role']} | {gemm['axis']} | {share:.0f} % | {gemm['m']} | {gemm['dense_n']}→"
        f"{gemm['n']} | {gemm['k']} | {gemm['count']:.0f} | {gemm['bound']} | {time:.3f} | "
        f"{promised:.3f} | {_signed(loss, 3)} |"
    )


def _line(line: dict[str, Any]) -> str:
    name = "LM head" if line["role"] == "lm_head" else line["role"]
    warm = f"{line['warm_ns'] / _MS:.2f}{_ends(line['warm_ci95'], _MS, 2)}"
    lost = f"{_signed(line['ledger_ns'] / _MS, 2)}{_ends(line['ledger_ci95'], _MS, 2)}"
    alone = line.get("alone_ci95")
    return (
        f"| {name} | {line['m']}×{line['n']}×{line['k']} | {line['inside_ns'] / _MS:.2f} | {warm} "
        f"| {line['cold_ns'] / _MS:.2f} | {lost} | "
        f"{'not pruned' if alone is None else _ends(alone, _MS, 2).strip()} |"
    )


def _ends(ends: list[float], per: float, digits: int) -> str:
    low, high = (_minus(f"{end / per:.{digits}f}") for end in ends)
    return f" [{low}, {high}]"


def _signed(value: float, digits: int) -> str:
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else _minus(text)


def _minus(text: str) -> str:
    return text.replace("-", "−")


def main() -> None:
    """Measure into a folder, or write the page of the kept run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--measure", type=Path, metavar="FOLDER", help="run the commands in it")
    folder = parser.parse_args().measure
    if folder is not None:
        measure(folder)
        return
    with unpacked("gemm") as runs:
        PAGE.write_text(page(runs), encoding="utf-8")


if __name__ == "__main__":
    main()
