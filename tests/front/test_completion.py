"""What a shell completes: values of options, read only when it asks."""

from __future__ import annotations

import os
import subprocess
import sys

from typer.main import get_command

from prunescope import command
from prunescope.analysis.device.hardware import DEVICES
from prunescope.analysis.report.formats import FORMATS
from prunescope.cli import app

WORDS = {
    "prunescope trace --method static-m": {"static-m"},
    "prunescope analyze t.json --format p": {"png", "pdf", "parquet", "perfetto"},
    "prunescope analyze t.json --device h100": {"h100-sxm"},
    "prunescope trace --select i": {"importance"},
    "prunescope predict --model tiny": {"tiny-llama"},
}
# What bash starts for the last word, as one process for all of them.
ASK = """
import contextlib, os, sys
import prunescope.cli
for words in sys.argv[1:]:
    os.environ |= {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    with contextlib.suppress(SystemExit):
        prunescope.cli.main()
    print("--")
"""


def test_a_shell_is_told_the_values() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ASK, *WORDS],
        env={**os.environ, "_PRUNESCOPE_COMPLETE": "complete_bash"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    told = done.stdout.split("--\n")
    for (words, some), found in zip(WORDS.items(), told, strict=False):
        assert some <= set(found.split()), words
        assert all(one.startswith(words.rpartition(" ")[2]) for one in found.split()), words
    assert told[len(WORDS) :] == [""]


def test_the_last_part_of_a_list_is_completed_behind_the_others() -> None:
    assert command.formats("md,pn") == ["md,png"]
    assert "static-m:0.25+static-nk-mlp" in command.families("static-m:0.25+static-nk")
    assert any(one.startswith("static-m,") for one in command.methods("static-m,sh"))


def test_all_lists_have_something_to_say() -> None:
    lists = (command.models, command.families, command.methods, command.devices,
             command.machines, command.dtypes, command.formats)  # fmt: skip
    assert all(one("") for one in lists)
    assert command.devices("") == [*(device.name for device in DEVICES), "cpu"]


def test_the_help_names_every_format() -> None:
    (help_,) = (p.help for p in get_command(app).commands["analyze"].params if p.name == "formats")
    assert f": {', '.join(FORMATS)};" in help_
