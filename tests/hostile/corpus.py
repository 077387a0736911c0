"""All hostile inputs of `analyze`, by what they attack. Each is written when its test runs.

QUICK is a fair share of the large tables, FULL has every cell of them.
"""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

from tests.hostile import fields, files, manifests, words
from tests.hostile.case import Case
from tests.hostile.material import write_pair


@functools.cache
def _example() -> dict[str, object]:
    """The manifest whose fields are attacked."""
    with tempfile.TemporaryDirectory() as folder:
        run = write_pair(Path(folder) / "run") / "pruned" / "run.json"
        plain: dict[str, object] = json.loads(run.read_text())
    return plain


def _named(cases: list[Case]) -> dict[str, Case]:
    named = {case.name: case for case in cases}
    assert len(named) == len(cases), "two cases have one name"
    return named


def _fixed() -> list[Case]:
    parts = (
        files.cuts, files.not_traces, files.bombs, files.zips, files.odd_files,
        fields.ids_and_flows, fields.shapes, fields.many, fields.metadata,
        words.in_traces, words.in_manifests,
        manifests.texts, manifests.many, manifests.ways_out,
    )  # fmt: skip
    return [case for part in parts for case in part()]


QUICK = _named(
    _fixed() + list(fields.wrong_types(every=41)) + list(manifests.fields(_example(), every=41))
)
FULL = _named(_fixed() + list(fields.wrong_types()) + list(manifests.fields(_example())))
