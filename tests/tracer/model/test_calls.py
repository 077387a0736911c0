"""What one call of a model is: batch, length, and that channels are no tokens."""

from __future__ import annotations

import pytest
import torch

from prunescope.tracer.model.calls import call_shape


class Convolves(torch.nn.Module):
    """A model whose first layer reads [B, channels, time], as an encoder of speech does."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.first = torch.nn.Conv1d(channels, width, 3)
        self.last = torch.nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.last(self.first(x).transpose(1, 2))
        return hidden


@pytest.mark.parametrize(
    ("model", "shape", "expected"),
    [
        (Convolves(80, 64), (2, 80, 300), (2, 1)),  # 80 channels are no prompt of 80 tokens
        (torch.nn.Linear(64, 64), (2, 80, 64), (2, 80)),
        (Convolves(80, 64), (2, 80, 64), (2, 80)),  # a linear layer reads the last dimension
        (torch.nn.Conv2d(3, 8, 3), (4, 3, 32, 32), (4, 1)),
    ],
)
def test_channels_are_no_tokens(
    model: torch.nn.Module, shape: tuple[int, ...], expected: tuple[int, int]
) -> None:
    call = call_shape(model, (torch.zeros(shape),), {})
    assert (call["batch"], call["length"]) == expected
