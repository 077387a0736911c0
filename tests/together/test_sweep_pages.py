"""Pages of sweeps follow from the JSON beside them: numbers, frontier, shares and claims."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
SWEEPS = ("sweep", "recovery-smollm2", "recovery-smollm2-between", "recovery-gemma3",
          "recovery-batches", "recovery-long", "recovery-longer")  # fmt: skip


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The benchmarks where imports find them."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield
    for name in ("sweep", "contexts", "sizes", "allocate_page"):
        sys.modules.pop(name, None)


def test_every_page_of_a_sweep_has_its_json() -> None:
    """A page that `sweep.py` wrote names its JSON; every recovery page is one of them or below."""
    pages = {p.stem for p in BENCHMARKS.glob("recovery*.md")} | {"sweep", "sizes"}
    assert pages == {*SWEEPS, "recovery-contexts", "sizes"}
    assert all((BENCHMARKS / f"{name}.json").is_file() for name in pages)


@pytest.mark.usefixtures("scripts")
@pytest.mark.parametrize("name", SWEEPS)
def test_a_page_is_rebuilt_from_its_points(name: str) -> None:
    """Only points and times of the dense model are taken from the JSON; the rest is compared."""
    import sweep  # type: ignore[import-not-found]

    from prunescope.analysis.pareto.cells import recompute

    path = BENCHMARKS / f"{name}.json"
    stored = sweep.read(path)
    bare = sweep.read(path)
    bare.hypotheses, bare.summary, bare.samples = [], [], None
    for phase in bare.phases.values():
        phase.winners, phase.break_even = [], {}
        for cell in phase.cells:
            cell.winners, cell.equal_flops, cell.equal_sparsity = [], [], []
        for point in phase.points:
            point.on_frontier, point.frontier_share, point.equal_to = False, None, []
    new = recompute(bare)
    assert new.summary == stored.summary
    assert sweep.text(new, name) == path.with_suffix(".md").read_text(encoding="utf-8")
    assert sweep.stored(new) == path.read_bytes()


def test_the_json_of_every_page_has_the_same_keys() -> None:
    """Of a page without claims, notes or failures too."""
    found = [json.loads((BENCHMARKS / f"{name}.json").read_bytes()) for name in SWEEPS]
    for one in found[1:]:
        assert list(one) == list(found[0])
        assert {tuple(phase) for phase in one["phases"].values()} == {
            tuple(phase) for phase in found[0]["phases"].values()
        }


@pytest.mark.usefixtures("scripts")
def test_losses_that_were_scored_again_take_the_place_of_older_ones() -> None:
    """Those of the point's own phase; after a training the loss stays."""
    import sweep

    found = sweep.read(BENCHMARKS / "sweep.json")
    found.scored_again = []
    first = found.phases["decode"].points[0]
    new = {"perplexity_rel": 2.0, "perplexity_rel_ci95": [1.9, 2.1], "scoring": "decode"}
    sweep.rescore(found, {first.id: {**new, "phase": "prefill"}})
    assert first.loss.perplexity_rel == 0.444
    sweep.rescore(found, {first.id: {**new, "phase": "decode"}})
    assert (first.loss.perplexity_rel, first.loss.ci95) == (2.0, [1.9, 2.1])
    (again,) = found.scored_again
    assert (again.phase, again.before, again.now) == ("decode", 0.444, 2.0)
    assert "| static-m | 0.125 | – | – | +44.4 % | +200.0 % |" in sweep.text(found, "sweep")
    # The first loss stays the one before, however often it is scored again.
    sweep.rescore(found, {first.id: {**new, "phase": "decode", "perplexity_rel": 0.1}})
    (again,) = found.scored_again
    assert (again.before, again.now) == (0.444, 0.1)
    assert any("static-m 0.125 came" in line for line in found.moved)
    trained = sweep.read(BENCHMARKS / "recovery-smollm2.json")
    first = trained.phases["decode"].points[0]
    sweep.rescore(trained, {first.id: {**new, "phase": "decode"}})
    assert first.loss.perplexity_rel != 2.0


@pytest.mark.usefixtures("scripts")
@pytest.mark.parametrize(("script", "name"), [("contexts", "recovery-contexts"),
                                              ("sizes", "sizes")])  # fmt: skip
def test_pages_of_other_scripts_are_rebuilt_too(script: str, name: str) -> None:
    module: ModuleType = __import__(script)
    path = BENCHMARKS / f"{name}.json"
    found = module.read(path)
    assert module.text(found) == path.with_suffix(".md").read_text(encoding="utf-8")
    assert module.stored(found) == path.read_bytes()


@pytest.mark.usefixtures("scripts")
def test_no_change_of_order_says_how_many_pairs_and_how_far_apart() -> None:
    """Two pairs of equal errors e: the gap g with (Φ(g/e − 1.96))² = 0.8, and Φ(1.2504) = √0.8:
    g = 3.210 e; a change that is larger than noise in both sizes is named."""
    import numpy as np
    import sizes  # type: ignore[import-not-found]

    error = 0.01
    assert sizes._least_gap(error, error) == pytest.approx(3.2104 * error, rel=1e-3)

    def family(measured: float) -> object:
        spread = np.exp(1.96 * error)
        return sizes.Family(
            measured=measured, ci95=(measured / spread, measured * spread), predicted=measured,
            expected=(1.0, 2.0), valid=True,
        )  # fmt: skip

    near, swapped = {"a": family(1.2), "b": family(1.19)}, {"a": family(1.19), "b": family(1.2)}
    far = {"a": family(1.1), "b": family(1.2)}
    (told,) = sizes._moves("prefill", *(size("s", own) for own in (near, swapped)))
    assert "no change of order could be shown (1 pair; half of them would have to be 5 %" in told
    (told,) = sizes._moves("prefill", size("s", far), size("t", {"a": family(1.3), **_b(far)}))
    assert told == "- from s to t: b before a turns round (predicted)."


@pytest.mark.usefixtures("scripts")
def test_a_plan_is_held_against_the_best_family_at_its_speed() -> None:
    """At 1.25×, half way between dense (3 nats) and 1.5× (4 nats): 3.5; the plan has 3.3. A family
    that is slower than the plan is no choice, and speeds without width leave the difference of the
    blocks alone, which is the same in each."""
    import allocate_page as page  # type: ignore[import-not-found]

    def variant(name: str, nats: float, speed: float | None, family: str | None = None) -> object:
        blocks = {"text": [nats - 0.5, nats + 0.5, nats, nats]}
        known = page.Speed(realised=speed or 1.0, ci95=(speed or 1.0,) * 2, valid=True)
        return page.Variant(
            name=name, family=family, sparsity=0.5 if family else None,
            speeds={"prefill": known} if speed else {}, nats={"before": blocks, "after": blocks},
        )  # fmt: skip

    target = page.Target(phase="prefill", speedup=1.25, variant="plan", expected=1.3,
                         range=(1.2, 1.4), summed=0.2, kept="all")  # fmt: skip
    dense, plan = variant("dense", 3.0, None), variant("plan", 3.3, 1.25)
    fast, slow = variant("a", 4.0, 1.5, "fast"), variant("b", 3.1, 1.2, "slow")
    one = page.Measured(model="m", machine="here", setting="", texts={"text": "prose"}, ended="",
                        targets=[target], variants=[dense, plan, fast, slow])  # fmt: skip
    by_name = {v.name: v for v in one.variants}
    doubtful = variant("c", 3.2, 1.3, "disturbed")
    doubtful.speeds["prefill"].valid = False  # type: ignore[attr-defined]
    one.variants.append(doubtful)  # it would lose 3.17 nats at 1.25x
    found = page.best_family(one, by_name, target, "text", "before")
    assert found == ("fast", pytest.approx(3.5), pytest.approx(-0.2), pytest.approx(-0.2))
    shown = page.text(page.Published(models=[one]))
    assert (
        "| 1.25× prefill | 1.30× (1.20 to 1.40) | 1.25× [1.25×, 1.25×] | yes | +22.1 % | all |"
        in shown
    )
    assert "- On prose, without training: less is lost by 1 of 1 plans, more by 0; 0 are" in shown
    assert "| fast | +64.9 % | −0.200 [−0.200, −0.200] | loses less |" in shown
    assert "1.30× ? [1.30×, 1.30×]" in shown and page.UNKNOWN in shown
    again = page.Published(models=[one])
    assert page.stored(page.msgspec.json.decode(page.stored(again), type=page.Published)) == (
        page.stored(again)
    )


def size(name: str, families: dict[str, object]) -> object:
    import sizes

    return sizes.Size(name=name, machine="m", sparsity=0.25, phases={"prefill": families})


def _b(families: dict[str, object]) -> dict[str, object]:
    return {"b": families["b"]}


def test_the_index_says_in_what_losses_were_read() -> None:
    index = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    rows = {line.split("]")[0]: line for line in index.splitlines() if line.startswith("| [")}
    for name in ("recovery-long", "recovery-longer"):
        assert "read in windows of 1,024 tokens" in rows[f"| [{name}.md"]
        page = (BENCHMARKS / f"{name}.md").read_text(encoding="utf-8")
        assert "Not measured: the loss after prompts of" in page
    assert "length and text are confounded" in rows["| [recovery-contexts.md"]
    contexts = (BENCHMARKS / "recovery-contexts.md").read_text(encoding="utf-8")
    assert "Length and text are confounded" in contexts
