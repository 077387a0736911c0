"""The setting of a phase of a run: what captions, sentences and an appendix say of it.

In: the manifest of a run. Out: plain values of schema 1, without those of its times. Lengths are in
tokens. Null: not known.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from prunescope.analysis.schema.fields import meaning


class PhaseWorkload(msgspec.Struct, kw_only=True):
    """The inputs of a phase, the machine, and how it was timed, as its manifest has them."""

    batch: Annotated[int, meaning("sequences", "sequences")]
    prompt_len: Annotated[int, meaning("length of the prompts", "tokens")]
    context: Annotated[int, meaning("mean number of keys that the last token sees", "tokens")]
    dtype: Annotated[str, meaning("number format of the model")]
    mode: Annotated[str, meaning("eager, compile or graph")]
    device: Annotated[str | None, meaning("the device, as its driver names it")] = None
    threads: Annotated[int | None, meaning("of torch on the host")] = None
    on_host: Annotated[bool, meaning("it ran on a CPU, whose threads matter")] = False
    new_tokens: Annotated[int, meaning("positions of a sequence that a sample computes")] = 0
    attention: str = ""
    logits: Annotated[str, meaning("positions whose logits prefill computes: last or all")] = ""
    cache: Annotated[str, meaning("dynamic, static, or none: the model takes none")] = ""
    order: Annotated[str, meaning("of the models' samples: alternating, blocks or alone")] = ""
    warmup: Annotated[int, meaning("samples that were discarded")] = 0
    profiled_steps: int = 0
    flushed: Annotated[bool, meaning("the last-level cache, before each sample and step")] = False
    inputs: Annotated[str | None, meaning("where token ids came from")] = None
    seed: int | None = None
    clocks_hz: Annotated[
        dict[str, list[float | None]], meaning("by part, before and after; empty: not readable")
    ] = {}
    disturbed: Annotated[
        int | None, meaning("samples that something disturbed, all the same kept; null: not known")
    ] = None
    placements: Annotated[int | None, meaning("of the weights in memory; null: not known")] = None
