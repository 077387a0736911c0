"""Text that may identify a person, a host or a key: patterns, names, and a scanner.

In: texts and files of any kind. Out: names of people and hosts in the texts, the kinds of
suspicious text, and texts in which it is replaced. Public addresses of sources are no secret.
"""

from __future__ import annotations

import getpass
import html
import re
import socket
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from itertools import chain, zip_longest
from urllib.parse import urlsplit

from prunescope.analysis.device.hardware import DEVICES
from prunescope.analysis.ops.kernel_kinds import KINDS
from prunescope.taxonomy.citations import tool_citation
from prunescope.taxonomy.families import families
from prunescope.taxonomy.lazy_pattern import lazy_pattern
from prunescope.taxonomy.presets import preset_names, preset_source
from prunescope.taxonomy.roles import ROLES
from prunescope.taxonomy.scrub import SECRET, scrub_to_kinds, without_secrets

_TOP = r"(?:com|org|net|edu|gov|mil|io|ai|dev|cloud|cn|de|uk|fr|jp|kr|ch|ca|nl|se|it|es|in|au|at)"
# Kind of suspicious text, its pattern, and the replacement.
_PATTERNS: tuple[tuple[str, re.Pattern[str], str], ...] = tuple(
    (kind, lazy_pattern(pattern), instead)
    for kind, pattern, instead in (
        # Stricter than scrub: short tokens too, whatever precedes them.
        ("token", r"hf_[A-Za-z0-9]{8,}|sk-[A-Za-z0-9_-]{16,}", SECRET),
        ("token", r"(?i)(?:api_?-?key|secret|access_?-?token|auth_?-?token|(?<![a-z_])token"
                  r"|passw(?:or)?d|bearer)[\"']?\s*(?:=|:(?!:))\s*[\"']?[^\s\"'&,;<>{}\[\]()]{6,}",
         SECRET),
        ("address", r"(?<![\w.+-])[\w.+-]{1,64}@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+", "<address>"),
        ("address", r"(?i)\b(?:https?|ftp|ssh|s3|gs|file|git)://[^\s\"'<>)]+", "<address>"),
        ("address", r"(?<![\d.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)"
                    r"(?![\d.])", "<address>"),
        ("address", r"(?i)(?<![\w:])(?:[0-9a-f]{2}:){5}[0-9a-f]{2}(?![\w:])", "<address>"),
        ("address", r"(?i)(?<![\w:])(?:(?:[0-9a-f]{1,4}:){5,7}[0-9a-f]{1,4}|fe80::[0-9a-f:]+)",
         "<address>"),
        ("host", r"(?i)(?<![\w.-])(?:[a-z0-9-]+\.)+(?:local|lan|internal|corp|intra|cluster)"
                 rf"(?![\w-])|(?<![\w.-])(?:[a-z0-9-]+\.){{2,}}{_TOP}(?![\w.-])", "<host>"),
        ("device id", r"(?i)(?:GPU-|MIG-)?[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", "<id>"),
        ("path", r"[\\/]{1,4}(?:home|Users|root|mnt|scratch|workspace|tmp|private|gpfs|lustre|nfs)"
                 r"[\\/]{1,4}[\w.@+~\\/-]*", "<path>"),
        ("path", r"(?<![\w.])(?<!<path>)(?:[A-Za-z]:)?[\\/]{1,4}(?:[\w.@+~-]+[\\/]{1,4})+"
                 r"[\w.@+~-]*|(?<!\w)~[\w-]*/[\w./-]+|(?<!\w)[A-Za-z]:[\\/]+[\w.-]+", "<path>"),
    )
)  # fmt: skip
# LaTeX commands, and the paths of a drawing's fonts, look like paths.
_NOT_PATHS = (".tex", ".svg")
# In Markdown a backslash before a sign escapes the sign: `\_in\_place\_` is no path.
_MARKDOWN_ESCAPE = lazy_pattern(r"\\([!-/:-@\[-`{-~])")
_NAMES = lazy_pattern(
    r"(?:[/\\]{1,4}(?:home|Users|users|export/home|scratch|data/users)[/\\]{1,4}([\w.-]{2,}))"
    r"|(?<![\w.+-])([\w.+-]{1,64})@([A-Za-z0-9-]+)(?:\.[A-Za-z0-9-]+)+"
    r"|[\"'](?:host_?name|user_?name|user|login|owner|node_?name|author)[\"']\s*:\s*[\"']([^\"']{2,80})"
)
# Names that many machines and texts have, and that identify nobody.
_COMMON = {
    "admin", "anon", "author", "authors", "build", "builder", "cloud", "container", "default",
    "docker", "home", "host", "jovyan", "local", "localhost", "model", "node", "none", "null",
    "path", "root", "runner", "runs", "shared", "system", "test", "tests", "ubuntu", "unknown",
    "user", "users", "work", "worker", "workspace", "prunescope",
}  # fmt: skip


def names_in(text: str) -> set[str]:
    """Return names of users and hosts in a text: in a home folder, an address or a field."""
    names: set[str] = set()
    for groups in _NAMES.findall(text):
        for name in filter(None, groups):
            names |= {name, name.split(".")[0]}
    return {name.lower() for name in names if _identifies(name)}


def names_here() -> set[str]:
    """Return the names of the user and the host of this process."""
    names = {socket.gethostname(), socket.gethostname().split(".")[0]}
    with suppress(KeyError, OSError):  # a user without a name
        names.add(getpass.getuser())
    return {name.lower() for name in names if _identifies(name)}


def _identifies(name: str) -> bool:
    plain = name.lower().strip()
    return len(plain) >= 3 and not plain.isdigit() and plain not in _COMMON | _vocabulary()


@cache
def _vocabulary() -> frozenset[str]:
    """Return words of reports and traces that a name may equal by chance."""
    words = {
        *ROLES, *KINDS, "cuda", "gemm", "aten", "native", "torch", "cutlass", "triton", "layer",
        "layers", "mlp", "cpu", "gpu", "dense", "pruned", "prefill", "decode", "trace", "bound",
        "memory", "compute", "latency", "report", "float", "long", "int", "nvidia", "amd", "intel",
        "google", "meta", "apple", "microsoft", "linux", "backward",
    }  # fmt: skip
    words |= {part for f in families() for part in f.id.split("-")}
    return frozenset(w.lower() for w in words)


@cache
def _public_addresses() -> re.Pattern[str]:
    """Return the pattern of addresses of published sources: device sheets, presets, standards."""
    sources = [d.source for d in DEVICES] + [preset_source(name) for name in preset_names()]
    links = (link for text in sources for link in re.findall(r"https?://[^\s;,)]+", text))
    hosts = {urlsplit(link).hostname for link in links} - {None}
    fixed = {"www.w3.org", "arxiv.org", "matplotlib.org", "json-schema.org", "purl.org",
             "creativecommons.org", "ui.perfetto.dev", "doi.org", "neurips.cc"}  # fmt: skip
    every = "|".join(re.escape(str(host)) for host in sorted({*hosts, *fixed}, key=str))
    tool = re.escape(str(tool_citation("").url))  # the tool, and no other repository of its host
    end = r"(?=[/\s\"'<>),;.]|$)"
    return re.compile(rf"https?://(?:{every}){end}[^\s\"'<>)]*|(?:git\+)?{tool}(?:@v[\d.]+)?{end}")


def cleared(text: str, names: Iterable[str] = ()) -> str:
    """Return the text with everything suspicious replaced.

    It holds nothing that `scrub` takes out of what is not anonymous.

    Args:
        text: The text.
        names: The names to replace, in lower case.
    """
    # What any output lacks is taken out first, by the same function: here only more can go.
    text = scrub_to_kinds(text)
    public = _public_addresses()
    named = _name_pattern(names)
    pieces = [_without_patterns(piece, named) for piece in public.split(text)]
    return "".join(chain(*zip_longest(pieces, public.findall(text), fillvalue="")))


def _without_patterns(text: str, named: re.Pattern[str] | None) -> str:
    for _, pattern, instead in _PATTERNS:
        text = pattern.sub(instead, text)
    return text if named is None else named.sub("anon", text)


def suspicious(file: str, text: str, names: Iterable[str] = ()) -> list[str]:
    """Return the suspicious text that is left in a file.

    Args:
        file: The name of the file, whose ending tells how it is read.
        text: The text of the file.
        names: The names to look for, in lower case.

    Returns:
        "kind: the first letters …" of each finding, once.
    """
    plain = _MARKDOWN_ESCAPE.sub(r"\1", text) if file.endswith(".md") else text
    plain = html.unescape(plain) if file.endswith((".md", ".html")) else plain
    if file.endswith(".html"):  # as its JSON writes a mark such as <secret>
        plain = plain.replace("\\u003c", "<")
    plain = _public_addresses().sub("", plain)
    matches = [] if without_secrets(plain) == plain else ["a secret"]
    for kind, pattern, _ in _PATTERNS:
        if kind == "path" and file.endswith(_NOT_PATHS):
            continue
        matches += [f"{kind}: {match[0][:4]}…" for match in pattern.finditer(plain)]
    named = _name_pattern(names)
    if named is not None:
        matches += [f"name: {match[0][:2]}…" for match in named.finditer(plain)]
    return list(dict.fromkeys(matches))


def _name_pattern(names: Iterable[str]) -> re.Pattern[str] | None:
    ordered = sorted(names, key=lambda name: (-len(name), name))
    if not ordered:
        return None
    every = "|".join(re.escape(name) for name in ordered)
    return re.compile(rf"(?i)(?<![A-Za-z0-9])(?:{every})(?![A-Za-z0-9])")
