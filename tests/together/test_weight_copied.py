"""A weight that torch copies at every call: found in a real capture, and gone when the change that
the finding advises is made. In bf16, which libraries multiply in batches from a copy alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Phase
from prunescope.tracer.capture import device_state
from prunescope.tracer.capture.user_capture import capture
from tests.analysis.finding_cases import found
from tests.small_capture import PEAKS

pytestmark = pytest.mark.torch

LENGTH, HIDDEN, WORDS = 32, 128, 32_768


@pytest.fixture(scope="module")
def frozen() -> Any:
    """A small model with a large vocabulary that does not require grad, as users freeze one."""
    config = LlamaConfig(
        hidden_size=HIDDEN, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=WORDS, tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval().to(torch.bfloat16).requires_grad_(False)


def measured(model: Any, keep: int | torch.Tensor, out: Path) -> Phase:
    """The phase of a loop that asks for the logits of the last token so."""
    ids, few = torch.arange(LENGTH).reshape(1, LENGTH), {"warmup": 1, "repeats": 3, "steps": 3}
    with capture(model, out=out, **few) as c, torch.inference_mode():  # type: ignore[arg-type]
        for _ in range(8):
            with c.step():
                model(ids, logits_to_keep=keep)
    return analyze(out).report.phases["prefill"]


def test_the_advised_change_gains_what_was_predicted(
    frozen: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_state, "measure_peaks", lambda *_: PEAKS)
    before = measured(frozen, 1, tmp_path / "slice")
    after = measured(frozen, torch.tensor([LENGTH - 1]), tmp_path / "index")
    assert found(after, "weight-copied") is None
    if not before.roles["lm_head"] > 2 * after.roles["lm_head"]:
        pytest.skip("this processor multiplies bf16 in batches without a copy")
    copied = found(before, "weight-copied")
    assert copied is not None
    assert f"lm_head: {WORDS}×{HIDDEN}, 1 a step" in copied.evidence[0]
    assert "logits_to_keep an index tensor" in str(copied.change)
    if before.invalid_times:  # then no gain is predicted
        assert copied.predicted_ns is None
        pytest.skip("other work disturbed the timing of this capture")
    assert copied.predicted_ns is not None
    gained = before.wall_ns - after.wall_ns
    # Of the same size: what else runs on the machine moves a wall by more than this gain.
    assert copied.predicted_ns / 4 < gained < 4 * copied.predicted_ns
