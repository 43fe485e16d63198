"""Resolved experiment configs: read, override, check, compare, write. Every mistake is one sentence.

A spec is `path.py:variant` (the file defines `get_config(variant)`) or the `config.json` of a workdir.
Sequences are tuples everywhere, so that a config that went through json equals the one it came from.
"""

import ast
import difflib
import importlib.util
import inspect
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from tkjax.errors import UserError
from tkjax.files import write_atomic

ROOT = Path(__file__).resolve().parent.parent  # where `configs/` lies
SHARED = {"__init__", "base", "hash_head"}  # files of configs/ that are no system of their own
DEFAULT_SPEC = "configs/er_nerf.py"
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
    known = [f"configs/{p.name}" for p in sorted((ROOT / "configs").glob("*.py")) if p.stem not in SHARED]
    raise UserError(f"--config: there is no file {path!r}; {near(path, known)}")


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
    try:
        data = json.loads(path.read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"--config: {path} is not readable as json: {_one_line(error)}") from error
    if not isinstance(data, dict) or not isinstance(data.get("system"), str):
        raise UserError(f"--config: {path} is not a resolved config (no 'system' in it)")
    return ConfigDict(tuples(data))


def _check_against_source(config: ConfigDict, path: Path) -> None:
    """A config.json that was edited by hand must still have the keys and types of its system's file."""
    source = ROOT / "configs" / f"{config.system.rpartition('.')[2]}.py"
    if not source.is_file():
        return
    known = ConfigDict(tuples(_from_python(source, config.get("variant") or "full").to_dict()))
    have, want = leaves(config.to_dict()), leaves(known.to_dict())
    for key in have.keys() - want.keys():
        raise UserError(f"{path}: {key!r} is no key of {source.name}; {near(key, want)}")
    for key in want.keys() - have.keys():
        raise UserError(f"{path}: the key {key!r} of {source.name} is missing")
    for key, value in have.items():
        _check_type(key, value, want[key])


def completed(config: ConfigDict) -> ConfigDict:
    """The stored config of an avatar, with what its system's file has gained since at that file's values."""
    source = ROOT / "configs" / f"{config.system.rpartition('.')[2]}.py"
    if not source.is_file():
        return config
    try:
        whole = _from_python(source, config.get("variant") or "full").to_dict()
    except (UserError, ValueError):  # the variant has gone
        return config

    def fill(have: dict, want: dict) -> dict:
        out = {**want, **have}
        for key in have.keys() & want.keys():
            if isinstance(have[key], dict) and isinstance(want[key], dict):
                out[key] = fill(have[key], want[key])
        return out

    return ConfigDict(tuples(fill(config.to_dict(), whole)))


def _check_type(key: str, value: Any, like: Any) -> None:
    ok = like is None or value is None or type(value) is type(like)
    ok = ok or (isinstance(like, float) and isinstance(value, int) and not isinstance(value, bool))
    if not ok:
        raise UserError(f"{key} is {value!r}, but must be {_type_name(like)} such as {like!r}")


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


def write(config: ConfigDict, path: Path) -> None:
    """Resolved config as json, replaced in one go."""
    write_atomic(path, json.dumps(to_dict(config), indent=2, sort_keys=True) + "\n")
