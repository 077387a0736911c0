"""Nothing that prunescope writes tells who ran it, where, or with which keys."""

from __future__ import annotations

import gzip
import re
import socket
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
USER, HOME = "quentinzaphod", "zaphodshome"
SECRETS = {
    "HF_TOKEN": "hf_" + "ZaphodTokenABCDEFGHIJKLMNOP",
    "WANDB_API_KEY": "0123456789zaphodkey0123456789abcdef",
    "AWS_SECRET_ACCESS_KEY": "zaphodawsSECRETzaphodawsSECRET",
    "OPENAI_API_KEY": "sk-zaphodzaphodzaphodzaphod",
    "DB_URL": "postgres://zaphod:marvin42@heartofgold.example/db",
}
TRACE = ["trace", "--model", "{model}", "--method", "static-nk", "--sparsity", "0.5",
         "--phase", "prefill", "--prompt-len", "8", "--repeats", "3", "--warmup", "0", "--steps",
         "2", "--threads", "1", "--out", "{out}/run"]  # fmt: skip
FORMATS = "md,html,json,tex,csv,parquet,perfetto,png,pdf,svg"
ANALYZE = ["analyze", "{out}/run", "--format", FORMATS, "--json", "{out}/told.json"]


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


def run(home: Path, words: list[str]) -> None:
    """A command of a user with a home of their own, and secrets in the environment."""
    model = home / "models" / "secretproject"
    names = {"{model}": str(model), "{out}": str(home / "results")}
    args = [re.sub(r"\{\w+\}", lambda m: names[m[0]], word) for word in words]
    environment = {
        **SECRETS, "HOME": str(home), "USER": USER, "LOGNAME": USER, "HOSTNAME": "heartofgold",
        "PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": str(home / "cache"), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(ROOT / "prunescope.py"), *args], cwd=home, env=environment,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that trace, analyze and bundle write for a model in the user's home."""
    pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForCausalLM

    from taxonomy.presets import preset_config

    home = tmp_path_factory.mktemp("homes") / HOME / USER
    (home / "results").mkdir(parents=True)
    made = AutoConfig.for_model(**preset_config("tiny-llama"))
    model = AutoModelForCausalLM.from_config(made)
    model.save_pretrained(home / "models" / "secretproject")
    for words in (TRACE, ANALYZE, ["bundle", "{out}/run", "-o", "{out}/evidence.zip"]):
        run(home, words)
    return home / "results"


@pytest.mark.torch
def test_nothing_leaks(written: Path) -> None:
    here = {socket.gethostname(), socket.getfqdn()}
    bad = {USER, HOME, "zaphod", "marvin42", "heartofgold", *SECRETS.values()}
    bad |= {name for name in here if len(name) > 4 and name != "localhost"}
    bad |= {str(ROOT), str(written), sys.prefix, str(Path(sys.executable).resolve().parent)}
    files = [p for p in written.rglob("*") if p.is_file()]
    assert {p.suffix for p in files} >= {".md", ".html", ".json", ".tex", ".csv", ".parquet",
                                         ".gz", ".png", ".pdf", ".svg", ".zip"}  # fmt: skip
    leaks = [
        f"{path.name}: {word}"
        for path in files
        for data in readings(path)
        for word in bad
        if word.encode() in data
    ]
    assert leaks == []


@pytest.mark.torch
def test_the_search_finds_what_is_there(written: Path, tmp_path: Path) -> None:
    """In a trace, a zip, and the streams of a PDF."""
    trace = next(written.rglob("*.trace.json.gz"))
    (tmp_path / "t.gz").write_bytes(gzip.compress(gzip.decompress(trace.read_bytes()) + b"zaphod"))
    with zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x", b"zaphod" * 10)
    (tmp_path / "f.pdf").write_bytes(b"%PDF stream\n" + zlib.compress(b"zaphod" * 10))
    for path in tmp_path.iterdir():
        assert any(b"zaphod" in data for data in readings(path)), path.name
