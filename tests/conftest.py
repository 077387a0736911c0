"""Shared by all tests: real traces beside the checkout, and a cache that is not the user's."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes says nothing but what else runs here.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# A shell that starts the tests in the background ignores Ctrl-C for them, and some of them send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A process of tests a core: more threads in each wait for one another. Read at the first import.
for _name in ("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

_known = [0]  # modules that were imported when the heap was set aside
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def real_trace() -> Callable[[str], Path]:
    """The path of a real trace by its file name; skips where the traces are absent."""

    def find(name: str) -> Path:
        path = SHARED / "traces" / name
        if not path.is_file():
            pytest.skip(f"needs ../shared/data/traces/{name} beside the checkout")
        return path

    return find


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept between runs goes to a folder of the tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def _libraries_set_aside() -> None:
    """A million objects of libraries stay: each look for garbage (captures, training and Hypothesis
    ask for many) would go through them, 0.2 s a time."""
    if len(sys.modules) > _known[0] + 50:
        gc.collect()
        gc.freeze()
        _known[0] = len(sys.modules)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Golden numbers are written anew on request only."""
    parser.addoption("--update-golden", action="store_true", help="write tests/golden/expected")
