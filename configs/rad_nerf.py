"""RAD-NeRF: 3-D grid with a 2-D grid of sound beside it, 2-D torso (rad-nerf dossier; arXiv 2211.12368).

python launch.py --mode=fit --config=configs/rad_nerf.py:cpu --video=clip.mp4 --workdir=W --consent="..."

Three stages: head, lips (head again, the lips box in every other step), torso. Variants: `full` is the released code
value by value (an accelerator); `cpu` fits a short clip at 256 pixels on two cores; `demo` is `cpu` cut to a few
minutes; `smoke` runs in seconds, for tests. Departures from `full` stand with their reason.
"""

from ml_collections import ConfigDict

from configs import hash_head

VARIANTS = ("full", "cpu", "demo", "smoke")


def get_config(variant: str = "full") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"rad_nerf has no variant {variant!r}; choose one of {', '.join(VARIANTS)}")
    c = hash_head.get_config("rad_nerf", variant)

    m, h, lips, t = c.model, c.train.head, c.train.lips, c.train.torso
    m.grid_kind = "tiled"  # of the 3-D grid; its fine levels leave out the third axis, left to right; hash does not
    m.grid_base = 16  # resolution of the coarsest level, of both grids of the head
    m.grid_levels = 16
    m.grid_finest = 2048
    m.grid_log2_entries = 16  # entries per level
    m.ambient_levels = 16  # of the 2-D grid that the sound looks up in
    m.ambient_finest = 2048
    m.ambient_log2_entries = 16
    m.audio_dim = 64
    m.eye = True  # the area of the eyes goes into the density (the originals' --exp_eye)
    m.blink_noise = 0.0  # added to the eyes' input in training; the originals have it in ER-NeRF only
    m.picture_precision = "float32"  # products rounded to bfloat16 would move the look-up in the grid of sound by cells

    h.steps = 200_000
    h.lr_tables = 5e-3
    h.lr_net = 5e-4
    h.lr_audio = 5e-4  # of the convolutions; the originals' rate of the networks
    h.lr_audio_attention = 2.5e-3
    h.final_factor = 0.1  # of every rate, reached at the end
    h.lambda_amb = 0.1  # of the ambient coordinates outside the lower face, reached at the end; more against flicker

    lips.steps = 50_000
    lips.samplers = ("lips", "rays")  # alternating
    lips.perceptual_weight = 1.0  # times 0.01

    t.steps = 200_000
    t.lr_tables = 5e-3
    t.lr_net = 5e-4
    t.final_factor = 0.1

    if variant in ("cpu", "demo"):
        c.data.size = 256  # a quarter of the pixels of the usual 512
        m.grid_levels, m.grid_finest, m.grid_log2_entries = 12, 512, 15  # 512: a cell is about a pixel of 256
        m.ambient_levels, m.ambient_finest, m.ambient_log2_entries = 8, 256, 14  # sounds of a minute fill no more
        m.torso_finest = 512  # twice the picture's pixels; finer levels have nothing to learn from
        m.occupancy_side = 64  # an eighth of the cells: a refresh costs 12 GFLOP instead of 96
        m.occupancy_box_only = True  # half of the cube is never marched
        m.occupancy_seen = 0.3  # what few frames see stays fog at the picture's edge, which other poses show
        m.chunk = 2048  # activations of a chunk stay in the cache
        m.waves = 2  # same picture and gradients (a sample behind an opaque one has none), fewer samples
        # 50 times fewer steps need larger ones: with those of `full` the head is still fog after 300 steps (21 dB on a
        # small synthetic clip, against 30 dB; hashed tables are slower than tiled ones to clear it as well).
        h.lr_tables, h.lr_net, h.lr_audio_attention = 2e-2, 2e-3, 5e-3
        t.lr_tables, t.lr_net = 2e-2, 2e-3
        # A short schedule must show the sound path every frame often: many frames of few rays (benchmarks/NOTES.md)
        c.train.speech.steps = 800
        h.steps = 6000
        h.frames, h.rays = 16, 256
        h.sampler = "close"  # a quarter of the rays on the lips, a sixth on the eyes
        h.rare = 0.15
        h.lambda_speech, h.lr_audio = 1e-3, 5e-4  # what the speech stage has learnt is refined, not forgotten
        h.lambda_amb = 1e-3
        lips.steps, lips.rays, lips.frames = 1000, 4096, 2
        lips.first_rate = 0.3  # a short head stage has more left to learn than one of 200 000 steps
        t.steps, t.rays = 2500, 8192
        h.ema_every = lips.ema_every = t.ema_every = 20  # the schedule is 50 times shorter
    if variant == "demo":
        c.train.speech.steps = 500
        h.steps = 3000
        lips.steps, t.steps = 500, 1000
    if variant == "smoke":
        c.data.size = 32
        m.grid_levels, m.grid_finest, m.grid_log2_entries = 6, 128, 10
        m.ambient_levels, m.ambient_finest, m.ambient_log2_entries = 4, 64, 10
        m.torso_levels, m.torso_finest, m.torso_log2_entries = 4, 64, 10
        m.occupancy_side = 32
        m.occupancy_box_only = True
        m.chunk = 1024
        m.code_rows = 64
        h.steps, h.rays = 60, 256
        h.lr_tables, h.lr_net, h.lr_audio_attention = 2e-2, 5e-3, 5e-3  # 60 steps instead of 200 000
        lips.steps, lips.rays, lips.patch = 40, 256, 8
        t.steps, t.rays = 40, 256
        h.ema_every = lips.ema_every = t.ema_every = 5
        c.train.log_every = 10
        c.train.preview_every = 30
        c.train.checkpoint_every = 20
        c.eval.max_frames = 2
        c.eval.chunk_rays = 1024
    return c
