"""The loss of a training, made a part of the tokens at a time, is the plain one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.four_layers]

V = 50


class Fixed(torch.nn.Module):  # type: ignore[misc]
    """Gives a parameter as logits [2, 7, 50]; `dropped` tokens fewer."""

    def __init__(self, dtype: Any, dropped: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.given = torch.nn.Parameter(torch.randn(2, 7, V).to(dtype))
        self.embed, self.dropped = torch.nn.Embedding(V, 4), dropped

    def get_input_embeddings(self) -> Any:
        return self.embed

    def forward(self, input_ids: Any, *, use_cache: bool) -> Any:
        assert input_ids.shape == (2, 7)
        assert not use_cache
        return SimpleNamespace(logits=self.given[:, self.dropped :])


@pytest.mark.parametrize("part_bytes", [1, 4 * V * 3, 1 << 20])  # one token, three, all
@pytest.mark.parametrize(
    ("dtype", "near"), [("float64", 1e-6), ("float32", 1e-6), ("bfloat16", 1e-2)]
)
def test_parts_sum_to_the_whole(
    part_bytes: int, dtype: str, near: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunescope.tracer.recovery import recover

    monkeypatch.setattr(recover, "_PART_BYTES", part_bytes)
    model = Fixed(getattr(torch, dtype))
    rows = torch.arange(14).reshape(2, 7)
    loss = recover._summed_loss(model, rows)
    assert loss is not None
    loss.backward()

    plain = model.given.detach().float().requires_grad_()
    wanted = torch.nn.functional.cross_entropy(
        plain[:, :-1].flatten(0, 1), rows[:, 1:].flatten(), reduction="sum"
    )
    wanted.backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert torch.allclose(model.given.grad.float(), plain.grad, atol=near)
    assert not model.given.grad[:, -1].any()  # nothing follows the last token


def test_dropped_tokens_have_no_loss() -> None:
    from prunescope.tracer.recovery.recover import _summed_loss

    assert _summed_loss(Fixed(torch.float32, dropped=2), torch.arange(14).reshape(2, 7)) is None


class Counting(torch.nn.Module):  # type: ignore[misc]
    """Logits by the id of a token alone: that of the next id is as large as the id, in tenths."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(V, 4)

    def get_input_embeddings(self) -> Any:
        return self.embed

    def forward(self, input_ids: Any, *, use_cache: bool) -> Any:
        assert not use_cache
        logits = torch.zeros(*input_ids.shape, V)
        logits[..., :-1, 0] = -input_ids[..., 1:].float() / 10
        return SimpleNamespace(logits=logits)


def test_held_out_losses_have_means_of_blocks() -> None:
    """Three rows of 100 tokens, 99 scored each: blocks 0-127, 128-255 and 256-299 of the text hold
    126, 127 and 44 scored tokens (positions 0, 100 and 200 have none)."""
    from prunescope.tracer.recovery.recover import held_out_losses, token_losses

    rows = torch.zeros(3, 100, dtype=torch.long)
    nats = token_losses(Counting(), rows)
    assert nats is not None
    assert nats.tolist() == pytest.approx([torch.tensor(50.0).log().item()] * 297)
    before = nats + torch.arange(297)
    found = held_out_losses(before, None, rows)
    assert (found.tokens, found.block, found.block_tokens) == (300, 128, [126, 127, 44])
    assert found.before == pytest.approx(float(before.mean()))
    assert found.before_by_block[0] == pytest.approx(float(before[:126].mean()))
    assert found.before_ci95 is not None and found.before_ci95[0] < found.before
    assert (found.after, found.after_ci95, found.after_by_block) == (None, None, [])
    single = held_out_losses(before[:99], before[:99], rows[:1])
    assert (single.block_tokens, single.before_ci95, single.after_ci95) == ([99], None, None)
