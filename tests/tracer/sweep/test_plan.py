"""The plan of a sweep: ids, merged points, shards, presets, and mistakes in a file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import families
from prunescope.taxonomy.option import options_of
from prunescope.taxonomy.presets import preset_config
from prunescope.taxonomy.runs.run_blocks import MeasuredPeaks
from prunescope.taxonomy.runs.sweep_files import Planned
from prunescope.taxonomy.shape import ModelShape
from prunescope.tracer.capture.request import TraceRequest
from prunescope.tracer.sweep.config import preset_text, presets, read_configs
from prunescope.tracer.sweep.estimate import num_trainings
from prunescope.tracer.sweep.plan import (
    VARIED,
    SweepConfig,
    make_plan,
    model_name,
    read_shard,
    recording_problem,
    request_of,
    shard_of,
)
from prunescope.tracer.sweep.request import SweepRequest
from prunescope.tracer.sweep.state import SweepFolder
from prunescope.tracer.sweep.sweep import limits_here, plan_of, sweep


def config(folder: Path, text: str) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_ids_depend_on_nothing_but_the_point() -> None:
    shape = ModelShape.from_config(preset_config("tiny-llama"))
    one = SweepConfig(model="a", families=("static-m", "dynamic-m"), batches=(1, 2))
    two = SweepConfig(
        model="a", families=("dynamic-m", "static-m"), batches=(2, 1),
        sparsities=(0.5, 0.25, 0.375, 0.125), phases=("decode", "prefill"),
    )  # fmt: skip
    ids = {r.id for r in make_plan([one], shape).results}
    assert ids == {r.id for r in make_plan([two], shape).results}
    assert "static-m-s0.125-prefill-b2-p512-d0" in ids


def test_knobs_are_those_of_a_method() -> None:
    knobs = ("dynamic-m.choose=threshold", "static-m.unit=mlp")
    both = "static-m+dynamic-m"
    one = SweepConfig(model="a", families=("dynamic-m", "static-nk", both), knobs=knobs)
    assert one.identity()["knobs"] == list(knobs)
    assert SweepConfig(model="a", families=("static-m",)).identity()["knobs"] is None
    found = {r.family: request_of(one, r, out=Path()).knobs for r in make_plan([one], None).results}
    assert found == {
        "dynamic-m": {"choose": "threshold"},
        "static-nk": {},
        both: {"static-m.unit": "mlp", "dynamic-m.choose": "threshold"},
    }


@pytest.mark.parametrize(
    ("knob", "says"),
    [
        ("choose=threshold", "is not FAMILY.OPTION=VALUE"),
        ("static-m.unit=mlp", "of a family of this sweep"),
        ("dynamic-m.depth=3", "no option 'depth'"),
        ("dynamic-m.choose=best", "is not a valid choice"),
        ("dynamic-m.choose", "is not FAMILY.OPTION=VALUE"),
    ],
)
def test_a_knob_that_there_is_not(knob: str, says: str) -> None:
    with pytest.raises(PrunescopeError, match=says):
        make_plan([SweepConfig(model="a", families=("dynamic-m",), knobs=(knob,))], None)


def test_equal_dimensions_are_one_point() -> None:
    """Three KV heads: .25, .375 and .5 leave two of them, .125 leaves all three."""
    shape = ModelShape.from_config(preset_config("smollm2-135m"))
    config = SweepConfig(model="m", families=("static-nk-heads",), phases=("prefill",))
    plan = make_plan([config], shape)
    assert [r.sparsities for r in plan.results] == [(0.125,), (0.25, 0.375, 0.5)]
    assert plan.results[1].id == "static-nk-heads-s0.25-prefill-b1-p512-d0"
    assert "0.25 = 0.375 = 0.5" in plan.notes[0]
    # Zeros in dense tensors and decisions at run time differ although no dimension does.
    for family in ("static-k-mask", "dynamic-m", "kv-evict"):
        config = SweepConfig(model="m", families=(family,), phases=("prefill",))
        assert len(make_plan([config], shape).results) == 4


def test_every_family_can_be_planned() -> None:
    shape = ModelShape.from_config(preset_config("smollm2-135m"))
    names = tuple(f.id for f in families() if f.id != "dense")
    plan = make_plan([SweepConfig(model="m", families=names)], shape)
    assert {r.family for r in plan.results} == set(names)
    of_experts = [one.id for one in families() if {"experts", "routes"} & {*one.cuts}]
    problems = {(r.family, r.sparsity): r.problem for r in plan.results if r.problem}
    no_experts = {key for key in problems if key[0] in of_experts}
    assert len(no_experts) == 4 * len(of_experts)
    assert all("no layer has experts" in problems[key] for key in no_experts)
    assert {*problems} - no_experts == {
        ("static-k-24", 0.125), ("static-k-24", 0.25), ("static-k-24", 0.375),
    }  # fmt: skip


def test_a_sweep_calibrates_every_family_that_can_be(tmp_path: Path) -> None:
    names = tuple(f.id for f in families() if f.cuts and not f.predicted_only)
    config = SweepConfig(
        model="tiny-llama", families=(*names, "static-m+kv-evict", "static-m+dynamic-depth"),
        sparsities=(0.5,), phases=("prefill",), select="importance", text=tmp_path / "words.txt",
    )  # fmt: skip
    plan = make_plan([config], None)
    asked = {r.family: request_of(config, r, out=Path()) for r in plan.results}
    for request in asked.values():
        request.check()
    drawn = {"dynamic-depth", "dynamic-width", "static-topk", "static-m+dynamic-depth"}
    assert {name for name, request in asked.items() if request.select == "random"} == drawn
    # What ranks by the input's own attention reads no text.
    by_input = {"dynamic-nk", "token-drop", "kv-evict"}
    assert {name for name, request in asked.items() if request.text is None} == drawn | by_input
    assert set(plan.notes) == {f"{name}: chosen at random, not by importance" for name in drawn}


def test_ways_that_a_family_has_not_are_named() -> None:
    """Layers can be removed one by one; channels of an MLP are ranked."""
    config = SweepConfig(
        model="tiny-llama", families=("static-m", "static-nk-mlp"), sparsities=(0.5,),
        phases=("prefill",), select=("random", "importance", "greedy"),
    )  # fmt: skip
    plan = make_plan([config], None)
    assert len(plan.results) == 5
    assert plan.notes == ("static-nk-mlp: chosen at random or by importance, not greedily",)


def test_a_stored_sweep_is_resumed_under_the_names_it_was_written_with(tmp_path: Path) -> None:
    """Versions before 0.2 wrote `seatings` and `calibrated`, the latter in the ids of results."""
    text = "model: tiny-llama\nfamilies: [static-m]\nselect: [{}, greedy]\n{}: 4\n"
    old = config(tmp_path, text.format("calibrated", "seatings"))
    (first, *_) = plan_of(SweepRequest(config=old, out=tmp_path / "new")).results
    assert first.id.endswith("-importance")  # a sweep that begins now
    stored = plan_of(SweepRequest(config=old, out=tmp_path / "s")).config.identity()
    stored["select"] = ["calibrated", "greedy"]
    stored["seatings"] = stored.pop("placements")
    (tmp_path / "s" / "runs").mkdir(parents=True)
    plan = {"config": stored, "notes": [], "results": []}
    (tmp_path / "s" / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    for name in ("calibrated", "importance"):
        request = SweepRequest(
            config=config(tmp_path, text.format(name, "placements")), out=tmp_path / "s"
        )
        resumed = plan_of(request)
        SweepFolder(request.folder).start(resumed)
        (first, *_) = resumed.results
        assert first.id == "static-m-s0.125-prefill-b1-p512-d0-calibrated"
        assert model_name(first) == "static-m-s0.125-d0-calibrated"
        assert request_of(resumed.config, first, out=tmp_path).select == "importance"


def test_every_option_that_varies_is_in_the_name_of_a_result() -> None:
    options = {named.name: named.option for named in options_of(TraceRequest)}
    assert set(VARIED) == {name for name, one in options.items() if one.in_name is not None}
    assert set(VARIED.values()) <= set(Planned.__struct_fields__)
    listed = {one.option.lists for one in options_of(SweepConfig) if one.option.lists}
    assert listed == set(VARIED) - {"select"}  # which is one, or several
    identity = SweepConfig(model="a/m", families=("static-m",)).identity()
    assert set(identity) == {
        "model", "decode_steps", "select", "text", "other_text", "recover", "repeats", "steps",
        "placements", "until", "seed", "threads", "dtype", "tasks", "logits", "knobs",
    }  # fmt: skip


def test_the_axes_of_a_study_make_results(tmp_path: Path) -> None:
    text = (
        "model: tiny-llama\nfamilies: [static-nk-mlp, dynamic-m, dynamic-depth]\nsparsities: 0.5\n"
        "phases: prefill\nmode: [eager, compile]\nlogits: all\nflush: true\nwarmup: 10\n"
        "attn: [sdpa, eager]\nset: {align: [1, odd]}\n"
    )
    plan = plan_of(SweepRequest(config=config(tmp_path, text), out=tmp_path / "s"))
    by_id = {result.id: result for result in plan.results}
    # 2 modes, 2 attentions; the channels twice, as no other family has an alignment
    assert len(by_id) == 4 * (2 + 1 + 1)
    one = by_id["static-nk-mlp-s0.5-prefill-b1-p512-d0-compile-attn-eager-logits-all-alignodd-"
                "flush-w10"]  # fmt: skip
    assert (one.mode, one.attn, one.set, one.problem) == ("compile", "eager", ("align=odd",), None)
    request = request_of(plan.config, one, out=tmp_path)
    assert (request.mode, request.attn, request.logits) == ("compile", "eager", "all")
    assert (request.flush, request.warmup, request.knobs) == (True, 10, {"align": "odd"})
    assert model_name(one) == "static-nk-mlp-s0.5-d0-attn-eager-alignodd"
    refused = {result.family for result in plan.results if result.problem}
    assert refused == {"dynamic-depth"}
    assert any("cannot record dynamic-depth" in note for note in plan.notes)


def test_points_that_are_the_same_model_are_named_before_a_sweep(tmp_path: Path) -> None:
    """176 of 352 channels at s = .5 are 16 · 11, so that all alignments up to 16 keep as many."""
    text = (
        "model: tiny-llama\nfamilies: [static-nk-mlp, static-nk, static-m:0.25+static-nk-mlp, "
        "dynamic-width, dynamic-nk]\nphases: prefill\nsparsities: 0.5\n"
        "set: {align: [1, 4, 16, just-4, even, just-2], rounding: [nearest, paper], "
        "block: [16, 32]}\n"
    )
    plan = plan_of(SweepRequest(config=config(tmp_path, text), out=tmp_path / "s"))
    same = "s = 0.5: align=1, align=4, align=16 give equal dimensions: 3 points"
    for family in ("static-nk-mlp", "static-m:0.25+static-nk-mlp", "dynamic-width"):
        of_family = [note for note in plan.notes if note.startswith(f"{family}, ")]
        assert [same in note for note in of_family] == [True, False], of_family
        assert "align=even, align=just-2 give equal dimensions: 2 points" in of_family[1]
        assert "just-4 is a multiple of 4 and of no larger power" in of_family[0]
    of_heads = [note for note in plan.notes if note.startswith("static-nk, ")]
    assert "rounding=paper give equal dimensions: 6 points" in of_heads[0]  # 2 of 4 by either
    assert not any(note.startswith("dynamic-nk, ") for note in plan.notes)  # other blocks
    assert len(plan.results) == 6 + 12 + 6 + 6 + 2


def test_what_cannot_be_recorded_depends_on_the_knobs() -> None:
    routed = {"dynamic-m.keys": "routed"}
    assert recording_problem("dynamic-m+static-m", "eager", routed) is None
    assert recording_problem("dynamic-m+static-m", "graph", {}) is None
    problem = recording_problem("dynamic-m+static-m", "graph", routed)
    assert problem is not None and "keys=routed" in problem
    assert recording_problem("dynamic-depth", "compile", {"in_graphs": "masked"}) is None


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("mode: fast", "mode"), ("flush: 1", "flush.*true or false"), ("warmup: [-1]", "warmup"),
        ("set: align=1", "set"),
        ("set: {aline: 1}", "no family of this sweep has an option 'aline'"),
        ("set: {align: 3}", "is not a valid choice"), ("logits: [first]", "logits"),
    ],
)  # fmt: skip
def test_a_mistake_in_an_axis(line: str, says: str, tmp_path: Path) -> None:
    text = f"model: tiny-llama\nfamilies: [static-nk-mlp]\n{line}\n"
    with pytest.raises(PrunescopeError, match=says):
        plan_of(SweepRequest(config=config(tmp_path, text), out=tmp_path / "s"))


def test_a_printed_preset_is_read_back(tmp_path: Path) -> None:
    text = preset_text("paper")
    assert "mode: [graph]" in text and "32768" in text and "sparsities: [0.125, " in text
    assert (
        "only: [layer]" in text and "set: {align: [odd, just-2, just-4, just-8, 16, 128]}" in text
    )
    for command in ("gemm --m 4096 --n ", "sweep --preset paper-recovery", "reproduce"):
        assert f"#   prunescope {command}" in text
    for name in presets():
        assert read_configs(config(tmp_path, preset_text(name)), None) == presets()[name]
    assert "recover: {steps: 1000}" in preset_text("paper-recovery")
    scaled = preset_text("paper-recovery", {"recover": "steps=3,length=64", "text": "mine.txt"})
    assert "#" not in scaled and "recover: {steps: 3, length: 64}\n" in scaled
    assert "text: mine.txt" in scaled
    plan = make_plan(presets()["paper"], ModelShape.from_config(preset_config("llama-3.1-8b")))
    graphs = sum(result.problem is None for result in plan.results)
    (of_graphs, *rest) = [line for line in limits_here(plan) if "CUDA graphs" in line]
    assert f"{graphs} of {len(plan.results)} results" in of_graphs and not rest


def test_shards_are_disjoint_and_whole() -> None:
    config = SweepConfig(model="m", families=("static-m", "dynamic-m"), batches=(1, 4), draws=2)
    plan = make_plan([config], None)
    parts = [shard_of(plan, (i, 3)) for i in range(3)]
    assert sorted(r.id for part in parts for r in part) == sorted(r.id for r in plan.results)
    keys = [{model_name(r) for r in part} for part in parts]
    assert not (keys[0] & keys[1] or keys[1] & keys[2] or keys[0] & keys[2])
    assert read_shard("2/3") == (2, 3)
    for bad in ("3/3", "1", "-1/2", "0/0", "a/b"):
        with pytest.raises(PrunescopeError, match="--shard"):
            read_shard(bad)


def test_the_paper_is_seven_families_of_its_grid_a_layer_and_alignments() -> None:
    shape = ModelShape.from_config(preset_config("llama-3.1-8b"))
    plan = make_plan(presets()["paper"], shape)
    aligned = [one for one in plan.results if one.set]
    layers = [one for one in plan.results if one.only == "layer"]
    # 6 families x 4 sparsities + 2:4 at 4 (3 impossible), 7 cells, 2 phases, 3 draws.
    assert len(plan.results) - len(aligned) - len(layers) == 7 * 4 * 7 * 2 * 3
    assert {(r.batch, r.prompt_len) for r in plan.results} == {
        (1, 1024), (8, 1024), (16, 1024), (32, 1024), (1, 8192), (1, 16384), (1, 32768),
    }  # fmt: skip
    assert len(layers) == 6 * 2 * 3 and len(aligned) == 3 * 6 * 3
    at = {(one.prompt_len, one.sparsity) for one in layers + aligned}
    assert at == {(32768, 0.5)} and {one.phase for one in aligned} == {"prefill"}


def test_the_papers_recovery_trains_each_model_once(tmp_path: Path) -> None:
    shape = ModelShape.from_config(preset_config("llama-3.1-8b"))
    (config,) = presets()["paper-recovery"]
    plan = make_plan([config], shape)
    able = [one for one in plan.results if one.problem is None]
    assert num_trainings(able, config) == 6 * 4 + 1 + 1  # 2:4 at one half alone, and dense
    request = request_of(config, able[0], out=tmp_path)
    assert request.recover is not None and request.recover.steps == 1000
    assert (str(request.recover.text), request.select) == ("wikitext2", "importance")


def test_a_folder_is_a_family_of_one_point(tmp_path: Path) -> None:
    folder = tmp_path / "recovered"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(preset_config("tiny-llama")))
    (folder / "model.safetensors").write_bytes(b"")  # a plan reads no weights
    text = "model: tiny-llama\nfamilies: [static-m, ./recovered]\nsparsities: 0.5\n"
    plan = plan_of(SweepRequest(config=config(tmp_path, text), out=tmp_path / "s"))
    own = [r for r in plan.results if r.sparsity is None]
    assert [r.id for r in own] == ["recovered-prefill-b1-p512-d0", "recovered-decode-b1-p512-d0"]
    assert own[0].family == str(tmp_path / "recovered")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("model: tiny-llama\n", "has no families"),
        ("families: [static-m]\n", "has no model"),
        ("model: tiny-llama\nfamilies: [static-m]\nbatchs: [1]\n", "unknown key 'batchs'"),
        ("model: tiny-llama\nfamilies: [static-q]\n", "static-q"),
        ("model: tiny-llama\nfamilies: [static-m]\nsparsities: [1.5]\n", "outside"),
        ("model: tiny-llama\nfamilies: [static-m]\nsparsities: [half]\n", "half"),
        ("model: tiny-llama\nfamilies: [static-m]\nbatches: [0]\n", "batches: 0"),
        ("model: tiny-llama\nfamilies: [static-m]\nbatches: [true]\n", "batches: True"),
        ("model: tiny-llama\nfamilies: [static-m]\nphases: [train]\n", "train"),
        ("model: tiny-llama\nfamilies: [static-m]\nselect: best\n", "best"),
        ("model: tiny-llama\nfamilies: [static-m]\nseed: -1\n", "seed"),
        ("model: tiny-llama\nfamilies: [static-m]\ndtype: int3\n", "int3"),
        ("model: [a\n", "not YAML, line"),
        ("- a\n", "holds no keys"),
        ("model: !!python/object/apply:os.getcwd []\n", "not YAML"),
    ],
)
def test_mistakes_in_a_file_are_named(text: str, problem: str, tmp_path: Path) -> None:
    request = SweepRequest(config=config(tmp_path, text), out=tmp_path / "s")
    with pytest.raises(PrunescopeError) as caught:
        sweep(request)
    assert problem in caught.value.problem
    assert caught.value.hint
    assert not request.out.exists()


def test_a_file_or_a_preset() -> None:
    with pytest.raises(PrunescopeError, match="a CONFIG.yaml, --preset, or both"):
        read_configs(None, None)
    with pytest.raises(PrunescopeError, match="no sweep preset"):
        read_configs(None, "papper")
    with pytest.raises(PrunescopeError, match="cannot be read"):
        read_configs(Path("nowhere.yaml"), None)


@pytest.mark.torch
def test_an_estimate_grows_with_the_plan() -> None:
    from prunescope.tracer.sweep.estimate import ForwardTimes, estimate_s

    shape = ModelShape.from_config(preset_config("smollm2-135m"))
    peaks = MeasuredPeaks(dense_flop_per_s={"bf16": 1e12}, byte_per_s=2e10)

    def seconds(**options: Any) -> float:
        config = SweepConfig(model="m", families=("static-m",), **options)
        plan = make_plan([config], shape)
        return estimate_s(plan.results, config, ForwardTimes(shape, peaks, 2))

    least = seconds(batches=(1,), repeats=5)
    assert least < seconds(batches=(1,), repeats=50) < seconds(batches=(1, 8), repeats=50)
    assert least < seconds(batches=(1,), repeats=5, draws=3)
    assert seconds(batches=(1,), repeats=5, placements=1) < least


@pytest.mark.parametrize(
    "value",
    ["1" + "0" * 4400, "0x" + "f" * 4400, "2001-99-99", "100000000000000"],
    ids=["decimal", "hexadecimal", "no date", "a large one"],
)
@pytest.mark.parametrize("key", ["repeats", "batches", "seed", "threads", "sparsities"])
def test_a_number_that_cannot_be_meant_is_refused(key: str, value: str, tmp_path: Path) -> None:
    text = f"model: tiny-llama\nfamilies: [static-m]\n{key}: {value}\n"
    if (key, value) == ("seed", "100000000000000"):
        plan_of(SweepRequest(config=config(tmp_path, text), out=tmp_path))
        return
    with pytest.raises(PrunescopeError) as error:
        plan_of(SweepRequest(config=config(tmp_path, text), out=tmp_path))
    assert len(str(error.value)) < 500


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    text = "model: tiny-llama\nfamilies: [static-m]\nseed: 1\nseed: 2\n"
    with pytest.raises(PrunescopeError, match="gives seed twice, the second time in line 4"):
        plan_of(SweepRequest(config=config(tmp_path, text), out=tmp_path))


@pytest.mark.parametrize("model", ["no-such-model", "tiny-lama", "./gone", "gone.gguf"])
def test_a_model_that_is_not_there_is_said_before_anything_is_planned(
    model: str, tmp_path: Path
) -> None:
    text = f"model: {model}\nfamilies: [static-m]\n"
    with pytest.raises(PrunescopeError, match=model.removeprefix("./")):
        plan_of(SweepRequest(config=config(tmp_path, text), out=tmp_path))


def test_a_model_of_the_hub_may_be_planned(tmp_path: Path) -> None:
    text = "model: nobody/such-model\nfamilies: [static-m]\n"
    assert plan_of(SweepRequest(config=config(tmp_path, text), out=tmp_path)).results


def test_what_a_model_does_not_allow_is_planned_as_impossible() -> None:
    """One KV head: no group of heads can go, alone or beside something else."""
    shape = ModelShape.from_config(preset_config("gemma-3-1b"))
    names = ("static-m", "static-nk-heads", "static-nk-heads:0.5+static-m:0.5")
    config = SweepConfig(model="m", families=names, sparsities=(0.5,), phases=("prefill",))
    plan = make_plan([config], shape)
    why = {result.family: result.problem for result in plan.results}
    assert why["static-m"] is None
    said = "static-nk-heads cannot be applied to this model: one KV head serves all query heads"
    assert all(str(why[name]).startswith(said) for name in names[1:])
    assert any(note.startswith(said) for note in plan.notes)


NAMED = """model: tiny-llama
families: [static-nk, 'mine:by_norm']
sparsities: [0.5]
names: {'mine:by_norm': Ours}
"""


def test_a_display_name_is_kept_apart_from_the_method(tmp_path: Path) -> None:
    """It is in the requests of its method's results, in no id, and may change between calls."""
    (named,) = read_configs(config(tmp_path, NAMED), None)
    (plain,) = read_configs(config(tmp_path, NAMED.replace("names", "# names")), None)
    assert named.names == {"mine:by_norm": "Ours"}
    assert named.identity() == plain.identity()
    results = make_plan([named], None).results
    assert [r.id for r in results] == [r.id for r in make_plan([plain], None).results]
    names = {r.family: request_of(named, r, out=tmp_path).name for r in results}
    assert names == {"static-nk": None, "mine:by_norm": "Ours"}


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ("{'mine:by_nrm': Ours}", "'mine:by_nrm' is not in families"),
        ("{'mine:by_norm': static-nk}", "are both called 'static-nk'"),
        ("{'mine:by_norm': ''}", "is no display name"),
        ("{'mine:by_norm': 3}", "methods with their names"),
        ("Ours", "methods with their names"),
    ],
)
def test_a_mistake_in_names_is_named(names: str, says: str, tmp_path: Path) -> None:
    text = NAMED.replace("{'mine:by_norm': Ours}", names)
    with pytest.raises(PrunescopeError, match=re.escape(says)):
        make_plan(read_configs(config(tmp_path, text), None), None)
