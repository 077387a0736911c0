"""Chrome traces kept in memory until they are written: a session's events are some ten thousand
small dicts, which take thirty times as much as their text and hundreds of times what that packs to.
"""

from __future__ import annotations

import json
import zlib

from prunescope.taxonomy.collection import no_collection
from prunescope.tracer.capture.chrome import ChromeTrace

_LEVEL = 1  # 6 takes four times as long and halves it


class Packed:
    """A Chrome trace as compressed JSON."""

    def __init__(self, trace: ChromeTrace) -> None:
        text = json.dumps(trace, separators=(",", ":"), allow_nan=False)
        self._packed = zlib.compress(text.encode(), _LEVEL)

    def trace(self) -> ChromeTrace:
        """The trace, anew at each call."""
        with no_collection():
            unpacked: ChromeTrace = json.loads(zlib.decompress(self._packed))
        return unpacked
