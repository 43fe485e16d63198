"""ER-NeRF: tri-plane hash head with region attention, lips finetuning, 2-D torso (er-nerf dossier; ICCV 2023).

python launch.py --mode=fit --config=configs/er_nerf.py:cpu --video=clip.mp4 --workdir=W --consent="..."

Variants: `full` is the paper's code value by value (an accelerator); `cpu` fits a short clip at 256 pixels on two
cores; `demo` is `cpu` cut to a few minutes, for `make demo`; `smoke` runs in seconds, for tests.
Departures from `full` stand with their reason.
"""

from ml_collections import ConfigDict

from configs import hash_head

VARIANTS = ("full", "cpu", "demo", "smoke")


def get_config(variant: str = "full") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"er_nerf has no variant {variant!r}; choose one of {', '.join(VARIANTS)}")
    c = hash_head.get_config("er_nerf", variant)

    m, h, lips, t = c.model, c.train.head, c.train.lips, c.train.torso
    m.grid_levels = 12
    m.grid_base = 64  # resolution of the coarsest level
    m.grid_finest = 512
    m.grid_log2_entries = 14  # entries per level and plane
    m.audio_dim = 32
    m.blink_noise = 0.05  # training adds one uniform draw of ± this to eye_closed, per step and frame
    m.picture_precision = "bfloat16"  # of products in pictures (training: float32): below 1/255, faster; or float32

    h.steps = 100_000
    h.lr_tables = 1e-2
    h.lr_net = 1e-3
    h.lr_audio = 1e-3  # of the convolutions; the originals' rate of the networks
    h.lr_audio_attention = 5e-3
    h.decay_tables = 0.01  # the optimiser's default, which the originals' table groups inherit
    h.decay_audio_attention = 1e-4
    h.final_factor = 0.5  # of every rate, reached at the end
    h.lambda_amb = 1e-4

    lips.steps = 25_000
    lips.samplers = ("lips", "patch")  # alternating
    lips.perceptual_weight = 1.0  # times 0.01 on the lips rectangle, 0.1 on patches

    t.steps = 200_000
    t.lr_tables = 1e-2
    t.lr_net = 1e-3
    t.final_factor = 0.5
    t.lambda_alpha = 0.0  # of the mean alpha: above 0 the torso vanishes where the plate does as well, and is not drawn

    if variant in ("cpu", "demo"):
        c.data.size = 256  # a quarter of the pixels of the usual 512
        m.occupancy_side = 64  # an eighth of the cells: a refresh costs 9 GFLOP instead of 74
        m.occupancy_box_only = True  # half of the cube is never marched
        m.occupancy_seen = 0.3  # what few frames see stays fog at the picture's edge, which other poses show
        m.chunk = 2048  # activations of a chunk stay in the cache
        m.waves = 2  # same picture and gradients (a sample behind an opaque one has none), fewer samples
        # A short schedule must show the sound path every frame often: many frames of few rays (benchmarks/NOTES.md)
        c.train.speech.steps = 800
        h.steps = 8000
        h.frames, h.rays = 16, 256
        h.sampler = "close"  # a quarter of the rays on the lips, a sixth on the eyes
        h.rare = 0.15
        h.mix_sound = True  # lids, brows and hair must not learn by heart what was said
        h.lambda_speech, h.lr_audio = 1e-3, 3e-4  # what the speech stage has learnt is refined, not forgotten
        # 0: the paper's 1e-4 presses on both attentions at every ray, and within 8000 steps nothing presses back enough
        h.lambda_amb = 0.0
        h.ema_every = lips.ema_every = t.ema_every = 20  # the schedule is 20 times shorter
        m.torso_finest = 512  # twice the picture's pixels; finer levels have nothing to learn from
        lips.steps, lips.rays, lips.frames = 1000, 4096, 2
        t.steps, t.rays = 3000, 8192
        t.lambda_alpha = 1e-3
    if variant == "demo":
        c.train.speech.steps = 500
        h.steps = 5000
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
