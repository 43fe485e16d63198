"""What this machine has, as lines of text. Nothing is changed."""

import os
import platform
import subprocess
import sys
from importlib import metadata

import jax

from tkjax import __version__
from tkjax.app import environment
from tkjax.host import model_files
from tkjax.ops import dispatch

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "av",
    "pillow",
    "ml_collections",
    "tensorboardX",
)
EXTRAS = {
    "preprocess": ("torch", "mediapipe", "transformers", "scipy", "scikit-image"),
    "face-alignment": ("face-alignment",),
    "eval": ("matplotlib", "scikit-image"),
    "cuda": ("jax-triton",),
}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _tracker() -> str:
    """Whether the face tracker's library loads; it needs system libraries that a bare machine may lack."""
    if _version("mediapipe") == "not installed":
        return "mediapipe is not installed: pip install -e '.[preprocess]'"
    code = "from mediapipe.tasks.python import vision; vision.FaceLandmarker"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode == 0:
        return "the face tracker's library loads"
    lines = done.stderr.strip().splitlines() or ["no reason given"]
    return f"the face tracker's library does not load: {lines[-1]}"


def _scatter() -> str:
    version = metadata.version("jaxlib")
    if version not in environment.BAD_SCATTER_JAXLIB:
        return f"jaxlib {version}: no known regression"
    text = f"jaxlib {version} has slow float scatter-adds on GPUs (openxla/xla#46225)"
    if not environment.cuda_plugins():
        return f"{text}; no GPU plug-in is installed here, so nothing is affected"
    return f"{text}; {'repaired by a flag' if environment.scatter_is_repaired() else 'NOT repaired'}"


def report(models: str | None = None) -> list[str]:
    """Lines: versions, devices, kernel back ends, model files, known-bad releases."""
    lines = [f"tkjax {__version__}, Python {platform.python_version()}, {platform.platform()}"]
    lines += ["packages: " + ", ".join(f"{p} {_version(p)}" for p in PACKAGES)]
    for extra, names in EXTRAS.items():
        lines.append(f"extra [{extra}]: " + ", ".join(f"{n} {_version(n)}" for n in names))
    devices = jax.devices()
    lines.append(
        f"devices: {len(devices)} x {devices[0].device_kind} ({jax.default_backend()}), {os.cpu_count()} processors"
    )
    if plugins := environment.cuda_plugins():
        lines.append("GPU plug-ins: " + ", ".join(plugins))
    lines += [f"kernel back ends: {line}" for line in dispatch.table()]
    path, reason = model_files.find_model(models)
    lines.append(f"face tracker: {path if path else reason}")
    lines.append(f"face tracker: {_tracker()}")
    lines.append(f"known-bad releases: {_scatter()}")
    lines.append(f"compilation cache: {os.environ.get('JAX_COMPILATION_CACHE_DIR', 'off')}")
    return lines
