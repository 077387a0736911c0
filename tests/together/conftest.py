"""The captures of tests/tracer, for tests that read them back with the analysis."""

from __future__ import annotations

from tests.tracer.conftest import _one_thread, quick, static_m, tiny

__all__ = ["_one_thread", "quick", "static_m", "tiny"]
