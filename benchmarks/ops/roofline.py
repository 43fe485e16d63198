"""How fast the ER-NeRF head could be at most on the machine that was measured, from counted work alone.

The counts are those of the er-nerf dossier (§10): 46,368 FLOP and 144 gathers of 4 bytes a sample in inference,
146,208 FLOP and as many gathers and atomic adds a sample in training, 35,232 FLOP a cell of an occupancy refresh.
A gather counts as 4 bytes at the copy's rate, which is kind where tables miss the cache and unkind where they hit;
either way the products bound.
"""

import numpy as np

from benchmarks.ops import inputs

FIELD_FLOP = 46_368
TRAIN_FLOP = 146_208
GATHERS = 144
DENSITY_FLOP = 35_232
REFRESH_EVERY = 16  # steps
REFRESH_CELLS = 64**3 // 2  # the box is half of the cube
FRAME = 256
STEP_RAYS = 4096


def samples_per_ray(side: int = 64) -> float:
    """Of the benchmark's picture, all that a march keeps."""
    return float(np.mean(inputs.marched(FRAME, 0.0, side)[1]))


def bounds(matmul_gflops: float, copy_gbyte_s: float) -> list[dict]:
    """Rows: what, gflop, gbyte, compute_ms, bandwidth_ms and at most so many per second."""
    each = samples_per_ray()
    sample_bytes = GATHERS * 4 + 12 + 16
    picture, step = each * FRAME**2, each * STEP_RAYS
    refresh = REFRESH_CELLS * DENSITY_FLOP / REFRESH_EVERY
    work = {
        "field inference, 1,000,000 samples": (1e6 * FIELD_FLOP, 1e6 * sample_bytes),
        f"frame {FRAME}x{FRAME}, {each:.2f} samples a ray": (picture * FIELD_FLOP, picture * sample_bytes),
        f"training step, {STEP_RAYS} rays, {each:.2f} samples a ray": (step * TRAIN_FLOP, step * 2 * sample_bytes),
        "the same with its share of an occupancy refresh": (step * TRAIN_FLOP + refresh, step * 2 * sample_bytes),
    }
    rows = []
    for what, (flop, bytes_) in work.items():
        compute, bandwidth = flop / matmul_gflops / 1e9, bytes_ / copy_gbyte_s / 1e9
        rows.append(
            {
                "what": what, "gflop": flop / 1e9, "gbyte": bytes_ / 1e9, "compute_ms": compute * 1e3,
                "bandwidth_ms": bandwidth * 1e3, "per_second": 1.0 / max(compute, bandwidth),
            }
        )  # fmt: skip
    return rows


def lines(rows: list[dict]) -> list[str]:
    return [
        f"roofline: {r['what']}: {r['gflop']:.2f} GFLOP, products {r['compute_ms']:.1f} ms, "
        f"memory {r['bandwidth_ms']:.1f} ms, at most {r['per_second']:.1f}/s"
        for r in rows
    ]
