"""The table of published methods in taxonomy/README.md: complete, and of families that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import families
from prunescope.taxonomy.methods import (
    family_of,
    find_published,
    method_names,
    methods,
    nearest_methods,
    published,
    slug,
)

README = Path(__file__).resolve().parents[2] / "taxonomy" / "README.md"
COLUMNS = ["method", "year", "placed", "because", "arXiv"]


def rows() -> list[dict[str, str]]:
    """Read the table of published methods, as a dict per row."""
    text = README.read_text(encoding="utf-8").split("## Published methods")[1]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == COLUMNS
    return [dict(zip(COLUMNS, row, strict=True)) for row in cells[2:]]


def test_every_method_is_placed_in_a_family_or_outside_with_a_reason() -> None:
    extension = {member.id: member.extension for member in families()}
    for row in rows():
        (placed,) = re.findall(r"`([^`]+)`", row["placed"])
        assert placed == "outside" or placed in extension, row
        assert row["placed"].startswith("*") == extension.get(placed, False), row
        for quoted in re.findall(r"`([^`]+)`", row["because"]):
            assert quoted in extension, row
            italic = f"*`{quoted}`*" in row["because"]
            assert italic == extension[quoted], row
        assert row["because"], row


def test_there_are_forty_of_recent_years_and_none_twice() -> None:
    table = rows()
    named = [row for row in table if row["year"]]
    assert len(named) >= 40
    assert all(2023 <= int(row["year"]) <= 2026 for row in named)
    assert len({row["method"] for row in table}) == len(table)
    ids = [row["arXiv"] for row in table if row["arXiv"]]
    assert len(set(ids)) == len(ids)
    for row in named:
        if row["arXiv"]:
            # An id begins with the year and month of its first version.
            assert re.fullmatch(r"\d{4}\.\d{5}", row["arXiv"]), row
            assert 2000 + int(row["arXiv"][:2]) == int(row["year"]), row
            assert 1 <= int(row["arXiv"][2:4]) <= 12, row


def test_what_a_family_names_as_published_is_in_the_table() -> None:
    placed: dict[str, str] = {row["method"]: row["placed"] + row["because"] for row in rows()}
    for member in families():
        for method in member.methods:
            assert method in placed, f"{member.id}: {method}"
            halves = member.id in ("static-nk-heads", "static-nk-mlp")
            assert f"`{member.id}`" in placed[method] or halves, (
                f"{method} is not placed in {member.id}"
            )


def test_every_family_has_a_method() -> None:
    placed = {family for row in rows() for family in re.findall(r"`([^`]+)`", row["placed"])}
    assert placed == {member.id for member in families() if member.id != "dense"} | {"outside"}


def test_the_data_that_names_go_by_is_the_table() -> None:
    text = (README.parent / "methods.json").read_text(encoding="utf-8")
    data = json.loads(text)
    table = {row["method"]: row for row in rows()}
    assert list(data) == list(table)
    known = {member.id: member for member in families()}
    for name, row in data.items():
        (placed_in,) = re.findall(r"`([^`]+)`", table[name]["placed"])
        assert row["family"] == (None if placed_in == "outside" else placed_in)
        assert row["because"] == re.sub(r"[*`]", "", table[name]["because"])
        if row["family"]:
            known[row["family"]].point(known[row["family"]].only or 0.5, row.get("knobs", {}))


# Table 1 of arXiv 2606.09080: every other placement is ours.
PLACED_BY_THE_PAPER = {
    "ShortGPT", "ShortenedLLaMA", "BlockPruner", "CoopPruner", "SparseGPT", "Wanda", "MaskLLM",
    "SVD-LLM", "Dobi-SVD", "LLM-Pruner", "FLAP", "Týr-the-Pruner", "SliceGPT", "MoD", "SkipGPT",
    "D-LLM", "SeerAttention", "BLASST",
}  # fmt: skip


def test_every_method_says_what_runs_and_what_was_read() -> None:
    """No method claims a reading without its place.

    A method says what the paper executes, what runs here if that differs, and the title and address
    of what was read of it, or why nothing was.
    """
    text = (README.parent / "methods.json").read_text(encoding="utf-8")
    for name, row in json.loads(text).items():
        assert row["executes"], name
        assert row["runs"] is None or row["runs"], name
        assert row["by_extension"] == (name not in PLACED_BY_THE_PAPER), name
        # A source, or one reason why there is none: "not looked up" is none.
        assert (row["source"] is None) == bool(row.get("not_read")), name
        if row["source"] is not None:
            assert set(row["source"]) == {"title", "url"}, name
            assert row["source"]["url"].startswith("https://"), name
    assert all(method.sentences()[0].startswith(method.name) for method in methods())
    assert len(methods()) == len(rows())


@pytest.mark.parametrize(
    ("name", "family", "knobs"),
    [
        ("SkipDecode", "dynamic-depth", {"exit": "lower"}),
        ("StreamingLLM", "kv-evict", {"keep": "sinks"}),
        ("H2O", "kv-evict", {"keep": "accumulated"}),
        ("SnapKV", "kv-evict", {"keep": "attention"}),
        ("WIDE", "dynamic-width", {"sets": "token", "attention": "queries"}),
        ("Deja Vu", "dynamic-width", {"sets": "token", "attention": "heads"}),
        ("PowerInfer", "dynamic-width", {"sets": "token"}),
        ("LazyLLM", "token-drop", {"stages": "4"}),
        ("ToMe", "token-drop", {}),
        ("torch-pruning", "static-nk", {}),
        ("MoD", "dynamic-m", {"unit": "layer", "keys": "routed"}),
        ("D-LLM", "dynamic-m", {"unit": "layer", "keys": "routed"}),
        ("SkipGPT", "dynamic-m", {"unit": "sublayer"}),
    ],
)
def test_dynamic_methods_are_placed_by_what_was_read(
    name: str, family: str, knobs: dict[str, str]
) -> None:
    method = find_published(name)
    assert method is not None
    assert (method.family, dict(method.knobs)) == (family, knobs)
    assert method.source is not None


@pytest.mark.parametrize(
    ("name", "runs", "predict_only"),
    [
        ("WIDE", {}, {"sets": "token", "attention": "queries"}),
        ("Deja Vu", {}, {"sets": "token", "attention": "heads"}),
        ("PowerInfer", {}, {"sets": "token"}),
        ("LazyLLM", {"stages": "4"}, {}),
        ("H2O", {"keep": "accumulated"}, {}),
    ],
)
def test_predict_prices_what_a_trace_runs(
    name: str, runs: dict[str, str], predict_only: dict[str, str]
) -> None:
    """A name stands for the knobs that run; those that predict alone has are named beside them."""
    method = find_published(name)
    assert method is not None
    assert family_of(name) == (method.family, runs)
    assert method.to_dict()["predict_only"] == predict_only
    only = "".join(f" --set {key}={value}" for key, value in predict_only.items())
    assert (f"(predict only:{only})" in method.heading()) == bool(predict_only)
    assert (f"with{only} that of the paper's" in method.sentences()[1]) == bool(predict_only)


def test_a_method_whose_family_has_no_pruner_is_predicted_only() -> None:
    method = find_published("CATS")
    assert method is not None and method.family is not None
    assert method.heading().startswith("CATS: dynamic-k --set zeros=channels (predict only), ")
    assert family_of("CATS")[1] == {"zeros": "channels"}


def test_names_in_any_spelling() -> None:
    for name in ("ShortGPT", "shortgpt", "short-gpt", "Týr-the-Pruner", "tyr the pruner"):
        method = find_published(name)
        assert (method is not None) == (name != "short-gpt"), name
    assert slug("wanda-2:4") == "wanda-2-4"
    assert len(method_names()) >= len(rows())


@pytest.mark.parametrize(
    ("asked", "among"),
    [
        ("shortgtp", {"shortgpt"}),  # letters
        ("DuoAtention", {"duoattention"}),
        ("merge visual tokens", {"prumerge", "holitom"}),  # words of what they do
        ("evict keys by attention", {"rocketkv", "adakv"}),
        ("skipping of layers", {"layer-skipping", "skipgpt"}),
    ],
)
def test_the_nearest_methods_are_so_by_letters_or_by_what_they_do(
    asked: str, among: set[str]
) -> None:
    near = nearest_methods(asked).split(", ")
    assert among <= set(near)
    assert len(near) == len(set(near)) <= 4
    with pytest.raises(PrunescopeError) as error:
        published(asked)
    assert nearest_methods(asked) in error.value.hint


def test_further_names_are_near_by_their_descriptions() -> None:
    assert "static-x" in nearest_methods("zebra crossing", {"static-x": "a crossing of zebras"})
    assert nearest_methods("xyzzy").startswith("none of ")
