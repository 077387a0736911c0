"""A bundle of a sweep holds what the article prints, and what its authors add."""

from __future__ import annotations

import gzip
import json
import zipfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

import prunescope
from prunescope.analysis.bundle.bundle import bundle
from prunescope.analysis.bundle.same_files import is_whole_pdf, same_pdf
from prunescope.analysis.bundle.verify import verify
from prunescope.taxonomy.citations import citation_cff
from prunescope.taxonomy.errors import PrunescopeError
from tests.analysis.bundle.test_bundle import (
    failed,
    make,
    members,
    no_figures,
    rewritten,
)

__all__ = ["no_figures"]
pytestmark = pytest.mark.usefixtures("no_figures", "no_study_figures")
TABLE = "studies/study-1/table-results.tex"
PLAN = "studies/study-1/study.json"


@pytest.fixture
def no_study_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    formats = ("md", "json", "tex", "csv")
    monkeypatch.setattr("prunescope.analysis.bundle.study.FORMATS", formats)


def sweep(folder: Path) -> Path:
    """Two results, one of a function of the authors' own called Ours, and one that failed."""
    results = []
    for name, family in (("a", "static-nk-mlp"), ("b", "mine:by_norm"), ("c", "static-m")):
        done = name != "c"
        if done:
            make(folder / "runs" / name)
        results.append({
            "id": name, "family": family, "sparsity": 0.5, "phase": "prefill", "batch": 1,
            "prompt_len": 512, "state": "done" if done else "failed",
            "run": f"runs/{name}/pruned" if done else None,
            "error": None if done else "no such layer in /home/ada/x",
        })  # fmt: skip
    names = {"mine:by_norm": "Ours"}
    plan = {"schema": 1, "config": {"decode_steps": 8}, "names": names, "results": results}
    (folder / "sweep.json").write_text(json.dumps(plan))
    (folder.parent / "mine.py").write_text("def by_norm(model, sparsity):\n    return model\n")
    return folder


@cache
def _bundled(folder: Path) -> Path:
    source = sweep(folder / "s")
    return bundle([source], folder / "b.zip", sources=[folder / "mine.py"])


@pytest.fixture
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.getbasetemp() / "study"
    folder.mkdir(exist_ok=True)
    return _bundled(folder)


def test_it_holds_the_tables_of_the_article_and_the_source(study: Path) -> None:
    files = members(study)
    assert {TABLE, PLAN, "studies/study-1/table-results.csv", "studies/study-1/table-results.md",
            "studies/study-1/pareto.json", "source/mine.py"} <= set(files)  # fmt: skip
    assert b"Ours & 0.5" in files[TABLE] and rb"\label{tab:study-1-results}" in files[TABLE]
    assert b"/home/ada" not in files[PLAN]
    plan = json.loads(files[PLAN])["sweep"]
    assert [result["run"] for result in plan["results"]] == [
        "runs/a/pruned", "runs/b/pruned", None
    ]  # fmt: skip
    result = verify(study)
    assert result["ok"] and not result["partial"]


def test_the_readme_says_what_is_valid_what_to_install_and_each_limit_once(study: Path) -> None:
    text = members(study)["README.md"].decode()
    assert text.splitlines()[2] == "**2 of 2 results have valid times.**"
    assert "pip install 'prunescope @ git+https://github.com/prunescope/prunescope'" in text
    limits = text[text.index("## Limitations") :].splitlines()[2:]
    assert [line.partition(": ")[2] for line in limits if line] == [
        "one device (h100-sxm)", "parts to prune were chosen at random: speed, not quality"
    ]  # fmt: skip
    assert all(line.startswith("- all runs: ") for line in limits if line)


def test_the_wheel_may_lie_in_the_bundle(study: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "prunescope-9.9-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("prunescope-9.9.dist-info/METADATA", "Name: prunescope")
    run = study.parent / "s" / "runs" / "a"
    path = bundle([run], tmp_path / "w.zip", wheel=wheel)
    files = members(path)
    assert f"pip install install/{wheel.name}" in files["README.md"].decode()
    assert verify(path)["ok"] and not any(name.startswith("studies/") for name in files)
    for bad, says in ((tmp_path / "x.whl", "no file"), (study, "no wheel of prunescope")):
        with pytest.raises(PrunescopeError, match=says):
            bundle([run], tmp_path / "v.zip", wheel=bad)


def test_an_anonymous_study_names_no_function_and_no_error(study: Path, tmp_path: Path) -> None:
    source = study.parent / "s"
    files = members(bundle([source], tmp_path / "a.zip", anonymous=True))
    assert verify(tmp_path / "a.zip")["ok"]
    plan = json.loads(files[PLAN])["sweep"]
    assert [r["family"] for r in plan["results"]] == ["static-nk-mlp", "custom-1", "static-m"]
    assert plan["names"] == {"custom-1": "Ours"}  # its authors gave it for print
    assert all(r["error"] is None for r in plan["results"])
    assert b"by_norm" not in b"".join(files.values())
    named = tmp_path / "mine.py"
    named.write_text("# by ada@lovelace.org\n")
    with pytest.raises(PrunescopeError, match=r"not anonymous.*source/mine\.py"):
        bundle([source], tmp_path / "n.zip", sources=[named], anonymous=True)


Files = dict[str, bytes]


def faster(files: Files) -> str:
    files[TABLE] = files[TABLE].replace(b"1.49", b"1.94")
    return TABLE


def renamed(files: Files) -> str:
    files[PLAN] = files[PLAN].replace(b"Ours", b"Best")
    return PLAN


def added(files: Files) -> str:
    files["studies/study-1/table-best.tex"] = b"9x"
    return "studies/study-1/table-best.tex"


def gone(files: Files) -> str:
    del files[TABLE]
    return TABLE


def outside(files: Files) -> str:
    files[PLAN] = files[PLAN].replace(b"runs/b/pruned", b"../../etc/b")
    return PLAN


def spaced(files: Files) -> str:
    files[PLAN] += b" "
    return PLAN


def more_source(files: Files) -> str:
    files["source/more.py"] = b"x"
    return "bundle.json"  # where it stands among what was rebuilt, and not among what was added


def another_source(files: Files) -> str:
    files["source/mine.py"] += b"# edited\n"
    return "source/mine.py"


@pytest.mark.parametrize(
    "edit", [faster, renamed, added, gone, outside, spaced, more_source, another_source]
)  # fmt: skip
def test_an_edit_is_found_though_the_sums_are_new(
    edit: Callable[[Files], str], study: Path, tmp_path: Path
) -> None:
    wrong: list[str] = []
    path = rewritten(study, tmp_path / "e.zip", lambda files: wrong.append(edit(files)))
    assert wrong[0] in failed(path)


@pytest.mark.parametrize("names", [["gone.py"], ["mine.py", "mine.py"]])
def test_a_file_to_add_that_is_none_is_refused(
    names: list[str], study: Path, tmp_path: Path
) -> None:
    run, folder = study.parent / "s" / "runs" / "a", study.parent
    with pytest.raises(PrunescopeError, match="cannot add"):
        bundle([run], tmp_path / "x.zip", sources=[folder / name for name in names])


def test_the_command_and_its_twin_take_them(study: Path, tmp_path: Path) -> None:
    run, source = study.parent / "s" / "runs" / "a", study.parent / "mine.py"
    words = ["bundle", str(run), "--source", str(source), "-o", str(tmp_path / "c.zip")]
    assert prunescope.main(words) == 0
    twin = prunescope.bundle(run, out=tmp_path / "d.zip", source=source)
    assert (tmp_path / "c.zip").read_bytes() == twin.read_bytes()
    assert members(twin)["CITATION.cff"].decode() == citation_cff(
        prunescope.__version__, "If you use this evidence, please cite its paper, and the tool."
    )


def pdf(content: bytes, *, level: int = 9, more: bytes = b"") -> bytes:
    """A PDF of one packed stream, laid out as matplotlib does."""
    packed = zlib.compress(content, level)
    start = b"%PDF-1.4\n1 0 obj\n<< /Length 2 0 R /Filter /FlateDecode >>\nstream\n"
    body = start + packed + b"\nendstream\nendobj\n2 0 obj\n%d\nendobj\n" % len(packed)
    table = b"xref\n0 2\n0000000000 65535 f \n%010d 00000 n \n" % len(body)
    return body + more + table + b"startxref\n%d\n%%%%EOF\n" % len(body)


def test_pdfs_are_compared_unpacked() -> None:
    drawn = b"10.25 20.5 m 30.125 40.75 l S\n" * 20
    assert same_pdf(pdf(drawn), pdf(drawn, level=1))  # packed in another way
    assert same_pdf(pdf(drawn), pdf(drawn.replace(b"20.5", b"20.500000000001")))
    assert not same_pdf(pdf(drawn), pdf(drawn.replace(b"20.5", b"21.5")))
    assert not same_pdf(pdf(drawn), pdf(drawn) + b"hidden")
    assert not same_pdf(pdf(drawn), pdf(drawn, more=b"3 0 obj\n(hidden)\nendobj\n"))
    assert is_whole_pdf(pdf(drawn)) and not is_whole_pdf(pdf(drawn) + b"x")
    assert not is_whole_pdf(pdf(drawn, more=b"<< /OpenAction 4 0 R >>\n"))


@pytest.mark.parametrize(
    "more",
    [
        b"<< /#4aavaScript 4 0 R >>\n",
        b"<< /Open#41ction 4 0 R >>\n",
        b"<< /Type /ObjStm >>\n",
        b"3 0 obj\n<</Length 9>>stream\nx\nendstream\nendobj\n",
        b"<< /Filter [/ASCIIHexDecode /FlateDecode] >>\n",
        b"<< /Filter [/FlateDecode /FlateDecode] >>\n",
    ],
)
def test_a_pdf_that_hides_what_it_holds_is_refused(more: bytes) -> None:
    assert not is_whole_pdf(pdf(b"1 2 m S\n", more=more))


@pytest.mark.parametrize(
    "content",
    [
        b"TOKEN = 'hf_" + b"Nanosecond0Wire1Token2Abcd'\n",
        b"-----BEGIN RSA PRIVATE " + b"KEY-----\nMIIE\n",
        "def prune(model, sparsity): ...".encode("utf-16"),
        gzip.compress(b"def prune(model, sparsity): ..."),
        b"\x89PNG\r\n\x1a\n",
    ],
)
@pytest.mark.parametrize("anonymous", [False, True])
def test_a_source_that_holds_or_could_hide_a_token_is_refused(
    content: bytes, study: Path, tmp_path: Path, *, anonymous: bool
) -> None:
    path = tmp_path / "mine.py"
    path.write_bytes(content)
    run = study.parent / "s" / "runs" / "a"
    with pytest.raises(PrunescopeError, match=r"cannot add .*mine\.py: it (holds|is no UTF-8)"):
        bundle([run], tmp_path / "x.zip", sources=[path], anonymous=anonymous)
    assert not (tmp_path / "x.zip").exists()


def test_code_with_names_like_those_of_secrets_is_added(study: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("token = tokenizer.eos_token_id\nkey = lambda layer: layer.weight.norm()\n")
    out = bundle([study.parent / "s" / "runs" / "a"], tmp_path / "x.zip", sources=[path])
    assert members(out)["source/mine.py"] == path.read_bytes()
