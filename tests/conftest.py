"""Shared by all tests: real traces next to the checkout, and a cache that is not the user's."""

from __future__ import annotations

import gc
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from prunescope.taxonomy import presets

if TYPE_CHECKING:
    from prunescope.analysis.schema.report import Report

# Collecting makes a million objects that stay; looks for garbage among them took 40 % of its time.
gc.disable()

# How long an example takes says nothing but what else runs here.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# A shell that starts the tests in the background ignores Ctrl-C for them, and some of them send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A process of tests a core: more threads in each wait for one another. Read at the first import.
for _name in ("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

# No test pulls the plug: what is written need not have reached the disk.
os.fsync = lambda _file: None

_read = presets._read
_known = [0]  # modules that were imported when the heap was set aside
# The readings of other work, without an answer, as on a system that has none: a capture during
# which something else runs takes its samples and its profile twice, as it should, and during tests
# something always runs. Tests that are marked `machine` are about that, and have the system's.
_NO_READINGS: dict[str, Callable[[], Any]] = {
    "_busy_and_steal": lambda: (None, None),
    "_waited_ns": lambda: None,
}
_readings: dict[str, Callable[[], Any]] = {}
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def real_trace() -> Callable[[str], Path]:
    """The path of a real trace by its file name; skips where the traces are absent."""

    def find(name: str) -> Path:
        path = SHARED / "traces" / name
        if not path.is_file():
            pytest.skip(f"needs ../shared/data/traces/{name} next to the checkout")
        return path

    return find


@pytest.fixture(scope="session")
def real_report(real_trace: Callable[[str], Path]) -> Callable[[str], Report]:
    """The report of a real trace as it is, by its file name: many tests read the same ones."""
    from prunescope.analysis.pipeline import analyze

    @cache
    def of(path: Path) -> Report:
        return analyze(path).report

    return lambda name: of(real_trace(name))


@pytest.fixture(scope="session", autouse=True)
def _own_temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Temporary files go to a folder of the tests, and so do the locks of timings.

    Without it a test waits for as long as another process of the user sweeps.
    """
    folder = tmp_path_factory.getbasetemp() / "temporary"
    folder.mkdir(exist_ok=True)
    os.environ["TMPDIR"], tempfile.tempdir = str(folder), None


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches that are kept between runs go to a folder of the tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def _libraries_set_aside() -> None:
    """A million objects of libraries stay: each look for garbage (captures, training and Hypothesis
    ask for many) would go through them, 0.2 s a time."""
    if len(sys.modules) > _known[0] + 50:
        gc.collect()
        gc.freeze()
        # It counts them one by one, 0.06 s for each capture, which only wants to know whether.
        gc.get_freeze_count = _known.__len__  # type: ignore[assignment]
        _known[0] = len(sys.modules)


def pytest_collection_finish() -> None:
    """Collect garbage from here on, though not among the tests, and less often than by default:
    reference counts free most of what a test makes."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests that run a model run a quarter of it, and once: see _cut and _NO_READINGS."""
    if item.get_closest_marker("torch") is None:
        presets._read = _read
        return
    layers = 4 if item.get_closest_marker("four_layers") else 2
    presets._read = _read if item.get_closest_marker("all_layers") else partial(_cut, layers)
    from prunescope.tracer.machine import disturbance

    if not _readings:
        _readings.update({name: getattr(disturbance, name) for name in _NO_READINGS})
    is_real = item.get_closest_marker("machine") is not None
    for name, no_reading in _NO_READINGS.items():
        setattr(disturbance, name, _readings[name] if is_real else no_reading)


def _cut(layers: int, name: str) -> dict[str, Any]:
    """The preset, but tiny-llama with few of its 8 layers: the same code in less time."""
    found = _read(name)
    if name == "tiny-llama":
        found["config"]["num_hidden_layers"] = layers
    return found


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name bytes by their length: packed ones hold the second in which a worker collected them."""
    return f"{len(val)} bytes" if isinstance(val, bytes) else None


def pytest_addoption(parser: pytest.Parser) -> None:
    """Golden numbers are rewritten on request only."""
    parser.addoption("--update-golden", action="store_true", help="write tests/golden/expected")
