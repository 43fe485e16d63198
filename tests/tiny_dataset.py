"""Small datasets of the contract for tests, and the golden one of version 1.1 (`python -m tests.tiny_dataset`)."""

import functools
import hashlib
import io
import json
from pathlib import Path

import numpy as np

from tkjax import contract
from tkjax.media import audio, images

GOLDEN = Path(__file__).parent / "golden"  # v1 has no signals (minor version 0), v1_1 has
NAMES = ("jawOpen", "eyeBlinkLeft", "mouthPucker")


@functools.cache
def pictures(height: int, width: int, seed: int, n: int = 5) -> tuple[tuple[bytes, bytes, bytes], ...]:
    """n different (jpeg, torso png, label png)."""
    rng = np.random.default_rng([seed, height, width])
    out = []
    for _ in range(n):
        rgb = rng.integers(0, 256, (height, width, 3), np.uint8)
        rgba = rng.integers(0, 256, (height, width, 4), np.uint8)
        label = rng.integers(0, 4, (height, width), np.uint8)
        out.append((images.encode_jpeg(rgb), images.encode_png(rgba), images.encode_png(label)))
    return tuple(out)


def rotations(n: int, rng: np.random.Generator) -> np.ndarray:
    q = np.linalg.qr(rng.standard_normal((n, 3, 3)))[0]
    q *= np.sign(np.linalg.det(q))[:, None, None]
    poses = np.tile(np.eye(4), (n, 1, 1))
    poses[:, :3, :3], poses[:, :3, 3] = q, rng.standard_normal((n, 3))
    return poses.astype(np.float32)


def frames(n: int, height: int = 12, width: int = 16, seed: int = 0, scheme: str = "ibug68", k: int = 3) -> dict:
    """Random legal frames for `DatasetWriter.add`."""
    rng = np.random.default_rng(seed)
    chosen = [pictures(height, width, seed)[i] for i in rng.integers(0, 5, n)]
    low = rng.integers(0, [width - 1, height - 1], (4, n, 2))
    high = low + 1 + rng.integers(0, np.array([width, height]) - low)
    boxes = np.concatenate([low, np.minimum(high, [width, height])], 2).astype(np.int32)
    return {
        "image_bytes": [c[0] for c in chosen],
        "torso_bytes": [c[1] for c in chosen],
        "label_bytes": [c[2] for c in chosen],
        "cam_to_world": rotations(n, rng),
        "landmarks_px": rng.uniform(-3, width, (n, contract.LANDMARK_SCHEMES[scheme], 2)).astype(np.float32),
        **dict(zip(contract.BOXES, boxes)),
        "expression": rng.standard_normal((n, k)).astype(np.float32),
        "eye_closed": rng.random(n).astype(np.float32),
        "confidence": rng.integers(0, 2, n).astype(np.float32),
    }


def writer(root, height: int = 12, width: int = 16, **options) -> contract.DatasetWriter:
    camera = {"fx": 30.0, "fy": 31.0, "cx": width / 2, "cy": height / 2}
    head = {"subject": "tiny", "landmark_scheme": "ibug68", "expression_names": NAMES, "source": {}, "tools": {"a": 1}}
    head |= {"height": height, "width": width, "camera": camera}
    return contract.DatasetWriter(root, **{**head, **options})


def plate(height: int = 12, width: int = 16, seed: int = 0) -> bytes:
    return images.encode_png(np.random.default_rng([7, seed]).integers(0, 256, (height, width, 3), np.uint8))


def write_tiny(
    root, n: int = 3, height: int = 12, width: int = 16, seed: int = 0, sound: bool = True, **options
) -> dict:
    """A whole small dataset; the manifest."""
    root = Path(root)
    with writer(root, height, width, **options) as w:
        w.add(frames(n, height, width, seed))
        w.add_file("background.png", plate(height, width, seed))
        w.add_file("qa/note.txt", b"seed %d" % seed)
        if sound:
            pcm = 0.1 * np.random.default_rng([8, seed]).standard_normal(n * 640).astype(np.float32)
            base = root.parent / f".{root.name}-{seed}"
            f = audio.logmel_features(audio.logmel(pcm))
            contract.save_audio_features(base.with_suffix(".npz"), features=f.features, **audio.LOGMEL)
            audio.write_wav(base.with_suffix(".wav"), pcm)
            w.add_file("audio_logmel.npz", base.with_suffix(".npz"))
            w.add_file("audio.wav", base.with_suffix(".wav"))
            base.with_suffix(".npz").unlink()
            base.with_suffix(".wav").unlink()
    return w.manifest


def files_of(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def sentence(error) -> str:
    """The message, which must be one line and one sentence."""
    text = str(error.value)
    assert "\n" not in text and ". " not in text and not text.endswith("."), text
    assert "expected" in text
    return text


def assert_equal(dataset: contract.Dataset, wanted: dict) -> None:
    for member, value in wanted.items():
        if member in contract.PICTURES:
            assert [dataset.frame_bytes(member, i) for i in range(dataset.n_frames)] == value
        else:
            got = dataset.column(member)
            assert got.dtype == value.dtype
            np.testing.assert_array_equal(got, value)


def redigest(root: Path, change=lambda manifest: None) -> None:
    """Edit the manifest and give it a digest that fits, as somebody would who means to."""
    manifest = json.loads((root / contract.MANIFEST).read_bytes())
    change(manifest)
    (root / contract.MANIFEST).write_bytes(contract.dump_manifest(manifest))


def rewrite_shard(root: Path, change, k: int = 0, save=None) -> None:
    """Change the arrays of shard k, and make names, hashes and digest fit."""
    old = next(root.glob(f"shard-{k:05d}-*"))
    with np.load(old, allow_pickle=False) as z:
        arrays = {name: z[name] for name in z.files}
    change(arrays)
    out = io.BytesIO()
    (save or contract.write_npz)(out, arrays)
    old.unlink()
    sha = hashlib.sha256(out.getvalue()).hexdigest()
    name = f"shard-{k:05d}-{sha[:8]}.npz"
    (root / name).write_bytes(out.getvalue())

    def edit(m):
        del m["files"][old.name]
        m["files"][name] = sha
        m["shards"][k]["file"] = name

    redigest(root, edit)


def write_golden(root: Path = GOLDEN / "v1_1") -> None:
    """Two frames with every optional member. Needed again only when the contract gets a new version."""
    n, h, w = 2, 4, 6
    extra = {"x_identity": ("float32", (2,)), "x_flag": ("bool", ())}
    with writer(root, h, w, extra_members=extra, source={"sha256": "0" * 64}, licences={"model": "none"}) as out:
        f = frames(n, h, w, seed=11)
        f["depth"] = np.where(np.arange(n * h * w).reshape(n, h, w) % 3 == 0, np.nan, 3.25).astype(np.float16)
        f["alpha_bytes"] = [images.encode_png(np.full((h, w), 7 * i, np.uint8)) for i in range(n)]
        f["eye_area"] = np.float32([0.01, 0.02])
        f["x_identity"] = np.float32([[1, 2], [3, 4]])
        f["x_flag"] = np.array([True, False])
        out.add(f)
        out.add_file("background.png", plate(h, w))


if __name__ == "__main__":
    write_golden()
