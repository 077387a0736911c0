"""Recovery training on a tiny model that reads bytes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.tracer.calibration.texts import random_ids
from prunescope.tracer.capture.weight_stats import weight_stats
from prunescope.tracer.model.load import load_model
from prunescope.tracer.recovery import recover as recovery
from prunescope.tracer.recovery import training
from prunescope.tracer.recovery.adapters import attach, zero_shares
from prunescope.tracer.recovery.examples import read_examples
from prunescope.tracer.recovery.settings import Recovery
from prunescope.tracer.recovery.storage import trainings_stored

pytestmark = pytest.mark.torch


def test_the_loss_falls_and_the_model_is_built_as_before(recovered: Any) -> None:
    model, pruning = recovered("static-m", "steps=20")
    record = pruning["recovery"]
    held_out = record["losses"]["held_out"]
    assert held_out["after"] < held_out["before"] - 1
    assert (record["steps"], record["rank"], record["batch"], record["length"]) == (20, 4, 2, 32)
    assert record["train_sha256"] != record["eval_sha256"]
    assert (record["text"], record["resumed_from"], record["stopped"]) == ("words.txt", None, None)
    assert len(record["losses"]["train"]) == 20
    assert not [name for name, _ in model.named_modules() if "lora" in name or "base" in name]
    assert {type(m) for n, m in model.named_modules() if n.endswith("_proj")} == {nn.Linear}
    assert all(p.requires_grad for p in model.parameters())  # as a model comes from its library
    assert record["weights_sha256"] == recovery.weights_sha256(model)


def test_a_seed_gives_the_same_weights(recovered: Any) -> None:
    marks = [recovered("static-nk-mlp", "steps=3", seed=n)[1]["recovery"] for n in (0, 0, 1)]
    assert marks[0]["weights_sha256"] == marks[1]["weights_sha256"] != marks[2]["weights_sha256"]
    assert marks[0]["losses"] == marks[1]["losses"]


@pytest.mark.parametrize("method", ["static-k-24", "static-k-mask"])
@pytest.mark.parametrize("select", ["random", "importance"])
def test_zeros_stay_where_they_are(recovered: Any, method: str, select: str) -> None:
    chosen = {} if select == "random" else {"select": select}
    plain, _ = recovered(method, None, **chosen)
    model, pruning = recovered(method, **chosen)
    for (name, one), (_, other) in zip(
        plain.named_parameters(), model.named_parameters(), strict=True
    ):
        assert torch.equal(one == 0, other == 0), name
    rows = {r.name: r for r in weight_stats(model).matrices if r.zeros}
    assert len(rows) == 14
    if method == "static-k-24":
        assert {r.groups_2_of_4 for r in rows.values()} == {1.0}
    assert "the zeros of 14 matrices stayed zeros" in pruning["recovery"]["notes"]
    assert pruning["recovery"]["losses"]["held_out"]["after"] < 6.5


def test_what_is_merged_is_what_was_trained(recovered: Any) -> None:
    """A masked update is masked in training too: the last training loss is that of the merged
    model, not of one whose zeros came and went."""
    _, pruning = recovered("static-k-mask", "steps=30,batch=8", sparsity=0.75)
    losses = pruning["recovery"]["losses"]
    assert losses["held_out"]["after"] < losses["train"][-1][1] + 0.3


def test_both_factors_of_a_low_rank_are_trained(recovered: Any) -> None:
    plain, _ = recovered("static-k-lowrank", None)
    model, _ = recovered("static-k-lowrank")
    before = dict(plain.named_parameters())
    moved = {n for n, p in model.named_parameters() if not torch.allclose(p, before[n], atol=1e-5)}
    assert {n.split(".", 3)[3] for n in moved} == {
        f"{part}.{name}_proj.{factor}.weight"
        for part, names in (("self_attn", "qkvo"), ("mlp", ("gate", "up", "down")))
        for name in names
        for factor in ("first", "second")
    }


def test_a_target_is_what_is_trained(recovered: Any) -> None:
    plain, _ = recovered("static-m", None)
    model, _ = recovered("static-m", "target=attention")
    before = dict(plain.named_parameters())
    moved = {n for n, p in model.named_parameters() if not torch.allclose(p, before[n], atol=1e-5)}
    assert {n.rsplit(".", 3)[1] for n in moved} == {"self_attn"}
    assert {n.rsplit(".", 2)[1] for n in moved} == {"q_proj", "k_proj", "v_proj", "o_proj"}


class Killed(BaseException):
    """Stands in for a signal."""


class Killer:
    """A progress that dies after so many steps."""

    def __init__(self, after: int) -> None:
        self.left, self.said = after, ""

    def stage(self, name: str, total: int | None = None) -> None:
        """Nothing."""

    def describe(self, text: str) -> None:
        self.said = text

    def advance(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed


def test_a_killed_training_goes_on(
    recovered: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "SAVE_S", 0.0)
    _, whole = recovered("static-m")
    for after in (0, 1, 4):  # steps before the kill
        folder = tmp_path / str(after)
        with pytest.raises(Killed), trainings_stored(folder, Killer(after)):
            recovered("static-m")
        with trainings_stored(folder, None):
            _, cut = recovered("static-m")
        assert cut["recovery"]["resumed_from"] == (after or None), after
        assert cut["recovery"]["weights_sha256"] == whole["recovery"]["weights_sha256"], after
        assert cut["recovery"]["losses"] == whole["recovery"]["losses"], after
    with trainings_stored(folder, None):  # what is done is not done again
        _, done = recovered("static-m")
    assert done["recovery"]["resumed_from"] == 6
    assert done["recovery"]["weights_sha256"] == whole["recovery"]["weights_sha256"]


def test_a_checkpoint_of_another_training_is_none(recovered: Any, tmp_path: Path) -> None:
    with trainings_stored(tmp_path, None):
        recovered("static-m")
        _, other = recovered("static-m", "lr=0.002")
    assert other["recovery"]["resumed_from"] is None
    files = list(tmp_path.glob("*.safetensors"))
    assert len(files) == 1
    files[0].write_bytes(b"\xff" * 100)
    with trainings_stored(tmp_path, None):
        _, anew = recovered("static-m")
    assert anew["recovery"]["resumed_from"] is None


def test_progress_tells_the_loss_and_the_time_left(recovered: Any, tmp_path: Path) -> None:
    progress = Killer(after=3)
    with pytest.raises(Killed), trainings_stored(tmp_path, progress):
        recovered("static-m")
    assert progress.said.startswith("train static-m 0.5 random seed 0: loss ")
    assert progress.said.endswith(" s left")


@pytest.mark.parametrize(("bad", "at"), [(math.nan, 3), (math.inf, 2), (50.0, 4)])
def test_numbers_that_explode_end_in_a_sentence(
    recovered: Any, monkeypatch: pytest.MonkeyPatch, bad: float, at: int
) -> None:
    calls = 0
    plainly = recovery._Backward.__call__

    def explode(self: Any, batch: torch.Tensor) -> float:
        nonlocal calls
        calls += 1
        return plainly(self, batch) if calls < at else bad

    monkeypatch.setattr(recovery._Backward, "__call__", explode)
    model, pruning = recovered("static-m", "lr=0.001")
    record = pruning["recovery"]
    assert f"diverged at step {at} of 6" in record["stopped"]
    assert record["stopped"] in record["notes"]
    assert record["steps_done"] == at - 1
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    held_out = record["losses"]["held_out"]
    assert held_out["after"] <= held_out["before"] + 0.01


@pytest.mark.parametrize(
    ("recover", "problem"),
    [("rank=500", "rank=500 is above the smallest dimension"),
     ("target=qq", "has no qq")],
)  # fmt: skip
def test_a_mistake_is_one_sentence(recovered: Any, recover: str, problem: str) -> None:
    with pytest.raises(PrunescopeError, match=problem) as error:
        recovered("static-m", recover)
    assert error.value.hint


def test_a_length_is_what_the_model_knows(recovered: Any) -> None:
    _, pruning = recovered("static-m", "steps=1,batch=1,length=1000000")
    assert pruning["recovery"]["length"] == 512


def test_ten_words_are_no_text(recovered: Any, tmp_path: Path) -> None:
    (tmp_path / "ten.txt").write_text("one two three four five six seven eight nine ten")
    with pytest.raises(PrunescopeError, match="half of ten.txt has"):
        recovered("static-m", f"text={tmp_path / 'ten.txt'}")


def test_a_composite_and_a_method_of_the_users_own(recovered: Any) -> None:
    for method in ("static-m:0.5+static-k-24:0.5", "tests.tracer.recovery.own:halved"):
        model, pruning = recovered(method)
        assert pruning["recovery"]["losses"]["held_out"]["after"] < 6.5
        zeros = [r for r in weight_stats(model).matrices if r.zeros > 0.4]
        assert len(zeros) == (7 if "static" in method else 2)


def test_every_epoch_takes_every_row_once() -> None:
    rows = torch.arange(7).unsqueeze(1).expand(7, 4)
    read = recovery.Examples(
        rows=rows, held_out=rows, train_sha256="", eval_sha256="", source="numbers"
    )
    taken = torch.cat([read.batch(step, 3, seed=5)[:, 0] for step in range(7)]).tolist()
    epochs = [taken[0:7], taken[7:14], taken[14:21]]
    assert [sorted(epoch) for epoch in epochs] == [list(range(7))] * 3
    assert epochs[0] != epochs[1]


def test_random_ids_train_where_there_is_no_tokenizer(tmp_path: Path) -> None:
    model = load_model("tiny-llama", dtype="auto", device=torch.device("cpu"), attn="sdpa").model
    wanted = recovery.Recovery(steps=2, rank=2, length=16)
    record = recovery.recover(model, None, wanted, name="dense", seed=3)
    assert record.text == "random token ids"
    assert record.train_sha256 != record.eval_sha256
    (tmp_path / "a.txt").write_text("some words " * 9000)
    for name, says in (("a.txt", "no tokenizer to read a.txt"), ("b.txt", "b.txt is not a file")):
        wanted = recovery.Recovery(steps=2, rank=2, text=tmp_path / name)
        with pytest.raises(PrunescopeError, match=says):
            recovery.recover(model, None, wanted, name="dense", seed=3)


def test_random_ids_that_judge_are_others_than_those_that_train() -> None:
    wanted = recovery.Recovery(steps=8, rank=2, length=16)
    read = read_examples(None, wanted, vocabulary=512, longest=None, seed=3)
    parts = [read.rows, read.held_out, random_ids(512, batch=8, length=16, seed=3)]
    rows = [{tuple(row) for row in part.tolist()} for part in parts]
    assert all(rows)
    assert not rows[0] & rows[1] and not rows[0] & rows[2] and not rows[1] & rows[2]


@pytest.mark.parametrize(
    ("of_dense", "of_pruned", "masked"),
    [
        (0.07, 0.07, False),  # dequantised 4-bit weights: no mask
        (0.07, 0.3, True),  # a mask of the user's own on top of them
        (0.0, 0.1, True),
        (0.5, 0.5, True),  # a checkpoint that was masked before
        (0.0, 0.02, False),
    ],
)
def test_zeros_that_were_there_before_pruning_are_no_mask(
    of_dense: float, of_pruned: float, masked: bool
) -> None:
    def with_zeros(share: float) -> Any:
        model = load_model(
            "tiny-llama", dtype="fp32", device=torch.device("cpu"), attn="sdpa"
        ).model
        for name, parameter in model.named_parameters():
            if name.endswith("q_proj.weight"):
                parameter.data.flatten()[: int(share * parameter.numel())] = 0.0
        return model

    wanted = Recovery(steps=1, rank=4)
    before = zero_shares(with_zeros(of_dense))
    found = attach(with_zeros(of_pruned), wanted, seed=0, masks=False, before=before).masked
    assert {path.rpartition(".")[2] for path in found} == ({"q_proj"} if masked else set())
