"""How a point of a sweep was run: a batch and a length, and each axis of its sweep.

Planned results, points and cells have these fields, which are written once here. Only points of one
setting are compared with each other.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from prunescope.taxonomy.formats import Size
from prunescope.taxonomy.words import plural


class RunSetting(msgspec.Struct, kw_only=True, frozen=True):
    """A batch and a length, and how the models ran."""

    batch: Size
    prompt_len: Size
    mode: Annotated[str, Meta(description="eager, compile or graph")] = "eager"
    attn: Annotated[str, Meta(description="attention implementation")] = "sdpa"
    logits: Annotated[str, Meta(description="positions whose logits prefill computes")] = "last"
    flush: Annotated[
        bool, Meta(description="the last-level cache was flushed before each sample and step")
    ] = False
    warmup: Annotated[int, Meta(description="samples that were discarded")] = 3
    only: Annotated[
        Literal["model", "layer"],
        Meta(description='what ran: the whole "model", or one decoder "layer" of it alone'),
    ] = "model"

    def __lt__(self, other: RunSetting) -> bool:
        """Sort whole models before layers, then in the order of the fields."""
        return self._rank < other._rank

    @property
    def _rank(self) -> tuple[Any, ...]:
        values = tuple(getattr(self, name) for name in RunSetting.__struct_fields__)
        return self.only != "model", *values

    @property
    def setting(self) -> RunSetting:
        """How a point, a cell or a planned result ran, without what else it holds."""
        return RunSetting(**{name: getattr(self, name) for name in RunSetting.__struct_fields__})

    @property
    def where(self) -> str:
        """The setting in words: `batch 1, 64 tokens`, and what is not as usual."""
        words = [f"batch {self.batch}", f"{self.prompt_len} tokens"]
        usual = RunSetting(batch=self.batch, prompt_len=self.prompt_len)
        names = {
            "mode": f"{self.mode}",
            "attn": f"{self.attn} attention",
            "logits": f"{self.logits} logits",
            "flush": "cache flushed",
            "warmup": f"{self.warmup} warm-up{plural(self.warmup)}",
            "only": f"one {self.only} alone",
        }
        differing = [name for name in names if getattr(self, name) != getattr(usual, name)]
        return ", ".join(words + [names[name] for name in differing])
