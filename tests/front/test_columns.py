"""No table is cut: at 80, 120 and 200 columns each command prints whole numbers, in lines that fit.

What is printed there may leave out columns that a note names, or wrap; a number that it
shows is one that is printed where there is room for all.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

import prunescope
from prunescope.output import console_for
from tests.stored import stored_once

__all__ = ["stored_once"]
ROOT = Path(__file__).resolve().parents[2]
NUMBER = re.compile(r"[-−+±]?\d[\d,]*(?:\.\d+)?")
WIDTHS = (80, 120, 200)
RUNS = [f"tiny-{name}" for name in ("static-m", "static-nk", "static-k-mask")]
LLAMA = "predict --model llama-3.1-8b --device h100-sxm"
COMMANDS = [
    "analyze tiny-static-m --full",
    f"analyze {' '.join(RUNS)}",
    "check tiny-static-m -r prefill.realised>=1.2 -r family==static-m -r decode.wall<=9s",
    "families",
    "families --architecture mixtral-8x7b",
    "devices",
    f"{LLAMA} --method static-nk --new-tokens 16 --batch 64 --prompt-len 32768 --explain",
    f"{LLAMA} --method static-nk,static-k-lowrank --sparsity 0.125:0.875:0.125 --new-tokens 1024",
    "predict --rank --model llama-3.1-8b --device h100-sxm --workload long --tp 8",
    "predict --from-run tiny-static-m --sparsity 0.25",
]


_results: dict[str, Any] = {}


@pytest.fixture
def computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked again, at another width or by another test, has the same answer."""

    def kept(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            asked = f"{name} {args} { {k: v for k, v in options.items() if k != 'on_done'} }"
            if asked not in _results:
                _results[asked] = function(*args, **options)
            return _results[asked]

        return call

    for module, name in (("analysis.compare_runs", "compare"), ("analysis.predict.rank", "rank"),
                         ("analysis.predict.predict", "predict"),
                         ("analysis.predict_from", "predict_from")):  # fmt: skip
        place = import_module(f"prunescope.{module}")
        monkeypatch.setattr(place, name, kept(name, getattr(place, name)))


@pytest.mark.usefixtures("stored_once", "computed_once")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_number_is_whole_at_every_width(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TERM", "dumb")
    for run in RUNS:
        if run in command:
            shutil.copytree(ROOT / "traces" / run, tmp_path / run)

    def printed(columns: int) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        capfd.readouterr()
        assert prunescope.main(command.split()) == 0
        return capfd.readouterr().out

    whole = set(NUMBER.findall(printed(400)))
    for width in WIDTHS:
        narrow = printed(width)
        assert max(map(cell_len, narrow.splitlines())) <= width
        assert set(NUMBER.findall(narrow)) <= whole
        assert not re.search(r"\d…|…\d| \w…$", narrow, flags=re.MULTILINE)


@pytest.mark.usefixtures("stored_once", "computed_once")
def test_a_comparison_stands_before_its_warnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for run in RUNS:
        shutil.copytree(ROOT / "traces" / run, tmp_path / run)
    assert prunescope.main(["analyze", *RUNS]) == 0
    out = capfd.readouterr().out
    assert "\n!" in out
    assert out.rindex("\n tiny-static-") < out.index("\n!")


def test_a_terminal_wider_than_any_screen_is_not_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    """`COLUMNS=999999999 prunescope families` did not end within a minute."""
    monkeypatch.setenv("COLUMNS", "999999999")
    assert console_for(None).width == 1000
