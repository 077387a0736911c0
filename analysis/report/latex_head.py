r"""What every LaTeX file of ours begins with: the macros that set its tables and figures.

In: the name of the tool. Out: lines that may be read twice.
"""

from __future__ import annotations

from collections.abc import Iterable

from prunescope.analysis.report.escape import latex
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.lazy_pattern import lazy_pattern
from prunescope.taxonomy.words import when

_PREFIX = lazy_pattern(r"[A-Za-z0-9.\-]{0,40}")
_HEAD = r"""% Written by TOOL. Needs \usepackage{booktabs,siunitx,graphicx,array} in the preamble.
% A table wider than the text is scaled to it.
\providecommand{\prunescopefit}[1]{\sbox0{#1}\ifdim\wd0>\linewidth
  \resizebox{\linewidth}{!}{\usebox0}\else\usebox0\fi}
% The folder of this file, so that its figures are found from wherever it is \input.
\def\prunescopehere{}
\ifdefined\CurrentFilePathUsed\edef\prunescopehere{\CurrentFilePathUsed}\fi
\ifx\prunescopehere\empty\else\edef\prunescopehere{\prunescopehere/}\fi
% A figure: its environment, its file without the ending, pdf before png, its alt text and its
% caption; a warning without a file.
\providecommand{\prunescopedraw}[4]{%
  \IfFileExists{\prunescopehere #2.pdf}{\prunescopeset{#1}{#2.pdf}{#3}{#4}}{%
    \IfFileExists{\prunescopehere #2.png}{\prunescopeset{#1}{#2.png}{#3}{#4}}{%
      \PackageWarning{prunescope}{no \prunescopehere #2.pdf or .png: the figure is left out;
        write it with --format tex,pdf}}}}
% It is as wide as it was drawn, unless the line is narrower: then a line in the log says so.
\providecommand{\prunescopeset}[4]{\begin{#1}\centering
  \ifcsname KV@Gin@alt\endcsname\setkeys{Gin}{alt={#3}}\fi
  \sbox0{\includegraphics{\prunescopehere #2}}%
  \ifdim\wd0>1.09\linewidth\typeout{prunescope: #2 is drawn \the\wd0\space\space wide for a line of
    \the\linewidth, so that its type gets smaller than 6 pt; draw it again with --width MM}\fi
  \ifdim\wd0>\linewidth\resizebox{\linewidth}{!}{\usebox0}\else\usebox0\fi
  \ifdefined\Description\Description{#3}\fi#4\end{#1}}
"""


def head(tool: str) -> str:
    """Return the lines that every file begins with; they may be read twice."""
    return _HEAD.replace("TOOL", latex(tool).replace("\n", " "))


def check_prefix(label_prefix: str) -> str:
    """Return the prefix with its dash; raise PrunescopeError where it cannot stand in a label."""
    if not _PREFIX.fullmatch(label_prefix):
        raise PrunescopeError(
            f"--label-prefix {label_prefix!r} cannot stand in a label",
            hint="letters, digits, dots and dashes, as in first or llama-8b",
        )
    return f"{label_prefix.removesuffix('-')}-" if label_prefix else ""


def table_row(cells: Iterable[str]) -> str:
    """Return a row of a table.

    A bracket at its beginning would be read as an argument of the end of the row before.
    """
    line = " & ".join(cells)
    return when(line.startswith("["), "{}") + line + r" \\"
