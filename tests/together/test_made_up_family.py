"""A new family takes the three files in made_up/, and no other change."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import prunescope
from prunescope.analysis.verdict import detectors as detectors_folder
from prunescope.analysis.verdict.detectors import detectors
from prunescope.taxonomy import families as folder
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import families, family
from prunescope.tracer import pruners
from tests.described import read_architecture
from tests.small_capture import phases_unrecorded, small_trace

pytestmark = pytest.mark.torch

MADE_UP = Path(__file__).parent / "made_up"
ID = "static-vocab"
PLACES = {"families": folder, "pruners": pruners, "detectors": detectors_folder}


@pytest.fixture
def _made_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The three files, as if they stood in the three folders."""
    for name, package in PLACES.items():
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(MADE_UP / name)])
    families.cache_clear()
    detectors.cache_clear()
    yield
    for package in PLACES.values():
        sys.modules.pop(f"{package.__name__}.static_vocab", None)
        vars(package).pop("static_vocab", None)
    monkeypatch.undo()
    families.cache_clear()
    detectors.cache_clear()


def test_without_its_files_there_is_no_such_family() -> None:
    with pytest.raises(PrunescopeError, match=ID):
        family(ID)


@pytest.mark.usefixtures("_made_up")
def test_the_commands_know_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert prunescope.main(["families", "--json"]) == 0
    listed = {one["id"]: one for one in json.loads(capsys.readouterr().out)["families"]}
    assert listed[ID]["unit"] == "rows of lm_head"
    assert list(listed)[-2:] == [ID, "token-drop"]  # an extension, by id
    applied = {one["id"]: one for one in read_architecture("llama-3.1-8b")["families"]}
    assert (applied[ID]["applies"], applied[ID]["realised"]) == ("yes", True)
    asked = ["--model", "llama-3.1-8b", "--device", "h100-sxm", "--method", ID, "--sparsity", "0.5"]
    assert prunescope.main(["predict", *asked, "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    ladder = found["phases"]["decode"]["ladder"]
    # Half of lm_head, h·V of the 8.03e9 - h·V numbers that a decode step reads and multiplies.
    assert ladder["flop"] == pytest.approx(1.036, abs=0.003)
    head = next(g for g in found["phases"]["decode"]["gemms"] if g["role"] == "lm_head")
    assert (head["axis"], head["n"], head["dense_n"]) == ("N", 64128, 128256)


@pytest.mark.usefixtures("_made_up")
def test_it_is_traced_and_read_back(tmp_path: Path) -> None:
    run = small_trace(tmp_path / "run", method=ID, sparsity=0.5)
    manifest = json.loads((run / "pruned" / "run.json").read_text(encoding="utf-8"))
    assert manifest["pruning"]["method"] == ID
    assert manifest["pruning"]["kept"] == {"vocabulary": 512}
    for phase in phases_unrecorded(run).values():
        assert phase.family is not None
        assert (phase.family.id, phase.family.confidence) == (ID, 1.0)
        assert phase.family.evidence == ["N of lm_head fell"]
        assert next(g for g in phase.gemms if g.role == "lm_head").axis == "N"
