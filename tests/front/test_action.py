"""The composite action: its shell, run as GitHub would, without installing anything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.chrome import chrome, k, op, save, step

ROOT = Path(__file__).parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))


def test_no_input_is_pasted_into_a_script() -> None:
    """Inputs reach the shell through the environment alone: their text is no code."""
    for part in ACTION["runs"]["steps"]:
        assert "${{" not in part["run"] and part["shell"] == "bash"
        assert all(value.startswith("${{ inputs.") for value in part["env"].values())


@pytest.mark.parametrize(("limit", "code"), [("1s", 0), ("1ns", 3)])
def test_the_action_checks_and_writes_the_summary(limit: str, code: int, tmp_path: Path) -> None:
    steps = [step(n, op("aten::mm", [4, 4], [4, 4], kernels=[k(us=10 + n % 2)])) for n in range(6)]
    trace = save(chrome(*steps), tmp_path / "a trace.json")
    check = ACTION["runs"]["steps"][-1]
    given = {
        "SUBJECT": str(trace), "RULES": f"trace.wall <= {limit}\n\nwall > 1ns\n", "OPTIONS": "",
        "HISTORY": str(tmp_path / "h.jsonl"), "GITHUB_STEP_SUMMARY": str(tmp_path / "s.md"),
        "GITHUB_SHA": "f" * 40,
    }  # fmt: skip
    assert given.keys() >= check["env"].keys()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-c", check["run"]],
        env={**os.environ, **given, "PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == code, done.stderr
    text = (tmp_path / "s.md").read_text()
    assert text.startswith("### prunescope check") and text.count("| wall &gt; 1ns |") == 1
    assert ("❌ failed" in text) is (code == 3)
    assert (tmp_path / "h.jsonl").read_text().count('"commit":"ffffffffffff"') == 1
