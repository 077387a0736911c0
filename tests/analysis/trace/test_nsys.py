"""Exports of Nsight Systems: devices, steps, ops and modules of made-up databases, by hand."""

from __future__ import annotations

import gzip
import json
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.inputs.options import Options
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.report.formats import FORMATS, PhaseFrames, RequestedFormats
from prunescope.analysis.schema.pair_comparison import SHAPES, OneSided
from prunescope.analysis.schema.report import to_json
from prunescope.analysis.trace.load import load
from prunescope.analysis.trace.nsys_work import plain_kernel
from prunescope.analysis.trace.nvtx import read_range
from prunescope.analysis.trace.rank_files import find_traces
from prunescope.analysis.wording.comparison import one_sided_text
from prunescope.taxonomy.errors import PrunescopeError
from tests.chrome import chrome, k, op, save, step
from tests.nsys import PUSH_POP, START_END, Export, write

KERNEL, COPY, RUNTIME = (f"CUPTI_ACTIVITY_KIND_{kind}" for kind in ("KERNEL", "MEMCPY", "RUNTIME"))
GRAPH = "CUPTI_ACTIVITY_KIND_GRAPH_TRACE"
SGEMM = "ampere_sgemm_128x64_tn"
Fill = Callable[[Export], None]


def process(pid: int) -> int:
    return ((1 << 24) | pid) << 24


def made(path: Path, fill: Fill) -> Path:
    file = Export(path)
    fill(file)
    file.close()
    return path


def kernel(
    file: Export, start: int, end: int, *, corr: int | None, device: int = 0, pid: int = 7,
    name: str = "gemm", **more: Any,
) -> None:  # fmt: skip
    size = {f"{extent}{axis}": 1 for extent in ("grid", "block") for axis in "XYZ"}
    row = {"start": start, "end": end, "deviceId": device, "contextId": 1, "streamId": 7,
           "correlationId": corr, "globalPid": process(pid)}  # fmt: skip
    file.add(KERNEL, [{**size, **row, "demangledName": file.string(name), **more}])


def launch(
    file: Export,
    start: int,
    end: int,
    *,
    corr: int,
    pid: int = 7,
    name: str = "cudaLaunchKernel",
) -> None:
    row = {"start": start, "end": end, "globalTid": process(pid) | 1, "correlationId": corr}
    file.add(RUNTIME, [{**row, "nameId": file.string(name)}])


def nvtx(
    file: Export, start: int, end: int | None, text: str, *, pid: int = 7, **more: Any
) -> None:
    row = {"start": start, "end": end, "text": text, "globalTid": process(pid) | 1}
    file.add("NVTX_EVENTS", [{"eventType": PUSH_POP, **row, **more}])


def two_devices(file: Export) -> None:
    """Add two processes whose launches have equal ids.

    The first kernel of device 0 was launched before the file begins: 100 to 300 ns are of the step
    before.
    """
    kernel(file, 100, 300, corr=1)
    for pid, device, late in ((7, 0, 0), (8, 1, 1000)):
        launch(file, 200, 210, corr=2, pid=pid)
        launch(file, 220, 230, corr=3, pid=pid)
        kernel(file, 400, 600, corr=2, device=device, pid=pid)
        kernel(file, 700 + late, 1000 + late, corr=3, device=device, pid=pid)


def test_a_device_is_a_rank(tmp_path: Path) -> None:
    report = analyze(made(tmp_path / "two.sqlite", two_devices)).report
    assert list(report.phases) == ["rank0", "rank1"]
    # Device 0: 400 to 1000 ns, idle from 600 to 700. Device 1: 400 to 2000, idle 600 to 1700.
    walls = [(p.wall_ns, p.busy_ns, p.gap_ns) for p in report.phases.values()]
    assert walls == [(600, 500, 100), (1600, 500, 1100)]
    assert [p.carry_over["events"] for p in report.phases.values()] == [1, 0]
    assert report.subject["ranks"] == ["rank0", "rank1"]
    assert not report.partial


def test_one_device_of_a_file_is_the_trace(tmp_path: Path) -> None:
    def one(file: Export) -> None:
        launch(file, 200, 210, corr=2)
        kernel(file, 400, 600, corr=2)

    report = analyze(made(tmp_path / "one.sqlite", one)).report
    assert list(report.phases) == ["trace"]
    assert report.subject["name"] == "one.sqlite"


def test_the_gpu_of_a_device_is_known_by_its_number(tmp_path: Path) -> None:
    """In an export without the table that maps numbers of processes to GPUs."""

    def fill(file: Export) -> None:
        gpus = [{"id": 0, "name": "NVIDIA T400 4GB"}, {"id": 1, "name": "NVIDIA GeForce RTX 4090"}]
        file.add("TARGET_INFO_GPU", gpus)
        launch(file, 200, 210, corr=2)
        kernel(file, 400, 600, corr=2, device=1)

    report = analyze(made(tmp_path / "one.sqlite", fill)).report
    assert report.device["name"] == "rtx-4090"


def test_a_rank_has_no_peaks_of_another_device(tmp_path: Path) -> None:
    def fill(file: Export) -> None:
        two_devices(file)
        gpus = [
            {"id": 0, "name": "NVIDIA H100 80GB HBM3"},
            {"id": 1, "name": "NVIDIA A100-SXM4-80GB"},
        ]
        file.add("TARGET_INFO_GPU", gpus)

    report = analyze(made(tmp_path / "two.sqlite", fill)).report
    assert [text for text in report.warnings if "the peaks are those" in text] == [
        "rank1 ran on NVIDIA A100-SXM4-80GB, and the peaks are those of h100-sxm: its bounds are "
        "null; --device takes the peaks of one device for all ranks"
    ]


def test_processes_that_see_one_gpu_each_call_it_0(tmp_path: Path) -> None:
    """The table that maps a process's device to a GPU tells two GPUs apart; without it, one GPU is
    shared by two processes, whose launches have equal ids."""

    def fill(file: Export, *, mapped: bool) -> None:
        for pid, gpu in ((7, 1), (8, 0)):
            launch(file, 200, 210, corr=2, pid=pid)
            kernel(file, 400 * (gpu + 1), 400 * (gpu + 1) + 100, corr=2, pid=pid)
            if mapped:
                row = {"gpuId": gpu, "cudaId": 0, "pid": pid, "uuid": "GPU-secret"}
                file.add("TARGET_INFO_CUDA_DEVICE", [row])
        file.add("TARGET_INFO_GPU", [{"id": i, "name": f"GPU {i}"} for i in range(2)])

    apart = analyze(made(tmp_path / "apart.sqlite", lambda file: fill(file, mapped=True))).report
    assert [phase.busy_ns for phase in apart.phases.values()] == [100, 100]
    together = load(made(tmp_path / "together.sqlite", lambda file: fill(file, mapped=False)))
    assert len(together.device["ts"]) == 2
    assert sorted(together.launches["correlation"].tolist()) == [2, (1 << 33) + 2]
    assert len(set(together.device["stream"].tolist())) == 2


def test_launches_on_another_device_of_the_process_are_left_out(tmp_path: Path) -> None:
    def fill(file: Export) -> None:
        for corr, device in ((2, 0), (3, 1), (4, 0)):
            launch(file, 100 * corr, 100 * corr + 10, corr=corr)
            kernel(file, 1000 * corr, 1000 * corr + 100, corr=corr, device=device)

    report = analyze(made(tmp_path / "shared.sqlite", fill)).report
    assert [phase.kernels_per_step for phase in report.phases.values()] == [[2], [1]]
    assert not report.partial, "no launch lacks its kernel"


def test_ranges_are_steps_ops_and_layers(tmp_path: Path) -> None:
    sizes = "[[16, 8], [8, 4]]"

    def fill(file: Export) -> None:
        for number in range(2):
            at = 10_000 * number
            nvtx(file, at, at + 5000, f"step_{number}")
            nvtx(file, at + 10, at + 4000, "Layer 3")
            nvtx(file, at + 20, at + 3000, f"aten::mm, op_id = {9 + number}, sizes = {sizes}")
            launch(file, at + 30, at + 40, corr=2 + number)
            kernel(
                file,
                at + 1000,
                at + 2000,
                corr=2 + number,
                name="nvjet_hsh_64x64_64x4_1x1_h_bz_NNT",
            )

    done = analyze(made(tmp_path / "ranges.sqlite", fill))
    phase = done.report.phases["trace"]
    assert phase.steps == 2
    # Step 0: 1000 ns. Step 1: from the end of step 0 at 2000 to 12000.
    assert phase.wall_ns == (1000 + 10_000) / 2
    gemm = phase.gemms[0]
    assert (gemm.op, gemm.m, gemm.n, gemm.k, gemm.shapes) == ("aten::mm", 16, 4, 8, "recorded")
    assert done.frames["trace"]["layer"].to_list() == [3, 3]
    assert phase.kernels[0].op == "aten::mm"
    assert any(text.startswith("number formats of 1 distinct op calls") for text in phase.notes)


def test_hooks_of_serving_engines_name_modules_and_shapes(tmp_path: Path) -> None:
    """{'Module': …} is what the layer hooks of vLLM, SGLang and TensorRT-LLM write."""
    path = "model.layers.5.mlp.down_proj"
    text = (f"{{'Module': '{path}', 'TrainableParams': {{'weight': [24, 32]}}, "
            "'Inputs': [[7, 32]], 'Outputs': [[7, 24]]}")  # fmt: skip

    def fill(file: Export) -> None:
        nvtx(file, 0, 500, text)
        launch(file, 30, 40, corr=2)
        kernel(file, 100, 200, corr=2, name="nvjet_hsh_64x64_64x4_1x1_h_bz_NNT")

    done = analyze(made(tmp_path / "hooks.sqlite", fill))
    gemm = done.report.phases["trace"].gemms[0]
    assert (gemm.role, gemm.m, gemm.n, gemm.k) == ("down", 7, 24, 32)
    assert done.frames["trace"]["layer"].to_list() == [5]


def test_registered_strings_and_ranges_between_threads_are_annotations(tmp_path: Path) -> None:
    def fill(file: Export) -> None:
        launch(file, 30, 40, corr=2)
        kernel(file, 100, 200, corr=2)
        nvtx(file, 0, 10, None, textId=file.string("ncclAllReduce"))  # type: ignore[arg-type]
        nvtx(file, 0, 50, "aten::mm, op_id = 3", eventType=START_END)
        nvtx(file, 0, None, "never ends")
        nvtx(file, 5, 6, "a mark", eventType=34)

    trace = load(made(tmp_path / "strings.sqlite", fill))
    assert [trace.names[i] for i in trace.annotations["name"]] == ["ncclAllReduce"]
    assert not len(trace.ops["ts"])


@pytest.mark.parametrize(
    ("text", "name", "op", "number", "sequence", "sizes"),
    [
        ("aten::mm, seq = 7, op_id = 9, sizes = [[2, 3], [3, 4]], input_op_ids = [(4,0), (5,0)]",
         "", "aten::mm", 9, 7, "[[2, 3], [3, 4]]"),
        ("aten::empty, op_id = 1", "", "aten::empty", 1, -1, ""),
        ("autograd::engine::evaluate_function: MmBackward0, seq = 7, op_id = 3",
         "", "autograd::engine::evaluate_function: MmBackward0", 3, 7, ""),
        ("FlashAttnFunc, seq = 3, op_id = 5", "", "FlashAttnFunc", 5, 3, ""),
        ("prunescope.step#3, op_id = 8", "prunescope.step#3", "", -1, -1, ""),
        ("FSDP::pre_forward (blocks.1), op_id = 8", "FSDP::pre_forward (blocks.1)", "", -1, -1, ""),
        ("[Executor] _forward_step 7: 1 ctx reqs, 3 gen reqs",
         "[Executor] _forward_step 7: 1 ctx reqs, 3 gen reqs", "", -1, -1, ""),
        ("{'Module': 'lm_head'", "lm_head", "", -1, -1, ""),
        ("{'Module': ", "{'Module': ", "", -1, -1, ""),
    ],
)  # fmt: skip
def test_text_of_a_range(
    text: str, name: str, op: str, number: int, sequence: int, sizes: str
) -> None:
    nvtx = read_range(text)
    assert (nvtx.name, nvtx.op, nvtx.op_id, nvtx.sequence, nvtx.sizes) == (
        name, op, number, sequence, sizes
    )  # fmt: skip


def test_kernels_are_named_as_other_profilers_name_them() -> None:
    theirs = (
        "void at::native::<unnamed>::f<(int)8, (bool)0, (unsigned long)2, (unsigned int)4>(int)"
    )
    assert (
        plain_kernel(theirs) == "void at::native::(anonymous namespace)::f<8, false, 2ul, 4u>(int)"
    )


def test_a_graph_that_is_one_interval_is_said(tmp_path: Path) -> None:
    def fill(file: Export) -> None:
        launch(file, 30, 40, corr=2, name="cudaGraphLaunch_v10000")
        row = {"start": 100, "end": 900, "deviceId": 0, "contextId": 1, "streamId": 7, "graphId": 5,
               "correlationId": 2, "globalPid": process(7)}  # fmt: skip
        file.add(GRAPH, [row])

    report = analyze(made(tmp_path / "graph.sqlite", fill)).report
    assert report.phases["trace"].busy_ns == 800
    assert report.phases["trace"].kernels[0].name == "CUDA graph 5"
    assert any("--cuda-graph-trace=node" in warning for warning in report.warnings)


def test_an_export_of_2021_has_fewer_columns(tmp_path: Path) -> None:
    file = Export(tmp_path / "old.sqlite", ())
    file.sql.execute("CREATE TABLE StringIds (id INTEGER PRIMARY KEY, value TEXT)")
    file.sql.execute(
        f"CREATE TABLE {KERNEL} (start INT, end INT, deviceId INT, streamId INT, "
        "correlationId INT, shortName INT)"
    )
    file.sql.execute(f"CREATE TABLE {RUNTIME} (start INT, end INT, globalTid INT, "
                    "correlationId INT, nameId INT)")  # fmt: skip
    file.sql.execute("CREATE TABLE NVTX_EVENTS (start INT, end INT, text TEXT, globalTid INT)")
    file.sql.execute("INSERT INTO StringIds VALUES (1, 'gemm'), (2, 'cudaLaunchKernel')")
    file.sql.execute(f"INSERT INTO {KERNEL} VALUES (100, 300, 0, 7, 4, 1)")
    file.sql.execute(f"INSERT INTO {RUNTIME} VALUES (10, 20, 5, 4, 2)")
    file.sql.execute("INSERT INTO NVTX_EVENTS VALUES (0, 50, 'aten::mm, op_id = 1', 5)")
    file.close()
    phase = analyze(tmp_path / "old.sqlite").report.phases["trace"]
    assert (phase.busy_ns, phase.kernels[0].name, phase.kernels[0].op) == (200, "gemm", "aten::mm")


def test_formats_may_be_mixed(tmp_path: Path) -> None:
    """The dense side is a Chrome trace, the other its database with a kernel half as long."""

    def saved(name: str, width: int, us: float) -> Path:
        product = op("aten::mm", [64, 32], [32, width], kernels=[k(us=us, name=SGEMM)])
        return save(chrome(step(0, product)), tmp_path / name)

    dense, pruned = saved("dense.json", 48, 8), saved("pruned.json", 24, 4)
    export = write(load(pruned), tmp_path / "pruned.sqlite")
    of_chrome = analyze(pruned, baseline=dense).report.phases["trace"]
    mixed = analyze(export, baseline=dense).report.phases["trace"]
    assert mixed.ladder is not None and of_chrome.ladder is not None
    assert mixed.ladder.realised == of_chrome.ladder.realised == 2.0
    assert mixed.gemms[0].axis == "N"
    rows = {row.row: row.ns for row in mixed.ledger or []}
    assert rows == {row.row: row.ns for row in of_chrome.ledger or []}
    assert (rows["dense"], rows["promised"], rows["pruned"]) == (8000, 4000, 4000)


def test_files_in_a_folder_are_ranks(tmp_path: Path) -> None:
    def one(file: Export) -> None:
        launch(file, 200, 210, corr=2)
        kernel(file, 400, 600, corr=2)

    for rank in range(2):
        made(tmp_path / f"run_rank{rank}.sqlite", one)
    assert list(find_traces(tmp_path).parts) == ["rank0", "rank1"]
    made(tmp_path / "run_rank1.sqlite.tmp", one).replace(tmp_path / "both.sqlite")
    (tmp_path / "both.sqlite").unlink()
    made(tmp_path / "both.sqlite", two_devices)
    assert len(find_traces(tmp_path).parts) == 4


def test_devices_of_two_nodes_are_named_by_their_files(tmp_path: Path) -> None:
    """Both files number their devices from 0: which rank each is, nothing tells."""
    for node in range(2):
        made(tmp_path / f"node{node}.sqlite", two_devices)
    report = analyze(tmp_path).report
    assert list(report.phases) == [f"node{i}_device_{j}" for i in range(2) for j in range(2)]
    assert not any("several traces of rank" in text for text in report.warnings)
    assert all(not part.all_ranks for part in find_traces(tmp_path).parts.values())
    assert [rank.number for rank in find_traces(tmp_path / "node1.sqlite").ranks_of.values()] == [
        0, 1]  # fmt: skip


def test_nothing_private_is_in_a_report(tmp_path: Path) -> None:
    secret = "hunter2"

    def fill(file: Export) -> None:
        two_devices(file)
        file.add("META_DATA_CAPTURE", [{"name": "PROCESS_0:ENVIRONMENT_VARIABLE",
                                       "value": f"TOKEN={secret}"}])  # fmt: skip
        file.add("TARGET_INFO_SYSTEM_ENV", [{"globalVid": 1, "devStateName": secret,
                                            "name": "Hostname", "value": secret}])  # fmt: skip
        file.add("TARGET_INFO_GPU", [{"id": 0, "name": "GPU", "uuid": secret,
                                     "busLocation": secret, "chipName": secret}])  # fmt: skip

    done = analyze(made(tmp_path / "private.sqlite", fill))
    files = dict[str, bytes]()
    for name in ("json", "md", "html", "perfetto"):
        asked = RequestedFormats(
            report=done.report,
            name=name,
            frames=PhaseFrames(done.frames, done.dense_frames, done.hosts()),
        )
        files |= FORMATS[name].render(asked)
    assert len(files) > 4
    assert not [name for name, data in files.items() if secret.encode() in data]


def test_a_report_of_nsight_names_the_command_that_exports_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = tmp_path / "run.nsys-rep"
    report.write_bytes(b"\x00NSYS")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PrunescopeError) as error:
        analyze(report)
    assert "nsys export --type sqlite run.nsys-rep" in error.value.hint


def test_a_report_of_nsight_is_exported_where_nsys_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that copies a database stands for nsys."""
    source = made(tmp_path / "made.sqlite", two_devices)
    program = tmp_path / "nsys"
    program.write_text(f'#!/bin/sh\ntest "$1 $2 $3" = "export --type sqlite" && cp {source} "$7"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    report = tmp_path / "other.nsys-rep"
    report.write_bytes(b"\x00NSYS")
    done = analyze(report).report
    assert list(done.phases) == ["rank0", "rank1"]
    assert done.subject["name"] == "other.sqlite"


def test_a_program_that_exports_nothing_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nsys"
    program.write_text("#!/bin/sh\nexit 0\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    report = tmp_path / "silent.nsys-rep"
    report.write_bytes(b"\x00NSYS")
    with pytest.raises(PrunescopeError) as error:
        analyze(report)
    assert error.value.problem == (
        "silent.nsys-rep: nsys ended without an error and wrote no SQLite database"
    )


def test_advice_is_what_nsight_systems_can_record(tmp_path: Path) -> None:
    """Ops without sizes, before a gap of 1 s that nothing names."""

    def fill(file: Export) -> None:
        for i in range(2):
            at = 10**9 * i
            nvtx(file, at, at + 50, f"aten::mm, op_id = {i + 1}")
            launch(file, at + 10, at + 20, corr=i)
            kernel(file, at + 100, at + 900, corr=i, name=SGEMM)

    text = one_sided_text(OneSided(SHAPES, "pruned", "bare.sqlite", "Nsight Systems"))
    assert "capture it again with torch.autograd.profiler.emit_nvtx(record_shapes=True)" in text
    path = made(tmp_path / "bare.sqlite", fill)
    for report in (analyze(path).report, analyze(path, baseline=path).report):
        text = to_json(report).decode()
        assert "emit_nvtx(record_shapes=True)" in text
        assert "profile(..." not in text
        assert "with_stack=True" not in text


def test_an_export_gives_an_annotated_timeline(tmp_path: Path) -> None:
    done = analyze(made(tmp_path / "two.sqlite", two_devices), options=Options())
    asked = RequestedFormats(
        report=done.report,
        name="perfetto",
        frames=PhaseFrames(done.frames, done.dense_frames, done.hosts()),
    )
    files = FORMATS["perfetto"].render(asked)
    assert sorted(files) == [f"trace-rank{i}.perfetto.json.gz" for i in range(2)]
    assert json.loads(to_json(done.report))["phases"]["rank1"]["wall_ns"] == 1600


def test_a_timeline_holds_copies_as_copies_and_what_is_in_no_step(tmp_path: Path) -> None:
    """The first kernel was launched before the file begins, and ended before the first launch; the
    last one is behind the step."""

    def fill(file: Export) -> None:
        kernel(file, 10, 90, corr=1, name="earlier")
        nvtx(file, 150, 350, "step_0")
        launch(file, 200, 210, corr=2)
        kernel(file, 400, 600, corr=2)
        launch(file, 220, 230, corr=3, name="cudaMemcpyAsync")
        row = {"start": 700, "end": 800, "correlationId": 3, "globalPid": process(7), "copyKind": 1}
        file.add(COPY, [{**row, "srcKind": 1, "dstKind": 2, "contextId": 1, "streamId": 7}])
        nvtx(file, 380, 390, "step_1")
        launch(file, 385, 386, corr=4)
        kernel(file, 900, 950, corr=4)
        launch(file, 395, 396, corr=5)
        kernel(file, 920, 940, corr=5, name="later")

    done = analyze(made(tmp_path / "t.sqlite", fill))
    asked = RequestedFormats(
        report=done.report,
        name="perfetto",
        frames=PhaseFrames(done.frames, done.dense_frames, done.hosts()),
    )
    (data,) = FORMATS["perfetto"].render(asked).values()
    events = json.loads(gzip.decompress(data))["traceEvents"]
    names = {(e["cat"], e["name"]) for e in events if e["ph"] == "X"}
    assert ("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)") in names
    assert {name for name in names if name[1] in ("earlier", "later")} == {
        ("prunescope.carry-over", "earlier"), ("prunescope.outside", "later")}  # fmt: skip
    assert min(e["ts"] for e in events if e["ph"] == "X") == 0
    assert "device, in no step" in {e["args"]["name"] for e in events if e["ph"] == "M"}


def test_the_ranges_around_the_capture_of_a_graph_place_its_kernels(tmp_path: Path) -> None:
    """Node 9 is replayed; it is a clone of node 5, which was captured in a module's range."""
    path = "model.layers.2.self_attn.o_proj"

    def fill(file: Export) -> None:
        nvtx(file, 0, 100, path)
        node = {"eventClass": 0, "globalTid": process(7) | 1}
        file.add("CUDA_GRAPH_NODE_EVENTS", [
            {**node, "start": 50, "nameId": file.string("Graph Node Creation"), "graphNodeId": 5},
            {**node, "start": 200, "nameId": file.string("Graph Node Creation"), "graphNodeId": 9,
             "originalGraphNodeId": 5},
            {**node, "start": 300, "nameId": 1, "graphNodeId": 11, "originalGraphNodeId": 12},
            {**node, "start": 300, "nameId": 1, "graphNodeId": 12, "originalGraphNodeId": 11},
        ])  # fmt: skip
        launch(file, 1000, 1010, corr=2, name="cudaGraphLaunch_v10000")
        for number, at in ((9, 2000), (11, 3000)):
            kernel(file, at, at + 500, corr=2, graphNodeId=number,
                   name="nvjet_hsh_64x64_64x4_1x1_h_bz_NNT")  # fmt: skip

    frame = analyze(made(tmp_path / "nodes.sqlite", fill)).frames["trace"]
    assert frame["layer"].to_list() == [2, None]
    assert frame["role"].to_list() == ["o", "unknown"]


def test_counters_are_means_over_the_steps(tmp_path: Path) -> None:
    """Samples at 450 and 550 ns lie in the step of 400 to 600 ns; 90 and 10 are outside of it, and
    those of the other GPU are its own. 100 floats read and written are 800 bytes in 200 ns: 4 GB/s
    of 8."""
    names = {0: "SMs Active [Throughput %]", 1: "DRAM Read Bandwidth [Throughput %]",
             2: "DRAM Write Bandwidth [Throughput %]", 3: "GPC Clock Frequency [MHz]",
             4: "PCIe RX Throughput [Throughput %]"}  # fmt: skip

    def fill(file: Export) -> None:
        nvtx(file, 150, 300, "aten::neg, op_id = 3, sizes = [[100]]")
        launch(file, 200, 210, corr=2)
        kernel(file, 400, 600, corr=2, name="vectorized_elementwise_kernel<4, Neg<float>>(float)")
        file.add("TARGET_INFO_CUDA_DEVICE", [{"gpuId": 1, "cudaId": 0, "pid": 7, "uuid": ""}])
        for gpu in range(2):
            kind = 72_057_594_037_927_936 + gpu
            file.add(
                "TARGET_INFO_GPU_METRICS",
                [{"typeId": kind, "metricId": i, "metricName": n} for i, n in names.items()],
            )
            for ts, scale in ((90, 9), (450, 1), (550, 2), (700, 9)):
                values = (40, 20, 10, 1500, 77)
                file.add("GPU_METRICS", [
                    {"timestamp": ts, "typeId": kind, "metricId": i,
                     "value": (value if i == 3 else value * scale) + 50 * (1 - gpu)}
                    for i, value in enumerate(values)])  # fmt: skip

    path = made(tmp_path / "metrics.sqlite", fill)
    notes = analyze(path, options=Options(bandwidth=8)).report.phases["trace"].notes
    assert [text for text in notes if text.startswith("counters")] == [
        "counters of the device, means of 2 samples in the steps: SMs active 60 %, memory read "
        "30 %, memory written 15 %, clock 1,500 MHz (lowest 1,500); the work models move 50 % of "
        "what the memory can in that time, the counters show 45 %, which confirms it"
    ]


SYNC = "CUPTI_ACTIVITY_KIND_SYNCHRONIZATION"


def waits(file: Export, start: int, end: int, *, kind: int, corr: int) -> None:
    row = {"start": start, "end": end, "syncType": kind, "correlationId": corr}
    file.add(SYNC, [{**row, "globalPid": process(7)}])


def test_waits_of_the_host_without_their_calls_are_calls(tmp_path: Path) -> None:
    """The device idles from 600 to 1700 ns. The host waits until 1000 (its call is not in the
    file), then nothing is recorded until its launch of 1400 to 1450; 250 ns later the kernel runs.
    A query of an event is no wait, and neither is the call that lets a stream wait."""

    def fill(file: Export) -> None:
        launch(file, 200, 210, corr=2)
        kernel(file, 400, 600, corr=2)
        waits(file, 300, 1000, kind=3, corr=3)
        launch(file, 1000, 1100, corr=4, name="cudaEventQuery")
        waits(file, 1010, 1090, kind=1, corr=4)
        launch(file, 1100, 1200, corr=5, name="cudaStreamWaitEvent")
        waits(file, 1110, 1190, kind=2, corr=5)
        waits(file, 1210, 1290, kind=2, corr=6)
        launch(file, 1400, 1450, corr=7)
        kernel(file, 1700, 1900, corr=7)

    path = made(tmp_path / "waits.sqlite", fill)
    frame = analyze(path).frames["trace"]
    row = frame.row(1, named=True)
    # Launches: 100 + 100 + 50 ns of calls, and 250 ns up to the kernel.
    causes = {name: ns for name, ns in row.items() if name.startswith("idle_") and ns}
    assert causes == {"idle_sync": 400, "idle_launch": 500, "idle_nothing": 200}
    assert row["gap"] == 1100
    assert not len(load(path).waits["ts"]), "when streams waited is not recorded"


def test_a_wait_whose_call_is_there_counts_once(tmp_path: Path) -> None:
    def fill(file: Export) -> None:
        launch(file, 200, 210, corr=2)
        kernel(file, 400, 600, corr=2)
        launch(file, 300, 1000, corr=3, name="cudaStreamSynchronize_v3020")
        waits(file, 310, 990, kind=3, corr=3)
        launch(file, 1400, 1450, corr=7)
        kernel(file, 1700, 1900, corr=7)

    path = made(tmp_path / "waits.sqlite", fill)
    assert len(load(path).launches["ts"]) + len(load(path).other_calls["ts"]) == 3
    assert analyze(path).frames["trace"]["idle_sync"].to_list() == [0, 400]


def test_a_wait_of_one_of_several_threads_is_left_out(tmp_path: Path) -> None:
    def fill(file: Export) -> None:
        launch(file, 200, 210, corr=2)
        kernel(file, 400, 600, corr=2)
        waits(file, 300, 1000, kind=4, corr=3)
        row = {"start": 1400, "end": 1450, "globalTid": process(7) | 2, "correlationId": 7}
        file.add(RUNTIME, [{**row, "nameId": file.string("cudaLaunchKernel")}])
        kernel(file, 1700, 1900, corr=7)

    frame = analyze(made(tmp_path / "waits.sqlite", fill)).frames["trace"]
    assert frame["idle_sync"].to_list() == [0, 0]


def test_the_profilers_own_time_is_named(tmp_path: Path) -> None:
    """Of a flush of 1 to 4 ms, the device idles from 2 to 6: 2 ms. Loading code is the driver's."""

    def fill(file: Export) -> None:
        launch(file, 200, 210, corr=2)
        kernel(file, 1_000_000, 2_000_000, corr=2)
        launch(file, 5_000_000, 5_900_000, corr=3)
        kernel(file, 6_000_000, 7_000_000, corr=3)
        names = {
            "CUPTI Buffer flush": (1_000_000, 4_000_000),
            "Lazy loading": (4_000_000, 5_000_000),
        }
        for name, (start, end) in names.items():
            row = {"start": start, "end": end, "globalTid": process(7) | 5}
            file.add("PROFILER_OVERHEAD", [{**row, "nameId": file.string(name)}])

    notes = analyze(made(tmp_path / "flush.sqlite", fill)).report.phases["trace"].notes
    assert [text for text in notes if "profiler" in text] == [
        "while the device idled in the steps, the profiler did work of its own (CUPTI Buffer flush "
        "2.000 ms): it may have caused a part of that idle time, which a run without a profiler "
        "does not have"
    ]


def event(file: Export, complete: int, *, sync: int) -> None:
    row = {"timestamp": complete, "globalPid": process(7), "eventSyncId": sync}
    file.add("CUPTI_ACTIVITY_KIND_CUDA_EVENT", [row])


def test_a_stream_waits_until_an_event_is_complete(tmp_path: Path) -> None:
    """Stream 9 runs until 600 and then waits for the event, complete at 1300; it had been told to
    at 210 to 220. The device idles from 900, when stream 7 ends, to 1400: for 400 ns of these the
    stream waited. Its second wait is for an event that was complete before its work ended; of the
    third the completion was not recorded."""

    def fill(file: Export) -> None:
        for corr in (2, 3, 5):
            launch(file, 200 + corr, 201 + corr, corr=corr)
        kernel(file, 400, 900, corr=2)
        kernel(file, 400, 600, corr=3, streamId=9)
        kernel(file, 1400, 1500, corr=5, streamId=9)
        told = {"syncType": 2, "globalPid": process(7), "streamId": 9, "contextId": 1}
        for at, sync in ((210, 1), (230, 2), (250, 3)):
            file.add(SYNC, [{"start": at, "end": at + 10, "eventSyncId": sync, **told}])
        for complete, sync in ((1300, 1), (500, 2), (0, 3)):
            event(file, complete, sync=sync)

    path = made(tmp_path / "waits.sqlite", fill)
    trace = load(path)
    assert (trace.waits["ts"].tolist(), trace.waits["dur"].tolist()) == ([600], [700])
    assert trace.names[trace.waits["name"][0]] == "Stream Wait Event"
    assert len(trace.device["ts"]) == 3
    frame = analyze(path).frames["trace"]
    last = frame.row(-1, named=True)
    assert (last["gap"], last["idle_blocked"], last["idle_device"]) == (500, 400, 100)


NCCL = "ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)"
FIELDS = {10: (("NCCL communicator ID", 18, None), ("Message size [bytes]", 22, 8)),
          11: (("NCCL communicator ID", 18, None), ("No. of ranks", 5, 8))}  # fmt: skip


def payload(schema: int, *values: int) -> bytes:
    form = "<Qi" if schema == 11 else "<QQ"
    body = struct.pack(form, *values).ljust(16, b"\0")
    return struct.pack("<IIIIQQ", 1, 0, schema, 0, len(body), 32 + len(body)) + body


def nccl(file: Export, start: int, end: int, name: str, **more: Any) -> None:
    nvtx(file, start, end, "", textId=file.string(name), domainId=1, **more)


def of_nccl(file: Export) -> None:
    """Add calls of NCCL.

    They are a gather of 8 MB by each of four ranks, 100 µs; a group of two sends and two receives;
    a group that launches two kernels; a call whose payload is no payload.
    """
    for schema, fields in FIELDS.items():
        rows = [{"domainId": 1, "schemaId": schema, "idx": i, "name": name, "type": kind,
                 "offset": at} for i, (name, kind, at) in enumerate(fields)]  # fmt: skip
        file.add("NVTX_PAYLOAD_SCHEMA_ENTRIES", rows)
    nccl(file, 10, 20, "ncclCommInitRank", binaryData=payload(11, 99, 4))
    nccl(file, 100, 200, "ncclAllGather", binaryData=payload(10, 99, 2_000_000))
    launch(file, 150, 160, corr=1)
    kernel(file, 1000, 101_000, corr=1, name=NCCL)
    for begin, corrs in ((300, (2,)), (500, (3, 4))):
        nccl(file, begin, begin + 1, "ncclGroupStart")
        for i, name in enumerate(("ncclSend", "ncclRecv") * 2):
            at = begin + 2 + i
            nccl(file, at, at + 1, name, binaryData=payload(10, 7, 1000))
        nccl(file, begin + 50, begin + 90, "ncclGroupEnd")
        for corr in corrs:
            launch(file, begin + 55 + corr, begin + 56 + corr, corr=corr)
            kernel(
                file,
                10**5 * corr + 2000,
                10**5 * corr + 52_000,
                corr=corr,
                name="ncclDevKernel_SendRecv",
            )
    nccl(file, 700, 800, "ncclAllGather", binaryData=b"\0" * 7)
    launch(file, 750, 760, corr=5)
    kernel(file, 602_000, 603_000, corr=5, name=NCCL)


def test_payloads_of_nccl_give_sizes_of_collectives(tmp_path: Path) -> None:
    """Three of four ranks' 2 MB come over the bus: 6 MB in 100 us are 60 GB/s."""
    path = made(tmp_path / "nccl.sqlite", of_nccl)
    notes = analyze(path).report.phases["trace"].notes
    assert [text for text in notes if text.startswith("collectives")] == [
        "collectives, a step: 1 AllGather of 8,000,000 bytes over 4 ranks, 100.0 µs each, at least "
        "60 GB/s on the bus; 1 Send+Recv of 2,000 bytes, 50.0 µs each"
    ]


def test_payloads_as_json(tmp_path: Path) -> None:
    def fill(file: Export) -> None:
        said = {"NCCL communicator ID": "0x63", "Message size [bytes]": 4096}
        nccl(file, 100, 200, "ncclAllReduce", jsonText=json.dumps(said))
        launch(file, 150, 160, corr=1)
        kernel(file, 1000, 2000, corr=1, name="ncclDevKernel_AllReduce")

    collectives = load(made(tmp_path / "nccl.sqlite", fill)).collectives
    assert collectives == [("AllReduce", 4096, 4096, None, "byte")]
