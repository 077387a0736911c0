"""The frozen results that need nothing beside the checkout; `make frozen` compares all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.frozen.cases import cases
from tests.frozen.places import DIGESTS
from tests.frozen.results import differing, digests, frozen, stale, texts
from tests.frozen.run import first_difference

# A sweep draws figures for 20 s, and predictions are those of many other tests.
RUN_HERE = ("run-", "story-", "compare-", "check-", "lists-", "mistakes", "sweep-rank")
HERE = [
    name
    for name, case in cases().items()
    if not case.needs_data and name.startswith(RUN_HERE) and not name.endswith("-jobs-2")
]


@pytest.mark.parametrize("name", HERE)
def test_a_result_of_traces_is_as_it_was_frozen(name: str, tmp_path: Path) -> None:
    changed = differing(frozen(name), digests(texts(cases()[name], tmp_path)))
    assert changed == [], f"`make frozen ONLY={name}` shows the line; if it is meant, UPDATE=1"


def test_the_other_cases() -> None:
    with_data = {name for name, case in cases().items() if case.needs_data}
    assert HERE and with_data.isdisjoint(HERE)
    pytest.skip(
        f"{len(cases()) - len(HERE)} of {len(cases())} cases are left to `make frozen`: "
        f"{len(with_data)} need ../shared/data, and the others would take more than a minute"
    )


def test_every_case_has_a_file_and_every_file_a_case() -> None:
    names = {path.stem for path in DIGESTS.glob("*.json")}
    assert sorted(set(cases()) - names) == []
    assert list(stale()) == []


def test_the_first_line_that_differs_is_shown() -> None:
    assert first_difference("a\nb\nc", "a\nB\nc") == (2, "b", "B")
    assert first_difference("a", "a\nb") == (2, "(the end)", "b")
    assert first_difference("a", "a") is None
