"""Ten minutes of video train in a few gigabytes of memory."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import tiny_dataset
from tkjax import contract
from tkjax.media import audio, images

SIZE, N = 256, 15_000
TRAIN = """
import resource, sys
from configs import er_nerf
from tkjax.data.dataset_clip import DatasetClip
from tkjax.train.loop import train
root, workdir = sys.argv[1:]
config = er_nerf.get_config("cpu")
config.train.head.steps, config.train.preview_every = 40, 20
clip = DatasetClip(root, workdir + "/cache", size=config.data.size, preload="disk")
train(config, clip, workdir)
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def long_dataset(root: Path) -> None:
    """Ten minutes of a few smooth pictures in turn, one pose, noise for sound."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    label = np.where(np.hypot(x - 0.5, y - 0.45) < 0.3, 1, np.where(y > 0.75, 3, 0)).astype(np.uint8)
    encoded = []
    for k in range(8):
        rgb = (127 + 100 * np.sin(np.stack([7 * x + k, 9 * y, 5 * (x + y) - k], -1))).astype(np.uint8)
        torso = np.concatenate([rgb, np.where(label == 3, 255, 0).astype(np.uint8)[..., None]], -1)
        encoded.append((images.encode_jpeg(rgb), images.encode_png(torso), images.encode_png(label)))
    pose = np.eye(4, dtype=np.float32)
    pose[2, 3] = 3.3
    camera = {"fx": 600.0, "fy": 600.0, "cx": SIZE / 2, "cy": SIZE / 2}
    face, lips = np.array([80, 60, 176, 190], np.int32), np.array([108, 140, 148, 180], np.int32)
    with tiny_dataset.writer(root, SIZE, SIZE, camera=camera) as w:
        for begin in range(0, N, contract.SHARD_FRAMES):
            n = min(contract.SHARD_FRAMES, N - begin)
            chosen = [encoded[(begin + i) % len(encoded)] for i in range(n)]
            boxes = {name: np.tile(lips if "lips" in name else face, (n, 1)) for name in contract.BOXES}
            w.add({
                "image_bytes": [c[0] for c in chosen],
                "torso_bytes": [c[1] for c in chosen],
                "label_bytes": [c[2] for c in chosen],
                "cam_to_world": np.tile(pose, (n, 1, 1)),
                "landmarks_px": np.full((n, 68, 2), SIZE / 2, np.float32),
                **boxes,
                "expression": np.zeros((n, len(tiny_dataset.NAMES)), np.float32),
                "eye_closed": np.zeros(n, np.float32),
                "confidence": np.ones(n, np.float32),
            })  # fmt: skip
        w.add_file("background.png", images.encode_png(np.full((SIZE, SIZE, 3), 90, np.uint8)))
        features = audio.logmel_features(audio.logmel(0.1 * rng.standard_normal(N * 640).astype(np.float32))).features
        contract.save_audio_features(root.parent / "mel.npz", features=features, **audio.LOGMEL)
        w.add_file("audio_logmel.npz", root.parent / "mel.npz")


@pytest.mark.slow  # decodes 15,000 frames and writes a cache of seven gigabytes
def test_ten_minutes_train_in_under_four_gigabytes(tmp_path):
    long_dataset(tmp_path / "dataset")
    command = [sys.executable, "-c", TRAIN, str(tmp_path / "dataset"), str(tmp_path / "work")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0, done.stderr[-2000:]
    peak_mb = int(done.stdout.rsplit("peak", 1)[1])
    print(f"peak resident memory {peak_mb} MB")
    assert peak_mb < 4000
