"""Changes a trace at random, as bytes, as JSON and as a compressed file; told by one seed.

In: a random.Random and the bytes of a seed. Out: the bytes of a file, and a name for it.
"""

from __future__ import annotations

import copy
import gzip
import io
import json
import random
import zipfile
from collections.abc import Callable
from typing import Any

from tests.fuzz.seeds import seeds

_TOKENS = (
    b"NaN", b"-Infinity", b"null", b"true", b"-1", b"0", b"1e400", b"1e-400", b"9" * 30, b"-0.0005",
    b"9223372036854775807", b"9223372036854775808", b"4398046511104.0005", b'"', b"\\",
    b"\\u0000", b"\\ud800", b"\x00", b"\x1b[2J", b"\xff\xfe", b"\xed\xa0\x80", b"{", b"}", b"[",
    b"]", b",", b":", b"},{", b"[[[[[[[[", b"]]]]]]]]", b"/*", b'"traceEvents":[', b'"args":{',
    b"\xef\xbb\xbf",
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3.5, -2.5, 1e18, -1e18, 2**31, 2**53 + 1, 2**63, 10**30, "",
    "x", "kernel", "cpu_op", "1", "-1", "1e3", "\u0000", "\x1b[31m", "\ud800", "é" * 50, [], {},
    [[]],
    [1, 2], [[4, 5], [5, 6]], [[[1, 2], [3, 4]]], ["", ""], {"a": {"b": []}}, [-4, 5], [0, 0],
    [10**12, 10**12], "prunescope.step#0", "ProfilerStep#1", "cudaGraphLaunch", "aten::mm",
    "execute_context_1(1)_generation_0(0)", "nn.Module: Linear_0", "c10::BFloat16",
)  # fmt: skip
Mutation = Callable[[random.Random, bytes], bytes]


def flip(rng: random.Random, data: bytes) -> bytes:
    """A few bytes become others."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if out:
            out[rng.randrange(len(out))] = rng.randrange(256)
    return bytes(out)


def cut(rng: random.Random, data: bytes) -> bytes:
    """The file ends early, or a part of it is missing."""
    a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:a] if rng.random() < 0.5 else data[:a] + data[b:]


def repeat(rng: random.Random, data: bytes) -> bytes:
    """A part stands there several times."""
    a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:b] + data[a:b][:2000] * rng.choice((1, 2, 20)) + data[b:]


def token(rng: random.Random, data: bytes) -> bytes:
    """Words that parsers trip over, put in or put in place."""
    for _ in range(rng.choice((1, 1, 3))):
        a = rng.randrange(len(data) + 1)
        b = a if rng.random() < 0.5 else min(len(data), a + rng.randrange(12))
        data = data[:a] + rng.choice(_TOKENS) + data[b:]
    return data


def splice(rng: random.Random, data: bytes) -> bytes:
    """The head of one trace and the tail of another."""
    other = rng.choice(seeds())
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


def number(rng: random.Random, data: bytes) -> bytes:
    """A digit becomes several, a point or a sign."""
    places = [i for i, c in enumerate(data[:200_000]) if 48 <= c <= 57]
    if not places:
        return data
    a = rng.choice(places)
    new = rng.choice((b"", b"9" * rng.randrange(1, 25), b"-", b".", b"e9", b"0.0000004"))
    return data[:a] + new + data[a + 1 :]


def value(rng: random.Random, data: bytes) -> bytes:
    """Values anywhere in the tree become others, of any type."""
    tree = _tree(data)
    for _ in range(rng.choice((1, 1, 2, 6))):
        spots = _spots(tree)
        if not spots:
            break
        holder, key = rng.choice(spots)
        _change(rng, holder, key)
    return json.dumps(tree).encode("utf-8", "surrogatepass")


def same_everywhere(rng: random.Random, data: bytes) -> bytes:
    """One key has one other value in all events."""
    tree = _tree(data)
    spots = [(h, key) for h, key in _spots(tree) if isinstance(key, str) and key != "traceEvents"]
    if spots:
        chosen, new = rng.choice(spots)[1], rng.choice(_VALUES)
        for holder, key in spots:
            if key == chosen:
                holder[key] = copy.deepcopy(new)
    return json.dumps(tree).encode("utf-8", "surrogatepass")


def order(rng: random.Random, data: bytes) -> bytes:
    """Events shuffled, repeated or taken out."""
    tree = _tree(data)
    events = tree.get("traceEvents") if isinstance(tree, dict) else tree
    if isinstance(events, list) and events:
        how = rng.randrange(3)
        if how == 0:
            rng.shuffle(events)
        elif how == 1:
            events.extend(rng.choices(events, k=rng.choice((1, 10, 200))))
        else:
            events[:] = [e for e in events if rng.random() < 0.7]
    return json.dumps(tree).encode("utf-8", "surrogatepass")


_MUTATIONS: tuple[Mutation, ...] = (flip, cut, repeat, token, splice, number, value, value, value,
                                    same_everywhere, order)  # fmt: skip


def mutated(rng: random.Random) -> tuple[str, bytes]:
    """A file name and what stands in it."""
    data = rng.choice(seeds())
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = rng.choice(_MUTATIONS)(rng, data)
    form = rng.choice(("json", "json", "json", "gz", "zip", "named"))
    if form == "gz":
        data = gzip.compress(data, 1, mtime=0)
    elif form == "zip":
        data = _zip(rng, data)
    if form in ("gz", "zip") and rng.random() < 0.5:
        data = rng.choice((flip, cut, repeat))(rng, data)
    return "trace.json.gz" if form in ("gz", "named") else "trace.json", data


def _zip(rng: random.Random, data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(
        out, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    ) as archive:
        for i in range(rng.choice((1, 1, 2, 0))):
            name = rng.choice((f"rank{i}.json", f"../{i}.json", f"a/b{i}.json", f"{i}.json.gz"))
            archive.writestr(name, gzip.compress(data, 1) if name.endswith("gz") else data)
    return out.getvalue()


def _tree(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return json.loads(seeds()[0])


def _spots(tree: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a tree, down to a depth of 8."""
    out: list[tuple[Any, Any]] = []
    level = [tree] if isinstance(tree, (dict, list)) else []
    for _ in range(8):
        below: list[Any] = []
        for node in level:
            keys = list(node) if isinstance(node, dict) else range(len(node))
            out += [(node, key) for key in keys]
            below += [node[key] for key in keys if isinstance(node[key], (dict, list))]
        level = below
    return out


def _change(rng: random.Random, holder: Any, key: Any) -> None:
    how = rng.random()
    old = holder[key]
    if how < 0.15:
        del holder[key]
    elif how < 0.35 and type(old) in (int, float) and abs(old) < 1e30:
        holder[key] = rng.choice((old * 1000, -old, old + 0.0005, old / 3, old + 1, int(old)))
    elif how < 0.45 and isinstance(holder, dict):
        holder[rng.choice(list(holder))] = copy.deepcopy(old)
    else:
        holder[key] = copy.deepcopy(rng.choice(_VALUES))
