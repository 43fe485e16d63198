"""Which back end runs: by argument, for the process, by environment, by default; and what is said about it."""

import importlib.util
import json
import logging
import os
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from tkjax.ops import cpu, dispatch

ROOT = Path(__file__).resolve().parents[2]
OP = "grid_encode"
needs_kernels = pytest.mark.skipif(cpu.unavailable() is not None, reason=f"CPU kernels: {cpu.unavailable()}")


def name_of(module) -> str:
    return module.__name__.split(".")[2]


def child(code: str, **environment) -> subprocess.CompletedProcess:
    env = {k: v for k, v in os.environ.items() if not k.startswith("TKJAX_")} | environment
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)


ENCODE = """
import json, logging, sys
import jax, jax.numpy as jnp
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
from tkjax.ops import GridSpec, dispatch, grid_encode
spec = GridSpec(2, 2, 1, 4, 8, 6)
f = jax.jit(lambda p, t: grid_encode(p, t, spec))
text = f.lower(jnp.full((3, 1, 2), 0.3), jnp.ones((1, spec.entries, 1))).as_text(debug_info=True)
out = f(jnp.full((3, 1, 2), 0.3), jnp.ones((1, spec.entries, 1)))
out = f(jnp.full((4, 1, 2), 0.3), jnp.ones((1, spec.entries, 1)))
scopes = [name for name in dispatch.BACKENDS if f"grid_encode.{name}" in text]
print(json.dumps({"sum": float(out.sum()), "ran": sorted(dispatch.ran()["grid_encode"]), "scopes": scopes}))
"""


@pytest.mark.heavy
@needs_kernels
@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_the_environment_decides_what_runs_and_it_is_said_once(name):
    done = child(ENCODE, TKJAX_OPS_BACKEND=name)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert json.loads(lines[-1]) == {"sum": 8.0, "ran": [name], "scopes": [name]}
    assert [line.split(" (")[0] for line in lines].count(f"{OP} -> {name}") == 1


@needs_kernels
def test_the_kernels_are_the_default_on_a_cpu():
    done = child(ENCODE)
    assert json.loads(done.stdout.splitlines()[-1])["ran"] == ["cpu"], done.stderr


def test_an_unknown_name_in_the_environment_is_refused():
    done = child(ENCODE, TKJAX_OPS_BACKEND="cuda")
    assert done.returncode and "TKJAX_OPS_BACKEND: 'cuda' is unknown; choose triton, cpu, reference" in done.stderr


def test_a_back_end_that_cannot_run_here_is_an_error_not_a_fallback():
    done = child(ENCODE, TKJAX_OPS_BACKEND="triton", JAX_PLATFORMS="cpu")
    assert done.returncode and "back end 'triton' does not work here: it runs on gpu devices" in done.stderr


@pytest.mark.parametrize("bad", ["cuda", ""])
def test_unknown_arguments_are_refused(bad):
    with pytest.raises(ValueError, match="choose triton, cpu, reference"):
        dispatch.resolve(OP, bad)


def test_an_op_without_such_a_kernel():
    with pytest.raises(ValueError, match="sh_encode has no cpu back end; choose reference"):
        dispatch.resolve("sh_encode", "cpu")


@needs_kernels
def test_order_of_choice(monkeypatch):
    monkeypatch.setenv(dispatch.ENVIRONMENT, "reference")
    assert name_of(dispatch.resolve(OP)) == "reference"
    with dispatch.use("cpu"):
        assert name_of(dispatch.resolve(OP)) == "cpu"
        assert name_of(dispatch.resolve(OP, "reference")) == "reference"
        assert name_of(dispatch.resolve("sh_encode")) == "reference"  # has no other
    assert name_of(dispatch.resolve(OP)) == "reference"
    monkeypatch.delenv(dispatch.ENVIRONMENT)
    assert name_of(dispatch.resolve(OP)) == "cpu"


@needs_kernels
def test_a_case_that_a_kernel_does_not_do(caplog, monkeypatch):
    from tkjax.ops.cpu import grid_encode as module

    def supports(*case):
        raise NotImplementedError(f"no {case[0]}")

    monkeypatch.setattr(module, "supports", supports)
    with caplog.at_level(logging.INFO, "tkjax.ops"):
        assert name_of(dispatch.resolve(OP, None, "seven dimensions")) == "reference"
    assert "grid_encode -> reference; cpu does not: no seven dimensions" in caplog.text
    assert "grid_encode -> reference; cpu does not: no seven dimensions" in dispatch.said()
    with pytest.raises(ValueError, match="back end 'cpu' does not work here: no seven dimensions"):
        dispatch.resolve(OP, "cpu", "seven dimensions")
    with dispatch.use("cpu"), pytest.raises(ValueError, match="seven dimensions"):
        dispatch.resolve(OP, None, "seven dimensions")


@needs_kernels
def test_where_no_back_end_does_a_case_all_reasons_are_said(monkeypatch):
    import tkjax.ops.cpu.grid_encode as fast
    import tkjax.ops.reference.grid_encode as plain

    def refuse(what):
        def supports(*case):
            raise NotImplementedError(what)

        return supports

    monkeypatch.setattr(fast, "supports", refuse("too wide"))
    monkeypatch.setattr(plain, "supports", refuse("too deep"), raising=False)
    with pytest.raises(NotImplementedError, match=r"grid_encode: triton: .*; cpu: too wide; reference: too deep"):
        dispatch.resolve(OP, None, "a case")


def test_every_other_error_of_a_back_end_is_a_bug_and_is_raised(monkeypatch):
    import tkjax.ops.reference.grid_encode as plain

    monkeypatch.setattr(plain, "supports", lambda *case: 1 / 0, raising=False)
    with pytest.raises(ZeroDivisionError):
        dispatch.resolve(OP, "reference", "a case")


def test_missing_kernels_are_said_and_the_reference_takes_over(monkeypatch, caplog):
    monkeypatch.setattr(cpu, "unavailable", lambda: "the kernels are not built")
    monkeypatch.setattr(dispatch, "_said", [])
    with caplog.at_level(logging.INFO, "tkjax.ops"):
        for _ in range(2):
            assert name_of(dispatch.resolve(OP)) == "reference"
    assert caplog.text.count("grid_encode -> reference; cpu does not: the kernels are not built") == 1
    with pytest.raises(ValueError, match="the kernels are not built"):
        dispatch.resolve(OP, "cpu")
    with pytest.raises(ValueError, match="the kernels are not built"):
        dispatch.set_default("cpu")


def test_a_program_that_the_gpu_has_no_kernel_for_is_a_warning_once(monkeypatch, caplog):
    """Otherwise a new system is merely slow, and nobody knows why. Its three parts run on what each has."""
    monkeypatch.setattr(dispatch, "_said", [])
    monkeypatch.setattr(dispatch.jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(dispatch, "unavailable", lambda name: None if name != "cpu" else "it runs on cpu devices")
    module = types.ModuleType("tkjax.ops.triton.render_fused")

    def supports(*case):
        raise NotImplementedError(f"no fused field draws {case[0]}")

    module.supports, module.__spec__ = supports, importlib.util.find_spec("tkjax.ops.cpu.render_fused")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with caplog.at_level(logging.INFO, "tkjax.ops"):
        for _ in range(2):
            assert dispatch.resolve_whole("render_fused", None, "new_head") is None
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        "render_fused -> march, field, composite; triton does not: no fused field draws new_head"
    )


def test_an_op_of_parts_that_was_named_runs_there_or_is_refused():
    assert dispatch.backends("render_fused") == dispatch.BACKENDS
    assert dispatch.resolve_whole("render_fused", "reference") is None
    with pytest.raises(ValueError, match="back end 'triton' does not work here: it runs on gpu devices"):
        dispatch.resolve_whole("render_fused", "triton")


def test_second_derivatives_are_refused_with_a_sentence():
    @dispatch.once_differentiable("square")
    def gradient(x, g):
        return 2 * x * g

    @jax.custom_vjp
    def square(x):
        return x * x

    square.defvjp(lambda x: (x * x, x), lambda x, g: (gradient(x, g),))
    assert jax.grad(square)(3.0) == 6.0
    with pytest.raises(NotImplementedError, match="square: second derivatives are not available"):
        jax.grad(jax.grad(square))(jnp.float32(3.0))


# -- instruction sets


@needs_kernels
def test_instruction_sets_switch_within_a_process():
    before = cpu.active_isa()
    for name in cpu.isas():
        with cpu.isa(name):
            assert cpu.active_isa() == name
    assert cpu.active_isa() == before
    with pytest.raises(ValueError, match="'sse9' is unknown; TKJAX_CPU_ISA is one of generic, avx2, avx512"):
        cpu.set_isa("sse9")


@needs_kernels
@pytest.mark.parametrize("name", cpu.ISAS)
def test_the_environment_forces_an_instruction_set(name):
    done = child("from tkjax.ops import cpu; print(cpu.unavailable(), cpu.active_isa())", TKJAX_CPU_ISA=name)
    if name in cpu.isas():
        assert done.stdout.split() == ["None", name], done.stderr
    else:
        assert f"CPU instruction set {name} is not supported here" in done.stderr


@needs_kernels
def test_python_numbers_are_no_attributes():
    with pytest.raises(TypeError, match="attribute side must be a numpy scalar"):
        cpu.call("tkjax_packbits", jax.ShapeDtypeStruct((1,), jnp.uint8), side=3)
