"""A dataset of the contract as the folder that ER-NeRF's (or a relative's) preprocessing would have left."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np

from tkjax import contract, images

COLOURS_BGR = np.array([[255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)  # er-nerf.md §2
CLASS_OF_LABEL = np.array([0, 1, 14, 16], np.uint8)
SAVE_TRACK = "import sys, numpy, torch; d = numpy.load(sys.argv[1]); torch.save({k: torch.from_numpy(d[k]) for k in d.files}, sys.argv[2])"


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


def export(root: Path, folder: Path, features: dict[str, np.ndarray] | None = None, system: str = "er_nerf") -> Path:
    """Write the dataset at `root` into `folder` as `system` (a key of preprocess.import_layout.SYSTEMS) lays it out.

    features: {"aud_ds.npy": windows [N,16,29], …}. Pictures of the target are jpegs of quality 98.
    """
    d = contract.Dataset(root)
    ad, avatar = system == "ad_nerf", system == "avatar_ernerf"
    for name in ("ori_imgs", "parsing", *(("com_imgs",) if ad else ("gt_imgs", "torso_imgs"))):
        (folder / name).mkdir(parents=True)
    plate = images.decode_png(d.path(contract.BACKGROUND).read_bytes())
    plate_bytes = images.encode_jpeg(plate, 100)
    (folder / "bc.jpg").write_bytes(plate_bytes)
    plate = images.decode_rgb(plate_bytes)
    half = 0.5 if ad else 0.0
    points, poses = d.landmarks68() - half, d.column("cam_to_world")
    for i in range(d.n_frames):
        data = d.frame_bytes("image_bytes", i)
        (folder / f"ori_imgs/{i}.jpg").write_bytes(data)
        np.savetxt(folder / f"ori_imgs/{i}.lms", points[i], "%f")
        label = images.decode_png(d.frame_bytes("label_bytes", i))
        cv2.imwrite(str(folder / f"parsing/{i}.png"), COLOURS_BGR[label])
        target = np.where((label > 0)[..., None], images.decode_rgb(data), plate)
        (folder / f"{'com' if ad else 'gt'}_imgs/{i}.jpg").write_bytes(images.encode_jpeg(target, 98))
        if not ad:
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
        (folder / f"transforms_{part}.json").write_text(json.dumps({**head, "frames": frames}))
    if system in ("er_nerf", "avatar_ernerf"):
        write_csv(folder, d.column("eye_closed"), "AU45_r" if avatar else " AU45_r")
    for name, windows in (features or {}).items():
        np.save(folder / name, windows)
    shutil.copy(d.path(contract.AUDIO), folder / ("audio.wav" if avatar else "aud.wav"))
    return folder
