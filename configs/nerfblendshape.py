"""NeRFBlendShape: hash tables blended by expression coefficients, the head alone (its dossier; arXiv 2210.06108).

python launch.py --mode=fit --config=configs/nerfblendshape.py:cpu --video=clip.mp4 --workdir=W --consent="..."

Driven by the signal `expression`, no sound is needed. Two stages: head, and lips (head again, patches of mouth and face
in every other step). Variants: `full` is the released code value by value (an accelerator); `cpu` fits a short clip at
256 pixels on two cores; `demo` is `cpu` cut to a few minutes; `smoke` runs in seconds, for tests. Departures from
`full` stand with their reason.
"""

import math

from ml_collections import ConfigDict

from configs import base

VARIANTS = ("full", "cpu", "demo", "smoke")


def get_config(variant: str = "full") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"nerfblendshape has no variant {variant!r}; choose one of {', '.join(VARIANTS)}")
    c = base.get_config()
    c.system, c.variant = "nerfblendshape", variant

    m = c.model
    m.basis_num = 0  # coefficients that are used, the first of the signal; 0: all (46 in the original's data)
    m.add_mean = True  # a neutral table beside those of the coefficients
    m.normalise = False  # coefficients over their range; the original takes them as they are
    m.least_range = 0.0  # with normalise: a smaller range counts as this, so that noise stays small
    m.smallest = 0.0  # coefficients below this share of their range count as 0; kernels skip their tables then
    m.grid_levels = 16
    m.grid_features = 4  # per level
    m.grid_base = 16  # resolution of the coarsest level
    m.grid_finest = 1024
    m.grid_log2_entries = 14  # entries per level
    m.hidden = 64  # width of both networks
    m.layers = 4  # hidden ones of the density's
    m.geometry = 64  # features that density passes on to colour
    m.bound = 0.06  # half the cube that is marched, in marched units
    m.scale = 0.33  # marched units per metre
    m.t_min = 0.05  # rays start no nearer than this, marched units
    m.dt_min = 2 * math.sqrt(3) / 2048  # shortest and longest step along a ray, in halves of the cube
    m.dt_max = 2 / 128
    m.dt_gamma = 1 / 128  # steps grow with the distance t as t dt_gamma, within these bounds
    m.samples = 320  # kept per ray; a diagonal of the empty cube has fewer
    m.waves = 5  # parts in which a ray's samples are taken; a ray that is opaque after one skips the next
    m.jitter = "ray"  # one shift of a ray's samples; `step` draws every step anew, as the original
    m.occupancy = "bits"  # cells of the other systems; `vertices`: the original's 129^3 densities
    m.occupancy_side = 128
    m.occupancy_decay = 0.9  # of the running maximum of a cell's density, per refresh
    m.occupancy_first = 1000  # steps before the first refresh; all cells are marched until then
    m.occupancy_seen = 0.0  # least share of the training cameras that see a cell of `bits`; 0: one camera
    m.chunk = 65536  # packed samples that the field takes at once
    m.picture_stop = 1e-2  # pictures end a ray at this transmittance, as the original's
    m.picture_precision = "float32"

    h = c.train.head = ConfigDict()
    h.steps = 20_000
    h.frames, h.rays = 2, 1024
    h.rare = 0.0  # least share of frames with closed eyes, and of wide open mouths; 0: as often as they come
    h.sampler = "rays"  # uniform over the picture
    h.refresh_every = 1000
    h.lr_tables = 1e-3
    h.lr_net = 1e-3
    h.final_factor = 1.0
    h.drop_steps = (100_000, 250_000)  # counted over both stages; epochs 40 and 100 of 5000 frames, two a step
    h.drop_factor = 0.33
    h.lambda_bases = 1.0  # of mean |table| over the coefficients' tables
    h.mask_steps = 4000
    h.lambda_mask = 1.0  # of |alpha - head| until then
    h.lambda_mask_after = 0.0
    h.ema_decay = 0.0  # 0: no moving average
    h.ema_every = 1000
    h.seed = 0

    lips = c.train.lips = ConfigDict()
    lips.steps = 30_000
    lips.frames, lips.rays = 2, 1024
    lips.samplers = ("mouth_patches", "rays", "face_patches", "rays")  # in turn
    lips.patch = 32
    lips.perceptual = "auto"  # lpips_alex where its weights are found (the original: lpips_vgg), else structure
    lips.first_rate, lips.last_rate = 1.0, 1.0  # of the head's first rates
    lips.seed = 0

    if variant in ("cpu", "demo"):
        c.data.size = 256  # a quarter of the pixels of the usual 512
        c.eval.chunk_rays = 0  # a frame's tables are blended once
        # 256: a cell is about a pixel of 256. The optimiser reads and writes every table in every step: 8 M numbers
        m.grid_levels, m.grid_features, m.grid_finest, m.grid_log2_entries = 10, 2, 256, 13
        m.hidden, m.layers, m.geometry = 32, 2, 15  # a sixth of the products of a sample
        # The same cube in units in which densities are of the order 15, not 500: few steps reach them
        m.bound, m.scale, m.t_min = 2.0, 2 * 0.33 / 0.06, 2 * 0.05 / 0.06
        m.dt_min = m.dt_max = 2 / 64
        m.samples, m.waves = 48, 8  # a ray that is opaque after six of them skips the rest
        m.occupancy_side = 32  # every cell is tried with every coefficient: seconds instead of minutes
        m.occupancy_first = 50
        m.chunk = 2048  # activations of a chunk stay in the cache
        m.picture_stop = 3e-3  # below 0.8 of an 8-bit step
        m.normalise, m.least_range, m.smallest = True, 0.1, 0.02
        h.steps = 4000
        h.frames, h.rays = 16, 256  # many frames of few rays: coefficients are seen together with others
        h.sampler = "close"  # a quarter of the rays on the lips, a sixth on the eyes
        h.rare = 0.15
        h.refresh_every = 50
        h.lr_tables, h.lr_net, h.final_factor = 1e-2, 2e-3, 0.1
        h.mask_steps = 4000  # all along: what is no head must not become fog
        h.lambda_mask = 0.1
        h.ema_decay, h.ema_every = 0.95, 20
        lips.steps, lips.frames, lips.rays = 400, 4, 1024
        lips.first_rate, lips.last_rate = 0.1, 0.05
    if variant == "demo":
        h.steps, lips.steps = 2000, 250
    if variant == "smoke":
        c.data.size = 32
        m.grid_levels, m.grid_finest, m.grid_log2_entries = 4, 64, 10
        m.hidden, m.layers, m.geometry = 16, 2, 15
        m.bound, m.scale, m.t_min = 1.0, 0.33 / 0.06, 0.05 / 0.06
        m.dt_min = m.dt_max = 2 / 32
        m.samples, m.waves = 32, 2
        m.occupancy_side, m.occupancy_first = 16, 20
        m.chunk = 1024
        h.steps, h.frames, h.rays = 60, 0, 256
        h.refresh_every = 20
        h.lr_tables, h.lr_net = 2e-2, 5e-3  # 60 steps instead of 20 000
        h.mask_steps = 40
        lips.steps, lips.frames, lips.rays, lips.patch = 20, 0, 256, 8
        c.train.log_every = 10
        c.train.preview_every = 30
        c.train.checkpoint_every = 20
        c.eval.max_frames = 2
        c.eval.chunk_rays = 1024
    return c
