"""Values that no question can have, through both doors: one validation, one kind of error."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import prunescope
from prunescope.taxonomy.arguments import number, whole_number
from prunescope.taxonomy.errors import PrunescopeError
from tests.stored import each_once

RUN = Path(__file__).resolve().parents[2] / "traces" / "tiny-static-nk"
LLAMA: dict[str, Any] = {"model": "llama-3.1-8b", "method": "static-m", "sparsity": 0.5}
ON = {**LLAMA, "device": "h100-sxm"}


@cache
def report() -> prunescope.Report:
    with each_once():
        return prunescope.analyze(RUN)


BAD_RATES = (math.nan, math.inf, -math.inf, -5.0, 0, 1e-300, 1e300, True, "989", None)


@pytest.mark.parametrize("rate", BAD_RATES, ids=repr)
@pytest.mark.parametrize(
    "ask",
    [
        lambda rate: prunescope.analyze(RUN, peaks={"fp32": rate}, bandwidth=1.0),
        lambda rate: prunescope.analyze(RUN, peaks={"fp32": 1.0}, bandwidth=rate or -1.0),
        lambda rate: prunescope.compare([RUN], peaks={"fp32": rate}, bandwidth=1.0),
        lambda rate: prunescope.predict(**LLAMA, peaks={"bf16": rate}, bandwidth=3350),
        lambda rate: prunescope.predict(**LLAMA, peaks={"bf16": 989}, bandwidth=rate or -1.0),
    ],
    ids=["analyze peak", "analyze bandwidth", "compare", "predict peak", "predict bandwidth"],
)
def test_a_rate_that_no_device_has(ask: Callable[[Any], Any], rate: Any) -> None:
    with pytest.raises(PrunescopeError) as error:
        ask(rate)
    assert "--peak" in str(error.value) or "--bandwidth" in str(error.value)


@pytest.mark.parametrize(
    ("ask", "says", "accepts"),
    [
        (lambda: prunescope.predict(**ON, batch="eight"), "--batch is 'eight'", "a whole number"),
        (lambda: prunescope.predict(**ON, batch=8.0), "is 8.0, of type float", "a whole number"),
        (lambda: prunescope.predict(**ON, batch=True), "--batch is True", "a whole number"),
        (lambda: prunescope.predict(**ON, batch=None), "--batch is None", "a whole number"),
        (lambda: prunescope.predict(**ON, batch=0), "--batch 0 is too small", "is 1"),
        (lambda: prunescope.predict(**ON, batch=10**400), "--batch is too large", "2,147,483,648"),
        (lambda: prunescope.predict(**LLAMA, device=5), "is 5, of type int", "a text or None"),
        (lambda: prunescope.predict(5, device="h100-sxm"), "--model is 5", "a text"),
        (lambda: prunescope.predict(**{**ON, "sparsity": math.nan}), "sparsity nan", ""),
        (lambda: prunescope.predict(**{**ON, "sparsity": {}}), "--sparsity is {}", "a list"),
        (lambda: prunescope.predict(**{**ON, "method": [1]}), "--method is", "a list, each a text"),
        (lambda: prunescope.predict(**ON, knobs=["a=b"]), "--set is", "a mapping"),
        (lambda: prunescope.predict(**ON, rank="yes"), "--rank is 'yes'", "True or False"),
        (lambda: prunescope.predict(**ON, launch=3), "--launch is 3", "graph, eager"),
        (lambda: prunescope.predict(**ON, peaks={"bf17": 9}), "--peak bf17=9", "bf16"),
        (lambda: prunescope.predict(**ON, peaks={5: 9}), "--peak is", "a mapping of names"),
        (lambda: prunescope.analyze(["a", "b"]), "subject is", "a path or a text"),
        (lambda: prunescope.analyze(RUN, sparsity="0.5"), "--sparsity is '0.5'", "a number"),
        (lambda: prunescope.analyze(RUN, baseline=7), "--baseline is 7", "a path"),
        (lambda: prunescope.analyze(RUN, jobs=-1), "--jobs -1 is too small", "1"),
        (lambda: prunescope.compare(5), "subjects is 5", "a list"),
        (lambda: prunescope.compare([]), "no run and no trace", "name run folders"),
        (lambda: prunescope.pareto("a\0b"), "is not a path", "a path"),
        (lambda: report().save("a\0b"), "is not a path", "a path"),
        (lambda: report().save("x", label_prefix=5), "label_prefix is 5", "a text"),
        (lambda: prunescope.predict(**ON, terms="gemm"), "terms is 'gemm'", "a list"),
        (lambda: prunescope.predict(**ON, break_even="no"), "break_even is 'no'", "True or False"),
        (lambda: prunescope.trace("tiny-llama", argv=5), "argv is 5", "a list"),
        (lambda: prunescope.compare([5]), "subjects is", "a list, each a path"),
        (lambda: prunescope.sweep(5, out="x"), "config is 5", "a path"),
        (lambda: prunescope.sweep("x.yaml", out=None), "--out is missing", "name the folder"),
        (lambda: prunescope.trace("tiny-llama", seed="0"), "--seed is '0'", "a whole number"),
        (lambda: prunescope.trace(Path("x")), "--model is", "a text"),
        (lambda: prunescope.pareto(5), "5, of type int, is not a path", "a path"),
        (lambda: prunescope.families(5), "is not a path", "a path"),
        (lambda: prunescope.check(RUN, require=5), "require is 5", "a list of rules"),
        (lambda: prunescope.check(RUN, require=[5]), "require is", "a list of rules"),
        (lambda: prunescope.check(5, require="realised > 1"), "is not a path", "a path"),
        (lambda: prunescope.Report.load(5), "is not a path", "a path"),
        (lambda: prunescope.Report.load("nowhere.json"), "no such file", "report.json"),
        (lambda: report().save(5), "is not a path", "a path"),
        (lambda: report().save("x", formats=5), "formats is 5", "a list of names"),
    ],
)  # fmt: skip
def test_a_value_of_another_type_says_what_is_accepted(
    ask: Callable[[], Any], says: str, accepts: str
) -> None:
    with pytest.raises(PrunescopeError, match=says) as error:
        ask()
    assert accepts in error.value.hint


def test_numbers_of_numpy_are_numbers() -> None:
    plain = prunescope.predict(**ON, batch=8)
    scalars = prunescope.predict(
        **{**ON, "sparsity": np.float32(0.5)}, batch=np.int64(8), rank=np.bool_(0)
    )
    assert json.dumps(scalars) == json.dumps(plain)
    grid = prunescope.predict(**{**ON, "sparsity": np.array([0.25, 0.5])})
    assert [point["sparsity"] for point in grid["points"]] == [0.25, 0.5]
    by_numpy, by_python = (
        prunescope.analyze(RUN, phase="decode", sparsity=half, peaks={"fp32": peak})
        for half, peak in ((np.float32(0.5), np.float64(0.1)), (0.5, 0.1))
    )
    assert by_numpy.to_dict() == by_python.to_dict()


def test_number_formats_have_one_name_through_both_doors(
    capsys: pytest.CaptureFixture[str],
) -> None:
    dense = RUN / "dense"
    words = ["analyze", str(dense), "--peak", "float32=0.5", "--json", "-"]
    assert prunescope.main(words) == 0
    told = json.loads(capsys.readouterr().out)["device"]
    assert told == prunescope.analyze(dense, peaks={"float32": 0.5}).to_dict()["device"]
    with pytest.raises(PrunescopeError, match="fp32 is given twice"):
        prunescope.analyze(RUN, peaks={"float32": 0.5, "fp32": 0.6})


@pytest.mark.parametrize(
    "text", ["0.1_5", "1_0", "٣", "３", "²", "inf", "nan", "0x10", "1e", ".", "", "½"]
)
def test_what_is_no_number(text: str) -> None:
    assert number(text) is None
    assert whole_number(text) is None


def test_what_is_a_number() -> None:
    assert [number(t) for t in ("0.5", ".5", "5.", "-1e-3", " 2 ", "+7")] == [
        0.5,
        0.5,
        5,
        -1e-3,
        2,
        7,
    ]
    assert [whole_number(t) for t in ("12", "-3", " 2 ", "1.0")] == [12, -3, 2, None]


PREDICT = ["predict", "--model", "llama-3.1-8b", "--device", "h100-sxm", "--method", "static-m"]


@pytest.mark.parametrize(
    "words",
    [
        [*PREDICT, "--batch", "1_2"],
        [*PREDICT, "--batch", "１２"],
        [*PREDICT, "--sparsity", "0.1_5"],
        [*PREDICT, "--sparsity", "٠.٥"],
        [*PREDICT, "--sparsity", "0.1:0.5:0.1_0"],
        [*PREDICT, "--peak", "bf16=9_89"],
        [*PREDICT, "--set", "layers=٣"],
        [*PREDICT, "--bandwidth", "3_350"],
        ["analyze", str(RUN), "--sparsity", "0.1_5"],
        ["check", str(RUN), "-r", "realised >= ١"],
        ["check", str(RUN), "-r", "realised >= 1_0"],
        ["check", str(RUN), "-r", "realised <= 1e999"],
        ["trace", "--model", "tiny-llama", "--method", "static-m:0.1_5"],
        ["trace", "--model", "tiny-llama", "--method", "static-m", "--recover", "steps=1_0"],
        ["sweep", "x.yaml", "--out", "x", "--shard", "٠/٢"],
    ],
    ids=" ".join,
)
def test_the_commands_take_no_other_digits(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert prunescope.main(words) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "count"),
    [("0:0.999:0.001", "1,000"), ("0:0.5:1e-12", "more than a billion"), ("0:0.9:1e-300", "more")],
)
def test_a_grid_beyond_its_limit_says_how_large_it_is(asked: str, count: str) -> None:
    with pytest.raises(PrunescopeError, match=f"{count}.* sparsities") as error:
        prunescope.predict(**{**ON, "sparsity": asked})
    assert "1 to 100" in error.value.problem and "for s in sparsities" in error.value.hint


def test_a_grid_at_its_limit() -> None:
    with pytest.raises(PrunescopeError, match="101 sparsities"):
        prunescope.predict(**{**ON, "sparsity": [i / 200 for i in range(101)]})
    found = prunescope.predict(**{**ON, "sparsity": "0:0.99:0.01"}, break_even=False)
    assert len(found["points"]) == 100
