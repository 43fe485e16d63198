"""Shared settings: a persistent compilation cache, bounded memory, the order of files, and where optional data lies."""

import gc
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax-tests"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
# Nearly every program of a test runs once or twice: XLA's optimiser and its newer emitters of loops would cost more
# than they save (two thirds of the time of the whole run). The older emitters round exp, tanh and sums otherwise in the
# last place. `TKJAX_TESTS_EMITTERS=usual` takes XLA's usual ones.
FAST_COMPILE = {"xla_backend_optimization_level": "0"}
if os.environ.get("TKJAX_TESTS_EMITTERS") != "usual":
    FAST_COMPILE["xla_cpu_use_fusion_emitters"] = "false"
for flag, value in FAST_COMPILE.items():
    if flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --{flag}={value}".strip()
# A fifth of the time went into looking for garbage: imports and traces make many objects that stay
gc.set_threshold(50_000, 20, 20)
# Parallel workers share the processors: OpenMP's threads would spin while they wait for each other (PyTorch, 10 times)
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TKJAX_OFFLINE"] = "1"  # no test waits for a network; those of fetching serve themselves

from hypothesis import settings  # noqa: E402

from tests import resident  # noqa: E402

settings.register_profile("tkjax", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("tkjax")

# Files that take a minute or more go first, so that parallel workers end together.
LONGEST = (
    "preprocess_clip", "seam", "whole_way", "render_fused", "rad_nerf", "er_nerf", "stages", "import_checkpoint",
    "preprocess_matting", "evaluate", "march", "triton_ambient_head", "triton_render_fused", "triton_grid_encode",
    "train", "torso", "stranger", "resume", "distributed", "import_checkpoint_onward", "contract_generations",
    "import_dataset", "conformance", "cli",
)  # fmt: skip
_peaks: dict[str, float] = {}  # process -> GB


def pytest_configure(config):
    if hasattr(config.option, "loadscopereorder"):  # of xdist: would start the files with the most tests first
        config.option.loadscopereorder = False


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    rank = {f"{name}_test.py": i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol():
    done = yield
    resident.bound()
    return done


def pytest_sessionfinish(session):
    peak = resident.resident_gb("VmHWM")
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["peak_gb"] = peak
    elif not _peaks:
        _peaks["this process"] = peak


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    _peaks[node.gateway.id] = getattr(node, "workeroutput", {}).get("peak_gb", 0.0)


def pytest_terminal_summary(terminalreporter):
    shown = ", ".join(f"{name} {gb:.1f} GB" for name, gb in sorted(_peaks.items()) if gb)
    over = "" if all(gb <= resident.LIMIT_GB for gb in _peaks.values()) else f" (more than {resident.LIMIT_GB} GB)"
    terminalreporter.write_line(f"largest memory: {shown or 'not known here'}{over}")


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
