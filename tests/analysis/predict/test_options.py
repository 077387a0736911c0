"""Options that would be ignored, or contradict each other, are refused before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from prunescope.analysis.predict.constants import NAMES
from prunescope.analysis.predict.predict import predict
from prunescope.analysis.predict.predict_request import PredictRequest
from prunescope.analysis.predict.rank import rank
from prunescope.analysis.predict_from import predict_from
from prunescope.analysis.report.markdown import sheet_text
from prunescope.analysis.report.predict_records import prediction_records
from prunescope.analysis.report.predict_tables import prediction
from prunescope.analysis.shapes.named_model import read_model
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.option import options_of

POINT = {"model": "tiny-llama", "device": "h100-sxm"}


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"workload": "chat"}, "--workload needs --rank"),
        ({"losses": "sweep"}, "--losses needs --rank"),
        ({"loss": 0.1}, "--loss needs --rank"),
        ({"method": "static-nk", "pruned_batch": 8}, "--pruned-batch needs --new-tokens"),
        ({"new_tokens": 8, "pruned_batch": 8}, "--pruned-batch needs --method"),
        ({"rank": True, "method": "static-nk"}, "--method cannot be combined with --rank"),
        ({"rank": True, "curves": True}, "--out cannot be combined with --rank"),
        ({"rank": True, "context": 9}, "--context cannot be combined with --rank"),
        ({"rank": True, "phase": "prefill"}, "--phase cannot be combined with --rank"),
        (
            {"rank": True, "workload": "chat", "batch": 64},
            "--batch cannot be combined with --workload chat",
        ),
        (
            {"rank": True, "workload": "rag", "new_tokens": 9},
            "--new-tokens cannot be combined with --work",
        ),
        (
            {"rank": True, "knobs": {"colour": "red"}},
            "none of these methods has an option 'colour'",
        ),
        ({"from_run": "run", "rank": True}, "--rank cannot be combined with --from-run"),
        ({"from_run": "run", "new_tokens": 9}, "--new-tokens cannot be combined with --from-run"),
        ({"from_run": "run", "tp": 2}, "--tp cannot be combined with --from-run"),
    ],
)
def test_an_option_is_never_ignored(options: dict[str, Any], problem: str) -> None:
    request = PredictRequest(**{**POINT, **options})
    ask: Any = predict_from if request.from_run else rank if request.rank else predict
    with pytest.raises(PrunescopeError, match=problem):
        ask(request)


def test_a_method_that_is_misspelt_names_its_neighbours_among_papers_too() -> None:
    for method, sparsity in (("shortgtp", 0.5), ("shortgtp,static-nk", "0.25,0.5")):
        with pytest.raises(PrunescopeError, match="no pruning family or method") as error:
            predict(PredictRequest(**POINT, method=method, sparsity=sparsity, knobs={"x": "1"}))
        assert "shortgpt" in error.value.hint


def test_an_unreachable_hub_is_an_error_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def nowhere(*_: Any, **__: Any) -> Any:
        raise OSError("no address")

    monkeypatch.setattr("urllib.request.urlopen", nowhere)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_: pytest.fail("it tried"))
    with pytest.raises(PrunescopeError, match="the Hub does not give its config"):
        read_model("some/unknown-model")
    cached = tmp_path / "config.json"
    cached.write_text("{}", encoding="utf-8")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: str(cached))
    with pytest.raises(PrunescopeError) as error:  # the one that is there is read
        read_model("some/unknown-model")
    assert "Hub does not give" not in error.value.problem


def test_the_help_of_without_lists_every_term() -> None:
    help = next(one.option.help for one in options_of(PredictRequest) if one.name == "without")
    listed = help.partition(": ")[2].partition(";")[0].replace(" or ", ", ")
    assert tuple(word.strip() for word in listed.split(",") if word.strip()) == NAMES


def test_a_sparsity_may_be_a_share_of_flops_or_parameters() -> None:
    """`--set match=`, as trace has it: the family's own sparsity follows from what it removes."""
    for by, key in (("flop", "flop"), ("param", "parameters")):
        found = predict(PredictRequest(
            "llama-3.1-8b", device="h100-sxm", method="static-nk-mlp,static-m", sparsity=0.25,
            phase="decode", knobs={"match": by}, break_even=False,
        ))  # fmt: skip
        for point in found.points:
            removed = point.phases["decode"].sparsity
            assert removed is not None and point.sparsity is not None
            assert removed[key] == pytest.approx(0.25, abs=0.02)  # static-m: of whole layers
            assert point.sparsity > 0.25  # the head and attention, or the head, stay
        assert sum(f"match={by}: s = " in text for text in found.warnings) == 2
    for options, problem in (
        ({"method": "static-nk", "knobs": {"match": "x"}}, "not a valid choice"),
        ({"method": "dense", "knobs": {"match": "flop"}}, "no option 'match'"),
        ({"method": "dynamic-m", "knobs": {"match": "param"}}, "removes no parameters"),
    ):
        with pytest.raises(PrunescopeError, match=problem):
            predict(PredictRequest(**POINT, **options))


def test_a_dense_model_alone_has_an_expected_time() -> None:
    """That of the dense side of any pruning; where there are two sides, `predicted` has both."""
    sizes = {"model": "llama-3.1-8b", "device": "h100-sxm", "break_even": False}
    alone = predict(PredictRequest(**sizes))
    both = predict(PredictRequest(**sizes, method="static-nk", sparsity=0.5))
    assert alone.phases is not None and both.phases is not None
    for name, phase in alone.phases.items():
        predicted = both.phases[name].predicted
        assert predicted is not None and both.phases[name].expected_ns is None
        assert phase.expected_ns == predicted.execution.dense_ns
        assert phase.expected_ns > phase.ideal_ns
    rows = prediction_records(msgspec.to_builtins(alone)).rows
    assert [row["dense_ns"] for row in rows] == [p.expected_ns for p in alone.phases.values()]
    told = sheet_text("", prediction(msgspec.to_builtins(alone)))
    assert told.count("expected, with costs") == 2
