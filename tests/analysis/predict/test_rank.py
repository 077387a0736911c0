"""Which family, here? Equal shares, order, ties, and what is left out with its reason."""

from __future__ import annotations

import io
from functools import cache
from typing import Any

import msgspec
import pytest
from rich.console import Console

from prunescope.analysis.predict.rank import WORKLOADS, rank
from prunescope.analysis.predict.setting import PredictRequest
from prunescope.analysis.report.predict_table import prediction
from prunescope.taxonomy.errors import PrunescopeError


@cache
def ranked(workload: str = "chat", device: str = "h100-sxm") -> dict[str, Any]:
    request = PredictRequest(model="llama-3.2-1b", device=device, workload=workload, sparsity=0.25)
    return dict(msgspec.to_builtins(rank(request)))


def test_all_remove_the_same_share_as_near_as_their_units_allow() -> None:
    for by, rows in ranked()["by"].items():
        assert len(rows) >= 4
        for row in rows:
            if row["family"] != "static-k-24":  # one sparsity
                assert row["removed"][by] == pytest.approx(0.25, abs=0.04), row["family"]


def test_the_fastest_first_and_ties_by_range() -> None:
    for rows in ranked()["by"].values():
        gains = [row["speedup"] for row in rows]
        assert gains == sorted(gains, reverse=True)
        assert rows[0]["ties"] is True
        for row in rows:
            assert row["range"][0] < row["speedup"] < row["range"][1]
            assert row["ties"] == (row["range"][1] >= rows[0]["range"][0])


def test_every_family_is_ranked_or_left_out_with_a_reason() -> None:
    from prunescope.taxonomy.families import families

    found = ranked()
    named = {row["family"] for row in found["by"]["flop"]} | set(found["left_out"])
    assert named == {one.id for one in families()} - {"dense"}
    assert all(found["left_out"].values())


def test_long_prompts_and_many_sequences_are_other_questions() -> None:
    chat, rag = (
        {row["family"]: row["speedup"] for row in ranked(name)["by"]["flop"]}
        for name in ("chat", "rag")
    )
    # routed tokens save work in a prompt; a step of several sequences reads all weights anyway
    assert rag["dynamic-m"] > chat["dynamic-m"] + 0.02
    assert set(WORKLOADS) == {"chat", "rag", "batch", "long", "agent"}


def test_a_table_of_it() -> None:
    out = io.StringIO()
    Console(file=out, width=80, highlight=False).print(prediction(ranked()))
    assert "at equal FLOPs" in out.getvalue() and "ties" in out.getvalue()
    assert "not equal quality" in " ".join(out.getvalue().split())


def test_sizes_of_ones_own_and_mistakes() -> None:
    own = PredictRequest(model="llama-3.2-1b", device="h100-sxm", batch=2, prompt_len=64,
                         new_tokens=8, sparsity=0.5)  # fmt: skip
    assert rank(own).workload["prompt_len"] == 64
    with pytest.raises(PrunescopeError, match="chat"):
        rank(PredictRequest(model="llama-3.2-1b", device="h100-sxm", workload="picnic"))
    with pytest.raises(PrunescopeError, match="one share"):
        rank(PredictRequest(model="llama-3.2-1b", device="h100-sxm", sparsity="0.1,0.2"))
