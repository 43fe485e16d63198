"""Resolved experiment configs: read, override, check, compare, write. Every mistake is one sentence.

A spec is `path.py:variant` (the file defines `get_config(variant)`) or the `config.json` of a workdir.
Sequences are tuples everywhere, so that a config that went through json equals the one it came from.
"""

import ast
import difflib
import importlib.util
import inspect
import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from tkjax.errors import UserError
from tkjax.host import stored
from tkjax.host.files import write_atomic

HERE = Path(__file__).resolve().parent
ROOT = HERE / "shipped" if (HERE / "shipped").is_dir() else HERE.parent  # where `configs/` lies: installed, repository
SHARED = {"__init__", "base", "hash_head"}  # files of configs/ that are no system of their own
DEFAULT_SPEC = "configs/er_nerf.py"
SETTING = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
TRUE, FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


def near(name: str, known: Iterable[str]) -> str:
    """'did you mean a or b' where names are close, else 'choose one of ...'."""
    known = sorted(known)
    matches = difflib.get_close_matches(name, known, n=3, cutoff=0.55)
    if matches:
        return f"did you mean {' or '.join(matches)}"
    return f"choose one of {', '.join(known)}" if known else "there are none"


def tuples(value: Any) -> Any:
    """Lists (json's only sequence) become tuples, at every depth."""
    if isinstance(value, Mapping):
        return {k: tuples(v) for k, v in value.items()}
    return tuple(tuples(v) for v in value) if isinstance(value, list | tuple) else value


def to_dict(config: ConfigDict) -> dict:
    """Plain nested dict, tuples as lists: what json writes."""
    return json.loads(json.dumps(config.to_dict()))


def leaves(tree: Mapping, prefix: str = "") -> dict[str, Any]:
    """{'a.b': value} of a nested dict; an empty section is a leaf of its own."""
    out = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            out |= leaves(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = value
    return out


def differing(old: Mapping, new: Mapping) -> list[str]:
    """Dotted keys whose values differ between two nested dicts, sorted."""
    a, b, absent = leaves(tuples(old)), leaves(tuples(new)), object()
    return sorted(k for k in a.keys() | b.keys() if a.get(k, absent) != b.get(k, absent))


def split_spec(spec: str) -> tuple[str, str | None]:
    """'path:variant' -> (path, variant or None)."""
    path, colon, variant = spec.rpartition(":")
    return (path, variant) if colon and path else (spec, None)


def find_file(path: str) -> Path:
    """The config file, relative to the current folder or to the project."""
    for candidate in (Path(path), ROOT / path):
        if candidate.is_file():
            return candidate
    known = [f"configs/{name}.py" for name in systems()]
    raise UserError(f"--config: there is no file {path!r}; {near(path, known)}")


def systems() -> list[str]:
    """The systems that have a file in `configs/`."""
    return sorted({p.stem for p in (ROOT / "configs").glob("*.py")} - SHARED)


def source_of(system: str) -> Path | None:
    """`configs/<system>.py`; None for any other name, a plug-in's dotted one among them. Only files that are there
    already are named: a stored system is never made into a path."""
    return ROOT / "configs" / f"{system}.py" if system in systems() else None


def _module(path: Path) -> ModuleType:
    """A config file, run; what is wrong with it is the user's to mend."""
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))  # config files import configs.base
    spec = importlib.util.spec_from_file_location(f"_tkjax_config_{path.stem}", path)
    if spec is None:
        raise UserError(f"--config: {path} is neither a .py file nor a config.json")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"--config: {path} does not run: {type(error).__name__}: {_one_line(error)}") from error
    if not callable(getattr(module, "get_config", None)):
        raise UserError(f"--config: {path} does not define get_config(variant)")
    return module


def _takes_variant(module: ModuleType) -> bool:
    return bool(inspect.signature(module.get_config).parameters)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _from_python(path: Path, variant: str | None) -> ConfigDict:
    module = _module(path)
    takes_variant = _takes_variant(module)
    if variant is not None and not takes_variant:
        raise UserError(f"--config: {path} has no variants, so ':{variant}' must go")
    known = getattr(module, "VARIANTS", None)
    if known is not None and variant not in known:
        raise UserError(f"--config: {path} has no variant {variant!r}; {near(str(variant), known)}")
    try:
        config = module.get_config(variant) if takes_variant else module.get_config()
    except (ValueError, KeyError) as error:
        raise UserError(f"--config: {path} refuses variant {variant!r}: {_one_line(error)}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config: get_config of {path} must give a ConfigDict, not {type(config).__name__}")
    return config


def _from_json(path: Path) -> ConfigDict:
    data = stored.read_json(path, "name a config with --config")
    if not isinstance(data.get("system"), str):
        raise UserError(f"--config: {path} is not a resolved config (no 'system' in it)")
    return from_stored(data, path)


def from_stored(data: Mapping[str, Any], where: Any) -> ConfigDict:
    """The config of a stored json object; UserError where its keys are no names of settings."""

    def check(node: Any) -> None:
        for key, value in node.items() if isinstance(node, Mapping) else ():
            if not SETTING.fullmatch(key):
                raise UserError(f"{where}: {key[:40]!r} is no name of a setting, expected letters, digits, underscores")
            check(value)

    check(data)
    return ConfigDict(tuples(data))


def _check_against_source(config: ConfigDict, path: Path) -> None:
    """A config.json that was edited by hand must still have the keys and types of its system's file. A whole section
    that it lacks is one that the file has gained since, and stands at the file's values."""
    source = source_of(config.system)
    if source is None:
        return
    known = ConfigDict(tuples(_from_python(source, config.get("variant") or "full").to_dict()))
    _gain_sections(config, known)
    have, want = leaves(config.to_dict()), leaves(known.to_dict())
    for key in have.keys() - want.keys():
        raise UserError(f"{path}: {key!r} is no key of {source.name}; {near(key, want)}")
    for key in want.keys() - have.keys():
        raise UserError(
            f"{path}: the key {key!r} of {source.name} is missing, so another version of this program wrote it; what "
            "was trained still renders, but to train on, name a config with --config and another --workdir"
        )
    for key, value in have.items():
        _check_type(key, value, want[key], path)


def _gain_sections(config: ConfigDict, known: ConfigDict) -> None:
    """Sections of `known` that `config` lacks."""
    for key, value in known.items():
        if not isinstance(value, ConfigDict):
            continue
        if key not in config:
            with config.unlocked():
                config[key] = value.copy_and_resolve_references()
        elif isinstance(config[key], ConfigDict):
            _gain_sections(config[key], value)


def completed(config: ConfigDict, where: Any = "the stored config") -> ConfigDict:
    """The stored config of an avatar, with what its system's file has gained since at that file's values.

    A variant that has gone is completed from the first of those that are there: their keys are the same. A plug-in (a
    dotted name) has no file here, and its config comes back as it is.

    Raises:
      UserError: a setting is of another type than in the system's file, or that file cannot be read.
    """
    if "." in config.system:
        return config
    source = source_of(config.system)
    if source is None:
        raise UserError(
            f"{where}: settings of {config.system!r} cannot be completed, because there is no "
            f"{ROOT / 'configs' / config.system}.py; run from the project's folder"
        )
    variants = getattr(_module(source), "VARIANTS", ("full",))
    variant = config.get("variant")
    whole = _from_python(source, variant if variant in variants else variants[0]).to_dict()

    def fill(have: dict, want: dict, prefix: str = "") -> dict:
        out = {**want, **have}
        for key in have.keys() & want.keys():
            if isinstance(want[key], Mapping) != isinstance(have[key], Mapping):
                raise UserError(f"{where}: {prefix}{key} is {have[key]!r}, expected what {source.name} has there")
            if isinstance(want[key], Mapping):
                out[key] = fill(have[key], want[key], f"{prefix}{key}.")
            else:
                _check_type(prefix + key, have[key], want[key], where)
        return out

    return ConfigDict(tuples(fill(config.to_dict(), whole)))


def _check_type(key: str, value: Any, like: Any, where: Any) -> None:
    """A stored value against the file's own; elements of a list against its first."""
    ok = like is None or value is None or type(value) is type(like)
    ok = ok or (isinstance(like, float) and type(value) is int)
    if not ok:
        raise UserError(f"{where}: {key} is {value!r}, but must be {_type_name(like)} such as {like!r}")
    for element in value if isinstance(value, tuple) and like else ():
        _check_type(f"an element of {key}", element, like[0], where)


def _type_name(value: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a word", tuple: "a list"}
    return names.get(type(value), type(value).__name__)


def parse_value(key: str, text: str, like: Any) -> Any:
    """Text of an override in the type of the value that it replaces; UserError names key and type."""
    wrong = UserError(f"--config.{key}={text}: must be {_type_name(like)} such as {like!r}")
    if isinstance(like, str):
        return text
    if isinstance(like, bool):
        if text.lower() in TRUE + FALSE:
            return text.lower() in TRUE
        raise wrong
    if isinstance(like, tuple) and not text.strip().startswith(("(", "[")):
        text = f"({text.rstrip(' ,')},)" if text.strip() else "()"
    try:
        value = tuples(ast.literal_eval(text.strip()))
    except (ValueError, SyntaxError):
        if like is None:
            return text
        raise wrong from None
    if isinstance(like, int) and isinstance(value, float) and value.is_integer():
        value = int(value)  # 1e5 is a fine way to write steps
    if isinstance(like, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if like is not None and type(value) is not type(like):
        raise wrong
    if isinstance(like, tuple) and like:
        return tuple(_element(key, v, like[0], wrong) for v in value)
    return value


def _element(key, value, like, wrong):
    if isinstance(like, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(like):
        raise wrong
    return value


def override(config: ConfigDict, key: str, text: str) -> None:
    """Set one dotted key in place."""
    *sections, last = key.split(".")
    node, walked = config, []
    for name in [*sections, last]:
        if not isinstance(node, ConfigDict):
            raise UserError(f"--config.{key}: {'.'.join(walked)} is a value, not a section")
        if name not in node:
            full = leaves(config.to_dict())
            here = [k for k in full if k.rsplit(".", 1)[-1] == name] or list(full)
            raise UserError(f"--config.{key}: the config has no such key; {near(key, here)}")
        walked.append(name)
        parent, node = node, node[name]
    if isinstance(node, ConfigDict):
        raise UserError(f"--config.{key} is a section; set one of its keys: {', '.join(sorted(node)) or 'it has none'}")
    with parent.unlocked():
        parent[last] = parse_value(key, text, node)


def load(spec: str, overrides: Iterable[tuple[str, str]] = (), default_variant=lambda: "full") -> ConfigDict:
    """The resolved config. `default_variant` is called (it may start JAX) only where the spec names none."""
    name, variant = split_spec(spec)
    if not name.endswith(".json") and not name.endswith(".py"):
        name, variant = spec, None
    path = find_file(name)
    if path.suffix == ".json":
        if variant is not None:
            raise UserError(f"--config: {path} is a resolved config and has no variants; leave ':{variant}' out")
        config = _from_json(path)
        _check_against_source(config, path)
    else:
        if variant is None and _takes_variant(_module(path)):
            variant = default_variant()
        config = ConfigDict(tuples(_from_python(path, variant).to_dict()))
    for key, text in overrides:
        override(config, key, text)
    if not config.get("system"):
        raise UserError(f"--config: {path} names no system")
    return config


def shortened(config: ConfigDict, factor: float) -> ConfigDict:
    """A copy whose schedule is `factor` times as long: every whole number above 0 in `model` and `train` that is called
    `steps`, or whose name ends in `_step` or `_steps`, alone or in a list; at least 1."""

    def scaled(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(scaled(v) for v in value)
        return max(1, round(value * factor)) if type(value) is int and value > 0 else value

    def walk(node: Mapping) -> dict:
        out = {}
        for key, value in node.items():
            named = key == "steps" or key.endswith(("_step", "_steps"))
            out[key] = walk(value) if isinstance(value, Mapping) else scaled(value) if named else value
        return out

    tree = config.to_dict()
    return ConfigDict({k: walk(v) if k in ("model", "train") else v for k, v in tree.items()})


def write(config: ConfigDict, path: Path) -> None:
    """Resolved config as json, replaced in one go."""
    write_atomic(path, json.dumps(to_dict(config), indent=2, sort_keys=True) + "\n")
