"""A lost kernel is no pruned one: damaged copies of a real trace, and what the verdict says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.notice import caveat
from prunescope.analysis.schema.report import FamilyVerdict, Phase, Report
from prunescope.analysis.summary.headline import headline
from prunescope.analysis.verdict import caveats
from prunescope.analysis.verdict.caveats import apply_caveats
from tests.analysis import mixture
from tests.analysis.decoder import Layer, census, decoder, write_pair
from tests.analysis.edits import Edit, Event
from tests.analysis.finding_cases import BF16, assert_present, found, layers, mm, report
from tests.chrome import Op, chrome, k, module, op, save, step

QWEN = "h100_qwen1.5-0.5b_prefill.json.gz"
GEMM = ("aten::mm", "aten::addmm", "aten::linear", "aten::bmm", "aten::matmul")


def drop(edit: Edit, lost: Callable[[int, Event], bool]) -> None:
    """Kernels go, their launches and ops stay, and nothing moves: as a profiler loses them."""
    kernels = [e for e in edit.device if e["cat"] == "kernel"]
    gone = {id(e) for i, e in enumerate(kernels) if lost(i, e)}
    edit.events[:] = [e for e in edit.events if id(e) not in gone]


@pytest.fixture
def damaged(real_trace: Callable[[str], Path], tmp_path: Path) -> Callable[..., Phase]:
    def analyzed(lost: Callable[[Edit, int, Event], bool]) -> Phase:
        path = real_trace(QWEN)
        edit = Edit(path)
        drop(edit, lambda i, e: lost(edit, i, e))
        pruned = edit.save(tmp_path / "damaged.json")
        return analyze(pruned, baseline=path).report.phases["trace"]

    return analyzed


def finding(phase: Phase) -> str:
    missing = [f for f in phase.findings if f.id == "kernels-missing"]
    return " ".join([missing[0].text, *missing[0].evidence]) if missing else ""


def test_every_twentieth_kernel_lost(damaged: Callable[..., Phase]) -> None:
    phase = damaged(lambda _edit, i, _event: i % 20 == 7)
    assert phase.family is not None
    assert phase.family.confidence <= 0.3
    assert "of 1029 kernel launches have no kernel in the trace" in phase.family.evidence[0]
    assert "kernel launches have no kernel" in finding(phase)


def test_every_gemm_lost(damaged: Callable[..., Phase]) -> None:
    phase = damaged(lambda edit, _, e: (edit.op_of(e) or {}).get("name") in GEMM)
    assert phase.family is not None
    assert (phase.family.id, phase.family.confidence) == ("unknown", 0.1)
    assert phase.family.alternatives
    assert "169 of 1029 kernel launches have no kernel" in finding(phase)
    assert "pruned: the trace holds no GEMM of a linear" in finding(phase)
    assert phase.family.evidence[0] in finding(phase)


def test_the_gemms_of_some_layers_lost(damaged: Callable[..., Phase]) -> None:
    """Those of every second layer: what stands between them still runs, and so does attention."""

    second: list[Event] = []

    def lost(edit: Edit, _: int, event: Event) -> bool:
        op_ = edit.op_of(event) or {}
        layers = second or edit.modules("Qwen2DecoderLayer_")[::2]
        second[:] = layers
        within = any(m["ts"] <= op_.get("ts", 0) < m["ts"] + m["dur"] for m in layers)
        return within and op_.get("name") in GEMM

    phase = damaged(lost)
    assert phase.family is not None and phase.family.confidence <= 0.3
    assert "12 attention or MLP sublayers lost some GEMMs and kept others" in finding(phase)


def test_a_real_pruning_of_layers_is_not_doubted(
    real_trace: Callable[[str], Path], tmp_path: Path
) -> None:
    path = real_trace(QWEN)
    edit = Edit(path)
    edit.drop_layers(range(6))
    phase = analyze(edit.save(tmp_path / "p.json"), baseline=path).report.phases["trace"]
    assert phase.family is not None
    assert (phase.family.id, phase.family.confidence) == ("static-m", 1.0)
    assert not finding(phase)


@pytest.mark.parametrize("name", ["a100_legacy_flows", "b200_eager", "h100_owlv2-large", "h100_vit",
                                  "mi210_gpu_only", "mi300x_compile_triton"])  # fmt: skip
def test_whole_traces_lack_nothing(name: str, real_report: Callable[[str], Report]) -> None:
    phase = real_report(f"{name}.json.gz").phases["trace"]
    assert not finding(phase)


def test_torn_sublayers_are_no_pruned_layers(tmp_path: Path) -> None:
    """o went in one layer of two, q stayed there."""
    whole = [("self_attn.q_proj", mm()), ("self_attn.o_proj", mm()), ("mlp.up_proj", mm())]
    dense = layers(*whole)
    pruned = layers(*whole)
    events = pruned["traceEvents"]
    first = next(e for e in events if e["name"] == "model.layers.0.self_attn.o_proj")
    inside = {
        e["args"].get("correlation") for e in events
        if first["ts"] <= e["ts"] < first["ts"] + first["dur"] and "args" in e
    } - {None}  # fmt: skip
    pruned["traceEvents"] = [
        e for e in events
        if e.get("args", {}).get("correlation") not in inside
    ]  # fmt: skip
    analysed = report(tmp_path, dense, pruned)
    said = found(analysed, "kernels-missing")
    assert said is not None
    assert said.evidence == ["1 attention or MLP sublayers lost some GEMMs and kept others, as no "
                             "pruning of layers does"]  # fmt: skip
    (phase,) = analysed.phases.values()
    assert phase.family is not None and phase.family.confidence == 0.3


def add(num: int) -> list[Op]:
    return [op("aten::add", [4], [4], kernels=[k(us=1)])] * num


def test_steps_of_unequal_work_lower_the_confidence(tmp_path: Path) -> None:
    mm_ = op("aten::mm", [4, 5], [5, 6], kernels=[k(us=10)])
    even = chrome(step(0, mm_, *add(9)), step(1, mm_, *add(9)))
    uneven = chrome(step(0, mm_, *add(9)), step(1, mm_, *add(4)))
    (phase,) = report(tmp_path, even, uneven, None).phases.values()
    assert phase.family is not None and phase.family.confidence <= 0.6
    assert "pruned: steps hold 5 to 10 kernels" in phase.family.evidence
    (phase,) = report(tmp_path, even, even, None).phases.values()
    assert phase.family is not None
    assert not [line for line in phase.family.evidence if "steps hold" in line]


def test_experts_that_get_no_token_make_no_step_uneven(tmp_path: Path) -> None:
    """The second step chose two experts of eight, the first all of them."""
    dense, pruned = (
        chrome(step(0, *mixture.layer(0, (1,) * experts)), step(1, *mixture.layer(0, (4, 4))))
        for experts in (8, 4)
    )
    (phase,) = report(tmp_path, dense, pruned, None).phases.values()
    assert phase.family is not None
    assert not [line for line in phase.family.evidence if "steps hold" in line]


def test_no_caveat_changes_nothing_and_the_strongest_one_counts() -> None:
    family = FamilyVerdict(id="static-m", confidence=1.0, evidence=["6 of 24 layers removed"])
    assert apply_caveats(family, []) is family
    less = apply_caveats(
        family,
        [caveat("fewer-roles", share=0.7, dense=0.9), caveat("partly-lost-sublayers", count=3)],
    )
    assert (less.id, less.confidence) == ("static-m", 0.3)
    assert less.evidence == [
        "70 % of busy time has a role, 90 % in the dense trace",
        "3 attention or MLP sublayers lost some GEMMs and kept others, as no pruning of layers "
        "does",
        "6 of 24 layers removed",
    ]
    some = apply_caveats(family, [caveat("unequal-steps", "pruned", fewest=5, most=10)])
    assert some.evidence == ["6 of 24 layers removed", "pruned: steps hold 5 to 10 kernels"]
    none = apply_caveats(family, [caveat("no-gemm", "pruned")])
    assert (none.id, none.confidence, none.alternatives) == ("unknown", 0.1, ["static-m"])
    assert none.evidence[0] == "pruned: the trace holds no GEMM at all"


def test_every_kind_of_caveat_has_a_limit() -> None:
    source = Path(caveats.__file__).read_text(encoding="utf-8")
    kinds = set(re.findall(r'(?:caveat\(|kind = |else )\s*"([a-z-]+)"', source))
    assert kinds == set(caveats.LIMITS) > caveats.MISSING_KERNELS


def test_roles_that_are_lost_lower_the_confidence(tmp_path: Path) -> None:
    """Kernels whose launches were lost, between others, have no op and no role."""
    dense, pruned = (layers(("mlp.up_proj", mm()), ("mlp.down_proj", mm()), count=4)
                     for _ in range(2))  # fmt: skip
    launches = [e for e in pruned["traceEvents"] if e.get("cat") == "cuda_runtime"]
    lost = {id(e) for e in launches[1:-1:3]}
    unlinked = {e["args"]["correlation"] for e in launches[1:-1:3]}
    for event in pruned["traceEvents"]:  # else the op is told by the External id alone
        if event["cat"] == "kernel" and event["args"]["correlation"] in unlinked:
            del event["args"]["External id"]
    pruned["traceEvents"] = [e for e in pruned["traceEvents"] if id(e) not in lost]
    analysed = report(tmp_path, dense, pruned, None)
    said = found(analysed, "kernels-missing")
    assert said is not None
    assert "75 % of busy time has a role, 100 % in the dense trace" in said.evidence
    (phase,) = analysed.phases.values()
    assert phase.family is not None and phase.family.confidence <= 0.5


def test_a_module_that_was_added_to_each_layer_lost_no_role(tmp_path: Path) -> None:
    """Six kernels of a module that merges tokens, in each layer beside its two GEMMs."""
    parts = (("mlp.up_proj", mm()), ("mlp.down_proj", mm()))
    norm = op("aten::div", [4], [4], kernels=[k(us=50)])
    merged = layers(*parts, *((f"merge.{i}", norm) for i in range(6)), count=4)
    assert found(report(tmp_path, layers(*parts, count=4), merged, None), "kernels-missing") is None


@pytest.mark.parametrize("known_by", ["weights", "calls", "nothing"])
def test_an_attention_replaced_by_a_module_without_weights(known_by: str, tmp_path: Path) -> None:
    """A fill stands where attention was in layer 1: meant, where the run does not hold the weights
    any more or did not call their modules; else its kernels may be lost."""
    layer = Layer(h=64, heads=4)
    zeros = op("aten::mul", [32, 64], [], dtype=BF16, kernels=[k(us=2, name="fill")])
    pruned = decoder([layer, replace(layer, attention=False, stands=(zeros,)), layer])
    if known_by != "calls":  # the scopes of modules whose kernels were lost
        pruned["traceEvents"] += [
            {**event, "dur": 0, "name": f"model.layers.1.self_attn.{role}_proj"}
            for event in pruned["traceEvents"] if event["name"] == "model.layers.1.self_attn"
            for role in "qkvo"
        ]  # fmt: skip
    listed = census(0.0, layers=3)["matrices"]
    held = [m for m in listed if not (m["layer"] == 1 and m["role"] in "qkvo")]
    runs = {"dense_census": {"matrices": listed}}
    runs["census"] = {"matrices": held if known_by == "weights" else listed}
    folder = write_pair(tmp_path / "r", decoder([layer] * 3), pruned, **runs)
    phase = analyze(folder).report.phases["prefill"]
    assert bool(finding(phase)) == (known_by == "nothing")
    if known_by == "weights":
        assert phase.family is not None
        assert (phase.family.id, phase.family.confidence) == ("static-m", 1.0)
        assert phase.family.evidence == ["1 of 3 attention sublayers removed: 1"]


@pytest.mark.parametrize("cut", ["pruned", "dense"])
def test_a_cut_off_file_is_no_pruned_model(tmp_path: Path, cut: str) -> None:
    """Of 8 layers the file of one side ends within the fourth: the rest seems gone, or added."""
    files = {}
    for side in ("dense", "pruned"):
        events = layers(("mlp.up_proj", mm()), ("mlp.down_proj", mm(n=2048, k_=4096)), count=8)
        files[side] = save(events, tmp_path / f"{side}.json")
    text = files[cut].read_text()
    at = text.index("model.layers.4.") - 20
    files[cut].write_text(text[:at])
    phase = analyze(files["pruned"], baseline=files["dense"]).report.phases["trace"]
    assert phase.family is not None
    assert phase.family.id == "unknown" and phase.family.confidence <= 0.1
    said = f"{cut}: the file is cut off, and what stood behind the cut is missing"
    assert said in phase.family.evidence
    assert_present(phase, "truncated-trace", "critical", f"the {cut} trace is cut off", said)
    assert headline(phase).startswith(f"the {cut} trace is cut off: what stood behind the cut is")
    assert headline(phase).endswith("is no speedup")
    assert phase.ladder is not None and phase.ladder.nominal is None


def test_a_whole_file_is_not_cut_off(tmp_path: Path) -> None:
    phase = analyze(save(layers(("mlp.up_proj", mm())), tmp_path / "t.json")).report.phases["trace"]
    assert not any(shown.id == "truncated-trace" for shown in phase.findings)


def test_kernels_whose_spans_were_cut_off_are_no_added_work(tmp_path: Path) -> None:
    """The file ends before the spans of the modules, which say where its 4 GEMMs stand."""
    events = layers(("mlp.up_proj", mm()), ("mlp.down_proj", mm(n=2048, k_=4096)))
    dense = save(events, tmp_path / "dense.json")
    spans = [event for event in events["traceEvents"] if "model." in event["name"]]
    others = [event for event in events["traceEvents"] if event not in spans]
    text = json.dumps(events | {"traceEvents": [*others, *spans]})
    pruned = tmp_path / "pruned.json"
    pruned.write_text(text[: text.index('"model.') - 40])
    phase = analyze(pruned, baseline=dense).report.phases["trace"]
    rows = {row.row: row.ns for row in phase.ledger or []}
    assert rows["added_work"] == 0
    assert rows["pruned"] == rows["dense"] == 400_000


def test_a_cut_off_file_alone_lacks_kernels(tmp_path: Path) -> None:
    path = save(layers(("mlp.up_proj", mm()), count=8), tmp_path / "t.json")
    text = path.read_text()
    path.write_text(text[: text.index("model.layers.4.") - 20])
    phase = analyze(path).report.phases["trace"]
    assert_present(phase, "truncated-trace", "critical", "the trace: the file is cut off")
    assert headline(phase).startswith("the trace is cut off; the rest takes")


@pytest.mark.parametrize("compiled", [False, True])
def test_compiled_code_that_has_no_roles_is_not_lost(tmp_path: Path, *, compiled: bool) -> None:
    """Four GEMMs of a layer's modules each, which the other side runs outside of all modules."""
    names = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
    head = module("lm_head", mm())
    dense = [module(f"model.layers.{i}.{name}", mm()) for i in range(2) for name in names]
    pruned = [mm() for _ in dense]
    if compiled:
        pruned = [op("Torch-Compiled Region: 0/0", inner=pruned, us=0)]
    analysed = report(tmp_path, chrome(step(0, *dense, head)), chrome(step(0, *pruned, head)), None)
    assert found(analysed, "kernels-missing") is None  # the dense side names what they multiply
    (phase,) = analysed.phases.values()
    if compiled:
        assert phase.pairing is not None
        assert (phase.pairing.added, phase.pairing.layers) == (0, None)
