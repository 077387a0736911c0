"""Formats: versions, limits with the place of a wrong field, and files that survive a reread."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import (
    MAX_DEPTH,
    Block,
    changed,
    decode,
    decode_file,
    plain,
    read,
)
from prunescope.taxonomy.runs import run_blocks, run_quality
from prunescope.taxonomy.runs.run import Placement, Run
from prunescope.taxonomy.runs.run_blocks import Matrix, ModuleCounts, WeightStats

ROW: dict[str, Any] = {"shape": [4, 2], "name": "up", "zeros": 0.5, "of_tomorrow": {"a": [1]}}
KEYS = ("schema", "model", "batch", "samples_ns", "sha256", "sparsity")
RUN = Path(__file__).parents[2] / "traces" / "tiny-static-nk" / "pruned" / "run.json"


@pytest.mark.parametrize(
    "written",
    [{}, {"matrices": []}, {"dynamic": {}, "matrices": [ROW, {**ROW, "applied": None}]},
     {"matrices": [{**ROW, "zeros": 1}]},
     {"matrices": [ROW], "dynamic": {"decode": {"a": {"total": [2], "unit": "keys"}}}}],
)  # fmt: skip
def test_order_absent_fields_and_unknown_keys_survive(written: dict[str, Any]) -> None:
    again = plain(read(WeightStats, written))
    assert str(again) == str(written)


def test_a_manifest_that_is_read_and_written_is_the_same_bytes() -> None:
    whole = {**json.loads(RUN.read_bytes()), "of_tomorrow": [{"a": 1.0}]}
    whole["phases"]["prefill"]["of_tomorrow"] = 2
    written = json.dumps(whole, indent=1) + "\n"
    assert Run.from_json(written).to_json() == written


def test_old_names_of_fields_are_read_and_new_ones_written() -> None:
    whole = json.loads(RUN.read_bytes())
    phase = whole["phases"]["prefill"]
    phase["seatings"] = phase.pop("placements", [{"samples": 2, "steps": 1}])
    phase["seatings_asked"] = 3
    run = Run.from_json(json.dumps(whole))
    assert run.phases["prefill"].placements_requested == 3 and run.phases["prefill"].placements
    written = json.loads(run.to_json())["phases"]["prefill"]
    assert {"placements", "placements_requested"} <= written.keys()
    assert not [key for key in written if key.startswith("seatings")]


def test_a_block_reads_the_blocks_inside_it() -> None:
    counts = {"unit": "rows", "active": [1], "total": [2]}
    census = read(WeightStats, {"matrices": [ROW], "dynamic": {"prefill": {"mlp": counts}}})
    assert census.matrices == [Matrix(name="up", shape=[4, 2], zeros=0.5)]
    assert census.dynamic["prefill"]["mlp"] == ModuleCounts(unit="rows", active=[1], total=[2])


def test_a_new_block_leaves_out_what_says_nothing() -> None:
    census = WeightStats(matrices=[Matrix(name="up")])
    row = plain(census)["matrices"][0]
    assert "dynamic" not in plain(census) and "applied" not in row
    assert row["groups_2_of_4"] is None  # that is not known, and said
    assert "switches" not in plain(Placement(samples=2, steps=1))
    census.dynamic["prefill"] = {"mlp": ModuleCounts(unit="rows")}
    assert plain(census)["dynamic"] == {
        "prefill": {"mlp": {"unit": "rows", "active": [], "total": []}}
    }


def test_what_is_changed_after_reading_is_written() -> None:
    census = read(WeightStats, {"matrices": [ROW]})
    census.matrices[0].layer = 3
    assert plain(census) == {"matrices": [{**ROW, "layer": 3}]}
    assert plain(changed(census, dynamic={})) == {"matrices": [{**ROW, "layer": 3}]}


def test_fields_that_an_older_or_anonymous_run_lacks_have_a_default() -> None:
    kinds = [*vars(run_blocks).values(), *vars(run_quality).values()]
    blocks = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Block)]
    assert len(blocks) > 20
    # Times by size came whole, and without one of their axes they say nothing.
    whole = {run_blocks.GemmGrid, run_blocks.StreamTimes}
    for block in set(blocks) - whole:
        assert plain(read(block, {})) == {}, block
    for block in whole:
        with pytest.raises(PrunescopeError, match="missing required field"):
            read(block, {})


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [(("phases", "prefill", "batch"), 0, "expected `int` >= 1"),
     (("phases", "prefill", "batch"), True, "expected `int`, got `bool`"),
     (("phases", "prefill", "trace"), "../run.json", "expected the name of a file"),
     (("phases", "prefill", "samples_ns", 1), 0.5, "expected `int`, got `float`"),
     (("phases", "prefill", "placements", 0, "switches"), -1, "expected `int` >= 0"),
     (("phases", "prefill", "placements", 0, "steps_disturbed"), "waits", "expected `array`"),
     (("phases", "prefill", "placements", 0, "reasons"), {"waits": 1}, "expected `array`"),
     (("model", "shape", "heads"), 0, "expected `int` >= 1"),
     (("pruning", "sparsity"), 2, "expected `float` <= 1.0"),
     (("census", "dynamic", "prefill", "mlp", "active", 0), "x", "expected `int`, got `str`"),
     (("device", "peaks", "dense_flop_per_s", "bf16"), 1e30, "expected `float` < 1e+30"),
     (("layer_map",), [0] * 20_000, "expected `array` of length <= 10000"),
     (("variant",), "sparse", "expected dense or pruned")],
)  # fmt: skip
def test_a_wrong_field_is_refused_with_its_place(
    path: tuple[str | int, ...], value: Any, reason: str
) -> None:
    whole = json.loads(RUN.read_bytes())
    whole["phases"]["prefill"]["placements"] = [{"samples": 2, "steps": 1}]
    whole["census"]["dynamic"] = {
        "decode": {}, "prefill": {name: {"active": [1, 2]} for name in ("attn", "mlp", "z")}
    }  # fmt: skip
    whole["device"]["peaks"] = {"dense_flop_per_s": {"fp32": 1e9, "bf16": 1e9}}
    inner = whole
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(PrunescopeError) as error:
        Run.from_json(json.dumps(whole), where="a/run.json")
    assert error.value.problem.startswith(f"a/run.json: {'.'.join(map(str, path))}: {reason}")


class Small(msgspec.Struct, kw_only=True):
    """A file with two versions."""

    schema: Literal[1, 2] = 1
    size: int = 0


@pytest.mark.parametrize(
    ("text", "problem"),
    [('{"schema": 999}', "a.json has schema 999; this prunescope reads schema 1 or 2"),
     ('{"schema": true}', "a.json has schema True; this"),
     ('{"schema": null, "size": "x"}', "a.json has schema None; this"),
     ("[]", "a.json is not a JSON object"), ('{"size": NaN}', "a.json is not JSON"),
     ('{"size": "\\ud800"}', "a.json is not JSON"), ('{"size": "x"}', "a.json: size: expected"),
     ('{"deep": ' + "[" * MAX_DEPTH * 2 + "]" * MAX_DEPTH * 2 + "}", "a.json: deep is nested too")],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_refused(text: str, problem: str) -> None:
    with pytest.raises(PrunescopeError) as error:
        decode(text, Small, where="a.json", hint="restore it")
    assert error.value.problem.startswith(problem)
    newer = "999" in text
    assert (
        error.value.hint
        == ("written by a newer prunescope: update prunescope, or " * newer) + "restore it"
    )


@pytest.mark.parametrize("key", [*KEYS, *(rf"\u{ord(key[0]):04x}{key[1:]}" for key in KEYS)])
def test_a_key_that_is_twice_in_an_object_is_named(key: str) -> None:
    text, name = RUN.read_text(encoding="utf-8"), json.loads(f'"{key}"')
    doubled = text.replace(f'"{name}":', f'"{key}": null, "{name}":', 1)
    with pytest.raises(PrunescopeError) as error:
        Run.from_json(doubled, where="a/run.json")
    assert error.value.problem == f"a/run.json has the key {name!r} twice in one object"


def test_an_old_and_a_new_name_of_a_field_are_one_key() -> None:
    whole = json.loads(RUN.read_bytes())
    whole["phases"]["prefill"] |= {"placements_requested": 3, "seatings_asked": 4}
    with pytest.raises(PrunescopeError, match=r"has the key 'placements_requested' twice"):
        Run.from_json(json.dumps(whole))


@pytest.mark.parametrize("layer", ["00", "01"])
def test_a_layer_has_one_number(layer: str) -> None:
    whole = json.loads(RUN.read_bytes())
    whole["routing"] = {"prefill": {"0": [1, 2], layer: [2, 1]}}
    with pytest.raises(PrunescopeError, match=r"routing\.prefill: expected the number of a layer"):
        Run.from_json(json.dumps(whole))


def test_every_version_that_is_known_is_read_and_absent_means_1() -> None:
    for text, schema in (("{}", 1), ('{"schema": 1}', 1), ('{"schema": 2, "more": 1}', 2)):
        assert decode(text, Small, where="a.json", hint="restore it").schema == schema


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "plan.json")
    with pytest.raises(PrunescopeError, match=r"the plan is not a regular file"):
        decode_file(tmp_path / "plan.json", Placement, where="the plan", hint="make it again")
