"""Every finding has a test where it must appear and one where it must not; and no false alarm."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from prunescope.analysis.findings.registry import registered
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Report
from tests.analysis.findings import test_cases

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent

CASES = "a row of tests/analysis/findings/test_cases.py"
# Finding that has not both in CASES → test where it must appear, and test where it must not (one
# name: the same test).
COVERED: dict[str, str | tuple[str, str]] = {
    "added-adapter": "test_adapters_that_were_not_merged_are_named_and_are_no_pruning",
    "added-estimator": ("test_each_purpose_of_added_work_is_named_alone", CASES),
    "added-gather-scatter": ("test_gathers_inserted_into_a_real_trace", CASES),
    "added-layout": ("test_each_purpose_of_added_work_is_named_alone", CASES),
    "added-mask": ("test_each_purpose_of_added_work_is_named_alone", CASES),
    "added-routing": ("test_each_purpose_of_added_work_is_named_alone", CASES),
    "allocator-calls": ("test_calls_of_the_allocator_are_no_dispatch",
                        "test_a_warm_step_is_not_cold"),
    "below-break-even": ("test_block_sparse_attention_below_its_break_even", CASES),
    "captured-launches": ("test_launches_captured_beside_a_step_that_ran",
                          "test_launches_without_kernel_outside_of_a_capture_are_lost"),
    "captured-step": ("test_a_step_that_was_captured",
                      "test_launches_captured_beside_a_step_that_ran"),
    "clock-skew": ("test_nothing_critical_rests_on_a_skew", "test_clocks_that_agree"),
    "unsteady-clocks": ("test_clocks_that_moved_or_differ", CASES),
    "uncertain-config": "test_a_config_whose_tiles_do_not_fit_leads_the_answer",
    "coverage-limited": "test_coverage_limited",
    "cuda-cores": ("test_no_format_is_advised_that_the_device_lacks", "test_not_named"),
    "truncated-trace": ("test_a_cut_off_file_alone_lacks_kernels",
                        "test_a_whole_file_is_not_cut_off"),
    "experts-on-all-tokens": "test_one_product_of_all_experts_is_along_their_number",
    "fake-quantised": ("test_fake_quantisation_that_was_left_on",
                       "test_a_weight_is_not_made_anew_that_nobody_makes"),
    "earlier-work": "test_a_trace_that_begins_within_earlier_work",
    "exposed-communication": ("test_communication_that_nothing_overlaps_has_a_gain",
                              "test_overlapped_communication_has_no_finding"),
    "unattributed-idle": ("test_idle_time_before_work_without_a_launch_is_named",
                          "test_idle_time_before_a_late_launch_has_its_cause"),
    "first-calls": ("test_a_cold_step_is_no_launch_bound_one", "test_a_warm_step_is_not_cold"),
    "gemm-outlier": ("test_one_gemm_that_took_many_times_as_long",
                     "test_gemms_that_changed_alike_or_little_are_no_outliers"),
    "graph-idle": "test_a_replay_that_stands_still_lacks_kernels",
    "stream-blocked": ("test_a_kernel_that_its_stream_holds_back", "test_a_late_host_is_no_wait"),
    "host-collectives": ("test_collectives_of_other_threads_are_named",
                         "test_a_warm_step_is_not_cold"),
    "layer-alone": "test_a_layer_alone_is_a_point_with_its_closure",
    "late-first-launch": ("test_long_launch_latency_of_one_step_is_a_finding",
                          "test_short_launch_latency_is_none"),
    "host-waits": ("test_idle_time_in_copies_is_no_late_host", "test_a_late_host_is_no_wait"),
    "host-work": ("test_a_data_loader_is_named_and_no_graph_is_advised",
                  "test_a_late_host_is_no_wait"),
    "kernels-missing": ("test_every_twentieth_kernel_lost",
                        "test_a_real_pruning_of_layers_is_not_doubted"),
    "largest-cost": "test_a_role_far_from_its_bound_is_named",
    "longer-communication": "test_communication_that_waits_is_no_slow_kernel",
    "masked-tokens": ("test_tokens_that_are_masked_and_computed", CASES),
    "nearest-dimension": ("test_an_odd_dimension_and_the_aligned_one_beside_it", CASES),
    "no-speedup": "test_no_speedup_and_wide_interval",
    "nominal-differs": ("test_nominal_and_realised_sparsity_are_both_said",
                        "test_a_sparsity_that_is_what_it_says"),
    "reads-all-weights": ("test_dynamic_m_at_batch_8_reads_all_weights", CASES),
    "residual-map": ("test_maps_that_eat_the_gain", CASES),
    "unexplained-difference": ("test_kernels_that_all_run_twice_as_fast",
                               "test_a_small_difference_is_noise"),
    "recomputed-forward": "test_a_forward_that_is_computed_again_is_no_work_to_fuse",
    "skipped-layers-executed": ("test_layers_that_are_skipped_and_executed", CASES),
    "sparse-padded": ("test_sparse_rows_padded_to_eight_are_named", CASES),
    "rank-does-more": ("test_a_rank_that_does_more_is_named_where_times_do_not_show_it",
                       "test_equal_ranks_have_no_straggler"),
    "repeated-gap": ("test_a_gap_that_repeats_in_each_layer_is_named_with_its_place",
                     "test_a_gap_of_one_layer_repeats_nowhere"),
    "straggler": ("test_a_folder_of_ranks_is_a_phase_each_and_the_straggler_is_named",
                  "test_equal_ranks_have_no_straggler"),
    "timing-not-valid": "test_timing_not_valid",
    "unaligned-operands": ("test_kernels_for_operands_that_are_not_aligned",
                           "test_no_kernel_for_aligned_operands_or_of_little_time"),
    "interrupted-ops": "test_a_call_that_is_interrupted_within_is_named_by_its_like",
    "long-gap": ("test_one_long_gap_is_named_and_no_dispatch", "test_many_gaps_are_dispatch"),
    "step-outlier": "test_an_odd_step_is_named_and_stays",
    "unequal-steps": "test_unequal_steps",
    "unfused-attention": ("test_products_and_a_softmax_are_unfused",
                          "test_a_fused_one_a_small_one_and_one_without_softmax_are_not"),
    "same-waves": ("test_fewer_tiles_in_as_many_waves", CASES),
    "weight-copied": ("test_a_weight_that_is_copied_at_every_call", CASES),
    "weights-recomputed": "test_parametrisations_that_were_left_on",
    "wide-interval": "test_no_speedup_and_wide_interval",
}  # fmt: skip


@cache
def bodies() -> dict[str, str]:
    """Return every test function of this folder with its source and that of its decorators.

    Those of one name are taken together.
    """
    sources: dict[str, str] = {}
    for path in TESTS.rglob("test_*.py"):
        if path == Path(__file__):
            continue
        source = path.read_text()
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                lines = source.splitlines()[first - 1 : node.end_lineno]
                sources[node.name] = "\n".join([sources.get(node.name, ""), *lines])
    return sources


def named_tests(name: str) -> tuple[str, str]:
    """Return the tests where a finding must appear, and where it must not."""
    tests = COVERED.get(name, CASES)
    return tests if isinstance(tests, tuple) else (tests, tests)


def test_every_finding_has_both_tests() -> None:
    for rule in registered():
        there, absent = named_tests(rule.id)
        rows = [severity for id, severity, *_ in test_cases.CASES if id == rule.id]
        assert there != CASES or any(rows), rule.id
        assert absent != CASES or None in rows, rule.id
    assert COVERED.keys() <= {rule.id for rule in registered()}


@pytest.mark.parametrize("name", COVERED)
def test_the_tests_are_there_and_say_what_must_not_be(name: str) -> None:
    tests = {test: bodies()[test] for test in named_tests(name) if test != CASES}
    # By its name, or by a table or a short hand of the file that holds all of its kind.
    words = (name, "ADDED", "finding(phase)", "there")
    for body in tests.values():
        assert any(word in body for word in words)
    _, absent = named_tests(name)
    if absent != CASES:
        assert re.search(r"is None|\bnot\b|is not None\) ==|\(code, None\)", tests[absent])


PAIRS = ["tiny-static-m", "tiny-static-nk", "tiny-static-k-mask"]
# What is true of a golden pair and critical: a mask that removes nothing, and no gain for it.
TRUE = {"tiny-static-k-mask": {"zeros-in-dense", "no-speedup"}}


@pytest.mark.parametrize("name", PAIRS)
def test_the_golden_runs_raise_no_false_alarm(name: str) -> None:
    report = analyze(ROOT / "traces" / name).report
    for phase in report.phases.values():
        critical = {f.id for f in phase.findings if f.severity == "critical"}
        assert critical <= TRUE.get(name, set())
        if name in TRUE:
            assert "zeros-in-dense" in critical


def names_of_real_traces() -> list[str]:
    folder = ROOT.parent / "shared" / "data" / "traces"
    return sorted(path.name for path in folder.glob("*.json.gz")) or ["none.json.gz"]


@pytest.mark.parametrize("name", names_of_real_traces())
def test_no_real_trace_is_accused_of_more_than_idling(
    name: str, real_report: Callable[[str], Report]
) -> None:
    for phase in real_report(name).phases.values():
        critical = [f for f in phase.findings if f.severity == "critical"]
        assert {f.id for f in critical} <= {"launch-bound"}
        if critical:
            assert phase.bound["launch"] > 0.4 * phase.wall_ns


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "sparsity", "true"),
    [("static-m", 0.5, set()), ("static-nk", 0.5, set()), ("static-k-mask", 0.5, {"zeros-in-dense",
                                                                                 "no-speedup"})],
)  # fmt: skip
def test_a_fresh_capture_raises_no_false_alarm(
    method: str, sparsity: float, true: set[str], tmp_path: Path
) -> None:
    """But for noise of the machine, which a finding says and nothing else."""
    import prunescope

    folder = prunescope.trace(model="tiny-llama", method=method, sparsity=sparsity, prompt_len=128,
                              decode_steps=4, repeats=7, steps=3, warmup=1, threads=1,
                              out=tmp_path / "run")  # fmt: skip
    for phase in analyze(folder).report.phases.values():
        critical = {f.id for f in phase.findings if f.severity == "critical"}
        noisy = {"timing-not-valid"} if "timing-not-valid" in critical else set()
        noisy |= {"no-speedup"} if noisy else set()
        assert critical <= true | noisy
