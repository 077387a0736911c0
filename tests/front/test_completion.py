"""What a shell completes: values of options, read only when it asks."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.main import get_command

from prunescope import command
from prunescope.analysis.device.hardware import DEVICES
from prunescope.analysis.report.formats import FORMATS
from prunescope.cli import app


def completed(words: str) -> list[str]:
    """What bash is told for the last word."""
    import os

    done = subprocess.run(
        [sys.executable, "-c", "import prunescope.cli as c; c.main()"],
        env={**os.environ, "_PRUNESCOPE_COMPLETE": "complete_bash", "COMP_WORDS": words,
             "COMP_CWORD": str(len(words.split(" ")) - 1)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "some"),
    [
        ("prunescope trace --method static-m", {"static-m"}),
        ("prunescope analyze t.json --format p", {"png", "pdf", "parquet", "perfetto"}),
        ("prunescope analyze t.json --device h100", {"h100-sxm"}),
        ("prunescope trace --select i", {"importance"}),
        ("prunescope predict --model tiny", {"tiny-llama"}),
    ],
)
def test_a_shell_is_told_the_values(words: str, some: set[str]) -> None:
    found = completed(words)
    assert some <= set(found)
    assert all(one.startswith(words.rpartition(" ")[2]) for one in found)


def test_the_last_part_of_a_list_is_completed_behind_the_others() -> None:
    assert command.formats("md,pn") == ["md,png"]
    assert "static-m:0.25+static-nk-mlp" in command.families("static-m:0.25+static-nk")
    assert any(one.startswith("static-m,") for one in command.methods("static-m,sh"))


def test_all_lists_have_something_to_say() -> None:
    lists = (command.models, command.families, command.methods, command.devices,
             command.machines, command.dtypes, command.formats)  # fmt: skip
    assert all(one("") for one in lists)
    assert command.devices("") == [device.name for device in DEVICES]


def test_the_help_names_every_format() -> None:
    (help_,) = (p.help for p in get_command(app).commands["analyze"].params if p.name == "formats")
    assert f": {', '.join(FORMATS)};" in help_
