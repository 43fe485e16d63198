"""Who may import whom: the layout is only as good as its directions."""

import ast
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# room of tkjax -> the rooms that it may import, from the ground up
ROOMS = {
    "errors": "",
    "trees": "",
    "signals": "errors",
    "samplers": "errors",
    "types": "errors signals",
    "losses": "",
    "ops": "",
    "host": "errors",
    "cameras": "types",
    "mesh": "errors types",
    "interface": "signals types",
    "config": "errors host",
    "contract": "errors signals host",
    "media": "errors host contract",
    "formats": "errors signals contract",
    "perceptual": "errors host types losses",
    "fields": "types cameras ops",
    "render": "errors types cameras interface ops",
    "models": "signals samplers types losses cameras mesh interface perceptual fields render ops",
    "data": "errors signals samplers types host interface contract media",
    "synthetic": "errors cameras contract media",
    "voice": "types media",
    "originals": "errors signals types host contract formats data fields ops",
    "train": "errors trees signals types host interface config data models render ops",
    "avatar": "errors trees signals types host interface config contract media data models voice",
    "drive": "errors signals types host cameras contract media formats data voice avatar render",
    "measure": "errors signals types host interface contract media perceptual data avatar drive render",
    "app": "errors trees signals types host interface config contract media formats ops models data synthetic voice "
    "originals train avatar drive measure",
}
# room of preprocess -> the rooms of preprocess that it may import
GROUPS = {
    "checks": "",
    "chunks": "",
    "command": "",
    "resumable": "",
    "workers": "",
    "weights": "command workers",
    "faces": "resumable workers",
    "keying": "resumable",
    "regions": "checks chunks resumable workers faces keying",
    "framing": "checks chunks resumable workers faces keying regions",
    "output": "chunks resumable faces regions",
    "importers": "command resumable workers keying regions framing",
    "tracking": "checks chunks resumable workers faces framing",
    "audio": "checks chunks command resumable workers framing tracking",
    "pipeline": "checks chunks resumable workers faces keying regions framing tracking audio output",
    "lips": "resumable workers faces pipeline",
    "video_track": "checks chunks command resumable workers faces framing tracking pipeline",
    "__main__": "checks command pipeline",
}
WITHOUT_JAX = {
    "__version__",
    "errors",
    "signals",
    "host",
    "contract",
    "media",
    "formats",
}  # what preprocess may use of tkjax
CONCRETE_MODELS = {p.stem for p in (ROOT / "tkjax/models").glob("*.py")} - {"__init__"}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def modules(package: str):
    return sorted((ROOT / package).rglob("*.py"))


def rooms_used(path: Path, top: str) -> set[str]:
    """The rooms of a package that a module of it imports, its own left out."""
    names = {name.split(".")[1] for name in imports(path) if name.startswith(f"{top}.")}
    own = path.relative_to(ROOT / top).with_suffix("").parts[0]
    return {name for name in names if name != own and name != "__version__"}


@pytest.mark.parametrize("table, top", [(ROOMS, "tkjax"), (GROUPS, "preprocess")], ids=["tkjax", "preprocess"])
def test_the_table_names_every_room_and_goes_downwards(table, top):
    found = {p.relative_to(ROOT / top).with_suffix("").parts[0] for p in modules(top)} - {"__init__"}
    assert set(table) == found
    above = set()
    for room, below in table.items():
        assert set(below.split()) <= above, f"{room} stands before what it may import"
        above.add(room)


@pytest.mark.parametrize("top", ["tkjax", "preprocess"])
def test_no_module_imports_itself_by_a_detour(top):
    """Imports within functions count as well."""
    name_of = {p: ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for p in modules(top)}
    known = set(name_of.values()) - {top}
    used = {}
    for path, name in name_of.items():
        found = imports(path) & known
        packages = {other.rpartition(".")[0] for other in found}  # `from package import module` needs the module alone
        used[name] = found - packages - {name}
    while free := [name for name, others in used.items() if not others]:
        for name in free:
            del used[name]
        used = {name: others - set(free) for name, others in used.items()}
    assert not used


def test_only_the_command_line_knows_options():
    users = {p.relative_to(ROOT).as_posix() for p in modules("tkjax") if "tkjax.app.options" in imports(p)}
    assert users == {"tkjax/app/cli.py", "tkjax/app/command.py"}


@pytest.mark.heavy
@pytest.mark.parametrize("path", modules("tkjax"), ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_import_only_downwards(path):
    room = path.relative_to(ROOT / "tkjax").with_suffix("").parts[0]
    used = imports(path)
    assert not any(name.split(".")[0] in ("torch", "preprocess", "configs") for name in used)
    if room != "models":
        concrete = {n for n in used for model in CONCRETE_MODELS if f"{n}.".startswith(f"tkjax.models.{model}.")}
        assert not concrete, "only tkjax.models finds a concrete model"
    if room != "__init__":
        assert rooms_used(path, "tkjax") <= set(ROOMS[room].split())


@pytest.mark.parametrize("path", modules("preprocess"), ids=lambda p: str(p.relative_to(ROOT)))
def test_preprocess_imports_downwards_and_of_tkjax_what_needs_no_jax(path):
    assert not any(name.split(".")[0] in {"jax", "flax", "optax"} for name in imports(path))
    assert {name.split(".")[1] for name in imports(path) if name.startswith("tkjax.")} <= WITHOUT_JAX
    room = path.relative_to(ROOT / "preprocess").with_suffix("").parts[0]
    if room != "__init__":
        assert rooms_used(path, "preprocess") <= set(GROUPS[room].split())


def run_blocked(code: str, *blocked: str) -> subprocess.CompletedProcess:
    block = f"import sys\nfor m in {blocked!r}: sys.modules[m] = None\n"
    return subprocess.run([sys.executable, "-c", block + code], cwd=ROOT, capture_output=True, text=True)


def test_contract_needs_numpy_alone():
    done = run_blocked("import tkjax.contract", "jax", "jaxlib", "flax", "torch", "PIL", "av", "scipy", "cv2")
    assert done.returncode == 0, done.stderr


def test_importing_tkjax_loads_neither_jax_nor_torch():
    modules_of = [p.relative_to(ROOT).with_suffix("") for r in WITHOUT_JAX for p in (ROOT / "tkjax" / r).glob("*.py")]
    names = ", ".join(".".join(p.parts).removesuffix(".__init__") for p in sorted(modules_of))
    done = run_blocked(f"import tkjax, {names}", "jax", "torch")
    assert done.returncode == 0, done.stderr


def test_import_and_help_take_at_most_two_seconds_of_processor_time():
    for command in (["-c", "import tkjax"], ["launch.py", "--help"]):
        before = os.times()
        started = time.perf_counter()
        done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
        after = os.times()
        cpu = after.children_user - before.children_user + after.children_system - before.children_system
        assert done.returncode == 0, done.stderr
        assert cpu <= 2.0, f"{command}: {cpu:.2f} s of processor, {time.perf_counter() - started:.2f} s"
