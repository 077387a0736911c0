"""A sweep's folder judged: points from sweep.json and its runs, and what is wrong with a folder."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest

import prunescope
from prunescope.analysis.pareto import pareto
from prunescope.analysis.pareto.points import recovery_loss
from prunescope.analysis.pipeline import Analysis
from prunescope.analysis.schema.sides import Totals
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import plain, read
from prunescope.taxonomy.runs.run import PhaseRun, Placement, Run
from prunescope.taxonomy.runs.run_blocks import HeldOut, Losses, Pruning, Recovered, TimingNote
from prunescope.taxonomy.runs.run_quality import Quality
from prunescope.taxonomy.runs.sweep_files import ControlLosses
from tests.analysis.paper.test_paper_figures import replays
from tests.analysis.pareto_points import MS
from tests.analysis.report import example


def run_json(
    placements: int = 0,
    notes: list[str] | None = None,
    *,
    batch: int = 1,
    prompt_len: int = 512,
    **quality: Any,
) -> str:
    """The least manifest that the analysis reads."""
    entry = PhaseRun(
        batch=batch, prompt_len=prompt_len, positions=[0, 512], context=512, logits="last",
        cache="dynamic", attention="sdpa", mode="eager", steps=5, tokens_per_step=512, warmup=3,
        placements=[Placement(samples=1, steps=1)] * placements,
    )  # fmt: skip
    run = Run(
        variant="pruned", model={"id": "m"}, phases={"prefill": entry, "decode": entry},
        dtype="bf16", device={"threads": 2}, versions={}, seeds={}, argv=["sweep", "s.yaml"],
        quality=read(Quality, quality) if quality else None,
        timing=None if notes is None else TimingNote(notes=notes),
    )  # fmt: skip
    return run.to_json()


def sweep_folder(folder: Path, *entries: dict[str, Any], schema: int = 1) -> Path:
    """A sweep.json with these entries and a manifest for each that is done."""
    results = []
    for number, entry in enumerate(entries):
        full = {
            "id": f"r{number}", "family": "static-nk", "sparsity": 0.25, "phase": "prefill",
            "batch": 1, "prompt_len": 512, "draw": 0, "state": "done", "error": None,
            "run": f"runs/r{number}/pruned", **entry,
        }  # fmt: skip
        results.append(full)
        if full["state"] == "done":
            place = folder / "runs" / f"r{number}" / "pruned"
            place.mkdir(parents=True)
            text = run_json(
                batch=full["batch"], prompt_len=full["prompt_len"],
                perplexity_rel=0.2, perplexity_rel_ci95=[0.15, 0.25], kl=0.3, agreement=0.8,
                perplexity=12.0, dense_perplexity=10.0, text={"source": "t", "tokens": 9},
            )  # fmt: skip
            (place / "run.json").write_text(text)
    folder.mkdir(exist_ok=True)
    (folder / "sweep.json").write_text(json.dumps({"schema": schema, "results": results}))
    return folder


def dense_side(unprofiled: Any) -> Totals:
    """The dense baseline of a phase: 70 % memory-bound."""
    phase = example.phase()
    same = {name: getattr(phase, name) for name in Totals.__struct_fields__ if hasattr(phase, name)}
    bound = {"compute": 30.0, "memory": 70.0}
    return Totals(**{**same, "unprofiled_ns": unprofiled, "bound": bound})


@pytest.fixture
def analysed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run gives the report built by hand: 1.157x [1.14, 1.17] of bounds 1.25, 1.23, 1.21."""
    report = example.two_phases()
    unprofiled = example.phase().unprofiled_ns
    for phase in report.phases.values():
        phase.baseline = dense_side(unprofiled)
    monkeypatch.setattr(pareto, "analyze", lambda _: Analysis(report))


@pytest.mark.usefixtures("analysed")
def test_a_point_carries_what_the_report_and_the_quality_say(tmp_path: Path) -> None:
    folder = sweep_folder(
        tmp_path / "s", {}, {"state": "failed", "error": "why", "run": None},
        {"state": "pending", "run": None},
    )  # fmt: skip
    found = msgspec.to_builtins(pareto.judge(folder))
    assert found["schema"] == 1
    assert found["failed"] == [{"id": "r1", "error": "why"}]
    assert found["subject"]["command"] == "prunescope sweep s.yaml"
    assert found["pending"] == 1
    (one,) = found["phases"]["prefill"]["points"]
    assert one["id"] == "r0"
    assert one["realised"] == pytest.approx(140 / 121)
    assert one["realised_ci95"] == [1.14, 1.17]
    assert one["bounds"] == {"flop": 1.25, "coverage": 1.23, "roofline": 1.21}
    assert one["shares"]["roofline"] == pytest.approx(140 / 121 / 1.21)
    assert one["loss"]["perplexity_rel"] == 0.2
    assert one["loss"]["ci95"] == [0.15, 0.25]
    assert one["loss"]["kl"] == 0.3
    assert one["flop_sparsity"] == 0.201
    assert one["memory_bound"] == 0.7
    assert one["on_frontier"]
    assert found["phases"]["prefill"]["break_even"] == {"static-nk": 0.25}


@pytest.mark.usefixtures("analysed")
def test_points_are_compared_inside_their_batch_and_length_alone(tmp_path: Path) -> None:
    folder = sweep_folder(tmp_path / "s", {}, {"batch": 8}, {"prompt_len": 64})
    phase = pareto.judge(folder).phases["prefill"]
    assert [(c.batch, c.prompt_len) for c in phase.cells] == [(1, 64), (1, 512), (8, 512)]
    assert all(p.on_frontier for p in phase.points)


@pytest.mark.usefixtures("analysed")
@pytest.mark.parametrize(
    ("planned", "found"),
    [
        ({"batch": 8}, "batch 8, and its run has 1"),
        ({"warmup": 0}, "warmup 0, and its run has 3"),
        ({"attn": "eager"}, "attn eager, and its run has sdpa"),
        ({"prompt_len": 64}, "prompt_len 64, and its run has 512"),
        ({"mode": "graph"}, "mode graph, and its run has eager"),
        ({"logits": "all"}, "logits all, and its run has last"),
        ({"only": "layer"}, "only layer, and its run has model"),
        ({"flush": True}, "flush True, and its run has False"),
        ({"sparsity": 0.9}, "sparsity 0.9, and its run has 0.25"),
        ({"family": "static-m"}, "family static-m, and its run has static-nk"),
    ],
)
def test_a_result_that_its_run_contradicts_is_no_point(
    tmp_path: Path, planned: dict[str, Any], found: str
) -> None:
    folder = sweep_folder(tmp_path / "s", {}, planned)
    for name in ("r0", "r1"):
        path = folder / "runs" / name / "pruned" / "run.json"
        run = Run.from_json(run_json())
        run.pruning = Pruning(method="static-nk", sparsity=0.25)
        path.write_text(run.to_json())
    judged = pareto.judge(folder)
    assert [point.id for point in judged.phases["prefill"].points] == ["r0"]
    assert [(one.id, one.error) for one in judged.failed] == [("r1", f"r1 is planned with {found}")]


@pytest.mark.usefixtures("analysed")
def test_a_function_has_the_name_that_the_sweep_gives(tmp_path: Path) -> None:
    """A composite states no sparsity, and a function is called as its module is."""
    folder = sweep_folder(tmp_path / "s", {"family": "other:prune"})
    path = folder / "runs" / "r0" / "pruned" / "run.json"
    run = Run.from_json(path.read_bytes())
    run.pruning = Pruning(method="mine:prune", sparsity=None)
    path.write_text(run.to_json())
    assert not pareto.judge(folder).failed


def test_drift_of_the_dense_model_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dense model took 10, 11 and 12 ms: its median 11, a spread of 2/11."""
    times = iter((10.0, 11.0, 12.0))

    def analysed(_: Path) -> Analysis:
        report = example.two_phases()
        unprofiled = msgspec.structs.replace(example.phase().unprofiled_ns, median=next(times) * MS)
        for phase in report.phases.values():
            phase.baseline = dense_side(unprofiled)
        return Analysis(report)

    monkeypatch.setattr(pareto, "analyze", analysed)
    found = pareto.judge(sweep_folder(tmp_path / "s", {}, {"sparsity": 0.5}, {"sparsity": 0.1}))
    (cell,) = found.phases["prefill"].cells
    assert cell.dense_ns == pytest.approx(
        {"median": 11 * MS, "low": 10 * MS, "high": 12 * MS, "spread": 2 / 11}
    )
    assert any("spread by up to 18.2 % within a cell" in line for line in found.summary)


@pytest.mark.usefixtures("analysed")
def test_a_run_without_quality_has_no_loss_and_no_place(tmp_path: Path) -> None:
    folder = sweep_folder(tmp_path / "s", {})
    (folder / "runs" / "r0" / "pruned" / "run.json").write_text(run_json())
    (one,) = pareto.judge(folder).phases["prefill"].points
    assert one.loss is None
    assert not one.on_frontier


@pytest.mark.usefixtures("analysed")
@pytest.mark.parametrize(("placements", "said"), [(0, 1), (8, 0)])
def test_a_high_load_average_marks_results_of_older_runs_alone(
    placements: int, said: int, tmp_path: Path
) -> None:
    """Where placements were timed, what ran beside each sample was measured."""
    folder = sweep_folder(tmp_path / "s", {})
    text = run_json(placements, notes=["load average 9.0 on 2 cores: timing not valid"])
    (folder / "runs" / "r0" / "pruned" / "run.json").write_text(text)
    notes = pareto.judge(folder).notes
    assert [note.partition(" were")[0] for note in notes] == ["1 of 1 results"] * said


@pytest.mark.usefixtures("analysed")
@pytest.mark.parametrize(
    ("keys", "value"),
    [(("quality", "perplexity_rel"), "0.2"), (("quality", "perplexity_rel_ci95"), [0.1]),
     (("quality", "other_text"), {"kl": []}), (("quality", "text"), 5),
     (("quality", "tasks_change"), {"signed_ci95": [1, "x"]}),
     (("pruning", "recovery"), {"routers": 5}),
     (("pruning", "recovery"), {"routers": [{"trained": "all"}]})],
)  # fmt: skip
def test_a_loss_that_is_none_is_a_result_that_failed(
    tmp_path: Path, keys: tuple[str, str], value: Any
) -> None:
    folder = sweep_folder(tmp_path / "s", {}, {"sparsity": 0.5})
    path = folder / "runs" / "r0" / "pruned" / "run.json"
    plain = json.loads(path.read_text())
    plain[keys[0]] = {**(plain.get(keys[0]) or {}), keys[1]: value}
    path.write_text(json.dumps(plain))
    found = pareto.judge(folder)
    (failed,) = found.failed
    assert (failed.id, ".".join(keys) in failed.error) == ("r0", True)
    assert [p.id for p in found.phases["prefill"].points] == ["r1"]


@pytest.mark.usefixtures("analysed")
@pytest.mark.parametrize("run", ["../outside/pruned", "/etc", "runs/../../x", "."])
def test_a_run_outside_the_sweep_is_not_read(tmp_path: Path, run: str) -> None:
    (tmp_path / "outside" / "pruned").mkdir(parents=True)
    (tmp_path / "outside" / "pruned" / "run.json").write_text(run_json())
    folder = sweep_folder(tmp_path / "s", {}, {"id": "bad", "run": run})
    found = pareto.judge(folder)
    assert [f.id for f in found.failed] == ["bad"]


def test_bad_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(PrunescopeError, match=r"no sweep\.json"):
        pareto.judge(tmp_path)
    with pytest.raises(PrunescopeError, match="no result that is done"):
        pareto.judge(sweep_folder(tmp_path / "a", {"state": "pending", "run": None}))
    unread = sweep_folder(tmp_path / "d", {})
    manifest = next(unread.glob("runs/*/pruned/run.json"))
    manifest.write_text(manifest.read_text().replace('"schema"', '"schema": 1, "schema"', 1))
    with pytest.raises(
        PrunescopeError, match=r"done \(r0: pruned/run\.json has the key 'schema' twice"
    ):
        pareto.judge(unread)
    with pytest.raises(PrunescopeError, match="schema 2"):
        pareto.judge(sweep_folder(tmp_path / "b", {}, schema=2))
    with pytest.raises(PrunescopeError, match="sweep.json: results.0.phase: invalid enum value"):
        pareto.judge(sweep_folder(tmp_path / "c", {"phase": "../../x"}))
    (tmp_path / "a" / "sweep.json").write_bytes(b'{"schema": 1, "results"')
    with pytest.raises(PrunescopeError, match="sweep.json is not JSON"):
        pareto.judge(tmp_path / "a")


def trained(
    before: float, after: float, text: str = "t", *, blocks: tuple[float, ...] = ()
) -> Recovered:
    """`blocks`: by how much the loss of each differs from the mean; of 100 tokens each."""
    held_out = HeldOut(
        before=before,
        after=after,
        tokens=2048,
        block_tokens=[100] * len(blocks),
        before_by_block=[before + more for more in blocks],
        after_by_block=[after + more for more in blocks],
    )
    return Recovered(steps=3, eval_sha256=text, losses=Losses(held_out=held_out))


@pytest.mark.usefixtures("analysed")
def test_recovery_is_held_against_the_dense_model_trained_alike(tmp_path: Path) -> None:
    """Untrained e^(2.5 - 2.0) - 1 worse than dense, trained alike e^(2.1 - 1.9) - 1."""
    folder = sweep_folder(tmp_path / "s", {}, {"draw": 1, "family": "static-m"})
    for name, text, method in (("r0", "t", "static-nk"), ("r1", "another", "static-m")):
        path = folder / "runs" / name / "pruned" / "run.json"
        run = Run.from_json(path.read_bytes())
        run.pruning = Pruning(method=method, recovery=trained(2.5, 2.1, text))
        path.write_text(run.to_json())
    (folder / "quality").mkdir()
    control = ControlLosses(of="x", recovery=trained(2.0, 1.9), nats={"text": [2.0]})
    (folder / "quality/control-prefill.json").write_bytes(msgspec.json.encode(plain(control)))
    (folder / "quality/control-decode.json").write_text("{damaged")
    one, other = pareto.judge(folder).phases["prefill"].points
    assert one.recovery is not None and other.recovery is None
    assert one.recovery.before_rel == pytest.approx(math.expm1(0.5))
    assert one.recovery.after_rel == pytest.approx(math.expm1(0.2))
    assert one.recovery.tokens == 2048
    assert (one.recovery.before_ci95, one.recovery.after_ci95) == (None, None)  # of no block


def test_held_out_losses_have_an_interval_over_blocks() -> None:
    """Blocks that are hard for both models are no spread of their difference; one block has none.
    Of blocks at 0.5 ± 0.1 nats apart, 4 of each sign, no sample of 8 leaves [0.4, 0.6], and the
    mean of 8 has a deviation of 0.1/√8: 95 % within 0.5 ± 2·0.035."""
    up = (0.1, -0.1) * 4
    control = trained(2.0, 1.9, blocks=(0.0,) * 8)
    found = recovery_loss(trained(2.5, 2.1, blocks=up), [control])
    assert found is not None and found.blocks == 8
    low, high = found.before_ci95 or (0.0, 0.0)
    assert math.log1p(low) == pytest.approx(0.5 - 0.07, abs=0.02)
    assert math.log1p(high) == pytest.approx(0.5 + 0.07, abs=0.02)
    assert found.after_ci95 is not None and found.after_ci95[0] < found.after_rel
    both = recovery_loss(trained(2.5, 2.1, blocks=up), [trained(2.0, 1.9, blocks=up)])
    assert both is not None
    assert both.before_ci95 == pytest.approx([math.expm1(0.5)] * 2)
    single = recovery_loss(trained(2.5, 2.1, blocks=(0.0,)), [trained(2.0, 1.9, blocks=(0.0,))])
    assert single is not None and single.after_ci95 is None
    other = recovery_loss(trained(2.5, 2.1, blocks=up), [trained(2.0, 1.9, blocks=(0.0,) * 7)])
    assert other is not None and other.after_ci95 is None and other.blocks is None


@pytest.mark.usefixtures("analysed")
def test_the_papers_figures_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """GEMMs that were replayed of a run are found; what the sweep lacks is said, with its key."""
    folder, out = sweep_folder(tmp_path / "s", {}), tmp_path / "out"
    for name in ("runs/r0/gemms.json", "gemms-n.json"):
        (folder / name).write_bytes(msgspec.json.encode(plain(replays())))
    assert prunescope.main(["pareto", str(folder), "--figures", "paper", "--out", str(out)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "not plotted: layer: no result is of one layer alone; add `only: [model, layer]`" in said
    assert "not plotted: gemms" not in said
    drawn = {path.stem for path in out.glob("paper-*.png")}
    assert drawn == {"paper-speedup-0.25", "paper-gemms"}
    assert {path.stem for path in out.glob("paper-*.pdf")} == drawn
    assert len((out / "paper-gemms.csv").read_text("utf-8").splitlines()) == 1 + 2 * 5
    assert prunescope.main(["pareto", str(folder), "--gemm", "x.json"]) == 2
    found = prunescope.pareto(folder)
    saved = found.save(tmp_path / "again", ["svg"], figures="paper")
    assert any(path.name == "paper-speedup-0.25.svg" for path in saved)
    with pytest.raises(PrunescopeError, match='accepted: "paper"'):
        found.save(tmp_path / "again", figures="other")
