"""AD-NeRF: two networks for the head, lit by sound, behind two for the torso, driven by the head's pose (2103.11078).

Maths and constants: ad-nerf dossier §2.7 (rays), §3 (networks), §4 (depths, compositing), §5 (training).

With samples 0 … n-1 of a ray, the last of which is the background at `far` with alpha 1, the original's picture is
  C = sum_{i<n-1} w_i c_i + w_{n-1} c_background, w_{n-1} = T_{n-1} = prod_{j<n-1} (1 - alpha_j).
So the sum without the last sample is a premultiplied colour and 1 - T_{n-1} its alpha: the `Render` of the head. The
torso lies in front of it: C = fg_torso + T_torso C_head.

Parameters and the keys of a state dict of the original (torch stores [out,in], here kernels are [in,out]):
  head/coarse, torso/coarse = network_fn_state_dict, head/fine, torso/fine = network_fine_state_dict of head and body;
  in each: trunk/kernel_i, bias_i = pts_linears.i (i < 5), behind_skip/…_i = pts_linears.(5 + i),
  density/…_0 = alpha_linear, colour/…_i = views_linears.i (i < 3), colour/…_3 = rgb_linear;
  audio_net/convs_i = encoder_conv.(2 i) ([out,in,3], here [3,in,out]), fc1, fc2 = encoder_fc1.0, encoder_fc1.2 of
  network_audnet_state_dict; audio_attention/convs_i = attentionConvNet.(2 i), fc = attentionNet.0 of
  network_audattnet_state_dict. feature_linear and the torso's own audio net are stored there and never used.

Decided (code = the released code is followed, neither = ours):
- the pose code's angles are those of a matrix that is no inverse of the tracker's (code: weights depend on it);
- the torso's camera is that of the first training frame, whatever is rendered (code);
- the rectangle of rays is not transposed, nor the torso's lower half (neither; train.head.transposed = true and
  train.torso.sampler = right_half are the code);
- near and far come from the mean depth of the training frames' cameras, where the original takes all frames (neither);
- neighbours of a window of sound are those of the clip; the original counts within its list of training frames, and
  takes zeros beside the held-out ones (neither);
- the torso hears the attended code if the attention is ever trained, else the frame's own (neither: the original then
  attends with an untrained network); pictures are attended from the step on from which training is (neither: the
  original's validation pictures never are);
- no gradient reaches head and sound in the torso stage (the same numbers, a third less work);
- the optimiser starts afresh in the torso stage; state of a resumed one is restored, the attention's too (neither);
- T has no 1e-10 inside its product: it changes nothing above 1e-9 (neither);
- depth is the mean over the samples without the background, NaN where there is none (neither);
- noise on densities, inverse depths and a white background are left out: the released configs have none;
- the second network is not asked at the last sample, whose alpha is 1 and whose colour is the background's, whatever
  it says; with model.prune above 0 neither where the first pass found no weight above it (neither; 0 in `full`);
- densities of short schedules are a softplus that starts at model.density_start (the torso's at
  model.torso_density_start), times model.density_scale: the
  original's ReLU may close everywhere, and then a volume stays empty for good (its "floating head"); `full` has that.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from tkjax import losses, samplers
from tkjax.cameras import ADNERF_UNITS, pixel_rays
from tkjax.fields.audio import AudioAttention, AudioNet
from tkjax.fields.program import uniform_params
from tkjax.interface import Ema, Rate, Stage, frame_keys
from tkjax.interface import Model as BaseModel
from tkjax.models.speaking import HEARS, LIP_SHAPE, SPEECH, listening, speech_stage, speech_term
from tkjax.ops import Program, ProgramBuilder, composite, field, freq_encode
from tkjax.ops.packing import pack, unpack
from tkjax.render.composite import over
from tkjax.render.hierarchical import even_depths, finer_depths, jittered, ray_weights
from tkjax.signals import SOUND, Use
from tkjax.types import Batch, ClipFacts, Clock, PyTree, Render, SubjectInfo, Variables

CODE = 64  # numbers of the audio code; dim_aud and dim_aud_body of the original
SCORED = 32  # of which the attention looks at the first so many
POSE_OCTAVES = 3  # of the torso's angles and translation
POSE = 2 * 3 * (1 + 2 * POSE_OCTAVES)
LEAST_DENSITY = 1e-6  # added to every density, 1/m
NEAR, FAR = 0.3, 0.9  # m, of the original's options; a training sets its own
B1 = 0.9  # of Adam
PASSES = ("coarse", "fine")
USES = {"head": 0, "torso": 1}  # of `frame_keys`


def face_program(
    depth: int, width: int, skip: int, signal: int, octaves: int, view_octaves: int, scale: float, density: str = "relu"
) -> Program:
    """One network at one position x in metres, seen along d, with the frame's signal a (dossier §3):

      h = `depth` layers of `width` on [PE(x), a], ReLU behind each; what goes into layer `skip` is [PE(x), a, h];
      sigma = scale relu(W h + b) + 1e-6 in 1/m, or softplus in place of relu;
      rgb = sigmoid(layers on [h, PE(d)]), 1 + depth // 4 of them of width / 2 with ReLU, and one of 3.

    Rows: `signal` of the frame, `view` = PE(d) of the ray.
    """
    p = ProgramBuilder("two_pass_volume")
    a, x = p.row("signal", signal), p.freq(p.points, octaves)
    given = x.channels + signal
    h = p.mlp("trunk", [x, a], (given, *[width] * skip), bias=True, output="relu")
    if skip < depth:
        h = p.mlp("behind_skip", [x, a, h], (given + width, *[width] * (depth - skip)), bias=True, output="relu")
    sigma = p.mlp("density", [h], (width, 1), bias=True, output=density)
    view = p.row("view", 3 * (1 + 2 * view_octaves))
    hidden = [width // 2] * (1 + depth // 4)
    rgb = p.mlp("colour", [h, view], (width + view.channels, *hidden, 3), bias=True, output="sigmoid")
    return p.build(sigma=p.affine(sigma, scale, LEAST_DENSITY), rgb=rgb)


def pose_code(cam_to_world: Float[Array, "B 4 4"]) -> Float[Array, "B 42"]:
    """PE of three angles and of the translation in metres of the head's camera (dossier §3 "Torso signal").

    With R the rotation: atan2(R22, R12), asin(-R02), atan2(R00, -R01).
    """
    r = cam_to_world[:, :3, :3]
    tilt = jnp.arcsin(jnp.clip(-r[:, 0, 2], -1.0, 1.0))
    angles = jnp.stack([jnp.arctan2(r[:, 2, 2], r[:, 1, 2]), tilt, jnp.arctan2(r[:, 0, 0], -r[:, 0, 1])], -1)
    shift = cam_to_world[:, :3, 3] / ADNERF_UNITS
    return jnp.concatenate([freq_encode(angles, POSE_OCTAVES), freq_encode(shift, POSE_OCTAVES)], -1)


class Drawn(NamedTuple):
    """A volume seen along B x R rays: premultiplied colour and alpha of both passes, and sum w z of the second in m."""

    rgb: Float[Array, "B R 3"]
    alpha: Float[Array, "B R 1"]
    coarse_rgb: Float[Array, "B R 3"]
    coarse_alpha: Float[Array, "B R 1"]
    depth: Float[Array, "B R 1"]


class Model(BaseModel):
    """Head and torso as a system."""

    torso_in_front = True

    def __init__(self, config: ConfigDict, info: SubjectInfo):
        super().__init__(config, info)
        m = config.model
        _check(m)
        sizes = {"coarse": (m.coarse_depth, m.coarse_width, m.coarse_skip), "fine": (m.depth, m.width, m.skip_at)}
        encodings = m.position_octaves, m.view_octaves, m.density_scale, m.density_activation
        self.programs: dict[str, dict[str, Program]] = {
            volume: {name: face_program(*sizes[name], signal, *encodings) for name in PASSES}
            for volume, signal in (("head", CODE), ("torso", CODE + POSE))
        }
        self.audio_net = AudioNet(info.signal(SOUND).channels, CODE)
        self.audio_attention = AudioAttention(HEARS.neighbours, CODE, SCORED)
        self.attends = config.train.head.attention_start < config.train.head.steps

    def init(self, key: jax.Array) -> Variables:
        sound = self.info.signal(SOUND)
        audio = jnp.zeros((1, sound.window, sound.channels))
        codes = jnp.zeros((1, HEARS.neighbours, CODE))
        shapes = {
            "audio_net": jax.eval_shape(self.audio_net.init, key, audio)["params"],
            "audio_attention": jax.eval_shape(self.audio_attention.init, key, codes)["params"],
        }
        for volume, passes in self.programs.items():
            shapes[volume] = {name: _shapes(program) for name, program in passes.items()}
        params = uniform_params(key, shapes)
        m = self.config.model
        for volume, start in (("head", m.density_start), ("torso", m.torso_density_start)):
            for net in params[volume].values() if start else ():
                net["density"]["bias_0"] = jnp.full(1, start, jnp.float32)
        state = {"near": jnp.float32(NEAR), "far": jnp.float32(FAR), "torso_camera": jnp.eye(4, dtype=jnp.float32)}
        return Variables(params, state)

    def signals(self) -> tuple[Use, ...]:
        return (HEARS,)

    def prepare(self, variables: Variables, facts: ClipFacts) -> Variables:
        """Rays from model.near before to model.far behind the mean depth of the origin, metres (dossier §2.4 step 7:
        0.2 and 0.4), and the torso's camera, that of the first training frame (§4)."""
        poses = np.asarray(facts.cam_to_world, np.float64)
        depth = float(np.mean(np.einsum("ni,ni->n", poses[:, :3, 2], poses[:, :3, 3]))) / ADNERF_UNITS
        near, far = max(depth - self.config.model.near, 1e-3), depth + self.config.model.far
        state = {"near": jnp.float32(near), "far": jnp.float32(far), "torso_camera": jnp.asarray(poses[0], jnp.float32)}
        return variables.replace(state=state)

    # ------------------------------------------------ what a frame gives

    def audio_code(self, params: PyTree, audio: Float[Array, "B W T A"], clock: Clock) -> Float[Array, "B 64"]:
        """The code of the frame's own window, or the attended one of its neighbours: of the head from step
        train.head.attention_start on, of finished pictures, the torso and the stage `speech` always."""
        b, w = audio.shape[:2]
        windows = audio.reshape(b * w, *audio.shape[2:])
        codes = self.audio_net.apply({"params": params["audio_net"]}, windows).reshape(b, w, -1)
        own = codes[:, HEARS.before]
        if not self.attends and clock.stage != SPEECH:
            return own
        attended = self.audio_attention.apply({"params": params["audio_attention"]}, codes)
        if clock.stage in ("torso", SPEECH):
            return attended
        joined = (clock.step >= self.config.train.head.attention_start) | (clock.progress >= 1.0)
        return jnp.where(joined, attended, own)

    # ------------------------------------------------ drawing

    def render(self, variables: Variables, batch: Batch, key: jax.Array | None, clock: Clock, train: bool) -> Render:
        if train and clock.stage == SPEECH:
            return listening(batch)
        params, with_torso = variables.params, clock.stage == "torso"
        if with_torso and train:  # the head is finished
            params = {**jax.lax.stop_gradient(params), "torso": params["torso"]}
        code = self.audio_code(params, batch.signals[SOUND], clock)
        head = self._draw("head", params, variables.state, batch, batch.cam_to_world, code, key, train)
        if not with_torso:
            return _render(head)
        camera = jnp.broadcast_to(variables.state["torso_camera"], batch.cam_to_world.shape)
        signal = jnp.concatenate([code, pose_code(batch.cam_to_world)], -1)
        torso = self._draw("torso", params, variables.state, batch, camera, signal, key, train)
        rgb, alpha = over([(head.rgb, head.alpha), (torso.rgb, torso.alpha)])
        coarse = over([(head.coarse_rgb, head.coarse_alpha), (torso.coarse_rgb, torso.coarse_alpha)])
        depth = torso.depth + (1.0 - torso.alpha) * head.depth
        return _render(Drawn(rgb, alpha, *coarse, depth), front=head.alpha)

    def _draw(self, volume: str, params, state, batch: Batch, camera, signal, key, train: bool) -> Drawn:
        """A volume from a camera per frame; signal [B,A]. key None: depths without noise."""
        m, (b, r) = self.config.model, batch.pixels_px.shape[:2]
        n = b * r
        o, unit = pixel_rays(camera, batch.intrinsics, batch.pixels_px)
        slant = -1.0 / jnp.sum(unit * camera[:, None, :3, 2], -1, keepdims=True)  # length of a ray from depth 0 to 1
        rays = (o / ADNERF_UNITS).reshape(n, 3), (unit * slant).reshape(n, 3)
        frame = None if b == 1 else jnp.repeat(jnp.arange(b, dtype=jnp.int32), r)
        rows = {"view": (freq_encode(unit.reshape(n, 3), m.view_octaves), True), "signal": (signal, frame)}
        precise = jax.default_matmul_precision(None if train or m.picture_precision == "float32" else "bfloat16")

        noise = None
        if key is not None:  # of both passes
            keys, shape = frame_keys(key, batch, USES[volume]), (r, m.samples + m.importance)
            noise = jax.vmap(lambda k: jax.random.uniform(k, shape))(keys).reshape(n, -1)
        z = jnp.broadcast_to(even_depths(state["near"], state["far"], m.samples), (n, m.samples))
        if noise is not None:
            z = jittered(z, noise[:, : m.samples])
        slant = slant.reshape(n, 1)
        with precise:
            first, weights = self._one_pass(volume, "coarse", params, rays, rows, z, slant, None)
        u = jnp.broadcast_to(jnp.linspace(0.0, 1.0, m.importance), (n, m.importance))
        fine = finer_depths(z, weights, u if noise is None else noise[:, m.samples :])
        wanted = None
        if m.prune:
            share = (fine[:, :-1] - state["near"]) / (state["far"] - state["near"])
            wanted = _found(weights, share) > m.prune
        with precise:
            second, _ = self._one_pass(volume, "fine", params, rays, rows, fine, slant, wanted)

        def sums(v):
            return v.weighted.reshape(b, r, 3), v.weight_sum.reshape(b, r, 1)

        return Drawn(*sums(second), *sums(first), jax.lax.stop_gradient(second.depth.reshape(b, r, 1)))

    def _one_pass(self, volume: str, name: str, params, rays, rows, z, slant, wanted):
        """(`Composited` sums over the samples before the last, which is the background; weights of all [n,S])."""
        (o, d), (n, s) = rays, z.shape
        ray = jnp.repeat(jnp.arange(n, dtype=jnp.int32), s - 1)
        points = (o[:, None] + z[:, :-1, None] * d[:, None]).reshape(-1, 3)
        packing, total = None, None
        if wanted is not None:
            packing = pack(wanted.reshape(-1), 1)
            points, ray, total = points[packing.ray], ray[packing.ray], packing.total
        (view, _), (signal, frame) = rows["view"], rows["signal"]
        indexed = {"view": (view, ray), "signal": (signal, None if frame is None else frame[ray])}
        program = self.programs[volume][name]
        out = field(program, points, indexed, params[volume][name], total=total, chunk=self.config.model.chunk)
        if packing is not None:
            out = unpack(out, packing, wanted.reshape(-1, 1))
        out = out.reshape(n, s - 1, -1)
        sigma, dt = out[..., 0], (z[:, 1:] - z[:, :-1]) * slant
        everything = jnp.ones(sigma.shape, bool)
        summed = composite(sigma, everything, z[:, :-1], out[..., 1:], out[..., :0], dt=dt, stop=0.0)
        weights = jax.lax.stop_gradient(ray_weights(sigma, dt))
        return summed, jnp.concatenate([weights, jax.lax.stop_gradient(1.0 - summed.weight_sum)[:, None]], -1)

    def maps(self, variables: Variables, batch: Batch, clock: Clock) -> dict[str, Float[Array, "B R"]]:
        """Camera depth (units, NaN where alpha < 0.5)."""
        return {"depth": self.render(variables, batch, None, clock, False).depth[..., 0]}

    # ------------------------------------------------ losses and stages

    def loss_terms(
        self, variables: Variables, render: Render, batch: Batch, key: jax.Array, clock: Clock
    ) -> dict[str, jax.Array]:
        """Mean squared errors of the pictures of both passes (dossier §5)."""
        params, speech = variables.params, self.config.train.speech

        def heard(noise_key):
            code = lambda audio: self.audio_code(params, audio, clock)  # noqa: E731
            return speech_term(code, batch, noise_key, speech.noise)

        if clock.stage == SPEECH:
            return {"speech": heard(key)}

        def error(rgb, alpha):
            whole, _ = over([(batch.background, jnp.ones_like(alpha)), (rgb, alpha)])
            return jnp.mean(losses.mse(whole, batch.target))

        terms = {"mse": error(render.rgb, render.alpha), "coarse": error(*render.aux["coarse"])}
        if clock.stage == "head" and self.config.train.head.lambda_speech:
            terms["speech"] = heard(None)
        return terms

    def labels(self, params: PyTree) -> PyTree:
        """`head`, `torso`, `audio`, `audio_attention`."""
        names = {"audio_net": "audio"}
        return {name: jax.tree.map(lambda _, n=name: names.get(n, n), tree) for name, tree in params.items()}

    def parts(self, params: PyTree) -> dict[str, PyTree]:
        return {"head": {k: v for k, v in params.items() if k != "torso"}, "torso": params["torso"]}

    def stages(self) -> tuple[Stage, ...]:
        """speech (where it has steps), head and torso."""
        speech, h, t = (self.config.train[name] for name in (SPEECH, "head", "torso"))

        def rate(stage, lr, joins=0):
            final = 0.1 ** (stage.steps / stage.lr_decay_steps)
            return Rate(lr, final, b1=B1, b2=stage.adam_b2, eps=stage.adam_eps, joins=joins)

        rates = {"head": rate(h, h.lr), "audio": rate(h, h.lr_audio)}
        if self.attends:
            rates["audio_attention"] = rate(h, h.lr_audio_attention, h.attention_start)
        weights = {"mse": 1.0, "coarse": 1.0}
        teach = {"speech": h.lambda_speech} if h.lambda_speech else {}
        stages = (
            speech_stage(speech, h.ema_decay),
            Stage(
                "head", h.steps, h.rays, rates, weights | teach,
                samplers=(samplers.head(h.sample_rate, h.transposed, h.near),), background="plate", target="head",
                truth=(LIP_SHAPE,) if teach else (), frames=h.frames, rare=h.rare, seed=h.seed, ema=_ema(h),
            ),
            Stage(
                "torso", t.steps, t.rays, {"torso": rate(t, t.lr)}, weights, samplers=(t.sampler,), background="plate",
                frames=t.frames, seed=t.seed, ema=_ema(t),
            ),
        )  # fmt: skip
        return stages if speech.steps else stages[1:]


def _shapes(program: Program) -> dict:
    def leaf(shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    return {name: {k: leaf(shape) for k, shape in group.items()} for name, group in program.params.items()}


def _ema(stage: ConfigDict) -> Ema | None:
    return Ema(stage.ema_decay, stage.ema_every) if stage.ema_every else None


def _found(weights: Float[Array, "n S"], share: Float[Array, "n k"]) -> Float[Array, "n k"]:
    """The largest weight around each of k depths, given as a share 0…1 of the way from near to far: of the evenly lying
    sample before it and of that one's neighbours on both sides (noise moves a sample by half an interval at most)."""
    s = weights.shape[1]
    padded = jnp.pad(weights[:, :-1], ((0, 0), (1, 2)))
    widest = jnp.max(jnp.stack([padded[:, i : i + s - 1] for i in range(4)]), 0)
    return jnp.take_along_axis(widest, jnp.clip((share * (s - 1)).astype(jnp.int32), 0, s - 2), -1)


def _render(drawn: Drawn, front: Float[Array, "B R 1"] | None = None) -> Render:
    """With the depth of what stands before the background in contract units."""
    alpha = jax.lax.stop_gradient(drawn.alpha)
    depth = jnp.where(alpha < 0.5, jnp.nan, ADNERF_UNITS * drawn.depth / jnp.maximum(alpha, 1e-6))
    aux = {"coarse": (drawn.coarse_rgb, drawn.coarse_alpha), "metrics": {"alpha": jnp.mean(alpha)}}
    return Render(drawn.rgb, drawn.alpha, jax.lax.stop_gradient(depth), front, aux)


def _check(m: ConfigDict) -> None:
    """ValueError names a setting that no picture can be drawn with: settings may be an avatar's of somebody else."""
    bounds = {
        "depth": (1, 8), "coarse_depth": (1, 8), "width": (2, 256), "coarse_width": (2, 256), "skip_at": (1, m.depth),
        "coarse_skip": (1, m.coarse_depth), "position_octaves": (0, 16), "view_octaves": (0, 16), "samples": (4, 1024),
        "importance": (1, 1024), "chunk": (1, 2**24),
    }  # fmt: skip
    for name, (low, high) in bounds.items():
        if not low <= m[name] <= high:
            raise ValueError(f"model.{name} is {m[name]}, expected a whole number in {low}..{high}")
    for name in ("density_start", "torso_density_start"):
        if not -10 <= m[name] <= 10:
            raise ValueError(f"model.{name} is {m[name]}, expected a number of -10..10")
    for name, high in {"near": 10.0, "far": 10.0, "density_scale": 1e4}.items():
        if not 0 < m[name] <= high:
            raise ValueError(f"model.{name} is {m[name]}, expected a number above 0, at most {high:g}")
    if not 0 <= m.prune < 1:
        raise ValueError(f"model.prune is {m.prune}, expected a weight of 0..1, 0 for no sample")
    if m.density_activation not in ("relu", "softplus"):
        raise ValueError(f"model.density_activation is {m.density_activation!r}, expected relu or softplus")
    if m.picture_precision not in ("float32", "bfloat16"):
        raise ValueError(f"model.picture_precision is {m.picture_precision!r}, expected float32 or bfloat16")
