"""A dry run reads what the sweep would: every mistake is named before anything runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import prunescope
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.option import MOST_SAMPLES
from prunescope.taxonomy.presets import preset_config
from prunescope.taxonomy.runs.run import MAX_SAMPLES
from prunescope.tracer.capture.request import TraceRequest
from prunescope.tracer.capture.timing import MAX_ROUNDS
from prunescope.tracer.sweep.plan import SweepPlan, request_of
from prunescope.tracer.sweep.request import SweepRequest
from prunescope.tracer.sweep.sweep import plan_of

FUNCTIONS = """
def same(model, sparsity):
    return model

def alone(model):
    return model

number = 3
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dry_run_functions.py").write_text(FUNCTIONS)
    (tmp_path / "dry_run_broken.py").write_text("raise RuntimeError('not today')\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "words.txt").write_text("no model")
    (tmp_path / "words.txt").write_text("Mostly harmless. " * 200)


def planned(text: str, *, families: str = "[static-m]", model: str = "tiny-llama") -> SweepPlan:
    lines = f"model: {model}\nfamilies: {families}\nphases: [prefill]\n{text}\n"
    Path("sweep.yaml").write_text(lines, encoding="utf-8")
    return plan_of(SweepRequest("sweep.yaml", out="out"))


@pytest.mark.parametrize(
    ("families", "says"),
    [
        ("[nowhere_at_all:mpl]", "nowhere_at_all cannot be imported"),
        ("['dry_run_functions:nope']", "has no function 'nope'"),
        ("['dry_run_functions:']", "has no function ''"),
        ("['dry_run_functions:number']", "has no function 'number'"),
        ("['dry_run_functions:alone']", "does not take two arguments"),
        ("['dry_run_broken:f']", "RuntimeError: not today"),
        ("['..:x']", "raised TypeError|cannot be imported"),
        ("['static-m+dry_run_functions:same']", "no pruning method is called"),
        ("['static-m+static-m']", "static-m twice"),
        ("['static-m+nothing']", "no pruning method is called 'nothing'"),
        ("['static-m:2+static-nk']", "outside"),
        ("['static-k-24:0.25+static-m']", "2:4 sparsity is 0.5"),
        ("['static-m+dense']", "dense is the baseline"),
        ("['../x']", "there is no model folder ../x"),
        ("['./x']", "there is no model folder ./x"),
        ("['a/b/c']", "there is no model folder a/b/c"),
        ("['static-m+../x']", "there is no model folder"),
        ("['~/no/such/model']", "there is no model folder"),
        ("['x.gguf']", "there is no file x.gguf"),
        ("['./empty']", "no config.json"),
        # Each alone can be; the second finds no way in what the first one leaves.
        (
            "['static-k-lowrank+static-nk-heads']",
            "after static-k-lowrank: heads of .* cannot be cut",
        ),
        ("['dynamic-depth:0.25+kv-evict:0.5']", "cannot be taken apart"),
        ("['dynamic-width+static-nk-mlp']", "static-nk-mlp after dynamic-width: .* does not run"),
        ("['token-drop+dynamic-m']", "dynamic-m after token-drop: .* cannot be taken apart"),
        ("['token-drop+kv-evict']", "kv-evict after token-drop: .* cannot be taken apart"),
        ("['dynamic-depth+static-m']", "static-m after dynamic-depth: it removes layers"),
    ],
)
def test_a_family_that_cannot_be(families: str, says: str) -> None:
    with pytest.raises(PrunescopeError, match=says):
        planned("sparsities: [0.25]", families=families)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("../../../etc", "no config.json in the folder etc/|there is no model folder"),
        ("/etc", "no config.json in the folder etc/"),
        ("/dev/null", "there is no model folder"),
        ("./empty", "no config.json"),
        ("nothing", "no folder and no preset"),
    ],
)
def test_a_model_that_cannot_be(model: str, says: str) -> None:
    with pytest.raises(PrunescopeError, match=says):
        planned("", model=model)


def test_a_folder_without_weights_is_no_model(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    (folder / "config.json").write_text(json.dumps(preset_config("tiny-llama")))
    with pytest.raises(PrunescopeError, match="no weights in the folder empty/"):
        planned("", model="./empty")
    (folder / "model.safetensors").write_bytes(b"")
    assert planned("", model="./empty").results


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("text: nofile.txt", "nofile.txt is not a file"),
        ("text: /dev/zero", "zero is not a file"),
        ("text: words.txt\nother_text: nofile.txt", "nofile.txt is not a file"),
        ("recover: {steps: 10, text: nofile.txt}", "nofile.txt is not a file"),
        ("placements: 1000000000", "5000 at most"),
        ("repeats: 1000000000", "5000 at most"),
        ("until: two", "until 'two' is not a share"),
        ("until: 2", "until 2.0 is too large"),
        ("until: 0%", "until 0.0 is too small"),
        ("until: [2%]", "a share, such as 2%"),
        ("until: 2%\nplacements: 1", "one placement has none"),
        ("sparsities: [0.1_5]", "0.1_5"),
        ("batches: [1_0]", "1_0"),
        ("batches: [010]", "010"),
        ("batches: [0x10]", "0x10"),
        ("batches: [1:30]", "1:30"),
        ("batches: ['١']", "not a whole number"),
        ("sparsities: [.nan]", "outside"),
        ("sparsities: [.inf]", "not a number"),
    ],
)
def test_a_value_that_cannot_be(line: str, says: str) -> None:
    with pytest.raises(PrunescopeError, match=says):
        planned(line)


def test_numbers_are_read_as_they_look() -> None:
    plan = planned("sparsities: [0.25, 5e-1, .125]\nbatches: [1, 16]\nprompt_lens: [64]")
    assert plan.config.sparsities == (0.25, 0.5, 0.125)
    assert plan.config.batches == (1, 16)


@pytest.mark.parametrize("line", ["until: 2%", "until: 0.02", "until: 2 %"])
def test_a_result_is_requested_until_its_interval_is_narrow(line: str) -> None:
    from prunescope.tracer.capture.placements import further_placement, planned_placements

    plan = planned(f"{line}\nplacements: 12")
    assert plan.config.until == plan.config.identity()["until"] == 0.02
    request = request_of(plan.config, plan.results[0], out=Path("r"))
    assert request.looks == (4, 6, 9, 12)
    first = planned_placements(request)
    assert [plan.repeats for plan in first] == [2] * 4  # 20 samples over 12 placements
    assert sum(plan.steps for plan in first) == TraceRequest.steps
    assert further_placement(request, 4, ("prefill",)).steps == 0


def test_a_function_of_ones_own_is_planned() -> None:
    assert len(planned("sparsities: [0.5]", families="['dry_run_functions:same']").results) == 1


def test_an_infeasible_point_of_several_families_is_told_beside_the_others() -> None:
    plan = planned("sparsities: [0.25, 0.5]", families="['static-m+static-k-24']")
    assert [r.problem is None for r in plan.results] == [False, True]
    assert "static-k-24: 2:4 sparsity is 0.5" in str(plan.results[0].problem)


def test_placements_that_have_no_sample_are_told() -> None:
    assert planned("placements: 5000\nrepeats: 20").notes == (
        "placements: 5,000 requested, 20 measured: each needs a sample of its own (repeats)",
    )
    assert planned("repeats: 2").notes == ()  # the default of placements


def test_a_run_holds_the_samples_that_may_be_taken() -> None:
    assert MOST_SAMPLES * MAX_ROUNDS == MAX_SAMPLES


@pytest.mark.parametrize("line", ["text: nofile.txt", "placements: 1000000000"])
def test_the_command_says_so(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("s.yaml").write_text(f"model: tiny-llama\nfamilies: [static-m]\n{line}\n")
    assert prunescope.main(["sweep", "s.yaml", "--out", "out", "--dry-run"]) == 2
    assert "error: " in capsys.readouterr().err
    assert not Path("out").exists()
