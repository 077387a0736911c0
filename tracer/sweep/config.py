"""The reader of sweep files and presets, which checks every value before any work.

In: a path or the name of a preset. Out: SweepConfigs. Paths in a file are relative to that file.
"""

from __future__ import annotations

import dataclasses
import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib import resources
from pathlib import Path
from types import NoneType
from typing import Any, ClassVar, Literal, get_args, get_origin

import yaml

from prunescope.taxonomy.arguments import home_path, share
from prunescope.taxonomy.errors import PrunescopeError, nearest
from prunescope.taxonomy.keep import check_sparsity
from prunescope.taxonomy.method_names import check_display_name
from prunescope.taxonomy.option import MOST, NamedOption, as_path, check_range, options_of
from prunescope.taxonomy.own_files import refuse_own_file
from prunescope.taxonomy.words import when
from prunescope.tracer.calibration.named_texts import is_named_text
from prunescope.tracer.recovery.settings import Recovery, read_recovery
from prunescope.tracer.sweep.plan import SweepConfig, is_file, settable

_MAPPING = Path("the sweep")  # the name in messages about keys that come from no file
_MAX_BYTES = 1 << 20
_MOST_BITS = 1000  # the longest number that a message quotes; Python writes up to 14,000 bits
_KEYS = tuple(named.name for named in options_of(SweepConfig))


@dataclass(frozen=True)
class _Preset:
    """The sweeps of a preset, a line about each of them, and the text above all."""

    sweeps: tuple[SweepConfig, ...]
    about: tuple[str, ...]
    also: str


@cache
def _presets() -> dict[str, _Preset]:
    text = resources.files(__package__).joinpath("presets.yaml").read_text(encoding="utf-8")
    return {name: _read_preset(**listed) for name, listed in yaml.safe_load(text).items()}


def _read_preset(sweeps: list[dict[str, Any]], also: str) -> _Preset:
    values = [
        {key: _READERS[key](key, value) for key, value in plain.items() if key != "about"}
        for plain in sweeps
    ]
    about = tuple(plain["about"] for plain in sweeps)
    return _Preset(tuple(SweepConfig(**keys) for keys in values), about, also)


def presets() -> dict[str, tuple[SweepConfig, ...]]:
    """Return the sweeps of presets.yaml by the name of the preset."""
    return {name: preset.sweeps for name, preset in _presets().items()}


def read_configs(
    config: Path | Mapping[str, Any] | None, preset: str | None
) -> tuple[SweepConfig, ...]:
    """Read the configurations of a sweep file, a preset, or a preset with keys of a file.

    Args:
        config: A file, or its keys as a mapping. Paths are relative to the file; those of a mapping
            are relative to the working directory.
        preset: The name of a preset. If a config is given too, its keys replace those of the
            preset.

    Returns:
        A configuration for each sweep.

    Raises:
        PrunescopeError: A key or a value is invalid; the first mistake is reported.
    """
    if config is None and preset is None:
        raise PrunescopeError(
            "a sweep takes a CONFIG.yaml, --preset, or both",
            hint=f"presets: {', '.join(presets())}",
        )
    if preset is not None and preset not in presets():
        raise PrunescopeError(
            f"no sweep preset is called {preset!r}", hint=f"one of {', '.join(presets())}"
        )
    if config is None:
        return presets()[str(preset)]
    if isinstance(config, Mapping):
        path, sweeps = _MAPPING, [_rename_old_keys(dict(config))]
    else:
        refuse_own_file(config)
        path, sweeps = config, _read_yaml(config)
    if preset is None:
        return tuple(SweepConfig(**_read_values(plain, path)) for plain in sweeps)
    if len(sweeps) > 1:
        raise PrunescopeError(
            f"{path.name} holds {len(sweeps)} sweeps, and --preset takes the keys of one",
            hint="remove the lines from `---` on, or leave --preset out",
        )
    own = _read_values(sweeps[0], path, whole=False)
    return tuple(dict.fromkeys(_replace_keys(sweep, own) for sweep in presets()[preset]))


def _replace_keys(config: SweepConfig, own: Mapping[str, Any]) -> SweepConfig:
    """Return a sweep of a preset with keys in place of its own.

    If these name other families, options that the preset sets are dropped if none of the families
    has them.
    """
    sweep = dataclasses.replace(config, **own)
    if "families" not in own or "set" in own:
        return sweep
    known = settable(sweep.families)
    return dataclasses.replace(sweep, set={k: v for k, v in sweep.set.items() if k in known})


def _read_yaml(path: Path) -> list[dict[str, Any]]:
    """Return the documents of a file, each of them a sweep."""
    try:
        if path.exists() and (not path.is_file() or path.stat().st_size > _MAX_BYTES):
            raise PrunescopeError(
                f"{path.name} is no sweep file of at most 1 MiB", hint="give a YAML file"
            )
        documents = list(yaml.load_all(path.read_text(encoding="utf-8"), _Loader))
    except (OSError, UnicodeDecodeError) as error:
        raise PrunescopeError(
            f"the sweep file {path} cannot be read ({type(error).__name__})",
            hint="give a YAML file, or --preset paper",
        ) from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise PrunescopeError(
            f"{path.name} is not YAML{where} ({getattr(error, 'problem', None) or 'malformed'})",
            hint="one `key: value` a line, lists as [a, b]",
        ) from error
    if not documents or not all(isinstance(plain, dict) for plain in documents):
        raise PrunescopeError(f"{path.name} holds no keys", hint="at least model and families")
    return [_rename_old_keys(plain) for plain in documents]


def _rename_old_keys(plain: dict[str, Any]) -> dict[str, Any]:
    for old, new in OLD_KEYS.items():
        if old in plain:
            plain.setdefault(new, plain.pop(old))
    return plain


_NUMBERS = {
    "tag:yaml.org,2002:int": re.compile(r"[+-]?(?:0|[1-9][0-9]*)", re.ASCII),
    "tag:yaml.org,2002:float": re.compile(
        r"[+-]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][+-]?[0-9]+)?"
        r"|[+-]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        re.ASCII,
    ),
}
# The names of keys in versions before 0.2, which sweep.json of those versions holds too.
OLD_KEYS = {"seatings": "placements"}


class _Loader(yaml.SafeLoader):
    """A YAML loader that takes each key once and reads decimal numbers only.

    YAML would silently drop the first of two equal keys. YAML 1.1 also reads 0.1_5 as 0.15, 1:30 as
    90 and 010 as 8.
    """

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {
        first: [(tag, form) for tag, form in forms if tag not in _NUMBERS]
        for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        """Return a mapping.

        Raises:
            PrunescopeError: A key is in it twice.
        """
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise PrunescopeError(
                    f"the sweep file gives {key.value[:40]} twice, the second time in line "
                    f"{key.start_mark.line + 1}",
                    hint="keep one of the two; several values are a list, as [a, b]",
                )
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)


for _tag, _form in _NUMBERS.items():
    _Loader.add_implicit_resolver(
        _tag, re.compile(f"(?:{_form.pattern})$", re.ASCII), list("+-.0123456789")
    )


def _read_values(plain: dict[str, Any], path: Path, *, whole: bool = True) -> dict[str, Any]:
    """Read the values of the keys, with paths relative to the file.

    With `whole`, the keys that a sweep needs must be there. Otherwise a key without a value gets
    the default of a sweep, which replaces the value of a preset.
    """
    for key in plain:
        if key not in _KEYS:
            raise PrunescopeError(
                f"{path.name} has an unknown key {reprlib.repr(key)}",
                hint=f"nearest: {nearest(str(key)[:99], _KEYS)}; known: {', '.join(_KEYS)}",
            )
    for key in ("model", "families") if whole else ():
        if plain.get(key) in (None, []):
            raise PrunescopeError(f"{path.name} has no {key}", hint=f"add `{key}: ...`")
    values = {
        key: _DEFAULTS[key] if value is None else _READERS[key](key, value)
        for key, value in plain.items()
        if value is not None or (not whole and key in _DEFAULTS)
    }
    if "tasks_path" in values and "tasks" not in values:
        raise PrunescopeError(
            "tasks_path was given without tasks", hint="tasks: [NAME, ...], as its files say"
        )
    return {key: _resolve_paths(key, value, path) for key, value in values.items()}


def _resolve_paths(key: str, value: Any, path: Path) -> Any:
    """Return a value that names a file or folder relative to the sweep file, any other as it is."""
    if value is None:
        return None
    if key == "model":
        return _path_from_file(value, path)
    if key == "families":
        return tuple(_method_path(name, path) for name in value)
    if key == "names":
        return {_method_path(method, path): name for method, name in value.items()}
    if key in ("text", "other_text"):
        return _text_path(value, path)
    if key == "recover" and value.text is not None:
        return dataclasses.replace(value, text=_text_path(value.text, path))
    if key == "tasks_path":
        folder = path.parent / home_path(str(value))
        if not folder.is_dir():
            raise PrunescopeError(
                f"tasks_path: there is no folder {folder.name}",
                hint="a folder of task files of lm-evaluation-harness, next to the sweep file",
            )
        return folder.resolve()  # the harness runs inside it, and a worker elsewhere
    return value


def _method_path(method: str, path: Path) -> str:
    """Return a checkpoint or a plan as a path relative to the sweep file, a method as it is."""
    return _path_from_file(method, path) if is_file(method) else method


def _text_path(value: Path | str, path: Path) -> Path:
    """Return a text file next to the sweep file, or the name of a data set."""
    there = path.parent / home_path(str(value))
    return Path(value) if is_named_text(value) and not there.exists() else there


def _path_from_file(name: str, path: Path) -> str:
    """Return a name as a path relative to the sweep file, if there is such a file or folder."""
    there = path.parent / home_path(name)
    try:
        located = str(there) if there.exists() else name
    except OSError:  # no file can have this name
        return name
    return (
        f"./{located}" if located != name and "/" not in located else located
    )  # so that it stays a path


def _invalid_value(key: str, value: Any, wanted: str) -> PrunescopeError:
    # The whole repr could fill the disk: aliases in YAML make a few lines that long.
    huge = isinstance(value, int) and value.bit_length() > _MOST_BITS
    shown = "a number of hundreds of digits" if huge else reprlib.repr(value)
    return PrunescopeError(f"{key}: {shown} is not {wanted}", hint=f"give {key} as {wanted}")


def _read_word(key: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise _invalid_value(key, value, "a word")
    return value


def _read_path(key: str, value: Any) -> Path:
    return Path(_read_word(key, value))


def _read_count(key: str, value: Any, *, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        wanted = "a whole number above zero" if least else "a whole number, 0 or more"
        raise _invalid_value(key, value, f"{wanted}, {most} at most")
    return value


def _read_share(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > MOST:
        raise _invalid_value(key, value, "a number from 0 to 1")
    return check_sparsity(value)


def _read_choice(key: str, value: Any, *, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise _invalid_value(key, value, " or ".join(choices))
    return str(value)


def _list_reader(read_one: Callable[[str, Any], Any]) -> Callable[[str, Any], tuple[Any, ...]]:
    """Return a reader of lists without repeats; a single value is a list of one."""

    def read(key: str, value: Any) -> tuple[Any, ...]:
        values = value if isinstance(value, list) else [value]
        if not values:
            raise _invalid_value(key, value, "one value or more")
        return tuple(dict.fromkeys(read_one(key, item) for item in values))

    return read


def _read_selection(key: str, value: Any) -> str | tuple[str, ...]:
    """Read one selection, or several, each of which makes points of its own."""
    selections = _list_reader(_read_word)(key, value)
    return str(selections[0]) if len(selections) == 1 else selections


def _read_switch(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _invalid_value(key, value, "true or false")
    return value


def _read_knobs(key: str, value: Any) -> dict[str, tuple[str, ...]]:
    """Read {KNOB: values} from a mapping whose values are numbers or words, or lists of them."""
    if not isinstance(value, dict) or not all(isinstance(knob, str) for knob in value):
        raise _invalid_value(key, value, "options with their values, as {align: [1, 16]}")

    def read(_key: str, item: Any) -> str:
        if not isinstance(item, str | int | float) or not str(item):
            raise _invalid_value(f"{key}: {_key}", item, "a number or a word")
        return str(item).lower() if isinstance(item, bool) else str(item)

    return {knob: _list_reader(read)(knob, values) for knob, values in value.items()}


def _choose_reader(named: NamedOption) -> Callable[[str, Any], Any]:
    """Return the function that reads a value of a key, by the type and limits of its option."""
    if named.name in _SPECIAL_READERS:
        return _SPECIAL_READERS[named.name]
    kind = next((k for k in get_args(named.type) if k is not NoneType), named.type)
    if get_origin(named.type) is tuple:
        kind = get_args(named.type)[0]
    read: Callable[[str, Any], Any] = _read_word
    if kind is float:
        read = _read_share
    elif kind is int:
        least, most = named.option.least or 0, named.option.most or MOST
        read = partial(_read_count, least=int(least), most=int(most))
    elif kind is bool:
        read = _read_switch
    elif kind is Path:
        read = _read_path
    elif get_origin(kind) is Literal:
        read = partial(_read_choice, choices=get_args(kind))
    return _list_reader(read) if get_origin(named.type) is tuple else read


def _read_display_names(key: str, value: Any) -> dict[str, str]:
    """Read {METHOD: name} from a mapping of texts."""
    if not isinstance(value, dict) or not all(
        isinstance(text, str) for pair in value.items() for text in pair
    ):
        raise _invalid_value(key, value, "methods with their names, as {'mine:prune': Ours}")
    return {method: check_display_name(name) for method, name in value.items()}


def _read_until(key: str, value: Any) -> float:
    """Read a share in percent as 2%, or as the number 0.02."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _invalid_value(key, value, "a share, such as 2%")
    wanted = share(value, option=key) if isinstance(value, str) else float(value)
    limits = next(named.option for named in options_of(SweepConfig) if named.name == key)
    check_range(f"{key} ", wanted, limits.least, limits.most)
    return wanted


_SPECIAL_READERS: dict[str, Callable[[str, Any], Any]] = {
    "names": _read_display_names,
    "select": _read_selection,
    "recover": lambda key, value: read_recovery(value, where=key),
    "set": _read_knobs,
    "until": _read_until,
}
_READERS = {named.name: _choose_reader(named) for named in options_of(SweepConfig)}
_DEFAULTS = {
    named.name: named.default
    for named in options_of(SweepConfig)
    if named.default is not dataclasses.MISSING
}


def example() -> str:
    """Return a sweep file with every key: its default or an example, and what it does."""
    lines = [
        "# A sweep: every family at every sparsity, in every phase, batch and length.",
        "#   prunescope sweep sweep.yaml --out traces/sweep --dry-run",
        "# Keys after a # show their default, or an example. Paths are relative to this file.",
    ]
    for named in options_of(SweepConfig):
        is_required = named.default is dataclasses.MISSING
        value = named.option.example or _format_yaml(named.default)
        line = f"{when(not is_required, '# ')}{named.name}: {value}"
        lines.append(f"{line:<40} # {named.option.help}")
    return "\n".join(lines) + "\n"


def preset_text(name: str | None, config: Path | str | Mapping[str, Any] | None = None) -> str:
    """Return a preset as YAML, one document for each of its sweeps.

    A document has the keys that list values and those that differ from their default. A preset
    without changes also has comments on what each sweep shows, and on the commands for the rest.

    Args:
        name: The name of the preset.
        config: A sweep file or its keys, which replace those of the preset.

    Raises:
        PrunescopeError: There is no such preset, or a key or value is invalid.
    """
    documents = []
    own = config if isinstance(config, Mapping) else as_path(config)
    preset = _presets().get(str(name))
    whole = preset is not None and config is None  # scaled sweeps show other things
    for number, config_read in enumerate(read_configs(own, name)):
        lines = [f"# {preset.about[number]}"] if preset and whole else []
        lines += [
            f"{named.name}: {_format_yaml(value)}"
            for named in options_of(SweepConfig)
            if (value := getattr(config_read, named.name)) != named.default
            or (named.option.lists and value)
        ]
        documents.append("\n".join(lines) + "\n")
    also = preset.also.splitlines() if preset and whole else []
    above = "".join(f"# {line}\n" for line in also)
    return above + when(bool(above), "\n") + "---\n".join(documents)


def _format_yaml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_format_yaml, value))}]"
    if isinstance(value, Recovery):
        value = {
            field.name: getattr(value, field.name)
            for field in dataclasses.fields(value)
            if getattr(value, field.name) != field.default
        }
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_format_yaml(item)}' for key, item in value.items())}}}"
    return str(value).lower() if isinstance(value, bool) else str(value)
