"""Shared by same.py and its parts: models, settings, cases, and what they keep in a folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from same_costs import WAIT_NS

PHASES = ("prefill", "decode")
ROWS = ("kernel_efficiency", "launch_idle")
# What a profiled step is longer by than a plain one is taken from: each record alike, each ns
# alike, or idle time alone.
SCALINGS = {
    "records": "each record alike (the report)",
    "everything": "everything by W/wall",
    "gaps": "gaps alone",
}
# As a user has them by default, but for a short prompt; where a layer waits, one so short that the
# wait is more than a few percent of a step.
SETTINGS = {"prompt_len": 256, "decode_steps": 8, "placements": 8, "repeats": 16, "steps": 8}
# Of each case: the method, its options, and ns a step that rows of the ledger are, others 0.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, int]]] = {
    "same": ("same:same", {}, {}),
    "waiting": ("same:waiting", {"prompt_len": 64}, {"launch_idle": WAIT_NS}),
    "gone": ("static-m", {"sparsity": 0.05, "knobs": {"layers": "3"}}, {}),
}
BUSY_LOOPS = ("", "one busy loop, 8 of 14 s", "two busy loops, 8 of 14 s")
WORDS = {
    "same": "nothing was done",
    "waiting": "the first layer waits 2 ms in Python",
    "gone": "the fourth layer is gone",
}


def in_new_process(script: str, *words: object) -> Any:
    """Run a script in a new process and read the last line it writes as JSON."""
    command = [sys.executable, script, *map(str, words)]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(ran.stdout.splitlines()[-1])


def key_of(line: dict[str, Any]) -> tuple[str, str, str]:
    """Model, case, and what ran concurrently."""
    return line["model"], line["case"], line["beside"]


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """All captures of a folder."""
    files = sorted(folder.glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text("utf-8").splitlines()]


def kept(folder: Path, name: str) -> list[dict[str, Any]]:
    """The measurements of each model, from a file of the folder."""
    file = folder / name
    found: list[dict[str, Any]] = json.loads(file.read_text("utf-8")) if file.is_file() else []
    return found


def keep(folder: Path, name: str, found: dict[str, Any]) -> None:
    """Put what was measured of a model in the place of what was there of it."""
    folder.mkdir(parents=True, exist_ok=True)
    others = [one for one in kept(folder, name) if one["model"] != found["model"]]
    (folder / name).write_text(json.dumps([*others, found]), encoding="utf-8")
