"""Words of a command line as values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunescope.taxonomy.arguments import bare_json, pairs, peaks, share
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.method_names import is_function, method_parts, run_name


def test_pairs_keep_what_follows_the_first_equals_sign() -> None:
    assert pairs(["layers=3,9", " expr = a=b "]) == {"layers": "3,9", "expr": "a=b"}
    assert pairs(None) == {}


@pytest.mark.parametrize(
    ("method", "parts"),
    [
        ("static-m", [("static-m", None)]),
        ("static-m: 0.5 + b", [("static-m", "0.5"), ("b", None)]),
        ("static-m:half", [("static-m", "half")]),
        ("unknown:0.5", [("unknown", "0.5")]),
        ("package.module:function", []),
    ],
)
def test_a_method_is_families_or_a_function(
    method: str, parts: list[tuple[str, str | None]]
) -> None:
    assert method_parts(method) == parts
    assert is_function(method) == (not parts)


@pytest.mark.parametrize("word", ["layers", "=3", "layers=", "", " = "])
def test_half_a_pair_is_refused_with_an_example(word: str) -> None:
    with pytest.raises(PrunescopeError, match="rounding=paper"):
        pairs([word])


def test_peaks_know_every_spelling_of_a_format() -> None:
    assert peaks(["c10::BFloat16=989.5", "half=300", "tf32=1e2"]) == {
        "bf16": 989.5, "fp16": 300.0, "tf32": 100.0,
    }  # fmt: skip


@pytest.mark.parametrize("word", ["bf16=nan", "bf16=inf", "bf16=x", "bf17=1"])
def test_a_peak_is_a_rate_of_a_known_format(word: str) -> None:
    with pytest.raises(PrunescopeError, match="TFLOP/s"):
        peaks([word])


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        (("tiny-llama", "static-m", 0.5), "tiny-llama-static-m-0.5"),
        (("tiny-llama", None, 0.25), "tiny-llama-dense"),
        (("models/Llama-3.2-1B/", "static-nk", 0.25), "Llama-3.2-1B-static-nk-0.25"),
        (("org/model", "my.module:prune", 0.3), "model-my.module-prune-0.3"),
        (("../..", "static-m", 0.5), "static-m-0.5"),
        (("m", "static-m:0.25", 0.5), "m-static-m-0.25"),
        (("m", "static-m:0.25+static-nk", 0.5), "m-static-m-0.25-static-nk-0.5"),
    ],
)
def test_the_name_of_a_run(asked: tuple[str, str | None, float], name: str) -> None:
    assert run_name(*asked) == name


@given(st.text(), st.none() | st.text(), st.floats(0, 0.99))
def test_a_name_never_leaves_its_folder(model: str, method: str | None, sparsity: float) -> None:
    name = run_name(model, method, sparsity)
    assert name not in ("", ".", "..")
    assert not set(name) & set('/\\:*?"<>| \n\0')


@pytest.mark.parametrize("command", ["predict", "analyze", "trace", "pareto", "verify", "doctor"])
@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["--json"], ["--json", "-"]),
        (["--json", "--batch", "2"], ["--json", "-", "--batch", "2"]),
        (["--json", "-o", "x"], ["--json", "-", "-o", "x"]),
        (["--json", "-"], ["--json", "-"]),
        (["--json", "x.json"], ["--json", "x.json"]),
        (["--json=x.json"], ["--json=x.json"]),
    ],
)
def test_json_without_a_target_is_standard_output(
    command: str, typed: list[str], meant: list[str]
) -> None:
    assert bare_json([command, *typed]) == [command, *meant]


def test_a_command_line_of_nothing_stays_so() -> None:
    assert bare_json([]) == []


@pytest.mark.parametrize(
    ("text", "value"),
    [("2%", 0.02), ("2 %", 0.02), ("0.5%", 0.005), ("0.02", 0.02), (" 2% ", 0.02)],
)
def test_a_share_is_a_number_or_percent(text: str, value: float) -> None:
    assert share(text, option="--until") == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "%", "two", "2%%", "1_0%", "٢%"])
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(PrunescopeError, match="is not a share"):
        share(text, option="--until")
