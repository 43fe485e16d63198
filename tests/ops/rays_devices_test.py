"""march and composite under shard_map: eight devices give what one gives, to the bit."""

import json
import os
import subprocess
import sys

from tests.ops.rays import needs_kernels

DEVICES = """
import json, jax, jax.numpy as jnp, numpy as np
from jax.sharding import PartitionSpec as P
from tests.ops.rays import COMMON, occupancy, rays
from tkjax.ops import composite, march
rng = np.random.default_rng(0)
o, d = map(jnp.asarray, rays(rng, 64))
bits, noise = jnp.asarray(occupancy(rng, COMMON, 0.3)), jnp.asarray(rng.random(64), jnp.float32)
sigma, w = jnp.asarray(rng.exponential(9, (64, 16)), jnp.float32), jnp.asarray(rng.random((64, 16, 4)), jnp.float32)
def step(sigma, w, o, d, noise):
    m = march(o, d, bits, noise, **COMMON, backend="cpu")
    def loss(sigma, w):
        out = composite(sigma, m.valid, m.t, w, w[..., :1], dt=m.dt, backend="cpu")
        return sum(jnp.sum(jnp.sin(v)) for v in out), out
    grads, out = jax.grad(loss, (0, 1), has_aux=True)(sigma, w)
    return m, out, grads
one = jax.jit(step)(sigma, w, o, d, noise)
mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
eight = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=False))
many = eight(sigma, w, o, d, noise)
same = jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), one, many)
print(json.dumps([len(jax.devices()), all(jax.tree.leaves(same)), int(one[0].count.sum())]))
"""


@needs_kernels
def test_eight_devices_give_what_one_gives():
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run([sys.executable, "-c", DEVICES], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    devices, same, kept = json.loads(done.stdout.splitlines()[-1])
    assert devices == 8 and same and kept > 100
