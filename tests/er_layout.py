"""A dataset of the contract as the folder that ER-NeRF's (or a relative's) preprocessing would have left."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np

from tkjax import contract
from tkjax.media import audio, images

COLOURS_BGR = np.array([[255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)  # er-nerf.md §2
CLASS_OF_LABEL = np.array([0, 1, 14, 16], np.uint8)
SAVE_TRACK = """import sys, numpy, torch
d = numpy.load(sys.argv[1])
torch.save({k: torch.from_numpy(d[k]) for k in d.files}, sys.argv[2])
"""


def json_pose(cam_to_world: np.ndarray) -> list:
    """Contract pose -> transform_matrix in metres."""
    m = np.array(cam_to_world, np.float64)
    m[:3, 3] /= 4
    return m.tolist()


def tracker(cam_to_world: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(euler, trans) of the tracker for contract poses [n,4,4]: R = Rx(a) Ry(b) Rz(-c), x_cam = R x + t in 10 cm."""
    pose = np.asarray(cam_to_world, np.float64)
    r = pose[:, :3, :3].transpose(0, 2, 1)
    t = -np.einsum("nij,nj->ni", r, pose[:, :3, 3] / 4 * 10)
    b = np.arcsin(r[:, 0, 2])
    a = np.arctan2(-r[:, 1, 2], r[:, 2, 2])
    c = np.arctan2(r[:, 0, 1], r[:, 0, 0])
    return np.stack([a, b, c], 1), t


def write_track(folder: Path, cam_to_world: np.ndarray, focal: float, seed: int = 0) -> np.ndarray:
    """track_params.pt (made by a process of its own); the expression table."""
    euler, trans = tracker(cam_to_world)
    exp = np.random.default_rng(seed).standard_normal((len(euler), 79)).astype(np.float32)
    np.savez(folder / "track.npz", exp=exp, euler=euler.astype(np.float32), trans=trans.astype(np.float32),
             focal=np.float32([focal]), id=np.zeros((1, 100), np.float32))  # fmt: skip
    subprocess.run([sys.executable, "-c", SAVE_TRACK, folder / "track.npz", folder / "track_params.pt"], check=True)
    (folder / "track.npz").unlink()
    return exp


def write_csv(folder: Path, eye_closed: np.ndarray, name: str = " AU45_r") -> None:
    """au.csv with OpenFace's frame numbers from 1."""
    rows = [f"frame, face_id,{name}, AU45_c"]
    rows += [f"{i + 1}, 0, {2 * v:.6f}, 0.00" for i, v in enumerate(eye_closed)]
    (folder / "au.csv").write_text("\n".join(rows) + "\n")


def coefficients(frame: int, count: int = 46) -> list[float]:
    """Of a frame of NeRFBlendShape's json."""
    return np.round(np.random.default_rng([frame, 46]).uniform(0, 0.8, count), 4).tolist()


def export(root: Path, folder: Path, features: dict[str, np.ndarray] | None = None, system: str = "er_nerf") -> Path:
    """Write the dataset at `root` into `folder` as `system` (a key of `folder_layout.SYSTEMS`) lays it out.

    features: {"aud_ds.npy": windows [N,16,29], …}. Pictures of the target are jpegs of quality 98.
    """
    d = contract.Dataset(root)
    ad, avatar, blend = (system == name for name in ("ad_nerf", "avatar_ernerf", "nerfblendshape"))
    targets = "com_imgs" if ad else "head_imgs" if blend else "gt_imgs"
    for name in ("ori_imgs", "parsing", targets, *(() if ad or blend else ("torso_imgs",))):
        (folder / name).mkdir(parents=True)
    plate = images.decode_png(d.path(contract.BACKGROUND).read_bytes())
    plate_bytes = images.encode_jpeg(plate, 100)
    (folder / "bc.jpg").write_bytes(plate_bytes)
    plate = images.decode_rgb(plate_bytes)
    half = 0.5 if ad or blend else 0.0
    points, poses = d.landmarks68() - half, d.column("cam_to_world")
    for i in range(d.n_frames):
        data = d.frame_bytes("image_bytes", i)
        (folder / f"ori_imgs/{i}.jpg").write_bytes(data)
        np.savetxt(folder / f"ori_imgs/{i}.lms", points[i], "%f")
        label = images.decode_png(d.frame_bytes("label_bytes", i))
        cv2.imwrite(str(folder / f"parsing/{i}.png"), COLOURS_BGR[label])
        shown = label == contract.LABEL_HEAD if blend else label > 0
        target = np.where(shown[..., None], images.decode_rgb(data), plate)
        (folder / f"{targets}/{i}.jpg").write_bytes(images.encode_jpeg(target, 98))
        if not (ad or blend):
            (folder / f"torso_imgs/{i}.png").write_bytes(d.frame_bytes("torso_bytes", i))
        if avatar:
            (folder / "parsing_label").mkdir(exist_ok=True)
            cv2.imwrite(str(folder / f"parsing_label/{i}.png"), CLASS_OF_LABEL[label])
    fx, _, cx, cy = d.intrinsics
    for part, (a, b) in (("train", d.train_range), ("val", d.heldout_range)):
        frames = [{"img_id": i, "aud_id": i, "transform_matrix": json_pose(poses[i])} for i in range(a, b)]
        if ad:
            frames = [{**f, "face_rect": [0, 0, d.width, d.height]} for f in frames]
        head = {"focal_len": fx, "cx": cx - half, "cy": cy - half}
        if blend:
            frames = [{**f, "exp_ori": coefficients(f["img_id"]), "exp": [0.5]} for f in frames]
            head = {"fx": fx, "fy": fx, "cx": cx - half, "cy": cy - half, "h": d.height, "w": d.width}
        (folder / f"transforms_{part}.json").write_text(json.dumps({**head, "frames": frames}))
    if system in ("er_nerf", "avatar_ernerf"):
        write_csv(folder, d.column("eye_closed"), "AU45_r" if avatar else " AU45_r")
    for name, windows in (features or {}).items():
        np.save(folder / name, windows)
    shutil.copy(d.path(contract.AUDIO), folder / ("audio.wav" if avatar else "aud.wav"))
    return folder


def portrait(root: Path, n: int = 14, height: int = 48, width: int = 40, seed: int = 0) -> Path:
    """A small drawn dataset that obeys a camera: fixed points of a head, projected by poses that move."""
    rng = np.random.default_rng(seed)
    head = rng.uniform([-0.35, -0.45, 0.0], [0.35, 0.45, 0.3], (68, 3))
    euler = 0.25 * rng.standard_normal((n, 3))
    trans = np.array([0.0, 0.0, -8.5]) + 0.3 * rng.standard_normal((n, 3))
    poses = np.tile(np.eye(4), (n, 1, 1))
    for k in range(n):
        (ca, cb, cc), (sa, sb, sc) = np.cos(euler[k]), np.sin(euler[k])
        r = np.array([[1, 0, 0], [0, ca, -sa], [0, sa, ca]]) @ np.array([[cb, 0, sb], [0, 1, 0], [-sb, 0, cb]])
        r = r @ np.array([[cc, sc, 0], [-sc, cc, 0], [0, 0, 1]])
        poses[k, :3, :3], poses[k, :3, 3] = r.T, -r.T @ trans[k] / 10 * 4
    f = 2.6 * height
    intrinsics = np.array([f, f, width / 2, height / 2])
    local = np.einsum("nji,nvj->nvi", poses[:, :3, :3], head[None] - poses[:, None, :3, 3])
    points = intrinsics[2:] + intrinsics[:2] * np.stack([local[..., 0], -local[..., 1]], -1) / -local[..., 2:]
    y, x = np.mgrid[:height, :width]
    plate = np.stack([60 + 2 * y, 200 - 2 * x, 90 + y + x], -1).astype(np.uint8)
    rows = {"image_bytes": [], "label_bytes": [], "torso_bytes": []}
    for k in range(n):
        cx, cy = points[k].mean(0)
        label = np.zeros((height, width), np.uint8)
        label[(np.abs(x - cx) < width * 0.4) & (y > cy + 0.2 * height)] = contract.LABEL_TORSO
        label[(np.abs(x - cx) < width * 0.15) & (y > cy) & (y < cy + 0.35 * height)] = contract.LABEL_NECK
        label[((x - cx) / (0.3 * width)) ** 2 + ((y - cy) / (0.32 * height)) ** 2 < 1] = contract.LABEL_HEAD
        shade = np.array([[30, 160, 40], [200, 150, 120], [170, 120, 100], [60, 60, 130]], np.uint8)
        rgb = shade[label]
        rows["image_bytes"].append(images.encode_jpeg(rgb, 96))
        rows["label_bytes"].append(images.encode_png(label))
        part = (label >= contract.LABEL_NECK)[..., None]
        rows["torso_bytes"].append(images.encode_png(np.concatenate([rgb * part, 255 * part], -1).astype(np.uint8)))
    points = points.astype(np.float32)
    camera = dict(zip(("fx", "fy", "cx", "cy"), intrinsics.tolist(), strict=True))
    with contract.DatasetWriter(root, subject="drawn", height=height, width=width, camera=camera,
                                landmark_scheme="ibug68", expression_names=(), source={}, tools={}) as w:  # fmt: skip
        w.add({
            **rows, "cam_to_world": poses.astype(np.float32), "landmarks_px": points,
            **contract.boxes_from_landmarks68(points, height, width), "expression": np.zeros((n, 0), np.float32),
            "eye_closed": rng.random(n).astype(np.float32), "confidence": np.ones(n, np.float32),
        })  # fmt: skip
        w.add_file(contract.BACKGROUND, images.encode_png(plate))
        wav = root.parent / f".{root.name}.wav"
        audio.write_wav(wav, (0.2 * rng.standard_normal(640 * n)).clip(-1, 1).astype(np.float32))
        w.add_file(contract.AUDIO, wav)
        wav.unlink()
    return root
