"""A short check whether the Hub can be reached: its own client tries for half a minute.

In: its address. Out: nothing, or an OSError. What a model's id names is for others to say.
"""

from __future__ import annotations

SECONDS = 5


def reach(address: str) -> None:
    """One short request; any answer will do. Raises OSError where there is none, ValueError where
    `address` is none."""
    import urllib.request  # ssl and http, for a question that is seldom asked

    try:
        with urllib.request.urlopen(address, timeout=SECONDS):
            return
    except urllib.error.HTTPError:
        return
