"""The file serving.json of a run folder that `prunescope capture` wrote from a serving engine.

It stands next to the traces of the ranks: which engine and model answered, how fast each request
was without the profiler, and what the profiled window held. Times are integer ns. It names no host,
address, path or user.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import Block, Count, FileName, Name, decode, plain
from prunescope.taxonomy.scrub import scrub_values

SERVING = "serving.json"
_MOST_REQUESTS = 100_000
QUANTILES = (50, 90, 99)  # percent


class ServedRequest(Block, kw_only=True):
    """One request, timed without the profiler.

    `tpot_ns` is the mean time between its tokens; null for a single token.
    """

    ttft_ns: Count
    tpot_ns: Count | None
    tokens: Count


class ProfiledWindow(Block, kw_only=True):
    """The requests between the start and the stop of the profiler."""

    prefills: Count  # requests of one token, one after the other
    decodes: Count  # requests at once
    tokens: Count  # that each of these decodes


class ServedTrace(Block, kw_only=True):
    """One trace that the engine wrote, under its name in the folder."""

    file: FileName
    sha256: Name


class Serving(Block, kw_only=True):
    """The contents of serving.json."""

    schema: Literal[1] = 1
    tool: Name = ""
    engine: Name
    model: Name | None
    versions: dict[str, str]
    prompts: Count
    prompt_len: Count | None  # null: prompts of a file
    new_tokens: Count
    concurrency: Count
    requests: Annotated[list[ServedRequest], Meta(max_length=_MOST_REQUESTS)]
    ttft_ns: dict[str, int]  # p50, p90, p99 over the requests
    tpot_ns: dict[str, int]
    profiled: ProfiledWindow
    traces: list[ServedTrace]
    notes: list[str] = []

    def to_dict(self) -> dict[str, Any]:
        """Return plain values without secrets, addresses and paths."""
        values: dict[str, Any] = scrub_values(plain(self))
        return values

    def to_json(self) -> bytes:
        """Return the file as it is written."""
        return (json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n").encode()


def read_serving(folder: Path) -> Serving:
    """Read the serving.json of a folder.

    Raises:
        PrunescopeError: There is none, or it is damaged.
    """
    path = folder / SERVING
    if not path.is_file():
        raise PrunescopeError(
            f"no {SERVING} in {folder.name}/", hint="give what `prunescope capture` wrote"
        )
    return decode(path.read_bytes(), Serving, where=SERVING, hint="capture the engine again")


def percentiles(values: list[int]) -> dict[str, int]:
    """Return the percentiles by their names, each one of the values (the nearest rank)."""
    ordered = sorted(values)
    ranks = {quantile: -(-quantile * len(ordered) // 100) for quantile in QUANTILES}
    return {f"p{quantile}": ordered[rank - 1] for quantile, rank in ranks.items() if rank}
