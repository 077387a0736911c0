"""Hostile values in the fields of events: wrong types, absurd numbers, clashing ids, deep nests."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

from tests.chrome import chrome, k, module, op, step
from tests.hostile.case import Case, trace_file
from tests.hostile.material import decoder

# Written as JSON text, because some of them are no JSON.
WRONG = {
    "null": "null", "true": "true", "text": '"x"', "an empty text": '""', "minus one": "-1",
    "a half": "0.5", "2^62": str(2**62), "2^63": str(2**63), "2^64": str(2**64), "10^30": "1e30",
    "10^400": "1e400", "4,000 digits": "9" * 4000, "NaN": "NaN", "minus infinity": "-Infinity",
    "a list": "[]", "an object": "{}", "a mixed list": '[1,"a",null,[2]]',
    "a deep list": "[" * 400 + "]" * 400, "half a surrogate": '"\\ud800"', "a date": '"1e3"',
}  # fmt: skip
FIELDS = ("ph", "cat", "name", "pid", "tid", "ts", "dur", "args")
ARGS = {
    "kernel": ("correlation", "External id", "stream", "device", "grid", "block",
               "registers per thread", "shared memory", "bytes", "graph node id"),
    "cuda_runtime": ("correlation", "External id", "kernel"),
    "cpu_op": ("External id", "Input Dims", "Input type", "Input Strides", "Concrete Inputs"),
    "user_annotation": ("External id",),
}  # fmt: skip
_MARK = '"@@@"'


def _with(category: str, key: str, text: str, *, inside: bool) -> bytes:
    """The small trace with one field of every event of a category replaced by JSON text."""
    trace = decoder(layers=1)
    for event in trace["traceEvents"]:
        if event["cat"] == category:
            (event["args"] if inside else event)[key] = "@@@"
    return json.dumps(trace).replace(_MARK, text).encode()


def wrong_types(*, every: int = 1) -> Iterator[Case]:
    """Every field of every kind of event with every wrong value; or one in `every` of them."""
    number = 0
    for category, args in ARGS.items():
        for key, inside in [(f, False) for f in FIELDS] + [(a, True) for a in args]:
            for name, text in WRONG.items():
                number += 1
                if number % every:
                    continue

                def made(c: str = category, k: str = key, t: str = text, i: bool = inside) -> bytes:
                    return _with(c, k, t, inside=i)

                yield Case(f"{key} of a {category} is {name}", trace_file(made))


def _edited(edit: Callable[[list[dict[str, Any]]], None], **more: Any) -> Callable[[], Any]:
    def made() -> Any:
        trace = decoder(**more)
        edit(trace["traceEvents"])
        return trace

    return made


def _each(category: str, change: Callable[[dict[str, Any], int], None]) -> Callable[[Any], None]:
    def edit(events: list[dict[str, Any]]) -> None:
        for i, event in enumerate(e for e in events if e["cat"] == category):
            change(event, i)

    return edit


def _args(**values: Any) -> Callable[[dict[str, Any], int], None]:
    return lambda event, _: event["args"].update(values)


def ids_and_flows() -> Iterator[Case]:
    """Ids that clash, flows that go in circles, steps that overlap."""
    edits: dict[str, Callable[[Any], None]] = {
        "all kernels have one correlation": _each("kernel", _args(correlation=1)),
        "all launches have one correlation": _each("cuda_runtime", _args(correlation=1)),
        "all ops have one External id": _each("cpu_op", _args(**{"External id": 1})),
        "all kernels have one External id": _each("kernel", _args(**{"External id": 1})),
        "no kernel has a launch": _each("kernel", _args(correlation=10**9)),
        "kernels on ten streams": _each("kernel", lambda e, i: e["args"].update(stream=i % 10)),
        "kernels on ten devices": _each("kernel", lambda e, i: e["args"].update(device=i % 10)),
        "ops on ten threads": _each("cpu_op", lambda e, i: e.update(tid=i % 10)),
        "ids are texts": _each("kernel", lambda e, i: e["args"].update(correlation=f"{i}x")),
        "every event at once": lambda events: [e.update(ts=5.0) for e in events] and None,
        "every event without length": lambda events: [e.update(dur=0) for e in events] and None,
        "every event of one length": lambda events: [e.update(dur=1e6) for e in events] and None,
        "the clock runs back": lambda events: [e.update(ts=-e["ts"]) for e in events] and None,
        "the order is turned": lambda events: events.reverse(),
        "every event twice": lambda events: events.extend(copy.deepcopy(events)),
        "no step": lambda events: [e.update(cat="x") for e in events if "#" in e["name"]] and None,
        "steps in steps": lambda events: events.extend(
            {**e, "ts": 0, "dur": 1e9} for e in list(events) if "#" in e["name"]
        ),
        "kernels of a century": _each("kernel", lambda e, _: e.update(dur=3.2e15)),
        "a gap of 70 years": _each("kernel", lambda e, i: e.update(ts=e["ts"] + 2.2e15 * (i % 2))),
    }
    for name, edit in edits.items():
        yield Case(name, trace_file(_edited(edit)))
        yield Case(f"{name}, on a CPU", trace_file(_edited(edit, cpu=True)))
    circles = [
        {"ph": "s", "cat": "ac2g", "name": "ac2g", "id": 1, "ts": 1, "pid": 1, "tid": 1},
        {"ph": "f", "cat": "ac2g", "name": "ac2g", "id": 1, "ts": 0, "pid": 1, "tid": 1, "bp": "e"},
        {"ph": "s", "cat": "fwdbwd", "name": "fwdbwd", "id": 1, "ts": 0, "pid": 1, "tid": 1},
        {"ph": "t", "cat": "fwdbwd", "name": "fwdbwd", "id": 1, "ts": 0, "pid": 1, "tid": 1},
    ]
    yield Case("flows in a circle", trace_file(_edited(lambda e: e.extend(circles))), (0,))
    doubled = json.dumps(decoder()).replace('"ts":', '"ts": "x", "ts": -1, "ts":').encode()
    yield Case("every key twice", trace_file(doubled), (0,))
    swapped = json.dumps(decoder()).replace('"name":', '"name": 5, "name":').encode()
    yield Case("a name twice, once a number", trace_file(swapped))


def shapes() -> Iterator[Case]:
    """Dimensions that no tensor has."""
    dims: dict[str, list[Any]] = {
        "zeros": [0, 0], "negative": [-1, -64], "huge": [2**62, 2**62], "beyond": [2**70, 2**70],
        "one": [64], "none": [], "twelve": [2] * 12, "a thousand": [2] * 1000,
        "fractions": [0.5, 1e300], "texts": ["64", "64"], "nested": [[64, 64], [64, 64]],
    }  # fmt: skip
    for name, shape in dims.items():
        for target in ("aten::mm", "aten::_scaled_dot_product_flash_attention", "aten::silu"):

            def edit(events: list[dict[str, Any]], s: Any = shape, t: str = target) -> None:
                for event in events:
                    if event["name"] == t:
                        event["args"]["Input Dims"] = [s, s, s]

            yield Case(f"dims of {target} are {name}", trace_file(_edited(edit, layers=1)))
    for name, grid in {
        "huge": [2**31] * 3,
        "zero": [0, 0, 0],
        "short": [4],
        "minus": [-4] * 3,
    }.items():
        change = _args(grid=grid, block=grid)
        yield Case(f"a grid is {name}", trace_file(_edited(_each("kernel", change))))


def _nested(depth: int) -> Any:
    """Ops inside one another, `depth` deep, each with a kernel."""
    item = op("aten::mm", [4, 5], [5, 6], kernels=[k(us=1)])
    trace = chrome(step(0, item))
    launch = next(e for e in trace["traceEvents"] if e["cat"] == "cuda_runtime")
    middle = launch["ts"]
    outer = [
        {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "pid": 1, "tid": 1,
         "ts": middle - i - 1, "dur": 2 * i + 2, "args": {"External id": 10 + i}}
        for i in range(depth)
    ]  # fmt: skip
    trace["traceEvents"][0].update(ts=middle - depth - 2, dur=2 * depth + 4)
    return {**trace, "traceEvents": trace["traceEvents"] + outer}


def many() -> Iterator[Case]:
    """A lot of something: nests, steps, layers, names, threads, replays."""
    yield Case("ops 20,000 deep", trace_file(lambda: _nested(20_000)))
    one = op("aten::mm", [4, 5], [5, 6], us=1, kernels=[k(us=1)])
    yield Case("2,000 steps", trace_file(lambda: chrome(*(step(i, one) for i in range(2000)))))
    layers = [module(f"model.layers.{i}.mlp.up_proj", one) for i in range(3000)]
    yield Case("3,000 layers", trace_file(lambda: chrome(step(0, *layers))))
    for number in (10**8, 2**31, 2**63, 10**30, int("9" * 4000)):
        named = module(f"model.layers.{number}.mlp.up_proj", one)
        name = f"layer of {len(str(number))} digits"
        yield Case(name, trace_file(lambda n=named: chrome(step(0, n))))
    digits = module("model.layers." + "9" * 5000 + ".mlp.up_proj", one)
    yield Case("layer of 5,000 digits", trace_file(lambda: chrome(step(0, digits))))
    deep = module(".".join(["a"] * 20_000), one)
    yield Case("a module 20,000 deep", trace_file(lambda: chrome(step(0, deep))))
    names = [op(f"custom::op{i}", [4], us=1, kernels=[k(us=1, name=f"k{i}")]) for i in range(5000)]
    yield Case("5,000 kernel names", trace_file(lambda: chrome(step(0, *names))))
    yield Case("numbers of 5,000 digits in a step", trace_file(
        lambda: chrome(module("prunescope.step#" + "9" * 5000, one))
    ))  # fmt: skip
    yield Case("100,000 empty events", trace_file(b"[" + b"{}," * 100_000 + b"{}]"), (2,))
    event = b'{"ph":"X","cat":"kernel","name":"k","ts":%d,"dur":1},'
    kernels = b"".join(event % (2 * i) for i in range(50_000))
    yield Case("50,000 tiny kernels", trace_file(b"[" + kernels + b"{}]"), (0,))


def metadata() -> Iterator[Case]:
    """What stands beside the events."""
    device = decoder()["deviceProperties"][0]
    for name, value in {
        "null": None, "a number": 5, "a text": "x", "a list of lists": [[]], "empty": [{}],
        "nested": {"a": {"b": []}}, "ten thousand": [device] * 10_000,
        "of an unknown name": [{**device, "name": "\x1b[31mH100<b>"}],
        "without a name": [{"id": 0}], "of an odd name": [{**device, "name": ["H100"]}],
        "with a negative id": [{**device, "id": -5}], "of no SMs": [{**device, "numSms": 0}],
        "of 2^63 SMs": [{**device, "numSms": 2**63}], "of null SMs": [{**device, "numSms": None}],
        "of text SMs": [{**device, "numSms": "132", "warpSize": "x"}],
        "without a warp": [{**device, "warpSize": 0, "maxThreadsPerMultiprocessor": -1}],
    }.items():  # fmt: skip
        yield Case(
            f"deviceProperties are {name}",
            trace_file({**decoder(), "deviceProperties": value}),
            (0, 2),
            text="name" in name,
        )
