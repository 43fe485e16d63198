"""Train a stub in a process of its own: `python -m tests.stubs.run WORKDIR '{"system": ..., "devices": ...}'`.

Prints one json line per event, and as its last line the trained numbers in full precision.
"""

import json
import sys
import time

import jax
import numpy as np

from tests.stubs.clip import FakeClip
from tests.stubs.config import smoke_config, stub_config
from tkjax.models import systems
from tkjax.train import loop
from tkjax.train.loop import initialise_distributed


class SlowClip(FakeClip):
    """A clip on a slow disk, so that a test can interrupt a run of tiny steps."""

    delay_s = 0.0

    def batch(self, *args, **kwargs):
        time.sleep(self.delay_s)
        return super().batch(*args, **kwargs)


def main(workdir, system="staged", steps=20, frames=0, devices=0, delay_s=0.0, save_every=10, distributed=None):
    if devices:
        jax.config.update("jax_num_cpu_devices", devices)
    initialise_distributed(**(distributed or {}))
    config = smoke_config(system) if system in systems() else stub_config(system, steps)
    config.train.frames = frames
    config.train.checkpoint_every, config.train.log_every = save_every, 3
    clip = SlowClip()
    clip.delay_s = delay_s
    variables = loop.train(
        config, clip, workdir, on_event=lambda name, facts: print(json.dumps([name, facts]), flush=True)
    )
    assert "torch" not in sys.modules, "jax and torch never meet in one process"
    flat = [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(variables)]
    print(json.dumps(["result", np.concatenate(flat).tolist()]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], **json.loads(sys.argv[2]))
