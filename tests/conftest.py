"""Shared settings: a persistent compilation cache, and where optional test data lies."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax-tests"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ["TKJAX_OFFLINE"] = "1"  # no test waits for a network; those of fetching serve themselves

from hypothesis import settings  # noqa: E402

settings.register_profile("tkjax", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("tkjax")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The development data that is not part of the project."""
    path = Path(os.environ.get("TKJAX_DATA", ROOT.parent / "shared" / "data"))
    if not (path / "README.md").is_file():
        pytest.skip(f"no development data at {path}; set TKJAX_DATA")
    return path


@pytest.fixture(scope="session")
def models_dir(data_dir) -> Path:
    """A folder with the face tracker's model file."""
    path = Path(os.environ.get("TKJAX_MODELS", data_dir / "models"))
    if not (path / "face_landmarker.task").is_file():
        pytest.skip(f"no face_landmarker.task in {path}; set TKJAX_MODELS")
    return path
