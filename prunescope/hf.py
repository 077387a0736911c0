"""What Hugging Face's Trainer takes: `from prunescope.hf import Callback`.

It is imported by its own name, as it loads torch and transformers.
"""

from __future__ import annotations

from prunescope.tracer.capture.trainer_callback import Callback as Callback
