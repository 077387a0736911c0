"""The dense model after the same training as the pruned ones, which is the control of recovery.

In: a dense Variant and the passages that judge. Out: nats [n] of each passage. The process that
needs the control first trains it, once per sweep; the others wait and read its losses from the
folder.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch

from prunescope.taxonomy.formats import plain
from prunescope.taxonomy.runs.sweep_files import CONTROL, ControlLosses
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
    settings: Recovery,
    passages: Mapping[str, Passage],
    *,
    scoring: str,
    fingerprint: str,
    seed: int,
    part: str = "",
) -> dict[str, torch.Tensor]:
    """Return the losses of the trained dense model on each passage, in nats per token [n].

    A training that is stored (`recovery.storage`) is not repeated for another way of scoring.

    Args:
        folder: The folder of the sweep.
        dense: The dense model.
        settings: The settings of the training.
        passages: The passages to score, by name.
        scoring: "prefill" or "decode".
        fingerprint: The fingerprint of the weights of the dense model.
        seed: The seed of the training.
        part: The part of the file's name that tells passages of another length apart.
    """
    identified = {
        name: {**plain(passage.record), "context": passage.context, "stride": passage.stride}
        for name, passage in passages.items()
    }
    identity = json.dumps(
        [fingerprint, settings.plain(), seed, scoring, identified], sort_keys=True
    )
    digest = hashlib.sha256(identity.encode()).hexdigest()
    path = folder / "quality" / CONTROL.format(scoring, part)
    with exclusive(path):
        stored = read_json(path, ControlLosses)
        if stored is None or stored.of != digest:
            model = copy.deepcopy(dense.model)
            record = recover(
                model,
                load_tokenizer(dense.loaded),
                settings,
                name=NAME,
                seed=seed,
                before=zero_shares(model),
            )
            nats = {n: nats_of(model, p, scoring=scoring).tolist() for n, p in passages.items()}
            stored = ControlLosses(of=digest, recovery=record, nats=nats)
            write_json(path, stored)
    return {name: torch.tensor(v, dtype=torch.float64) for name, v in stored.nats.items()}
