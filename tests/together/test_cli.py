"""The commands as a user meets them: exit codes, where words and JSON go, what is written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import prunescope
from prunescope.analysis.schema.report import Report
from prunescope.demo import prunings
from prunescope.results.report import Report as PublicReport
from prunescope.results.result import with_fields_of
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import plain
from prunescope.taxonomy.runs.run_blocks import MeasuredPeaks
from prunescope.tracer.machine.memory_rates import MemoryRates
from tests.small_capture import quick_peaks

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process: (exit code, stdout, stderr)."""

    def call(*args: object) -> tuple[int, str, str]:
        code = prunescope.main([str(arg) for arg in args])
        seen = capsys.readouterr()
        return code, seen.out, seen.err

    return call


def report(**changes: Any) -> Report:
    plain = {"tool": "t", "subject": {"name": "x"}, "baseline": None, "device": {}, "phases": {}}
    return Report(**{**plain, **changes})


@pytest.fixture
def analyzed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """`analyze` with the analysis and the writer of files replaced; holds what they were given."""
    from prunescope.analysis import pipeline
    from prunescope.analysis.pipeline import Analysis
    from prunescope.analysis.report import write

    seen: dict[str, Any] = {"report": report()}

    def analyze(subject: Path, **given: Any) -> Analysis:
        seen.update(given, subject=subject)
        return Analysis(report=seen["report"])

    def write_report(_report: Report, folder: Path, **given: Any) -> None:
        seen.update(given, folder=folder)

    monkeypatch.setattr(pipeline, "analyze", analyze)
    monkeypatch.setattr(write, "write_report", write_report)
    return seen


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["tracee"], ["No such command 'tracee'", "'trace'", "prunescope --help"]),
        (["trace"], ["--model", "prunescope trace --help"]),
        (["trace", "--modle", "x"], ["--modle", "--model"]),
        (["trace", "--model", "x", "--phase", "foo"], ["'foo' is not one of", "'prefill'"]),
        (["trace", "--model", "x", "--batch", "0"], ["--batch"]),
        (["trace", "--model", "x", "--batch", "many"], ["--batch"]),
        (["trace", "--model", "x", "--sparsity", "1"], ["outside [0, 1)"]),
        (["trace", "--model", "x", "--sparsity", "-0.1"], ["outside [0, 1)"]),
        (["trace", "--model", "x", "--sparsity", "nan"], ["'nan' is not a number"]),
        (["trace", "--model", "x", "--method", "static-m", "--set", "layers"], ["KEY=VALUE"]),
        (["trace", "--model", "x", "--set", "a=1", "--set", "a=2"], ["given twice"]),
        (["analyze"], ["RUN|TRACE", "prunescope analyze --help"]),
        (["analyze", "t", "--sparsity", "half"], ["--sparsity"]),
        (["analyze", "t", "--peak", "bf17=9"], ["bf17=9", "bf16"]),
        (["analyze", "t", "--peak", "bf16=fast"], ["bf16=fast", "TFLOP/s"]),
        (["analyze", "t", "--peak", "bf16=0"], ["bf16=0"]),
        (["analyze", "t", "--peak", "bf16=inf"], ["bf16=inf"]),
        (["analyze", "no-such-file.json"], ["no-such-file.json"]),
        (["analyze", "t", "--format", "md"], ["--format", "--out FOLDER"]),
        (["analyze", "t", "--json", "no/such/folder/x.json"], ["does not exist"]),
        (["predict", "--model", "x"], ["--device"]),
        (["families", "more"], ["more"]),
    ],
)
def test_a_mistake_is_one_sentence_a_hint_and_exit_code_2(
    run: Run, args: list[str], words: list[str]
) -> None:
    code, out, err = run(*args)
    assert code == 2
    assert out == ""
    lines = err.rstrip("\n").split("\n")
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("  hint: ")
    assert "Traceback" not in err
    for word in words:
        assert word in err


def test_a_mistake_is_json_too_where_json_was_asked_for(run: Run) -> None:
    code, out, err = run("trace", "--model", "x", "--sparsity", "2", "--json")
    assert (code, out) == (2, "")
    error = json.loads(err.splitlines()[-1])["error"]
    assert error["problem"] == "sparsity 2.0 is outside [0, 1)"
    assert set(error) == {"problem", "hint"}


def test_an_error_that_quotes_a_trace_cannot_steer_the_terminal(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object, **_options: object) -> None:
        raise PrunescopeError("kernel \x1b[31mred\nerror: fake", hint="none")

    monkeypatch.setattr("prunescope.analysis.pipeline.analyze", fail)
    code, _, err = run("analyze", "t.json")
    assert code == 2
    assert "\x1b" not in err
    assert err.count("\n") == 2


def test_no_command_shows_the_help(run: Run) -> None:
    code, out, err = run()
    assert (code, err) == (0, "")
    assert "analyze" in out


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"prunescope {prunescope.__version__}\n", "")


@pytest.mark.parametrize("command", ["families", "devices"])
def test_listings_are_json_or_a_table(run: Run, command: str) -> None:
    code, out, err = run(command, "--json")
    listed = json.loads(out)[command]
    assert (code, err) == (0, "")
    assert len(listed) > 5
    code, table, _ = run(command)
    assert code == 0
    for one in listed:
        assert (one.get("id") or one["name"]) in table


def test_a_published_method_says_what_runs_and_what_was_read(run: Run) -> None:
    """In `families --method`, in the list of all, and in the prediction of the method."""
    looked_up = json.loads(run("families", "--method", "streamingllm", "--json")[1])["published"]
    every = {one["name"]: one for one in json.loads(run("families", "--json")[1])["published"]}
    assert every["StreamingLLM"] == looked_up
    assert (looked_up["family"], looked_up["knobs"]) == ("kv-evict", {"keep": "sinks"})
    assert "four first keys" in looked_up["executes"]
    asked = ("predict", "--model", "llama-3.1-8b", "--device", "h100-sxm", "--sparsity", 0.5)
    args = (*asked, "--method", "StreamingLLM")
    assert json.loads(run(*args, "--json", "-")[1])["points"][0]["published"] == looked_up
    assert json.loads(run(*asked, "--method", "kv-evict", "--json", "-")[1])["points"][0][
        "published"
    ] is None  # fmt: skip
    for table in (run("families", "--method", "StreamingLLM")[1], run(*args)[1]):
        words = " ".join(table.split())
        assert "StreamingLLM executes four first keys" in words
        assert "kv-evict runs instead: a window that grows with the text" in words
        assert "arXiv 2309.17453" in words
    code, _, err = run("families", "--method", "StreamingLM")
    assert code != 0
    assert "nearest: streamingllm" in err


def test_predict_prints_json_alone_or_a_table(run: Run) -> None:
    args = ("predict", "--model", "llama-3.1-8b", "--device", "h100-sxm", "--method", "static-m")
    code, out, err = run(*args, "--sparsity", 0.5, "--phase", "prefill", "--json", "-")
    ladder = json.loads(out)["phases"]["prefill"]["ladder"]
    assert code == 0
    assert ladder["nominal"] == 2.0  # 1 / (1 - 0.5)
    assert "prefill" in err
    code, out, err = run(*args, "--sparsity", 0.5, "--phase", "prefill")
    assert (code, err) == (0, "")
    assert "2.00" in out


def test_analyze_passes_its_options_on(run: Run, analyzed: dict[str, Any], tmp_path: Path) -> None:
    code, _, _ = run(
        "analyze", "t.json", "--baseline", "d.json", "--sparsity", 0.5, "--device", "l4",
        "--peak", "c10::BFloat16=121", "--peak", "fp32=30", "--bandwidth", 300,
        "--phase-pattern", "step", "--eager-trace", "e.json", "--baseline-eager-trace", "f.json",
        "--out", tmp_path / "o", "--format", "md, csv",
    )  # fmt: skip
    options = analyzed["options"]
    assert code == 0
    assert (analyzed["subject"], analyzed["baseline"]) == (Path("t.json"), Path("d.json"))
    assert (options.sparsity, options.device, options.bandwidth) == (0.5, "l4", 300.0)
    assert options.peaks == {"bf16": 121.0, "fp32": 30.0}
    assert options.phase_pattern == "step"
    assert (options.eager_trace, options.baseline_eager_trace) == (Path("e.json"), Path("f.json"))
    assert (analyzed["folder"], analyzed["formats"]) == (tmp_path / "o", ["md", "csv"])


def test_nothing_is_written_beside_a_trace_unasked(
    run: Run, analyzed: dict[str, Any], tmp_path: Path
) -> None:
    trace = tmp_path / "t.json"
    trace.write_text("{}")
    assert run("analyze", trace)[0] == 0
    assert "folder" not in analyzed
    assert list(tmp_path.iterdir()) == [trace]


@pytest.mark.parametrize(
    ("runs", "subject", "folder"),
    [
        (("F/dense", "F/pruned"), "F", "F/report"),
        (("F/dense", "F/pruned"), "F/pruned", "F/report"),
        (("F/dense", "F/pruned"), "F/dense", "F/dense/report"),  # not over that of the pair
        (("F/dense",), "F/dense", "F/report"),
        (("F/dense",), "F", "F/report"),
        (("mine",), "mine", "mine/report"),
    ],
)
def test_where_the_report_of_a_run_goes(
    run: Run,
    analyzed: dict[str, Any],
    tmp_path: Path,
    runs: tuple[str, ...],
    subject: str,
    folder: str,
) -> None:
    for name in runs:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "run.json").write_text("{}")
    assert run("analyze", tmp_path / subject)[0] == 0
    assert analyzed["folder"] == tmp_path / folder
    assert analyzed["formats"] == ["md", "json", "html"]


@pytest.mark.usefixtures("analyzed")
def test_json_goes_alone_to_standard_output(run: Run) -> None:
    code, out, err = run("analyze", "t.json", "--json", "-")
    assert code == 0
    assert json.loads(out)["schema"] == 1
    assert "x" in err


@pytest.mark.usefixtures("analyzed")
def test_json_replaces_a_file_whole(run: Run, tmp_path: Path) -> None:
    target = tmp_path / "r.json"
    target.write_text("old")
    link = tmp_path / "link.json"
    link.symlink_to(target)
    code, out, _ = run("analyze", "t.json", "--json", link)
    assert code == 0
    assert not out.startswith("{")
    assert json.loads(target.read_bytes())["schema"] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.json", "r.json"]
    assert link.is_symlink()


@pytest.mark.usefixtures("analyzed")
def test_json_to_a_device_file(run: Run) -> None:
    assert run("analyze", "t.json", "--json", "/dev/null")[0] == 0
    assert not Path("/dev/null").is_file()


def test_a_partial_result_is_exit_code_3(run: Run, analyzed: dict[str, Any]) -> None:
    analyzed["report"] = report(partial=True)
    code, out, _ = run("analyze", "t.json", "--json", "-")
    assert code == 3
    assert json.loads(out)["partial"] is True


@pytest.mark.parametrize(
    ("error", "code"),
    [(KeyboardInterrupt(), 130), (OSError(28, "No space left on device", "r.md"), 2)],
)
def test_faults_of_the_surroundings(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    def fail(*_args: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr("prunescope.analysis.pipeline.analyze", fail)
    seen, out, err = run("analyze", "t.json")
    assert (seen, out) == (code, "")
    assert ("r.md: No space left on device" in err) == (code == 2)


def test_a_library_that_is_missing_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object, **_options: object) -> None:
        raise ModuleNotFoundError("No module named 'torch.x'", name="torch.x")

    monkeypatch.setattr("prunescope.analysis.pipeline.analyze", fail)
    code, _, err = run("analyze", "t.json")
    assert code == 2
    assert "torch is not installed" in err


def test_a_reader_that_leaves_early_is_no_error_message() -> None:
    command = f"{sys.executable} -m prunescope families --json | head -n 1"
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert (done.stdout, done.stderr) == ("{\n", "")


def test_shell_completion_knows_the_commands() -> None:
    words = {
        "_PRUNESCOPE_COMPLETE": "complete_bash",
        "COMP_WORDS": "prunescope tr",
        "COMP_CWORD": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "prunescope"], cwd=ROOT, env={**os.environ, **words},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["trace"]


@pytest.mark.torch
def test_calibrate_writes_a_device_with_its_spread(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import prunescope.tracer.machine.calibrate as calibrate
    from prunescope.taxonomy.kept_calibrations import newest_calibration
    from prunescope.tracer.machine.times_by_size import PassTimes

    rates = iter((1e12, 3e12, 2e12))

    def measure(_device: object, _dtype: str, **_options: object) -> MeasuredPeaks:
        return MeasuredPeaks(
            dense_flop_per_s={"bf16": next(rates)},
            byte_per_s=4e10,
            kernel_floor_ns=900,
            repeats=7,
            threads=2,
        )

    memory = (
        MemoryRates(copy_byte_per_s=c, cache_byte_per_s=9e10, dispatch_ns=800)
        for c in (2e10, 3e10, 4e10)
    )
    monkeypatch.setattr(calibrate, "measure_peaks", measure)
    monkeypatch.setattr(calibrate, "measure_memory", lambda _device: next(memory))
    monkeypatch.setattr(calibrate, "watched", lambda measured, _device: (measured(), []))
    monkeypatch.setattr(calibrate, "measure_times", lambda _device: PassTimes())
    device = tmp_path / "d.json"
    code, out, err = run("calibrate", "--device", "cpu", "--json", "-", "--out", device)
    entry = json.loads(out)
    assert code == 0
    assert entry == json.loads(device.read_bytes())
    assert entry["dense_flop_per_s"] == {"bf16": 3e12}  # the best of 1, 3 and 2
    assert entry["measured"]["spread"]["dense_flop_per_s"] == {"bf16": 1.0}  # (3 - 1) / 2
    assert entry["measured"]["spread"]["byte_per_s"] == 0.0
    assert entry["measured"]["copy_byte_per_s"] == 3e10
    assert entry["measured"]["spread"]["copy_byte_per_s"] == pytest.approx(2 / 3)
    assert entry["measured"]["agree"] is False  # passes that are 100 % apart
    assert "the passes differ" in err
    assert plain(newest_calibration(entry["aliases"][0])) == entry
    assert newest_calibration("another device") is None
    known = json.loads(run("devices", "--json")[1])["devices"][0]
    assert set(entry) - {"measured"} <= set(known)


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz", "intel-xeon-gold-6338"),
        ("AMD EPYC 7B13 64-Core Processor", "amd-epyc-7b13-64-core"),
        ("NVIDIA L4", "nvidia-l4"),
    ],
)
@pytest.mark.torch
def test_the_name_of_a_device(name: str, slug: str) -> None:
    from prunescope.taxonomy.kept_calibrations import slug as of

    assert of(name) == slug


@pytest.mark.torch
def test_doctor_names_every_check(run: Run) -> None:
    code, out, err = run("doctor")
    assert code == 0, err
    for check in ("torch", "device", "profiler", "clocks", "hta", "demo"):
        assert check in out


@pytest.mark.torch
def test_trace_then_analyze(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick_peaks(monkeypatch)
    folder = tmp_path / "first"
    code, out, err = run(
        "trace", "--model", "tiny-llama", "--method", "static-m", "--sparsity", 0.5, "--prompt-len",
        16, "--decode-steps", 2, "--repeats", 3, "--steps", 2, "--out", folder, "--json",
    )  # fmt: skip
    assert code == 0, err
    summary = json.loads(out)
    assert set(summary["runs"]) == {"dense", "pruned"}
    assert len(summary["runs"]["pruned"]["phases"]["decode"]["samples_ns"]) == 3
    code, out, err = run("analyze", folder, "--format", "md,json", "--json", "-")
    assert code == 0, err
    phases = json.loads(out)["phases"]
    assert set(phases) == {"prefill", "decode"}
    assert phases["prefill"]["family"]["id"] == "static-m"
    assert (folder / "report" / "report.md").is_file()
    assert prunescope.analyze(folder / "pruned").phases.keys() == phases.keys()


def test_demo_gives_a_verdict_on_each_way_of_pruning(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[dict[str, Any]] = []

    def trace(**options: Any) -> Path:
        asked.append(options)
        return Path(options["out"])

    monkeypatch.setattr(prunescope, "trace", trace)
    monkeypatch.setattr("prunescope.tracer.machine.peaks.faster_dtype", lambda *_: "fp32")
    noisy = report(warnings=["timing not valid \x1b[1m"])
    monkeypatch.setattr(prunescope, "analyze", lambda *_: with_fields_of(noisy, PublicReport))
    code, out, _ = run("demo", "--out", tmp_path)
    assert [options["out"] for options in asked] == [tmp_path / m for m, _ in prunings()["methods"]]
    assert code == 0 and all(f"{method} {s:g}" in out for method, s in prunings()["methods"])
    assert {options["dtype"] for options in asked} == {"fp32"} and "dequantised to fp32" in out
    assert (out.count("timing not valid"), out.count("\x1b")) == (3, 0)
    assert all((options["out"] / "report" / "report.html").is_file() for options in asked)
