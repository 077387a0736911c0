"""wikitext2 and c4 through a stand-in for `datasets`: parts, what is kept of them, and mistakes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.tracer.calibration.named_texts import read_named_text
from prunescope.tracer.calibration.texts import read_text
from prunescope.tracer.quality.quality import text_passage
from prunescope.tracer.sweep.config import read_configs

REVISION = "b08601e04326c79dfdd32d625aee71d232d685c3"


class StandIn(list[dict[str, str]]):
    """A loaded split: a list of records, as `datasets.Dataset` is one."""

    def __init__(self, split: str) -> None:
        super().__init__({"text": f"The {split} of paragraph {number}."} for number in range(40))
        self._fingerprint = f"print-{split}"
        url = f"hf://datasets/Salesforce/wikitext@{REVISION}/{split}.parquet"
        self.info = SimpleNamespace(download_checksums={url: {}}, version="0.0.0")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[Any]]:
    """The calls of the stand-in; nothing of the texts is kept from test to test."""
    calls: list[Any] = []

    def load_dataset(*words: Any, split: str, **more: Any) -> StandIn:
        calls.append((*words, split, more))
        if "c4" in words[0]:
            raise ConnectionError("no network\nand a long trace")
        return StandIn(split)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    read_named_text.cache_clear()
    yield calls
    read_named_text.cache_clear()


def test_one_split_calibrates_and_another_judges(asked: list[Any]) -> None:
    text = read_text(Path("wikitext2"))
    assert asked == [
        ("Salesforce/wikitext", "wikitext-2-raw-v1", "train", {}),
        ("Salesforce/wikitext", "wikitext-2-raw-v1", "test", {}),
    ]
    assert text.calibration.startswith("The train of paragraph 0.\n\nThe train of paragraph 1.")
    assert "train" not in text.evaluation and text.evaluation_part == "test split"

    class Words:
        is_fast = False

        def __call__(self, words: str, **_: Any) -> dict[str, Any]:
            return {"input_ids": list(range(len(words.split())))}

    found = text_passage(
        Words(), Path("wikitext2"), vocabulary=999, longest=None, seed=0, tokens=64, prompt_len=8
    ).record
    assert found.dataset is not None and found.part == "test split"
    assert (found.dataset.revision, found.dataset.fingerprint) == (REVISION, "print-test")
    assert found.source == "wikitext2" and found.sha256 == text.sha256


def test_a_file_of_that_name_comes_first(asked: list[Any], tmp_path: Path) -> None:
    (tmp_path / "wikitext2").write_text("A file.\n\nOf one's own.")
    plain = {"model": "tiny-llama", "families": ["static-m"], "text": "wikitext2"}
    assert read_text(Path("wikitext2")).name == "wikitext2" and not asked
    (config,) = read_configs(plain, None)
    assert config.text is not None and config.text.is_file()


def test_a_sweep_file_elsewhere_names_the_text(asked: list[Any], tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    path = tmp_path / "below" / "s.yaml"
    path.write_text("model: tiny-llama\nfamilies: [static-m]\ntext: wikitext2\nother_text: c4\n")
    (config,) = read_configs(path, None)
    assert (config.text, config.other_text) == (Path("wikitext2"), Path("c4"))
    assert not asked


def _absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)


def _of_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace())


@pytest.mark.parametrize("state", [_absent, _of_another_kind])
def test_without_the_library(
    state: Callable[[pytest.MonkeyPatch], None], asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    state(monkeypatch)
    with pytest.raises(PrunescopeError, match="not installed") as caught:
        read_text(Path("c4"))
    assert caught.value.hint == "pip install 'prunescope[datasets]'" and not asked


def test_what_cannot_be_loaded(asked: list[Any]) -> None:
    with pytest.raises(PrunescopeError, match=r"c4 could not be loaded \(ConnectionError: no netw"):
        read_text(Path("c4"))
    assert asked[0][2] == "train" and "data_files" in asked[0][3]
