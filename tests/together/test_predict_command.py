"""`prunescope predict` as it is typed: grids, files, JSON, and a run in place of a device."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from prunescope.cli import app
from prunescope.taxonomy.engines import CHECKED, engine_answers
from prunescope.taxonomy.errors import PrunescopeError

TRACES = Path(__file__).resolve().parents[2] / "traces"
POINT = ("--model", "llama-3.1-8b", "--device", "h100-sxm")


def run(*words: object) -> Result:
    return CliRunner().invoke(app, ["predict", *map(str, words)])


def test_a_grid_of_two_methods_leaves_curves_and_json(tmp_path: Path) -> None:
    target = tmp_path / "x.json"
    result = run(*POINT, "--method", "static-m", "--method", "static-nk,dynamic-nk", "--sparsity",
                 "0.25:0.75:0.25", "--out", tmp_path / "curves", "--json", target)  # fmt: skip
    assert result.exit_code == 0
    assert sorted(p.name for p in (tmp_path / "curves").iterdir()) == [
        "curves.csv", "curves.pdf", "curves.png", "curves.svg", "figure-curves.tex",
    ]  # fmt: skip
    told = json.loads(target.read_text())
    assert list(told["curves"]["prefill"]) == ["static-m", "static-nk", "dynamic-nk"]
    assert len(told["points"]) == 9


def test_a_runtime_beside_a_run_says_what_it_was_read_from() -> None:
    """Measured times are as they were; the engine's table says what it does not run."""
    words = ("--from-run", TRACES / "tiny-static-nk", "--phase", "decode", "--sparsity", "0.5",
             "--method", "static-nk,dynamic-m", "--json", "-")  # fmt: skip
    plain, asked = (json.loads(run(*words, *more).stdout) for more in ((), ("--runtime", "vllm")))
    rows = [{row["id"]: row for row in told["phases"]["decode"]["families"]}
            for told in (plain, asked)]  # fmt: skip
    assert [rows[0][name]["runs"] for name in rows[0]] == [None, None]
    assert (rows[1]["static-nk"]["runs"], rows[1]["dynamic-m"]["runs"]) == (True, False)
    assert rows[0]["static-nk"]["expected"] == rows[1]["static-nk"]["expected"]
    version = rows[1]["dynamic-m"]["engine_version"]
    assert version == engine_answers(["run-time"])[1].version
    (warning,) = [text for text in asked["warnings"] if "does not run" in text]
    assert "vLLM does not run dynamic-m as predicted: " in warning
    assert f"version {version}, read on {CHECKED}" in warning
    assert any(version in note and CHECKED in note for note in asked["phases"]["decode"]["notes"])
    assert not any("does not run" in text for text in plain["warnings"])


def test_a_runtime_states_its_version() -> None:
    """Of a format that it runs, too; 2:4 kernels are gone from vLLM since 0.19.1."""
    for method, version in (("static-nk", "e06c9ba2"), ("wanda-2:4", "0.19.1")):
        words = ("--method", method, "--phase", "decode", "--runtime", "vllm", "--json", "-")
        told = json.loads(run(*POINT, *words).stdout)
        assert f"what vLLM runs was read from version {version} on {CHECKED}" in told["assumed"]
        warned = [text for text in told["warnings"] if f"version {version}" in text]
        assert len(warned) == (method == "wanda-2:4")


def test_every_option_reaches_the_prediction() -> None:
    words = ("--model", "llama-3.1-8b", "--peak", "fp16=500", "--bandwidth", 2000, "--dtype",
             "float16", "--context", 4096, "--launch", "eager", "--without", "added", "--without",
             "kernel", "--phase", "decode", "--method", "static-nk", "--sparsity", "0.5",
             "--json", "-")  # fmt: skip
    result = run(*words)
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    phase = told["phases"]["decode"]
    expected = phase["predicted"]["execution"]
    assert told["device"]["peaks"] == {
        "dense_flop_per_s": {"fp16": 500e12}, "byte_per_s": 2000e9,
    }  # fmt: skip
    assert (told["subject"]["dtype"], phase["context"], expected["launch"]) == (
        "fp16", 4096, "eager",
    )  # fmt: skip
    assert not {"added", "kernel"} & {term["name"] for term in expected["terms"]}


def test_what_went_whole_is_not_said_to_be_untouched() -> None:
    """static-m at one half: each GEMM runs in 16 of 32 layers as it was; `gone` is how it moved."""
    words = (*POINT, "--method", "static-m", "--sparsity", "0.5", "--phase", "decode", "--explain")
    shown = run(*words).stdout
    table = shown[shown.index("expected time of each GEMM") :]
    (gate,) = [line.split() for line in table.splitlines() if line.split()[:1] == ["gate"]]
    assert gate[1] == "16" and gate[5] == "gone"
    (head,) = [line.split() for line in table.splitlines() if line.split()[:1] == ["lm_head"]]
    assert head[5] == "none"


def test_the_roles_of_a_forward_sum_to_its_time() -> None:
    """Six roles have rows; the others are one row, and a note names them."""
    words = (*POINT, "--method", "static-m", "--sparsity", "0.5", "--phase", "prefill")
    for more, count in ((), 7), (("--explain",), 13):
        shown = run(*words, *more).stdout
        table = shown[shown.index("time of a forward") : shown.index("bytes moved")]
        times = [float(dense) for dense in re.findall(r"^   \S.*, ms +(\S+)", table, re.M)]
        whole = re.search(r"time of a forward +(\S+) ms", table)
        assert whole is not None and len(times) == count
        assert sum(times) == pytest.approx(float(whole[1]), abs=0.001 * count)
        names = " ".join(re.findall(r"7 other roles: (.*?) --explain\s+shows", shown, re.S))
        assert ("lm_head" in names) == (not more)


def test_a_run_in_place_of_a_device() -> None:
    result = run("--from-run", TRACES / "tiny-static-nk", "--sparsity", "0.5", "--json", "-")
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert {row["id"] for row in told["phases"]["decode"]["families"]} >= {"static-m", "dynamic-m"}
    shown = run("--from-run", TRACES / "tiny-static-nk", "--sparsity", "0.5").stdout
    # A star said that the measured model lacks kernels that its family adds.
    assert "taxonomy, added here; added: time of work that" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((*POINT, "--method", "static-m", "--sparsity", "0.1:x:0.1"), "invalid sparsity"),
        ((*POINT, "--method", "static-m", "--without", "lunch"), "lunch"),
        ((*POINT, "--method", "static-m", "--set", "colour=red"), "has no option 'colour'"),
        ((*POINT, "--set", "unit=layer"), "has no option 'unit'"),
        ((*POINT, "--out", "x"), "--method"),
        (("--device", "h100-sxm"), "--model"),
        (("--model", "llama-3.1-8b"), "--device"),
        ((*POINT, "--method", "static-m", "--json", "no/such/x.json"), "does not exist"),
    ],
)
def test_mistakes(words: tuple[str, ...], says: str) -> None:
    result = run(*words)
    assert isinstance(result.exception, PrunescopeError)
    assert says in str(result.exception)
