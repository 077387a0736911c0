"""The losses of a sweep scored again, without timing anything: after the scoring has changed.

    python benchmarks/rescore.py benchmarks/smollm2.yaml --families FAMILY... --sparsities 0.5 \
        --out losses.json

In: a sweep file; `--families` and `--sparsities` choose some of its points, and `--window` reads
other windows than a sweep of today would, as those of an older page. Out: JSON, for the id of each
result the `quality` that its run.json would hold, and a line for each on standard error. What is in
the file already is kept, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from prunescope.taxonomy.formats import changed, plain
from prunescope.taxonomy.numbers import loss
from prunescope.taxonomy.runs.run_quality import Quality
from prunescope.taxonomy.runs.sweep_files import Planned
from prunescope.taxonomy.scoring import may_decide, scoring_of
from prunescope.tracer.capture.variants import Variant, make_variants
from prunescope.tracer.machine.device import pick_device, thread_count
from prunescope.tracer.model.layers import text_config
from prunescope.tracer.model.load import load_tokenizer
from prunescope.tracer.quality.quality import (
    CONTEXT,
    DenseReference,
    Passage,
    compare,
    looks_ahead,
    text_passage,
)
from prunescope.tracer.sweep.config import read_configs
from prunescope.tracer.sweep.plan import SweepConfig, make_plan, request_of


def main() -> None:
    """Score the results of a sweep file, and write them as they come."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path, help="a sweep file")
    parser.add_argument("--families", nargs="*", help="some of its families")
    parser.add_argument("--sparsities", nargs="*", type=float, help="some of its sparsities")
    parser.add_argument("--window", type=int, help="tokens of a window")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file")
    options = parser.parse_args()
    (config,) = read_configs(options.config, None)
    config = replace(
        config,
        families=tuple(options.families or config.families),
        sparsities=tuple(options.sparsities or config.sparsities),
    )
    found = json.loads(options.out.read_bytes()) if options.out.exists() else {}
    with thread_count(config.threads):
        scorer = Scorer(config, window=options.window)
        for group in make_plan([config], None).groups().values():
            scorer.score([r for r in group if r.id not in found and r.problem is None], found)
            options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


class Scorer:
    """Scores models of a sweep; keeps the logits of the dense one, by windows and scoring."""

    def __init__(self, config: SweepConfig, *, window: int | None = None) -> None:
        self.config, self.window = config, window
        self.dense: dict[tuple[int, str, bool], DenseReference] = {}

    def score(self, results: list[Planned], found: dict[str, Any]) -> None:
        """Add the quality of the results of one model to `found`, by id."""
        if not results:
            return
        request = request_of(self.config, results[0], out=Path("unused"))
        dense, pruned = make_variants(request, pick_device("auto"), ("dense", "pruned"))
        scored: dict[tuple[int, str], Any] = {}
        for result in results:
            family, length = result.family, self.window or max(CONTEXT, result.prompt_len)
            way = length, scoring_of(family, result.phase)
            if way not in scored:
                scored[way] = self._scored(dense, pruned, *way, decides=may_decide(family))
            quality = changed(scored[way], phase=result.phase)
            found[result.id] = plain(quality)
            low, high = quality.perplexity_rel_ci95 or (None, None)
            sys.stderr.write(
                f"{result.id}: {loss(quality.perplexity_rel)} [{loss(low)}, {loss(high)}], "
                f"{quality.scoring}, looks_ahead {quality.looks_ahead}\n"
            )

    def _scored(
        self, dense: Variant, pruned: Variant, length: int, scoring: str, *, decides: bool
    ) -> Quality:
        """The pruned model on the text, and on the other one where the sweep has one."""
        reference = self.reference(dense, length, scoring)
        quality = compare(pruned.model, reference).pruned
        ahead = decides and looks_ahead(pruned.model, reference.passage, scoring=scoring)
        other = None
        if self.config.other_text is not None:
            reference = self.reference(dense, length, scoring, other=True)
            other = compare(pruned.model, reference).pruned
        return changed(quality, looks_ahead=ahead, other_text=other)

    def reference(
        self, dense: Variant, length: int, scoring: str, *, other: bool = False
    ) -> DenseReference:
        """The dense model, read on a text as `scoring` says, at most once."""
        key = length, scoring, other
        if key not in self.dense:
            passage = self._passage(dense, length, other=other)
            self.dense[key] = DenseReference(dense.model, passage, scoring=scoring)
        self.dense[key].model = dense.model
        return self.dense[key]

    def _passage(self, dense: Variant, length: int, *, other: bool) -> Passage:
        return text_passage(
            load_tokenizer(dense.loaded),
            self.config.other_text if other else self.config.text,
            vocabulary=dense.model.get_input_embeddings().num_embeddings,
            longest=getattr(text_config(dense.model), "max_position_embeddings", None),
            seed=self.config.seed,
            prompt_len=length,
        )


if __name__ == "__main__":
    with torch.no_grad():
        main()
