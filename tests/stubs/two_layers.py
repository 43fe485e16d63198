"""Attention over windows of sound that joins at a step, stratified samples along rays, pixels drawn its own way, two
stages with rates by steps, and the layers in the other order: background, head, torso on top.

A system of the project does the same since. What this still proves of the seam: a sampler that a system registers in
its own file, samplers in turn, rates by steps with a floor, a weight that grows, state that a refresh changes and
`prepare` fills, and a torso in front whose system has no network of the project's."""

import jax
import jax.numpy as jnp
import numpy as np

from tkjax import interface, samplers
from tkjax.cameras import camera_z, pixel_rays
from tkjax.interface import Ema, Rate, Stage
from tkjax.render.composite import over
from tkjax.signals import SOUND, Use
from tkjax.types import Render, Variables

NEAR, FAR, SAMPLES, WIDTH, CODE = 2.5, 4.1, 12, 24, 6


def dense(key, inputs, outputs):
    return {"w": jax.random.normal(key, (inputs, outputs)) * inputs**-0.5, "b": jnp.zeros(outputs)}


def mlp(layers, x):
    for layer in layers[:-1]:
        x = jax.nn.softplus(x @ layer["w"] + layer["b"])
    return x @ layers[-1]["w"] + layers[-1]["b"]


def octaves(x, n=4):
    angles = (x[..., None, :] * 2.0 ** jnp.arange(n)[:, None]).reshape(*x.shape[:-1], -1)
    return jnp.concatenate([x, jnp.sin(angles), jnp.cos(angles)], -1)


@samplers.register("rows of two_layers")
def rows(view: samplers.View) -> np.ndarray:
    """Whole rows of the picture, at random places of the head's box."""
    w = view.hw[1]
    _, y0, _, y1 = view.boxes["face"].tolist()
    picked = view.rng.integers(y0, max(y1, y0 + 1), -(-view.rays // w))
    return (picked[:, None] * w + np.arange(w)).ravel()[: view.rays]


class Model(interface.Model):
    torso_in_front = True

    def init(self, key):
        k = jax.random.split(key, 8)
        sound = self.info.signal(SOUND)
        audio = sound.window * sound.channels
        torso_out = dense(k[6], WIDTH, 4)
        torso_out["b"] = torso_out["b"].at[3].set(-5.0)  # the torso starts transparent: the head stage does not see it
        params = {
            "audio": [dense(k[0], audio, CODE)],
            "attention": [dense(k[1], CODE, 1)],
            "head": [dense(k[2], 27 + CODE, WIDTH), dense(k[3], WIDTH, WIDTH), dense(k[4], WIDTH, 4)],
            "torso": [dense(k[5], 18 + 12, WIDTH), torso_out],
        }
        return Variables(params, {"occupancy": jnp.zeros(16), "refreshes": jnp.int32(0), "seen": jnp.float32(0)})

    def signals(self):
        return (Use(SOUND, before=4, after=3),)

    def prepare(self, variables, facts):
        return variables.replace(state=variables.state | {"seen": jnp.float32(len(facts.cam_to_world))})

    def audio_code(self, params, audio, clock):
        """[B,W,T,A] -> [B,C]: the frame's own window, from step `attention_start` on the attended mean."""
        codes = mlp(params["audio"], audio.reshape(*audio.shape[:2], -1))
        weights = jax.nn.softmax(mlp(params["attention"], codes), 1)
        own = codes[:, 4]
        return jnp.where(clock.step >= self.config.model.attention_start, jnp.sum(weights * codes, 1), own)

    def head(self, params, xyz, code):
        code = jnp.broadcast_to(code, (*xyz.shape[:-1], CODE))
        out = mlp(params["head"], jnp.concatenate([octaves(xyz), code], -1))
        return jax.nn.softplus(out[..., :1] - 1) * 3, jax.nn.sigmoid(out[..., 1:])

    def render(self, variables, batch, key, clock, train):
        params, (b, r) = variables.params, batch.pixels_px.shape[:2]
        o, d = pixel_rays(batch.cam_to_world, batch.intrinsics, batch.pixels_px)
        jitter = jnp.full((b, r, SAMPLES), 0.5)
        if key is not None:
            jitter = jax.vmap(lambda k: jax.random.uniform(k, (r, SAMPLES)))(interface.frame_keys(key, batch, 0))
        width = (FAR - NEAR) / SAMPLES
        t = NEAR + (jnp.arange(SAMPLES) + jitter) * width
        code = self.audio_code(params, batch.signals[SOUND], clock)
        sigma, rgb = self.head(params, o[..., None, :] + t[..., None] * d[..., None, :], code[:, None, None])
        alpha = 1 - jnp.exp(-sigma[..., 0] * width)
        weights = alpha * jnp.exp(-jnp.cumsum(jnp.pad(sigma[..., :-1, 0], ((0, 0), (0, 0), (1, 0))), -1) * width)
        head_alpha = jnp.sum(weights, -1, keepdims=True)
        head = (jnp.sum(weights[..., None] * rgb, -2), head_alpha)

        xy_unit = batch.pixels_px / jnp.array([self.info.width, self.info.height], jnp.float32)
        pose = jnp.broadcast_to(batch.cam_to_world[:, None, :3].reshape(b, 1, 12), (b, r, 12))
        torso = mlp(params["torso"], jnp.concatenate([octaves(xy_unit * 3), pose], -1))
        torso_alpha = jax.nn.sigmoid(torso[..., 3:])
        torso_alpha = torso_alpha * (clock.stage == "torso")
        picture, alpha = over([head, (torso_alpha * jax.nn.sigmoid(torso[..., :3]), torso_alpha)])
        z = camera_z(batch.cam_to_world, d, jnp.sum(weights * t, -1) / jnp.maximum(head_alpha[..., 0], 1e-6))
        depth = jnp.where(alpha < 0.5, jnp.nan, jax.lax.stop_gradient(z)[..., None])
        return Render(picture, alpha, depth, front=head_alpha, aux={"metrics": {"head_alpha": jnp.mean(head_alpha)}})

    def loss_terms(self, variables, render, batch, key, clock):
        picture = render.rgb + (1 - render.alpha) * batch.background
        return {"mse": jnp.mean((picture - batch.target) ** 2), "alpha": jnp.mean(render.alpha * (1 - render.alpha))}

    def refresh(self, variables, batch, key, clock):
        """Density at random points on the axis, under the first frame's sound."""
        z = jax.random.uniform(key, (16,), minval=-0.5, maxval=0.5)
        xyz = jnp.stack([0 * z, 0 * z, z], -1)
        code = self.audio_code(variables.params, batch.signals[SOUND][:1], clock)
        sigma, _ = self.head(variables.params, xyz, code[0])
        occupancy = jnp.maximum(0.95 * variables.state["occupancy"], sigma[:, 0])
        return variables.replace(
            state=variables.state | {"occupancy": occupancy, "refreshes": variables.state["refreshes"] + 1}
        )

    def labels(self, params):
        return {name: jax.tree.map(lambda _, n=name: n, tree) for name, tree in params.items()}

    def stages(self):
        steps, start = self.config.model.steps, self.config.model.attention_start
        rate = Rate(1e-2, 0.5, eps=1e-5)
        weights = {"mse": 1.0, "alpha": lambda progress: 1e-3 * progress}
        head = {"audio": rate, "head": Rate(1e-2, eps=1e-5, drops=((steps // 2, 0.5),), floor=0.1)}
        head["attention"] = Rate(1e-2, eps=1e-5, joins=start)
        body = {"torso": rate}
        drawn = ("rays", "rows of two_layers")
        head_stage = Stage(
            "head", steps, 64, head, weights, drawn, background="plate", target="head", refresh_every=4, ema=Ema(0.9, 2)
        )
        samplers_ = ("rays", "patch")
        return head_stage, Stage("torso", steps, 64, body, weights, samplers_, 8, "plate", ema=Ema(0.9, 2))
