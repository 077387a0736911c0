"""`check` takes what `analyze` takes: options, folders of reports, phases as printed, roles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import prunescope
from prunescope.check_summary import summary_text
from prunescope.cli import main
from prunescope.rules import parse_rules
from prunescope.taxonomy.errors import PrunescopeError
from tests.chrome import chrome, k, op, save, step

Real = Callable[[str], Path]
DECODE = "mi300x_sglang_qwen3-8b_decode_graph.json.gz"


def six_steps(folder: Path) -> Path:
    """A product of 10 or 11 us in each of six steps."""
    times = [10 + number % 2 for number in range(6)]
    product = ("aten::mm", [64, 64], [64, 64])
    steps = [step(number, op(*product, kernels=[k(us=us)])) for number, us in enumerate(times)]
    return save(chrome(*steps), folder / "t.json")


def test_a_model_gives_roles_and_a_phase_its_printed_name(real_trace: Real) -> None:
    """`trace (decode)` is decode, and trace; the efficiency of down is 47.3 % in the table."""
    rules = ["decode.roles.down.efficiency >= 40%", "trace.roles.down.time <= 2ms",
             "roles.gate_up.share >= 20%"]  # fmt: skip
    outcome = prunescope.check(real_trace(DECODE), require=rules, model="qwen3-8b")
    values = [verdict.value for verdict in outcome.verdicts]
    # 1.462 ms of a step; gate_up 2.418 of 9.773 ms busy
    assert values == pytest.approx([0.4726, 1.462e6, 0.2474], rel=1e-3)
    assert {verdict.state for verdict in outcome.verdicts} == {"undecided"}  # one step
    with pytest.raises(PrunescopeError, match="no phase 'prefill'") as refused:
        prunescope.check(real_trace(DECODE), require="prefill.wall <= 1s")
    assert refused.value.hint == "it has trace (decode)"
    with pytest.raises(PrunescopeError, match="none is given"):  # before anything is read
        prunescope.check("absent", require="decode.history <= 5%")
    bare = prunescope.check(real_trace(DECODE), require=[*rules, "wall > 1ns"]).verdicts
    assert [verdict.value for verdict in bare[:2]] == [None, None]  # no roles without a config


def test_the_folder_of_a_report_is_read(tmp_path: Path) -> None:
    report = prunescope.analyze(six_steps(tmp_path))
    report.save(tmp_path / "out")
    for subject in (tmp_path / "out", tmp_path / "out" / "report.json", report):
        (verdict,) = prunescope.check(subject, require="wall <= 1ms").verdicts
        assert verdict.state == "held"
        with pytest.raises(PrunescopeError, match="analysed already: --model"):
            prunescope.check(subject, require="wall <= 1ms", model="qwen3-8b")
    with pytest.raises(TypeError, match="modle"):
        prunescope.check(tmp_path / "t.json", require="wall <= 1ms", modle="qwen3-8b")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("roles.downn.time <= 1ms", "no role is called 'downn'"),
        ("decode.roles.down.speed <= 1ms", "roles.ROLE.efficiency"),
        ("roles.down.efficiency <= 1ms", "no unit 'ms'"),
        ("roles.down.time <= 40%", "no unit '%'"),
        ("history <= 3ms", "no unit 'ms'"),
    ],
)
def test_rules_that_name_nothing(rule: str, message: str) -> None:
    with pytest.raises(PrunescopeError) as refused:
        parse_rules([rule])
    assert message in str(refused.value)


def test_the_summary_is_markdown_that_nothing_breaks(tmp_path: Path) -> None:
    trace = six_steps(tmp_path)
    text = summary_text(prunescope.check(trace, require=["wall <= 1ms", "wall <= 1ns"]))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 4 and {line.count("|") for line in lines} == {6}
    assert "not all rules hold" in text
    path = tmp_path / "s.md"
    for count in (1, 2):  # it is added to
        main(["check", str(trace), "-r", "wall <= 1ms", "--summary", str(path)])
        assert path.read_text().count("### prunescope check") == count


def test_a_wrong_capture_stands_beside_the_numbers(
    real_trace: Real, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["analyze", str(real_trace(DECODE)), "--model", "llama-3.1-8b"])
    printed = " ".join(capsys.readouterr().out.split())
    caveat = "36 layers in the trace, 32 in the config"
    assert printed.index(caveat) < printed.index("A step takes") and printed.count(caveat) == 1
    report = prunescope.analyze(real_trace(DECODE), model="llama-3.1-8b")
    assert len(report.caveats) == 1 and set(report.caveats) <= set(report.warnings)


def test_a_device_without_a_name_is_suggested_by_its_size(tmp_path: Path) -> None:
    """304 CUs and 206 GB are those of an MI300X alone."""
    trace = chrome(step(0, op("aten::mm", [64, 64], [64, 64], kernels=[k(us=10)])))
    trace["deviceProperties"] = [{"id": 0, "numSms": 304, "totalGlobalMem": 206_141_652_992}]
    report = prunescope.analyze(save(trace, tmp_path / "t.json"))
    assert any("--device mi300x" in warning for warning in report.warnings)
    trace["deviceProperties"][0]["numSms"] = 303
    report = prunescope.analyze(save(trace, tmp_path / "t.json"))
    assert not any("mi300x" in warning for warning in report.warnings)


def test_families_take_the_names_that_predict_takes() -> None:
    for name in ("Qwen/Qwen3-8B", "meta-llama/Llama-3.1-8B-Instruct", "QWEN3-8B"):
        assert prunescope.families(name)["families"]
        assert prunescope.predict(name, device="h100-sxm", phase="decode")["phases"]
