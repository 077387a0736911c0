"""Plans of `allocate` against the families that cut all layers alike: speed and loss, measured.

    python benchmarks/allocate.py dense  --model FOLDER --work FOLDER   # nothing else running
    python benchmarks/allocate.py plans  --model FOLDER --work FOLDER
    python benchmarks/allocate.py losses --model FOLDER --work FOLDER --other-text FILE
    python benchmarks/allocate.py times  --model FOLDER --work FOLDER   # nothing else running
    python benchmarks/allocate_page.py FOLDER...                        # the page

Each stage goes on where it was, and ends after `--seconds` with exit code 3 where work is left.
`dense` traces the dense model and `plans` makes a plan for each target from that run. `losses`
scores plans, families and the dense model on two texts, then trains each alike and scores it again.
`times` measures all of them against the dense model, both taking turns.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import prunescope
from prunescope.taxonomy.allocations.allocation_plan import read_plan
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import changed
from prunescope.taxonomy.runs.run import read_run
from prunescope.taxonomy.runs.run_quality import BLOCK
from prunescope.tracer.recovery.settings import read_recovery

TARGETS = (("prefill", 1.2), ("prefill", 1.4), ("prefill", 1.7), ("decode", 1.2), ("decode", 1.4))
WIDTHS = ("static-nk", "static-nk-mlp")
DEPTH = "static-m"
SPARSITIES = (0.2, 0.35, 0.5)
DENSE = "dense"
_LEFT = 3  # exit code where work is left


@dataclass(frozen=True)
class Variant:
    """A model to measure: a plan, or a family at a sparsity."""

    name: str
    method: str
    sparsity: float | None = None
    knobs: tuple[tuple[str, str], ...] = ()
    select: str = "random"
    phases: tuple[str, ...] = ("prefill", "decode")


@dataclass
class Stage:
    """A call of the command line, and when it ends."""

    asked: argparse.Namespace
    begun: float

    @property
    def over(self) -> bool:
        """Whether nothing more may begin."""
        return time.monotonic() - self.begun > self.asked.seconds

    @property
    def work(self) -> Path:
        """The folder of everything."""
        return Path(self.asked.work)

    def request(self, one: Variant, **options: Any) -> Any:
        """The capture of a variant."""
        from prunescope.tracer.sweep.plan import SweptRequest

        chosen = {} if one.sparsity is None else {"sparsity": one.sparsity, "select": one.select}
        return SweptRequest(
            self.asked.model,
            method=one.method,
            knobs=dict(one.knobs),
            prompt_len=self.asked.prompt_len,
            decode_steps=self.asked.decode_steps,
            repeats=self.asked.repeats,
            placements=self.asked.placements,
            max_placements=self.asked.placements,
            steps=2,
            threads=self.asked.threads,
            **chosen,
            **options,
        )


def main() -> int:
    """Run the stage that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("stage", choices=list(STAGES))
    parser.add_argument("--model", required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder of runs, plans and losses")
    parser.add_argument("--text", type=Path, help="the text that plans measure losses on")
    parser.add_argument("--other-text", type=Path, help="a second text to judge on")
    parser.add_argument("--tokens", type=int, default=2048, help="of each text that judges")
    parser.add_argument("--recover", default="steps=100,batch=1,length=64")
    parser.add_argument("--prompt-len", type=int, default=256)
    parser.add_argument("--decode-steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--placements", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=450, help="after which nothing begins")
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    return STAGES[asked.stage](Stage(asked, time.monotonic()))


def dense(stage: Stage) -> int:
    """Trace the dense model."""
    asked = stage.asked
    if not (stage.work / "dense").exists():
        prunescope.trace(
            asked.model, prompt_len=asked.prompt_len, threads=asked.threads, steps=4,
            repeats=asked.repeats, placements=asked.placements,
            max_placements=asked.placements, out=stage.work / "dense",
        )  # fmt: skip
    return 0


def plan_path(work: Path, phase: str, speedup: float) -> Path:
    """The plan of a target."""
    return work / f"{phase}-{speedup:g}.json"


def plans(stage: Stage) -> int:
    """A plan for each target, or why there is none. They share the losses of the first."""
    first: Path | None = None
    for phase, speedup in TARGETS:
        path = plan_path(stage.work, phase, speedup)
        refused, losses = path.with_suffix(".refused"), path.with_suffix(".losses.json")
        if path.exists() or refused.exists():
            first = first or (losses if losses.exists() else None)
            continue
        if stage.over:
            return _LEFT
        if first is not None and not losses.exists():
            losses.write_bytes(first.read_bytes())
        try:
            prunescope.allocate(
                stage.asked.model, from_run=stage.work / "dense", speedup=speedup, phase=phase,
                out=path, text=stage.asked.text,
            )  # fmt: skip
            first = first or losses
        except PrunescopeError as error:
            refused.write_text(f"{error.problem}; {error.hint}", encoding="utf-8")
        _say(f"{phase} {speedup:g}: {'refused' if refused.exists() else 'planned'}")
    return 0


def by_loss(work: Path) -> list[int]:
    """The layers, those first whose removal alone loses least: what the plans know too."""
    for phase, speedup in TARGETS:
        path = plan_path(work, phase, speedup).with_suffix(".losses.json")
        if path.exists():
            removed = json.loads(path.read_bytes())["removed"]
            alone = {key: nats for key, nats in removed.items() if key.endswith(" layer 0")}
            worst = max(nats for nats in alone.values() if nats is not None)
            loss_of = {int(key.split()[0]): nats or worst for key, nats in alone.items()}
            return sorted(loss_of, key=loss_of.__getitem__)
    return []  # until the first plan is made


def variants(work: Path) -> list[Variant]:
    """All plans and families; of static depth those layers go whose removal alone loses least."""
    found = []
    for sparsity in SPARSITIES:
        for family in WIDTHS:
            name = f"{family}-{sparsity:g}"
            found.append(Variant(name, family, sparsity, select="importance"))
    order = by_loss(work)
    for sparsity in SPARSITIES if order else ():
        removed = order[: int(len(order) * sparsity)]
        knobs = (("layers", ",".join(map(str, sorted(removed)))),)
        found.append(Variant(f"{DEPTH}-{sparsity:g}", DEPTH, sparsity, knobs))
    for phase, speedup in TARGETS:
        path = plan_path(work, phase, speedup)
        if path.exists():
            found.append(Variant(path.stem, str(path), phases=(phase,)))
    return found


def losses(stage: Stage) -> int:
    """Nats a token of every variant on both texts, before and after the same training."""
    from prunescope.tracer.calibration.collect import statistics_cached
    from prunescope.tracer.machine.device import thread_count

    with thread_count(stage.asked.threads), statistics_cached({}):
        scorer = Scorer(stage)
        scorer.say_texts()
        for one in (Variant(DENSE, ""), *variants(stage.work)):
            if not scorer.score(one):
                return _LEFT
    return 0


class Scorer:
    """Scores variants; keeps the dense model and the texts."""

    def __init__(self, stage: Stage) -> None:
        from prunescope.tracer.machine.device import pick_device
        from prunescope.tracer.model.load import load_model, load_tokenizer
        from prunescope.tracer.quality.quality import text_passage

        self.stage = stage
        self.loaded = load_model(
            stage.asked.model, dtype="auto", device=pick_device("cpu"), attn="sdpa"
        )
        texts = {"text": None, "other": stage.asked.other_text}
        self.passages = {
            name: text_passage(
                load_tokenizer(self.loaded),
                path,
                vocabulary=self.loaded.model.get_input_embeddings().num_embeddings,
                longest=None,
                seed=0,
                tokens=stage.asked.tokens,
            )
            for name, path in texts.items()
            if name == "text" or path is not None
        }

    def say_texts(self) -> None:
        """Keep what the page says of texts and training."""
        asked, passages = self.stage.asked, self.passages
        shown = {name: str(passage.record.source) for name, passage in passages.items()}
        text = (
            f"Losses: {asked.tokens:,} tokens of each text, intervals over blocks of {BLOCK}; "
            f"trained alike, the dense model too: {asked.recover}."
        )
        _write(self.stage.work / "texts.json", {"texts": shown, "said": text})

    def score(self, one: Variant) -> bool:
        """Score what is missing of a variant; False where the time was over before."""
        path = self.stage.work / "losses" / f"{one.name}.json"
        found = json.loads(path.read_bytes()) if path.exists() else {}
        wanted = read_recovery(self.stage.asked.recover)
        names = ["before"] + ["after"] * (wanted is not None)
        if all(name in found for name in names):
            return True
        if self.stage.over:
            return False
        loaded, before = self._pruned(one)
        if "before" not in found:
            found["before"] = self._blocks(loaded.model)
            _write(path, found)
        if wanted is not None:
            self._train(one, loaded, before)
            found["after"] = self._blocks(loaded.model)
            _write(path, found)
        _say(f"{one.name}: scored")
        return True

    def _pruned(self, one: Variant) -> tuple[Any, Any]:
        """A copy of the dense model, pruned, and what of its weights is zero."""
        import copy

        from prunescope.tracer.capture.application import apply_request
        from prunescope.tracer.recovery.adapters import zero_shares

        before = zero_shares(self.loaded.model)
        loaded = replace(self.loaded, model=copy.deepcopy(self.loaded.model))
        if one.name != DENSE:
            applied, _ = apply_request(self.stage.request(one), loaded)
            loaded = replace(loaded, model=applied.model)
        return loaded, before

    def _train(self, one: Variant, loaded: Any, before: Any) -> None:
        from prunescope.tracer.model.load import load_tokenizer
        from prunescope.tracer.recovery.recover import recover
        from prunescope.tracer.recovery.storage import trainings_stored

        wanted = read_recovery(self.stage.asked.recover)
        assert wanted is not None
        with trainings_stored(self.stage.work / "recovery", None):
            tokenizer = load_tokenizer(self.loaded)
            recover(loaded.model, tokenizer, wanted, name=one.name, seed=0, before=before)
        for file in (self.stage.work / "recovery").glob(f"{one.name}.*"):
            file.unlink()

    def _blocks(self, model: Any) -> dict[str, list[float]]:
        """Nats a token in each block of neighbouring tokens, by text."""
        from prunescope.tracer.quality.quality import nats_of

        found = {}
        for name, passage in self.passages.items():
            blocks = nats_of(model, passage).split(BLOCK)
            found[name] = [round(float(block.mean()), 5) for block in blocks]
        return found


def times(stage: Stage) -> int:
    """Each variant and the dense model in turns, in its phases."""
    from prunescope.tracer.calibration.collect import statistics_cached
    from prunescope.tracer.capture.trace import trace

    peaks = read_run(stage.work / "dense" / "dense").device.peaks
    assert peaks is not None
    peaks = changed(peaks, reached=None)
    asked = stage.asked
    text = (
        f"Times: batch 1, prompts of {asked.prompt_len} tokens, {asked.repeats} samples of each "
        f"model in turns over {asked.placements} placements."
    )
    _write(stage.work / "times.json", {"threads": asked.threads, "said": text})
    with statistics_cached({}):
        for one in sorted(variants(stage.work), key=lambda v: v.sparsity is not None):
            for phase in one.phases:
                out = stage.work / "times" / f"{one.name}-{phase}"
                if out.exists():
                    continue
                if stage.over:
                    return _LEFT
                trace(stage.request(one, phase=phase, out=out), peaks=peaks)
                _say(f"{out.name}: timed")
    return 0


def refused(work: Path) -> Iterator[tuple[str, float, str]]:
    """Targets without a plan, and why."""
    for phase, speedup in TARGETS:
        path = plan_path(work, phase, speedup).with_suffix(".refused")
        if path.exists():
            yield phase, speedup, path.read_text(encoding="utf-8")


def planned(work: Path) -> Iterator[tuple[str, float, Any]]:
    """Targets with their plans."""
    for phase, speedup in TARGETS:
        path = plan_path(work, phase, speedup)
        if path.exists():
            yield phase, speedup, read_plan(path)


def _write(path: Path, found: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found), encoding="utf-8")


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


STAGES: dict[str, Callable[[Stage], int]] = {
    "dense": dense, "plans": plans, "losses": losses, "times": times,
}  # fmt: skip

if __name__ == "__main__":
    raise SystemExit(main())
