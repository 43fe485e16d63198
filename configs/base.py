"""Every setting at its default, with unit and reason. A system's file states only its differences."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.system = ""  # module under tkjax/models
    c.variant = ""  # filled in by the system's file
    c.seed = 0
    c.ops_backend = ""  # kernels: triton, cpu or reference, an error where it does not work; empty: the best

    c.data = ConfigDict()
    c.data.size = 0  # longer side of the training picture in pixels; 0 keeps the dataset's
    c.data.preload = "disk"  # disk (memory-mapped cache), host, device
    c.data.audio_kind = "auto"  # which audio_<kind>.npz drives the model; auto: logmel, else what the dataset has
    c.data.split = "last"  # held-out frames: last (the clip's end) or blocks (2 s each, spread over the clip)

    c.model = ConfigDict()

    c.train = ConfigDict()
    c.train.frames = 0  # frames in the global batch; 0 = one per device
    c.train.log_every = 20  # steps
    c.train.preview_every = 500  # steps
    c.train.checkpoint_every = 500  # steps
    c.train.keep_checkpoints = 2

    # the network from sound to expression, of systems that are driven by expression and not by sound (tkjax.voice)
    c.train.voice = ConfigDict()
    c.train.voice.steps = 200  # 0 trains none; each is 0.2 s of a core
    c.train.voice.width = 128  # channels within: 0.4 million parameters; 192: 0.9
    c.train.voice.rate = 2e-3  # of AdamW at its highest

    c.eval = ConfigDict()
    c.eval.max_frames = 0  # held-out frames to score; 0 = all
    c.eval.chunk_rays = 8192  # pixels rendered at once
    return c


def speech() -> ConfigDict:
    """train.speech: the audio networks alone learn the shape of the lips from the sound (ours; 0 steps: not at all)."""
    s = ConfigDict()
    s.steps = 0
    s.frames = 64  # in a step; no pixel is drawn
    s.lr = 2e-3
    s.final_factor = 0.05
    s.decay = 1e-2
    s.noise = 0.3  # added to the sound features, in their own unit (about a third of a standard deviation)
    s.ema_every = 20
    s.seed = 0
    return s
