"""One colour for every pixel: the smallest system that passes through the whole path."""

import jax
import jax.numpy as jnp

from tkjax import interface
from tkjax.interface import Ema, Rate, Stage
from tkjax.types import Render, Variables


class Model(interface.Model):
    def init(self, key):
        return Variables(params={"logit": 1.5 + 0.1 * jax.random.normal(key, (3,))}, state={})

    def render(self, variables, batch, key, clock, train):
        rgb = jnp.broadcast_to(jax.nn.sigmoid(variables.params["logit"]), (*batch.pixels_px.shape[:2], 3))
        return Render(rgb=rgb, alpha=jnp.ones_like(rgb[..., :1]))

    def loss_terms(self, variables, render, batch, key, clock):
        return {"mse": jnp.mean((render.rgb - batch.target) ** 2)}

    def stages(self):
        steps = self.config.model.steps
        return (Stage("all", steps, 64, {"all": Rate(0.1)}, {"mse": 1.0}, ema=Ema(every=1)),)
