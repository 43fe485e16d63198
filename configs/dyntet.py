"""DynTet: a mesh out of a tetrahedral grid, driven by windows of coefficients (its dossier; arXiv 2402.17364).

python launch.py --mode=fit --config=configs/dyntet.py:cpu --video=clip.mp4 --workdir=W --consent="..."

Driven by the signal `expression`, no sound is needed. Two stages: head, and fixed (the same while the mesh's topology
stays, which pictures then do not search). Variants: `full` is the released code value by value where its data are not
needed (an accelerator); `cpu` fits a short clip at 256 pixels on two cores; `demo` is `cpu` cut to a few minutes;
`smoke` runs in seconds, for tests. Departures from `full` stand with their reason.
"""

from ml_collections import ConfigDict

from configs import base

VARIANTS = ("full", "cpu", "demo", "smoke")


def get_config(variant: str = "full") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"dyntet has no variant {variant!r}; choose one of {', '.join(VARIANTS)}")
    c = base.get_config()
    c.system, c.variant = "dyntet", variant
    c.data.size = 448

    m = c.model
    m.grid = "bcc"  # kuhn, five or bcc, the best shaped
    m.cells = 51  # a side; as many vertices as the original's file, which is not shipped
    m.box = 2.5  # side of the grid's cube, dm
    # Of the cube, dm. The original's axes begin 2 cm before and 1 cm below the contract's, in the middle of the face;
    # moved back and up, the cube holds the whole head with its hair.
    m.box_centre = (0.0, 0.2, -0.3)
    # Budgets, about twice what the start needs, with two slots a tetrahedron for faces: metrics count what exceeds
    # them, and the mesh has holes there
    m.vertices, m.faces, m.end_points = 65_536, 229_376, 36_864
    m.pixels = 0.6  # of those of a step, that are shaded at most; metrics count what exceeds them
    m.features = 256  # of the code that a window becomes
    m.hidden = 128  # width of the surface's networks
    m.elastic = False  # displacement times elasticity; the original's shipped flag is true and does nothing
    m.normalise = True  # coefficients over their range; the original takes Deep3D's as they are
    m.least_range = 0.1  # a smaller range counts as this, so that noise stays small
    m.material_grid = "hash"  # tiled, tiled_2025: the original's rules, which forget coordinates
    m.material_levels, m.material_features = 16, 2
    m.material_base, m.material_finest = 16, 4096
    m.material_log2_entries = 16  # of a level; the original's tiles have 16^3
    m.material_hidden = 256
    m.material_layers = 5
    m.material_normals = False  # three channels more, which nothing reads
    m.gradient_scale = 1.0  # of the material's gradient; the original's 128 reaches the encoder alone past Adam
    m.chunk = 2048  # pixels that the material takes at once
    # The original's 512 and 16 need filters of 7 GB; a head reflects no picture of the room
    m.light_base, m.light_smallest = 64, 8
    m.light_original_area = False  # the original's areas are one texel off between the halves of a face
    m.eye = "centre"  # original: -t, its slip, right for a head that looks straight ahead alone
    # What the surface starts as: the union of ellipsoids, skull and face of usual proportions, centre and radii in dm
    m.start = ((0.0, 0.4, -0.36, 0.78, 0.93, 0.95), (0.0, -0.15, 0.05, 0.7, 0.85, 0.6))
    m.start_steps, m.start_rate = 1000, 1e-3
    m.start_points = 0  # of the grid, in a step; 0: all

    h = c.train.head = ConfigDict()
    h.steps = 36_000  # 40 000 with the last stage
    h.frames = 4
    h.rare = 0.0  # least share of frames with closed eyes, and of wide open mouths; 0: as often as they come
    h.lr_distance = h.lr_movement = h.lr_material = h.lr_light = 1e-3
    h.decade_steps = 5000  # in which rates fall to a tenth, twice
    h.dilation = 9  # px, of the head's mask where colours are compared
    h.regions = "boxes"  # quarters: the original's
    h.region_size = 64  # px, that boxes are resampled to
    h.quarter_size = (32, 48)  # (h, w) of quarters, px
    h.lambda_region = 0.1
    h.region_perceptual = 0.1  # of the perceptual distance within it
    h.lambda_perceptual = 0.1  # of the whole frame's
    h.perceptual = "auto"  # lpips_alex where its weights are found, else structure
    h.ema_decay = 0.0  # 0: no moving average
    h.ema_every = 1000
    h.seed = 0

    last = c.train.fixed = ConfigDict()
    last.steps = 4000

    if variant in ("cpu", "demo"):
        c.data.size = 256  # a quarter of the pixels of the usual 512
        m.cells = 24  # a cell is 7 pixels: what is finer, the texture draws
        m.vertices, m.faces, m.end_points = 16_384, 49_152, 8192
        m.pixels = 0.4
        m.features, m.hidden = 64, 64  # a quarter of the products of a vertex
        m.material_levels, m.material_finest, m.material_log2_entries = 10, 256, 14  # a cell is about a pixel
        m.material_hidden, m.material_layers = 64, 2  # a thirtieth of the products of a pixel
        m.light_base, m.light_smallest = 16, 4
        m.start_steps, m.start_points = 500, 4096
        h.steps, last.steps = 5000, 1000
        h.frames = 2
        h.rare = 0.15
        h.lr_distance, h.lr_movement, h.lr_material, h.lr_light = 1e-3, 1e-3, 5e-3, 5e-3  # few steps
        h.decade_steps = 3000
        h.region_size = 48
        h.lambda_region = 3.0  # lips are a hundredth of the picture, and what a viewer looks at
        h.lambda_perceptual = 0.0  # half of a step's time
        h.ema_decay, h.ema_every = 0.95, 20
    if variant == "demo":
        h.steps, last.steps = 1500, 300
        h.decade_steps = 900
    if variant == "smoke":
        c.data.size = 32
        m.cells = 6
        m.vertices, m.faces, m.end_points = 2048, 4096, 1024
        m.features, m.hidden = 16, 16
        m.material_levels, m.material_finest, m.material_log2_entries = 4, 64, 10
        m.material_hidden, m.material_layers = 16, 2
        m.light_base, m.light_smallest = 8, 2
        m.start_steps, m.start_points, m.start_rate = 200, 512, 5e-3
        m.pixels = 1.0
        m.chunk = 256
        h.steps, last.steps = 60, 20
        h.frames = 0
        h.lr_distance, h.lr_movement, h.lr_material, h.lr_light = 1e-3, 3e-3, 2e-2, 1e-2  # 60 steps instead of 40 000
        h.decade_steps = 80
        h.region_size = 16
        h.lambda_perceptual = 0.0
        h.perceptual = "structure"
        h.dilation = 2
        c.train.log_every = 10
        c.train.preview_every = 30
        c.train.checkpoint_every = 20
        c.eval.max_frames = 2
    return c
