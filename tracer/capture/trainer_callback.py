"""A callback for Hugging Face's Trainer that captures steps as `prunescope.capture` does.

In: the steps of a training. Out: a run folder. Users import it as `prunescope.hf.Callback`.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl

from prunescope.tracer.capture.user_capture import UserCapture, capture


class Callback(TrainerCallback):
    """Capture the first steps of a training, and write a run folder behind them.

    A step is one of the optimizer, with all of its accumulated batches. Warm-up, samples and
    profiled steps take warmup + repeats + 1 + steps of them; training then goes on unmeasured.

    Args:
        out: The folder of the run.
        baseline: The dense run that this pruned one is compared with; None makes it the dense one.
        warmup: Steps that are dropped at the start.
        repeats: Steps that are timed without the profiler.
        steps: Steps that the profiler records.
        stop: Whether training ends behind the last captured step.
        overwrite: Whether an existing folder is replaced.

    Raises:
        PrunescopeError: The folder exists, or training ended before all steps had run.

    Examples:
        >>> from prunescope.hf import Callback
        >>> trainer = Trainer(model, args, callbacks=[Callback("traces/training")])
    """

    def __init__(  # noqa: PLR0913 - the options of prunescope.capture
        self,
        out: Path | str,
        *,
        baseline: Path | str | None = None,
        warmup: int = 3,
        repeats: int = 20,
        steps: int = 5,
        stop: bool = False,
        overwrite: bool = False,
    ) -> None:
        self._options: dict[str, Any] = {
            "out": out, "baseline": baseline, "warmup": warmup, "repeats": repeats,
            "steps": steps, "overwrite": overwrite,
        }  # fmt: skip
        self._left = warmup + repeats + 1 + steps
        self._stop = stop
        self._whole, self._step = ExitStack(), ExitStack()
        self._capture: UserCapture | None = None

    def on_train_begin(self, *_: Any, **kwargs: Any) -> None:
        """Open the capture of the model that is trained."""
        self._capture = self._whole.enter_context(capture(kwargs["model"], **self._options))

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Begin a step of the capture."""
        if self._capture is not None:
            self._step.enter_context(self._capture.step())

    def on_step_end(self, _args: Any, _state: Any, control: TrainerControl, **_: Any) -> None:
        """End a step, and behind the last one write the run."""
        if self._capture is None:
            return
        self._step.close()
        self._left -= 1
        if not self._left:
            self._close()
            control.should_training_stop |= self._stop

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Write the run if training ended first: the error says how many steps are missing."""
        self._close()

    def _close(self) -> None:
        self._capture = None
        self._whole.close()
