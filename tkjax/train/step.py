"""One update of one stage: loss and gradient of a device's frames, mean over the devices, optimiser, moving average."""

from collections.abc import Callable, Mapping

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Float, Int, UInt32

from tkjax.errors import UserError
from tkjax.interface import Model, Stage
from tkjax.render.image import picture
from tkjax.train.devices import AXIS
from tkjax.train.optim import ema_decay, ema_every, ema_update, global_norm
from tkjax.types import Array, Batch, Clock, Leaf, PyTree, Variables


@flax.struct.dataclass
class TrainState:
    """All that a step changes. Replicated on every device, donated to the next step, saved whole.

    Attributes:
      step: updates done in this stage.
      key: raw data of the stage's PRNG key; the key of a step is fold_in(key, step).
      params, state: the model's variables.
      opt: state of the optax chain.
      ema: moving average of params, or None.
      sums: metric name -> (sum, count) since the last logged row.
    """

    step: Leaf[Int[Array, ""]]
    key: Leaf[UInt32[Array, " K"]]
    params: PyTree
    state: PyTree
    opt: PyTree
    ema: PyTree
    sums: dict[str, Leaf[Float[Array, "2"]]]


def make_loss(model: Model, stage: Stage, is_trained: PyTree) -> Callable:
    """loss(params, state, clock, batch, key) -> (total, (terms, metrics)) of the frames of one device.

    total = sum of weight(progress) * term. All frames go through the model in one call, so that many frames of few rays
    cost what one frame of many rays costs; the model's terms are means over frames, so that devices average them.
    """

    def loss(params, state, clock, batch, key):
        params = jax.tree.map(lambda p, keep: p if keep else jax.lax.stop_gradient(p), params, is_trained)
        variables = Variables(params, state)
        render_key, loss_key = jax.random.split(key)
        render = model.render(variables, batch, render_key, clock, True)
        terms = model.loss_terms(variables, render, batch, loss_key, clock)
        total = jnp.float32(0)
        for name, weight in stage.weights.items():
            if name in terms and not (isinstance(weight, (int, float)) and weight == 0):
                total += (weight(clock.progress) if callable(weight) else weight) * terms[name]
        error = picture(render, batch.background) - batch.target
        metrics = {"loss": total, "mse": jnp.mean(error**2)}
        metrics |= {f"loss_{name}": term for name, term in terms.items()}
        metrics |= dict(render.aux.get("metrics", {}))
        return total, (terms, jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), metrics))

    return loss


def make_step(model: Model, stage: Stage, tx, is_trained: PyTree, mesh: Mesh):
    """The jitted update (TrainState, Batch) -> TrainState; every device has as many frames of the batch.

    In this order: refresh where it is due, loss and gradient of all frames of a device, one average over the devices,
    AdamW, moving average where it is due, sums of the metrics.
    """
    loss = make_loss(model, stage, is_trained)
    every = ema_every(stage.ema, stage.steps) if stage.ema else 0
    # the step from which a leaf is trained, and may be projected; frozen groups never
    never = stage.steps + 1

    def local_step(s: TrainState, batch: Batch) -> TrainState:
        groups = model.labels(s.params)
        joined = jax.tree.map(lambda g: stage.rates[g].joins if g in stage.rates else never, groups)
        progress = jnp.minimum(s.step.astype(jnp.float32) / stage.steps, 1.0)
        clock = Clock(step=s.step, progress=progress, stage=stage.name)
        frames_key, refresh_key = jax.random.split(jax.random.fold_in(jax.random.wrap_key_data(s.key), s.step))
        state = s.state
        if stage.refresh_every:
            # every device refreshes from the global batch's first frame and the same key, so all stay equal
            def refresh(_):
                return model.refresh(Variables(s.params, state), first_frame(batch), refresh_key, clock).state

            state = jax.lax.cond(s.step % stage.refresh_every == 0, refresh, lambda _: state, None)

        # the same key on every device: what a model draws for a frame hangs on the frame's number (base.frame_keys)
        grads, (_, metrics) = jax.grad(loss, has_aux=True)(s.params, state, clock, batch, frames_key)
        grads, metrics = jax.lax.pmean((grads, metrics), AXIS)

        metrics["grad_norm"] = global_norm(grads)
        updates, opt = tx.update(grads, s.opt, s.params)
        params = optax.apply_updates(s.params, updates)
        if type(model).project is not Model.project:
            params = jax.tree.map(
                lambda new, old, at: jnp.where(s.step >= at, new, old), model.project(params, clock), params, joined
            )
        ema = s.ema
        if every:
            n = (s.step + 1) // every
            due_now = (s.step + 1) % every == 0
            ema = jax.lax.cond(due_now, lambda e: ema_update(e, params, ema_decay(stage.ema, n)), lambda e: e, ema)
        sums = {k: v + jnp.stack([metrics[k], 1.0]) if k in metrics else v for k, v in s.sums.items()}
        return TrainState(s.step + 1, s.key, params, state, opt, ema, sums)

    def train_step(state: TrainState, batch: Batch) -> TrainState:
        # check_vma off: custom kernels inside models carry no varying-axes types
        specs = (PartitionSpec(), PartitionSpec(AXIS))
        mapped = jax.shard_map(local_step, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)
        return mapped(state, batch)

    return jax.jit(train_step, donate_argnums=0)


def first_frame(batch: Batch) -> Batch:
    """The global batch's first frame (B = 1), on every device; inside shard_map."""

    def broadcast(x):
        mine = jnp.where(jax.lax.axis_index(AXIS) == 0, x[:1], jnp.zeros_like(x[:1]))
        wide = mine.astype(jnp.int32) if mine.dtype in (jnp.bool_, jnp.uint8) else mine
        return jax.lax.psum(wide, AXIS).astype(x.dtype)

    return jax.tree.map(broadcast, batch)


def check_terms(model: Model, stage: Stage, variables: Variables, first: Mapping[str, Batch]) -> list[str]:
    """Names of the metrics of a stage, after its loss terms were held against its weights.

    Raises:
      UserError: a term without a weight, a weight without a term, or a term that is not a scalar.
    """
    everything = jax.tree.map(lambda _: True, variables.params)
    loss = make_loss(model, stage, everything)
    clock = Clock(jnp.int32(0), jnp.float32(0), stage.name)
    seen, metrics = {}, {"grad_norm"}
    for batch in first.values():
        _, (terms, values) = jax.eval_shape(loss, variables.params, variables.state, clock, batch, jax.random.key(0))
        seen |= {name: term.shape for name, term in terms.items()}
        metrics |= set(values)
    for name, shape in seen.items():
        if name not in stage.weights:
            raise UserError(
                f"stage {stage.name!r}: loss term {name!r} has no weight; add it to the stage's weights, 0 if unused"
            )
        if shape != ():
            raise UserError(f"stage {stage.name!r}: loss term {name!r} has shape {shape}, a term is a scalar")
    for name in stage.weights:
        if name not in seen:
            raise UserError(
                f"stage {stage.name!r} weighs term {name!r}, which the model does not return; "
                f"it returns {', '.join(sorted(seen))}"
            )
    return sorted(metrics)
