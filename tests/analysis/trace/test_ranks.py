"""Traces of several ranks: found, named, paired, and the slow one told by who waits for whom."""

from __future__ import annotations

import gzip
import json
import re
import sqlite3
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from msgspec.structs import replace

from prunescope.analysis.findings.collective_replay import CollectiveReplay, replay
from prunescope.analysis.findings.registry import FINDINGS
from prunescope.analysis.findings.stragglers import Late, RankTime, rank_does_more, straggler
from prunescope.analysis.inputs import open as opened
from prunescope.analysis.inputs import side
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Phase
from prunescope.analysis.trace.load import load
from prunescope.analysis.trace.rank_files import FoundTraces, find_traces
from prunescope.analysis.trace.trace_columns import Trace
from prunescope.deliver import report_folder
from prunescope.taxonomy.errors import PrunescopeError
from tests.analysis.timeline.test_first_calls import MS, Host
from tests.chrome import chrome, gap, k, module, op, save, step

Real = Callable[[str], Path]
REDUCE = "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)"


def rank_trace(work_us: float, wait_us: float, *, rank: int | None = None) -> dict[str, Any]:
    """A GEMM, then an all-reduce on another stream; two steps."""
    items = [
        step(i, op("aten::mm", [512, 64], [64, 64], kernels=[k(us=work_us, name="gemm")]),
             op("nccl:all_reduce", [64], kernels=[k(us=wait_us, name=REDUCE, stream=20)]))
        for i in range(3)
    ]  # fmt: skip
    trace = chrome(*items)
    if rank is not None:
        trace["distributedInfo"] = {"backend": "nccl", "rank": rank, "world_size": 4}
        events = trace.pop("traceEvents")
        trace["traceEvents"] = events  # the metadata stands in front, as kineto writes it
    return trace


def four(folder: Path, *, slow: int = 2, work: float = 10.0) -> Path:
    """Ranks 0 to 3 of 10 us, one of 16 us; the others wait 6 us more in the all-reduce."""
    folder.mkdir(parents=True, exist_ok=True)
    for rank in range(4):
        own = work + 6 if rank == slow else work
        waits = 2.0 if rank == slow else 8.0
        save(rank_trace(own, waits), folder / f"rank{rank}.json.gz")
    return folder


def test_a_folder_of_ranks_is_a_phase_each_and_the_straggler_is_named(tmp_path: Path) -> None:
    report = analyze(four(tmp_path / "r")).report
    assert list(report.phases) == ["rank0", "rank1", "rank2", "rank3"]
    assert report.subject["ranks"] == list(report.phases)
    assert report.phases["rank0"].kinds["comm"] == 8_000
    findings = {n: f for n, p in report.phases.items() for f in p.findings if f.id == "straggler"}
    assert list(findings) == ["rank2"]
    assert findings["rank2"].text == (
        "rank2 holds the other ranks up: it is the last to reach 3 of 3 collectives, and if no "
        "rank waited for it, a step would take 6.0 µs less (33 %)"
    )
    assert findings["rank2"].predicted_ns == 6_000
    # Own work of 10, 10, 16 and 10 us; the GEMM takes 6 us more, the reduction as much less.
    assert findings["rank2"].evidence[:2] == [
        "before these it works 6.0 µs longer and idles 0.0 µs longer than the median of the "
        "others; no other rank holds them up as much",
        "wall +0.0 µs against rank1, the median of the others: comm −6.0 µs, gemm +6.0 µs, "
        "idle +0.0 µs",
    ]
    assert (
        "rank2: wall 18.0 µs, work 16.0 µs, idle 0.0 µs, communication 2.0 µs, last at 3 "
        "collectives"
    ) in findings["rank2"].evidence
    # The products are as large as those of the other ranks.
    assert str(findings["rank2"].change).startswith("rank2: check its clocks")
    assert any(REDUCE[:40] in line for line in findings["rank2"].evidence)
    waits = "First fix what the others wait for, rank2: check its clocks"
    assert [waits in phase.summary for phase in report.phases.values()] == [True, True, False, True]


def test_each_rank_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    def counted(path: Path, member: str | None = None) -> Trace:
        read.append(path.name)
        return load(path, member)

    for reader in (opened, side):
        monkeypatch.setattr(reader, "load", counted)
    analyze(four(tmp_path / "r"))
    assert read == [f"rank{rank}.json.gz" for rank in range(4)]


def test_equal_ranks_have_no_straggler(tmp_path: Path) -> None:
    folder = four(tmp_path / "r", slow=9)
    phases = analyze(folder).report.phases.values()
    late = ("straggler", "rank-does-more")
    assert not any(f.id in late for p in phases for f in p.findings)


def test_a_rank_that_does_more_is_named_where_times_do_not_show_it() -> None:
    """Steps that vary more than the ranks differ, and 1.5 x the FLOPs."""
    noisy = (7e6, 36e6, 32e6, 32e6, 8e6), (11e6, 13e6, 24e6, 15e6, 11e6)
    ranks = [
        RankTime(name, 32e6, 9e6, None, flop=flop, on_device=False, own_by_step=own)
        for name, flop, own in zip(("rank0", "rank1"), (1e9, 1.5e9), noisy, strict=True)
    ]
    assert straggler(Late(ranks[0], ranks)) is None
    assert rank_does_more(Late(ranks[0], ranks)) is None
    finding = rank_does_more(Late(ranks[1], ranks))
    assert finding is not None
    assert finding.text.startswith("rank1 does 1.50 × the FLOPs of the other ranks a step")
    assert FINDINGS["rank-does-more"].severity == "warning"


def test_a_rank_that_was_cut_off_before_its_kernels_is_left_out(tmp_path: Path) -> None:
    """Host ops of 10 us stand for its work: they say nothing of a GPU that the others wait for."""
    folder = four(tmp_path / "r")
    host = chrome(
        *(step(i, op("aten::mm", [512, 64], [64, 64], us=10)) for i in range(3)), cpu=True
    )
    cut = json.dumps(host)
    (folder / "rank1.json.gz").write_bytes(gzip.compress(cut[: cut.rindex("}]")].encode()))
    report = analyze(folder).report
    assert [n for n, p in report.phases.items() for f in p.findings if f.id == "straggler"] == [
        "rank2"
    ]
    assert "rank1 has host ops only: it is not compared with the other ranks" in report.warnings
    text = next(f.text for f in report.phases["rank2"].findings if f.id == "straggler")
    assert text.startswith("rank2 holds the other ranks up: it is the last to reach 3 of 3")


def test_communication_behind_other_kernels_is_no_waiting(tmp_path: Path) -> None:
    """An all-reduce of 8 us of which a GEMM hides 5 us: 3 us are waiting, and 7 us own work."""
    folder = tmp_path / "r"
    folder.mkdir()
    for rank, own in enumerate((7, 12)):
        hidden = k(us=own, gap_us=-5, name="gemm")
        items = [
            op("nccl:all_reduce", [64], kernels=[k(us=8, name=REDUCE, stream=20)]),
            op("aten::mm", [64, 64], [64, 64], kernels=[hidden]),
        ]
        save(chrome(step(0, gap(us=1)), step(1, *items)), folder / f"rank_{rank}.json")
    findings = [f for p in analyze(folder).report.phases.values() for f in p.findings]
    lines = next(f.evidence for f in findings if f.id == "straggler")
    for line in (
        "rank0: wall 10.0 µs, work 7.0 µs, idle 0.0 µs, communication 3.0 µs",
        "rank1: wall 15.0 µs, work 12.0 µs, idle 0.0 µs, communication 3.0 µs",
    ):
        assert any(text.startswith(line) for text in lines)


def serving_rank(decode_us: float, wait_us: float) -> dict[str, Any]:
    """Return a prefill of 50 µs and two decodes, each with an all-reduce."""

    def one(us: float, wait: float) -> list[Any]:
        reduce = k(us=wait, name=REDUCE, stream=20)
        return [op("aten::mm", [512, 64], [64, 64], kernels=[k(us=us, name="gemm")]),
                op("nccl:all_reduce", [64], kernels=[reduce])]  # fmt: skip

    return chrome(
        module("execute_context_1(888)_generation_0(0)", *one(50, 2)),
        module("execute_context_0(0)_generation_1(1)", *one(decode_us, wait_us)),
        module("execute_context_0(0)_generation_1(1)", *one(decode_us, wait_us)),
    )


def test_ranks_of_a_serving_engine_have_a_phase_for_each_kind_of_step(tmp_path: Path) -> None:
    """Not a mean over prefill and decode; and the straggler is one of decode alone."""
    for rank, (work, wait) in enumerate([(5, 6), (9, 2)]):
        save(serving_rank(work, wait), tmp_path / f"rank{rank}.json")
    report = analyze(tmp_path).report
    assert list(report.phases) == ["rank0-prefill", "rank0-decode", "rank1-prefill", "rank1-decode"]
    assert [p.steps for p in report.phases.values()] == [1, 2, 1, 2]
    assert [p.kinds["gemm"] for p in report.phases.values()] == [50_000, 5_000, 50_000, 9_000]
    told = {n: p.phase_kind["kind"] for n, p in report.phases.items() if p.phase_kind}
    assert told == {name: name.partition("-")[2] for name in report.phases}
    findings = {n: f for n, p in report.phases.items() for f in p.findings if f.id == "straggler"}
    assert list(findings) == ["rank1-decode"]
    assert findings["rank1-decode"].predicted_ns == 4_000


def test_ranks_with_steps_of_one_phase_stay_ranks(tmp_path: Path) -> None:
    for rank in (0, 1):
        gemm = op("aten::mm", [1, 64], [64, 64], kernels=[k(us=5, name="gemm")])
        decode = module("execute_context_0(0)_generation_1(1)", gemm)
        save(chrome(decode, decode), tmp_path / f"rank{rank}.json")
    assert list(analyze(tmp_path).report.phases) == ["rank0", "rank1"]


def slowest(*ranks: RankTime) -> Late:
    """Return the rank with the most time outside of communication, without a replay."""
    return Late(max(ranks, key=lambda rank: rank.own), list(ranks))


def test_straggler_by_hand() -> None:
    times = [RankTime("a", 100.0, 40.0, "x"), RankTime("b", 100.0, 10.0, "x"),
             RankTime("c", 100.0, 38.0, None)]  # fmt: skip
    finding = straggler(slowest(*times))
    assert finding is not None
    assert finding.text.startswith("b is the slowest of 3 ranks")
    assert finding.predicted_ns == 90 - (60 + 62) / 2
    near = (RankTime("a", 100.0, 40.0, "x"), RankTime("b", 100.0, 39.0, "x"))
    assert straggler(slowest(*near)) is None
    assert straggler(slowest(*(RankTime(name, 0.0, 0.0, None) for name in "ab"))) is None


@pytest.mark.parametrize(
    ("late", "advice"),
    [
        ({"idle": 0.0, "flop": 4.0}, "balance the work"),
        ({"idle": 0.0, "flop": 2.0}, "check its clocks"),
        ({"idle": 40.0, "causes": {"host": 40.0, "sync": 0.0}}, "find out what its host does"),
        ({"idle": 40.0, "causes": {"host": 5.0, "allocator": 35.0}}, "caching allocator"),
        ({"idle": 40.0, "causes": {"first_call": 40.0}}, "warm up"),
        ({"idle": 40.0, "causes": {"host": 40.0}}, "waits for launches that come late"),
        ({"idle": 40.0, "causes": {"device": 40.0, "host": 0.0}}, "were launched in time"),
        ({"idle": 40.0, "causes": {"held": 40.0}}, "what its streams wait for"),
        ({"idle": 40.0, "causes": {"unknown": 40.0}}, "does not say why its device idles"),
        ({"idle": 40.0}, "does not say why its device idles"),
    ],
)
def test_advice_follows_what_makes_a_rank_late(late: dict[str, Any], advice: str) -> None:
    """30 of 100 ns later than two others that work for 60: by more work, or by more idle time."""
    early = [RankTime(name, 100.0, 40.0, "x", causes={"host": 0.0}, flop=2.0) for name in "ab"]
    finding = straggler(slowest(*early, RankTime("c", 100.0, 10.0, "x", **late)))
    assert finding is not None and advice in str(finding.change)


def test_a_rank_is_late_beyond_the_spread_of_its_steps() -> None:
    """b is interrupted for 300 of 400 ns in one of five steps; c takes 75 in each, a 60."""
    steps = {"a": (60.0,) * 5, "b": (60.0, 61.0, 360.0, 59.0, 60.0), "c": (75.0, 74.0, 75.0) * 2}
    ranks = [
        RankTime(name, 120.0, 120.0 - sum(own) / len(own), None, own_by_step=own, on_device=False)
        for name, own in steps.items()
    ]
    late = Late(max(ranks, key=lambda rank: rank.usual_own), ranks)
    finding = straggler(late)
    assert finding is not None and finding.text.startswith("c is the slowest")
    assert "(median of 6 steps)" in finding.text
    noisy = [
        RankTime(name, 120.0, 20.0, None, own_by_step=own)
        for name, own in (("a", (50.0, 90.0, 60.0)), ("b", (95.0, 50.0, 64.0)))
    ]
    assert straggler(Late(noisy[1], noisy)) is None


def test_a_late_rank_is_told_by_what_the_others_wait_for_in_each_step() -> None:
    """b sleeps for 20 ms in each step. a is interrupted for 25 ms in the first, so that its own
    time of five steps reaches that of b, and waits for b all the same: 17 to 25 ms a step."""
    a = {"own": (29.9, 5.6, 3.2, 6.1, 10.7), "comm": (19.0, 23.0, 25.0, 22.0, 26.0)}
    b = {"own": (24.5, 24.5, 29.3, 24.5, 29.3), "comm": (2.0, 1.0, 1.0, 1.0, 1.0)}
    ranks = [
        RankTime(name, 35.0, sum(by["comm"]) / 5, None, own_by_step=by["own"],
                 comm_by_step=by["comm"])
        for name, by in (("a", a), ("b", b))
    ]  # fmt: skip
    finding = straggler(Late(ranks[1], ranks))
    assert finding is not None and finding.text.startswith("b is the slowest of 2 ranks")
    by_turns = replace(ranks[0], comm_by_step=(19.0, 0.0, 25.0, 0.0, 26.0))
    assert straggler(Late(ranks[1], [by_turns, ranks[1]])) is None


def test_a_rank_with_less_work_is_not_to_be_balanced() -> None:
    """On CPUs: 30 ns more for fewer FLOPs than the other rank does."""
    ranks = [RankTime("a", 100.0, 40.0, None, flop=4.0, on_device=False),
             RankTime("b", 100.0, 10.0, None, flop=3.0, on_device=False)]  # fmt: skip
    finding = straggler(slowest(*ranks))
    assert finding is not None and "balance" not in str(finding.change)
    assert "cores of its own" in str(finding.change)


def on_gloo(folder: Path, *, slept: float) -> dict[str, Phase]:
    """Write and analyse two ranks on CPUs.

    Each runs a GEMM of 10 ms, 50 ms in which rank 1 sleeps for `slept` of them, an op of 1 ms that
    starts an all-reduce, which both ranks end at 81 ms, and a GEMM of 10 ms.
    """
    for rank, start in enumerate((60 - slept, 60)):
        host = Host()
        sizes = {"Input Dims": [[64, 64], [64, 64]], "Input type": ["float", "float"]}
        for begin in (0, 81):
            host.span("cpu_op", "aten::mm", begin * MS, 10 * MS, more=sizes)
        host.span("cpu_op", "c10d::allreduce_", start * MS, 1 * MS)
        host.span("python_function", "<built-in function sleep>", 10 * MS, (start - 10) * MS)
        host.span("user_annotation", "gloo:all_reduce", (start + 1) * MS, (80 - start) * MS,
                  thread=2)  # fmt: skip
        save({"traceEvents": host.events}, folder / f"rank{rank}.json")
    return analyze(folder).report.phases


def test_a_rank_that_sleeps_holds_up_ranks_that_idle_in_gloo(tmp_path: Path) -> None:
    """Both take 91 ms. Rank 0 is in the all-reduce for 1 + 70 of them, rank 1 for 1 + 20, and has
    50 ms more of its own."""
    phases = on_gloo(tmp_path, slept=50)
    findings = {n: f for n, p in phases.items() for f in p.findings if f.id == "straggler"}
    assert list(findings) == ["rank1"]
    late = findings["rank1"]
    assert late.predicted_ns == 50e6
    assert "a step takes it 70.000 ms, 50.000 ms more than the median of the others" in late.text
    assert "they wait 50.000 ms for it in communication" in late.text
    assert late.evidence[0] == (
        "it works 0.0 µs longer and idles 50.000 ms longer than the median of the others"
    )
    assert "idle +50.000 ms, idle in collectives of host threads −50.000 ms" in late.evidence[1]
    assert str(late.change).startswith(
        "rank1: find out what its host does in that time (its finding long-gap says)"
    )
    assert "device" not in str(late.change)
    [waits] = [f for f in phases["rank0"].findings if f.id == "host-collectives"]
    assert waits.text.endswith(
        "for 50.000 ms of that it waits for rank1, which reaches the collectives late"
    )
    assert str(waits.change).startswith("find out why rank1 is late")


def test_equal_ranks_on_gloo_have_no_straggler(tmp_path: Path) -> None:
    """Both sleep for as long: nobody waits for the other, and the collective takes 20 ms."""
    phases = on_gloo(tmp_path, slept=0)
    assert not any(f.id == "straggler" for p in phases.values() for f in p.findings)
    first, second = ({f.id for f in phase.findings} for phase in phases.values())
    assert first == second


# Time (ns) of three ranks before each of three collectives; each takes 2 from the last arrival on.
OWN = {"a": (10, 10, 10), "b": (10, 30, 10), "c": (25, 10, 10)}
NS = 1_000_000


def of_ranks(own: dict[str, tuple[int, ...]], *, apart: int = 0) -> dict[str, pl.DataFrame]:
    """Return frames of ranks that work for the times and meet in collectives.

    The clock of each rank is `apart` ns ahead of the one before.
    """
    rows: dict[str, list[tuple[int, int, str]]] = {name: [] for name in own}
    at = dict.fromkeys(own, 0)
    for i in range(len(next(iter(own.values())))):
        begin = at
        at = {name: at[name] + times[i] * NS for name, times in own.items()}
        done = max(at.values()) + 2 * NS
        for name in own:
            rows[name] += [(begin[name], at[name] - begin[name], "gemm")]
            rows[name] += [(at[name], done - at[name], "comm")]
        at = dict.fromkeys(own, done)
    return {
        name: pl.DataFrame(
            {
                "start": [start + rank * apart for start, _, _ in of_rank],
                "launched": [start + rank * apart for start, _, _ in of_rank],
                "duration": [ns for _, ns, _ in of_rank],
                "kind": [kind for _, _, kind in of_rank],
                "name": [kind for _, _, kind in of_rank],
                "gap": [0] * len(of_rank),
            }
        )
        for rank, (name, of_rank) in enumerate(rows.items())
    }


@pytest.mark.parametrize("apart", [0, 7_000_000_000])
def test_collectives_replayed_by_hand(apart: int) -> None:
    """c comes last at 25, b at 57, all at 69: the end is 71. Without b it is 51, without c 56,
    without both 36. Clocks that are apart change nothing."""
    replayed = replay(of_ranks(OWN, apart=apart), least=NS)
    assert replayed is not None
    assert replayed.collectives == 3
    assert {name: replayed.last[name] for name in "bc"} == {"b": 1, "c": 1}
    assert replayed.saved == {"a": 0, "b": 20 * NS, "c": 15 * NS}
    assert replayed.late == ["b", "c"]
    assert replayed.together == 35 * NS
    assert (replayed.works["b"], replayed.works["c"]) == (20 * NS, 15 * NS)
    assert replayed.idles == {"a": 0, "b": 0, "c": 0}


def test_ranks_wait_for_those_of_their_group_alone() -> None:
    """a, b and c reduce among themselves, and so do d and e, of which e is 40 late at each."""
    first = of_ranks(OWN)
    second = of_ranks({"d": (10, 10, 10), "e": (50, 50, 50)})
    replayed = replay({**first, **second}, least=NS)
    assert replayed is not None
    # All end at 3 · 52 = 156; without e, d ends at 36, and a, b and c at 71: 85 sooner.
    assert replayed.saved["e"] == 85 * NS
    assert replayed.late == ["e"]
    assert (replayed.last["d"], replayed.last["e"]) == (0, 3)
    assert sum(replayed.last[name] for name in "abc") == 3
    assert (replayed.works["e"], replayed.idles["e"]) == (120 * NS, 0)


def test_other_collectives_are_not_replayed() -> None:
    frames = of_ranks(OWN)
    assert replay({**frames, "b": frames["b"].head(4)}, least=NS) is None  # two of three
    # Ends that lie apart are those of sends, of pipeline stages, of another group of ranks.
    alone = of_ranks({"b": (10, 50, 10)})["b"]
    assert replay({**frames, "b": alone}, least=NS) is None
    none = frames["a"].filter(pl.col("kind") != "comm")
    assert replay({"a": none, "b": none}, least=NS) is None


def test_a_collective_that_other_work_hides_delays_nobody() -> None:
    """Rank b reaches the collective 20 ms after a, which works for 30 ms meanwhile and afterwards:
    a waits for nothing, and ends no sooner without b; it ends last."""
    columns = ("start", "duration", "kind", "name")
    a = [(0, 40, "gemm", "g"), (10, 22, "comm", "c")]
    b = [(0, 30, "gemm", "g"), (30, 2, "comm", "c")]
    frames = {}
    for name, rows in (("a", a), ("b", b)):
        table = pl.DataFrame(rows, schema=columns, orient="row").with_columns(
            pl.col("start", "duration") * NS, gap=0
        )
        frames[name] = table.with_columns(launched="start")
    replayed = replay(frames, least=NS)
    assert replayed is not None
    assert replayed.last == {"a": 0, "b": 1}
    assert (replayed.saved["b"], replayed.late) == (0, ["a"])


def test_real_ranks_that_are_late_in_turns(real_trace: Real, tmp_path: Path) -> None:
    """Two of eight ranks of one model: equal work (131.5 and 133.7 ms), 222.5 and 208.7 ms idle;
    their hosts stand still in turns: one finding names both, and the share of each."""
    for rank in (0, 6):
        name = f"../strangers2/megatron_a100_tp8_rank{rank}.json.gz"
        (tmp_path / f"rank{rank}.json.gz").write_bytes(real_trace(name).read_bytes())
    phases = analyze(tmp_path).report.phases
    findings = {n: f for n, p in phases.items() for f in p.findings if f.id == "straggler"}
    ((name, finding),) = findings.items()
    both = re.fullmatch(
        r"(rank\d) and (rank\d) hold each other up in turns, as the last to reach (\d+) \(\d+ %\) "
        r"and (\d+) \(\d+ %\) of 84 collectives: if no rank waited for (rank\d), a step would take "
        r"[\d.]+ ms \(\d+ %\) less, for rank\d [\d.]+ ms \(\d+ %\)",
        finding.text,
    )
    assert both is not None and both[1] == both[5] == name
    assert {both[1], both[2]} == {"rank0", "rank6"}
    assert int(both[3]) + int(both[4]) == 84
    assert "find out what their hosts do" in str(finding.change)
    assert 150e6 < (finding.predicted_ns or 0) < 180e6


def test_two_late_ranks_are_one_finding_with_the_share_of_each() -> None:
    """Of three collectives b is last at one, and c at another."""
    replayed = replay(of_ranks(OWN), least=NS)
    ranks = [RankTime(name, 71.0 * NS, 0.0, None, own_by_step=(sum(own) * NS,))
             for name, own in OWN.items()]  # fmt: skip
    told = straggler(Late(ranks[1], ranks, replayed, turns=(ranks[2],)))
    assert told is not None
    assert told.text == (
        "b and c hold the other ranks up in turns, as the last to reach 1 (33 %) and 1 (33 %) of 3 "
        "collectives: if no rank waited for b, a step would take 20.000 ms (28 %) less, for c "
        "15.000 ms (21 %), for either 35.000 ms (49 %)"
    )
    assert told.predicted_ns == 35 * NS
    assert str(told.change).startswith("b and c: ")
    assert told.evidence[1].startswith("c: before these it works 15.000 ms longer")


@pytest.mark.parametrize(
    ("files", "phases"),
    [
        (("rank10.json", "rank9.json.gz"), ["rank9", "rank10"]),
        (("a-TP-1.trace.json.gz", "a-TP-0.trace.json.gz"), ["rank0", "rank1"]),
        (("host_12.17.pt.trace.json.gz", "host_13.99.pt.trace.json"), ["host_12.17", "host_13.99"]),
        (("x/rank0.json", "rank0.json"), ["trace"]),  # a folder inside is another run
        (("a b&c.json", "a b*c.json"), ["a_b_c", "a_b_c-1"]),
        (("rank3.json",), ["trace"]),
    ],
)  # fmt: skip
def test_names_of_ranks(files: tuple[str, ...], phases: list[str], tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save(rank_trace(5, 5), tmp_path / name)
    assert list(analyze(tmp_path).report.phases) == phases


def test_the_rank_in_the_trace_counts_where_the_name_says_none(tmp_path: Path) -> None:
    for name, rank in (("a.json", 3), ("b.json.gz", 1)):
        save(rank_trace(5 + rank, 5, rank=rank), tmp_path / name)
    phases = analyze(tmp_path).report.phases
    assert list(phases) == ["rank1", "rank3"]
    assert phases["rank3"].kinds["gemm"] == 8_000


def test_a_zip_of_ranks_is_read_like_a_folder(tmp_path: Path) -> None:
    folder = four(tmp_path / "r")
    archive = tmp_path / "ranks.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in folder.iterdir():
            file.write(path, f"traces/{path.name}")
        file.writestr("README.txt", "notes")
    zipped, plain = analyze(archive).report, analyze(folder).report
    assert list(zipped.phases) == list(plain.phases)
    assert {n: p.wall_ns for n, p in zipped.phases.items()} == {
        n: p.wall_ns for n, p in plain.phases.items()
    }


def test_ranks_are_paired_with_a_baseline_by_number(tmp_path: Path) -> None:
    dense, pruned = four(tmp_path / "d", work=20), four(tmp_path / "p")
    (dense / "rank1.json.gz").unlink()
    report = analyze(pruned, baseline=dense).report
    assert list(report.phases) == ["rank0", "rank2", "rank3"]
    assert "rank1: on one side only, left out" in report.warnings
    ladder = report.phases["rank2"].ladder
    assert ladder is not None
    assert ladder.realised == pytest.approx((26 + 2) / (16 + 2))
    with pytest.raises(PrunescopeError, match="share no phase") as error:
        analyze(pruned, baseline=dense / "rank0.json.gz")
    assert "all ranks on both sides" in error.value.hint
    assert "phase=" in error.value.hint


def test_what_is_no_trace_is_left_out_and_named(tmp_path: Path) -> None:
    folder = four(tmp_path / "r")
    (folder / "notes.json").write_text(json.dumps({"a": 1}))
    (folder / "broken.json.gz").write_bytes(b"\x1f\x8b\x08")
    report = analyze(folder).report
    assert len(report.phases) == 4
    assert "notes.json is not a trace that can be read: left out" in report.warnings
    assert "broken.json.gz is not a trace that can be read: left out" in report.warnings


def test_a_packed_database_is_no_chrome_trace(tmp_path: Path) -> None:
    sql = sqlite3.connect(tmp_path / "a.sqlite")
    sql.execute("CREATE TABLE t (x)")
    sql.close()
    packed = tmp_path / "a.sqlite.gz"
    packed.write_bytes(gzip.compress((tmp_path / "a.sqlite").read_bytes()))
    with pytest.raises(PrunescopeError) as error:
        analyze(packed)
    assert "holds an SQLite database that is compressed" in error.value.problem
    assert error.value.hint == "unpack it, and give the .sqlite file"
    text = tmp_path / "text.sqlite"
    text.write_text("not found")
    with pytest.raises(PrunescopeError, match="it is not an SQLite database") as error:
        analyze(text)
    assert "nsys export --type sqlite" in error.value.hint


def test_a_folder_of_reports_names_the_command_that_exports_them(tmp_path: Path) -> None:
    for name in ("b.nsys-rep", "a.nsys-rep"):
        (tmp_path / name).write_bytes(b"NSYS")
    with pytest.raises(PrunescopeError) as error:
        analyze(tmp_path)
    assert "reports of Nsight Systems (.nsys-rep)" in error.value.problem
    assert error.value.hint == "export each of them: `nsys export --type sqlite a.nsys-rep`"
    save(chrome(op("aten::mm", [4, 5], [5, 6], kernels=[k(us=7)])), tmp_path / "a.json")
    warnings = analyze(tmp_path).report.warnings
    assert [text for text in warnings if "nsys" in text] == [
        "a.nsys-rep is left out: export it with `nsys export --type sqlite a.nsys-rep`",
        "b.nsys-rep is left out: export it with `nsys export --type sqlite b.nsys-rep`",
    ]


def test_a_cut_rank_is_said_once_and_makes_the_report_partial(tmp_path: Path) -> None:
    folder = four(tmp_path / "r")
    path = folder / "rank0.json.gz"
    path.write_bytes(path.read_bytes()[:-200])
    report = analyze(folder).report
    assert report.partial
    assert [w for w in report.warnings if "cut off" in w] == [
        "rank0.json.gz is cut off: analysed up to the cut"
    ]


def test_nothing_is_written_into_a_folder_of_traces(tmp_path: Path) -> None:
    assert report_folder(four(tmp_path / "r")) is None


@pytest.mark.parametrize("count", [0, 1200])
def test_none_or_too_many(count: int, tmp_path: Path) -> None:
    for i in range(count):
        (tmp_path / f"rank{i}.json").write_text("[]")
    if not count:
        assert find_traces(tmp_path) == FoundTraces()
    with pytest.raises(PrunescopeError, match="holds no run" if not count else "more than 1024"):
        analyze(tmp_path)


def test_two_ranks_made_of_a_real_trace(real_trace: Callable[[str], Path], tmp_path: Path) -> None:
    """The same step on both ranks: equal ledgers, no straggler."""
    path = real_trace("b200_eager.json.gz")
    for rank in (0, 1):
        (tmp_path / f"rank{rank}.json.gz").symlink_to(path)
    report = analyze(tmp_path).report
    first, second = report.phases.values()
    assert first.kinds == second.kinds
    assert first.kinds["comm"] > 0
    assert not any(f.id == "straggler" for f in first.findings + second.findings)


def test_a_rank_that_is_missing_is_named(tmp_path: Path) -> None:
    """By `world_size`, in front of the events or behind them; else by a hole in the names."""
    for rank in (0, 1, 3):
        save(rank_trace(5, 5, rank=rank), tmp_path / f"rank{rank}.json")
    said = f"{tmp_path.name} lacks rank 2 of 4: statements on ranks are about the others"
    assert analyze(tmp_path).report.warnings == [said]
    for path in tmp_path.iterdir():
        trace = json.loads(path.read_text())
        save({"traceEvents": trace.pop("traceEvents"), **trace}, path)
    assert analyze(tmp_path).report.warnings == [said]
    for rank in (0, 1, 3):
        save(rank_trace(5, 5), tmp_path / f"rank{rank}.json")
    assert analyze(tmp_path).report.warnings == [said.replace(" of 4", "")]
    save(rank_trace(5, 5), tmp_path / "rank2.json")
    assert analyze(tmp_path).report.warnings == []


def test_a_rank_that_is_there_twice_is_named_and_not_compared(tmp_path: Path) -> None:
    for name, own, rank in (("a", 5, 0), ("b", 50, 0), ("c", 5, 1)):
        trace = rank_trace(own, 5, rank=rank)
        trace["distributedInfo"]["world_size"] = 2
        save(trace, tmp_path / f"{name}.json")
    report = analyze(tmp_path).report
    assert list(report.phases) == ["a", "b", "c"]
    assert report.warnings == [
        f"{tmp_path.name} holds several traces of rank 0: ranks are not compared"
    ]
    assert not any(f.id == "straggler" for p in report.phases.values() for f in p.findings)


@pytest.mark.parametrize("broken", [0, 2, 3])
def test_a_broken_rank_is_left_out_and_the_others_are_analysed(broken: int, tmp_path: Path) -> None:
    folder = four(tmp_path / "r", slow=9)
    (folder / f"rank{broken}.json.gz").write_bytes(b'{"traceEvents": [')
    done = analyze(folder)
    report = done.report
    assert report.partial
    kept = [f"rank{i}" for i in range(4) if i != broken]
    assert list(report.phases) == list(done.frames) == report.subject["ranks"] == kept
    assert report.warnings[0] == (
        f"rank{broken} is left out: rank{broken}.json.gz: the file is cut off before any kernel"
    )
    for path in folder.iterdir():
        path.write_bytes(b'{"traceEvents": [')
    with pytest.raises(PrunescopeError, match="cut off before any kernel"):
        analyze(folder)


def test_a_broken_rank_of_a_serving_engine_is_left_out(tmp_path: Path) -> None:
    for rank in range(3):
        save(serving_rank(5, 5), tmp_path / f"rank{rank}.json")
    (tmp_path / "rank1.json").write_bytes(b'{"traceEvents": [')
    report = analyze(tmp_path).report
    assert list(report.phases) == ["rank0-prefill", "rank0-decode", "rank2-prefill", "rank2-decode"]
    assert report.partial


def test_a_broken_rank_of_the_baseline_is_left_out(tmp_path: Path) -> None:
    dense, pruned = four(tmp_path / "d", work=20), four(tmp_path / "p")
    (dense / "rank1.json.gz").write_bytes(b'{"traceEvents": [')
    report = analyze(pruned, baseline=dense).report
    assert list(report.phases) == ["rank0", "rank2", "rank3"]
    assert "baseline: rank1 is left out: rank1.json.gz: the file is cut off before any kernel" in (
        report.warnings
    )


def test_a_file_with_the_name_of_a_rank_that_is_no_trace_makes_it_partial(tmp_path: Path) -> None:
    folder = four(tmp_path / "r")
    assert not analyze(folder).report.partial
    (folder / "rank3.json.gz").write_bytes(b"\x00\x01")
    report = analyze(folder).report
    assert report.partial
    assert report.warnings == ["rank3.json.gz is not a trace that can be read: left out"]


def test_ranks_of_different_programs_are_not_compared(tmp_path: Path) -> None:
    """Of 10 and 11 kernels a step, 1 is the same: no straggler, and a word on it."""
    mm = [op("aten::mm", [64, 64], [64, 64], kernels=[k(us=5, name=f"g{i}")]) for i in range(20)]
    save(chrome(step(0, *mm[:10])), tmp_path / "a.json")
    save(chrome(step(0, *mm[9:])), tmp_path / "b.json")
    report = analyze(tmp_path).report
    assert report.warnings == [
        "a and b do not run the same program (10 and 11 kernels a step, 5 % of them the same): "
        "ranks are not compared"
    ]
    assert not any(f.id == "straggler" for p in report.phases.values() for f in p.findings)


def test_what_several_ranks_are_to_change_is_in_the_plural() -> None:
    """Two of four idle 20 ns longer than the others."""
    ranks = [RankTime(n, 100.0, 10.0, None, idle=idle, causes={"host": idle}, on_device=False)
             for n, idle in zip("abcd", (30.0, 30.0, 10.0, 10.0), strict=True)]  # fmt: skip
    replayed = CollectiveReplay(
        late=["a", "b"], last=dict(zip("abcd", (1, 1, 0, 0), strict=True)), collectives=2,
        saved={"a": 9, "b": 9},
        works=dict.fromkeys("ab", 0.0), idles=dict.fromkeys("ab", 20.0), together=18,
    )  # fmt: skip
    finding = straggler(Late(ranks[0], ranks, replayed, turns=(ranks[1],)))
    assert finding is not None
    assert str(finding.change) == (
        "a and b: find out what their hosts do in that time, and give their processes cores of "
        "their own"
    )
