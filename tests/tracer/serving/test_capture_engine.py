"""`prunescope capture` against a stand-in server on the loopback, which speaks both protocols."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import prunescope
from prunescope.cli import main
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.runs.serving import percentiles, read_serving
from prunescope.tracer.serving.address import parse_address
from prunescope.tracer.serving.written_traces import scrubbed_json
from tests.chrome import chrome, k, op, save, step
from tests.tracer.serving.standin import StandIn, serving

LOCAL = ("http://127.0.0.1:8000", "http://localhost:8000", "http://127.8.9.1:1", "http://[::1]:30000/",
         "http://LOCALHOST:8000/v1")  # fmt: skip
ELSEWHERE = (
    "http://192.168.0.7:8000", "http://example.org", "http://localhost.example.org",
    "http://127.0.0.1.example.org:8000", "http://10.0.0.1", "http://[::2]:8000", "http://0.0.0.0:1",
    "http://[::ffff:127.0.0.1]:8000", "http://127.1:8000", "http://2130706433", "http://0x7f000001",
    "http://localhost.:8000", "http://[::1%25eth0]:8000",
)  # fmt: skip
INVALID = (
    "127.0.0.1:8000", "ftp://127.0.0.1", "http://", "http://127.0.0.1:port", "http://[::1",
    "http://user@127.0.0.1", "http://a:b@127.0.0.1", "http://127.0.0.1\\@example.org",
    "http://127.0.0.1:8000/admin", "http://127.0.0.1?x=1", "http://127.0.0.1:0", "http://a b",
    "file:///etc/passwd", "",
)  # fmt: skip


@pytest.mark.parametrize("url", LOCAL)
def test_an_address_on_this_machine(url: str) -> None:
    assert parse_address(url, allow_remote=False).is_local


@pytest.mark.parametrize("url", ELSEWHERE)
def test_an_address_elsewhere_is_refused_by_its_text(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No name is looked up for that, and nothing is sent."""

    def never(*_args: Any, **_more: Any) -> None:
        raise AssertionError("a name was looked up")

    monkeypatch.setattr("socket.getaddrinfo", never)
    monkeypatch.setattr("socket.create_connection", never)
    with pytest.raises(PrunescopeError, match="not on this machine") as refused:
        prunescope.capture_engine(engine="vllm", url=url)
    assert "--allow-remote" in str(refused.value)
    assert not parse_address(url, allow_remote=True).is_local


@pytest.mark.parametrize("url", INVALID)
def test_what_is_no_address(url: str) -> None:
    for allow_remote in (False, True):
        with pytest.raises(PrunescopeError, match="--url"):
            parse_address(url, allow_remote=allow_remote)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """A trace whose metadata and frames name a machine, a user and a path."""
    values = chrome(step(0, op("aten::mm", [4, 4], [4, 4], kernels=[k(us=10)])))
    values["traceName"] = "/home/alice/traces/machine1_4711.pt.trace.json"
    values["key"] = "api_key=sk-abcdefghijklmnopqrstuvwxyz012345"
    plain = save(values, tmp_path / "t.json").read_bytes()
    path = tmp_path / "stored.json.gz"
    path.write_bytes(gzip.compress(plain))
    return path


def capture(standin: StandIn, out: Path, **options: Any) -> Path:
    given = {"engine": "vllm", "prompts": 3, "prompt_len": 4, "new_tokens": 6, **options}
    return prunescope.capture_engine(url=standin.url, out=out, **given)


def test_a_capture_of_vllm(trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A round to warm up, one that is timed, five prefills and a round of decode in the profile.
    A proxy in the environment is ignored."""
    monkeypatch.setenv("HTTP_PROXY", "http://192.0.2.1:9")
    monkeypatch.setenv("http_proxy", "http://192.0.2.1:9")
    (tmp_path / "traces").mkdir()
    (tmp_path / "traces" / "old.rank0.json.gz").write_bytes(trace.read_bytes())
    with serving(StandIn(trace, tmp_path / "traces")) as standin:
        folder = capture(standin, tmp_path / "run", traces=tmp_path / "traces")
    start, stop = (standin.paths.index(f"/{word}_profile") for word in ("start", "stop"))
    completions = [n for n, path in enumerate(standin.paths) if path == "/v1/completions"]
    assert (
        sum(n < start for n in completions) == 6 and sum(start < n < stop for n in completions) == 8
    )
    lengths = [values["max_tokens"] for path, values in standin.seen[start:stop] if values]
    assert lengths == [1] * 5 + [6] * 3
    assert len({str(prompt) for prompt in standin.prompts}) == 14  # no prefix cache helps
    assert sorted(path.name for path in folder.iterdir()) == ["rank0.trace.json.gz", "serving.json"]
    record = read_serving(folder)
    assert (record.model, record.engine) == ("Qwen/Qwen3-8B", "vllm")
    assert record.versions["vllm"] == "0.0-stand-in"
    assert [request.tokens for request in record.requests] == [6, 6, 6]
    assert record.ttft_ns == percentiles([request.ttft_ns for request in record.requests])
    text = gzip.decompress((folder / "rank0.trace.json.gz").read_bytes())
    for secret in (b"alice", b"machine1", b"sk-abc", b"/home"):
        assert secret not in text
    report = prunescope.analyze(folder)
    assert not report.warnings  # serving.json is no trace of a rank
    (phase,) = report.phases.values()
    assert phase.busy_ns == 10_000


def test_a_capture_of_sglang_finds_its_own_traces(trace: Path, tmp_path: Path) -> None:
    """SGLang takes the folder with the request; each rank is a file."""
    names = ("1-TP-0.trace.json.gz", "1-TP-1.trace.json.gz")
    with serving(StandIn(trace, names=names)) as standin:
        folder = capture(standin, tmp_path / "run", engine="sglang")
    (started,) = (values for path, values in standin.seen if path == "/start_profile")
    assert started["record_shapes"] and not Path(started["output_dir"]).exists()  # scratch
    assert sorted(path.name for path in folder.glob("rank*")) == [
        "rank0.trace.json.gz", "rank1.trace.json.gz",
    ]  # fmt: skip


def test_the_engine_may_name_the_folder(trace: Path, tmp_path: Path) -> None:
    (tmp_path / "traces").mkdir()
    with serving(StandIn(trace, tmp_path / "traces", names_folder=True)) as standin:
        assert (capture(standin, tmp_path / "run") / "rank0.trace.json.gz").is_file()


def test_prompts_of_a_file(trace: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("one\n\ntwo\n")
    with serving(StandIn(trace)) as standin:
        folder = capture(
            standin, tmp_path / "run", engine="sglang", prompts=str(tmp_path / "p.txt")
        )
    assert set(standin.prompts) == {"one", "two"}
    record = read_serving(folder)
    assert record.prompt_len is None and "prefixes" in record.notes[0]


FAILURES = {
    "drips": "did not answer in time",
    "silent": "did not answer in time",
    "dies": "ended an answer|breaks off",
    "no profiler": "status 404",
    "moved": "status 307",
    "fails": "failed within an answer: out of memory at x",
}


@pytest.mark.parametrize("broken", FAILURES)
def test_a_server_that_fails(broken: str, trace: Path, tmp_path: Path) -> None:
    """Each ends with an error in a few seconds, and leaves no folder."""
    begun = time.monotonic()
    with (
        serving(StandIn(trace, tmp_path, broken=broken)) as standin,
        pytest.raises(PrunescopeError, match=FAILURES[broken]),
    ):
        capture(standin, tmp_path / "run", traces=tmp_path, timeout=1.5)
    assert time.monotonic() - begun < 5
    assert not (tmp_path / "run").exists()


def test_a_server_that_boasts_of_tokens_and_names(trace: Path, tmp_path: Path) -> None:
    """10^30 tokens where 6 were asked for, and a name of 200,000 characters."""
    with serving(StandIn(trace, tmp_path, broken="boasts")) as standin:
        record = read_serving(capture(standin, tmp_path / "run", traces=tmp_path))
    assert [request.tokens for request in record.requests] == [6, 6, 6]
    assert len(record.model or "") <= 100


def test_an_event_that_says_why_an_answer_ends_is_no_token(trace: Path, tmp_path: Path) -> None:
    """It was counted as one: seven tokens of six, and a TPOT that was a sixth too short."""
    with serving(StandIn(trace, tmp_path, broken="says why it ends")) as standin:
        record = read_serving(capture(standin, tmp_path / "run", traces=tmp_path))
    assert [request.tokens for request in record.requests] == [6, 6, 6]


def test_answers_that_end_early_are_said(trace: Path, tmp_path: Path) -> None:
    with serving(StandIn(trace, tmp_path, broken="ends early")) as standin:
        record = read_serving(capture(standin, tmp_path / "run", traces=tmp_path))
    assert [request.tokens for request in record.requests] == [3, 3, 3]
    assert record.notes == [
        "3 of 3 timed answers ended before --new-tokens 6, the shortest after 3: the profiled "
        "window may hold as few steps of decode"
    ]


def test_a_trace_that_is_written_slowly_is_waited_for(trace: Path, tmp_path: Path) -> None:
    """It was called cut off while the engine still wrote it."""
    (tmp_path / "traces").mkdir()
    with serving(StandIn(trace, tmp_path / "traces", broken="stalls")) as standin:
        folder = capture(standin, tmp_path / "run", traces=tmp_path / "traces")
    assert gzip.decompress((folder / "rank0.trace.json.gz").read_bytes()).rstrip().endswith(b"}")


def test_a_trace_that_never_comes(tmp_path: Path) -> None:
    """The engine answered: what lacks is the trace."""
    (tmp_path / "traces").mkdir()
    with (
        serving(StandIn(None, tmp_path / "traces")) as standin,
        pytest.raises(PrunescopeError, match="wrote no trace into traces/"),
    ):
        capture(standin, tmp_path / "run", traces=tmp_path / "traces", timeout=1.0)
    assert standin.paths[-1] == "/stop_profile"


def test_a_trace_that_cannot_be_analysed_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The engine was killed while it wrote: the folder is kept, and the exit code is 3."""
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b'{"traceEvents": [{"ph": "X", "na'))
    (tmp_path / "traces").mkdir()
    with serving(StandIn(tmp_path / "cut.gz", tmp_path / "traces")) as standin:
        words = ["capture", "--engine", "vllm", "--url", standin.url, "--prompts", "2"]
        words += ["--prompt-len", "4", "--new-tokens", "6", "--out", str(tmp_path / "run")]
        assert main([*words, "--traces", str(tmp_path / "traces")]) == 3
    assert "cannot be analysed: rank0.trace.json.gz: the file is cut" in capsys.readouterr().out
    assert (tmp_path / "run" / "serving.json").is_file()


def test_a_profiler_is_stopped_where_a_request_fails(trace: Path, tmp_path: Path) -> None:
    """It would go on and fill the disk."""
    with (
        serving(StandIn(trace, tmp_path, broken="dies while profiled")) as standin,
        pytest.raises(PrunescopeError, match="ended an answer|breaks off"),
    ):
        capture(standin, tmp_path / "run", traces=tmp_path)
    assert "/start_profile" in standin.paths and standin.paths[-1] == "/stop_profile"


def test_what_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    with serving(StandIn()) as standin:
        for options, message in (
            ({"traces": tmp_path / "absent"}, "no folder"),
            ({"prompts": 0}, "no number of prompts"),
            ({"prompts": "absent.txt"}, "no file of prompts"),
            ({"new_tokens": 5}, "new.tokens"),
            ({"timeout": 0.0}, "timeout"),
            ({"out": tmp_path}, "exists"),
        ):
            given = {"out": tmp_path / "run", **options}
            with pytest.raises(PrunescopeError, match=message):
                capture(standin, **given)
    assert standin.seen == []


@given(st.recursive(st.none() | st.integers() | st.floats(allow_nan=False) | st.text(),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)),
       st.integers(1, 40))  # fmt: skip
def test_scrubbing_keeps_all_that_holds_nothing(values: Any, size: int) -> None:
    """However the text is cut into blocks: numbers to the digit, and strings without secrets."""
    text = json.dumps(values).encode()
    blocks = [text[at : at + size] for at in range(0, len(text), size)]
    whole = b"".join(scrubbed_json(iter([text])))
    assert b"".join(scrubbed_json(iter(blocks))) == whole
    if not any(character in text for character in b"@/\\.:~=-"):
        assert json.loads(whole) == values


def test_percentiles_are_values_by_the_nearest_rank() -> None:
    """Of 10 values the 50th percentile is the 5th, the 90th the 9th, the 99th the last."""
    assert percentiles(list(range(10, 0, -1))) == {"p50": 5, "p90": 9, "p99": 10}
    assert percentiles([7]) == {"p50": 7, "p90": 7, "p99": 7} and percentiles([]) == {}
