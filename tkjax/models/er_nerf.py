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
from tkjax.fields.program import groups
from tkjax.models.base import Ema, Rate, Stage
from tkjax.models.base import Model as BaseModel
from tkjax.ops import GridSpec, Program, ProgramBuilder, composite, field, march, render_fused, sh_encode
from tkjax.render import occupancy
from tkjax.render.image import picture
from tkjax.render.march import pack, unpack
from tkjax.types import Batch, Clock, PyTree, Render, SubjectInfo, Variables

GEOMETRY = 64  # features that density passes on to colour
SH_DEGREE = 4
MAX_LOG_DENSITY = 40.0  # exp is cut here so that it cannot overflow; alpha is 1 in float32 from 6.5 on
PAIRS = ((0, 1), (1, 2), (0, 2))  # the planes xy, yz, xz
PICTURE = ("sigma", "rgb")  # outputs of the field that a picture needs
EXTRAS = ("uncertainty", "audio_norm", "eye_weight")  # and those of the losses; they depend on the position alone
STOP = 1e-4  # a ray ends with the sample that brings its transmittance below this
PICTURE_STOP = 1e-3  # the same for pictures: what lies behind changes no pixel by more than 0.26 of an 8-bit step
PERTURB_EVERY = 16  # steps between perturbation terms
PERTURB_SIZE = 1e-3
UNCERTAINTY_BACKGROUND = 1e-3  # weight of term 4
ENTROPY = 1e-4  # weight of term 5
PERTURB = 1e-5  # weight of term 8


def head_program(spec: GridSpec, audio_dim: int, code_dim: int) -> Program:
    """The field at one sample (dossier §3, head 1 to 6).

    Rows: `sh` of the ray; `audio`, `eye` (blink) and `code` (appearance) of the frame. Outputs: sigma, rgb and, for
    training, uncertainty u, audio_norm = |v| and eye_weight = w.
    """
    features, sh = len(PAIRS) * spec.channels, SH_DEGREE**2
    p = ProgramBuilder("er_nerf_head")
    f = p.grid("planes", spec, p.points, subsets=PAIRS)
    v = p.mlp("audio_channel_attention", [f], (features, 64, audio_dim))
    w = p.act(p.mlp("eye_attention", [f], (features, 16, 1)), "sigmoid")
    regions = [p.mul(v, p.row("audio", audio_dim)), p.mul(w, p.row("eye", 1))]
    h = p.mlp("density", [f, *regions], (features + audio_dim + 1, 64, 64, 1 + GEOMETRY))
    colour = [p.row("sh", sh), h[1:], p.row("code", code_dim)]
    colour = p.act(p.mlp("colour", colour, (sh + GEOMETRY + code_dim, 64, 3)), "sigmoid")
    return p.build(
        sigma=p.act(p.clip_max(h[:1], MAX_LOG_DENSITY), "exp"),
        rgb=p.affine(colour, 1.002, -0.001),
        uncertainty=p.act(p.mlp("uncertainty", [p.stop_gradient(f)], (features, 32, 1)), "softplus"),
        audio_norm=p.norm(v),
        eye_weight=w,
    )


class HeadParams(nn.Module):
    """All trained parts of the head: the parameters of `program`, the audio networks and the frame codes."""

    program: Program
    audio_channels: int
    audio_windows: int
    audio_dim: int
    code_dim: int
    code_rows: int

    def setup(self):
        for name, group in groups(self.program).items():
            setattr(self, name, group)
        self.audio_net = AudioNet(self.audio_channels, self.audio_dim)
        self.audio_attention = AudioAttention(self.audio_windows, self.audio_dim)
        self.codes = nn.Embed(self.code_rows, self.code_dim, embedding_init=nn.initializers.normal(0.1))

    def audio_code(self, audio: Float[Array, "B W T A"]) -> Float[Array, "B C"]:
        """One code per frame from its W neighbouring windows."""
        b, w = audio.shape[:2]
        return self.audio_attention(self.audio_net(audio.reshape(b * w, *audio.shape[2:])).reshape(b, w, -1))

    def frame_code(self, frame) -> Float[Array, "B E"]:
        return self.codes(frame)

    def __call__(self, audio, frame):
        """Touches every parameter; for initialisation."""
        return [getattr(self, name)() for name in self.program.params], self.audio_code(audio), self.frame_code(frame)


class Model(BaseModel):
    """The head as a system; background and torso come from the batch."""

    def __init__(self, config: Any, info: SubjectInfo):
        super().__init__(config, info)
        m = config.model
        spec = GridSpec(2, m.grid_levels, 1, m.grid_base, m.grid_finest, m.grid_log2_entries)
        self.program = head_program(spec, m.audio_dim, m.code_dim)
        self.params = HeadParams(
            program=self.program,
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
        params = jax.jit(self.params.init)(key, audio, jnp.zeros(1, jnp.int32))  # eager initialisation takes seconds
        return Variables(params=params["params"], state=occupancy.init(self.config.model.occupancy_side))

    def prepare(self, variables: Variables, cam_to_world, intrinsics) -> Variables:
        """Cells that no training camera sees are never occupied."""
        keep = np.asarray(self.box) if self.config.model.occupancy_box_only else None
        poses = to_ngp_pose(np.asarray(cam_to_world, np.float32))
        intrinsics = np.asarray(intrinsics, np.float32)
        state = occupancy.mark_unseen(variables.state, poses, intrinsics, self.info.height, self.info.width, keep)
        return variables.replace(state=state)

    def _apply(self, params, method, *args):
        return self.params.apply({"params": params}, *args, method=method)

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

    def _rays(self, batch: Batch):
        """Origins and directions [B*R,3] in the originals' axes, and directions [B,R,3] in the contract's."""
        o, d = pixel_rays(batch.cam_to_world, batch.intrinsics, batch.pixels_px)
        return to_ngp_axes(o).reshape(-1, 3), to_ngp_axes(d).reshape(-1, 3), d

    def _marching(self) -> dict[str, Any]:
        m = self.config.model
        return {"side": m.occupancy_side, "box": self.box, "dt": m.dt, "t_min": m.t_min, "samples": m.samples}

    def render(self, variables: Variables, batch: Batch, key: jax.Array | None, clock: Clock, train: bool) -> Render:
        del clock
        if not train:
            return self._draw(variables, batch)
        m, params = self.config.model, variables.params
        b, r = batch.pixels_px.shape[:2]
        rays_o, rays_d, d = self._rays(batch)
        noise = jnp.zeros((b, r))
        if key is not None:
            noise = jax.vmap(lambda k: jax.random.uniform(k, (r,)))(_frame_keys(key, batch, 0))
        marched = march(rays_o, rays_d, variables.state["bits"], noise.reshape(-1), **self._marching())
        values = self._frame_values(params, batch, key, train)
        dense, evaluated = self._evaluate(params, values, rays_o, rays_d, marched)
        valid = jnp.arange(m.samples) < evaluated[:, None]
        sums = composite(dense[..., 0], valid, marched.t, dense[..., 1:5], dense[..., 5:], dt=m.dt, stop=STOP)
        aux = {
            "uncertainty": sums.weighted[:, 3].reshape(b, r),
            "ambient_audio": sums.plain[:, 0].reshape(b, r),
            "ambient_eye": sums.plain[:, 1].reshape(b, r),
            "rays": (rays_o, rays_d, marched.t, evaluated),
            "extras": jax.lax.stop_gradient(dense[..., 4:]),
            "metrics": {
                "samples_per_ray": jnp.mean(evaluated.astype(jnp.float32)),
                "occupied": occupancy.occupied_share(variables.state["bits"]),
            },
        }
        return _render(batch, d, sums, aux)

    def _draw(self, variables: Variables, batch: Batch) -> Render:
        """Pictures only: marched, evaluated and composited in one call, frame by frame."""
        m, params = self.config.model, variables.params
        values = self._frame_values(params, batch, None, False)
        rays_o, rays_d, d = self._rays(batch)
        r = batch.pixels_px.shape[1]
        parts = []
        precision = m.get("picture_precision", "bfloat16")  # avatars made before this setting have none
        how = {**self._marching(), "stop": PICTURE_STOP, "chunk": m.chunk, "precision": precision}
        program, bits = self.program.select(*PICTURE), variables.state["bits"]
        for i in range(batch.frame.shape[0]):
            o_i, d_i = rays_o[i * r : (i + 1) * r], rays_d[i * r : (i + 1) * r]
            rows = {"sh": sh_encode(d_i, SH_DEGREE), **{name: v[i : i + 1] for name, v in values.items()}}
            parts.append(render_fused(program, o_i, d_i, bits, rows, params, **how))
        return _render(batch, d, jax.tree.map(lambda *v: jnp.concatenate(v), *parts), {})

    def _evaluate(self, params, values, rays_o, rays_d, marched):
        """The field at the marched samples: [R,S,C] and how many samples of each ray [R] were evaluated.

        Samples are taken in waves from front to back; rays whose transmittance has fallen below the compositor's stop
        are not continued (half of it here, so that rounding cannot leave out a sample that counts).
        """
        m = self.config.model
        rays, size = rays_o.shape[0], m.samples // m.waves
        frames = values["audio"].shape[0]
        sh = sh_encode(rays_d, SH_DEGREE)

        def wave(carry, t):
            optical, left = carry
            count = jnp.where(jnp.exp(-optical) >= 0.5 * STOP, jnp.clip(left, 0, size), 0)
            packing = pack(count, size)
            along = t[packing.ray, packing.slot][:, None]
            xyz = rays_o[packing.ray] + along * rays_d[packing.ray]
            frame = None if frames == 1 else packing.ray // (rays // frames)
            rows = {"sh": (sh, packing.ray), **{name: (v, frame) for name, v in values.items()}}
            packed = field(self.program, xyz, rows, params, total=packing.total, chunk=m.chunk)
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
        moved = field(self.program.select(*EXTRAS), xyz, {}, params, total=packing.total, chunk=m.chunk)
        square = jnp.sum(jnp.square(moved - render.aux["extras"][packing.ray, packing.slot]), -1)
        square = jnp.where(jnp.arange(square.shape[0]) < packing.total, square, 0.0)
        per_frame = jax.ops.segment_sum(square, packing.ray // r, b)
        return jnp.mean(per_frame / jnp.maximum(jnp.sum(evaluated.reshape(b, r), -1), 1))

    def refresh(self, variables: Variables, batch: Batch, key: jax.Array, clock: Clock) -> Variables:
        """Occupancy with the audio and blink of the batch's first frame."""
        del clock
        first = batch.replace(frame=batch.frame[:1], audio=batch.audio[:1], eye_closed=batch.eye_closed[:1])
        m = self.config.model
        rows = {name: (v, None) for name, v in self._frame_values(variables.params, first, None, False).items()}
        program = self.program.select("sigma")

        def sigma(xyz, total):
            return field(program, xyz, rows, variables.params, total=total, chunk=m.chunk)[:, 0]

        return variables.replace(state=occupancy.refresh(variables.state, sigma, key, m.occupancy_decay))

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


def _render(batch: Batch, d, sums, aux: dict) -> Render:
    """Sums over the B*R rays with directions d [B,R,3] as a Render."""
    b, r = batch.pixels_px.shape[:2]
    alpha = sums.weight_sum.reshape(b, r, 1)
    t_mean = (sums.depth / jnp.maximum(sums.weight_sum, 1e-6)).reshape(b, r)
    z = camera_z(batch.cam_to_world, d, t_mean)[..., None]
    depth = jax.lax.stop_gradient(jnp.where(alpha < 0.5, jnp.nan, z))
    return Render(rgb=sums.weighted[:, :3].reshape(b, r, 3), alpha=alpha, depth=depth, aux=aux)
