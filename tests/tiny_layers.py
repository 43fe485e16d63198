"""A system of two layers whose pictures tell what was drawn: a disc for the head, a torso under it, and maps."""

import jax
import jax.numpy as jnp

from tests import tiny
from tkjax.interface import Rate, Stage
from tkjax.signals import SOUND, Use
from tkjax.types import Render

HEAD, TORSO = (0.8, 0.5, 0.4), (0.1, 0.2, 0.9)
RADIUS = 7.0  # pixels of a picture of 32x24


class Model(tiny.Model):
    """The head's alpha falls over two pixels; its green is the eye area, where there is one. The torso is the lower
    quarter, half transparent in its left half."""

    def signals(self):
        return (Use(SOUND, before=4, after=3), Use("eye_area"))

    def render(self, variables, batch, key, clock, train):
        h, w = self.info.height, self.info.width
        x, y = batch.pixels_px[..., :1], batch.pixels_px[..., 1:]
        alpha = jnp.clip((RADIUS * w / 32 - jnp.hypot(x - w / 2, y - h / 2)) / 2 + 0.5, 0, 1)
        colour = jnp.array(HEAD)
        colour = colour.at[1].set(jnp.clip(batch.now("eye_area")[0, 0], 0, 1))
        head = Render(rgb=alpha * colour, alpha=alpha)
        if clock.stage != "torso":
            return head
        t = jnp.where(y > 0.75 * h, jnp.where(x < w / 2, 0.5, 1.0), 0.0)
        rgb = head.rgb + (1 - alpha) * t * jnp.array(TORSO)
        return head.replace(rgb=rgb, alpha=alpha + (1 - alpha) * t, front=alpha)

    def maps(self, variables, batch, clock):
        x, y = batch.pixels_px[..., 0], batch.pixels_px[..., 1]
        inside = jnp.hypot(x - self.info.width / 2, y - self.info.height / 2) < RADIUS
        loud = jnp.abs(batch.signals[SOUND]).mean()
        return {
            "depth": jnp.where(inside, 3.0 + y / 100, jnp.nan),
            "audio_norm": jnp.where(inside, x * loud, 0.0),
            "eye_weight": jnp.where(inside, y, 0.0),
        }

    def stages(self):
        rates = {"all": Rate(1e-2)}
        head = Stage("head", 4, 64, rates, {"mse": 1.0}, background="torso")
        torso = Stage("torso", 4, 64, rates, {"mse": 1.0}, background="plate", target="torso")
        return head, torso


def config():
    c = tiny.config()
    c.system = "tests.tiny_layers"
    return c


def save(folder, clip, stages=("head", "torso")):
    """An avatar of this system, without training."""
    from tkjax.avatar import bundle

    resolved = config()
    variables = Model(resolved, clip.info).init(jax.random.key(0))
    bundle.save(folder, resolved, variables, 4, clip, bundle.audio_spec(clip.audio), {"statement": None}, list(stages))
    return bundle.load(folder)
