"""Figures in LaTeX: as PDF, else as PNG, and a warning where there is neither."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from prunescope.analysis.report.write import write_report
from tests.analysis.report import example

DOCUMENT = r"""\documentclass{article}
\usepackage{booktabs,siunitx,graphicx,array}
\begin{document}
\input{r/report}
\end{document}
"""


@pytest.mark.parametrize(
    ("formats", "shown"), [(("png",), "png"), (("pdf", "png"), "pdf"), (("svg",), None)]
)
def test_a_figure_is_shown_or_its_absence_told(
    tmp_path: Path, formats: tuple[str, ...], shown: str | None
) -> None:
    if not shutil.which("pdflatex"):
        pytest.skip("pdflatex is not installed")
    if subprocess.run(["kpsewhich", "siunitx.sty"], capture_output=True, check=False).returncode:
        pytest.skip("LaTeX has no siunitx")
    write_report(example.two_phases(), tmp_path / "r", formats=("tex", *formats))
    (tmp_path / "doc.tex").write_text(DOCUMENT)
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "doc.tex"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    log = (tmp_path / "doc.log").read_text(errors="replace").replace("\n", "")
    used = set(re.findall(r"<use\s+r/(ladder-prefill\.\w+)", log))
    assert used == ({f"ladder-prefill.{shown}"} if shown else set())
    assert ("Package prunescope Warning" in log) is (shown is None)
