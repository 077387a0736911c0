"""A GPU machine may have torch and transformers alone: msgspec is all else that a capture needs.

The subprocess sees links to those three and to what they require, and no other package.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.torch
Ran = tuple[subprocess.CompletedProcess[str], Path]

ROOT = Path(__file__).resolve().parents[3]
# Libraries of ours. What transformers requires of them (for its commands) is taken away too.
REFUSED = {
    "accelerate", "great-tables", "jinja2", "matplotlib", "polars", "psutil", "rich",
    "typer",
}  # fmt: skip
IMPORT_ALL = """
import importlib, pkgutil, sys
from prunescope import taxonomy, tracer
for room in (taxonomy, tracer):
    for module in pkgutil.walk_packages(room.__path__, room.__name__ + "."):
        importlib.import_module(module.name)
sys.stdout.write("imported\\n")
"""
TRACE = """
import sys
from functools import partial
from pathlib import Path
from prunescope.taxonomy import presets
from prunescope.tracer.capture.progress import Bar
from prunescope.tracer.capture import device_state
from prunescope.tracer.capture.trace import TraceRequest, trace
device_state.measure_peaks = partial(device_state.measure_peaks, budget_s=0.05)
read = presets._read
def two_layers(name):
    found = read(name)
    found["config"]["num_hidden_layers"] = 2
    return found
presets._read = two_layers
request = TraceRequest(model="tiny-llama", out=Path(sys.argv[1]), method="static-nk", prompt_len=16,
                       decode_steps=2, warmup=1, repeats=2, steps=1, threads=1)
with Bar() as bar:
    trace(request, bar)
sys.stdout.write("traced\\n")
"""


def required(names: set[str]) -> dict[str, importlib.metadata.Distribution]:
    """Distributions that `names` require, and theirs, without extras."""
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = sorted(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found or name in REFUSED:
            continue
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:  # for another system
            continue
        found[name] = distribution
        wanted = [r for r in distribution.requires or [] if not re.search(r"extra\s*==", r)]
        waiting += [re.split(r"[^A-Za-z0-9._-]", r, maxsplit=1)[0] for r in wanted]
    return found


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a Python that finds torch, transformers and this repository."""
    site = tmp_path_factory.mktemp("site")
    for distribution in required({"torch", "transformers", "msgspec"}).values():
        for file in distribution.files or []:
            link = site / file.parts[0]
            if file.parts[0] not in ("..", "__pycache__") and not link.exists():
                link.symlink_to(Path(str(distribution.locate_file(file.parts[0]))).resolve())
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]),
        "OMP_NUM_THREADS": "1",
        "HOME": str(site),
    }


def python(code: str, *arguments: str, bare: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run `code` without site-packages."""
    return subprocess.run(
        [sys.executable, "-S", "-c", code, *arguments],
        env=bare, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["rich", "polars", "psutil"])
def test_the_machine_is_bare(name: str, bare: dict[str, str]) -> None:
    done = python(f"import {name}", bare=bare)
    assert f"No module named '{name}'" in done.stderr


@pytest.fixture(scope="module")
def ran(bare: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A capture and the import of every module, in one process; and the folder of the capture."""
    folder = tmp_path_factory.mktemp("bare")
    return python(TRACE + IMPORT_ALL, str(folder / "run"), bare=bare), folder / "run"


def test_every_module_of_the_tracer_is_imported(ran: Ran) -> None:
    done, _ = ran
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.endswith("imported\n")


def test_a_capture_needs_torch_transformers_and_msgspec(ran: Ran) -> None:
    done, folder = ran
    assert "traced\n" in done.stdout, done.stderr[-2000:]
    for name in ("dense", "pruned"):
        run = json.loads((folder / name / "run.json").read_bytes())
        assert set(run["phases"]) == {"prefill", "decode"}
        assert run["phases"]["decode"]["samples_ns"]
    # Without rich the progress is a line a stage.
    assert re.search(r"^ *\d+\.\d s  placement 1 of 2 \(\d+\)$", done.stderr, re.MULTILINE)
