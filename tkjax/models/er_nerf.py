"""ER-NeRF: a tri-plane hash field conditioned on sound and blink by region attention, over a 2-D torso (ICCV 2023).

Maths and constants: er-nerf dossier §3 (field, torso), §5 (losses, rates); where the paper and the released code
differ, the code is followed. Rays, occupancy and stages: `hash_head`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from tkjax import losses
from tkjax.interface import Rate, frame_keys
from tkjax.models.hash_head import SH_DEGREE, SPEECH, HashHead, lips_progress, make_torso
from tkjax.ops import GridSpec, Program, ProgramBuilder, field, fused
from tkjax.ops.packing import pack
from tkjax.render.image import picture
from tkjax.types import Batch, Clock, Render, SubjectInfo, Variables

GEOMETRY = 64  # features that density passes on to colour
MAX_LOG_DENSITY = 40.0  # exp is cut here so that it cannot overflow; alpha is 1 in float32 from 6.5 on
PAIRS = ((0, 1), (1, 2), (0, 2))  # the planes xy, yz, xz
EXTRAS = ("uncertainty", "audio_norm", "eye_weight")  # outputs of the losses; they depend on the position alone
PERTURB_EVERY = 16  # steps between perturbation terms
PERTURB_SIZE = 1e-3
UNCERTAINTY_BACKGROUND = 1e-3  # weight of term 4
ENTROPY = 1e-4  # weight of term 5
PERTURB = 1e-5  # weight of term 8
# The perceptual term's weight on the lips rectangle and on patches; the released code, the paper has 0.01 alone
PERCEPTUAL = {"lips": 0.01, "patch": 0.1}
fused.register("triton", "tkjax.fields.triton.plane_head")  # draws `head_program`


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


class Model(HashHead):
    """Head and torso as a system."""

    WEIGHTED = ("rgb", "uncertainty")
    PLAIN = ("audio_norm", "eye_weight")

    def __init__(self, config: ConfigDict, info: SubjectInfo):
        m = config.model
        spec = GridSpec(2, m.grid_levels, 1, m.grid_base, m.grid_finest, m.grid_log2_entries)
        torso = make_torso(config, info, pose="anchors", xy_octaves=8, pose_octaves=3, deform_hidden=32)
        super().__init__(config, info, head_program(spec, m.audio_dim, m.code_dim), torso)

    def _eye(self, batch: Batch) -> Float[Array, "B 1"]:
        """AU45 as a blink: 0 open, 1 closed (dossier §2; RAD-NeRF's eye area has the opposite sense)."""
        return batch.now(self.EYES)

    def loss_terms(
        self, variables: Variables, render: Render, batch: Batch, key: jax.Array, clock: Clock
    ) -> dict[str, jax.Array]:
        """The terms of dossier §5; each is a mean over the rays of a frame, then over frames."""
        if clock.stage == SPEECH:
            return {"speech": self.speech_term(variables, batch, key)}
        prediction = picture(render, batch.background)
        if clock.stage == "torso":
            anchors = variables.params["torso"]["anchors"]
            return {
                "mse": jnp.mean(losses.mse(prediction, batch.target)),
                "anchors": jnp.mean(jnp.square(1.0 - anchors[:, 3])),
                "alpha": jnp.mean(render.alpha),
            }
        s = clock.progress
        teacher = {"speech": self.speech_term(variables, batch, None)} if self.config.train.head.lambda_speech else {}
        face = batch.masks["face"].astype(jnp.float32)
        u, amb_aud, amb_eye = (render.aux[k] for k in EXTRAS)
        per_ray = {
            "entropy": losses.binary_entropy_bits(render.alpha[..., 0]),
            "amb_aud": amb_aud * (1.0 - face),
            "amb_eye": amb_eye / self.config.model.samples * jax.lax.stop_gradient(amb_aud) * face,
        }
        if clock.stage == "lips":
            terms = teacher | {name: jnp.mean(value) for name, value in per_ray.items()}
            terms["mse"] = self.lips_mse(prediction, batch)
            if batch.patches in PERCEPTUAL:  # single rays make no picture
                terms["perceptual"] = PERCEPTUAL[batch.patches] * self.perceptual_term(prediction, batch)
            return terms
        error = losses.safe_norm(jax.lax.stop_gradient(prediction) - batch.target)
        per_ray |= {
            "mse": losses.mse(prediction, batch.target) * losses.uncertainty_weight(u, s),
            "unc_nll": face * losses.uncertainty_nll(error, u),
            "unc_bg": (1.0 - face) * u,
        }
        terms = teacher | {name: jnp.mean(value) for name, value in per_ray.items()}
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
            frame_keys(key, batch, 2)
        ).reshape(b * r, m.samples, 3)
        packing = pack(evaluated, m.samples)
        along = t[packing.ray, packing.slot][:, None]
        xyz = rays_o[packing.ray] + along * rays_d[packing.ray] + shift[packing.ray, packing.slot]
        moved = field(self.program.select(*EXTRAS), xyz, {}, params, total=packing.total, chunk=m.chunk)
        square = jnp.sum(jnp.square(moved - render.aux["extras"][packing.ray, packing.slot]), -1)
        square = jnp.where(jnp.arange(square.shape[0]) < packing.total, square, 0.0)
        per_frame = jax.ops.segment_sum(square, packing.ray // r, b)
        return jnp.mean(per_frame / jnp.maximum(jnp.sum(evaluated.reshape(b, r), -1), 1))

    def stages(self) -> tuple:
        h, t = self.config.train.head, self.config.train.torso
        rates = {
            "tables": Rate(h.lr_tables, h.final_factor, h.decay_tables, b1=0.0),
            "net": Rate(h.lr_net, h.final_factor, b1=0.0),
            "audio": Rate(h.lr_audio, h.final_factor, b1=0.0),
            "audio_attention": Rate(h.lr_audio_attention, h.final_factor, h.decay_audio_attention, b1=0.0),
        }
        if self.config.model.train_camera:
            rates["cameras"] = Rate(h.lr_cameras, h.final_factor, b1=0.0)
        torso = {
            "torso_tables": Rate(t.lr_tables, t.final_factor, h.decay_tables, b1=0.0),
            "torso": Rate(t.lr_net, t.final_factor, b1=0.0),
        }
        regular = {"mse": 1.0, "entropy": ENTROPY}
        head = regular | {
            "unc_nll": lambda s: s,
            "unc_bg": lambda s: UNCERTAINTY_BACKGROUND * s,
            "amb_aud": lambda s: h.lambda_amb * s,
            "amb_eye": lambda s: h.lambda_amb * s,
            "perturb": lambda s: PERTURB * s,
        }
        late = {name: lambda s: h.lambda_amb * lips_progress(s) for name in ("amb_aud", "amb_eye")}
        lips = regular | late | {"perceptual": self.config.train.lips.perceptual_weight}
        body = {"mse": 1.0, "anchors": 1.0, "alpha": t.get("lambda_alpha", 0.0)}
        weights = self.speaking({"head": head, "lips": lips, "torso": body})
        return self.make_stages(rates, torso, weights, masks=("face",))
