"""Child process of the Triton tests: kernels run in Triton's interpreter (TRITON_INTERPRET=1, set before the import).

The ops' launch code runs as it is, under JAX's own jit, grad and vmap; only the last step is another: where jax-triton
would launch a kernel on the GPU, a callback runs the interpreted kernel on the same arguments in host memory.

Protocol: pickled (module, function, arguments) arrive on stdin, pickled ("ok", numpy result) or ("error", text) go to
stdout's original descriptor; whatever else prints lands on stderr.
"""

import importlib
import os
import pickle
import sys
import threading
import traceback

import jax
import numpy as np

_one_at_a_time = threading.Lock()  # the interpreter has global state, and callbacks of several devices come together


def _to_torch(array):
    """A private, contiguous tensor; bfloat16 by its bits, which numpy's from_dlpack does not know."""
    import torch

    array = np.array(array, order="C")
    if array.dtype == jax.numpy.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _to_numpy(tensor, dtype):
    import torch

    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(dtype)
    return tensor.numpy()


def _empty(shape, dtype, zeroed: bool):
    """An output as the GPU gives it: zeros where promised, else rubbish that a test would notice."""
    fill = 0 if zeroed else np.nan if jax.numpy.issubdtype(dtype, jax.numpy.floating) else np.iinfo(dtype).max
    return _to_torch(np.full(shape, fill, dtype))


def interpret(kernel, args, out_shape, grid, zeroed, num_warps, fp_fusion, meta):
    """`launch.through` target: what jax-triton's call does, in the interpreter."""
    slots = [i for i, arg in enumerate(args) if not isinstance(arg, int)]

    def run(*arrays):
        full = list(args)
        for slot, array in zip(slots, arrays):
            full[slot] = _to_torch(array)
        outputs = [_empty(s.shape, s.dtype, i in zeroed) for i, s in enumerate(out_shape)]
        with _one_at_a_time, np.errstate(all="ignore"):
            kernel[grid](*full, *outputs, num_warps=num_warps, enable_fp_fusion=fp_fusion, **meta)
        return tuple(_to_numpy(tensor, s.dtype) for tensor, s in zip(outputs, out_shape))

    return jax.pure_callback(run, out_shape, *(args[slot] for slot in slots), vmap_method="sequential")


def main() -> None:
    assert os.environ.get("TRITON_INTERPRET") == "1"
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    from tkjax.ops import dispatch
    from tkjax.ops import triton as backend
    from tkjax.ops.triton import launch

    dispatch.PLATFORMS["triton"] = ("cpu",)  # in this process it runs there
    backend.unavailable = lambda: None
    with launch.through(interpret):
        while True:
            try:
                module, function, args = pickle.load(sys.stdin.buffer)
            except EOFError:
                return
            try:
                result = getattr(importlib.import_module(module), function)(*args)
                reply = ("ok", jax.tree.map(np.asarray, result))
            except Exception:
                reply = ("error", traceback.format_exc())
            pickle.dump(reply, replies)
            replies.flush()


if __name__ == "__main__":
    main()
