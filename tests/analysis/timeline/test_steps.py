"""The steps of a trace: whose annotations count, and in which order of preference."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunescope.analysis.inputs.options import Options
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.report.measured import outside_steps
from prunescope.analysis.timeline.engine_steps import _usual_rows
from prunescope.analysis.timeline.intervals import Windows
from prunescope.analysis.timeline.link import link
from prunescope.analysis.timeline.step_windows import find_windows
from prunescope.analysis.trace.load import load
from prunescope.taxonomy.errors import PrunescopeError
from tests.chrome import chrome, gap, k, module, op, save, step

MM = op("aten::mm", [4, 5], [5, 6], kernels=[k(us=7)])


def windows(tmp_path: Path, *items: Any, pattern: str | None = None, cpu: bool = False) -> Windows:
    trace = load(save(chrome(*items, cpu=cpu), tmp_path / "t.json"))
    return find_windows(trace, phase_pattern=pattern)


def test_our_steps_come_first(tmp_path: Path) -> None:
    items = (module("ProfilerStep#3", module("prunescope.phase", step(0, MM), step(1, MM))),
             module("prunescope.step#warmup", MM))  # fmt: skip
    steps = windows(tmp_path, *items)
    assert (steps.source, steps.names) == (
        "prunescope", ["prunescope.step#0", "prunescope.step#1"],
    )  # fmt: skip
    assert len(steps) == 2
    assert np.all(steps.start[1:] >= steps.end[:-1])


def test_the_pattern_stands_before_profiler_steps(tmp_path: Path) -> None:
    items = (module("ProfilerStep#3", module("execute_context_1(888)", MM), MM),)
    assert windows(tmp_path, *items, pattern=r"execute_context_\d").source == "pattern"
    assert windows(tmp_path, *items).names == ["ProfilerStep#3"]


def test_without_annotations_the_trace_is_one_step(tmp_path: Path) -> None:
    steps = windows(tmp_path, MM, module("a note", MM), MM)
    assert (steps.source, len(steps)) == ("whole", 1)


def test_a_pattern_without_a_match_lists_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(PrunescopeError, match="matches --phase-pattern") as error:
        windows(tmp_path, module("a note", MM), pattern="decode")
    assert "a note" in error.value.hint
    with pytest.raises(PrunescopeError, match="not a regular expression"):
        windows(tmp_path, MM, pattern="(")


@pytest.mark.parametrize(
    ("prompt", "token"),
    [("prefill", "decode"), ("Prefill_0", "decode step {}"), ("context", "generation_{}"),
     ("prefill phase", "decode[{}]")],
)  # fmt: skip
def test_ranges_called_as_phases_are_phases(prompt: str, token: str, tmp_path: Path) -> None:
    """A prompt of two kernels, two tokens of one, and a range of that name without any work."""
    tokens = [module(token.format(i), MM) for i in range(2)]
    trace = chrome(module(prompt, MM, MM), *tokens, module(token.format(2), gap(us=4)))
    report = analyze(save(trace, tmp_path / "t.json")).report
    phases = {name: (phase.steps, phase.busy_ns) for name, phase in report.phases.items()}
    assert phases == {"prefill": (1, 14_000), "decode": (2, 7_000)}


@pytest.mark.parametrize("names", [("decode", "denoise"), ("vae decode", "prefill"),
                                   ("context", "decode")])  # fmt: skip
def test_one_word_of_a_pair_is_no_phase(names: tuple[str, str], tmp_path: Path) -> None:
    trace = chrome(*(module(name, MM) for name in names))
    assert list(analyze(save(trace, tmp_path / "t.json")).report.phases) == ["trace"]


def test_a_phase_that_nothing_tells_is_not_used_and_said(tmp_path: Path) -> None:
    path = save(chrome(module("decode image", MM)), tmp_path / "t.json")
    assert [text for text in analyze(path, options=Options(phase="decode")).report.warnings
            if "--phase" in text] == [
        "--phase decode is not used: nothing in t.json tells prefill from decode; call ranges "
        "(NVTX, record_function) around them so, or give --model"
    ]  # fmt: skip


def test_a_pattern_that_matches_ops_alone_says_so(tmp_path: Path) -> None:
    with pytest.raises(PrunescopeError) as error:
        windows(tmp_path, module("a note", MM), pattern="aten::m+")
    assert error.value.problem == (
        "--phase-pattern 'aten::m+' matches ops (aten::mm), and no annotation of the trace"
    )
    assert "torch.cuda.nvtx.range" in error.value.hint


@pytest.mark.parametrize(
    ("pattern", "why"),
    [("(", "unclosed group"), ("(?=a)", "look-around"), (r"(a)\1", "backreferences"),
     ("a{999999999}", "exceeds size limit")],
)  # fmt: skip
def test_what_is_no_regular_expression(pattern: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(PrunescopeError, match="not a regular expression") as error:
        windows(tmp_path, MM, pattern=pattern)
    assert why in error.value.problem and "\n" not in error.value.problem


def test_a_pattern_takes_time_linear_in_the_names(tmp_path: Path) -> None:
    """Python's own engine takes two to the power of 40 tries for this name."""
    steps = windows(tmp_path, module("a" * 40 + "!", MM), module("aaa", MM), pattern="^(a+)+$")
    assert steps.names == ["aaa"]


def test_a_pattern_whose_ranges_launch_nothing_is_refused(tmp_path: Path) -> None:
    trace = chrome(module("load", gap(us=5)), module("decode", MM), module("load", gap(us=5)))
    with pytest.raises(PrunescopeError) as error:
        analyze(save(trace, tmp_path / "t.json"), options=Options(phase_pattern="load"))
    assert error.value.problem == (
        "t.json: nothing ran on the device in the 2 annotations that --phase-pattern 'load' matches"
    )
    assert "decode" in error.value.hint


def test_a_window_inside_another_is_no_step(tmp_path: Path) -> None:
    steps = windows(tmp_path, module("run 1", MM, module("run 2", MM)), module("run 3", MM),
                    pattern="run")  # fmt: skip
    assert steps.names == ["run 1", "run 3"]


def test_times_belong_to_the_window_that_holds_them() -> None:
    steps = Windows(np.array([10, 30]), np.array([20, 40]), "pattern", ["a", "b"])
    at = np.array([9, 10, 19, 20, 29, 30, 39, 40])
    assert steps.step_of(at).tolist() == [-1, 0, 0, -1, -1, 1, 1, -1]


def test_launches_outside_of_every_step_are_left_out(tmp_path: Path) -> None:
    """Two ProfilerSteps, a launch between them and one behind: named, not counted."""
    trace = chrome(module("ProfilerStep#0", MM), MM, module("ProfilerStep#1", MM, MM), MM)
    report = analyze(save(trace, tmp_path / "t.json")).report.phases["trace"]
    assert report.steps == 2
    assert report.left_out == {"events": 2, "ns": 14_000}
    # Step 0 is 7 us, step 1 the 14 behind the kernel between: that one's time is not its own.
    assert (report.wall_ns, report.busy_ns, report.gap_ns) == (10_500, 10_500, 0)


def test_our_thrown_away_step_gives_the_beginning(tmp_path: Path) -> None:
    """The wall of the first step runs from the end of the one before; it is not left out."""
    trace = chrome(module("prunescope.step#warmup", MM), gap(us=3), step(0, MM), gap(us=2),
                   step(1, MM))  # fmt: skip
    loaded = load(save(trace, tmp_path / "t.json"))
    linked = link(loaded, find_windows(loaded))
    assert linked.wall.tolist() == [10_000, 9_000]
    assert linked.gap.tolist() == [3_000, 2_000]
    assert linked.left_out == {"events": 0, "ns": 0}
    assert linked.launch_latency_ns is None


def test_launch_latency_of_a_bare_trace_is_not_in_the_wall(tmp_path: Path) -> None:
    """The step begins at its first device event; the host was 25 us ahead of it."""
    trace = chrome(module("ProfilerStep#0", gap(us=0), MM, gap(us=1), MM), lead_us=25)
    phase = analyze(save(trace, tmp_path / "t.json")).report.phases["trace"]
    assert (phase.launch_latency_ns, phase.wall_ns, phase.gap_ns) == (25_000, 15_000, 1_000)
    assert phase.launch_latency_busy_ns == 0
    assert any("not in the wall: the trace holds nothing" in line for line in outside_steps(phase))


@pytest.mark.parametrize("own", [True, False])
def test_cpu_steps_are_their_annotations(tmp_path: Path, *, own: bool) -> None:
    """2 us before, an op of 7, 1 between, an op of 4 with a view in it, 3 behind: wall 17."""
    view = op("aten::view", [4, 5], us=0.5)
    items = (gap(us=2), op("aten::mm", [4, 5], [5, 6], us=7), gap(us=1),
             op("aten::addmm", [6], [4, 5], [5, 6], us=3.5, inner=[view]), gap(us=3))  # fmt: skip
    outer = step(0, *items) if own else module("ProfilerStep#1", *items)
    trace = chrome(op("aten::mm", [4, 5], [5, 6], us=9), outer, cpu=True)
    phase = analyze(save(trace, tmp_path / "t.json")).report.phases["trace"]
    assert (phase.wall_ns, phase.busy_ns, phase.gap_ns, phase.tail_ns) == (
        17_000,
        11_000,
        3_000,
        3_000,
    )
    assert phase.bound["launch"] == phase.gap_ns
    # What our own run did before its first step is the step that is thrown away.
    assert phase.left_out["events"] == (0 if own else 1)


def test_a_cpu_trace_without_annotations(tmp_path: Path) -> None:
    """From the first op to the end of the last one, views too."""
    trace = chrome(op("aten::view", [4, 5], us=2), op("aten::mm", [4, 5], [5, 6], us=7), gap(us=1),
                   op("aten::view", [4, 5], us=2), cpu=True)  # fmt: skip
    phase = analyze(save(trace, tmp_path / "t.json")).report.phases["trace"]
    assert (phase.wall_ns, phase.busy_ns, phase.gap_ns, phase.tail_ns) == (
        12_000,
        7_000,
        2_000,
        3_000,
    )


def test_options_reach_the_steps(tmp_path: Path) -> None:
    trace = chrome(module("a", MM), module("b", MM, MM))
    options = Options(phase_pattern="^b$")
    phase = analyze(save(trace, tmp_path / "t.json"), options=options).report.phases["trace"]
    assert (phase.steps, phase.busy_ns) == (1, 14_000)


def turns(prefill: str, decode: str) -> Any:
    """Decode, prefill, decode, prefill, decode: of 7, 14, 7, 14, 7 us, the host 3 us late."""
    late = gap(us=3, launch=True)
    token, prompt = module(decode, late, MM), module(prefill, late, MM, MM)
    return chrome(token, prompt, token, prompt, token)


@pytest.mark.parametrize(
    ("decode", "prefill"),
    [("decode", "prefill"), ("ProfilerStep#2", "ProfilerStep#1"),
     ("execute_context_0(0)_generation_8(8)", "execute_context_1(512)_generation_0(0)")],
)  # fmt: skip
def test_the_steps_that_a_pattern_leaves_out_are_not_idle_time(
    decode: str, prefill: str, tmp_path: Path
) -> None:
    """A decode step is 3 us idle and 7 busy, whatever ran before; the first one of a trace has no
    gap. The kernels of the two prefills are left out: 2 * 2 of 7 us."""
    path = save(turns(prefill, decode), tmp_path / "t.json")
    options = Options(phase_pattern=f"^{re.escape(decode)}$")
    phase = analyze(path, options=options).report.phases["trace"]
    assert phase.left_out == {"events": 4, "ns": 28_000}
    assert (phase.steps, phase.busy_ns, phase.gap_ns) == (3, 7_000, 2_000)
    assert phase.bound["launch"] == 2_000


def test_a_pattern_answers_as_the_phase_of_an_engine_does(tmp_path: Path) -> None:
    """Of the first prefill too, whose wall begins where the decode before it ends."""
    names = "execute_context_1(512)_generation_0(0)", "execute_context_0(0)_generation_8(8)"
    path = save(turns(*names), tmp_path / "t.json")
    phases = analyze(path).report.phases
    for name, pattern in (("prefill", "context_1"), ("decode", "generation_8")):
        picked = analyze(path, options=Options(phase_pattern=pattern)).report.phases["trace"]
        want = phases[name]
        assert (picked.wall_ns, picked.gap_ns) == (want.wall_ns, want.gap_ns)
        assert (picked.steps, picked.kernels, picked.launch_latency_ns) == (
            want.steps, want.kernels, want.launch_latency_ns
        )  # fmt: skip


def test_a_pattern_picks_steps_of_a_host_trace(tmp_path: Path) -> None:
    trace = chrome(*(module(f"ProfilerStep#{i}", op("aten::mm", [4, 5], [5, 6], us=7 + i))
                     for i in range(3)), cpu=True)  # fmt: skip
    options = Options(phase_pattern="#[12]")
    phase = analyze(save(trace, tmp_path / "t.json"), options=options).report.phases["trace"]
    assert (phase.steps, phase.busy_ns) == (2, 8_500)
    assert phase.left_out == {"events": 1, "ns": 7_000}


def test_the_nearest_annotations_are_named_first(tmp_path: Path) -> None:
    """By how they begin; then steps, before notes that the alphabet puts in front."""
    notes = [module(f"aaa {i}", MM) for i in range(6)]
    steps = [module(f"ProfilerStep#{i}", MM) for i in (550, 551)]
    for pattern in (r"ProfilerStep#1[0-9]*", "^profiler_step", r"nothing \d", "[a-z]+$#"):
        with pytest.raises(PrunescopeError) as error:
            windows(tmp_path, *notes, *steps, module("ProfilerNote" + "x" * 99, MM),
                    pattern=pattern)  # fmt: skip
        assert error.value.hint.startswith(
            "the nearest of its 9 annotations: ProfilerStep#550, ProfilerStep#551, "
        )
        assert len(error.value.hint.split(", ")) == 5
        assert len(max(error.value.hint.split(", "), key=len)) <= 60


def test_experts_without_tokens_are_not_the_rows_of_a_step(tmp_path: Path) -> None:
    """Two products of no rows and one of four: the step has four, and no step has none, which the
    ratio of two steps would divide by."""
    none, four = (op("aten::mm", [m, 5], [5, 6]) for m in (0, 4))
    trace = load(save(chrome(none, none, four, cpu=True), tmp_path / "t.json"))
    whole = Windows(np.array([0]), np.array([1 << 62]), "engine", ["step"])
    assert _usual_rows(trace, whole) == [4]


@pytest.mark.parametrize("names", [["decode"] * 3, ["decode 1", "decode 2", "decode 3"],
                                   [f"generation_step_{i}" for i in range(3)]])  # fmt: skip
def test_ranges_that_are_all_called_decode_are_steps_of_it(
    names: list[str], tmp_path: Path
) -> None:
    """The other phase need not be in the file."""
    work = [MM, op("aten::mm", [4, 6], [6, 5], kernels=[k(us=9)])]
    path = save(chrome(*(module(name, *work, *work) for name in names)), tmp_path / "t.json")
    steps = find_windows(load(path))
    assert steps.names == [f"decode#{i} [decode]" for i in range(3)]
    report = analyze(path, options=Options(phase="decode")).report
    assert not [text for text in report.warnings if "--phase" in text]
    (phase,) = report.phases.values()
    assert (phase.steps, phase.phase_kind and phase.phase_kind["kind"]) == (3, "decode")
    with pytest.raises(PrunescopeError, match="no step of phase prefill"):
        analyze(path, options=Options(phase="prefill"))


def test_a_decoder_of_images_decodes_no_tokens(tmp_path: Path) -> None:
    conv = op(
        "aten::conv2d", [1, 4, 8, 8], [4, 4, 3, 3], kernels=[k(name="cudnn_convolve_sgemm", us=7)]
    )
    steps = windows(tmp_path, module("decode", conv, MM), module("decode", conv, MM))
    assert "[decode]" not in str(steps.names)


def test_a_small_part_of_the_work_does_not_name_the_phase(tmp_path: Path) -> None:
    steps = windows(tmp_path, MM, MM, MM, module("decode", MM), MM, op("aten::relu", [4, 4]))
    assert "[decode]" not in str(steps.names)
