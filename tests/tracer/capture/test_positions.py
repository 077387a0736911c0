"""Learnt positions: no phase passes their end, and a prompt takes none of an image's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.tracer.capture.request import TraceRequest
from prunescope.tracer.capture.variants import make_variants
from tests.tracer.tiny_models import tiny_model

pytestmark = pytest.mark.torch

CPU = torch.device("cpu")


@pytest.mark.parametrize(("name", "table"), [("gpt2", 128), ("opt", 128), ("gemma3", None)])
def test_the_longest_prompt_ends_with_the_table(
    name: str, table: int | None, tmp_path: Path
) -> None:
    """With 8 steps of decode behind it; rotated positions never end."""
    tiny_model(name).save_pretrained(tmp_path)
    for length in (120, 121):
        request = TraceRequest(
            model=str(tmp_path), out=tmp_path / "out", prompt_len=length, decode_steps=8
        )
        if table is None or length + 8 <= table:
            assert make_variants(request, CPU, ("dense",))
            continue
        with pytest.raises(PrunescopeError, match=f"129 .* {table} learnt positions") as failure:
            make_variants(request, CPU, ("dense",))
        assert "--prompt-len 120 " in failure.value.hint


def test_a_tower_has_positions_of_its_own(tmp_path: Path) -> None:
    """Of an image's 4 patches here."""
    model = tiny_model("gemma3 multimodal")
    assert model.model.vision_tower.embeddings.position_embedding.num_embeddings == 4
    model.save_pretrained(tmp_path)
    request = TraceRequest(model=str(tmp_path), out=tmp_path / "out", prompt_len=12)
    assert make_variants(request, CPU, ("dense",))
