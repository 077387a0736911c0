"""Nothing that prunescope writes tells who ran it, where, or with which keys."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import socket
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from prunescope.taxonomy.presets import preset_config
from tests.chrome import chrome, gap, k, op, step
from tests.small_capture import saved_model

ROOT = Path(__file__).resolve().parents[2]
USER, HOME = "quentinzaphod", "zaphodshome"
SECRETS = {
    "HF_TOKEN": "hf_" + "ZaphodTokenABCDEFGHIJKLMNOP",
    "WANDB_API_KEY": "0123456789zaphodkey0123456789abcdef",
    "AWS_SECRET_ACCESS_KEY": "zaphodawsSECRETzaphodawsSECRET",
    "OPENAI_API_KEY": "sk-zaphodzaphodzaphodzaphod",
    "DB_URL": "postgres://zaphod:marvin42@heartofgold.example/db",
}
# What somebody wrote into the config.json of a model of their own.
NOTES = {
    "api_key": "hf_" + "zaphodSECRETzaphodSECRETzaphod",
    "mail": "zaphod@heartofgold.example",
    "notes": "host heartofgold.corp.internal, user zaphod",
    "training_args": {"output_dir": "/home/zaphod/runs", "hub": {"zaphod": 1}},
    "pad_token": ["zaphod"],
    "hidden_activation": "https://heartofgold.example/x",
}
TRACE = ["trace", "--model", "{model}", "--method", "static-nk", "--sparsity", "0.5",
         "--phase", "prefill", "--prompt-len", "8", "--repeats", "3", "--warmup", "0", "--steps",
         "2", "--threads", "1", "--out", "{out}/run"]  # fmt: skip
FORMATS = "md,html,json,tex,csv,parquet,perfetto,svg,png,pdf"
ANALYZE = ["analyze", "{out}/run", "--format", FORMATS, "--json", "{out}/told.json"]
COMMANDS = (
    TRACE,
    ANALYZE,
    ["analyze", "{foreign}", "--out", "{out}/foreign", "--format", FORMATS.removesuffix(",png,pdf"),
     "--json", "{out}/foreign.json"],
    ["bundle", "{out}/run", "-o", "{out}/evidence.zip"],
    ["predict", "--model", "{model}", "--device", "h100-sxm", "--json", "{out}/predicted.json"],
)  # fmt: skip
LONGER = (
    # Told in words that the user gave: `out` of this JSON repeats them.
    ["sweep", "{sweep}", "--out", "results/sweep", "--json", "{out}/sweep.json"],
    ["pareto", "{out}/sweep", "--json", "{out}/pareto.json"],
    ["calibrate", "--out", "{out}/device.json"],
)  # fmt: skip
# All commands of a user in one process, which imports torch once; peaks are not timed for seconds.
SESSION = """
import json, sys
from functools import partial
import prunescope
from prunescope.analysis.bundle import bundle
from prunescope.tracer.capture import device_state
bundle.FORMATS = tuple(name for name in bundle.FORMATS if name != "png")  # analyze plots them
device_state.measure_peaks = partial(device_state.measure_peaks, budget_s=0.05)
for words in json.loads(sys.argv.pop()):
    sys.argv[1:] = words
    if code := prunescope.main():
        sys.exit(f"{code}: {words}")
"""
# Every family that a sweep may be told to load from a path, and a point of its own.
SWEEP = """\
model: {model}
families: [static-m, {model}]
sparsities: [0.5]
phases: [prefill]
prompt_lens: [8]
text: {text}
repeats: 2
steps: 2
threads: 1
"""


def readings(path: Path) -> Iterator[bytes]:
    """The bytes of a file, and of whatever is packed inside it."""
    data = path.read_bytes()
    yield path.name.encode()
    yield data
    if data[:2] == b"\x1f\x8b":
        yield gzip.decompress(data)
    if data[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                inner = archive.read(name)
                yield name.encode()
                yield gzip.decompress(inner) if name.endswith(".gz") else inner
    for start in [m.end() for m in re.finditer(rb"stream\r?\n|IDAT|zTXt|iTXt", data)]:
        stream = zlib.decompressobj()
        try:
            yield stream.decompress(data[start:], 1 << 20)
        except zlib.error:
            continue


def places(home: Path) -> dict[str, str]:
    """Where the user of a home has things."""
    return {
        "{model}": str(home / "models" / "secretproject"), "{out}": str(home / "results"),
        "{foreign}": str(home / "profile.json"), "{sweep}": str(home / "sweep.yaml"),
        "{text}": str(home / "text.txt"),
    }  # fmt: skip


def filled(text: str, home: Path) -> str:
    """A text with the places of a home put in."""
    return re.sub(r"\{\w+\}", lambda m: places(home)[m[0]], text)


def foreign(home: Path) -> dict[str, object]:
    """A trace as a profiler writes it elsewhere: a host, paths, an environment, named threads."""
    trace = chrome(step(0, op("aten::mm", [64, 64], [64, 64], kernels=[k(us=7)]), gap(us=3)))
    args = {**SECRETS, "Call stack": f"{home}/train.py(7): main", "user": USER}
    for event in trace["traceEvents"]:
        event["args"] |= args
    names = (("process_name", f"python {home}/train.py"), ("thread_name", f"{USER}@heartofgold"))
    trace["traceEvents"] += [
        {"ph": "M", "name": name, "pid": 1, "tid": 1, "ts": 0, "args": {"name": said, **args}}
        for name, said in names
    ]
    more = {"host_name": "heartofgold", "traceName": f"{home}/profile.json", "env": SECRETS}
    return {**trace, **more, "otherData": args}


def run(home: Path, commands: Sequence[list[str]]) -> None:
    """Commands of a user with a home of their own, and secrets in the environment."""
    filled_in = [[filled(word, home) for word in words] for words in commands]
    environment = {
        **SECRETS, "HOME": str(home), "USER": USER, "LOGNAME": USER, "HOSTNAME": "heartofgold",
        "PATH": "/usr/bin:/bin", "TMPDIR": str(home.parent.parent), "OMP_NUM_THREADS": "1",
        "XDG_CACHE_HOME": str(home / "cache"),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", SESSION, json.dumps(filled_in)], cwd=home, env=environment,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.fixture(
    scope="module",
    params=[COMMANDS, pytest.param(LONGER, marks=pytest.mark.slow)],
    ids=["run", "sweep"],
)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that the commands write for a model, a text and a trace in the user's home."""
    pytest.importorskip("torch")
    home = tmp_path_factory.mktemp("homes") / HOME / USER
    (home / "results").mkdir(parents=True)
    model = saved_model(home / "models" / "secretproject", **preset_config("tiny-llama"))
    config = json.loads((model / "config.json").read_bytes())
    (model / "config.json").write_text(json.dumps({**config, **NOTES}))
    (home / "text.txt").write_text("Mostly harmless. " * 200)
    (home / "sweep.yaml").write_text(filled(SWEEP, home))
    (home / "profile.json").write_text(json.dumps(foreign(home)))
    mine = {p for p in home.rglob("*") if p.is_file()}
    run(home, request.param)
    # What a command keeps elsewhere in the home (calibrated peaks) is searched too.
    kept = [p for p in home.rglob("*") if p.is_file() and p not in mine]
    for path in kept:
        if home / "results" not in path.parents:
            shutil.copy(path, home / "results" / f"kept-{path.name}")
    return home / "results"


@pytest.mark.torch
def test_nothing_leaks(written: Path) -> None:
    here = {socket.gethostname(), socket.getfqdn()}
    bad = {USER, HOME, "zaphod", "marvin42", "heartofgold", *SECRETS.values()}
    bad |= {name for name in here if len(name) > 4 and name != "localhost"}
    bad |= {str(ROOT), str(written), sys.prefix, str(Path(sys.executable).resolve().parent)}
    files = [p for p in written.rglob("*") if p.is_file()]
    suffixes = {p.suffix for p in files}
    assert suffixes >= {".md", ".json", ".gz"}
    if (written / "run").exists():
        assert suffixes >= {".html", ".tex", ".csv", ".parquet", ".zip", ".png", ".pdf", ".svg"}
    leaks = [
        f"{path.name}: {word}"
        for path in files
        for data in readings(path)
        for word in bad
        if word.encode() in data
    ]
    assert leaks == []


def test_the_search_finds_what_is_there(tmp_path: Path) -> None:
    """In a trace, a zip, and the streams of a PDF."""
    trace = ROOT / "traces" / "tiny-static-m" / "dense" / "prefill.trace.json.gz"
    (tmp_path / "t.gz").write_bytes(gzip.compress(gzip.decompress(trace.read_bytes()) + b"zaphod"))
    with zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x", b"zaphod" * 10)
    (tmp_path / "f.pdf").write_bytes(b"%PDF stream\n" + zlib.compress(b"zaphod" * 10))
    for path in tmp_path.iterdir():
        assert any(b"zaphod" in data for data in readings(path)), path.name
