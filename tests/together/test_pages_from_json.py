"""Pages of benchmarks/ follow from the JSON next to them, and their numbers can be recomputed.

predict.md, which takes half a minute, is made again by `make pages` alone.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
PAGES = ("advice", "cpu", "engine", "families", "ranks", "shapes", "strangers")
# Prints a page, and fails where making it needs torch.
MAKE = """
import importlib, sys
sys.path.insert(0, sys.argv[1])
text = importlib.import_module(sys.argv[2]).page()
assert "torch" not in sys.modules
sys.stdout.buffer.write(text.encode())
"""


@pytest.mark.parametrize("name", PAGES)
def test_a_page_follows_from_its_json(name: str, tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, "-c", MAKE, str(BENCHMARKS), name],
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    assert made.stdout == (BENCHMARKS / f"{name}.md").read_bytes()


def kept(name: str) -> Any:
    return json.loads((BENCHMARKS / f"{name}.json").read_bytes())


def advice() -> str:
    """Return the median size of the error of a predicted gain."""
    names = kept("advice/measured")["faults"]
    repairs = [
        repair
        for path in BENCHMARKS.glob("advice/*/*/fix.json")
        if path.parent.name in names
        for repair in json.loads(path.read_bytes())["repairs"]
    ]
    pairs = np.array(
        [[r["gain"], r["predicted_gain"]] for r in repairs if r["gain"] and r["predicted_gain"]]
    )
    off = np.median(np.abs(np.log(pairs[:, 0] / pairs[:, 1])))
    return f"{len(pairs)} predictions were off by {np.expm1(off):.0%}"


def beside_hta() -> str:
    """Return the CPU time of HTA's load over that of our report, of the largest trace."""
    tools = max(kept("engine")["traces"], key=lambda trace: trace["bytes"])["tools"]
    hta, ours = (np.median(tools[name]["cpu_seconds"]) for name in ("HTA load", "prunescope"))
    return f"({hta / ours:.1f} × and "


def growth() -> str:
    """Return the CPU seconds of the largest size, those of the floor, and their ratio."""
    tools = max(kept("growth")["sizes"], key=lambda size: size["events"])["tools"]
    ours, floor = (np.median(tools[name]["cpu_seconds"]) for name in ("prunescope", "typed scan"))
    return f"| {ours:.2f} | {floor:.2f} | {ours / floor:.1f} |"


def families() -> str:
    """Return how many cells are named as what they are, of those that apply."""
    states = [cell["state"] for row in kept("families")["rows"].values() for cell in row]
    return f"named, of {len(states) - states.count('none')}: ok {states.count('ok')},"


def ranks() -> str:
    """Return the times of one process on the smallest folder, and their ratios to those of two."""
    ways = min(kept("ranks")["folders"], key=lambda folder: folder["ranks"])["ways"]
    names = ("seconds", "cpu_seconds")
    both, alone = ([[r[n] for n in names] for r in ways[w]] for w in ("local:2", "local:1"))
    (wall, cpu), ratios = np.median(alone, 0), np.median(alone, 0) / np.median(both, 0)
    (low, _), (high, _) = np.min(alone, 0), np.max(alone, 0)
    return f"| {wall:.1f} ({low:.1f}–{high:.1f}) | {ratios[0]:.2f} | {cpu:.1f} | {ratios[1]:.2f} |"


def shapes() -> str:
    """Return the kernels that stay null where most do."""
    worst = max(kept("shapes")["damaged"], key=lambda row: row["null"])
    right, null = worst["right"], worst["null"]
    return f"| {right:,} | {null:,} | {null / (right + null):.1%} | {worst['wrong']} |"


def strangers() -> str:
    """Return wall, busy and gap of the H100 trace, ms."""
    (row,) = (row for row in kept("strangers") if row["trace"] == "h100_qwen1.5-0.5b_prefill")
    return " / ".join(f"{row[key] / 1e6:.3f}" for key in ("wall_ns", "busy_ns", "gap_ns"))


def predict() -> str:
    """Return the published times of a dense layer, which the page has beside the predicted."""
    paper = json.loads((ROOT / "taxonomy" / "paper.json").read_bytes())
    return f"| dense | {paper['figure_6_ns']['prefill']['dense'] / 1e6:.2f} / "


NUMBERS: dict[str, tuple[str, Callable[[], str]]] = {
    "advice": ("advice", advice),
    "engine": ("engine", beside_hta),
    "growth": ("engine", growth),
    "families": ("families", families),
    "ranks": ("ranks", ranks),
    "shapes": ("shapes", shapes),
    "strangers": ("strangers", strangers),
    "predict": ("predict", predict),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_of_a_page_is_recomputed_from_its_samples(name: str) -> None:
    page, recompute = NUMBERS[name]
    text = (BENCHMARKS / f"{page}.md").read_text(encoding="utf-8")
    assert len(re.findall(re.escape(recompute()), text)) == 1
