"""A tiny dataset, and a model whose picture tells what it was given: for tests of what comes after training."""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from configs.base import get_config
from tkjax import contract, interface
from tkjax.interface import Rate, Stage
from tkjax.media import audio, images
from tkjax.signals import SOUND, Use
from tkjax.types import Render, Variables


class Model(interface.Model):
    """A disc over the background: red follows the sound, green the blink, blue the camera's x; radius is trained."""

    def init(self, key):
        return Variables(params={"grey": jnp.zeros(3), "radius": jnp.float32(0.25)}, state={"seen": jnp.zeros(2)})

    def signals(self):
        return (Use(SOUND, before=4, after=3), Use("eye_closed"))

    def render(self, variables, batch, key, clock, train):
        h, w = self.info.height, self.info.width
        centre = jnp.array([w / 2, h / 2])
        distance = jnp.linalg.norm(batch.pixels_px - centre, axis=-1, keepdims=True)
        alpha = jax.nn.sigmoid((variables.params["radius"] * w - distance) * 2)
        sound = jax.nn.sigmoid(4 * batch.signals[SOUND].mean((1, 2, 3)))
        colour = jnp.stack([sound, batch.now("eye_closed")[:, 0], 0.5 + batch.cam_to_world[:, 0, 3]], -1)
        colour = jnp.clip(colour + variables.params["grey"], 0, 1)
        return Render(rgb=alpha * colour[:, None], alpha=alpha)

    def loss_terms(self, variables, render, batch, key, clock):
        picture = render.rgb + (1 - render.alpha) * batch.background
        return {"mse": jnp.mean((picture - batch.target) ** 2)}

    def stages(self):
        rates = {"all": Rate(1e-2)}
        background = self.config.model.background
        return (Stage("all", self.config.model.steps, 64, rates, {"mse": 1.0}, background=background),)


def config(background: str = "torso", steps: int = 4) -> ConfigDict:
    c = get_config()
    c.system, c.variant = "tests.tiny", "test"
    c.model = ConfigDict({"background": background, "steps": steps})
    c.train.log_every, c.train.checkpoint_every, c.train.preview_every = 2, 2, 0
    return c


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    """A tone whose loudness wanders, 16 kHz."""
    t = np.arange(int(seconds * contract.AUDIO_HZ)) / contract.AUDIO_HZ
    loud = 0.5 + 0.45 * np.sin(2 * np.pi * (1.3 + seed) * t)
    return (loud * np.sin(2 * np.pi * 220 * t) * 0.5).astype(np.float32)


def make_dataset(
    root,
    n: int = 33,
    height: int = 24,
    width: int = 32,
    names=("a", "b", "c"),
    more=None,
    source=None,
    heard=True,
    twin=None,
):  # fmt: skip
    """n frames of a moving blob over a gradient, with torso, labels and sound; n of 33 gives 30 + 3. more: further
    members of the frames; heard: with sound. twin: values [n] of a member x_a."""
    plate = np.zeros((height, width, 3), np.uint8)
    plate[..., 0] = np.linspace(40, 200, width)
    plate[..., 2] = 120
    label = np.zeros((height, width), np.uint8)
    label[3 * height // 4 :, width // 4 : 3 * width // 4] = contract.LABEL_TORSO
    label[height // 4 : 3 * height // 4, width // 3 : 2 * width // 3] = contract.LABEL_HEAD
    poses = np.tile(np.eye(4, dtype=np.float32), (n, 1, 1))
    poses[:, :3, 3] = np.stack([0.2 * np.sin(np.arange(n)), np.zeros(n), np.full(n, 3.3)], -1)
    points = np.zeros((n, 68, 2), np.float32)
    grid = np.stack(np.meshgrid(np.linspace(0.35, 0.65, 10), np.linspace(0.3, 0.7, 7)), -1).reshape(-1, 2)[:68]
    points[:] = grid * [width, height]
    frames = {"image_bytes": [], "torso_bytes": [], "label_bytes": []}
    for i in range(n):
        torso = np.zeros((height, width, 4), np.uint8)
        torso[label == contract.LABEL_TORSO] = [20, 30 + i % 200, 160, 255]
        image = np.where(label[..., None] == contract.LABEL_TORSO, torso[..., :3], plate)
        image[label == contract.LABEL_HEAD] = [180, 120 + 2 * (i % 10), 90]
        frames["image_bytes"].append(images.encode_jpeg(image))
        frames["torso_bytes"].append(images.encode_png(torso))
        frames["label_bytes"].append(images.encode_png(label))
    frames |= {
        "cam_to_world": poses,
        "landmarks_px": points,
        **contract.boxes_from_landmarks68(points, height, width),
        "expression": np.tile(np.linspace(0, 1, n, dtype=np.float32)[:, None], (1, len(names))),
        "eye_closed": (np.arange(n) % 5 / 5).astype(np.float32),
        "confidence": np.ones(n, np.float32),
        **({} if twin is None else {"x_a": np.float32(twin)[:, None]}),
        **(more or {}),
    }
    camera = {"fx": 90.0, "fy": 90.0, "cx": width / 2, "cy": height / 2}
    writer = contract.DatasetWriter(
        root,
        subject="tiny",
        height=height,
        width=width,
        camera=camera,
        landmark_scheme="ibug68",
        expression_names=names,
        source=source or {},
        tools={},
        extra_members=None if twin is None else {"x_a": ("float32", (1,))},
    )
    with writer as out:
        out.add(frames)
        out.add_file("background.png", images.encode_png(plate))
        if not heard:
            return root
        wav = root.parent / "sound.wav"
        audio.write_wav(wav, sound(n / 25))
        out.add_file("audio.wav", wav)
        features = audio.audio_features(wav)
        path = root.parent / "audio_logmel.npz"
        contract.save_audio_features(path, **vars(features))
        out.add_file("audio_logmel.npz", path)
    return root


def png(path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)
