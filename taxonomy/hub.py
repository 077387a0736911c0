"""A short check whether the Hub can be reached: its own client tries for half a minute.

In: the Hub's address. Out: nothing, or an OSError. Other code says what a model's id names.
"""

from __future__ import annotations

SECONDS = 5


def reach(address: str) -> None:
    """Send one short request; any answer will do.

    Raises:
        OSError: There is no answer.
        ValueError: `address` is not an address.
    """
    import urllib.request  # ssl and http, for a question that is seldom asked

    try:
        with urllib.request.urlopen(address, timeout=SECONDS):
            return
    except urllib.error.HTTPError:
        return
