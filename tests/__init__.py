"""Tests. A package, so that `tests.chrome` is ours and not somebody's stray top-level `tests`."""
