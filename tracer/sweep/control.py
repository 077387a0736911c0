"""The dense model after the same training as the pruned ones: the control of recovery.

In: a dense Variant and the passages that judge. Out: nats [n] of each passage. Trained once a
sweep, by whoever needs it first; the others wait, and read what is in the sweep's folder.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch

from prunescope.taxonomy.formats import plain
from prunescope.taxonomy.plan import PHASES
from prunescope.taxonomy.sweep_files import CONTROL, ControlLosses
from prunescope.tracer.capture.variants import Variant
from prunescope.tracer.model.load import load_tokenizer
from prunescope.tracer.quality.quality import Passage, nats_of
from prunescope.tracer.recovery.adapters import zero_shares
from prunescope.tracer.recovery.recover import recover
from prunescope.tracer.recovery.settings import Recovery
from prunescope.tracer.recovery.storage import exclusive
from prunescope.tracer.sweep.state import read_json, write_json

NAME = "dense control"


def control_nats(  # noqa: PLR0913
    folder: Path,
    dense: Variant,
    wanted: Recovery,
    passages: Mapping[str, Passage],
    *,
    scoring: str,
    mark: str,
    seed: int,
    part: str = "",
) -> dict[str, torch.Tensor]:
    """Losses of the trained dense model on each passage. `mark`: fingerprint of the dense one;
    `part`: of the name of the file, for passages of another length. A training is scored in every
    way at once: it takes longer than all of them."""
    judged = {
        name: {**plain(passage.record), "context": passage.context, "stride": passage.stride}
        for name, passage in passages.items()
    }
    digests = {}
    for way in PHASES:
        identity = json.dumps([mark, wanted.plain(), seed, way, judged], sort_keys=True)
        digests[way] = hashlib.sha256(identity.encode()).hexdigest()
    paths = {way: folder / "quality" / CONTROL.format(way, part) for way in PHASES}
    with exclusive(paths[PHASES[0]]):
        found = read_json(paths[scoring], ControlLosses)
        if found is None or found.of != digests[scoring]:
            model = copy.deepcopy(dense.model)
            record = recover(
                model,
                load_tokenizer(dense.loaded),
                wanted,
                name=NAME,
                seed=seed,
                before=zero_shares(model),
            )
            losses = {}
            for way in PHASES:
                nats = {n: nats_of(model, p, scoring=way).tolist() for n, p in passages.items()}
                losses[way] = ControlLosses(of=digests[way], recovery=record, nats=nats)
                write_json(paths[way], losses[way])
            found = losses[scoring]
    return {n: torch.tensor(v, dtype=torch.float64) for n, v in found.nats.items()}
