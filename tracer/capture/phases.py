"""The two loops that are timed and profiled, `prefill` and `decode`, and their steps.

In shapes, B is the batch, S the prompt length and T the number of decode steps. Token ids are fixed
by the seed and never sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch

from prunescope.tracer.model import compat


def prefill(
    model: torch.nn.Module, ids_BS: torch.Tensor, *, cache: Any, logits: str = "last"
) -> Any:
    """Run one forward of a prompt [B, S] on an empty cache."""
    return compat.forward(model, ids_BS, cache=cache, logits=logits)


def decode(
    model: torch.nn.Module, tokens: Iterable[torch.Tensor], *, cache: Any, logits: str = "last"
) -> Any:
    """Run a forward for each token [B, 1] on a filled cache, which grows by one token each."""
    output = None
    for token_B1 in tokens:
        output = compat.forward(model, token_B1, cache=cache, logits=logits)
    return output


class Sampled(Protocol):
    """A loop that is timed sample by sample. `prepare` is never timed."""

    steps_per_sample: int

    def prepare(self) -> None:
        """Bring the cache to the start of a sample."""

    def sample(self) -> Any:
        """Run what one unprofiled sample times."""


class Loop(Sampled, Protocol):
    """A phase of one model, step by step; preparing is never timed or profiled."""

    cache: Any
    run: Any  # the recorded step; None for a new cache, and in eager mode

    def prepare_step(self, index: int) -> None:
        """Bring the cache to the start of profiled step `index`; step −1 is thrown away."""

    def step(self, index: int) -> Any:
        """Run profiled step `index`."""


class PrefillLoop:
    """A loop in which every sample and step is the same forward of [B, S] on a new cache."""

    steps_per_sample = 1

    def __init__(self, model: torch.nn.Module, ids_BS: torch.Tensor, *, logits: str) -> None:
        self.model, self.ids_BS, self.logits = model, ids_BS, logits
        self.cache: Any = None
        self.run: Any = None

    def prepare(self) -> None:
        """Make an empty cache."""
        self.cache = compat.new_cache(self.model)

    def sample(self) -> Any:
        """Run one forward."""
        return prefill(self.model, self.ids_BS, cache=self.cache, logits=self.logits)

    def prepare_step(self, index: int) -> None:  # noqa: ARG002
        """Make an empty cache."""
        self.prepare()

    def step(self, index: int) -> Any:  # noqa: ARG002
        """Run one forward."""
        return self.sample()


class DecodeLoop:
    """A loop that generates tokens: a sample is the tokens at positions S … S+T−1.

    Profiled step i is the token at S+i. The step that is thrown away is the token at S−1, so that
    the kept steps follow it directly.
    """

    def __init__(
        self, model: torch.nn.Module, ids_BL: torch.Tensor, *, prompt_len: int, logits: str
    ) -> None:
        self.model, self.ids_BL, self.logits = model, ids_BL, logits
        self.prompt_len = prompt_len
        self.steps_per_sample = ids_BL.shape[1] - prompt_len
        # The ids are split before anything is timed: a step then has the model's ops alone.
        self._tokens = ids_BL.split(1, dim=1)
        self.cache: Any = None
        self.run: Any = None
        self._filled = 0

    def prepare(self) -> None:
        """Fill the cache with S tokens."""
        self._fill(self.prompt_len)

    def sample(self) -> Any:
        """Run T forwards of one token each."""
        return self._decode(self.prompt_len, self.ids_BL.shape[1])

    def prepare_step(self, index: int) -> None:
        """Fill the cache with S−1 tokens before the step that is thrown away.

        Later steps find the cache as the step before left it.
        """
        if index < 0:
            self._fill(self.prompt_len - 1)

    def step(self, index: int) -> Any:
        """Run one forward of the token at position S + index."""
        return self._decode(self.prompt_len + index, self.prompt_len + index + 1)

    def _decode(self, first: int, end: int) -> Any:
        self._filled = end
        return decode(self.model, self._tokens[first:end], cache=self.cache, logits=self.logits)

    def _fill(self, length: int) -> None:
        """Crop the cache to `length` tokens, or prefill again if it cannot be cropped."""
        surplus = self._filled - length
        if self.cache is None or surplus < 0 or not compat.try_crop(self.cache, surplus):
            self.cache = compat.new_cache(self.model)
            if length:
                prefill(self.model, self.ids_BL[:, :length], cache=self.cache, logits="last")
        self._filled = length


class FlushedLoop:
    """A loop whose samples and profiled steps begin with a flushed last-level cache."""

    def __init__(self, loop: Loop, flush: Callable[[], None]) -> None:
        self._loop, self._flush = loop, flush
        self.steps_per_sample = loop.steps_per_sample

    @property
    def cache(self) -> Any:
        """The cache of the loop."""
        return self._loop.cache

    @cache.setter
    def cache(self, value: Any) -> None:
        self._loop.cache = value

    @property
    def run(self) -> Any:
        """The recorded step of the loop."""
        return self._loop.run

    @run.setter
    def run(self, value: Any) -> None:
        self._loop.run = value

    def prepare(self) -> None:
        """Prepare a sample of the loop, then flush the cache."""
        self._loop.prepare()
        self._flush()

    def sample(self) -> Any:
        """Run a sample of the loop."""
        return self._loop.sample()

    def prepare_step(self, index: int) -> None:
        """Prepare a step of the loop, then flush the cache."""
        self._loop.prepare_step(index)
        self._flush()

    def step(self, index: int) -> Any:
        """Run a step of the loop."""
        return self._loop.step(index)
