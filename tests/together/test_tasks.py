"""Zero-shot tasks: what the harness is handed, what is kept of its answer, and the losses."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import plain
from prunescope.taxonomy.runs.run import read_run
from prunescope.taxonomy.runs.run_quality import TaskScore
from prunescope.tracer.quality import tasks
from prunescope.tracer.quality.tasks import TaskList, changes, score_tasks
from prunescope.tracer.sweep.request import SweepRequest
from prunescope.tracer.sweep.sweep import plan_of, sweep

INSTALLED = importlib.util.find_spec("lm_eval") is not None
TASK = """\
task: letters
dataset_path: json
dataset_kwargs:
  data_files: {test: letters.jsonl}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
SWEEP = """\
model: {model}
families: [static-m]
sparsities: [0.5]
phases: [decode]
prompt_lens: [16]
decode_steps: 2
repeats: 2
steps: 2
threads: 1
tasks: [letters]
tasks_path: tasks
"""
ROWS = [
    {"question": f"{i}: ", "choices": [chr(97 + i), chr(98 + i), chr(99 + i)], "answer": i % 3}
    for i in range(20)
]


def folder(path: Path) -> Path:
    """A task of 20 questions with three answers of one letter, and its data beside it."""
    path.mkdir()
    (path / "letters.yaml").write_text(TASK)
    (path / "letters.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def entry(value: float | None, stderr: float | None = None, *, higher: bool = True) -> TaskScore:
    return TaskScore(value=value, stderr=stderr, higher_is_better=higher)


def test_the_losses_by_hand() -> None:
    dense = {"a": entry(0.5, 0.05), "b": entry(0.8, 0.04), "c": entry(20.0, 1.0, higher=False)}
    pruned = {"a": entry(0.4, 0.05), "b": entry(0.84, 0.04), "c": entry(25.0, 1.0, higher=False)}
    found = changes(dense, pruned)
    assert found is not None
    # -0.1/0.5, +0.04/0.8, and a perplexity that rose by a quarter.
    assert found.by_task == pytest.approx({"a": -0.2, "b": 0.05, "c": -0.25})
    assert found.signed == pytest.approx(-0.4 / 3)
    assert found.absolute == pytest.approx(0.5 / 3)
    # Of a: (0.05/0.5)^2 + (0.4*0.05/0.25)^2 = 0.01 + 0.0064; of b: 0.0025 + 0.00275625;
    # of c: 0.0025 + 0.00390625. 1.96*sqrt(their sum)/3 = 0.1090.
    low, high = found.signed_ci95 or (0.0, 0.0)
    assert (high - low) / 2 == pytest.approx(1.96 * 0.0280625**0.5 / 3)
    assert (high + low) / 2 == pytest.approx(found.signed)


def test_what_is_not_known_is_no_number() -> None:
    assert changes({"a": entry(0.0)}, {"a": entry(0.1)}) is None
    assert changes({"a": entry(0.5)}, {"a": entry(None)}) is None
    assert changes({}, {}) is None
    found = changes({"a": entry(0.5, None)}, {"a": entry(0.4, 0.1)})
    assert found is not None
    assert found.signed_ci95 is None


class Harness:
    """Stands in for lm_eval: notes what it is called with, and answers as 0.4.13 does."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls: dict[str, Any] = {}
        for name in ("lm_eval", "lm_eval.evaluator", "lm_eval.tasks", "lm_eval.models.huggingface"):
            patch.setitem(sys.modules, name, ModuleType(name))
        sys.modules["lm_eval.tasks"].TaskManager = self.manager  # type: ignore[attr-defined]
        sys.modules["lm_eval.models.huggingface"].HFLM = self.model  # type: ignore[attr-defined]
        sys.modules["lm_eval.evaluator"].simple_evaluate = self.evaluate  # type: ignore[attr-defined]
        patch.setattr(tasks, "check_installed", lambda: None)

    def manager(self, **options: Any) -> str:
        self.calls["manager"] = options
        return "manager"

    def model(self, **options: Any) -> str:
        self.calls["model"] = options
        return "model"

    def evaluate(self, **options: Any) -> dict[str, Any]:
        self.calls["evaluate"], self.calls["inside"] = options, Path.cwd()
        self.calls["offline"] = os.environ.get("HF_DATASETS_OFFLINE")
        sys.stderr.write("a bar\n")
        if options["tasks"] == ["nowhere"]:
            raise KeyError("nowhere")
        return {
            "results": {
                "letters": {
                    "alias": "letters", "acc,none": 0.25, "acc_stderr,none": 0.1,
                    "acc_norm,none": 0.5, "acc_norm_stderr,none": "N/A", "acc,strict": 0.9,
                },
                "group": {"alias": "group"},
            },
            "configs": {"letters": {"metric_list": [{"metric": "acc_norm"}, {"metric": "acc"}]}},
            "higher_is_better": {"letters": {"acc": True, "acc_norm": True}},
            "n-samples": {"letters": {"original": 20, "effective": 20}},
            "versions": {"letters": 1.0},
        }  # fmt: skip


def test_what_the_harness_is_handed_and_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    harness, place, here = Harness(monkeypatch), folder(tmp_path / "tasks"), Path.cwd()
    found = score_tasks("a model", "a tokenizer", TaskList(names=("letters",), folder=place))
    assert plain(found["letters"]) == {
        "metric": "acc_norm", "value": 0.5, "stderr": None, "higher_is_better": True,
        "samples": 20, "version": 1.0,
        "metrics": {
            "acc": {"value": 0.25, "stderr": 0.1}, "acc_norm": {"value": 0.5, "stderr": None},
        },
    }  # fmt: skip
    assert harness.calls["manager"] == {"include_path": str(place), "include_defaults": False}
    handed = harness.calls["model"]
    assert (handed["pretrained"], handed["tokenizer"]) == ("a model", "a tokenizer")
    asked = harness.calls["evaluate"]
    assert (asked["model"], asked["tasks"], asked["task_manager"]) == (
        "model", ["letters"], "manager",
    )  # fmt: skip
    # Data files are found beside the task, without a network, and the screen stays ours.
    assert harness.calls["inside"] == place.resolve()
    assert harness.calls["offline"] == "1"
    assert Path.cwd() == here
    assert os.environ.get("HF_DATASETS_OFFLINE") != "1"
    assert capsys.readouterr().err == ""
    score_tasks("a model", "a tokenizer", TaskList(names=("letters",)))
    assert harness.calls["manager"] == {"include_path": None, "include_defaults": True}
    assert harness.calls["inside"] == here


def test_mistakes_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Harness(monkeypatch)
    with pytest.raises(PrunescopeError, match="nowhere cannot be run"):
        score_tasks("m", "t", TaskList(names=("nowhere",), folder=folder(tmp_path / "tasks")))
    with pytest.raises(PrunescopeError, match="group of tasks"):
        score_tasks("m", "t", TaskList(names=("group",)))
    with pytest.raises(PrunescopeError, match="need a tokenizer"):
        score_tasks("m", None, TaskList(names=("letters",)))


def test_without_the_extra_a_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks.importlib.util, "find_spec", lambda _: None)
    folder(tmp_path / "tasks")
    config = tmp_path / "sweep.yaml"
    config.write_text(SWEEP.format(model="tiny-llama"))
    with pytest.raises(PrunescopeError, match="not installed") as caught:
        sweep(SweepRequest(config=config, out=tmp_path / "s"))
    assert "pip install 'prunescope[eval]'" in caught.value.hint
    assert not (tmp_path / "s").exists()


def test_a_model_without_a_tokenizer_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By --dry-run too: a preset has random weights and no words."""
    from prunescope.cli import main

    monkeypatch.setattr(tasks, "check_installed", lambda: None)
    folder(tmp_path / "tasks")
    config = tmp_path / "sweep.yaml"
    config.write_text(SWEEP.format(model="tiny-llama"))
    assert main(["sweep", str(config), "--out", str(tmp_path / "s"), "--dry-run"]) == 2
    assert "tasks need a tokenizer, and this model has none" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_the_keys_of_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "check_installed", lambda: None)
    monkeypatch.setattr("prunescope.tracer.model.load.lacks_tokenizer", lambda _: False)
    config = tmp_path / "sweep.yaml"
    config.write_text(SWEEP.format(model="tiny-llama"))
    request = SweepRequest(config=config, out=tmp_path / "s")
    with pytest.raises(PrunescopeError, match="there is no folder tasks"):
        plan_of(request)
    place = folder(tmp_path / "tasks")
    plan = plan_of(request)
    assert (plan.config.tasks, plan.config.tasks_path) == (("letters",), place.resolve())
    assert plan.config.identity()["tasks"] == {"names": ["letters"], "folder": "tasks"}
    config.write_text(SWEEP.format(model="tiny-llama").replace("tasks: [letters]\n", ""))
    with pytest.raises(PrunescopeError, match="without tasks"):
        plan_of(request)


def test_other_data_are_another_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "0.4.13")
    place = folder(tmp_path / "tasks")
    before = TaskList(names=("letters",), folder=place).source()
    assert before == TaskList(names=("letters",), folder=place).source()
    assert (before.folder, before.lm_eval) == ("tasks", "0.4.13")
    (place / "letters.jsonl").write_text("{}\n")
    assert TaskList(names=("letters",), folder=place).source().sha256 != before.sha256


def byte_model(path: Path, tiny: Any) -> Path:
    """The tiny model with a tokenizer of single bytes, as a folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {**{letter: i for i, letter in enumerate(letters)}, "<s>": 256}
    plain = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, bos_token="<s>", eos_token="<s>")
    tiny.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def accuracy(model: Any, tokenizer: Any) -> float:
    """By one forward a question: the letter with the largest logit after it."""
    right = 0
    for row in ROWS:
        ids = torch.tensor(
            [tokenizer(row["question"].rstrip(), add_special_tokens=False).input_ids]
        )
        # The harness moves the space at the end of a question to the front of the answers.
        said = [tokenizer(f" {letter}").input_ids for letter in row["choices"]]
        scores = []
        for answer in said:
            whole = torch.cat([ids, torch.tensor([answer])], 1)
            with torch.inference_mode():
                log_p = model(whole).logits[0].float().log_softmax(-1)
            at = range(ids.shape[1] - 1, whole.shape[1] - 1)
            scores.append(sum(float(log_p[i, t]) for i, t in zip(at, answer, strict=True)))
        right += max(range(3), key=scores.__getitem__) == row["answer"]
    return right / len(ROWS)


@pytest.mark.torch
@pytest.mark.skipif(not INSTALLED, reason="lm-evaluation-harness is not installed: extra `eval`")
def test_answers_read_token_by_token_are_those_of_one_forward(tmp_path: Path, tiny: Any) -> None:
    """By the harness itself, of a model that decides nothing."""
    from prunescope.tracer.model.load import load_model, load_tokenizer

    where = byte_model(tmp_path / "model", tiny)
    loaded = load_model(str(where), dtype="auto", device=torch.device("cpu"), attn="sdpa")
    asked = TaskList(names=("letters",), folder=folder(tmp_path / "tasks"))
    one, other = (
        score_tasks(loaded.model, load_tokenizer(loaded), asked, scoring=scoring)
        for scoring in ("prefill", "decode")
    )
    assert one == other


@pytest.mark.torch
@pytest.mark.skipif(not INSTALLED, reason="lm-evaluation-harness is not installed: extra `eval`")
@pytest.mark.parametrize("family", ["static-m", "kv-evict"])
def test_a_sweep_with_a_local_task(
    tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    from prunescope.analysis.pareto.pareto import judge
    from prunescope.tracer.model.load import load_model, load_tokenizer
    from prunescope.tracer.sweep import job as sweep_job

    monkeypatch.setattr(sweep_job, "TOKENS", 256)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    where = byte_model(tmp_path / "model", tiny)
    folder(tmp_path / "tasks")
    config = tmp_path / "sweep.yaml"
    config.write_text(SWEEP.format(model="model").replace("static-m", family))
    out = sweep(SweepRequest(config=config, out=tmp_path / "s"))
    (result,) = json.loads((out / "sweep.json").read_bytes())["results"]
    assert result["state"] == "done", result["error"]
    quality = read_run(out / result["run"]).quality
    dense = read_run(out / result["run"] / ".." / "dense").quality
    loaded = load_model(str(where), dtype="auto", device=torch.device("cpu"), attn="sdpa")
    share = accuracy(loaded.model, load_tokenizer(loaded))
    assert dense is not None and quality is not None and quality.tasks_change is not None
    before = dense.tasks["letters"]
    assert before.value == pytest.approx(share)
    assert before.samples == 20
    # The harness divides by n - 1.
    assert before.stderr == pytest.approx((share * (1 - share) / 19) ** 0.5)
    change = quality.tasks_change
    after = quality.tasks["letters"].value or 0.0
    assert change.by_task["letters"] == pytest.approx(after / share - 1)
    (point,) = judge(out).phases["decode"].points
    assert point.loss is not None
    assert point.loss.tasks_signed == change.signed
    assert point.loss.tasks_absolute == change.absolute
