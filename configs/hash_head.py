"""What RAD-NeRF and ER-NeRF set alike: marching, occupancy, the torso's grid, how stages draw their pixels."""

import math

from ml_collections import ConfigDict

from configs import base


def get_config(system: str, variant: str) -> ConfigDict:
    """Base settings with `model`, `train.head`, `train.lips` and `train.torso` of the hash-grid family."""
    c = base.get_config()
    c.system, c.variant = system, variant

    m = c.model
    m.code_dim = 4  # per-frame appearance code
    m.code_rows = 10000  # at least; a longer clip gets a row per frame
    m.box = (-1.0, -0.5, -1.0, 1.0, 0.5, 1.0)  # what is marched, axes of the originals (y, z, x of the contract)
    m.t_min = 0.05  # rays start no nearer than this, contract units
    m.samples = 16  # kept per ray
    m.dt = 2.0 * math.sqrt(3.0) / 128  # step along a ray; with 16 samples the originals' dt_gamma has no effect
    m.occupancy_side = 128
    m.occupancy_decay = 0.95  # of the running maximum of a cell's density, per refresh
    m.occupancy_box_only = False  # True: cells outside the box are never evaluated
    m.occupancy_seen = 0.0  # least share of the training cameras that see a cell; 0: one camera, as the originals
    m.chunk = 65536  # packed samples that the field takes at once
    m.picture_stop = 1e-3  # pictures end a ray at this transmittance (training: 1e-4): below 0.26 of an 8-bit step
    m.train_camera = False  # learn a correction of every training frame's camera
    m.torso_code_dim = 8
    m.torso_shrink = 0.8  # of the picture's coordinates
    m.torso_levels = 16
    m.torso_finest = 2048
    m.torso_log2_entries = 16
    m.waves = 1  # parts in which a ray's samples are taken; a ray that is opaque after one skips the next

    c.train.speech = base.speech()  # before the head

    h = c.train.head = ConfigDict()
    h.rays = 65536  # per frame and step
    h.frames = 0  # in a step; 0: train.frames
    h.rare = 0.0  # least share of frames with closed eyes, and of wide open mouths; 0: as often as they come
    h.lambda_speech = 0.0  # of the speech stage's term, in head and lips stage
    h.mix_sound = False  # rays off the lower face hear another frame of the batch, in head and lips stage
    h.sampler = "rays"  # uniform over the picture
    h.refresh_every = 16  # steps between occupancy updates
    h.ema_decay = 0.95
    h.ema_every = 1000
    h.lr_cameras = 1e-5  # with train_camera; degrees and units
    h.seed = 0  # of the stage; another one repeats it with other random numbers

    lips = c.train.lips = ConfigDict()
    lips.frames = 0
    lips.rays = 65536  # of patches and plain steps; the lips rectangle has its own number
    lips.patch = 32  # the lips rectangle is a square of such tiles, compared as one picture
    lips.perceptual = "auto"  # lpips_alex where its weights are found, else structure (tkjax.perceptual)
    lips.first_rate, lips.last_rate = 0.05**0.8, 0.05  # of the head's first rates; where the originals resume and end
    lips.ema_every = 1000
    lips.seed = 0

    t = c.train.torso = ConfigDict()
    t.rays = 65536
    t.ema_every = 1000
    t.seed = 0
    return c
