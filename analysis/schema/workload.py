"""The setting of a phase of a run: what captions and sentences say of it. Plain values of schema 1.

Lengths are in tokens. Null: not known.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from prunescope.analysis.schema.fields import meaning


class Workload(msgspec.Struct, kw_only=True):
    """The inputs of a phase, and the machine that ran it, as its manifest has them."""

    batch: Annotated[int, meaning("sequences", "sequences")]
    prompt_len: Annotated[int, meaning("length of the prompts", "tokens")]
    context: Annotated[int, meaning("mean number of keys that the last token sees", "tokens")]
    dtype: Annotated[str, meaning("number format of the model")]
    mode: Annotated[str, meaning("eager, compile or graph")]
    device: Annotated[str | None, meaning("the device, as its driver names it")] = None
    threads: Annotated[int | None, meaning("of a CPU")] = None
