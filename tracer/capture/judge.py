"""The perplexity of the models of a capture, before they are timed: `--perplexity`, and the card.

In: the variants of a capture while they are in memory. Out: the quality of each, for run.json.
"""

from __future__ import annotations

from collections.abc import Sequence

from prunescope.taxonomy.formats import changed
from prunescope.taxonomy.option import as_path
from prunescope.taxonomy.runs.run_quality import Quality
from prunescope.taxonomy.timings import part
from prunescope.tracer.capture.progress import Progress
from prunescope.tracer.capture.request import TraceRequest
from prunescope.tracer.capture.variants import Variant
from prunescope.tracer.model.layers import num_positions
from prunescope.tracer.model.load import load_tokenizer
from prunescope.tracer.model.weights import weights_fingerprint
from prunescope.tracer.quality.quality import (
    DenseReference,
    Passage,
    compare,
    quality,
    text_passage,
)


class Judge:
    """What measures each model once, against the dense one where both are in memory."""

    def __init__(self, request: TraceRequest, progress: Progress) -> None:
        self.request, self.progress = request, progress
        self.quality: dict[str, Quality] = {}

    @part("quality")
    def on_models(self, variants: Sequence[Variant]) -> None:
        """Measure the models that were not measured yet."""
        by_name = {variant.name: variant for variant in variants}
        if self.quality.keys() >= by_name.keys():
            return
        self.progress.stage("perplexity")
        passage = self._passage(variants[0])
        if len(by_name) > 1:
            reference = DenseReference(by_name["dense"].model, passage)
            pair = compare(by_name["pruned"].model, reference)
            measured = {"dense": pair.dense, "pruned": pair.pruned}
        else:
            measured = {name: quality(v.model, passage) for name, v in by_name.items()}
        self.quality |= {
            name: changed(value, weights_fingerprint=weights_fingerprint(by_name[name].model))
            for name, value in measured.items()
        }

    def _passage(self, variant: Variant) -> Passage:
        """Return the tokens to score."""
        return text_passage(
            load_tokenizer(variant.loaded),
            as_path(self.request.text),
            vocabulary=variant.model.get_input_embeddings().num_embeddings,
            longest=num_positions(variant.model),
            seed=self.request.seed,
        )
