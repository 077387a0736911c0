"""What `--recover` says: every mistake is one sentence, before a model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.tracer.capture.request import TraceRequest
from prunescope.tracer.recovery.settings import Recovery, read_recovery


def test_words_and_mappings_say_the_same() -> None:
    wanted = Recovery(steps=30, rank=8, lr=1e-3, text=Path("a.txt"), target="q+v")
    words = "steps=30, rank=8,lr=1e-3,text=a.txt,target=q+v"
    plain = {"steps": 30, "rank": 8, "lr": 1e-3, "text": "a.txt", "target": "q+v"}
    assert read_recovery(words) == read_recovery(plain) == read_recovery(wanted) == wanted
    assert read_recovery(None) is None
    assert read_recovery("steps=1") == Recovery(steps=1)


@pytest.mark.parametrize(
    ("value", "problem"),
    [("steps=0", "steps=.*0.* is invalid"), ("steps=-3", "is invalid"), ("steps=ten", "is invalid"),
     ("steps=99999999999", "is invalid"), ("rank=4", "gives no number of steps"),
     ("steps=5,rank=0", "rank=.*0.* is invalid"), ("steps=5,lr=0", "not a learning rate"),
     ("steps=5,lr=nan", "not a learning rate"), ("steps=5,stpes=5", "has no 'stpes'"),
     ("steps=5,target=", "not KEY=VALUE"), ("steps=5,target=q++v", "names nothing"),
     ("steps", "not KEY=VALUE"), ("steps=5,steps=6", "given twice"),
     ({"steps": True}, "is invalid"), ({"steps": 5, "text": 3}, "not a file"),
     ([1], "not a training"), ({"steps": 5, "lr": []}, "rate"),
     ({"steps": 2.5}, "is invalid"), ({"steps": 5, "length": 1}, "length=1 is invalid")],
)  # fmt: skip
def test_a_mistake_is_one_sentence(value: Any, problem: str) -> None:
    with pytest.raises(PrunescopeError, match=problem) as error:
        read_recovery(value)
    assert error.value.hint
    assert "\n" not in error.value.problem


def test_nothing_is_recovered_that_was_not_pruned() -> None:
    with pytest.raises(PrunescopeError, match="without --method"):
        TraceRequest(model="tiny-llama", out=Path("x"), recover="steps=3").check()


def test_peft_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from prunescope.tracer.recovery import settings

    monkeypatch.setattr(settings.importlib.util, "find_spec", lambda _name: None)
    request = TraceRequest(model="tiny-llama", out=Path("x"), method="static-m", recover="steps=3")
    with pytest.raises(PrunescopeError, match="needs peft") as error:
        request.check()
    assert "prunescope[recover]" in error.value.hint
