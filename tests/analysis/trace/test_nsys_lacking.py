"""Exports of Nsight Systems that lack a table, a column, ids or names.

What is missing is said, and no number stands for it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Report
from prunescope.analysis.trace import nsys_tables, nsys_work
from prunescope.analysis.trace.load import load
from prunescope.taxonomy.errors import PrunescopeError
from tests.analysis.trace.test_nsys import (
    COPY,
    KERNEL,
    RUNTIME,
    Fill,
    kernel,
    launch,
    made,
    nvtx,
    process,
    two_devices,
)
from tests.nsys import Export


def three(export: Export) -> None:
    """Kernels of 100 ns that begin at 1000, 2000 and 3000 ns, and a copy."""
    for i in (1, 2, 3):
        launch(export, 10 * i, 10 * i + 5, corr=i)
        kernel(export, 1000 * i, 1000 * i + 100, corr=i)
    launch(export, 40, 45, corr=4, name="cudaMemcpyAsync")
    export.add(COPY, [{"start": 4000, "end": 4050, "correlationId": 4, "globalPid": process(7),
                    "copyKind": 1}])  # fmt: skip


def changed(path: Path, *statements: str, fill: Fill = three) -> Path:
    def fill_and_change(export: Export) -> None:
        fill(export)
        for statement in statements:
            export.sql.execute(statement)

    return made(path, fill_and_change)


def analysed(path: Path, *statements: str, fill: Fill = three) -> Report:
    return analyze(changed(path, *statements, fill=fill)).report


def about(report: Report, words: str) -> list[str]:
    """Such warnings without the name of the file and the device."""
    return [
        text.split(": ", 2 if ": device " in text else 1)[-1]
        for text in report.warnings
        if words in text
    ]


def without(table: str, column: str) -> list[str]:
    return [f"ALTER TABLE {table} DROP COLUMN {column}"]


def test_payloads_without_ranges(tmp_path: Path) -> None:
    report = analysed(
        tmp_path / "t.sqlite",
        "INSERT INTO NVTX_PAYLOAD_SCHEMA_ENTRIES (domainId, schemaId, idx, type, name) "
        "VALUES (1, 10, 0, 22, 'Message size [bytes]')",
        "DROP TABLE NVTX_EVENTS",
    )
    assert report.phases["trace"].busy_ns == 350


@pytest.mark.parametrize("value", ["'first'", "NULL", "1.5", "-3", "x'00'", "1 << 62", "1 << 40"])
def test_kernels_that_name_no_device_are_counted(value: str, tmp_path: Path) -> None:
    nullable = [f"CREATE TABLE k AS SELECT * FROM {KERNEL}", f"DROP TABLE {KERNEL}",
                f"ALTER TABLE k RENAME TO {KERNEL}"]  # fmt: skip
    bad = f"UPDATE {KERNEL} SET deviceId = {value} WHERE correlationId = 2"
    report = analysed(tmp_path / "t.sqlite", *nullable, bad)
    assert about(report, "no device") == [
        "1 of 4 kernels, copies and fills were dropped: they name no device"
    ]
    assert report.partial
    assert report.phases["trace"].busy_ns == 250
    assert not about(report, "kernel launches"), "that launch has a kernel, of an unknown device"


def test_copies_that_name_no_device_are_counted(tmp_path: Path) -> None:
    report = analysed(tmp_path / "t.sqlite", f"UPDATE {COPY} SET deviceId = 'a'",
                      f"DELETE FROM {RUNTIME}")  # fmt: skip
    assert about(report, "no device")
    assert report.phases["trace"].busy_ns == 300


REFUSED = {
    "no kernel names a device": (
        [f"UPDATE {KERNEL} SET deviceId = 'a'"], "none of its 3 kernels names a device (deviceId)"),
    "no number of a device": (
        [f"UPDATE {KERNEL} SET deviceId = 1 << 62"], "none of its 3 kernels names a device"),
    "no table of kernels": (
        [f"DROP TABLE {KERNEL}"], "holds no kernel of a GPU, only 1 copies and fills"),
    "no ends": (without(KERNEL, "end"), f"its table {KERNEL} lacks the column end"),
    "no devices": (without(KERNEL, "deviceId"), f"its table {KERNEL} lacks the column deviceId"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_without_kernels_is_refused(name: str, tmp_path: Path) -> None:
    statements, problem = REFUSED[name]
    with pytest.raises(PrunescopeError) as error:
        analysed(tmp_path / "t.sqlite", *statements)
    assert problem in error.value.problem
    assert ("--trace cuda" if "only" in problem else "nsys export") in error.value.hint


def test_columns_that_the_table_of_kernels_lacks_are_said(tmp_path: Path) -> None:
    lacking = ["streamId", "registersPerThread", *(f"{extent}{axis}" for extent in ("grid", "block")
                                                   for axis in "XYZ")]  # fmt: skip
    changes = [change for column in lacking for change in without(KERNEL, column)]
    report = analysed(tmp_path / "t.sqlite", *changes)
    assert about(report, "lacks") == [
        f"its table {KERNEL} lacks the columns {', '.join(lacking)}: what depends on that is "
        "unknown"
    ]
    assert report.phases["trace"].busy_ns == 350


def test_columns_that_other_tables_lack_are_said(tmp_path: Path) -> None:
    report = analysed(tmp_path / "t.sqlite", *without(COPY, "end"), *without(RUNTIME, "nameId"))
    assert about(report, "lacks") == [
        f"its table {COPY} lacks the column end: what depends on that is unknown",
        f"its table {RUNTIME} lacks the column nameId: what depends on that is unknown",
    ]
    assert report.phases["trace"].busy_ns == 300


@pytest.mark.parametrize(
    "change", ["DROP TABLE StringIds", "UPDATE StringIds SET value = x'ff00'", "wrong"]
)
def test_kernels_without_names_are_said(change: str, tmp_path: Path) -> None:
    change = f"UPDATE {KERNEL} SET demangledName = 99" if change == "wrong" else change
    report = analysed(tmp_path / "t.sqlite", change)
    assert about(report, "no name") == [
        "3 of its kernels have no name in the file (StringIds): they are shown as ?, and what they "
        "do is unknown; export the report again: `nsys export --type sqlite REPORT.nsys-rep`"
    ]


def test_work_of_several_processes_without_their_ids_is_said(tmp_path: Path) -> None:
    report = analysed(tmp_path / "two.sqlite", *without(KERNEL, "globalPid"), fill=two_devices)
    assert about(report, "name no process") == [
        "5 of its kernels, copies and fills name no process (globalPid), and 2 processes made "
        "calls of CUDA: launches of one process may be taken for those of another, and so may ops "
        "and layers"
    ] * 2  # fmt: skip
    single = analysed(tmp_path / "one.sqlite", *without(KERNEL, "globalPid"))
    assert about(single, "globalPid") == [
        f"its table {KERNEL} lacks the column globalPid: what depends on that is unknown"
    ]
    assert not about(single, "name no process"), "one process alone cannot be confused"


def test_copies_without_a_process_are_of_the_only_device_of_their_number(tmp_path: Path) -> None:
    path = changed(tmp_path / "t.sqlite", *without(COPY, "globalPid"))
    assert len(load(path).device["ts"]) == 4


def test_a_kernel_without_a_process_is_of_the_gpu_that_all_call_so(tmp_path: Path) -> None:
    report = analysed(
        tmp_path / "t.sqlite",
        f"UPDATE {KERNEL} SET globalPid = NULL WHERE correlationId = 2",
        "INSERT INTO TARGET_INFO_CUDA_DEVICE VALUES (3, 0, 7, '', 1)",
    )
    assert list(report.phases) == ["trace"]
    assert report.phases["trace"].busy_ns == 350


def test_more_work_than_memory_is_meant_for_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nsys_work, "MAX_DEVICE_ROWS", 3)
    with pytest.raises(PrunescopeError) as error:
        load(made(tmp_path / "t.sqlite", three))
    assert error.value.problem == (
        "t.sqlite: it holds 4 kernels, copies and fills of one device, more than 3"
    )
    assert "--duration" in error.value.hint
    monkeypatch.undo()
    monkeypatch.setattr(nsys_tables, "MAX_ROWS", 3)
    with pytest.raises(PrunescopeError, match="more than 3 events"):
        load(tmp_path / "t.sqlite")


@pytest.mark.parametrize(
    "change", [f"DROP TABLE {RUNTIME}", f"UPDATE {KERNEL} SET correlationId = NULL"]
)
def test_steps_without_launches_are_one(change: str, tmp_path: Path) -> None:
    def fill(export: Export) -> None:
        for i in (1, 2):
            nvtx(export, 1000 * i - 100, 1000 * i, f"step_{i}")
            launch(export, 1000 * i - 50, 1000 * i - 40, corr=i)
            kernel(export, 1000 * i, 1000 * i + 100, corr=i)

    report = analysed(tmp_path / "t.sqlite", change, fill=fill)
    phase = report.phases["trace"]
    assert (phase.steps, phase.busy_ns, phase.wall_ns) == (1, 200, 1100)
    assert about(report, "has its launch") == [
        "none of its 2 kernels, copies and fills has its launch in the file: which step, op or "
        "layer they are of is unknown, and all of it counts as one step (calls of CUDA are "
        "recorded by `nsys profile --trace cuda`)"
    ]


def test_numbered_ranges_without_launches_are_no_steps(tmp_path: Path) -> None:
    """Steps of a loader, before the model runs."""

    def fill(export: Export) -> None:
        for i in (1, 2):
            nvtx(export, 10 * i, 10 * i + 5, f"step_{i}")
            launch(export, 1000 * i - 50, 1000 * i - 40, corr=i)
            kernel(export, 1000 * i, 1000 * i + 100, corr=i)

    report = analysed(tmp_path / "t.sqlite", fill=fill)
    phase = report.phases["trace"]
    assert (phase.steps, phase.busy_ns, phase.wall_ns) == (1, 200, 1100)


def test_kernels_that_name_no_launch_are_not_lost(tmp_path: Path) -> None:
    report = analysed(
        tmp_path / "t.sqlite", f"UPDATE {KERNEL} SET correlationId = NULL WHERE correlationId = 2"
    )
    assert not about(report, "have no kernel")
    assert not report.partial
    assert [note for note in report.phases["trace"].notes if "one another" in note] == [
        "1 kernels have no correlation id and 1 launches no kernel: they are taken for those of "
        "one another, and which is which is unknown"
    ]
    lost = analysed(tmp_path / "lost.sqlite", f"DELETE FROM {KERNEL} WHERE correlationId = 2")
    assert about(lost, "have no kernel")


def test_files_called_as_two_sides_are_said_to_be_read_as_ranks(tmp_path: Path) -> None:
    for name in ("dense", "pruned"):
        made(tmp_path / f"{name}.sqlite", three)
    report = analyze(tmp_path).report
    assert [text for text in report.warnings if "--baseline" in text] == [
        f"{tmp_path.name}: its files are read as ranks of one run; to compare two of them, give "
        "pruned.sqlite --baseline dense.sqlite"
    ]
