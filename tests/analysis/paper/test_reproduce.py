"""The paper's numbers beside a sweep made by hand, and beside predictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import prunescope
from prunescope.analysis.paper.reproduce import bare, reproduce
from prunescope.analysis.paper.reproduction_figure import reproduction_files
from prunescope.analysis.paper.reproduction_tables import reproduction
from prunescope.analysis.report.sheet import Line
from prunescope.analysis.schema.pareto import Loss, Pareto, RecoveryLoss
from prunescope.analysis.schema.reproduction import ReproducedValue, Reproduction
from prunescope.results.reproduction import reproduce_predicted
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.paper import paper
from tests.analysis.paper.test_paper_figures import at, replays, sweep


def value(found: Reproduction, figure: str, name: str, **more: Any) -> ReproducedValue:
    (one,) = (
        v
        for v in found.values
        if v.figure == figure and v.name == name
        and all(getattr(v, key) == wanted for key, wanted in more.items())
    )  # fmt: skip
    return one


def of(points: list[Any], **subject: Any) -> Pareto:
    return sweep({"prefill": points}, **subject)


@pytest.fixture(scope="module")
def found() -> Reproduction:
    loss = Loss(
        perplexity_rel_recovered=0.5, recovered_ci95=[0.4, 0.6], context=1024, tasks_absolute=0.3
    )
    trained = RecoveryLoss(before_rel=0.9, after_rel=0.5)
    points = [
        at(
            "static-nk",
            1.6,
            batch=1,
            prompt_len=1024,
            set=["align=16"],
            loss=loss,
            recovery=trained,
        ),
        at("static-nk", 1.2, batch=1, prompt_len=1024, set=["align=odd"]),
        at("static-nk", 1.7, batch=1, prompt_len=8192, set=["align=16"], timing_valid=False),
        at("static-nk", 1.8, batch=1, prompt_len=8192, set=["align=16"], only="layer"),
        at("static-nk", 9.0, batch=1, prompt_len=1024, sparsity=0.25, sparsities=[0.25]),
        at("dynamic-m", 9.0, batch=1, prompt_len=1024, set=["choose=threshold"]),
    ]
    return reproduce(of(points), paper(), [replays()])


def test_a_number_stands_beside_the_point_of_its_setting(found: Reproduction) -> None:
    one = value(found, "Fig. 5", "static-nk", phase="prefill", batch=1, prompt_len=1024)
    assert (one.published, one.ours, one.bound, one.timing_valid) == (1.62, 1.6, 1.2, True)
    assert one.ours_ci95 == pytest.approx([1.568, 1.632]) and one.where == "batch 1, 1024 tokens"


def test_the_closest_setting_stands_in_and_is_named(found: Reproduction) -> None:
    one = value(found, "Fig. 5", "static-nk", phase="prefill", batch=1, prompt_len=32768)
    assert (one.ours, one.where, one.timing_valid) == (1.7, "batch 1, 8192 tokens", False)
    assert any("have another batch or length" in note for note in found.notes)
    assert any(note.startswith("? ") for note in found.notes)


def test_other_knobs_and_sparsities_are_not_the_papers(found: Reproduction) -> None:
    one = value(found, "Fig. 5", "dynamic-m", phase="prefill", batch=1, prompt_len=1024)
    assert one.ours is None and one.where is None


def test_a_layer_an_alignment_a_gemm_and_a_perplexity(found: Reproduction) -> None:
    """1.2 at odd sizes over 1.6 at multiples of 16: 0.75, where the paper has .71 / 1.07."""
    assert value(found, "Fig. 6", "static-nk", phase="prefill").ours == 1.8
    odd = value(found, "alignment", "static-nk", at="odd")
    assert (odd.published, odd.ours) == (pytest.approx(0.71 / 1.07), pytest.approx(0.75))
    gemm = value(found, "GEMM steps", "N", at="0.5")
    assert (gemm.ours, gemm.timing_valid) == (2.0, True) and gemm.ours_ci95 is not None
    assert gemm.ours_ci95[0] < 2.0 < gemm.ours_ci95[1]
    assert value(found, "GEMM steps", "K", at="0.5").ours is None
    lost = value(found, "perplexity", "static-nk", sparsity=0.5)
    assert (lost.ours, lost.ours_ci95) == (1.5, [1.4, 1.6])
    assert lost.published == pytest.approx(19.80 / 7.54)
    tasks = value(found, "tasks", "static-nk", sparsity=0.5)
    assert (tasks.published, tasks.ours, tasks.where) == (0.264, 0.3, "tasks of the sweep")


def test_a_gemm_that_was_disturbed_is_no_evidence() -> None:
    """Of two curves of the same sizes, the one with valid times stands beside the paper's."""
    busy, sole = replays(disturbed=["waits"]), {"figure": "GEMM steps", "name": "N", "at": "0.5"}
    points = [at("static-nk", 1.6, batch=1, prompt_len=1024)]
    marked = reproduce(of(points), paper(), [busy])
    assert value(marked, **sole).timing_valid is False
    assert any(note.startswith("? ") for note in marked.notes)
    tables = [part for part in reproduction(marked).parts if not isinstance(part, Line)]
    texts = [cell.text for table in tables for row in table.rows for cell in row]
    assert "2.00 ?" in texts
    assert value(reproduce(of(points), paper(), [busy, replays()]), **sole).timing_valid is True


def test_multiples_of_the_usual_size_stand_for_no_finer_alignment() -> None:
    """7,168 channels at align=2 are those of 16, so that they say nothing of ×2; 7,172 of ×4 do."""
    channels = {"16": 7168, "2": 7168, "4": 7168, "just-4": 7172, "128": 7168, "1": 7167}
    points = [
        at("static-nk", 1.5 + i / 10, set=[f"align={a}"], dimensions={"up": [[n, 4096, 32]]})
        for i, (a, n) in enumerate(channels.items())
    ]
    found = reproduce(of(points), paper())
    ours = {a: value(found, "alignment", "static-nk", at=a).ours for a in ("odd", "2", "8")}
    assert set(ours.values()) == {None}
    assert value(found, "alignment", "static-nk", at="4").ours == pytest.approx(1.8 / 1.5)
    assert value(found, "alignment", "static-nk", at="128").ours == pytest.approx(1.9 / 1.5)


def test_shares_of_the_step(found: Reproduction) -> None:
    shares = [v.ours for v in found.values if v.figure == "Fig. 2" and v.phase == "prefill"]
    assert shares == pytest.approx([0.4, 0.2, 0.1, 0.1, 0.0, 0.2])
    assert value(found, "Fig. 2", "mlp", phase="decode").ours is None


def test_the_time_of_the_whole_step(found: Reproduction) -> None:
    """2.19 s; the dense step of the closest setting takes 10 ms."""
    one = value(found, "Fig. 2, whole step", "dense", phase="prefill")
    assert (one.published, one.ours, one.where) == (2190.0, 10.0, "batch 1, 8192 tokens")
    assert one.timing_valid is False
    assert value(found, "Fig. 2, whole step", "dense", phase="decode").ours is None


def test_the_ends_over_all_settings() -> None:
    """At s = 0.125 alone, of plain points: 0.8 with another knob, and 0.7 at one half, are none."""
    least: dict[str, Any] = {"sparsity": 0.125, "sparsities": [0.125], "prompt_len": 1024}
    points = [
        at("dynamic-m", 0.95, batch=1, **least),
        at("dynamic-m", 0.90, batch=8, timing_valid=False, **least),
        at("dynamic-m", 1.05, batch=16, **least),
        at("dynamic-m", 0.80, batch=32, set=["choose=threshold"], **least),
        at("dynamic-m", 0.70, batch=32, prompt_len=1024),
    ]
    found = reproduce(sweep({"decode": points}), paper())
    low, high = (
        value(found, "Fig. 5, all settings", "dynamic-m", at=end) for end in ("lowest", "highest")
    )
    assert (low.published, low.ours, low.where) == (0.74, 0.9, "batch 8, 1024 tokens")
    assert (low.timing_valid, high.published, high.ours, high.timing_valid) == (
        False, 0.91, 1.05, True,
    )  # fmt: skip
    assert value(found, "Fig. 5, all settings", "static-k-lowrank", at="lowest").ours is None


def test_what_differs_in_set_up() -> None:
    setup = paper().setup
    same = {"model": setup.model, "device": setup.device, "dtype": "bf16",
            "versions": {"torch": setup.torch}, "config": {"repeats": 50}}  # fmt: skip
    how = {"mode": "graph", "logits": "all", "flush": True, "warmup": 10}
    found = reproduce(of([at("static-nk", 1.5, batch=1, prompt_len=1024, **how)], **same), paper())
    names = [one.name for one in found.differences]
    assert names == [
        "draws", "sparsities", "batches", "prompt_lens", "families", "phases", "set", "select",
        "recover", "text", "placements",
    ]  # fmt: skip
    other = reproduce(of([at("static-nk", 1.5)]), paper())
    by_name = {one.name: (one.paper, one.ours) for one in other.differences}
    assert by_name["mode"] == ("graph", "eager") and by_name["flush"] == ("yes", "no")
    assert by_name["torch"] == ("2.9.1", "unknown") and by_name["model"] == (setup.model, "m")


def test_a_sweep_names_what_it_lacks() -> None:
    found = reproduce(of([at("static-nk", 1.5), at("static-nk", 1.5, set=["align=16"])]), paper())
    lacks = {(v.figure, v.name, v.phase, v.sparsity, v.at): v.missing for v in found.values}
    assert lacks["Fig. 5", "static-nk", "prefill", 0.5, None] is None
    assert lacks["Fig. 5", "static-nk", "decode", 0.5, None] == ["phases: decode"]
    both = ["phases: decode", "families: static-m"]
    assert lacks["Fig. 5", "static-m", "decode", 0.5, None] == both
    assert lacks["Fig. 6", "static-nk", "prefill", 0.5, None] == ["only: layer"]
    assert lacks["alignment", "static-nk", "prefill", 0.5, "2"] == ["set: align=just-2"]
    assert lacks["perplexity", "static-nk", None, 0.25, None] == [
        "sparsities: 0.25", "recover: steps=1000,rank=16",
    ]  # fmt: skip
    assert lacks["GEMM steps", "K", None, None, "0.5"] == ["prunescope gemm over K: several --k"]
    assert all((v.ours is None) == bool(v.missing) for v in found.values)
    notes = "\n".join(found.notes)
    assert "Fig. 5: 91 stay empty, the sweep lacks families: static-m (14), " in notes
    assert "phases: decode (49)" in notes and "of 187 published numbers" in notes


def test_a_step_that_runs_other_rows_is_not_compared_with_the_paper() -> None:
    """At batch 1 a graph runs every row; the paper's number is the mean of layers that run and
    layers that are skipped."""
    whole: dict[str, Any] = {"mode": "graph", "batch": 1, "ran": {"rows of mlp": 1.0}}
    points = [at("dynamic-m", 0.99, **whole, only=only) for only in ("model", "layer")]
    found = reproduce(sweep({"decode": points}), paper())
    ours = [v for v in found.values if v.name == "dynamic-m" and v.phase == "decode"]
    assert {v.ours for v in ours} == {None}
    assert {v.missing[0].split(" ")[0] for v in ours if v.missing and v.sparsity == 0.5} == {
        "mode:"
    }


def test_predictions_stand_beside_every_speedup_of_the_model() -> None:
    found = reproduce_predicted()
    speedups = [v for v in found.values if v.figure == "Fig. 5"]
    assert len(speedups) == 98 and all(v.predicted and v.bound for v in speedups)
    errors = sorted(abs(v.predicted / v.published - 1) for v in speedups if v.predicted)
    assert errors[49] < 0.05  # half are within 5 %
    for phase in ("prefill", "decode"):
        step = value(found, "Fig. 2, whole step", "dense", phase=phase)
        assert step.predicted == pytest.approx(step.published, rel=0.15)
    low, high = (
        value(found, "Fig. 5, all settings", "dynamic-m", at=end) for end in ("lowest", "highest")
    )
    assert low.predicted and high.predicted and low.predicted < high.predicted
    others = ("Fig. 2", "Fig. 6", "alignment", "GEMM steps", "perplexity", "tasks")
    assert all(v.predicted is None for v in found.values if v.figure in others)


def test_tables_and_files(found: Reproduction) -> None:
    sheet = reproduction(found)
    titles = [part.title for part in sheet.parts if not isinstance(part, Line)]
    assert titles[:2] == ["What differs in set-up", "Fig. 2: share of the dense step"]
    table = next(p for p in sheet.parts if not isinstance(p, Line) and p.id == "Fig. 5")
    assert "1.70 ?" in {cell.text for row in table.rows for cell in row}
    files = reproduction_files(found, ["csv", "png"])
    assert files["reproduction.png"][:4] == b"\x89PNG"
    assert len(files["reproduction.csv"].splitlines()) == 1 + len(bare(paper()).values)


def test_the_command_without_a_sweep(tmp_path: Path) -> None:
    target = tmp_path / "found.json"
    assert prunescope.main(["reproduce", "--against", "paper", "--json", str(target)]) == 0
    plain = json.loads(target.read_text("utf-8"))
    assert plain["schema"] == 1 and len(plain["values"]) == 190 and plain["against"] == "paper"


def test_the_python_function_gives_what_the_command_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = prunescope.reproduce()
    assert prunescope.main(["reproduce", "--against", "paper", "--json", "-"]) == 0
    assert made.to_dict() == json.loads(capsys.readouterr().out)
    assert made.to_polars().height == len(made.values)
    assert {"figure", "published", "predicted", "bound"} <= set(made.to_polars().columns)
    assert "Fig. 5" in made._repr_html_() and "predicted>" in repr(made)
    names = [path.name for path in made.save(tmp_path, formats="csv,json")]
    assert names == ["reproduction.csv", "reproduction.json"]
    assert json.loads((tmp_path / "reproduction.json").read_bytes()) == made.to_dict()
    with pytest.raises(PrunescopeError, match="against is 'peers'"):
        prunescope.reproduce(against="peers")
    with pytest.raises(PrunescopeError, match="md"):
        made.save(tmp_path, formats=["md"])
