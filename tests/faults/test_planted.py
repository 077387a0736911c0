"""Users, hosts, tokens and mail addresses in every string of what others give: in no output.

Manifests, traces, configs and sweeps of a stranger, each string with all that tells behind it, and
files and folders with a token in their names. Every file that a command writes is searched: tables
of parquet, metadata of pictures, streams of PDFs and what is packed in a bundle included.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import json
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import prunescope
from prunescope.analysis.bundle import bundle as bundling
from prunescope.analysis.trace.load import load
from prunescope.taxonomy.presets import preset_config
from prunescope.taxonomy.runs.run import sha256_of
from tests import nsys
from tests.faults.test_secrets import readings
from tests.hostile.case import TEXT_FORMATS
from tests.hostile.material import changed as with_value
from tests.hostile.material import places, write_pair
from tests.taxonomy.secret_examples import SECRETS

USER, HOST, WORD = "grace-hopperton", "cobolbox.navy-lab.example.mil", "nanosecondwire"
TOKENS = ("hf_" + "Nanosecond0Wire1Token2Abcd", "ghp_" + "Nanosecond0Wire1Token2Abcdef",
          "sk-" + "nanosecond-0wire-1token-2abcd")  # fmt: skip
PLANTS = (
    f"/home/{USER}/models/x.bin",
    f"C:\\Users\\{USER}\\x.cu",
    f"{USER}@{HOST}",
    "cobolbox-7.corp.internal",
    f"{USER}@cobolbox-7:/data/{USER}/x",
    f"https://{USER}:{WORD}@{HOST}/x",
    f"API_KEY={WORD}17",
    f"password={WORD}",
    *TOKENS,
)
PLANT = " ".join(("", *PLANTS))
# A secret of every kind, each in some of the strings: by Markdown and LaTeX only its letters and
# digits are written as they are.
KINDS = tuple(text for text, _ in SECRETS.values())
VALUES = {max(re.findall(r"[A-Za-z0-9]+", value), key=len).lower() for _, value in SECRETS.values()}
FORBIDDEN = (USER, HOST, "cobolbox", WORD, *TOKENS, *sorted(VALUES))
FORMATS = "md,html,json,tex,csv,parquet,perfetto,png,pdf,svg"
# Fields whose value is one of few, a name on disk or a digest: another one is refused.
_FIXED = {"variant", "trace", "sha256", "path", "schema", "schemaVersion", "ph", "cat", "ts", "dur",
          "model_type", "unit", "role", "mode", "logits", "cache", "dtype", "Input type", "kind",
          "selection", "method", "interleaved", "attention"}  # fmt: skip


_turns = itertools.cycle(KINDS)


def plant() -> str:
    """The plants, and two secrets of the next kinds, each on a line of its own."""
    return "\n".join((PLANT, next(_turns), next(_turns)))


def planted(value: Any, *, keep: Callable[[str], bool] = lambda _: False) -> Any:
    """Plain JSON with the plants behind every string that is free."""
    for path in list(places(value)):
        found = value
        for step in path:
            found = found[step]
        names = {part for part in path if isinstance(part, str)}
        if isinstance(found, str) and not names & _FIXED and not keep(found):
            value = with_value(value, path, found + plant())
    return value


def _planted_trace(path: Path) -> None:
    """Every name of an event, every argument and every property; the steps stay steps."""
    trace = json.loads(gzip.decompress(path.read_bytes()))
    trace |= {"host_name": HOST, "traceName": PLANT, "distributedInfo": {"backend": PLANT}}
    for event in trace["traceEvents"]:
        if not event["name"].startswith(("ProfilerStep", "aten::", "cuda", "nn.Module")):
            event["name"] += plant()
        event["args"] = {**event.get("args", {}), "note": plant(), "Concrete Inputs": [plant()]}
    timed = [event for event in trace["traceEvents"] if "dur" in event]
    for name, cat in ((f"/home/{USER}/train.py(7): {TOKENS[0]}", "python_function"),
                      *((f"load {plant()}", "user_annotation") for _ in KINDS)):  # fmt: skip
        trace["traceEvents"].append({**timed[0], "name": name, "cat": cat, "args": {}})
    for device in trace["deviceProperties"]:
        device["note"] = PLANT
    path.write_bytes(gzip.compress(json.dumps(trace).encode()))


def _planted_database(trace: Path, path: Path) -> None:
    """An export of Nsight Systems: names of kernels, ranges and GPUs, and who ran what where."""
    nsys.write(load(trace), path)
    with contextlib.closing(sqlite3.connect(path)) as base:
        base.execute(
            "UPDATE StringIds SET value = value || ? WHERE id IN "
            "(SELECT demangledName FROM CUPTI_ACTIVITY_KIND_KERNEL)",
            ("\n".join((PLANT, *KINDS)),),
        )
        base.execute("UPDATE NVTX_EVENTS SET text = text || ? WHERE text LIKE 'load%'", (plant(),))
        base.execute("UPDATE TARGET_INFO_GPU SET name = name || ?, busLocation = ?", (PLANT, HOST))
        base.execute("INSERT INTO TARGET_INFO_SYSTEM_ENV VALUES (0, ?, ?, 0, ?)", (PLANT,) * 3)
        base.execute("INSERT INTO META_DATA_CAPTURE VALUES (?, ?)", (PLANT, PLANT))
        base.commit()


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder named with a token: a pair of runs, a bare trace, a config, all of them planted."""
    home = tmp_path_factory.mktemp("given") / USER / f"mine-{TOKENS[0]}"
    folder = write_pair(home / f"run-{TOKENS[1]}")
    digest = None
    for variant in ("dense", "pruned"):
        run = folder / variant
        _planted_trace(run / "prefill.trace.json.gz")
        told = json.loads((run / "run.json").read_bytes())
        told = planted(told, keep=lambda text: text.startswith("NVIDIA"))
        told["phases"]["prefill"]["sha256"] = sha256_of(run / "prefill.trace.json.gz")
        told["argv"] = ["trace", "--model", PLANTS[0], "--set", f"key={TOKENS[0]}", *PLANTS]
        told["note"] = told["versions"][PLANT] = PLANT
        told["kinds"] = {"texts": list(KINDS), **{text: text for text in KINDS}}
        if digest:
            told["twin"] = {"path": "../dense/run.json", "sha256": digest}
        (run / "run.json").write_text(json.dumps(told))
        digest = sha256_of(run / "run.json")
    bare = home / f"trace-{TOKENS[0]}.json.gz"
    shutil.copy(folder / "pruned" / "prefill.trace.json.gz", bare)
    _planted_database(bare, home / f"base-{TOKENS[0]}.sqlite")
    model = home / f"llama-{TOKENS[2]}"
    model.mkdir()
    config = {**preset_config("tiny-llama"), "_name_or_path": PLANT, "notes": PLANT}
    (model / "config.json").write_text(json.dumps(config))
    return home


def leaks(folder: Path) -> Iterator[str]:
    """Files that hold, or are named with, what was planted."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        for data in (str(path.relative_to(folder)).encode(), *readings(path)):
            lower = data.lower()
            yield from (f"{path.name}: {w}" for w in FORBIDDEN if w.lower().encode() in lower)
        if path.suffix == ".parquet":
            import polars as pl

            text = str(pl.read_parquet(path).rows()).lower() + str(pl.read_parquet_metadata(path))
            yield from (f"{path.name}: {w}" for w in FORBIDDEN if w.lower() in text)


def said(*words: object, code: tuple[int, ...] = (0, 3)) -> str:
    """What a command says on both streams; its exit code is one of those."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        found = prunescope.main([str(word) for word in words])
    out.flush()
    assert found in code, err.getvalue()
    return out.buffer.getvalue().decode() + err.getvalue()  # type: ignore[attr-defined]


def test_analyses_tell_nothing(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The pictures of a run are in its report; those of a bundle have other texts, as in the SVG.
    monkeypatch.setattr(bundling, "FORMATS", (*TEXT_FORMATS, "svg"))
    run, bare = next(given.glob("run-*")), next(given.glob("trace-*"))
    out = tmp_path / "out"
    out.mkdir()
    told = [
        said("analyze", run, "--out", out / "report", "--format", FORMATS, "--json", "-"),
        # The pictures of a trace: the texts in all of them are those of the SVG.
        said("analyze", bare, "--out", out / "bare", "--format",
             FORMATS.replace(",png,pdf", ""), "--json", "-", "--device", "h100-sxm"),
        said("analyze", next(given.glob("base-*")), "--out", out / "base", "--format",
             FORMATS.removesuffix(",png,pdf,svg"), "--json", "-", "--device", "h100-sxm"),
        said("analyze", run, bare, "--out", out / "both", "--json", "-"),
        said("analyze", given, "--out", out / "all", "--json", "-"),
        said("check", run, "-r", "prefill.realised >= 1", "--json", "-", "--junit",
             out / "check.xml"),
        said("bundle", run, "-o", out / "open.zip"),
        said("verify", out / "open.zip", "--json", "-"),
        said("bundle", run, "-o", out / "review.zip", "--anonymous"),
        said("predict", "--from-run", run, "--sparsity", "0.5", "--json", "-"),
    ]  # fmt: skip
    (out / "said.txt").write_text("\n".join(line for text in told for line in text.splitlines()
                                            if not line.startswith("Written to ")))  # fmt: skip
    assert list(leaks(out)) == []


def test_a_sweep_of_a_stranger_tells_nothing(given: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    results = []
    for i, state in enumerate(("done", "done", "failed")):
        shutil.copytree(next(given.glob("run-*")), sweep / "runs" / str(i))
        results.append({
            "id": f"{i}{PLANT}", "family": f"mine{i}{PLANT}", "sparsity": 0.5, "phase": "prefill",
            "batch": 1, "prompt_len": 32, "state": state, "run": f"runs/{i}/pruned", "error": PLANT,
        })  # fmt: skip
    told = {"config": {"model": PLANT, "select": PLANT}, "notes": [PLANT], "results": results}
    (sweep / "sweep.json").write_text(json.dumps({"schema": 1, **told}))
    out = tmp_path / "out"
    out.mkdir()
    words = ["--figures", "paper", "--out", out / "pareto", "--json", out / "pareto.json"]
    text = said("pareto", sweep, *words)
    (out / "said.txt").write_text(text.replace(str(tmp_path), ""))
    prunescope.pareto(sweep).save(out / "again", formats=["md", "json", "svg"])
    assert list(leaks(out)) == []


def test_a_history_of_a_stranger_tells_nothing(tmp_path: Path) -> None:
    """What --history writes holds no secret; a line that somebody else wrote may."""
    lines = [
        {"commit": text[:250], "time": "t", "subject": text[:250], "model": text[:250],
         "pruning": text[:250], "device": text[:250], "phase": "decode", "step_ns": 1e6,
         "ci95": None, "steps": 8, "valid": True, "tool": text[:250]}
        for text in (*PLANTS, *KINDS)
    ]  # fmt: skip
    (tmp_path / "h.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    saved = tmp_path / "saved"
    words = ["history", tmp_path / "h.jsonl", "--out", saved, "--format", "md,json,csv"]
    told = said(*words, "--json", "-") + said(*words[:2], "--openmetrics")
    (saved / "said.txt").write_text(told.replace(str(tmp_path), ""))
    assert list(leaks(saved)) == []


def test_predictions_and_listings_tell_nothing(given: Path, tmp_path: Path) -> None:
    model = next(given.glob("llama-*"))
    for i, words in enumerate((
        ["predict", "--model", model, "--device", "h100-sxm", "--method", "static-m",
         "--sparsity", "0.5", "--json", "-", "--out", tmp_path / "curves"],
        ["predict", "--rank", "--model", model, "--device", "h100-sxm", "--json", "-"],
        ["families", "--architecture", model, "--json", "-"],
        ["analyze", f"{model}-{TOKENS[0]}"],  # refused: no such file
        ["predict", "--model", TOKENS[1], "--device", "h100-sxm", "--method", "static-m"],
        ["check", next(given.glob("run-*")), "-r", f"{TOKENS[0]} > 1"],
    )):  # fmt: skip
        (tmp_path / f"said{i}.txt").write_text(said(*words, code=(0, 2, 3)))
    told = [leak for leak in leaks(tmp_path) if USER not in leak]  # a path as it was typed
    assert told == []


def test_a_report_of_a_stranger_tells_nothing_when_it_is_saved_again(
    given: Path, tmp_path: Path
) -> None:
    report = prunescope.analyze(next(given.glob("run-*"))).to_dict()
    report["subject"] |= {"argv": list(PLANTS), "model": PLANT}
    report["warnings"] = [PLANT]
    (tmp_path / "report.json").write_text(json.dumps(report))
    loaded = prunescope.Report.load(tmp_path / "report.json")
    (tmp_path / "report.json").unlink()
    loaded.save(tmp_path, formats=["md", "html", "json", "tex", "csv", "svg"])
    assert list(leaks(tmp_path)) == []


def test_the_search_finds_what_is_there(given: Path) -> None:
    assert len(list(leaks(given))) > 3 * len(FORBIDDEN)
    assert {leak.partition(": ")[2] for leak in leaks(given)} == set(FORBIDDEN)
