"""The Python API as someone in an editor or a notebook meets it."""

from __future__ import annotations

import inspect
import json
import typing
from pathlib import Path

import pytest

import prunescope
from prunescope import api
from prunescope.analysis.schema.report import Report as Plain
from prunescope.analysis.schema.report import to_json
from prunescope.results.result import with_fields_of
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.replays import ReplayDevice, ReplayPeaks, Replays, read_replays
from prunescope.tracer.sweep.request import SweepRequest
from prunescope.tracer.sweep.sweep import plan_of
from tests.analysis.paper.test_paper_figures import replays
from tests.analysis.report import example
from tests.stored import each_once, stored_once

__all__ = ["stored_once"]

RUNS = Path(__file__).resolve().parents[2] / "traces"
FUNCTIONS = [
    getattr(prunescope, name)
    for name in prunescope.__all__
    if inspect.isfunction(getattr(prunescope, name))
]


@pytest.fixture(scope="module")
def report() -> prunescope.Report:
    with each_once():
        return prunescope.analyze(RUNS / "tiny-static-nk")


@pytest.fixture(scope="module")
def both() -> prunescope.Comparison:
    with each_once():
        return prunescope.compare([RUNS / "tiny-static-nk", RUNS / "tiny-static-m"])


def test_dir_is_all_and_nothing_else() -> None:
    assert dir(prunescope) == sorted(prunescope.__all__)
    assert (Path(prunescope.__file__).parent / "py.typed").is_file()


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_a_function_has_types_and_an_example(function: typing.Any) -> None:
    parameters = inspect.signature(function).parameters.values()
    assert all(p.annotation is not inspect.Parameter.empty for p in parameters)
    assert inspect.signature(function).return_annotation is not inspect.Signature.empty
    assert function.__name__ == "capture" or ">>> " in (function.__doc__ or "")


@pytest.mark.parametrize(
    "function", [api.trace, api.analyze, api.predict, api.sweep, api.compare, prunescope.capture]
)
def test_an_option_that_is_not_there_names_the_nearest(function: typing.Any) -> None:
    name = next(
        n for n in inspect.signature(function).parameters if n in ("sparsity", "preset", "warmup")
    )
    with pytest.raises(TypeError, match=f"{function.__name__}.*nearest: {name}"):
        function("x", **{f"{name[:4]}{name[5:]}": 0.5})


def test_files_are_written_by_what_a_call_returns(report: prunescope.Report) -> None:
    for option in ("out", "format", "formats"):
        with pytest.raises(TypeError, match=r"analyze\(\) has no option .*\.save\("):
            prunescope.analyze("x", **{option: "rep"})
    assert len(repr(report.phases)) < 600 * len(report.phases)
    assert "faster" in repr(next(iter(report.phases.values())))


def test_one_value_too_many_names_the_options_that_need_no_name() -> None:
    with pytest.raises(TypeError, match=r"compare\(\) takes subjects without a name, and 2 values"):
        prunescope.compare("a", "b")  # type: ignore[call-arg]


def test_a_sparsity_that_nothing_would_use_is_refused() -> None:
    with pytest.raises(PrunescopeError, match="every family in .* sets its own"):
        prunescope.trace("tiny-llama", method="static-m:0.25+static-nk-mlp:0.5", sparsity=0.4)
    with pytest.raises(PrunescopeError, match="without --method"):
        prunescope.trace("tiny-llama", baseline_model="tiny-llama", sparsity=0.3)
    with pytest.raises(PrunescopeError, match="combined families .* cannot be predicted"):
        prunescope.predict(
            model="tiny-llama", device="h100-sxm", method="static-m:0.25+static-nk-mlp:0.5"
        )


def test_a_plot_that_is_not_there_names_the_nearest(report: prunescope.Report) -> None:
    with pytest.raises(AttributeError, match="no plot 'ledgr'; nearest: ledger"):
        report.plot.ledgr  # noqa: B018
    assert not hasattr(report.plot, "__deepcopy__")


def test_a_sparsity_that_there_is_not_is_refused() -> None:
    for sparsity in (25, 1, -0.1):
        with pytest.raises(PrunescopeError, match=r"outside \[0, 1\)"):
            prunescope.analyze(RUNS / "tiny-static-nk", sparsity=sparsity)


def test_a_prediction_shows_itself_in_a_notebook() -> None:
    shown = prunescope.predict(model="tiny-llama", device="h100-sxm")._repr_html_()
    assert "<table" in shown and "speedups are dense" in shown
    assert "prefill: batch 1, 512 tokens" in shown


def test_replayed_gemms_are_a_result_like_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = prunescope.Replayed(replays())
    assert repr(found) == "<Replayed: 1 shapes and 1 curves on d>"
    assert found.to_polars().select("m", "warm_ns", "timing_valid").row(0) == (128, 2e3, True)
    assert (
        len(found.curves) == 5 and len(found.verdicts) == 0 and "verdict" in found.verdicts.columns
    )
    found.show()
    assert "GEMMs alone" in capsys.readouterr().out
    assert "<table" in found._repr_html_() and found.plot.curves().axes
    paths = found.save(tmp_path, formats=["md", "json", "csv", "svg"])
    assert {path.name for path in paths} == {
        "gemms.md", "gemms.json", "gemms.csv", "curves.csv", "gemms.svg",
    }  # fmt: skip
    assert read_replays(tmp_path / "gemms.json").curves == found.replays.curves
    assert json.loads((tmp_path / "gemms.json").read_text("utf-8")) == found.to_dict()
    with pytest.raises(PrunescopeError, match="no GEMM was replayed over N or K"):
        prunescope.Replayed(Replays(device=ReplayDevice(), peaks=ReplayPeaks())).plot.curves()


def test_a_report_is_the_one_of_the_command(report: prunescope.Report) -> None:
    from prunescope.analysis.pipeline import analyze, with_commands

    assert isinstance(report, Plain)
    assert to_json(report) == to_json(with_commands(analyze(RUNS / "tiny-static-nk")).report)
    assert report.to_dict() == json.loads(to_json(report))


def test_repr_is_short(report: prunescope.Report) -> None:
    text = repr(report)
    assert len(text) < 320 and "realised" in text and "static-nk" in text
    assert len(repr(report.gemms)) < 600
    long = with_fields_of(example.hostile(example.two_phases()), prunescope.Report)
    assert len(repr(long)) < 320 and "\x1b" not in repr(long)


def test_tables_hold_every_phase(report: prunescope.Report) -> None:
    frame = report.gemms.to_polars()
    assert frame.height == sum(len(p.gemms) for p in report.phases.values())
    assert {"phase", "role", "axis", "m", "n", "k", "busy_ns", "keep_n"} <= set(frame.columns)
    assert set(frame["phase"]) == set(report.phases) == {"prefill", "decode"}
    row = report.phases["prefill"].gemms[0]
    assert (row.m, row.n, row.k) == frame.select("m", "n", "k").row(0)


def test_the_parts_of_a_ledger_row_sum_to_it(report: prunescope.Report) -> None:
    import polars as pl

    frame = report.ledger.to_polars()
    parts = frame.filter(pl.col("part").is_not_null()).group_by("phase", "row").agg(pl.sum("ns"))
    rows = frame.filter(pl.col("part").is_null()).join(parts, on=["phase", "row"])
    assert rows.height >= 2
    for ns, total in rows.select("ns", "ns_right").rows():
        assert ns == pytest.approx(total, abs=1.0)


@pytest.mark.parametrize("name", ["gemms", "ledger", "ladder", "kernels", "findings", "roofline"])
def test_a_table_without_rows_has_the_same_columns(report: prunescope.Report, name: str) -> None:
    empty = with_fields_of(example.alone(), prunescope.Report)
    empty.phases = {}
    full, none = getattr(report, name), getattr(empty, name)
    assert full.to_polars().schema == none.to_polars().schema
    assert next(iter(full.columns)) == "phase"
    assert len(none) == 0 and "<table" in full._repr_html_()
    assert [row["phase"] for row in full] == full.to_polars()["phase"].to_list()


def test_to_pandas_where_it_is_not_installed(
    report: prunescope.Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(PrunescopeError, match="pandas is not installed"):
        report.gemms.to_pandas()


def test_to_pandas(report: prunescope.Report) -> None:
    pd = pytest.importorskip("pandas")
    frame = report.gemms.to_pandas()
    assert isinstance(frame, pd.DataFrame) and list(frame.columns) == list(report.gemms.columns)


@pytest.mark.usefixtures("stored_once")
def test_show_prints_what_the_command_prints(
    report: prunescope.Report, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    report.show()
    shown = capsys.readouterr().out
    words = ["analyze", str(RUNS / "tiny-static-nk"), "--json", "/dev/null", "--out", str(tmp_path)]
    assert prunescope.main(words) == 0
    command = capsys.readouterr().out
    assert shown.strip() and shown.strip() in command


def test_save_writes_the_formats(report: prunescope.Report, tmp_path: Path) -> None:
    paths = report.save(tmp_path / "r", formats="md,json,csv,parquet")
    names = {path.name for path in paths}
    assert {"report.md", "report.json", "gemms.csv", "kernels-prefill.parquet"} <= names
    again = prunescope.Report.load(tmp_path / "r" / "report.json")
    assert again.to_dict() == report.to_dict() and repr(again) == repr(report)
    with pytest.raises(PrunescopeError, match="does not carry"):
        again.save(tmp_path / "s", formats=["parquet"])
    with pytest.raises(PrunescopeError, match="unknown format"):
        report.save(tmp_path / "s", formats=["docx"])


def test_load_refuses_what_is_no_report(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(PrunescopeError, match="x.json: object missing required field"):
        prunescope.Report.load(tmp_path / "x.json")


@pytest.mark.parametrize("kind", ["ladder", "ledger", "kinds", "roofline", "bounds", "layers"])
def test_plots_are_figures(report: prunescope.Report, kind: str) -> None:
    from matplotlib.figure import Figure

    figure = getattr(report.plot, kind)("decode")
    assert isinstance(figure, Figure)
    assert figure._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]
    assert any(
        "decode" in text.get_text() for text in figure.findobj(lambda a: hasattr(a, "get_text"))
    )


def test_a_plot_of_nothing_says_so(report: prunescope.Report) -> None:
    with pytest.raises(PrunescopeError, match="no phase 'prefil'"):
        report.plot.ledger("prefil")
    alone = with_fields_of(example.alone(), prunescope.Report)
    with pytest.raises(PrunescopeError, match="no ladder to plot"):
        alone.plot.ladder()


@pytest.mark.usefixtures("stored_once")
def test_compare_gives_the_comparison_of_the_command(
    both: prunescope.Comparison, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    paths, found = [RUNS / "tiny-static-nk", RUNS / "tiny-static-m"], both
    assert len(found.rows) == 4 == len(found.table)
    assert {"run", "phase", "wall_ns"} <= set(found.table.to_polars().columns)
    assert isinstance(found.reports["tiny-static-m"], prunescope.Report)
    assert len(repr(found)) < 100 and "<table" in found._repr_html_()
    target = tmp_path / "c.json"
    assert prunescope.main(["analyze", *map(str, paths), "--json", str(target)]) == 0
    assert json.loads(target.read_text()) == json.loads(json.dumps(found.to_dict()))
    command = capsys.readouterr().out
    found.show()
    assert capsys.readouterr().out.strip() in command
    assert {p.name for p in found.save(tmp_path / "c", formats="md")} == {"comparison.md"}


def test_predict_shows_and_is_the_dict_of_the_command() -> None:
    found = prunescope.predict("tiny-llama", device="h100-sxm", method="static-m", sparsity=0.5)
    assert "tiny-llama" in repr(found) and len(repr(found)) < 300 and found["points"]
    assert found["phases"]["prefill"]["ladder"]["nominal"] == pytest.approx(2.0)
    assert json.dumps(found)
    with pytest.raises(KeyError, match="no phase is called 'decod'; nearest: decode"):
        found["phases"]["decod"]


def test_families_and_devices_are_typed() -> None:
    ids = {family.id for family in prunescope.families()}
    assert {"static-m", "static-nk", "dynamic-m"} <= ids
    assert prunescope.families("tiny-llama")["families"]
    assert all(device.byte_per_s > 0 for device in prunescope.devices())


def test_a_phase_that_is_not_there_names_the_nearest(report: prunescope.Report) -> None:
    with pytest.raises(KeyError, match="no phase is called 'decod'; nearest: decode"):
        report.phases["decod"]
    assert report.phases.get("decod") is None


def test_whatever_has_names_gives_the_nearest(
    report: prunescope.Report, both: prunescope.Comparison
) -> None:
    found = prunescope.predict("tiny-llama", device="h100-sxm", method="static-m", sparsity=0.5)
    phase = next(iter(report.phases.values()))
    for holder, wrong, near in (
        (found, "phase", "phases"),
        (found["phases"]["prefill"], "laddr", "ladder"),
        (phase.busy_by_kind, "gem", "gemm"),
        (report.ledger[0], "phas", "phase"),
        (both.reports, "tiny-static-n", "tiny-static-m"),
        (both.rows[0].ledger or {}, "coverag", "coverage"),
    ):
        with pytest.raises(KeyError, match=f"is called '{wrong}'; nearest: .*{near}"):
            holder[wrong]


def test_a_prediction_is_a_table_a_figure_and_files(tmp_path: Path) -> None:
    found = prunescope.predict(
        model="llama-3.1-8b", device="h100-sxm", method="static-m,static-nk", sparsity="0.25,0.5"
    )
    table = found.to_polars()
    assert table["method"].to_list() == ["static-m"] * 4 + ["static-nk"] * 4
    point = found["points"][0]["phases"]["prefill"]
    assert table["roofline"][0] == point["ladder"]["roofline"]
    assert table["expected"][0] == point["predicted"]["execution"]["speedup"]
    assert len(found.plot.curves().axes) == 2  # a panel a phase
    files = found.save(tmp_path, ["md", "csv", "json", "svg"])
    assert [file.name for file in files] == [
        "prediction.md", "prediction.csv", "prediction.json", "curves.svg",
    ]  # fmt: skip
    assert json.loads(files[2].read_text()) == found
    assert "| static-nk | 0.5 |" in files[0].read_text()
    assert "<table" in found._repr_html_()


@pytest.mark.usefixtures("stored_once")
def test_every_kind_of_prediction_is_a_table() -> None:
    ranking = prunescope.predict(rank=True, model="tiny-llama", device="h100-sxm", prompt_len=64)
    assert set(ranking.to_polars()["phase"]) == {"equal flop", "equal param"}
    of_run = prunescope.predict(from_run=RUNS / "tiny-static-nk", sparsity=0.25)
    assert set(of_run.to_polars()["phase"]) == {"prefill", "decode"}
    assert of_run.to_polars()["expected"].is_not_null().all()
    with pytest.raises(PrunescopeError, match="no curve"):
        ranking.plot.curves()


def test_a_comparison_is_a_frame_and_a_figure(both: prunescope.Comparison) -> None:
    assert both.to_polars().height == len(both.rows)
    assert both.plot.speedups().axes


def test_a_sweep_takes_its_keys_as_a_dict(tmp_path: Path) -> None:
    with pytest.raises(PrunescopeError, match="the sweep has an unknown key 'nonsense'"):
        prunescope.sweep(
            {"model": "tiny-llama", "families": ["static-m"], "nonsense": 1}, out=tmp_path / "a"
        )
    request = SweepRequest({"model": "tiny-llama", "families": ["static-m"]}, out=tmp_path / "b")
    config = plan_of(request).config
    assert (config.model, config.families) == ("tiny-llama", ("static-m",))
