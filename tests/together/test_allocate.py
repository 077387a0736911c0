"""`allocate` from a model to a plan, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, ClassVar

import pytest

import prunescope
from prunescope import allocation, cli
from prunescope.allocation import count_evaluations, read_problem
from prunescope.analysis.predict.allocation_request import AllocateRequest
from prunescope.analysis.report.allocation_tables import plan_sheet
from prunescope.taxonomy.allocations.allocation_plan import read_plan
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.runs.run import read_run
from prunescope.taxonomy.shape import ModelShape
from prunescope.tracer.capture.request import TraceRequest
from prunescope.tracer.sweep.plan import request_of
from prunescope.tracer.sweep.request import SweepRequest
from prunescope.tracer.sweep.sweep import plan_of
from tests.small_capture import quick_peaks, saved_model

pytestmark = pytest.mark.torch


FIGURE = allocation.plan_files


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peaks take no time, and neither does the figure beside a plan, but for a test that asks."""
    quick_peaks(monkeypatch)
    monkeypatch.setattr(allocation, "plan_files", lambda *_: {})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three layers of 4 heads, 2 KV heads and 96 channels, without a tokenizer."""
    at = tmp_path_factory.mktemp("models") / "dense"
    sizes = {
        "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 64,
        "num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 32,
    }  # fmt: skip
    return str(saved_model(at, model_type="llama", **sizes))


H100: Any = {"device": "h100-sxm", "dtype": "bf16"}


def test_a_plan_reaches_its_target_and_a_second_one_screens_nothing(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "plan.json"
    with monkeypatch.context() as patch:
        patch.setattr(allocation, "plan_files", FIGURE)
        plan = prunescope.allocate(model, speedup=1.25, out=out, **H100)
    assert plan.expected.speedup >= 1.25 and len(plan.layers) == 3
    low, high = plan.expected.range
    assert low < plan.expected.speedup < high
    assert plan.uniform is None or plan.expected.loss <= plan.uniform.loss + 1e-9
    lost = [one.loss for one in plan.frontier]
    assert lost == sorted(lost, reverse=True)
    assert any("random token ids" in note for note in plan.notes)
    assert read_plan(out).layers == plan.layers
    assert out.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads(out.read_bytes())["schema"] == 1
    with pytest.raises(PrunescopeError, match=r"plan\.json exists"):
        read_problem(AllocateRequest(model, speedup=1.25, out=out, **H100))
    # Another plan in the folder has all 15 removals from there.
    other = AllocateRequest(model, speedup=1.3, out=tmp_path / "other.json", **H100)
    counts = count_evaluations(read_problem(other))
    assert counts["losses"] == "plan.losses.json"
    assert counts["measured"] == counts["removals"] == 15
    known = json.loads(out.with_name("plan.losses.json").read_bytes())
    memory = plan.expected.dense_memory_bytes * 0.8 / 1e9
    again = prunescope.allocate(model, memory_gb=memory, out=out, overwrite=True, **H100)
    assert again.expected.memory_bytes <= memory * 1e9
    now = json.loads(out.with_name("plan.losses.json").read_bytes())
    assert (
        now["screened"] == known["screened"] and known["removed"].items() <= now["removed"].items()
    )
    text = plan.text
    assert 0 < text["confirmed"] <= text["removals"] <= 15 and text["screened_sequences"] == 1


def test_a_plan_is_shown_drawn_saved_and_read_back(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "plan.json"
    plan = prunescope.allocate(model, speedup=1.25, out=out, **H100)
    again = prunescope.AllocationPlan.load(out)
    assert again.to_dict() == plan.to_dict()
    plan.show()
    said = capsys.readouterr().out
    assert "target 1.25× in prefill" in said and "--method" in said
    assert [row["layer"] for row in plan.table] == [0, 1, 2]
    assert plan.to_polars().height == 3
    assert plan.plot.layers().axes
    assert "1.25× in prefill" in repr(plan) and "target 1.25×" in plan._repr_html_()
    written = plan.save(tmp_path / "saved", ["md", "json", "svg"])
    assert [one.name for one in written] == ["plan.md", "plan.json", "plan.svg"]
    assert prunescope.AllocationPlan.load(tmp_path / "saved" / "plan.json") == plan
    with pytest.raises(PrunescopeError, match="docx"):
        plan.save(tmp_path / "saved", "docx")


def test_a_workload_weighs_both_phases(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "plan.json")
    words = ["allocate", "--model", model, "--device", "h100-sxm", "--dtype", "bf16"]
    assert cli.main([*words, "--speedup", "1.2", "--workload", "agent", "--out", out]) == 0
    said = "".join(capsys.readouterr().out.split())  # long paths are wrapped
    assert f"prunescopetrace--model{model}--method{out}measuresit" in said
    plan = read_plan(out)
    weights = {name: one.weight for name, one in plan.expected.phases.items()}
    assert weights == {"prefill": 1, "decode": 1024}
    assert plan.expected.speedup >= 1.2


def test_a_target_out_of_reach_is_refused_with_what_holds_it(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "no.json"
    words = ["allocate", "--model", model, "--device", "h100-sxm", "--speedup", "90"]
    assert cli.main([*words, "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert "× is the most, with 1 of 3 layers left, of 1 KV head, of " in said
    assert "what holds it:" in said
    memory = [*words[:-2], "--memory-gb", "1e-6"]
    sizes = []
    for dtype in ("bf16", "fp32"):
        assert cli.main([*memory, "--dtype", dtype, "--out", str(out)]) == 2
        said = " ".join(capsys.readouterr().err.split())
        found = re.search(r"([\d.e-]+) GB is the least,.* lm_head stay, ([\d.e-]+) GB of it", said)
        assert found is not None
        sizes.append([float(found[1]), float(found[2])])
    assert sizes[1] == pytest.approx([2 * size for size in sizes[0]], rel=0.01)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "problem"),
    [({}, "needs a target"), ({"speedup": {"encode": 2.0}}, "names encode"),
     ({"speedup": 0.9}, "nothing to remove"), ({"speedup": -1.0}, "no target"),
     ({"speedup": 2.0, "device": None}, "one of the two"),
     ({"speedup": 2.0, "out": "plan.txt"}, "no .json file")],
)  # fmt: skip
def test_what_leaves_nothing_to_do_is_refused(
    model: str, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(PrunescopeError, match=problem):
        prunescope.allocate(model, **{**H100, **options})


def test_a_plan_is_one_point_of_a_sweep(model: str, tmp_path: Path) -> None:
    """Its folder is made, before a loss is measured."""
    made = tmp_path / "plans" / "plan.json"
    prunescope.allocate(model, speedup=1.2, out=made, **H100)
    made.rename(tmp_path / "plan.json")
    sweep = tmp_path / "sweep.yaml"
    sizes = "phases: [prefill]\nprompt_lens: [16]\nsparsities: [0.25, 0.5]\n"
    sweep.write_text(f"model: {model}\nfamilies: [plan.json]\n{sizes}")
    plan = plan_of(SweepRequest(sweep, out=tmp_path / "swept"))
    (result,) = plan.results
    assert (Path(result.family).name, result.sparsity) == ("plan.json", None)
    request = request_of(plan.config, result, out=tmp_path / "run")
    request.check()
    assert request.plan == tmp_path / "plan.json"


def test_a_dry_run_does_not_count_losses_of_another_model(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {"weights": "0", "text": {"text": None}, "dense": 4.0, "removed": {"0 layer 0": 4.5}}
    file = tmp_path / "plan.losses.json"
    words = ["allocate", "--model", model, "--device", "h100-sxm", "--speedup", "1.2"]
    words += ["--out", str(tmp_path / "plan.json"), "--dry-run"]
    for name, measured, of in (("dense", 1, None), ("other", 0, "other")):
        file.write_text(json.dumps({**kept, "model": name}))
        assert cli.main([*words, "--json", "-"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["measured"], found["losses_of"]) == (measured, of)
    assert cli.main(words) == 0
    assert "plan.losses.json has those of other, and none counts here" in capsys.readouterr().out


def test_plans_of_one_file_name_get_runs_of_their_own(tmp_path: Path) -> None:
    """By what is in them: the same plan gives the same folder again."""
    paths = [tmp_path / name / "plan.json" for name in ("a", "b", "c")]
    for path, text in zip(paths, ("{}", "{} ", "{}"), strict=True):
        path.parent.mkdir()
        path.write_text(text)
    first, second, again = (TraceRequest("tiny-llama", method=str(path)).folder for path in paths)
    assert first == again != second
    assert first.name.startswith("tiny-llama-plan-")


def test_a_planned_model_is_trained(model: str, tmp_path: Path) -> None:
    """A dropped layer, narrower ones, and adapters on what is left: the run says all three, and
    its layers have the sizes of the plan after the training."""
    path = tmp_path / "plan.json"
    plan = prunescope.allocate(model, speedup=1.35, out=path, **H100)
    run = read_run(
        prunescope.trace(
            model, method=str(path), recover="steps=2,batch=1,length=16,rank=2", phase="prefill",
            prompt_len=8, repeats=2, steps=1, placements=2, warmup=0, out=tmp_path / "planned",
        ) / "pruned"
    )  # fmt: skip
    pruning = run.pruning
    assert pruning is not None and pruning.recovery is not None
    assert (pruning.method, pruning.recovery.steps_done) == ("plan.json", 2)
    held = pruning.recovery.losses.held_out
    assert held.before is not None and held.after is not None and held.before != held.after
    shape = ModelShape.from_run(run.model.shape)
    left = [one for one in plan.layers if not one.dropped]
    assert shape is not None and shape.layers == len(left)
    now = [(shape.layer(i).kv_heads, shape.layer(i).intermediate) for i in range(shape.layers)]
    assert now == [(one.kv_heads, one.channels) for one in left]
    assert any(one != (2, 96) for one in now) or plan.removed


def test_a_plan_of_low_ranks_is_priced_loaded_and_traced(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where all but ranks loses much, the MLPs are of low rank; the run has the ranks of the plan.
    (Random weights lose next to nothing by anything: the losses are written here.)"""
    path = tmp_path / "plan.json"
    words = ["allocate", "--model", model, "--device", "h100-sxm", "--dtype", "bf16", "--low-rank"]
    words += ["--memory-gb", "1.75e-4", "--out", str(path)]
    assert cli.main(words) == 0
    losses = path.with_name("plan.losses.json")
    found = json.loads(losses.read_bytes())
    for losses_on in (found, found["screened"]):
        for key in losses_on["removed"]:
            losses_on["removed"][key] = losses_on["dense"] + (0.01 if "lowrank" in key else 9.0)
    losses.write_text(json.dumps(found))
    capsys.readouterr()
    assert cli.main([*words, "--overwrite"]) == 0
    plan = read_plan(path)
    assert plan.has_ranks and not plan.removed
    assert "low rank" in capsys.readouterr().out and "--low-rank" in plan.command
    run = read_run(
        prunescope.trace(
            model, method=str(path), phase="prefill", prompt_len=8, repeats=2, steps=1,
            placements=2, warmup=0, out=tmp_path / "planned",
        ) / "pruned"
    )  # fmt: skip
    shape = ModelShape.from_run(run.model.shape)
    left = [one for one in plan.layers if not one.dropped]
    assert shape is not None
    assert [dict(shape.layer(i).ranks) for i in range(shape.layers)] == [one.ranks for one in left]


def test_a_dry_run_counts_removals(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "plan.json")
    words = ["allocate", "--model", model, "--device", "h100-sxm", "--speedup", "1.2"]
    assert cli.main([*words, "--out", out, "--dry-run", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    # Each layer: one count of KV heads, three widths, itself.
    assert found["removals"] == 3 * (1 + 3 + 1)
    assert list(tmp_path.iterdir()) == []


def test_several_targets_hold_together_and_name_the_one_that_has_to_give(
    model: str, tmp_path: Path
) -> None:
    speedup = {"prefill": 1.15, "decode": 1.1}
    plan = prunescope.allocate(
        model, speedup=speedup, memory_gb=0.00017, out=tmp_path / "plan.json", **H100
    )
    assert [t.speedup for t in (plan.target, *plan.further_targets)] == [1.15, 1.1, None]
    assert plan.expected.phases["prefill"].speedup >= 1.15
    assert plan.expected.phases["decode"].speedup >= 1.1
    assert plan.expected.memory_bytes <= 170_000
    assert "--speedup prefill=1.15 --speedup decode=1.1" in plan.command


def test_the_planned_model_is_saved_with_sizes_that_an_engine_takes(
    model: str, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    saved = tmp_path / "saved"
    plan = prunescope.allocate(
        model, speedup=1.2, legal="vllm", save_model=saved, out=tmp_path / "plan.json", **H100
    )
    kept = {(layer.kv_heads, layer.channels) for layer in plan.layers if not layer.dropped}
    assert len(kept) == 1  # vLLM reads one size for all layers
    loaded = AutoModelForCausalLM.from_pretrained(saved)
    heads, channels = kept.pop()
    assert (loaded.config.num_key_value_heads, loaded.config.intermediate_size) == (heads, channels)
    assert loaded.config.num_hidden_layers == 3 - len(plan.removed)
    card = (saved / "README.md").read_text()
    assert "Expected by the plan, not measured" in card
    assert "| vLLM | yes |" in card
    with pytest.raises(PrunescopeError, match="holds something"):
        prunescope.allocate(
            model, speedup=1.2, save_model=saved, out=tmp_path / "other.json", **H100
        )


def test_the_time_that_evaluations_take_is_told_from_the_first_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """100 evaluations of 3 s: 99 left after the first take 297 s, about 5 min."""
    from prunescope import allocation

    clock = iter([100.0, 103.0, 106.0])
    monkeypatch.setattr(allocation.time, "monotonic", lambda: next(clock))

    class Said:
        """A display that keeps what it is told."""

        texts: ClassVar[list[str]] = []

        def advance(self) -> None:
            """Do nothing."""

        def describe(self, text: str) -> None:
            """Keep a text."""
            self.texts.append(text)

    remaining = allocation._Remaining(Said(), 100, "plan.losses.json", _begun=clock.__next__())
    remaining.advance()
    assert "1 of 100, about 5 min left, kept in plan.losses.json" in Said.texts[0]


def test_a_plan_says_how_much_was_only_screened(model: str, tmp_path: Path) -> None:
    """Whatever else stands where its counts should: an older plan lacks them."""
    plan = prunescope.allocate(model, speedup=1.2, out=tmp_path / "plan.json", **H100)
    counts: dict[str, Any] = {
        "removals": 5,
        "confirmed": 3,
        "screened_sequences": 1,
        "sequences": 4,
    }

    def shown(**values: Any) -> str:
        read = read_plan(tmp_path / "plan.json")
        read.text = {**plan.text, **counts, **values}
        parts = plan_sheet(read, "plan.json", model=model).parts
        return "\n".join(getattr(line, "text", "") for line in parts)

    said = "rests on 5 removals: 3 measured on all of the text, the others on 1 of 4 sequences"
    assert said in shown()
    for values in ({"confirmed": 5}, {"confirmed": "3"}, {"sequences": None}, {"removals": [5]}):
        assert "it rests on" not in shown(**values)
