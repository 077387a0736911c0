"""CSV, Parquet, JSON: raw values that read back, a data dictionary, a schema that holds."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import polars as pl
import pytest

from prunescope.analysis.report.escape import csv_text
from prunescope.analysis.report.tables import (
    TABLES,
    columns_of,
    csv_tables,
    data_dictionary,
    frame_tables,
    inert_frame,
)
from prunescope.analysis.schema import report as model
from prunescope.analysis.schema.report import Report, to_json
from prunescope.taxonomy.errors import PrunescopeError
from tests.analysis.report import example
from tests.analysis.report.test_anatomy_figures import anatomy as with_anatomy

REPORTS = [
    example.two_phases(),
    example.alone(example.HOSTILE),
    example.hostile(example.two_phases()),
]


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def frame() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "step": [0, 0, 1],
            "name": [example.HOSTILE, "=cmd|' /C calc'!A0", None],
            "busy": [5, -7, None],
            "shape": [[1, 2], [3], None],
            "kind": pl.Series(["gemm", "-x", None], dtype=pl.Categorical),
        }
    )


def test_ledger_rows_sum_and_parts_sum_to_them() -> None:
    rows = rows_of(csv_tables(example.two_phases())["ledger.csv"])
    whole = {r["row"]: float(r["ns"]) for r in rows if r["phase"] == "prefill" and not r["part"]}
    assert list(whole) == ["dense", "promised", "coverage", "roofline_shift", "shape",
                           "kernel_efficiency", "added_work", "launch_idle", "pruned"]  # fmt: skip
    assert sum(list(whole.values())[1:-1]) == pytest.approx(whole["pruned"])
    parts = [float(r["ns"]) for r in rows if r["row"] == "coverage" and r["part"]]
    assert sum(parts) == pytest.approx(whole["coverage"])


def test_an_unknown_is_an_empty_cell_and_zero_is_zero() -> None:
    gone = next(
        r for r in rows_of(csv_tables(example.two_phases())["gemms.csv"]) if r["axis"] == "gone"
    )
    assert gone["count"] == "0.0" and gone["busy_ns"] == "0.0"
    assert gone["flop"] == "" and gone["efficiency"] == ""


@pytest.mark.parametrize("report", REPORTS, ids=["pair", "alone", "hostile"])
def test_no_cell_is_a_formula(report: Report) -> None:
    texts = [*csv_tables(report).values(), data_dictionary({"trace": frame()})]
    texts += [b.decode() for b in frame_tables(report, {"trace": frame()}, "csv").values()]
    for text in texts:
        assert "\x1b" not in text
        for row in csv.reader(io.StringIO(text)):
            for value in row:
                assert not value.startswith(("=", "+", "@", "\t"))
                assert not value.startswith("-") or float(value) < 0


def test_a_frame_keeps_its_numbers_and_shows_its_names() -> None:
    flat = inert_frame(frame())
    assert flat["busy"].to_list() == [5, -7, None]
    assert flat["name"].to_list() == [
        example.HOSTILE.replace("\x1b", r"\x1b"),
        "'=cmd|' /C calc'!A0",
        None,
    ]
    assert flat["shape"].to_list() == ["1 2", "3", None]
    assert flat["kind"].to_list() == ["gemm", "'-x", None]


def test_names_of_columns_do_nothing_either() -> None:
    """A column is named with a phase of a plan; two such names may look the same."""
    names = ["=1+1_ns", "a\x1b_ns", "a\\x1b_ns"]
    flat = inert_frame(pl.DataFrame({name: [1] for name in names}))
    assert flat.columns == ["'=1+1_ns", "a\\x1b_ns", "a\\x1b_ns-2"]
    assert csv_text(names[:2], []) == '"\'=1+1_ns","a\\x1b_ns"\n'


def test_parquet_reads_back_unchanged() -> None:
    files = frame_tables(example.alone(), {"trace": frame()}, "parquet")
    assert list(files) == ["kernels-trace.parquet"]
    back = pl.read_parquet(io.BytesIO(files["kernels-trace.parquet"]))
    assert back.equals(frame())


def test_every_column_of_every_table_is_in_the_dictionary() -> None:
    described = {(r["file"], r["column"]) for r in rows_of(data_dictionary({"trace": frame()}))}
    for file, text in csv_tables(example.two_phases()).items():
        head = next(csv.reader(io.StringIO(text)))
        assert {(file, column) for column in head} <= described
    assert {("kernels-<phase>", column) for column in frame().columns} <= described


def test_every_column_has_one_meaning_that_the_json_schema_has_too() -> None:
    for file in TABLES:
        assert all(column.text for column in columns_of(file)), file
    schema = model.report_schema()["$defs"]
    for file, struct in (("gemms.csv", "GemmRow"), ("kernels.csv", "KernelRow")):
        columns = columns_of(file)[1:]
        assert [column.name for column in columns] == list(
            getattr(model, struct).__struct_encode_fields__
        )
        properties = schema[struct]["properties"]
        assert all(properties[column.name]["description"] == column.text for column in columns)
    assert {c.name: c.unit for c in columns_of("gemms.csv")}["busy_ns"] == "ns"


def test_the_figures_of_the_anatomy_have_their_data_in_tables() -> None:
    """Sums over a table are those of the figure."""
    report = example.two_phases()
    anatomy = with_anatomy()
    report.phases["prefill"].anatomy = anatomy
    tables = csv_tables(report)

    def total(file: str, column: str, **equal: str) -> float:
        rows = [r for r in rows_of(tables[file]) if r["phase"] == "prefill"]
        return sum(float(r[column]) for r in rows if all(r[k] == v for k, v in equal.items()))

    bounds = anatomy.kind_bounds["gemm"]
    assert total("bounds.csv", "busy_ns", kind="gemm") == sum(bounds.values())
    assert total("bounds.csv", "busy_ns", kind="gemm", bound="memory") == bounds["memory"]
    third = next(one for one in anatomy.layers if one.layer == 3)
    assert total("layers.csv", "ns", layer="3") == sum(third.roles.values()) + third.gap_ns
    assert total("roofline.csv", "busy_ns") == sum(p.busy_ns for p in anatomy.points)
    curves = sum(ns for one in anatomy.shapes for _, ns in one.curve)
    assert total("waves.csv", "predicted_ns") == curves > 0
    kinds = report.phases["decode"].kinds
    rows = [r for r in rows_of(tables["bounds.csv"]) if r["phase"] == "decode"]
    assert [float(r["busy_ns"]) for r in rows] == list(kinds.values())


@pytest.mark.parametrize("report", REPORTS, ids=["pair", "alone", "hostile"])
def test_json_reads_back_and_holds_no_escape(report: Report) -> None:
    data = to_json(report)
    assert model.from_json(data) == report
    assert b"\x1b" not in data


def test_the_written_schema_is_the_model() -> None:
    path = Path(model.__file__).with_name("report.schema.json")
    assert path.read_bytes() == model.schema_json()


@pytest.mark.parametrize("report", REPORTS, ids=["pair", "alone", "hostile"])
def test_reports_keep_the_schema(report: Report) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    checker = jsonschema.Draft202012Validator(model.report_schema())
    plain = json.loads(to_json(report))
    checker.validate(plain)
    plain["phases"][next(iter(plain["phases"]))]["wall_ns"] = "fast"
    assert not checker.is_valid(plain)


def test_a_report_of_another_shape_is_refused() -> None:
    with pytest.raises(PrunescopeError, match="report.json: subject: object missing required"):
        model.from_json(b'{"tool": "x", "subject": {}, "baseline": null, "device": {}}')
