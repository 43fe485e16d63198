"""Optimiser and moving average of a stage, from its table of rates.

AdamW as torch has it, per parameter group, with lr_s of `interface.Rate` at step s from 0:
  p <- p - lr_s * decay * p - lr_s * mhat / (sqrt(vhat) + eps).
Groups without a rate are frozen: their updates are zero and they own no optimiser state.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from tkjax.errors import UserError
from tkjax.interface import Ema, Rate
from tkjax.types import PyTree

FROZEN = "__frozen__"
MIN_EMA_UPDATES = 20  # the initial weights' share after n updates is prod (1+i)/(10+i): below 1e-6 for n = 20


def learning_rate(rate: Rate, steps: int) -> optax.Schedule:
    """What `Rate` says, as a function of the step from 0, once the group has joined."""

    def at(step):
        lr = rate.lr * rate.final_factor ** (jnp.asarray(step, jnp.float32) / steps)
        for first, factor in rate.drops:
            lr = lr * jnp.where(step >= first, factor, 1.0)
        return jnp.maximum(lr, rate.floor * rate.lr) if rate.floor else lr

    return at


def group_optimiser(rate: Rate, steps: int) -> optax.GradientTransformation:
    """AdamW of one group, which neither moves nor counts before it joins; its rate is that of the stage's step."""
    lr = learning_rate(rate, steps)
    own = (lambda count: lr(count + rate.joins)) if rate.joins else lr  # it counts from where it joins
    tx = optax.adamw(own, b1=rate.b1, b2=rate.b2, eps=rate.eps, weight_decay=rate.decay)
    return optax.conditionally_mask(tx, lambda step, **_: step >= rate.joins) if rate.joins else tx


def optimiser(rates: Mapping[str, Rate], labels: PyTree, steps: int) -> optax.GradientTransformation:
    """The optax chain of one stage.

    Args:
      rates: group name -> Rate; groups that it leaves out are frozen.
      labels: a tree like the parameters with the group name of each leaf.
      steps: length of the stage.

    Raises:
      UserError: a rate names a group that no parameter belongs to, or no group is trained.
    """
    groups = set(jax.tree.leaves(labels))
    for name in rates:
        if name not in groups:
            raise UserError(f"rate names group {name!r}, but the parameters have groups {', '.join(sorted(groups))}")
    if not rates:
        raise UserError(f"a stage trains no group; give one of {', '.join(sorted(groups))} a rate")
    chains = {name: group_optimiser(r, steps) for name, r in rates.items()}
    chains[FROZEN] = optax.set_to_zero()
    return optax.partition(chains, jax.tree.map(lambda group: group if group in rates else FROZEN, labels))


def global_norm(tree: PyTree) -> Float[Array, ""]:
    """The square root of the sum of all squares, as inner products of arrays that stand in memory: XLA's CPU compiler
    makes one thread sum the squares, several times as long, where it may fuse them with what else reads a gradient."""
    leaves = [v.ravel() for v in jax.lax.optimization_barrier(jax.tree.leaves(tree))]
    return jnp.sqrt(sum((jnp.vdot(v, v, precision=jax.lax.Precision.HIGHEST) for v in leaves), jnp.float32(0)))


def ema_every(ema: Ema, steps: int) -> int:
    """Steps between updates of the moving average: `ema.every`, or less where the stage is so short
    that its average would still hold the initial weights."""
    return max(1, min(ema.every, steps // MIN_EMA_UPDATES))


def ema_decay(ema: Ema, n: Int[Array, ""] | int) -> Float[Array, ""]:
    """Decay of update number n, counted from 1: min(decay, (1 + n) / (10 + n)) (er-nerf.md §5)."""
    n = jnp.asarray(n, jnp.float32)
    return jnp.minimum(ema.decay, (1 + n) / (10 + n))


def ema_update(average: PyTree, params: PyTree, decay: Float[Array, ""]) -> PyTree:
    """decay * average + (1 - decay) * params, leaf by leaf."""
    return jax.tree.map(lambda a, p: a + (1 - decay) * (p - a), average, params)
