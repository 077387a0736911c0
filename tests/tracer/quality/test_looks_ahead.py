"""Whether later tokens change earlier predictions, and the causal form of dynamic-m."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from prunescope.taxonomy.runs.run_quality import TextSource
from prunescope.tracer.calibration.point import Point
from prunescope.tracer.calibration.texts import random_ids
from prunescope.tracer.model import compat
from prunescope.tracer.model.load import load_model
from prunescope.tracer.pruners import family_point, pruner
from prunescope.tracer.quality.quality import Passage, looks_ahead, nats_of

pytestmark = [pytest.mark.torch, pytest.mark.all_layers]


def text(length: int = 128) -> Passage:
    ids = random_ids(1024, batch=1, length=length, seed=1)[0]
    return Passage(ids=ids, bytes_of=None, record=TextSource(), context=length)


@cache
def pruned(family: str, select: str, **knobs: str) -> Any:
    """tiny-llama, pruned: three tests read the one whose routers are fitted to a threshold."""
    model = load_model("tiny-llama", dtype="auto", device=torch.device("cpu"), attn="sdpa").model
    point = family_point(family, Point(sparsity=0.5, knobs=knobs, select=select))
    return pruner(family).prune(model, point).model


class Summing(torch.nn.Module):
    """Logits by the tokens up to each, or by each and the last one."""

    def __init__(self, *, with_last: bool) -> None:
        from transformers import LlamaConfig

        super().__init__()
        self.embed, self.with_last = torch.nn.Embedding(1024, 8), with_last
        self.config = LlamaConfig(num_hidden_layers=1)

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return self.embed

    def forward(self, input_ids: torch.Tensor, past_key_values: Any = None, **_: Any) -> Any:  # noqa: ARG002
        x = self.embed(input_ids)
        x = x + x[:, -1:] if self.with_last else x.cumsum(1)
        return type("Output", (), {"logits": x @ self.embed.weight.T})()


@pytest.mark.parametrize("with_last", [False, True])
def test_an_influence_of_later_tokens_is_measured(with_last: bool) -> None:
    model = Summing(with_last=with_last)
    assert looks_ahead(model, text(), scoring="prefill") is with_last
    assert not looks_ahead(model, text(), scoring="decode")
    assert not looks_ahead(model, text(1), scoring="prefill")


@pytest.mark.parametrize(
    ("family", "select", "knobs", "ahead"),
    [
        ("static-m", "random", {}, False),
        ("dynamic-m", "importance", {}, True),
        ("dynamic-m", "importance", {"choose": "threshold"}, False),
        ("dynamic-m", "random", {}, False),  # numbers know no tokens
        ("dynamic-nk", "importance", {}, True),
        ("dynamic-nk", "importance", {"block": "1"}, False),
    ],
)
def test_families_that_rank_look_ahead(
    family: str, select: str, knobs: dict[str, str], ahead: bool
) -> None:
    assert looks_ahead(pruned(family, select, **knobs), text(), scoring="prefill") is ahead


def test_a_threshold_gives_in_one_forward_what_it_gives_token_by_token() -> None:
    model = pruned("dynamic-m", "importance", choose="threshold")
    in_one = nats_of(model, text(), scoring="prefill")[63:]
    by_token = nats_of(model, text(), scoring="decode")
    assert by_token == pytest.approx(in_one, rel=1e-4)


def test_a_threshold_lets_sequences_of_a_batch_pass_in_different_numbers() -> None:
    """Each as it is alone, though their rows fill one tensor."""
    model = pruned("dynamic-m", "importance", choose="threshold")
    ids = torch.cat([random_ids(1024, batch=1, length=24, seed=seed) for seed in range(3)])

    def logits(rows: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            out: torch.Tensor = compat.forward(
                model, rows, cache=compat.new_cache(model), logits="all"
            ).logits
        return out

    together = logits(ids)
    alone = torch.cat([logits(row.unsqueeze(0)) for row in ids])
    assert torch.allclose(together, alone, atol=1e-4 * float(alone.abs().max()))


def test_random_numbers_pass_a_threshold_with_the_share_that_is_kept() -> None:
    model = pruned("dynamic-m", "random", choose="threshold")
    with torch.no_grad():
        model(random_ids(1024, batch=2, length=128, seed=0))
    counts = [m.prunescope_stats() for m in model.modules() if hasattr(m, "prunescope_stats")]
    active, total = (sum(sum(getattr(c, name)) for c in counts) for name in ("active", "total"))
    assert active / total == pytest.approx(0.5, abs=0.05)
