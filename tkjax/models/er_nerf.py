"""ER-NeRF head: a tri-plane hash field conditioned on sound and blink by region attention (ICCV 2023).

Maths and constants: er-nerf dossier §3 (field), §4 (rendering, occupancy), §5 (losses, rates); where the paper and
the released code differ, the code is followed. Everything is marched in the originals' axes.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tkjax import losses
from tkjax.cameras import camera_z, pixel_rays, to_ngp_axes, to_ngp_pose
from tkjax.fields.audio import AudioAttention, AudioNet
from tkjax.fields.mlp import MLP
from tkjax.fields.triplane import TriPlane
from tkjax.models.base import Ema, Rate, Stage
from tkjax.models.base import Model as BaseModel
from tkjax.ops import GridSpec, composite, march, sh_encode
from tkjax.render import occupancy
from tkjax.render.image import picture
from tkjax.render.march import pack, packed_map, unpack
from tkjax.types import Batch, Clock, PyTree, Render, SubjectInfo, Variables

GEOMETRY = 64  # features that density passes on to colour
SH_DEGREE = 4
MAX_LOG_DENSITY = 40.0  # exp is cut here so that it cannot overflow; alpha is 1 in float32 from 6.5 on
SAMPLE_PARTS = ("audio_channel_attention", "eye_attention", "density", "colour", "uncertainty")  # MLPs after the planes
STOP = 1e-4  # a ray ends with the sample that brings its transmittance below this
PERTURB_EVERY = 16  # steps between perturbation terms
PERTURB_SIZE = 1e-3
UNCERTAINTY_BACKGROUND = 1e-3  # weight of term 4
ENTROPY = 1e-4  # weight of term 5
PERTURB = 1e-5  # weight of term 8


class HeadField(nn.Module):
    """All trained parts of the head. Shapes: N samples, B frames."""

    spec: GridSpec
    audio_channels: int
    audio_windows: int
    audio_dim: int
    code_dim: int
    code_rows: int

    def setup(self):
        features = 3 * self.spec.channels
        self.planes = TriPlane(self.spec)
        self.audio_net = AudioNet(self.audio_channels, self.audio_dim)
        self.audio_attention = AudioAttention(self.audio_windows, self.audio_dim)
        self.audio_channel_attention = MLP((features, 64, self.audio_dim))
        self.eye_attention = MLP((features, 16, 1))
        self.density = MLP((features + self.audio_dim + 1, 64, 64, 1 + GEOMETRY))
        self.colour = MLP((SH_DEGREE**2 + GEOMETRY + self.code_dim, 64, 3))
        self.uncertainty = MLP((features, 32, 1))
        self.codes = nn.Embed(self.code_rows, self.code_dim, embedding_init=nn.initializers.normal(0.1))

    def audio_code(self, audio: Float[Array, "B W T A"]) -> Float[Array, "B C"]:
        """One code per frame from its W neighbouring windows."""
        b, w = audio.shape[:2]
        return self.audio_attention(self.audio_net(audio.reshape(b * w, *audio.shape[2:])).reshape(b, w, -1))

    def frame_code(self, frame) -> Float[Array, "B E"]:
        return self.codes(frame)

    def regions(self, f):
        """Features -> (v [N,32] channel weights of the audio code, w [N,1] weight of the blink)."""
        return self.audio_channel_attention(f), jax.nn.sigmoid(self.eye_attention(f))

    def encode(self, xyz):
        return self.planes(xyz)

    def shape(self, f, audio, eye):
        """Features, audio codes [N or 1, 32], blinks [N or 1, 1] -> log density [N], geometry, v, w."""
        v, w = self.regions(f)
        h = self.density(f, v * audio, w * eye)
        return jnp.minimum(h[:, 0], MAX_LOG_DENSITY), h[:, 1:], v, w

    def sigma(self, xyz, audio, eye) -> Float[Array, " N"]:
        return jnp.exp(self.shape(self.planes(xyz), audio, eye)[0])

    def sample(self, f, sh, audio, eye, code, extras: bool) -> Float[Array, "N C"]:
        """sigma, r, g, b and, with `extras`, uncertainty, ||v||, w."""
        log_density, geometry, v, w = self.shape(f, audio, eye)
        rgb = jax.nn.sigmoid(self.colour(sh, geometry, code)) * 1.002 - 0.001
        out = [jnp.exp(log_density)[:, None], rgb]
        return jnp.concatenate([*out, self._extras(f, v, w)] if extras else out, -1)

    def extras(self, xyz) -> Float[Array, "N 3"]:
        """uncertainty, ||v||, w at positions (none of them depends on audio, blink or frame code)."""
        f = self.planes(xyz)
        return self._extras(f, *self.regions(f))

    def _extras(self, f, v, w):
        u = jax.nn.softplus(self.uncertainty(jax.lax.stop_gradient(f)))
        return jnp.concatenate([u, losses.safe_norm(v)[:, None], w], -1)

    def __call__(self, xyz, sh, audio, frame, eye):
        """Touches every parameter; for initialisation."""
        return self.sample(self.planes(xyz), sh, self.audio_code(audio), eye, self.frame_code(frame), True)


def _of_frame(values: Float[Array, "B C"], frame):
    """Rows of `values` for samples with frame slots `frame`; one row for all where there is one frame."""
    if values.shape[0] == 1:
        return values
    return jax.nn.one_hot(frame, values.shape[0], dtype=values.dtype) @ values


class Model(BaseModel):
    """The head as a system; background and torso come from the batch."""

    def __init__(self, config: Any, info: SubjectInfo):
        super().__init__(config, info)
        m = config.model
        spec = GridSpec(2, m.grid_levels, 1, m.grid_base, m.grid_finest, m.grid_log2_entries)
        self.field = HeadField(
            spec=spec,
            audio_channels=info.audio_channels,
            audio_windows=info.audio_windows,
            audio_dim=m.audio_dim,
            code_dim=m.code_dim,
            code_rows=max(m.code_rows, info.n_frames),
        )
        self.box = tuple(float(v) for v in m.box)
        if m.samples % m.waves:
            raise ValueError(f"model.samples {m.samples} is not a multiple of model.waves {m.waves}")

    def init(self, key: jax.Array) -> Variables:
        audio = jnp.zeros((1, self.info.audio_windows, self.info.audio_steps, self.info.audio_channels))
        sh = jnp.zeros((1, SH_DEGREE**2))
        init = jax.jit(self.field.init)  # eager initialisation takes seconds
        params = init(key, jnp.zeros((1, 3)), sh, audio, jnp.zeros(1, jnp.int32), jnp.zeros((1, 1)))
        return Variables(params=params["params"], state=occupancy.init(self.config.model.occupancy_side))

    def prepare(self, variables: Variables, cam_to_world, intrinsics) -> Variables:
        """Cells that no training camera sees are never occupied."""
        keep = np.asarray(self.box) if self.config.model.occupancy_box_only else None
        poses = to_ngp_pose(np.asarray(cam_to_world, np.float32))
        intrinsics = np.asarray(intrinsics, np.float32)
        state = occupancy.mark_unseen(variables.state, poses, intrinsics, self.info.height, self.info.width, keep)
        return variables.replace(state=state)

    def _apply(self, params, method, *args):
        return self.field.apply({"params": params}, *args, method=method)

    def _frame_values(self, params, batch: Batch, key, train: bool) -> dict[str, Array]:
        """What is constant over a frame: audio code, blink, appearance code; [B,C] each."""
        eye = batch.eye_closed[:, None]
        if train and key is not None:
            size = self.config.model.blink_noise
            keys = _frame_keys(key, batch, 1)
            eye = eye + jax.vmap(lambda k: jax.random.uniform(k, (1,), minval=-size, maxval=size))(keys)
        frame = batch.frame if train else jnp.zeros_like(batch.frame)  # any evaluation uses row 0
        return {
            "audio": self._apply(params, "audio_code", batch.audio),
            "eye": eye,
            "code": self._apply(params, "frame_code", frame),
        }

    def render(self, variables: Variables, batch: Batch, key: jax.Array | None, clock: Clock, train: bool) -> Render:
        del clock
        m, params = self.config.model, variables.params
        b, r = batch.pixels_px.shape[:2]
        o, d = pixel_rays(batch.cam_to_world, batch.intrinsics, batch.pixels_px)
        o_grid, d_grid = to_ngp_axes(o).reshape(-1, 3), to_ngp_axes(d).reshape(-1, 3)
        noise = jnp.zeros((b, r))
        if train and key is not None:
            noise = jax.vmap(lambda k: jax.random.uniform(k, (r,)))(_frame_keys(key, batch, 0))
        marched = march(
            o_grid, d_grid, variables.state["bits"], noise.reshape(-1),
            side=m.occupancy_side, box=self.box, dt=m.dt, t_min=m.t_min, samples=m.samples,
        )  # fmt: skip
        values = self._frame_values(params, batch, key, train)
        dense, evaluated = self._evaluate(params, values, o_grid, d_grid, marched, train)
        valid = jnp.arange(m.samples) < evaluated[:, None]
        channels = 5 if train else 4
        sums = composite(
            dense[..., 0], valid, marched.t + m.dt, dense[..., 1:channels], dense[..., channels:], dt=m.dt, stop=STOP,
        )  # fmt: skip
        alpha = sums.weight_sum.reshape(b, r, 1)
        # The originals' depth averages the ends of the steps; the samples stand at their beginnings.
        t_mean = (sums.depth / jnp.maximum(sums.weight_sum, 1e-6) - m.dt).reshape(b, r)
        z = camera_z(batch.cam_to_world, d, t_mean)[..., None]
        aux = {}
        if train:
            aux = {
                "uncertainty": sums.weighted[:, 3].reshape(b, r),
                "ambient_audio": sums.plain[:, 0].reshape(b, r),
                "ambient_eye": sums.plain[:, 1].reshape(b, r),
                "rays": (o_grid, d_grid, marched.t, evaluated),
                "extras": jax.lax.stop_gradient(dense[..., 4:]),
                "metrics": {
                    "samples_per_ray": jnp.mean(evaluated.astype(jnp.float32)),
                    "occupied": occupancy.occupied_share(variables.state["bits"]),
                },
            }
        return Render(
            rgb=sums.weighted[:, :3].reshape(b, r, 3),
            alpha=alpha,
            depth=jax.lax.stop_gradient(jnp.where(alpha < 0.5, jnp.nan, z)),
            aux=aux,
        )

    def _evaluate(self, params, values, rays_o, rays_d, marched, train: bool):
        """The field at the marched samples: [R,S,C] and how many samples of each ray [R] were evaluated.

        Samples are taken in waves from front to back; rays whose transmittance has fallen below the compositor's stop
        are not continued (half of it here, so that rounding cannot leave out a sample that counts).
        """
        m = self.config.model
        rays, size = rays_o.shape[0], m.samples // m.waves
        per_frame = rays // values["audio"].shape[0]
        sh = sh_encode(rays_d, SH_DEGREE)
        weights = {"field": {k: params[k] for k in SAMPLE_PARTS}, "values": values}

        def wave(carry, t):
            optical, left = carry
            count = jnp.where(jnp.exp(-optical) >= 0.5 * STOP, jnp.clip(left, 0, size), 0)
            packing = pack(count, size)
            along = t[packing.ray, packing.slot][:, None]
            xyz = rays_o[packing.ray] + along * rays_d[packing.ray]
            rows = {"sh": sh[packing.ray], "frame": packing.ray // per_frame}
            f = packed_map(self._encode_rows, m.chunk, params["planes"], None, xyz, packing.total)
            fn = self._train_rows if train else self._test_rows
            packed = packed_map(fn, m.chunk, weights, f, rows, packing.total)
            dense = unpack(packed, packing, jnp.arange(size) < count[:, None])
            optical = optical + jax.lax.stop_gradient(jnp.sum(dense[..., 0], -1) * m.dt)
            return (optical, left - size), (dense, count)

        start = (jnp.zeros(rays), marched.count)
        parts = marched.t.reshape(rays, m.waves, size).transpose(1, 0, 2)
        if m.waves == 1:
            _, (dense, count) = wave(start, parts[0])
            return dense, count
        _, (dense, count) = jax.lax.scan(wave, start, parts)
        return dense.transpose(1, 0, 2, 3).reshape(rays, m.samples, -1), jnp.sum(count, 0)

    def _encode_rows(self, planes, _, xyz):
        return self._apply({"planes": planes}, "encode", xyz)

    def _sample_rows(self, extras: bool, weights, f, rows):
        values = {name: _of_frame(v, rows["frame"]) for name, v in weights["values"].items()}
        args = (f, rows["sh"], values["audio"], values["eye"], values["code"], extras)
        return self._apply(weights["field"], "sample", *args)

    def _train_rows(self, weights, f, rows):
        return self._sample_rows(True, weights, f, rows)

    def _test_rows(self, weights, f, rows):
        return self._sample_rows(False, weights, f, rows)

    def _density_rows(self, weights, _, xyz):
        values = weights["values"]
        return self._apply(weights["field"], "sigma", xyz, values["audio"], values["eye"])

    def _extras_rows(self, params, _, xyz):
        return self._apply(params, "extras", xyz)

    def loss_terms(
        self, variables: Variables, render: Render, batch: Batch, key: jax.Array, clock: Clock
    ) -> dict[str, jax.Array]:
        """The eight terms (dossier §5); each is a mean over the rays of a frame, then over frames."""
        s = clock.progress
        prediction = picture(render, batch.background)
        face = batch.in_face.astype(jnp.float32)
        u, amb_aud, amb_eye = (render.aux[k] for k in ("uncertainty", "ambient_audio", "ambient_eye"))
        error = losses.safe_norm(jax.lax.stop_gradient(prediction) - batch.target)
        per_ray = {
            "mse": losses.mse(prediction, batch.target) * losses.uncertainty_weight(u, s),
            "unc_nll": face * losses.uncertainty_nll(error, u),
            "unc_bg": (1.0 - face) * u,
            "entropy": losses.binary_entropy_bits(render.alpha[..., 0]),
            "amb_aud": amb_aud * (1.0 - face),
            "amb_eye": amb_eye / self.config.model.samples * jax.lax.stop_gradient(amb_aud) * face,
        }
        terms = {name: jnp.mean(value) for name, value in per_ray.items()}
        terms["perturb"] = jax.lax.cond(
            clock.step % PERTURB_EVERY == 0,
            lambda: self._perturbation(variables.params, render, batch, key),
            lambda: jnp.float32(0),
        )
        return terms

    def _perturbation(self, params, render: Render, batch: Batch, key) -> Float[Array, ""]:
        """Sum over u, ||v||, w of the MSE between the field at the samples (fixed) and at x + U(±1e-3)."""
        m = self.config.model
        rays_o, rays_d, t, evaluated = render.aux["rays"]
        b, r = batch.pixels_px.shape[:2]
        shift = jax.vmap(lambda k: jax.random.uniform(k, (r, m.samples, 3), minval=-PERTURB_SIZE, maxval=PERTURB_SIZE))(
            _frame_keys(key, batch, 2)
        ).reshape(b * r, m.samples, 3)
        packing = pack(evaluated, m.samples)
        along = t[packing.ray, packing.slot][:, None]
        xyz = rays_o[packing.ray] + along * rays_d[packing.ray] + shift[packing.ray, packing.slot]
        moved = packed_map(self._extras_rows, m.chunk, params, None, xyz, packing.total)
        square = jnp.sum(jnp.square(moved - render.aux["extras"][packing.ray, packing.slot]), -1)
        square = jnp.where(jnp.arange(square.shape[0]) < packing.total, square, 0.0)
        per_frame = jax.ops.segment_sum(square, packing.ray // r, b)
        return jnp.mean(per_frame / jnp.maximum(jnp.sum(evaluated.reshape(b, r), -1), 1))

    def refresh(self, variables: Variables, batch: Batch, key: jax.Array, clock: Clock) -> Variables:
        """Occupancy with the audio and blink of the batch's first frame."""
        del clock
        first = batch.replace(frame=batch.frame[:1], audio=batch.audio[:1], eye_closed=batch.eye_closed[:1])
        m = self.config.model
        params = {"field": variables.params, "values": self._frame_values(variables.params, first, None, False)}
        return variables.replace(
            state=occupancy.refresh(variables.state, self._density_rows, params, key, m.chunk, m.occupancy_decay)
        )

    def labels(self, params: PyTree) -> PyTree:
        """`tables`, `audio_attention`, and `net` for all else."""
        groups = {"planes": "tables", "audio_attention": "audio_attention"}
        return jax.tree_util.tree_map_with_path(lambda path, _: groups.get(path[0].key, "net"), params)

    def stages(self) -> tuple[Stage, ...]:
        h = self.config.train.head
        return (
            Stage(
                name="head",
                steps=h.steps,
                rays=h.rays,
                samplers=(h.sampler,),
                rates={
                    "tables": Rate(h.lr_tables, h.final_factor, h.decay_tables, b1=0.0),
                    "net": Rate(h.lr_net, h.final_factor, b1=0.0),
                    "audio_attention": Rate(h.lr_audio_attention, h.final_factor, h.decay_audio_attention, b1=0.0),
                },
                weights={
                    "mse": 1.0,
                    "unc_nll": lambda s: s,
                    "unc_bg": lambda s: UNCERTAINTY_BACKGROUND * s,
                    "entropy": ENTROPY,
                    "amb_aud": lambda s: h.lambda_amb * s,
                    "amb_eye": lambda s: h.lambda_amb * s,
                    "perturb": lambda s: PERTURB * s,
                },
                refresh_every=h.refresh_every,
                ema=Ema(h.ema_decay, h.ema_every),
            ),
        )


def _frame_keys(key: jax.Array, batch: Batch, use: int):
    """One key per frame and use, from the frame's number: any split of frames over devices draws the same."""
    return jax.vmap(lambda frame: jax.random.fold_in(jax.random.fold_in(key, use), frame))(batch.frame)
