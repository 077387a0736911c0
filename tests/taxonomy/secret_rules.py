"""Writes taxonomy/kept_patterns.py anew from the installed detect-secrets:

python -m tests.taxonomy.secret_rules > taxonomy/kept_patterns.py
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import sys
from importlib import metadata
from pathlib import Path

KEPT = Path(__file__).resolve().parents[2] / "taxonomy" / "kept_patterns.py"
# Rules that stay away, and why. What they find is found all the same: test_scrub.py has examples.
LEFT_OUT = {
    "IPPublicDetector": "an address is no secret; --anonymous removes all of them",
    "JwtTokenDetector": "its time grows with the square of a text",
    "NpmDetector": "its time grows with the square of a text",
    "OpenAIDetector": "its time grows with the square of a text",
    "PrivateKeyDetector": "it names the first line of a key alone, and PRIVATE_KEY takes all of it",
}
HEAD = '''\
"""Patterns of secrets, as detect-secrets {version} has them, with the words that name a secret.

Copyright Yelp Inc., Apache License 2.0, https://github.com/Yelp/detect-secrets, read in {read}.
tests/taxonomy/secret_rules.py writes this file, and a test compares it with the package. Rules
whose time grows with the square of a text are not here: `taxonomy/scrub.py` has its own for them.
"""

from __future__ import annotations

# Each is the name of a rule, the flags of `re`, and the pattern.
KEPT_PATTERNS = (
{rules}
)  # fmt: skip
# Names of values that are secrets, as patterns in lower case.
KEPT_WORDS = (
{words}
)
'''
_READ = "2026-12"


def rules() -> list[tuple[str, int, str]]:
    """Return the rules of every detector by a pattern that is kept."""
    plugins = importlib.import_module("detect_secrets.plugins")
    base = importlib.import_module("detect_secrets.plugins.base").RegexBasedDetector
    modules = sorted(module.name for module in pkgutil.iter_modules(plugins.__path__))
    found = []
    for name in modules:
        module = importlib.import_module(f"detect_secrets.plugins.{name}")
        for detector, kind in inspect.getmembers(module, inspect.isclass):
            own = issubclass(kind, base) and kind.__module__ == module.__name__
            if own and not inspect.isabstract(kind) and detector not in LEFT_OUT:
                found += [
                    (
                        detector.removesuffix("Detector"),
                        pattern.flags & (re.IGNORECASE | re.VERBOSE),
                        pattern,
                    )
                    for pattern in kind.denylist
                ]
    return [(name, int(flags), pattern.pattern) for name, flags, pattern in found]


def words() -> tuple[str, ...]:
    """Return the words that name a secret."""
    keyword = importlib.import_module("detect_secrets.plugins.keyword")
    return tuple(keyword.DENYLIST)


def text() -> str:
    """Return the text of taxonomy/kept_patterns.py."""
    listed = []
    for name, flags, pattern in rules():
        listed.append(f"    ({_quoted(name)}, {flags},")
        pieces = [pattern[at : at + 80] for at in range(0, len(pattern), 80)]
        listed += [f"     {_quoted(piece)}" for piece in pieces]
        listed[-1] += "),"
    return HEAD.format(
        version=metadata.version("detect-secrets"), read=_READ,
        rules="\n".join(listed),
        words="\n".join(f"    {_quoted(word)}," for word in words()),
    )  # fmt: skip


def _quoted(piece: str) -> str:
    return repr(piece) if '"' in piece else f'"{repr(piece)[1:-1]}"'.replace("\\'", "'")


if __name__ == "__main__":
    sys.stdout.write(text())
