"""A request gets one answer: whatever stands beside it, before it, and in which order they come."""

from __future__ import annotations

import copy
import sys
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from prunescope.taxonomy.families import family
from prunescope.taxonomy.runs.run_quality import TextSource
from prunescope.taxonomy.scoring import may_decide, scoring_of
from prunescope.tracer.calibration.point import Calibration, Point
from prunescope.tracer.calibration.requests import current_request, decided_by
from prunescope.tracer.calibration.texts import random_ids
from prunescope.tracer.capture.application import apply_request
from prunescope.tracer.capture.request import TraceRequest
from prunescope.tracer.model.load import load_model
from prunescope.tracer.pruners import family_ids
from prunescope.tracer.quality import tasks
from prunescope.tracer.quality.quality import Passage, nats_of
from prunescope.tracer.quality.tasks import TaskList, score_tasks
from prunescope.tracer.routing.decisions import Sampler

pytestmark = [pytest.mark.torch, pytest.mark.four_layers]
COMPOSITES = (
    "static-m+dynamic-m", "static-nk+dynamic-nk", "static-k-mask+dynamic-depth",
    "dynamic-width+static-nk-heads", "static-m+kv-evict", "static-m:0.25+token-drop:0.5",
)  # fmt: skip
# The tiny llama has no experts.
METHODS = (*(f for f in family_ids() if not family(f).changes_experts), *COMPOSITES)
# Requests of several lengths, one of them a single token.
REQUESTS = [[7, 8, 9, 10, 11, 12, 13], [5], [7, 8, 9, 10, 11, 12, 14], [3, 1], [20, 21, 22, 23]]


class HarnessModel(SimpleNamespace):
    """Stands in for HFLM: what it gives a class that reads token by token."""

    max_length = 128

    @property
    def model(self) -> Any:
        return self.pretrained

    @property
    def cache_hook(self) -> Any:
        return SimpleNamespace(add_partial=lambda *_: None)


class Harness:
    """Asks as lm-evaluation-harness does: requests padded behind their last token, without a mask,
    so many in a forward. The answer: the log-likelihood of each request's tokens, by request."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.requests: list[list[int]] = []
        self.answers: dict[tuple[int, ...], float] = {}
        for name in ("lm_eval", "lm_eval.evaluator", "lm_eval.tasks", "lm_eval.models.huggingface"):
            patch.setitem(sys.modules, name, ModuleType(name))
        sys.modules["lm_eval.tasks"].TaskManager = lambda **_: None  # type: ignore[attr-defined]
        sys.modules["lm_eval.models.huggingface"].HFLM = HarnessModel  # type: ignore[attr-defined]
        sys.modules["lm_eval.evaluator"].simple_evaluate = self.evaluate  # type: ignore[attr-defined]
        patch.setattr(tasks, "check_installed", lambda: None)

    def evaluate(self, *, model: Any, **_: Any) -> dict[str, Any]:
        self.answers = {}
        if hasattr(model, "_loglikelihood_tokens"):
            return self.evaluate_by_token(model)
        size = model.batch_size
        for first in range(0, len(self.requests), size):
            chunk = self.requests[first : first + size]
            longest = max(map(len, chunk))
            ids = torch.tensor([one + [0] * (longest - len(one)) for one in chunk])
            with torch.no_grad():
                logits = model.pretrained(ids).logits.log_softmax(-1)
            for row, one in zip(logits, chunk, strict=True):
                own = [float(row[i, token]) for i, token in enumerate([*one[1:], 1])]
                self.answers[tuple(one)] = sum(own)
        return self.scored()

    def evaluate_by_token(self, model: Any) -> dict[str, Any]:
        """The first token of each request is its context, the others and token 1 its answer."""
        asked = [("a text", one[:1], [*one[1:], 1]) for one in self.requests]
        found = model._loglikelihood_tokens(asked, disable_tqdm=True)
        self.answers = {tuple(one): p for one, (p, _) in zip(self.requests, found, strict=True)}
        return self.scored()

    def scored(self) -> dict[str, Any]:
        value = sum(self.answers.values())
        return {"results": {"t": {"acc,none": value}}, "configs": {"t": {}}}


@cache
def pruned(method: str) -> Any:
    """One for all tests: that no request leaves anything behind is what they show."""
    loaded = load_model("tiny-llama", dtype="auto", device=torch.device("cpu"), attn="sdpa")
    request = TraceRequest("tiny-llama", out=Path("x"), method=method, sparsity=0.5)
    return apply_request(request, loaded)[0].model


@pytest.mark.parametrize("method", [m for m in METHODS if scoring_of(m, "prefill") == "prefill"])
def test_a_request_has_one_answer(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In batches of 1, 3 and 8, and in the other order."""
    harness, model = Harness(monkeypatch), pruned(method)
    found = []
    for batch, order in ((1, 1), (3, 1), (8, 1), (8, -1)):
        monkeypatch.setattr(tasks, "_BATCH", batch)
        harness.requests = REQUESTS[::order]
        score_tasks(model, "a tokenizer", TaskList(names=("t",)), one_by_one=may_decide(method))
        found.append([harness.answers[tuple(one)] for one in REQUESTS])
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-5)
    assert current_request() is None


@pytest.mark.parametrize("method", [m for m in METHODS if scoring_of(m, "decode") == "decode"])
def test_a_request_read_token_by_token_has_one_answer(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In both orders: what is evicted, dropped or routed for one request leaves the next alone."""
    harness, model = Harness(monkeypatch), pruned(method)
    found = []
    for order in (1, -1):
        harness.requests = REQUESTS[::order]
        score_tasks(model, "t", TaskList(names=("t",)), one_by_one=True, scoring="decode")
        found.append([harness.answers[tuple(one)] for one in REQUESTS])
    assert found[1] == found[0]
    assert current_request() is None


def test_a_model_that_decides_nothing_answers_token_by_token_as_in_one_forward(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And one that evicts keys does not: half of them are gone from the second token on."""
    harness = Harness(monkeypatch)
    harness.requests = REQUESTS
    answers = {}
    for method, scoring in (("static-m", "prefill"), ("static-m", "decode"),
                            ("static-m+kv-evict", "decode")):  # fmt: skip
        score_tasks(pruned(method), "t", TaskList(names=("t",)), scoring=scoring)
        answers[method, scoring] = [harness.answers[tuple(one)] for one in REQUESTS]
    alike = answers["static-m", "prefill"]
    assert answers["static-m", "decode"] == pytest.approx(alike, rel=1e-5)
    evicted = answers["static-m+kv-evict", "decode"]
    assert evicted[1] == pytest.approx(alike[1], rel=1e-5)  # one token, before anything is evicted
    assert evicted[0] != pytest.approx(alike[0], rel=1e-3)


@pytest.mark.parametrize("method", [m for m in METHODS if may_decide(m)])
def test_a_window_has_one_loss(method: str) -> None:
    """After another window and before it, in one forward and token by token."""
    model = pruned(method)
    windows = [random_ids(1024, batch=1, length=24, seed=seed)[0] for seed in (1, 2)]
    for scoring in {scoring_of(method, phase) for phase in ("prefill", "decode")}:
        orders = [
            nats_of(model, passage(torch.cat(order)), scoring=scoring).chunk(2)
            for order in (windows, windows[::-1])
        ]
        assert torch.equal(torch.cat(orders[0]), torch.cat(orders[1][::-1]))


def passage(ids: torch.Tensor) -> Passage:
    return Passage(ids=ids, bytes_of=None, record=TextSource(), context=24)


def test_a_request_of_one_token_does_not_use_the_threshold_of_the_one_before(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained routers move their threshold from token to token, within a request."""
    from prunescope.tracer.pruners import family_point, pruner

    calibration = Calibration(
        batches=tuple(random_ids(1024, batch=1, length=32, seed=seed) for seed in range(4)),
        record={},
    )
    point = family_point("dynamic-m", Point(sparsity=0.5))
    applied = pruner("dynamic-m").prune(tiny, point)
    learner = applied.learners[0]
    learner.begin(calibration)
    learner.finish(calibration)
    harness = Harness(monkeypatch)
    answers = []
    for requests in ([[5], [7, 8, 9, 10]], [[7, 8, 9, 10], [5]]):
        harness.requests = requests
        score_tasks(applied.model, "t", TaskList(names=("t",)), one_by_one=True)
        answers.append(harness.answers)
    assert answers[0] == answers[1]


def test_decisions_follow_from_a_request_and_then_go_on_where_they_were() -> None:
    point = Point(sparsity=0.5, seed=3)
    sampler, other = Sampler(point, "a"), Sampler(point, "a")
    first = [sampler.stream.random() for _ in range(2)]
    with decided_by(torch.tensor([1, 2])):
        here = [sampler.stream.random() for _ in range(2)]
    with decided_by(torch.tensor([1, 3])):
        elsewhere = sampler.stream.random()
    with decided_by(torch.tensor([1, 2])):
        again = [sampler.stream.random() for _ in range(2)]
    assert here == again and elsewhere not in here
    assert first + [sampler.stream.random()] == [other.stream.random() for _ in range(3)]


@pytest.mark.parametrize(
    ("method", "prefill", "decode"),
    [
        ("static-m", "prefill", "prefill"),
        ("static-m+static-nk", "prefill", "prefill"),
        ("some/folder", "prefill", "prefill"),
        ("dynamic-m:0.25", "prefill", "decode"),
        ("static-m:0.25+dynamic-nk:0.5", "prefill", "decode"),
        ("package.module:function", "prefill", "decode"),
        ("kv-evict", "decode", "decode"),
        ("static-m+kv-evict", "decode", "decode"),
        ("token-drop+static-k-mask", "decode", "decode"),
    ],
)
def test_a_method_is_scored_in_decode_where_one_of_its_families_is(
    method: str, prefill: str, decode: str
) -> None:
    assert (scoring_of(method, "prefill"), scoring_of(method, "decode")) == (prefill, decode)
    assert family("kv-evict").scored_in == "decode"


def test_copies_are_apart() -> None:
    """A pruned copy decides by itself: the one that is scored does not move the other."""
    model = pruned("dynamic-depth")
    twin = copy.deepcopy(model)
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad(), decided_by(ids):
        assert torch.equal(model(ids).logits, twin(ids).logits)
