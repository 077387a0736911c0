"""The Trainer callback: a run of training steps, from a training that goes on behind it."""

from __future__ import annotations

from pathlib import Path

import pytest

import prunescope
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.runs.run import read_run


def trained(folder: Path, steps: int, **options: object) -> int:
    """Train a tiny model for some steps, and return how many ran."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    from prunescope.hf import Callback

    config = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                         num_attention_heads=2, num_key_value_heads=2, vocab_size=64)  # fmt: skip
    ids = torch.arange(16)
    data = [{"input_ids": ids, "labels": ids} for _ in range(2 * steps)]
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"), max_steps=steps, per_device_train_batch_size=2,
        save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    callback = Callback(folder / "run", warmup=1, repeats=2, steps=1, **options)  # type: ignore[arg-type]
    trainer = Trainer(LlamaForCausalLM(config), arguments, train_dataset=data,
                      callbacks=[callback])  # fmt: skip
    trainer.train()
    return int(trainer.state.global_step)


def test_steps_of_a_training_become_a_run(tmp_path: Path) -> None:
    """1 warm-up, 2 samples, 1 thrown away, 1 profiled: 5 of 7 steps."""
    assert trained(tmp_path, 7) == 7
    run = read_run(tmp_path / "run" / "dense")
    (phase,) = run.phases.items()
    assert phase[0] == "training" and len(phase[1].samples_ns) == 2 and phase[1].steps == 1
    (report,) = prunescope.analyze(tmp_path / "run" / "dense").phases.values()
    assert report.pass_kind == "training"


def test_a_training_may_end_behind_the_last_captured_step(tmp_path: Path) -> None:
    assert trained(tmp_path, 9, stop=True) == 5


def test_a_training_that_is_too_short_says_so(tmp_path: Path) -> None:
    with pytest.raises(PrunescopeError, match="ran 3 steps, and 5 are needed"):
        trained(tmp_path, 3)
    assert not (tmp_path / "run").exists()
