"""ER-NeRF: tri-plane hash head with region attention, lips finetuning, 2-D torso (er-nerf dossier; ICCV 2023).

python launch.py --mode=fit --config=configs/er_nerf.py:cpu --video=clip.mp4 --workdir=W --consent="..."

Variants: `full` is the paper's code value by value (an accelerator); `cpu` fits a short clip at 256 pixels on two
cores; `demo` is `cpu` cut to a few minutes, for `make demo`; `smoke` runs in seconds, for tests.
Departures from `full` stand with their reason.
"""

import math

from ml_collections import ConfigDict

from configs import base

VARIANTS = ("full", "cpu", "demo", "smoke")


def get_config(variant: str = "full") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"er_nerf has no variant {variant!r}; choose one of {', '.join(VARIANTS)}")
    c = base.get_config()
    c.system, c.variant = "er_nerf", variant

    m = c.model
    m.grid_levels = 12
    m.grid_base = 64  # resolution of the coarsest level
    m.grid_finest = 512
    m.grid_log2_entries = 14  # entries per level and plane
    m.audio_dim = 32
    m.code_dim = 4  # per-frame appearance code
    m.code_rows = 10000  # at least; a longer clip gets a row per frame
    m.box = (-1.0, -0.5, -1.0, 1.0, 0.5, 1.0)  # what is marched, axes of the originals (y, z, x of the contract)
    m.t_min = 0.05  # rays start no nearer than this, contract units
    m.samples = 16  # kept per ray
    m.dt = 2.0 * math.sqrt(3.0) / 128  # step along a ray
    m.occupancy_side = 128
    m.occupancy_decay = 0.95  # of the running maximum of a cell's density, per refresh
    m.occupancy_box_only = False  # True: cells outside the box are never evaluated
    m.blink_noise = 0.05  # training adds one uniform draw of ± this to eye_closed, per step and frame
    m.chunk = 65536  # packed samples that the field takes at once
    m.picture_stop = 1e-3  # pictures end a ray at this transmittance (training: 1e-4): below 0.26 of an 8-bit step
    m.picture_precision = "bfloat16"  # of products in pictures (training: float32): below 1/255, faster; or float32
    m.train_camera = False  # learn a correction of every training frame's camera
    m.torso_code_dim = 8
    m.torso_shrink = 0.8  # of the picture's coordinates
    m.torso_levels = 16
    m.torso_finest = 2048
    m.torso_log2_entries = 16
    m.waves = 1  # parts in which a ray's samples are taken; a ray that is opaque after one skips the next

    h = c.train.head = ConfigDict()
    h.steps = 100_000
    h.rays = 65536  # per frame and step
    h.sampler = "rays"  # uniform over the picture
    h.refresh_every = 16  # steps between occupancy updates
    h.lr_tables = 1e-2
    h.lr_net = 1e-3
    h.lr_audio_attention = 5e-3
    h.decay_tables = 0.01  # the optimiser's default, which the originals' table groups inherit
    h.decay_audio_attention = 1e-4
    h.final_factor = 0.5  # of every rate, reached at the end
    h.ema_decay = 0.95
    h.ema_every = 1000
    h.lambda_amb = 1e-4
    h.lr_cameras = 1e-5  # with train_camera; degrees and units
    h.seed = 0  # of the stage; another one repeats it with other random numbers

    lips = c.train.lips = ConfigDict()
    lips.steps = 25_000
    lips.rays = 65536  # of the patches; the lips rectangle has its own number
    lips.samplers = ("lips", "patch")  # alternating
    lips.patch = 32
    lips.perceptual = "auto"  # lpips_alex where its weights are found, else structure (tkjax.perceptual)
    lips.first_rate, lips.last_rate = 0.05**0.8, 0.05  # of the head's first rates; where the originals resume and end
    lips.perceptual_weight = 1.0  # times 0.01 on the lips rectangle, 0.1 on patches
    lips.ema_every = 1000
    lips.seed = 0

    t = c.train.torso = ConfigDict()
    t.steps = 200_000
    t.rays = 65536
    t.lr_tables = 1e-2
    t.lr_net = 1e-3
    t.final_factor = 0.5
    t.lambda_alpha = 0.0  # of the mean alpha: above 0 the torso vanishes where the plate does as well, and is not drawn
    t.ema_every = 1000
    t.seed = 0

    if variant in ("cpu", "demo"):
        c.data.size = 256  # a quarter of the pixels of the usual 512
        m.occupancy_side = 64  # an eighth of the cells: a refresh costs 9 GFLOP instead of 74
        m.occupancy_box_only = True  # half of the cube is never marched
        m.chunk = 2048  # activations of a chunk stay in the cache
        m.waves = 2  # same picture and gradients (a sample behind an opaque one has none), fewer samples
        h.steps = 8000  # about five minutes on two cores, lips and torso four more
        h.rays = 4096
        h.sampler = "focus"  # a sixth of the rays on the lips, a twelfth on the eyes: a short schedule must find both
        h.ema_every = lips.ema_every = t.ema_every = 20  # the schedule is 20 times shorter
        m.torso_finest = 512  # twice the picture's pixels; finer levels have nothing to learn from
        lips.steps, lips.rays = 1500, 4096
        t.steps, t.rays = 3000, 8192
        t.lambda_alpha = 1e-3
    if variant == "demo":
        h.steps = 2000  # about five minutes on two cores
        h.sampler = "close"  # shorter still: a quarter of the rays
        h.ema_every = 10
        lips.steps, t.steps = 500, 1000
    if variant == "smoke":
        c.data.size = 32
        m.occupancy_side = 32
        m.occupancy_box_only = True
        m.chunk = 1024
        m.code_rows = 64
        h.steps = 60
        h.rays = 256
        h.ema_every = lips.ema_every = t.ema_every = 5
        m.torso_levels, m.torso_finest, m.torso_log2_entries = 4, 64, 10
        lips.steps, lips.rays, lips.patch = 20, 256, 8
        t.steps, t.rays = 40, 256
        c.train.log_every = 10
        c.train.preview_every = 30
        c.train.checkpoint_every = 20
        c.eval.max_frames = 2
        c.eval.chunk_rays = 1024
    return c
