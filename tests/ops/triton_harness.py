"""What the tests of Triton kernels share.

`interpreted(module, function, *arrays)` runs a test's function in a child process where kernels go through Triton's
interpreter. `recorded(fn, *args)` lists the launches that a call of the public ops would make on a GPU, and
`compiled(launch, capability)` compiles one ahead of time and reads its registers, spills and shared memory from the
cubin. `lowered(fn, *args)` lowers a call for CUDA through jax-triton. None of these needs a GPU.
"""

import atexit
import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import os
import pickle
import re
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tkjax.ops import dispatch
from tkjax.ops import triton as backend

ROOT = Path(__file__).resolve().parents[2]
CAPABILITIES = (80, 90)
os.environ.setdefault("TRITON_CACHE_DIR", str(ROOT / ".cache" / "triton"))  # compiled once, like the programs of JAX


def _missing(*packages: str) -> str:
    return ", ".join(p for p in packages if importlib.util.find_spec(p) is None)


needs_triton = pytest.mark.skipif(bool(_missing("triton")), reason="triton is not installed")
needs_interpreter = pytest.mark.skipif(
    bool(_missing("triton", "torch")), reason=f"Triton's interpreter needs {_missing('triton', 'torch')}"
)


def _no_lowering() -> str:
    """Why jax-triton cannot lower for a GPU here, or ''."""
    if missing := _missing("triton", "jax_triton"):
        return f"{missing} is not installed"
    if not hasattr(importlib.import_module("jaxlib.gpu_triton"), "TritonKernel"):
        return "JAX's CUDA plugin (jax-cuda13-plugin; no GPU is needed) is not installed"
    return ""


needs_lowering = pytest.mark.skipif(bool(_no_lowering()), reason=_no_lowering())


def require_gpu() -> None:
    """Skips a test where JAX has no GPU (JAX_PLATFORMS=cuda selects it; the default of the tests is cpu)."""
    if reason := dispatch.unavailable("triton"):
        pytest.skip(f"triton: {reason}")


@contextlib.contextmanager
def as_on_a_gpu():
    """The dispatcher takes the Triton back end for one that works, whatever the machine."""
    platforms, unavailable = dispatch.PLATFORMS["triton"], backend.unavailable
    dispatch.PLATFORMS["triton"], backend.unavailable = (jax.default_backend(),), lambda: None
    try:
        yield
    finally:
        dispatch.PLATFORMS["triton"], backend.unavailable = platforms, unavailable


# -- the interpreter


@functools.cache
def _child() -> subprocess.Popen:
    environment = dict(os.environ, TRITON_INTERPRET="1", JAX_PLATFORMS="cpu", OMP_NUM_THREADS="1")
    environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.ops.triton_interpreter"],
        cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip

    @atexit.register
    def stop():
        child.stdin.close()
        child.wait(10)

    return child


def interpreted(module: str, function: str, *args):
    """numpy results of `function(*args)` of a test module, run where kernels go through the interpreter."""
    child = _child()
    pickle.dump((module, function, args), child.stdin)
    child.stdin.flush()
    status, result = pickle.load(child.stdout)
    if status == "error":
        raise AssertionError(f"in the interpreter process:\n{result}")
    return result


# -- ahead-of-time compilation


@dataclasses.dataclass(frozen=True)
class Launch:
    """One kernel launch: everything that the compiled code depends on, and the grid."""

    kernel: object
    arguments: tuple  # triton type of an array, or a Python int
    meta: tuple
    grid: tuple
    zeroed: tuple
    num_warps: int
    fp_fusion: bool

    @property
    def name(self) -> str:
        return self.kernel.__name__


_TYPES = {"float32": "fp32", "bfloat16": "bf16", "int32": "i32", "uint32": "u32", "uint8": "u8", "int8": "i8"}


def _pointer(array) -> str:
    return "*" + _TYPES[str(array.dtype)]


def recorded(fn: Callable, *args) -> list[Launch]:
    """The launches that fn(*args) would make, in order. args: arrays or jax.ShapeDtypeStruct."""
    from tkjax.ops.triton import launch

    found = []

    def note(kernel, args, out_shape, grid, zeroed, num_warps, fp_fusion, meta):
        types = tuple(a if isinstance(a, int) else _pointer(a) for a in (*args, *out_shape))
        found.append(Launch(kernel, types, tuple(sorted(meta.items())), grid, zeroed, num_warps, fp_fusion))
        return [jnp.zeros(s.shape, s.dtype) for s in out_shape]

    with as_on_a_gpu(), launch.through(note):
        jax.eval_shape(lambda *a: fn(*a), *args)
    return found


@dataclasses.dataclass(frozen=True)
class Resources:
    """Of one kernel on one architecture, read from its cubin. `stack`: bytes per thread in local memory (spills)."""

    registers: int
    stack: int
    shared: int
    ptx: str = dataclasses.field(repr=False)


@functools.cache
def compiled(launch: Launch, capability: int) -> Resources:
    """The kernel as jax-triton would compile it: pointers aligned to 16 bytes, integers not specialised but for 1."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = [name for name in launch.kernel.arg_names if name not in dict(launch.meta)]
    signature = {name: t if isinstance(t, str) else "i32" for name, t in zip(names, launch.arguments, strict=True)}
    constants = dict(launch.meta) | {n: 1 for n, t in zip(names, launch.arguments) if t == 1 and isinstance(t, int)}
    signature |= {name: "constexpr" for name in constants}
    order = launch.kernel.arg_names
    aligned = {(order.index(n),): [["tt.divisibility", 16]] for n, t in signature.items() if t.startswith("*")}
    source = ASTSource(
        launch.kernel, {name: signature[name] for name in order},
        {(order.index(n),): v for n, v in constants.items()}, aligned,
    )  # fmt: skip
    binary = triton.compile(
        source, target=GPUTarget("cuda", capability, 32),
        options=dict(num_warps=launch.num_warps, enable_fp_fusion=launch.fp_fusion),
    )  # fmt: skip
    registers, stack, shared = _usage(binary.asm["cubin"])
    return Resources(registers, stack, max(shared, binary.metadata.shared), binary.asm["ptx"])


def _usage(cubin: bytes) -> tuple[int, int, int]:
    """(registers per thread, stack and local bytes per thread, static shared bytes) from a cubin."""
    from triton.backends import nvidia

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
        text = subprocess.run([tool, "-res-usage", file.name], check=True, capture_output=True, text=True).stdout
    found = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", text)}
    return found["REG"], found["STACK"] + found["LOCAL"], found["SHARED"]


def check_resources(title, launches: list[Launch], registers=255, shared=100_000, full_house=0, spilled=0) -> None:
    """Compile each launch for each architecture, print the table, and assert that no more than `spilled` bytes spill.
    The table is added to the file named by the environment variable TKJAX_TRITON_RESOURCES, if any.

    full_house: bytes that may spill where a kernel then takes 32 registers: some releases of ptxas give up a register
    or two to fit as many threads on a processor as it can hold.
    """
    lines, bad = [], []
    for launch in dict.fromkeys(launches):
        for capability in CAPABILITIES:
            r = compiled(launch, capability)
            line = (
                f"{title} {launch.name} {dict(launch.meta)} sm_{capability} warps {launch.num_warps}: "
                f"{r.registers} registers, {r.stack} bytes spilled, {r.shared} bytes shared"
            )
            lines.append(line)
            too_much = r.stack > (full_house if r.registers == 32 else spilled)
            if too_much or r.registers > registers or r.shared >= shared:
                bad.append(line)
    print("\n".join(["", *lines]))
    if path := os.environ.get("TKJAX_TRITON_RESOURCES"):
        with open(path, "a") as file:
            file.write("".join(line + "\n" for line in lines))
    assert lines and not bad, "\n".join(bad)


def contractions(ptx: str) -> list[str]:
    """Lines of PTX in which a product and a sum are, or may be, rounded together."""
    return [
        line.strip() for line in ptx.splitlines() if re.search(r"\b(fma\.|mad\.\w*\.?f32|(mul|add|sub)\.f32)", line)
    ]


# -- lowering through jax-triton


def lowered(fn: Callable, *args, capability: int = 90, debug: bool = False) -> str:
    """The text of fn(*args) lowered for CUDA by jax-triton: kernels compiled, arguments and grids as on a GPU."""
    from tkjax.ops.triton import launch

    with as_on_a_gpu(), launch.target(capability):
        return jax.jit(lambda *a: fn(*a)).trace(*args).lower(lowering_platforms=("cuda",)).as_text(debug_info=debug)


def kernel_calls(text: str) -> int:
    """How many kernels a lowered program launches (those of a vmapped op count once)."""
    return len(re.findall(r"custom_call @triton_kernel_call", text))


def lowered_kernels(text: str) -> list[str]:
    """What jax-triton put into a lowered program: one description of each kernel, its PTX within."""
    configs = re.findall(r'(?:backend_config|opaque) = "(x\\9C[^"]*)"', text)
    found = []
    for config in configs:
        raw = re.sub(rb"\\([0-9A-F]{2})", lambda m: bytes([int(m[1], 16)]), config.encode().replace(rb"\\", rb"\5C"))
        found.append(zlib.decompress(raw).decode("latin-1"))
    return found


def shape(dtype, *dims) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(dims, np.dtype(dtype) if not isinstance(dtype, str) else jnp.dtype(dtype))
