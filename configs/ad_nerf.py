"""AD-NeRF: two networks for the head over two for the torso, depths in two passes (ad-nerf dossier; arXiv 2103.11078).

python launch.py --mode=fit --config=configs/ad_nerf.py:cpu --video=clip.mp4 --workdir=W --consent="..."

Two stages: head over the plate, then the torso in front of it. Variants: `full` is the released code value by value (an
accelerator: 61 TFLOP for the head of a 450² picture); `cpu` fits a short clip at 128 pixels on two cores; `demo` is
`cpu` cut to a few minutes; `smoke` runs in seconds, for tests. Departures from `full` stand with their reason.
"""

from ml_collections import ConfigDict

from configs import base

VARIANTS = ("full", "cpu", "demo", "smoke")


def get_config(variant: str = "full") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"ad_nerf has no variant {variant!r}; choose one of {', '.join(VARIANTS)}")
    c = base.get_config()
    c.system, c.variant = "ad_nerf", variant

    m = c.model
    m.depth, m.width, m.skip_at = 8, 256, 5  # of the second pass: layers, their width, layers before the skip
    m.coarse_depth, m.coarse_width, m.coarse_skip = 8, 256, 5  # of the first pass
    m.position_octaves = 10  # of positions in metres: the finest wave is 12 mm long
    m.view_octaves = 4
    m.samples = 64  # of the first pass, the background included
    m.importance = 128  # added for the second
    m.near, m.far = 0.2, 0.4  # m before and behind the mean depth of the head
    m.density_activation = "relu"  # or softplus
    m.density_scale = 1.0  # of what comes out of it
    m.density_start = 0.0  # bias in front of it at the start; 0: at random, as all biases
    m.torso_density_start = 0.0  # the same of the torso's networks
    m.prune = 0.0  # the second pass leaves out what has no more weight in the first one; 0: nothing
    m.chunk = 65536  # samples that the networks take at once
    m.picture_precision = "float32"  # or bfloat16: operands of the products, on accelerators

    s = c.train.speech = base.speech()

    h = c.train.head = ConfigDict()
    h.steps = 400_000
    h.rays = 2048  # N_rand, of one frame
    h.frames = 0  # in a step; 0: train.frames
    h.rare = 0.0  # least share of frames with closed eyes, and of wide open mouths; 0: as often as they come
    h.sample_rate = 0.95  # of the rays in the rectangle around the head; 0: uniform
    h.transposed = False  # the released code's rectangle, with rows and columns exchanged
    h.near = ""  # close, focus: the first rays on lips and eyes, as those samplers have it
    h.lr = 5e-4
    h.lr_audio = 5e-4
    h.lr_audio_attention = 2.5e-3  # five times the others
    h.lr_decay_steps = 250_000  # steps in which rates fall to a tenth
    h.adam_b2, h.adam_eps = 0.999, 1e-8
    h.attention_start = 200_000  # nosmo_iters: step at which neighbouring windows join
    h.lambda_speech = 0.0  # of the speech stage's term
    h.ema_every = 0  # steps between updates of the moving average; 0: there is none
    h.ema_decay = 0.95
    h.seed = 0  # of the stage; another one repeats it with other random numbers

    t = c.train.torso = ConfigDict()
    t.steps = 400_000
    t.rays = 1024
    t.frames = 0
    t.sampler = "lower_half"  # right_half is the released code's
    t.lr = 5e-4
    t.lr_decay_steps = 250_000
    t.adam_b2, t.adam_eps = 0.999, 1e-8
    t.ema_every = 0
    t.ema_decay = 0.95
    t.seed = 0

    if variant in ("cpu", "demo"):
        c.data.size = 128  # a twelfth of the pixels of 450
        m.depth, m.width, m.skip_at = 4, 96, 2  # a tenth of the products of a sample
        m.coarse_depth, m.coarse_width, m.coarse_skip = 2, 64, 2  # it has to find the surface, not to draw it
        m.samples, m.importance = 20, 12
        m.near, m.far = 0.16, 0.24
        m.density_activation = "softplus"  # few steps must not end in a volume that a closed ReLU leaves empty
        m.density_scale, m.density_start = 30.0, -4.0  # from 0.5 1/m, a thin fog, to hundreds in thousands of steps
        m.torso_density_start = -6.0  # thicker, it hides what is behind and is driven out for good
        m.prune = 1e-3
        m.chunk = 2048
        # A short schedule must show the sound path every frame often: many frames of few rays (benchmarks/NOTES.md)
        s.steps = 600
        h.steps, h.frames, h.rays = 5000, 16, 48
        h.near = "close"  # a quarter of the rays on the lips, a sixth on the eyes
        h.rare = 0.15
        h.lr, h.lr_audio, h.lr_audio_attention = 3e-3, 5e-4, 5e-4  # what speech has taught is refined, not forgotten
        h.lr_decay_steps = h.steps
        # what has become air too early has small gradients, which must count as soon as they point elsewhere
        h.adam_b2 = t.adam_b2 = 0.99
        h.adam_eps = t.adam_eps = 1e-15
        h.attention_start = 0  # taught in the stage before
        h.lambda_speech = 1e-3
        t.steps, t.frames, t.rays = 5000, 4, 128
        t.lr, t.lr_decay_steps = 2e-3, t.steps
        h.ema_every = t.ema_every = 20
    if variant == "demo":
        s.steps = 300
        h.steps = h.lr_decay_steps = 1500
        t.steps = t.lr_decay_steps = 2000
    if variant == "smoke":
        c.data.size = 32
        m.depth, m.width, m.skip_at = 3, 32, 2
        m.coarse_depth, m.coarse_width, m.coarse_skip = 2, 16, 2
        m.position_octaves = 6
        m.samples, m.importance = 12, 8
        m.density_activation, m.density_scale = "softplus", 30.0
        m.density_start = m.torso_density_start = -3.0
        h.adam_b2 = t.adam_b2 = 0.99
        h.adam_eps = t.adam_eps = 1e-15
        m.chunk = 1024
        h.steps, h.rays = 60, 128
        h.lr, h.lr_audio, h.lr_audio_attention = 5e-3, 2e-3, 2e-3  # 60 steps instead of 400 000
        h.attention_start = 10
        t.steps, t.rays, t.lr = 60, 128, 5e-3
        h.ema_every = t.ema_every = 5
        c.train.log_every = 10
        c.train.preview_every = 30
        c.train.checkpoint_every = 20
        c.eval.max_frames = 2
        c.eval.chunk_rays = 1024
    return c
