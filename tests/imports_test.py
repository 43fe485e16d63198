"""Who may import whom: the layout is only as good as its directions."""

import ast
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOUNDATION = {"__version__", "errors", "files", "interrupts", "contract", "images", "audio", "video", "models_dir"}
FOUNDATION |= {"feature_arrays", "hdr", "intake", "level", "stored", "tables", "transforms"}
# module (or package) of tkjax -> what it may import of tkjax
ALLOWED = {
    "errors": set(),
    "stored": {"errors"},
    "contract": {"contract", "errors", "stored"},
    "models_dir": {"errors"},
    "files": {"errors"},
    "interrupts": set(),
    "images": {"errors", "files"},
    "tables": {"errors"},
    "transforms": {"contract", "errors"},
    "level": set(),
    "intake": {"errors"},
    "audio": {"errors", "contract", "files", "intake", "level"},
    "feature_arrays": {"errors", "contract"},
    "hdr": set(),
    "video": {"errors", "audio", "files", "hdr"},
    "types": set(),
    "config": {"errors", "files", "stored"},
    "ops": {"ops"},
    "cameras": {"types"},
    "losses": {"types"},
    "perceptual": {"losses", "models_dir", "types", "errors"},
    "metrics": {"types", "contract"},
    "fields": {"fields", "ops", "types", "cameras"},
    "render": {"render", "ops", "types", "cameras", "models.base"},
    "models": {
        "models.base",
        "models.hash_head",
        "fields",
        "render",
        "ops",
        "losses",
        "perceptual",
        "cameras",
        "types",
        "config",
    },
    "frame_folder": {"errors", "files"},
    "frame_cache": {"contract", "images", "errors", "files"},
    "sampling": {"errors"},
    "split": {"errors"},
    "data": {"contract", "types", "images", "errors", "frame_cache", "sampling", "split"},
    "workdir": {"contract", "errors", "files", "options", "stored"},
    "paste_back": {"contract", "images"},
    "full_frames": {"errors", "video"},
    "batches": {"errors", "types", "models.base"},
    "devices": {"errors", "types", "checkpoint"},
    "stages": {"errors", "checkpoint", "models.base"},
    "step": {"devices", "errors", "types", "models.base", "optim", "render"},
    "maps": {"errors", "types", "models.base", "render"},
    "drawn": {"images", "types", "models.base", "paste_back", "render"},
    "scores": {"child", "contract", "errors", "metrics", "perceptual"},
    "response": set(),
    "picture_reading": {"response"},
    "watch": {"errors", "models_dir", "picture_reading", "response", "scores"},
    "responding": {"drive_test", "response", "watch"},
    "drive_test": {"audio", "contract", "drawn", "types", "models.base", "render"},
    "avatar_meta": {"contract", "errors", "stored", "types"},
    "avatar_track": {"contract", "errors", "full_frames", "images", "paste_back", "split", "stored", "types"},
    "progress": {"errors", "files", "types", "models.base", "checkpoint", "render"},
    "originals": {"originals", "ops", "fields", "types", "errors", "child", "contract", "data", "feature_arrays"}
    | {"stored"},
    "synthetic": {"synthetic", "contract", "audio", "video", "images", "cameras", "errors", "types"},
}
CONCRETE_MODELS = {p.stem for p in (ROOT / "tkjax/models").glob("*.py")} - {"base", "__init__"}


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


@pytest.mark.parametrize("path", modules("tkjax"), ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_import_only_downwards(path):
    relative = path.relative_to(ROOT / "tkjax").with_suffix("").parts
    used = {name.removeprefix("tkjax.") for name in imports(path) if name.startswith("tkjax.")}
    assert not any(name.split(".")[0] == "torch" for name in imports(path)), "torch stays in preprocess/"
    if relative[0] != "models":
        concrete = {name for name in used for model in CONCRETE_MODELS if name.startswith(f"models.{model}")}
        assert not concrete, "only models.base.load finds a concrete model"
    allowed = ALLOWED.get(relative[0])
    if allowed is None:
        return
    known = {p.with_suffix("").relative_to(ROOT / "tkjax").as_posix().replace("/", ".") for p in modules("tkjax")}
    for name in used:
        if name in known or name in ALLOWED:
            assert any(name == a or name.startswith(a + ".") for a in allowed | {".".join(relative)}), f"imports {name}"


@pytest.mark.parametrize("path", modules("preprocess"), ids=lambda p: str(p.relative_to(ROOT)))
def test_preprocess_uses_the_numpy_modules_only(path):
    for name in imports(path):
        assert name.split(".")[0] not in {"jax", "flax", "optax"}
        if name.startswith("tkjax."):
            assert name.split(".")[1] in FOUNDATION, name


def run_blocked(code: str, *blocked: str) -> subprocess.CompletedProcess:
    block = f"import sys\nfor m in {blocked!r}: sys.modules[m] = None\n"
    return subprocess.run([sys.executable, "-c", block + code], cwd=ROOT, capture_output=True, text=True)


def test_contract_needs_numpy_alone():
    done = run_blocked("import tkjax.contract", "jax", "jaxlib", "flax", "torch", "PIL", "av", "scipy", "cv2")
    assert done.returncode == 0, done.stderr


def test_importing_tkjax_loads_neither_jax_nor_torch():
    done = run_blocked("import tkjax, tkjax.audio, tkjax.video, tkjax.images", "jax", "torch")
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
