"""RAD-NeRF: a 3-D grid beside a 2-D grid that the sound looks up in, over a 2-D torso (arXiv 2211.12368).

Maths and constants: rad-nerf dossier §3 (field, torso), §5 (losses, rates), all of them the released code's. Rays,
occupancy and stages: `hash_head`.

Decided (code = the released code is followed, neither = ours):
- the 3-D grid is `tiled` and its finest levels know nothing of left and right (code, `full`); model.grid_kind = hash
  is the author's own alternative of equal quality;
- interpolation is linear: the smoothstep that the original can be asked for never reached its kernel (code);
- sigma's exponent is cut at MAX_LOG_DENSITY (neither): infinity would stay in the occupancy's running maximum for good;
- a ray has at most model.samples samples in pictures as in training (neither: the original's pictures take up to 23 of
  16), and pictures end a ray at model.picture_stop, before the next sample, as training does;
- no sample is ever dropped: the original's training rays behind a full buffer render as background and learn nothing;
- depth is the mean distance of the samples, not of the ends of their intervals, and NaN where nothing is (neither);
- gradients to cameras go through the samples' positions as they are (neither: the original takes the interval's end);
- LPIPS gets pictures mapped to -1…1, which the original's training forgot (neither, see `perceptual`);
- the lips stage starts its optimiser afresh, at the rates and ambient weight where the original resumes (neither);
- the torso stage does not run the head, whose output its loss does not use, and always leaves it as it is (neither:
  the original freezes it only where it is given a file of it).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float
from ml_collections import ConfigDict

from tkjax import losses
from tkjax.interface import Rate, Stage
from tkjax.models.hash_head import SH_DEGREE, SPEECH, HashHead, lips_progress, make_torso
from tkjax.ops import GridSpec, Program, ProgramBuilder, fused
from tkjax.render.image import picture
from tkjax.types import Array, Batch, Clock, Render, SubjectInfo, Variables

GEOMETRY = 64  # features that density passes on to colour
AMBIENT = 2  # coordinates that the sound chooses; the original's option --amb_dim has no effect
FEATURES = 2  # of both grids, per level
MAX_LOG_DENSITY = 40.0  # alpha is 1 in float32 from 6.5 on
ENTROPY = 1e-4  # weight of the entropy of the head's alpha, and of the torso's in its stage
PERCEPTUAL = {"lips": 0.01, "patch": 0.001}  # weight of LPIPS on the lips rectangle, and of the option --patch_size
fused.register("triton", "tkjax.fields.triton.ambient_head")  # draws `head_program`
B1, B2, EPS = 0.9, 0.99, 1e-15  # of Adam


def head_program(space: GridSpec, ambient: GridSpec, audio_dim: int, code_dim: int, eye: bool = True) -> Program:
    """The field at one sample x with the frame's audio code a (dossier §3.3):

      ambient = tanh(MLP([space(x), a])), two numbers;
      h = MLP([space(x), grid(ambient), eye]), sigma = exp(h_0), rgb = sigmoid(MLP([SH4(d), h_1…64, code])).

    Rows: `sh` of the ray; `audio`, `eye` (area of both eyes) and `code` (appearance) of the frame. Outputs: sigma, rgb
    and, for training, ambient = |ambient_0| + |ambient_1|. Colour is a plain sigmoid, not widened as in ER-NeRF; exp
    has the derivative exp(h_0 clipped to ±15).
    """
    sh = SH_DEGREE**2
    p = ProgramBuilder("rad_nerf_head")
    x = p.grid("encoder", space, p.points)
    a = p.mlp("ambient", [x, p.row("audio", audio_dim)], (x.channels + audio_dim, 64, 64, AMBIENT), output="tanh")
    inputs = [x, p.grid("encoder_ambient", ambient, a), *([p.row("eye", 1)] if eye else [])]
    h = p.mlp("sigma", inputs, (sum(v.channels for v in inputs), 64, 64, 1 + GEOMETRY))
    colour = [p.row("sh", sh), h[1:], p.row("code", code_dim)]
    rgb = p.mlp("colour", colour, (sh + GEOMETRY + code_dim, 64, 3), output="sigmoid")
    return p.build(sigma=p.act(p.clip_max(h[:1], MAX_LOG_DENSITY), "trunc_exp"), rgb=rgb, ambient=p.sum_abs(a))


class Model(HashHead):
    """Head and torso as a system."""

    PLAIN = ("ambient",)
    EYES = "eye_area"

    def __init__(self, config: ConfigDict, info: SubjectInfo):
        m = config.model
        space = GridSpec(3, m.grid_levels, FEATURES, m.grid_base, m.grid_finest, m.grid_log2_entries, m.grid_kind)
        ambient = GridSpec(
            2, m.ambient_levels, FEATURES, m.grid_base, m.ambient_finest, m.ambient_log2_entries, "tiled"
        )
        program = head_program(space, ambient, m.audio_dim, m.code_dim, m.eye)
        torso = make_torso(config, info, pose="euler", xy_octaves=10, pose_octaves=4, deform_hidden=64)
        super().__init__(config, info, program, torso)

    def _eye(self, batch: Batch) -> Float[Array, "B 1"]:
        """The area of both eyes in per cent of the picture."""
        return batch.now(self.EYES)

    def loss_terms(
        self, variables: Variables, render: Render, batch: Batch, key: jax.Array, clock: Clock
    ) -> dict[str, jax.Array]:
        """The terms of dossier §5; each is a mean over the rays of a frame, then over frames. Sound should move nothing
        but the lower face: outside of it the ambient coordinates are held at 0."""
        if clock.stage == SPEECH:
            return {"speech": self.speech_term(variables, batch, key)}
        prediction = picture(render, batch.background)
        entropy = jnp.mean(losses.binary_entropy_bits(render.alpha[..., 0]))
        if clock.stage == "torso":
            return {"mse": jnp.mean(losses.mse(prediction, batch.target)), "entropy": entropy}
        outside = 1.0 - batch.masks["lower_face"].astype(jnp.float32)
        terms = {"entropy": entropy, "ambient": jnp.mean(render.aux["ambient"] * outside)}
        if self.config.train.head.lambda_speech:
            terms["speech"] = self.speech_term(variables, batch, None)
        if clock.stage != "lips":
            return terms | {"mse": jnp.mean(losses.mse(prediction, batch.target))}
        terms["mse"] = self.lips_mse(prediction, batch)
        if batch.patches in PERCEPTUAL:
            terms["perceptual"] = PERCEPTUAL[batch.patches] * self.perceptual_term(prediction, batch)
        return terms

    def stages(self) -> tuple[Stage, ...]:
        h, t = self.config.train.head, self.config.train.torso

        def rate(lr, factor):
            return Rate(lr, factor, b1=B1, b2=B2, eps=EPS)

        rates = {
            "tables": rate(h.lr_tables, h.final_factor),
            "net": rate(h.lr_net, h.final_factor),
            "audio": rate(h.lr_audio, h.final_factor),
            "audio_attention": rate(h.lr_audio_attention, h.final_factor),
        }
        if self.config.model.train_camera:
            rates["cameras"] = rate(h.lr_cameras, h.final_factor)
        torso = {"torso_tables": rate(t.lr_tables, t.final_factor), "torso": rate(t.lr_net, t.final_factor)}
        regular = {"mse": 1.0, "entropy": ENTROPY}
        weights = {
            "head": regular | {"ambient": lambda s: h.lambda_amb * s},
            "lips": regular
            | {
                "ambient": lambda s: h.lambda_amb * lips_progress(s),
                "perceptual": self.config.train.lips.perceptual_weight,
            },
            "torso": regular,
        }
        return self.make_stages(rates, torso, self.speaking(weights), refresh_lips=False, masks=("lower_face",))
