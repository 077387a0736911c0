"""Your own loop around a dense and a pruned model: `with c.step():` goes around each step.

python examples/own_loop.py [FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import prunescope

WARMUP, REPEATS, STEPS = 2, 6, 2


class Encoder(torch.nn.Module):
    """Any module works: this one is not a language model."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.Linear(256, width), torch.nn.GELU(),
                                torch.nn.Linear(width, 256))
            for _ in range(4)
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, tokens, 256] -> the same."""
        for block in self.blocks:
            x = x + block(x)
        return x


def capture(width: int, out: Path, baseline: Path | None) -> None:
    """One run folder of WARMUP + REPEATS + 1 + STEPS steps."""
    model = Encoder(width).eval()
    x = torch.randn(1, 128, 256)
    with (
        prunescope.capture(
            model, out=out, baseline=baseline, warmup=WARMUP, repeats=REPEATS, steps=STEPS,
            overwrite=True,
        ) as c,
        torch.no_grad(),
    ):  # fmt: skip
        for _ in range(WARMUP + REPEATS + 1 + STEPS):
            with c.step():
                model(x)


def main(folder: Path) -> None:
    """Capture a model of 1024 channels, then one of 512 with it as the baseline."""
    capture(1024, folder / "loop-dense", None)
    capture(512, folder / "loop-pruned", folder / "loop-dense")
    report = prunescope.analyze(folder / "loop-pruned")
    report.show()
    assert {row["axis"] for row in report.gemms} == {"N", "K"}


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "traces"))
