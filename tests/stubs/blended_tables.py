"""A neutral table of colours and one for each expression coefficient, blended per frame; the head alone over white.

At pixel x the cell is c(x) of a side x side grid over the picture; with coefficients e, scaled to 0…1 over what
training showed, rgb = sigmoid(T_0[c] + sum_k e_k T_k[c]) where the neutral alpha sigmoid(A[c]) is above zero.

What it proves beside the system of that kind that there is: parameters that are put back after every update
(`project`), a rate that falls by steps to a floor, a head over white, and coefficients that are scaled by both ends of
their range, all of it against a float64 formula of the whole picture.
"""

import jax
import jax.numpy as jnp
import numpy as np

from tkjax import interface
from tkjax.interface import Rate, Stage
from tkjax.signals import Use
from tkjax.types import Render, Variables

DRIVE = "expression"


class Model(interface.Model):
    def signals(self):
        return (Use(DRIVE),)

    def init(self, key):
        side, k = self.config.model.side, self.info.signal(DRIVE).channels
        tables = 0.1 * jax.random.normal(key, (1 + k, side * side, 3))
        params = {"tables": tables, "alpha": jnp.zeros((side * side, 1))}
        return Variables(params, {"low": jnp.zeros(k), "span": jnp.ones(k)})

    def prepare(self, variables, facts):
        low, high = (jnp.array(getattr(facts.signals[DRIVE], name), jnp.float32) for name in ("low", "high"))
        return variables.replace(state={"low": low, "span": jnp.maximum(high - low, 1e-3)})

    def render(self, variables, batch, key, clock, train):
        side, p = self.config.model.side, variables.params
        size = jnp.array([self.info.width, self.info.height], jnp.float32)
        column, row = jnp.moveaxis(jnp.clip(batch.pixels_px / size * side, 0, side - 1).astype(jnp.int32), -1, 0)
        cell = row * side + column
        e = (batch.now(DRIVE) - variables.state["low"]) / variables.state["span"]
        blended = p["tables"][0] + jnp.einsum("bk,kct->bct", e, p["tables"][1:])
        rgb = jax.nn.sigmoid(jnp.take_along_axis(blended, cell[..., None], 1))
        alpha = jax.nn.sigmoid(p["alpha"][cell])
        return Render(rgb * alpha, alpha)

    def loss_terms(self, variables, render, batch, key, clock):
        picture = render.rgb + (1 - render.alpha) * batch.background
        head = (batch.label == 1)[..., None].astype(jnp.float32)
        return {
            "mse": jnp.mean((picture - batch.target) ** 2),
            "mask": jnp.mean((render.alpha - head) ** 2),
            "bases": jnp.mean(jnp.abs(variables.params["tables"][1:])),
        }

    def project(self, params, clock):
        most = self.config.model.most
        return params | {"tables": jnp.clip(params["tables"], -most, most)}

    def labels(self, params):
        return {"tables": "tables", "alpha": "alpha"}

    def stages(self):
        rates = {"tables": Rate(0.3, drops=((self.config.model.steps // 2, 0.3),), floor=0.01), "alpha": Rate(0.3)}
        weights = {"mse": 1.0, "mask": 1.0, "bases": 1e-4}
        steps = self.config.model.steps
        return (Stage("head", steps, 128, rates, weights, background="white", target="head", ema=None),)


def formula(variables, info, side, coefficients):
    """The picture [H,W,3] of this model for coefficients [K], in float64: premultiplied rgb and alpha."""
    p = jax.tree.map(lambda v: np.asarray(v, np.float64), variables.params)
    low, span = (np.asarray(variables.state[name], np.float64) for name in ("low", "span"))
    e = (np.asarray(coefficients, np.float64) - low) / span
    table = p["tables"][0] + np.einsum("k,kct->ct", e, p["tables"][1:])
    y, x = (np.mgrid[: info.height, : info.width] + 0.5) * side / np.array([info.height, info.width])[:, None, None]
    cell = y.astype(int) * side + x.astype(int)
    alpha = 1 / (1 + np.exp(-p["alpha"][cell]))
    return alpha / (1 + np.exp(-table[cell])), alpha
