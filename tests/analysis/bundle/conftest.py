"""All tests of bundles rebuild the figures of a run once."""

from tests.analysis.bundle.rebuilt_once import rebuilt_once

__all__ = ["rebuilt_once"]
