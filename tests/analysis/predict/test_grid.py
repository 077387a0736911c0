"""Several methods and sparsities, the range, launch modes; tables and files."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from prunescope.analysis.predict.break_even import smallest_faster_sparsity, spans
from prunescope.analysis.predict.predict_request import PredictRequest
from prunescope.analysis.predict.request_points import methods, sparsities
from prunescope.analysis.report.predict_figure import curve_files, curves_figure
from prunescope.analysis.report.predict_tables import prediction
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.plan import Workload
from tests.analysis.predict.plain import predict


def ask(**options: Any) -> dict[str, Any]:
    defaults = {"model": "llama-3.1-8b", "device": "h100-sxm", "method": "static-m,static-nk",
                "sparsity": "0.25:0.75:0.25", "prompt_len": 1024}  # fmt: skip
    return predict(PredictRequest(**{**defaults, **options}))


def text_of(result: dict[str, Any]) -> str:
    out = io.StringIO()
    Console(file=out, width=80, highlight=False).print(prediction(result))
    return out.getvalue()


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("0.1:0.7:0.1", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]),
        ("0.1:0.35:0.1", [0.1, 0.2, 0.3]),
        ("0.5:0.5:0.1", [0.5]),
        ("0.5,0.25", [0.25, 0.5]),
        ("0.5", [0.5]),
        (0.5, [0.5]),
        ([0.3, 0.1, 0.3], [0.1, 0.3]),
        (None, [None]),
    ],
)
def test_sparsities(given: Any, found: list[float | None]) -> None:
    assert sparsities(given) == found


@pytest.mark.parametrize(
    "bad", ["", "half", "0.1:0.7", "0.7:0.1:0.1", "0.1:0.7:0", "0.1:0.7:-1", "0.1:1.2:0.1",
            "0:0.9:1e-9", "0:0.9:1e-320", "0.1:inf:0.1", "nan", "nan:1:0.1", "1", []]
)  # fmt: skip
def test_bad_sparsities(bad: Any) -> None:
    with pytest.raises(PrunescopeError):
        sparsities(bad)


def test_methods() -> None:
    assert methods(["static-m,static-nk", "static-m"]) == ["static-m", "static-nk"]
    assert methods(None) == [None]


def test_widths_that_are_not_aligned_have_a_caveat() -> None:
    """Their slower kernels are not in the prediction; numbers of tokens are no widths."""
    odd = ask(method="static-nk-mlp", sparsity=0.25, phase="prefill", knobs={"align": "odd"})
    (caveat,) = odd["warnings"]
    assert caveat.startswith(
        "widths that 8 does not divide (gate N 10753, up N 10753, down K 10753"
    )
    assert "0.66 to 0.71" in caveat and "keep multiples of 16" in caveat
    assert ask(method="static-nk-mlp", sparsity=0.25, phase="prefill")["warnings"] == []
    assert ask(method="token-drop", sparsity=0.3, phase="prefill")["warnings"] == []


def test_experts_of_a_router_are_no_width_to_align() -> None:
    asked = {"model": "mixtral-8x7b", "method": "static-experts", "sparsity": 0.5}
    warnings = ask(**asked, phase="decode")["warnings"]
    assert not [text for text in warnings if text.startswith("widths")]


def test_a_grid_holds_every_point_as_a_single_request_gives_it() -> None:
    grid = ask()
    assert [(p["method"], p["sparsity"]) for p in grid["points"]] == [
        (name, s) for name in ("static-m", "static-nk") for s in (0.25, 0.5, 0.75)
    ]
    single = ask(method="static-nk", sparsity=0.5)
    assert grid["points"][4]["phases"] == single["phases"]
    curve = grid["curves"]["decode"]["static-nk"]
    assert curve["sparsity"] == [0.25, 0.5, 0.75]
    assert curve["roofline"][1] == single["phases"]["decode"]["ladder"]["roofline"]
    expected = single["phases"]["decode"]["predicted"]["execution"]
    assert (curve["low"][1], curve["high"][1]) == tuple(expected["range"])
    json.dumps(grid, allow_nan=False)


def test_a_point_and_a_grid_have_one_form() -> None:
    one, many = ask(method="static-nk", sparsity=0.5), ask()
    assert set(one) == set(many)
    (point,) = one["points"]
    assert point["phases"] == one["phases"]
    assert (point["method"], point["sparsity"]) == ("static-nk", 0.5)
    assert many["phases"] is None
    assert list(one["curves"]["prefill"]) == ["static-nk"]
    assert ask(method=None, sparsity=None)["curves"] == {"prefill": {}, "decode": {}}


def test_break_even_can_be_left_out() -> None:
    found = ask(method="static-nk", sparsity=0.5, break_even=False)["phases"]["decode"]["predicted"]
    full = ask(method="static-nk", sparsity=0.5)["phases"]["decode"]["predicted"]
    assert found["break_even"] is None and found["execution"]["break_even"] is None
    assert found["execution"]["speedup"] == full["execution"]["speedup"]
    assert full["break_even"]["sparsity"] is not None


def test_points_that_do_not_exist_are_left_out_and_named() -> None:
    grid = ask(method="static-k-24,static-m")
    assert [p["sparsity"] for p in grid["points"] if p["method"] == "static-k-24"] == [0.5]
    assert any(w.startswith("static-k-24: 2 of 3 points left out") for w in grid["warnings"])
    with pytest.raises(PrunescopeError, match="2:4"):
        ask(method="static-k-24", sparsity="0.1,0.2")


def test_knobs_of_several_methods() -> None:
    grid = ask(method="static-nk,static-nk-cross", sparsity="0.5", knobs={"junctions": "same"})
    plain = ask(method="static-nk,static-nk-cross", sparsity="0.5")
    gains = [[p["phases"]["prefill"]["ladder"]["flop"] for p in g["points"]] for g in (grid, plain)]
    assert gains[0][0] == gains[1][0]
    assert gains[0][1] > gains[1][1]  # without residual GEMMs
    with pytest.raises(PrunescopeError, match="colour"):
        ask(knobs={"colour": "red"})


def test_the_range_holds_the_expectation_and_names_what_moves_it() -> None:
    for name in ("static-k-24", "dynamic-m", "static-nk-cross"):
        for phase in ask(method=name, sparsity=0.5)["phases"].values():
            found = phase["predicted"]["execution"]
            low, high = found["range"]
            assert low < found["speedup"] < high
            assert found["guessed"]
            for row in found["guessed"]:
                assert row["from"] <= row["value"] <= row["to"]
                assert row["speedup"][0] <= found["speedup"] * 1.0001
    alone = ask(method="dynamic-m", sparsity=0.5, terms=())["phases"]["decode"]
    assert alone["predicted"]["execution"]["guessed"] == []


def test_a_decode_step_above_the_roofline_is_held_to_it_and_says_so() -> None:
    found = ask(method="static-m", sparsity=0.5, phase="decode")["phases"]["decode"]
    execution = found["predicted"]["execution"]
    assert execution["speedup"] == pytest.approx(found["ladder"]["roofline"])
    assert execution["terms"][-1]["name"] == "bound"
    zeros = ask(method="static-k-mask", sparsity=0.5)["phases"]["decode"]["predicted"]
    assert zeros["execution"]["notes"] == []


def test_a_device_without_measurements_has_a_wider_range() -> None:
    def width(device: str) -> float:
        phase = ask(method="static-nk", sparsity=0.5, phase="prefill", device=device, dtype="bf16")
        low, high = phase["phases"]["prefill"]["predicted"]["execution"]["range"]
        return float(high / low)

    assert width("mi355x") > width("rtx-pro-6000-blackwell") + 0.02
    assert width("a800-80gb-sxm") == pytest.approx(width("a100-80gb-sxm"))  # one silicon


def test_a_library_of_24_kernels() -> None:
    def at(kernel: str, device: str = "a100-80gb-sxm") -> float:
        found = ask(method="static-k-24", sparsity=0.5, phase="prefill", prompt_len=4096,
                    device=device, knobs={"kernel": kernel})  # fmt: skip
        return float(found["phases"]["prefill"]["predicted"]["execution"]["speedup"])

    assert at("cusparselt") > at("torch") > 1.0  # which copies layouts
    assert at("torch") > at("torch", "rtx-pro-6000-blackwell")
    with pytest.raises(PrunescopeError, match="cusparselt"):
        at("spork")


def test_a_term_left_out_is_the_others() -> None:
    full = ask(method="dynamic-m", sparsity=0.5, phase="decode")["phases"]["decode"]
    less = ask(method="dynamic-m", sparsity=0.5, phase="decode", without=("added",))
    names = [t["name"] for t in less["phases"]["decode"]["predicted"]["execution"]["terms"]]
    assert "added" not in names and "launch" in names
    faster = less["phases"]["decode"]["predicted"]["execution"]["pruned_ns"]
    assert faster < full["predicted"]["execution"]["pruned_ns"]
    with pytest.raises(PrunescopeError, match="added"):
        ask(without=("lunch",))


def test_eager_launch_is_the_hosts_pace() -> None:
    # A layer: 7 linears with a module and 2 views each, 2 norms of 9 launches and a module, RoPE
    # 10 + module + 6 views, activation 2 + module, attention 9 + 2 copies + module + 10 views; then
    # lm_head. A module takes half of a dispatch of 20 us, a view a quarter.
    launches, modules, views = 7 + 2 * 9 + 10 + 2 + 11, 7 + 2 + 1 + 1 + 1, 7 * 2 + 6 + 10
    layer = launches + 0.5 * modules + 0.25 * views
    eager = ask(method="static-m", sparsity=0.5, phase="decode", launch="eager")
    found = eager["phases"]["decode"]["predicted"]["execution"]
    assert found["dense_ns"] == pytest.approx((32 * layer + 1 + 0.5 + 0.5) * 20_000)
    graph = ask(method="static-m", sparsity=0.5, phase="decode")
    assert graph["phases"]["decode"]["predicted"]["execution"]["dense_ns"] < found["dense_ns"]
    with pytest.raises(PrunescopeError, match="eager"):
        ask(launch="slow")


def test_a_cpu_dispatches_and_computes_in_turn() -> None:
    """The 32 layers of launches above, and the work beside them: 8 B weights of 4 bytes at 204.8
    GB/s take 157 ms. No graph is replayed, and bf16 has no units."""
    found = ask(device="epyc-7742", method="static-m", sparsity=0.5, phase="decode")
    dense = found["phases"]["decode"]["predicted"]["execution"]["dense_ns"]
    dispatch = ask(method="static-m", sparsity=0.5, phase="decode", launch="eager")["phases"][
        "decode"
    ]["predicted"]["execution"]["dense_ns"]
    assert dense > dispatch + 8.03e9 * 4 / 204.8e9 * 1e9
    assert any("on a CPU" in text for text in found["warnings"])
    with pytest.raises(PrunescopeError, match="replays no graph"):
        ask(device="epyc-7742", launch="graph")


def test_a_long_cache_hides_the_host() -> None:
    """Eager attention copies the cache to append to it: of 64 sequences the device sets the pace,
    and removing heads helps where removing nothing but weights does not."""
    many = {"launch": "eager", "phase": "decode", "sparsity": 0.5, "batch": 64, "context": 4096,
            "model": "llama-2-7b"}  # fmt: skip

    def gain(name: str) -> float:
        found = ask(method=name, **many)["phases"]["decode"]["predicted"]["execution"]
        return float(found["speedup"])

    assert gain("static-nk") > 1.8
    assert 1.0 < gain("static-k-lowrank") < 1.1


def test_context_is_what_a_decode_reads() -> None:
    short = ask(method="dynamic-nk", sparsity=0.5, phase="decode", context=1024)
    long = ask(method="dynamic-nk", sparsity=0.5, phase="decode", context=65536)
    assert long["phases"]["decode"]["context"] == 65536
    assert long["phases"]["decode"]["kv_bytes"] == 64 * short["phases"]["decode"]["kv_bytes"]
    gains = [x["phases"]["decode"]["ladder"]["roofline"] for x in (short, long)]
    assert gains[1] > gains[0] + 0.1


def test_tables_hold_what_the_json_holds() -> None:
    one = text_of(ask(method="dynamic-nk", sparsity=0.5, prompt_len=16384))
    for word in ("KV cache", "weights", "bytes moved", "attention, ms", "expected", "batch",
                 "context", "faster than dense", "launch"):  # fmt: skip
        assert word in one
    # a mask is never faster; half of the layers always are
    assert text_of(ask(method="static-k-mask", sparsity=0.5)).count("never") == 2 * 2 * 3
    assert text_of(ask(method="static-m", sparsity=0.5)).count("always") == 2 * 2 * 2
    dense = text_of(ask(method=None, sparsity=None))
    assert "KV cache" in dense and "faster than dense" not in dense
    assert dense.count("expected, with costs") == 2
    many = text_of(ask(method=["static-k-lowrank", "static-nk-cross"]))
    # rows of two phases, what stands behind their ranges, their last lines, and the command
    assert many.count("static-k-lowrank") == 2 * (3 + 1 + 1) + 1
    assert all(len(line) <= 80 for line in many.splitlines())
    assert "…" not in many


def test_what_stands_behind_a_range_is_printed() -> None:
    """The count of measurements with the nearest source, or that there is none of this kind."""
    near = " ".join(text_of(ask(method="static-m", sparsity=0.5, phase="decode")).split())
    assert re.search(
        r"range: from \d+ measurements? of \d+ publications? of this kind; nearest: ", near
    )
    far = ask(method="static-experts", sparsity=0.5, phase="decode", model="qwen3-30b-a3b")
    assert "range: no measurement of this kind: Static experts" in " ".join(text_of(far).split())
    grid = " ".join(text_of(ask(method=["static-m", "static-nk"], phase="decode")).split())
    assert re.search(r"range of static-\w+.*: from \d+ measurement", grid)


def test_curve_files() -> None:
    result = ask(method="static-m,dynamic-m", curves=True)
    files = curve_files(result)
    assert set(files) == {
        "curves.png", "curves.pdf", "curves.svg", "curves.csv", "figure-curves.tex"
    }  # fmt: skip
    assert files["curves.png"].startswith(b"\x89PNG")
    assert files["curves.pdf"].startswith(b"%PDF")
    svg = files["curves.svg"].decode()
    assert "dynamic-m" in svg and "sparsity s" in svg and "\\x" not in svg
    rows = list(csv.DictReader(io.StringIO(files["curves.csv"].decode())))
    assert len(rows) == 2 * 2 * 3
    at = result["curves"]["prefill"]["dynamic-m"]
    row = next(r for r in rows if r["phase"] == "prefill" and r["method"] == "dynamic-m")
    assert float(row["expected"]) == at["expected"][0]
    assert curve_files(result) == files  # no date in them


def test_every_curve_is_told_apart_in_grey() -> None:
    """The roofline of a method has its mark, hollow; its colour alone is grey in print."""
    figure = curves_figure(ask(method="static-m,dynamic-m,static-nk", curves=True))
    for axes in figure.axes:
        lines = [line for line in axes.lines if len(line.get_xdata()) == 3]
        looks = {(line.get_marker(), line.get_markerfacecolor()) for line in lines}
        assert len(lines) == len(looks) == 6


def test_a_curve_of_one_point_and_of_none() -> None:
    one = ask(method="static-k-24", sparsity=0.5, phase="decode", curves=True)
    assert list(one["curves"]) == ["decode"]
    assert curve_files(one)["curves.png"]
    with pytest.raises(PrunescopeError, match="method"):
        ask(method=None, curves=True)


def test_a_hostile_model_name_stays_text(tmp_path: Path) -> None:
    from prunescope.taxonomy.presets import preset_config

    folder = tmp_path / "[red]=cmd"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(preset_config("tiny-llama")))
    result = ask(model=str(folder), dtype="bf16", curves=True)
    assert curve_files(result)["curves.svg"]
    assert text_of(result)


def test_two_methods_of_one_family_cross_where_each_does() -> None:
    """TEAL and CATS are dynamic-k with other knobs: neither takes the other's break-even."""
    asked = {"model": "opt-1.3b", "device": "a100-80gb-sxm", "sparsity": 0.9, "phase": "decode",
             "prompt_len": 64, "terms": ("achievable", "kernel")}  # fmt: skip
    found = {}
    for method in ("teal", "cats", "teal,cats"):
        points = ask(method=method, **asked)["points"]
        found[method] = [p["phases"]["decode"]["predicted"] for p in points]
    assert found["teal,cats"] == [*found["teal"], *found["cats"]]
    assert found["teal"] != found["cats"]


def test_two_methods_of_one_family_have_a_curve_each() -> None:
    grid = ask(method="shortgpt,attention-drop,slicegpt", sparsity="0.25,0.5", phase="decode")
    names = ["shortgpt", "attention-drop", "static-nk-cross"]
    assert list(grid["curves"]["decode"]) == names
    assert all(c["sparsity"] == [0.25, 0.5] for c in grid["curves"]["decode"].values())
    assert [p["label"] for p in grid["points"][::2]] == names
    assert [p["method"] for p in grid["points"][::2]] == ["static-m", "static-m", names[2]]
    text = text_of(grid)
    assert "expected to pay at s: shortgpt from" in text and "attention-drop from" in text


def test_a_family_and_a_method_that_is_it_by_default_are_one_row() -> None:
    grid = ask(method="static-m,shortgpt", sparsity=0.5)
    assert [p["label"] for p in grid["points"]] == ["static-m"]
    assert grid["warnings"] == [
        "shortgpt and static-m are static-m here: their kernels are the same"
    ]


@pytest.mark.parametrize(
    ("faster", "span"),
    [({*range(11)}, None), (set(), None), ({0, 1, 2}, (1, 4)), ({7, 8, 9, 10}, (128, 1024)),
     ({5}, (32, 32)), ({1, 2, 3}, (2, 8)), ({8, 9}, (256, 512))],
)  # fmt: skip
def test_the_batches_at_which_it_is_faster(faster: set[int], span: tuple[int, int] | None) -> None:
    def gain(work: Workload, _sparsity: float | None) -> float:
        return 1.5 if work.batch.bit_length() - 1 in faster else 0.9

    found = spans(Workload(phase="decode"), gain)["batch"]
    assert found == (span and {"from": span[0], "to": span[1]})


@pytest.mark.parametrize("first", [1, 2, 37, 60, 63, 64])
def test_the_sparsity_from_which_it_is_faster(first: int) -> None:
    sparsity = smallest_faster_sparsity(
        Workload(phase="decode"), lambda _work, s: 1.5 if s and s * 64 >= first else 0.9
    )
    assert sparsity == (None if first == 64 else first / 64)
