"""The published throughput of a pruned Nemotron-H lies in the range that is predicted for it."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from prunescope.analysis.predict.predict import PredictRequest, predict

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


def cells() -> list[dict[str, str]]:
    with (BENCHMARKS / "published_third.csv").open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if "Nemotron-Nano-9B-v2" in row["source"]]


@pytest.mark.parametrize("cell", cells(), ids=["bf16", "fp8"])
def test_a_pruned_nemotron_h_gains_what_was_measured(cell: dict[str, str]) -> None:
    words = cell["options"].split()
    given = dict(zip(words[::2], words[1::2], strict=True))
    told = predict(
        PredictRequest(
            model=str(BENCHMARKS / given["--model"]),
            pruned_model=str(BENCHMARKS / given["--pruned-model"]),
            device=given["--device"],
            dtype=given["--dtype"],
            runtime=given["--runtime"],
            batch=int(given["--batch"]),
            prompt_len=int(given["--prompt-len"]),
            new_tokens=int(given["--new-tokens"]),
        )
    )
    answer = told.points[0].answer
    assert answer is not None and answer.throughput is not None
    low, high = answer.throughput.range
    assert low <= float(cell["measured"]) <= high
    # vLLM ran both sides: each is a Nemotron-H, whose layers have one sublayer by design.
    assert not [text for text in told.warnings if "does not run" in text]
