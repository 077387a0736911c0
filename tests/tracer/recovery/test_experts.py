"""A mixture that lost half of its experts is trained: what lies around them, not the experts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from prunescope.taxonomy.runs.run_blocks import Pruning
from prunescope.tracer.capture.application import apply_request
from prunescope.tracer.capture.request import TraceRequest
from prunescope.tracer.model.load import load_model
from tests.tracer.mixtures import E, mixture

pytestmark = [pytest.mark.torch, pytest.mark.four_layers]


def pruned(reader: Path, folder: Path, recover: Any) -> tuple[Any, Pruning]:
    request = TraceRequest(
        model=str(folder), out=Path("unused"), method="static-experts", sparsity=0.5,
        knobs={"how": "merge"}, select="frequency", text=reader / "words.txt", recover=recover,
    )  # fmt: skip
    request.check()
    loaded = load_model(request.model, dtype="auto", device=torch.device("cpu"), attn="sdpa")
    applied, pruning = apply_request(request, loaded)
    return applied.model, pruning


def test_attention_learns_and_experts_stay(reader: Path, tmp_path: Path) -> None:
    shutil.copytree(reader / "model", tmp_path / "moe")
    mixture("olmoe").save_pretrained(tmp_path / "moe")
    before, _ = pruned(reader, tmp_path / "moe", None)
    settings = {"steps": "6", "rank": "4", "length": "32", "lr": "0.01"}
    after, pruning = pruned(reader, tmp_path / "moe", settings)
    assert pruning.recovery is not None and pruning.recovery.losses is not None
    held_out = pruning.recovery.losses.held_out
    assert held_out is not None and held_out.before and held_out.after
    assert held_out.after < held_out.before - 0.5
    assert any("experts" in note for note in pruning.recovery.notes)
    assert (pruning.calibration or {})["text"] == "words.txt"
    assert pruning.selection == "frequency"
    own, trained = (dict(model.named_parameters()) for model in (before, after))
    moved = {name for name in own if not torch.equal(own[name], trained[name])}
    assert moved and all("self_attn" in name for name in moved)
    assert trained["model.layers.0.mlp.experts.down_proj"].shape[0] == E // 2
