"""Steps that a graph can hold: every shape is known beforehand, and the host decides nothing.

In: the forwards of one sample. Out: a StaticStep, which the modules of dynamic families find by
`static_step` while it runs. They then keep a fixed number of rows, blocks or keys, read masks in
place of lengths, and take random numbers that were sampled before the step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class StaticStep:
    """A forward with static shapes on a static cache; `prompt` tells whether it fills an empty one.

    `turn` [1] counts the forwards of a sample on the device. `random_numbers` holds, by the number
    of a sampler, a tensor [num_forwards, ..] of its random numbers.
    """

    def __init__(self, *, prompt: bool, num_forwards: int, device: torch.device) -> None:
        self.prompt, self.num_forwards = prompt, num_forwards
        self.turn = torch.zeros(1, dtype=torch.long, device=device)
        self.random_numbers: dict[int, Tensor] = {}
        self._fills: dict[int, Callable[[], Tensor]] = {}

    def begin(self) -> None:
        """Let modules run in their static form from now on."""
        _RUNNING.step = self

    def end(self) -> None:
        """End one forward, and let modules run in their eager form again."""
        _RUNNING.step = None
        if self.num_forwards > 1:
            self.turn.add_(1)

    def hold(self, number: int, sample: Callable[[], Tensor]) -> None:
        """Sample the random numbers of a sampler for all forwards: [num_forwards, ..].

        `sample` returns those of one forward. Numbers of another shape that were held before are
        replaced.
        """
        self.random_numbers[number] = torch.stack([sample() for _ in range(self.num_forwards)])
        self._fills[number] = sample

    def held(self, number: int) -> Tensor:
        """Return the random numbers of this forward for the sampler `number`."""
        numbers = self.random_numbers[number]
        return numbers[0] if self.num_forwards == 1 else numbers.index_select(0, self.turn)[0]

    def resample(self) -> None:
        """Take new random numbers before a sample, in the order of an eager model."""
        self.turn.zero_()
        for row in range(self.num_forwards):
            for number, sample in self._fills.items():
                self.random_numbers[number][row].copy_(sample())


class _Running:
    """The holder of the static step that runs now."""

    step: StaticStep | None = None


_RUNNING = _Running()


def static_step() -> StaticStep | None:
    """Return the static step that runs now; None where the host may decide."""
    return _RUNNING.step
