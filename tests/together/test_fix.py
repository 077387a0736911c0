"""`prunescope fix` from a model to repairs.py: its logic, with counted work instead of a clock."""

from __future__ import annotations

import importlib.util
import json
import runpy
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import prunescope
from prunescope import fixing
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.fixes import Fixes
from prunescope.tracer.capture import device_state, turns
from prunescope.tracer.capture.phases import Sampled
from prunescope.tracer.capture.timing import SamplePlan, SampleSet, take_samples
from prunescope.tracer.repairs import subject
from tests.docs import pages
from tests.small_capture import PEAKS
from tests.tracer.repairs.clock import counted
from tests.tracer.tiny_models import tiny_model

pytestmark = pytest.mark.torch
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
FEW: dict[str, Any] = {
    "phase": "prefill", "prompt_len": 24, "warmup": 0, "repeats": 4, "steps": 2, "placements": 2,
    "threads": 1,
}  # fmt: skip
DISTURBED: list[str] = []


def take_counted(loops: Mapping[str, Sampled], plan: SamplePlan, **_options: Any) -> SampleSet:
    """Samples of the work of each loop, with a spread of 1 ‰ that all have alike."""
    ns: dict[str, list[int]] = {}
    for name, loop in loops.items():
        loop.prepare()
        with counted() as total:
            loop.sample()
        each = total[0] / loop.steps_per_sample
        ns[name] = [
            round(each * (1 + 0.001 * ((plan.first_round + i) % 3))) for i in range(plan.repeats)
        ]
    return SampleSet(ns, disturbed=plan.repeats * bool(DISTURBED), reasons=list(DISTURBED))


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(turns, "take_samples", take_counted)
    for module in (device_state, subject):
        monkeypatch.setattr(module, "measure_peaks", lambda *_: PEAKS)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.chdir(tmp_path)
    DISTURBED.clear()
    yield
    sys.modules.pop("planted", None)


def saved(folder: Path, name: str = "llama", **fields: Any) -> str:
    tiny_model(name, **fields).save_pretrained(folder / "model")
    return str(folder / "model")


def kept(fixes: Fixes) -> list[str]:
    return [row.id for row in fixes.repairs if row.kept]


def load_repair(folder: Path) -> Any:
    spec = importlib.util.spec_from_file_location("its_repairs", folder / "repairs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.repair


def test_a_command_repairs_masks_and_writes_code(tmp_path: Path) -> None:
    words = ["--model", saved(tmp_path), "--method", "planted:masks_left", "--sparsity", "0.5",
             "--phase", "prefill", "--prompt-len", "24", "--warmup", "0", "--repeats", "4",
             "--steps", "2", "--placements", "2", "--threads", "1"]  # fmt: skip
    assert prunescope.main(["fix", *words, "--out", "fixed", "--json", "fix.json"]) == 0
    told = json.loads(Path("fix.json").read_text())
    row = next(row for row in told["repairs"] if row["kept"])
    assert row["id"] == "remove-parametrisations"
    assert row["ci95"][0] > 1 and row["gain"] > 1 and row["difference"] == 0
    assert row["finding"] in ("added-mask", "zeros-in-dense", "added-work")
    assert told["after"]["ns"] < told["before"]["ns"]
    assert told["gain"] == pytest.approx(told["before"]["ns"] / told["after"]["ns"])

    text = (tmp_path / "fixed" / "repairs.py").read_text()
    assert "prunescope." not in text and "import prunescope" not in text
    model = importlib.import_module("planted").masks_left(tiny_model("llama"), 0.5)
    ids = torch.arange(24)[None]
    with torch.no_grad():
        expected = model(ids).logits
        repaired = load_repair(tmp_path / "fixed")(model)
        assert torch.equal(repaired(ids).logits, expected)
    assert not any(name.endswith("weight_orig") for name, _ in repaired.named_parameters())


LOUD = """
import os, subprocess, sys, ctypes
def prune(model, sparsity):
    print("a word"); sys.__stdout__.write("another\\n"); os.write(1, b"bytes\\n")
    ctypes.CDLL(None).puts(b"of C"); ctypes.CDLL(None).fflush(None)
    subprocess.run(["echo", "a child"])
    model.register_forward_pre_hook(lambda *_: print("a call"))
    return model
"""


def test_what_a_method_prints_is_no_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("loud.py").write_text(LOUD)
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ["--model", saved(tmp_path), "--method", "loud:prune", "--phase", "prefill",
             "--prompt-len", "8", "--warmup", "0", "--repeats", "2", "--steps", "1",
             "--placements", "2", "--only", "sdpa"]  # fmt: skip
    assert prunescope.main(["fix", *words, "--out", "fixed", "--json", "-"]) == 0
    told = capfd.readouterr()
    assert json.loads(told.out)["schema"] == 1
    for word in ("a word", "another", "bytes", "of C", "a child", "a call"):
        assert word in told.err
    sys.stdout.write("after")
    assert capfd.readouterr().out == "after"
    sys.modules.pop("loud")


def test_a_healthy_model_is_left_alone(tmp_path: Path) -> None:
    fixed = prunescope.fix(saved(tmp_path), method="planted:cut", sparsity=0.5, out="f", **FEW)
    assert kept(fixed) == []
    assert fixed.after is None or fixed.after == fixed.before
    repair = load_repair(tmp_path / "f")
    model = tiny_model("llama")
    assert repair(model) is model
    assert "Nothing" in "".join(str(part) for part in fixed.__rich__().parts)


def test_a_disturbed_machine_proves_nothing(tmp_path: Path) -> None:
    DISTURBED.append("other processes")
    fixed = prunescope.fix(saved(tmp_path), method="planted:masks_left", out="f", **FEW)
    assert kept(fixed) == []
    timed = [row for row in fixed.repairs if row.gain is not None]
    assert timed
    assert all((row.why or "").startswith("timing not valid") for row in timed)
    assert {row.outcome for row in timed} == {"timing_not_valid"}


def test_it_resumes_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = saved(tmp_path)
    first = prunescope.fix(model, method="planted:zero_sublayers", out="f", **FEW)
    assert kept(first) == ["skip-sublayers"]

    def refuse(*_args: Any, **_options: Any) -> SampleSet:
        raise AssertionError("it was measured before")

    monkeypatch.setattr(turns, "take_samples", refuse)
    again = prunescope.fix(model, method="planted:zero_sublayers", out="f", **FEW)
    assert again.to_dict()["repairs"] == first.to_dict()["repairs"]
    with pytest.raises(PrunescopeError, match="another request"):
        prunescope.fix(model, method="planted:casts", out="f", **FEW)


def test_what_looks_faster_and_is_in_doubt_is_timed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two placements of two samples first, of which the model's copy has one 30 % off, more than
    masks gain; eight of two then, which are quiet and decide alone."""
    placements: list[int] = []

    def take(loops: Mapping[str, Sampled], plan: SamplePlan, **options: Any) -> SampleSet:
        taken = take_counted(loops, plan, **options)
        if fixing._COPY in loops:
            placements.append(plan.repeats)
            if len(placements) == 2:
                usual = taken.samples[fixing._COPY]
                taken.samples[fixing._COPY] = [round(1.3 * ns) for ns in usual]
        return taken

    monkeypatch.setattr(turns, "take_samples", take)
    only = {"only": ["remove-parametrisations"], "method": "planted:masks_left", "sparsity": 0.5}
    fixed = prunescope.fix(saved(tmp_path), out="f", **only, **FEW)
    assert placements[:10] == [2] * 10
    assert kept(fixed) == ["remove-parametrisations"]
    assert fixed.noise == pytest.approx(1, abs=0.01)


def test_without_time_nothing_is_kept(tmp_path: Path) -> None:
    fixed = prunescope.fix(saved(tmp_path), method="planted:casts", out="f", budget=0, **FEW)
    assert kept(fixed) == []
    assert any("budget" in (row.why or "") for row in fixed.repairs)


def test_one_repair_alone(tmp_path: Path) -> None:
    fixed = prunescope.fix(
        saved(tmp_path), method="planted:masks_left", out="f", only=["sdpa"], **FEW
    )
    assert [row.id for row in fixed.repairs] in ([], ["sdpa"])
    with pytest.raises(PrunescopeError, match="no repair 'masks'"):
        prunescope.fix(saved(tmp_path), out="g", only=["masks"])


def test_a_model_and_a_call_of_ones_own(tmp_path: Path) -> None:
    """Masks in hooks, an eager attention and a strided weight at once."""
    planted = importlib.import_module("planted")
    model = planted.masks_in_hooks(tiny_model("llama"), 0.5)
    model = planted.eager_attention(model, 0.5)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.repeat(1, 2)[:, ::2])
    ids = torch.arange(24)[None]
    options = {name: FEW[name] for name in ("warmup", "repeats", "steps", "placements")}
    fixed = prunescope.fix(model, call=lambda m: m(ids), out="f", **options)
    assert set(kept(fixed)) == {"bake-masks", "contiguous-weights", "sdpa"}
    assert any(module._forward_pre_hooks for module in model.modules()), "the user's model stays"
    with pytest.raises(PrunescopeError, match="belong together"):
        prunescope.fix(model, out="g")
    assert tmp_path.joinpath("f", "repairs.py").is_file()


def test_every_position_is_one_too_many(tmp_path: Path) -> None:
    fixed = prunescope.fix(saved(tmp_path), out="f", only=["last-logits"], logits="all", **FEW)
    assert kept(fixed) == ["last-logits"]
    row = fixed.repairs[0]
    assert row.call == "model(input_ids, logits_to_keep=1)"
    assert "# model(input_ids, logits_to_keep=1)" in Path("f/repairs.py").read_text()


def test_the_story_comes_down_to_the_gain_of_its_shapes(tmp_path: Path) -> None:
    """Masks in hooks, adapters and a strided view at once; half of the channels are then cut."""
    story = Path(__file__).resolve().parents[2] / "docs" / "stories" / "proven-repairs.md"
    block = next(block for block in pages.blocks(story) if block.title == "brought.py")
    (tmp_path / "brought.py").write_text(block.code)
    sys.path.insert(0, str(tmp_path))
    try:
        fixed = prunescope.fix(saved(tmp_path), method="brought:pruned", out="f", **FEW)
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("brought", None)
    assert set(kept(fixed)) == {
        "bake-masks", "merge-adapters", "contiguous-weights", "cut-zeros",
    }  # fmt: skip
    cut = next(row for row in fixed.repairs if row.id == "cut-zeros")
    assert cut.on_top_of
    assert "intermediate_size" in Path("f/repairs.py").read_text()


def test_little_memory_holds_few_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sides are made again where they are needed, and one is timed at a time."""
    monkeypatch.setattr(fixing, "free_bytes", lambda _device: 0)
    fixed = prunescope.fix(saved(tmp_path), method="planted:masks_left", out="f", **FEW)
    assert kept(fixed) == ["remove-parametrisations"]
    assert fixed.gain is not None and fixed.gain > 1


ARCHITECTURES = {"llama": "llama", "hybrid": "falcon_h1", "mixture": "qwen2_moe"}
NAMES = runpy.run_path(str(BENCHMARKS / "planted.py"))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("fault", NAMES["FAULTS"])
def test_planted_faults_through_the_front_door(
    fault: str, architecture: str, tmp_path: Path
) -> None:
    """Each is repaired with equal outputs, by repairs.py alone as well, or the reason is told."""
    model = saved(tmp_path, ARCHITECTURES[architecture])
    fixed = prunescope.fix(model, method=f"planted:{fault}", out="f", **FEW)
    assert kept(fixed), [(row.id, row.why) for row in fixed.repairs]
    broken = NAMES["FAULTS"][fault](tiny_model(ARCHITECTURES[architecture]), 0.5)
    ids = torch.arange(24)[None]
    with torch.no_grad():
        expected = broken(ids).logits
        moved = (load_repair(tmp_path / "f")(broken)(ids).logits - expected).abs().max()
    assert float(moved / expected.abs().max()) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("placebo", NAMES["PLACEBOS"])
def test_placebos_through_the_front_door(placebo: str, tmp_path: Path) -> None:
    model = saved(tmp_path, list(ARCHITECTURES.values())[len(placebo) % 3])
    fixed = prunescope.fix(model, method=f"planted:{placebo}", out="f", **FEW)
    assert kept(fixed) == []


@pytest.mark.slow
@pytest.mark.machine
def test_with_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks halve the speed of a model: kept, unless the machine is disturbed."""
    monkeypatch.setattr(turns, "take_samples", take_samples)
    model = saved(tmp_path, hidden_size=256, intermediate_size=1024, num_attention_heads=16)
    options = {**FEW, "prompt_len": 8, "repeats": 10, "placements": 5, "warmup": 2}
    fixed = prunescope.fix(model, method="planted:masks_left", out="f", **options)
    row = next(row for row in fixed.repairs if row.id == "remove-parametrisations")
    assert row.outcome in ("kept", "timing_not_valid", "not_faster")
    assert row.kept == (kept(fixed) != [])
    if row.kept:
        assert row.gain is not None and row.gain > 1.2
