"""What the hash-grid systems share: a marched head conditioned on sound and eyes, over a 2-D torso.

RAD-NeRF and ER-NeRF differ in the field of a sample, in losses and in constants; rays, marching, compositing,
occupancy, the order of layers and the stages head, lips, torso are the same (rad-nerf dossier §4, er-nerf dossier §4).
Everything is marched in the originals' axes. A system names its field's outputs in `WEIGHTED` and `PLAIN`.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from tkjax import losses, perceptual
from tkjax.cameras import euler_xyz, pixel_rays, to_ngp_axes, to_ngp_pose
from tkjax.fields.audio import AudioAttention, AudioNet
from tkjax.fields.program import groups
from tkjax.fields.torso import Torso
from tkjax.interface import Ema, Rate, Stage, frame_keys
from tkjax.interface import Model as BaseModel
from tkjax.models.speaking import HEARS, LIP_SHAPE, SPEECH, listening, speech_stage, speech_term
from tkjax.ops import GridSpec, Program, composite, field, march, sh_encode
from tkjax.render import occupancy, volume
from tkjax.render.volume import SH_DEGREE, STOP
from tkjax.signals import SOUND, Use
from tkjax.types import Batch, ClipFacts, Clock, PyTree, Render, SubjectInfo, Variables

# No torso is drawn behind a head that lets less light through than this share of model.picture_stop: what that leaves
# out of a colour is then small beside what rays that ended leave out, whatever exactness a config asks for.
HIDDEN = 0.25
# The originals resume the schedule of 100k steps inside one of 125k (RAD-NeRF: 200k of 250k) with a final factor of
# 0.05: the rates of the lips stage go from 0.05**0.8 to 0.05 of the head's first (train.lips.first_rate, last_rate),
# and the progress that ambient weights follow goes from 0.8 to 1.
LIPS_FROM = 0.8


class HeadParams(nn.Module):
    """All trained parts of the head: the parameters of `program`, the audio networks and the frame codes.

    cameras: also a correction of each frame's camera, degrees and units (`train_camera` of the originals).
    """

    program: Program
    audio_channels: int
    audio_windows: int
    audio_dim: int
    code_dim: int
    code_rows: int
    cameras: bool = False

    def setup(self):
        for name, group in groups(self.program).items():
            setattr(self, name, group)
        self.audio_net = AudioNet(self.audio_channels, self.audio_dim)
        self.audio_attention = AudioAttention(self.audio_windows, self.audio_dim)
        self.codes = nn.Embed(self.code_rows, self.code_dim, embedding_init=nn.initializers.normal(0.1))
        if self.cameras:
            zeros = nn.initializers.zeros
            self.camera_rotation = nn.Embed(self.code_rows, 3, embedding_init=zeros)
            self.camera_translation = nn.Embed(self.code_rows, 3, embedding_init=zeros)

    def audio_code(self, audio: Float[Array, "B W T A"]) -> Float[Array, "B C"]:
        """One code per frame from its W neighbouring windows."""
        b, w = audio.shape[:2]
        return self.audio_attention(self.audio_net(audio.reshape(b * w, *audio.shape[2:])).reshape(b, w, -1))

    def frame_code(self, frame) -> Float[Array, "B E"]:
        return self.codes(frame)

    def camera(self, frame) -> tuple[Float[Array, "B 3"], Float[Array, "B 3"]]:
        """Euler angles in degrees and shift in units of the frames' cameras."""
        return self.camera_rotation(frame), self.camera_translation(frame)

    def __call__(self, audio, frame):
        """Touches every parameter; for initialisation."""
        used = [getattr(self, name)() for name in self.program.params], self.audio_code(audio), self.frame_code(frame)
        return (*used, self.camera(frame)) if self.cameras else used


class HashHead(BaseModel):
    """Head and torso of one system. Background, and before the torso is trained the torso, come from the batch.

    Attributes that a system sets: `program` (the field at one sample: outputs sigma, those of WEIGHTED with rgb first,
    those of PLAIN; rows `sh` of the ray and what `_frame_values` gives), `torso`.
    """

    WEIGHTED: tuple[str, ...] = ("rgb",)  # outputs that are summed with the compositor's weights
    PLAIN: tuple[str, ...] = ()  # outputs that are summed as they are

    def __init__(self, config: ConfigDict, info: SubjectInfo, program: Program, torso: Torso):
        super().__init__(config, info)
        m = config.model
        self.program, self.torso = program, torso
        self.params = HeadParams(
            program=program,
            audio_channels=info.signal(SOUND).channels,
            audio_windows=HEARS.neighbours,
            audio_dim=m.audio_dim,
            code_dim=m.code_dim,
            code_rows=code_rows(config, info),
            cameras=m.train_camera,
        )
        self.box = tuple(float(v) for v in m.box)
        _check(m)

    def init(self, key: jax.Array) -> Variables:
        sound = self.info.signal(SOUND)
        audio = jnp.zeros((1, HEARS.neighbours, sound.window, sound.channels))
        params = jax.jit(self.params.init)(key, audio, jnp.zeros(1, jnp.int32))  # eager initialisation takes seconds
        state = occupancy.init(self.config.model.occupancy_side)
        torso = self.torso.init(jax.random.fold_in(key, 1))
        return Variables({**params["params"], "torso": torso}, {**state, "torso": self.torso.init_state()})

    def prepare(self, variables: Variables, facts: ClipFacts) -> Variables:
        """Cells that no training camera sees, or fewer than model.occupancy_seen of them, are never occupied."""
        keep = np.asarray(self.box) if self.config.model.occupancy_box_only else None
        share = self.config.model.occupancy_seen
        poses = to_ngp_pose(np.asarray(facts.cam_to_world, np.float32))
        intrinsics = np.asarray(facts.intrinsics, np.float32)
        state = occupancy.mark_unseen(
            variables.state, poses, intrinsics, self.info.height, self.info.width, keep, share
        )
        return variables.replace(state={**variables.state, **state})

    def _apply(self, params, method, *args):
        head = {name: value for name, value in params.items() if name != "torso"}
        return self.params.apply({"params": head}, *args, method=method)

    # ------------------------------------------------ what a frame gives

    EYES = "eye_closed"  # the signal that opens and closes the eyes

    def signals(self) -> tuple[Use, ...]:
        return (HEARS, Use(self.EYES))

    def _eye(self, batch: Batch) -> Float[Array, "B 1"]:
        """The input that opens and closes the eyes."""
        raise NotImplementedError

    def _frame_values(self, params, batch: Batch, key, train: bool) -> dict[str, Array]:
        """What is constant over a frame: audio code, eyes, appearance code; [B,C] each."""
        eye, size = self._eye(batch), self.config.model.blink_noise
        if train and key is not None and size:
            keys = frame_keys(key, batch, 1)
            eye = eye + jax.vmap(lambda k: jax.random.uniform(k, (1,), minval=-size, maxval=size))(keys)
        return {
            "audio": self._apply(params, "audio_code", batch.signals[SOUND]),
            "eye": eye,
            "code": self._apply(params, "frame_code", _code_row(batch, train)),
        }

    def _rays(self, params, batch: Batch, train: bool = False):
        """Origins and directions [B*R,3] in the originals' axes, and directions [B,R,3] in the contract's.

        With `train_camera` a training frame has its own d R(angles) and o + shift; other frames have none.
        """
        o, d = pixel_rays(batch.cam_to_world, batch.intrinsics, batch.pixels_px)
        rays_o, rays_d = to_ngp_axes(o), to_ngp_axes(d)
        if train and self.config.model.train_camera:
            degrees, shift = self._apply(params, "camera", batch.frame)
            rays_o = rays_o + shift[:, None]
            rays_d = jnp.einsum("brj,bji->bri", rays_d, euler_xyz(degrees * (math.pi / 180)))
        return rays_o.reshape(-1, 3), rays_d.reshape(-1, 3), d

    def _marching(self) -> dict[str, Any]:
        m = self.config.model
        return {"side": m.occupancy_side, "box": self.box, "dt": m.dt, "t_min": m.t_min, "samples": m.samples}

    # ------------------------------------------------ drawing

    def render(self, variables: Variables, batch: Batch, key: jax.Array | None, clock: Clock, train: bool) -> Render:
        if train and clock.stage == SPEECH:
            return listening(batch)
        if train and clock.stage == "torso":
            return self._render_torso(variables, batch)
        if train:
            return self._render_head(variables, batch, key)
        head = self._draw(variables, batch)
        return self._over_torso(variables, batch, head) if clock.stage == "torso" else head

    def _render_head(self, variables: Variables, batch: Batch, key: jax.Array | None, train: bool = True) -> Render:
        """With everything that losses need, differentiable. key None: no jitter."""
        m, params = self.config.model, variables.params
        b, r = batch.pixels_px.shape[:2]
        rays_o, rays_d, d = self._rays(params, batch, train)
        noise = volume.jitter(batch, key)
        still = jax.lax.stop_gradient((rays_o, rays_d))
        marched = march(*still, variables.state["bits"], noise.reshape(-1), **self._marching())
        values = self._frame_values(params, batch, key, train)
        heard = self._heard(batch) if train and self.config.train.head.mix_sound else None
        dense, evaluated = self._evaluate(params, values, rays_o, rays_d, marched, heard)
        valid = jnp.arange(m.samples) < evaluated[:, None]
        first = 1 + self._channels(self.WEIGHTED)
        sums = composite(dense[..., 0], valid, marched.t, dense[..., 1:first], dense[..., first:], dt=m.dt, stop=STOP)
        aux = {name: sums.weighted[:, 3 + i].reshape(b, r) for i, name in enumerate(self.WEIGHTED[1:])}
        aux |= {name: sums.plain[:, i].reshape(b, r) for i, name in enumerate(self.PLAIN)}
        aux |= {
            "rays": (rays_o, rays_d, marched.t, evaluated),
            "extras": jax.lax.stop_gradient(dense[..., 4:]),
            "metrics": {
                "samples_per_ray": jnp.mean(evaluated.astype(jnp.float32)),
                "occupied": occupancy.occupied_share(variables.state["bits"]),
            },
        }
        return volume.as_render(batch, d, sums, aux)

    def _heard(self, batch: Batch) -> Int[Array, " rays"]:
        """Whose sound each ray hears with `mix_sound`: its own frame's on the lower face, elsewhere that of the batch's
        next frame.

        A short clip has a dozen blinks, each with other words: what could hear them would learn lids by the word.
        """
        b, r = batch.pixels_px.shape[:2]
        own = jnp.arange(b)[:, None]
        return jnp.where(batch.masks["lower_face"], own, (own + 1) % b).reshape(b * r)

    def _channels(self, names) -> int:
        return sum(self.program.slices[name].stop - self.program.slices[name].start for name in names)

    def _draw(self, variables: Variables, batch: Batch) -> Render:
        """Pictures only: marched, evaluated and composited in one call, frame by frame."""
        m, params = self.config.model, variables.params
        values = self._frame_values(params, batch, None, False)
        rays_o, rays_d, d = self._rays(params, batch)
        how = {**self._marching(), "stop": m.picture_stop, "chunk": m.chunk, "precision": m.picture_precision}
        program, bits = self.program.select("sigma", "rgb"), variables.state["bits"]
        sums = volume.draw(program, batch, (rays_o, rays_d), bits, values, lambda _: params, **how)
        return volume.as_render(batch, d, sums, {})

    def _torso(self, variables: Variables, batch: Batch, train: bool, wanted=None):
        """(premultiplied rgb, alpha, aux) of the modelled torso at the batch's pixels."""
        params, state, frame = variables.params["torso"], variables.state["torso"], _code_row(batch, train)
        return self.torso.draw(params, state, batch.cam_to_world, frame, batch.pixels_px, train=train, wanted=wanted)

    def _render_torso(self, variables: Variables, batch: Batch) -> Render:
        rgb, alpha, aux = self._torso(variables, batch, True)
        return Render(rgb=rgb, alpha=alpha, aux=aux)

    def _over_torso(self, variables: Variables, batch: Batch, head: Render) -> Render:
        """The head over the modelled torso, which is evaluated only where it shows."""
        wanted = 1.0 - head.alpha[..., 0] > HIDDEN * self.config.model.picture_stop
        rgb, alpha, _ = self._torso(variables, batch, False, wanted)
        through = 1.0 - head.alpha
        return head.replace(rgb=head.rgb + through * rgb, alpha=head.alpha + through * alpha, front=head.alpha)

    def _evaluate(self, params, values, rays_o, rays_d, marched, heard=None):
        """The field at the marched samples: [R,S,C] and how many samples of each ray [R] were evaluated. heard: the
        frame whose sound each ray hears, where that is not its own."""
        m = self.config.model
        rays, frames = rays_o.shape[0], values["audio"].shape[0]
        sh = sh_encode(rays_d, SH_DEGREE)

        def at(packing, xyz):
            frame = None if frames == 1 else packing.ray // (rays // frames)
            rows = {"sh": (sh, packing.ray), **{name: (v, frame) for name, v in values.items()}}
            if heard is not None and frames > 1:
                rows["audio"] = values["audio"], heard[packing.ray]
            return field(self.program, xyz, rows, params, total=packing.total, chunk=m.chunk)

        return volume.in_waves(at, rays_o, rays_d, marched.t, marched.count, float(m.dt), m.waves)

    def refresh(self, variables: Variables, batch: Batch, key: jax.Array, clock: Clock) -> Variables:
        """The torso's grid in its stage, else occupancy with the sound and eyes of the batch's first frame."""
        first = jax.tree.map(lambda x: x[:1], batch)
        m, params, state = self.config.model, variables.params, variables.state
        if clock.stage == "torso":
            fresh = self.torso.refresh(params["torso"], state["torso"], first.cam_to_world, first.frame, key)
            return variables.replace(state={**state, "torso": fresh})
        rows = {name: (v, None) for name, v in self._frame_values(params, first, None, False).items()}
        program = self.program.select("sigma")

        def sigma(xyz, total):
            return field(program, xyz, rows, params, total=total, chunk=m.chunk)[:, 0]

        return variables.replace(state={**state, **occupancy.refresh(state, sigma, key, m.occupancy_decay)})

    def maps(self, variables: Variables, batch: Batch, clock: Clock) -> dict[str, Float[Array, "B R"]]:
        """Camera depth (units, NaN where alpha < 0.5) and the composited sums of what the field gives beside colour."""
        del clock
        head = self._render_head(variables, batch, None, train=False)
        return {"depth": head.depth[..., 0], **{name: head.aux[name] for name in (*self.WEIGHTED[1:], *self.PLAIN)}}

    # ------------------------------------------------ losses and stages

    def speech_term(self, variables: Variables, batch: Batch, key: jax.Array | None) -> Float[Array, ""]:
        """`speaking.speech_term` of this system's audio code, with the noise of train.speech."""
        size = self.config.train.speech.noise
        return speech_term(lambda audio: self._apply(variables.params, "audio_code", audio), batch, key, size)

    @functools.cached_property
    def perceptual(self) -> perceptual.Perceptual:
        return perceptual.choose(self.config.train.lips.perceptual)

    def perceptual_term(self, prediction: Float[Array, "B R 3"], batch: Batch) -> Float[Array, ""]:
        """Mean perceptual distance of the patches; the tiles of the lips box are put together to one picture."""
        p = self.config.train.lips.patch
        if batch.patches != "lips":
            return perceptual.of_patches(self.perceptual, prediction, batch.target, p)
        b, r = batch.pixels_px.shape[:2]
        k = math.isqrt(r // p**2)

        def put_together(x):
            return x.reshape(b, k, k, p, p, 3).transpose(0, 1, 3, 2, 4, 5).reshape(b, k * p, k * p, 3)

        return jnp.mean(self.perceptual(put_together(prediction), put_together(batch.target)))

    def lips_mse(self, prediction, batch: Batch) -> Float[Array, ""]:
        """Over all pixels, or where the sampler was `lips` over those inside the lips box."""
        square = losses.mse(prediction, batch.target)
        if batch.patches != "lips":
            return jnp.mean(square)
        inside = batch.masks["lips"].astype(jnp.float32)
        return jnp.mean(jnp.sum(square * inside, -1) / jnp.maximum(jnp.sum(inside, -1), 1.0))

    def labels(self, params: PyTree) -> PyTree:
        """`tables`, `audio`, `audio_attention`, `cameras`, `torso_tables`, `torso`, and `net` for all else."""
        names = {
            "audio_net": "audio",
            "audio_attention": "audio_attention",
            "camera_rotation": "cameras",
            "camera_translation": "cameras",
        }

        def group(path, _):
            keys = [p.key for p in path]
            if keys[0] == "torso":
                return "torso_tables" if keys[-1] == "tables" else "torso"
            return "tables" if keys[-1] == "tables" else names.get(keys[0], "net")

        return jax.tree_util.tree_map_with_path(group, params)

    def parts(self, params: PyTree) -> dict[str, PyTree]:
        return {"head": {k: v for k, v in params.items() if k != "torso"}, "torso": params["torso"]}

    def make_stages(
        self, rates: dict[str, Rate], torso: dict[str, Rate], weights: dict[str, dict], refresh_lips: bool = True,
        masks: tuple[str, ...] = (),
    ) -> tuple[Stage, ...]:  # fmt: skip
        """speech (where it has steps), head, lips and torso from config.train. rates: of the head; the lips stage takes
        them from first_rate to last_rate of their start. weights: by stage. refresh_lips: whether the lips stage
        refreshes the occupancy. masks: boxes that the terms of head and lips ask for."""
        speech, h, lips, t = (self.config.train[name] for name in (SPEECH, "head", "lips", "torso"))
        slow = {n: r.scaled(lips.first_rate, lips.last_rate / lips.first_rate) for n, r in rates.items()}
        truth = (LIP_SHAPE,) if h.lambda_speech else ()
        masks = tuple(dict.fromkeys((*masks, "lower_face"))) if h.mix_sound else masks
        stages = (
            speech_stage(speech, h.ema_decay),
            Stage(
                "head", h.steps, h.rays, rates, weights["head"], samplers=(h.sampler,), frames=h.frames, rare=h.rare,
                refresh_every=h.refresh_every, ema=Ema(h.ema_decay, h.ema_every), seed=h.seed, masks=masks,
                truth=truth,
            ),
            Stage(
                "lips", lips.steps, lips.rays, slow, weights["lips"], samplers=tuple(lips.samplers), patch=lips.patch,
                frames=lips.frames, rare=h.rare, refresh_every=h.refresh_every if refresh_lips else 0,
                ema=Ema(h.ema_decay, lips.ema_every), seed=lips.seed, masks=(*masks, "lips"), truth=truth,
            ),
            Stage(
                "torso", t.steps, t.rays, torso, weights["torso"], samplers=("rays",), background="plate",
                target="torso", refresh_every=h.refresh_every, ema=Ema(h.ema_decay, t.ema_every), seed=t.seed,
            ),
        )  # fmt: skip
        return stages if speech.steps else stages[1:]

    def speaking(self, weights: dict[str, dict]) -> dict[str, dict]:
        """Weights by stage with that of `speech_term` in head and lips, where the config gives it any."""
        size = self.config.train.head.lambda_speech
        more = {"speech": size} if size else {}
        return {name: terms | more if name in ("head", "lips") else terms for name, terms in weights.items()}


def make_torso(config: ConfigDict, info: SubjectInfo, **system: Any) -> Torso:
    """The torso of config.model; `system`: pose, xy_octaves, pose_octaves, deform_hidden of `Torso`."""
    m = config.model
    spec = GridSpec(2, m.torso_levels, 2, 16, m.torso_finest, m.torso_log2_entries, "tiled")
    sizes = {"code_dim": m.torso_code_dim, "code_rows": code_rows(config, info), "shrink": m.torso_shrink}
    return Torso(**system, **sizes, spec=spec, height=info.height, width=info.width, chunk=m.chunk)


def _check(m: Any) -> None:
    """ValueError names a setting that no picture can be drawn with."""
    volume.check_settings(m, {"dt": 2.0, "t_min": 100.0, "picture_stop": 1.0})
    if len(m.box) != 6 or not all(-1 <= a < b <= 1 for a, b in zip(m.box[:3], m.box[3:])):
        raise ValueError(f"model.box is {m.box}, expected three lower and three upper bounds within -1..1")


def code_rows(config: ConfigDict, info: SubjectInfo) -> int:
    """Rows of the tables of frame codes: model.code_rows, or a row per frame of a longer clip."""
    return max(config.model.code_rows, info.n_frames)


def lips_progress(s):
    """Progress over head and lips stage together while in the latter."""
    return LIPS_FROM + (1.0 - LIPS_FROM) * s


def _code_row(batch: Batch, train: bool):
    return batch.frame if train else jnp.zeros_like(batch.frame)  # any evaluation uses row 0
