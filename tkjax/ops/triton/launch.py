"""The one way from JAX to a Triton kernel: `call`. What differs between versions of jax-triton is handled here."""

import contextlib
import functools
import os
import warnings
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

_capability: int | None = None  # compute capability to compile for; None: that of the GPU at hand
_through: Callable | None = None


@contextlib.contextmanager
def target(capability: int) -> Iterator[None]:
    """Compile for this compute capability (80, 90, …) in a block: lowering for a GPU needs none at hand then."""
    global _capability
    before, _capability = _capability, capability
    try:
        yield
    finally:
        _capability = before


@contextlib.contextmanager
def through(fn: Callable) -> Iterator[None]:
    """Within a block, launches go to fn(kernel, args, out_shape, grid, zeroed, num_warps, fp_fusion, meta) -> outputs.

    For tests: to run kernels in Triton's interpreter, or to note what would be compiled.
    """
    global _through
    before, _through = _through, fn
    try:
        yield
    finally:
        _through = before


@functools.cache
def _jax_triton():
    """The module jax_triton, imported at the first launch: 0.3 refuses to be imported without JAX's CUDA plugin."""
    cache = os.environ.get("TRITON_CACHE_DIR")
    try:
        import jax_triton
    finally:  # importing jax_triton changes this variable for everyone in the process
        os.environ.pop("TRITON_CACHE_DIR", None)
        if cache is not None:
            os.environ["TRITON_CACHE_DIR"] = cache
    return jax_triton


def _launch(kernel, args, out_shape, grid, zeroed, num_warps, fp_fusion, meta):
    jax_triton = _jax_triton()
    new = jax_triton.__version_info__ >= (0, 4)  # compiler options and output types were renamed
    options = dict(backend_options={"enable_fp_fusion": fp_fusion}) if new else dict(enable_fp_fusion=fp_fusion)
    outputs = {"out_type" if new else "out_shape": out_shape}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "zeroed_outputs is deprecated", DeprecationWarning)
        return jax_triton.triton_call(
            *args, kernel=kernel, grid=grid, zeroed_outputs=zeroed, num_warps=num_warps,
            compute_capability=_capability, **outputs, **options, **meta,
        )  # fmt: skip


def call(
    kernel,
    *args: jax.Array | np.ndarray | int,
    out_shape: Sequence[jax.ShapeDtypeStruct],
    grid: tuple[int, ...],
    zeroed: Sequence[int] = (),
    num_warps: int = 4,
    fp_fusion: bool = True,
    **meta,
) -> tuple[jax.Array, ...]:
    """Run `kernel(*args, *outputs, **meta)` on `grid` programs; gives the outputs. Not differentiable.

    args: arrays (contiguous) and Python ints; floats go in `meta` or in arrays. Outputs hold anything before the launch
    but those numbered in `zeroed`, which hold zeros. fp_fusion=False keeps products and sums from being contracted.
    meta: constexpr arguments by name. An empty grid launches nothing and gives zeros. Under vmap the call is repeated,
    one by one.
    """
    out_shape, zeroed = tuple(out_shape), tuple(zeroed)
    if any(isinstance(arg, float) for arg in args):
        raise TypeError(f"{kernel.__name__}: pass floats as constexpr or in arrays, their width depends on the version")
    if 0 in grid:
        return tuple(jnp.zeros(s.shape, s.dtype) for s in out_shape)
    if any(size > 65535 for size in grid[1:]) or grid[0] > 2**31 - 1:
        raise ValueError(f"{kernel.__name__}: grid {grid} is beyond what a GPU takes (2^31-1, 65535, 65535)")
    run = _launch if _through is None else _through
    slots = [i for i, arg in enumerate(args) if not isinstance(arg, int)]

    @jax.custom_batching.sequential_vmap
    def one(*arrays):
        full = list(args)
        for slot, array in zip(slots, arrays):
            full[slot] = array
        return tuple(run(kernel, full, out_shape, grid, zeroed, num_warps, fp_fusion, meta))

    return one(*(jnp.asarray(args[slot]) for slot in slots))


def count(total, most: int) -> jax.Array:
    """`total` (traced, or None for `most`) as kernels read it, int32 [1]: how many of `most` rows there are."""
    return jnp.full(1, most, jnp.int32) if total is None else jnp.clip(jnp.int32(total), 0, most).reshape(1)
