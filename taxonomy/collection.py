"""A pause of Python's cyclic garbage collector while many objects without cycles are created.

In: nothing. Out: a context in which the collector does not run. The collector looks at everything
that is alive again and again, which takes a fifth of a grid of predictions and most of the reading
of a large trace.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_collection() -> Iterator[None]:
    """Leave garbage that is a cycle for later."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
