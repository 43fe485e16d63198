"""`python -m preprocess.importers.dataset --source DIR --workdir W`: an old project's folder becomes W/dataset.

AD-NeRF, RAD-NeRF, ER-NeRF, Avatar-ERNeRF and NeRFBlendShape folders are told apart by their files
(`folder_layout.recognise`). Frame k of the dataset is picture `first + k`, where `first` is the smallest img_id of the
json that has a picture: nothing that is missing moves another frame. What is missing is made up from its surroundings
and named in the summary; frames without landmarks, pose, picture or labels, and frames that the json does not name,
have confidence 0, which keeps them out of training. `x_picture_missing` marks those whose picture is made up, so that
nobody scores against it.
"""

import argparse
import collections
import dataclasses
import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

import tkjax
from preprocess.command import exit_code
from preprocess.importers import (
    folder_layout,
    folder_plan,
    folder_sound,
    frame_pictures,
    misnumbering,
    numbering,
    track_columns,
    whole_frames,
)
from preprocess.importers.folder_layout import SYSTEMS, Notes
from preprocess.importers.folder_plan import Plan, make_plan, sound_numbers, split_of
from preprocess.importers.frame_pictures import Files, Pictures
from preprocess.importers.whole_frames import Full
from preprocess.resumable import progress, say, sha256_file
from preprocess.workers import native, ordered
from tkjax import contract
from tkjax.contract import DatasetWriter
from tkjax.errors import UserError
from tkjax.formats import tables, transforms
from tkjax.media import images
from tkjax.media.images import decode_rgb, encode_png, resize_area

BLOCK = contract.SHARD_FRAMES
ALIKE_DB = 28.0  # a target picture farther than this from frame + labels + plate is named
MISSING = "x_picture_missing"
PICTURES_OF_A_SOURCE = 8
MODULES = (
    track_columns,
    whole_frames,
    folder_layout,
    numbering,
    frame_pictures,
    folder_plan,
    misnumbering,
    folder_sound,
    images,
    tables,
    transforms,
)


# ---------------------------------------------------------------- pictures


def frame_files(plan: Plan) -> list[Files]:
    out = []
    for i in plan.ids.tolist():
        f = Files(*(plan.files[k].get(i) for k in ("ori_imgs", "targets", "parsing", "parsing_label", "torso_imgs")))
        plan.notes.used |= {p for p in dataclasses.astuple(f) if p is not None}
        out.append(f)
    return out


def order_is_swapped(plan: Plan, points: np.ndarray) -> bool:
    """Whether the colour maps were written red-green-blue, seen on up to 8 frames."""
    have = [k for k, i in enumerate(plan.ids.tolist()) if i in plan.files["parsing"] and i in plan.files["lms"]]
    pairs = []
    for k in have[:: max(1, len(have) // 8)][:8]:
        try:
            rgb = decode_rgb(plan.files["parsing"][int(plan.ids[k])].read_bytes())
            pairs.append((rgb, points[k] * (rgb.shape[1] / plan.size[1], rgb.shape[0] / plan.size[0])))
        except UserError:
            continue
    swapped = frame_pictures.is_swapped(pairs)
    if swapped:
        plan.notes.said.append("the parsing pictures hold a red head: read in red-green-blue order")
    return swapped


def read_plate(plan: Plan, frames: list[Files], swapped: bool) -> np.ndarray:
    """bc.jpg at the size of the frames; where there is none, what the frames show of the background."""
    for name in ("bc.jpg", "bc.png"):
        path = plan.root / name
        if path.is_file():
            plan.notes.used.add(path)
            plate = decode_rgb(path.read_bytes(), str(path))
            if plate.shape[:2] != plan.size:
                plan.notes.said.append(f"{name} has {plate.shape[1]}x{plate.shape[0]} pixels: resized to the frames'")
                plate = resize_area(plate, plan.size)
            plan.notes.took.append(f"{name} -> background.png")
            return plate
    plan.notes.said.append("no bc.jpg: the plate is made from what the frames show of the background")
    with native("OpenCV (cv2)"):
        from preprocess.regions.plate import CLEAR, plate_from, sample_frames

    def pairs():
        for k in sample_frames(len(frames)):
            f = frames[k]
            image = frame_pictures.read_image(f.target or f.image, plan.size) if f.target or f.image else None
            label = frame_pictures.read_label(f.parsing, plan.size, swapped) if f.parsing else None
            if image is not None and label is not None:
                yield image[1], label != contract.LABEL_BACKGROUND

    try:
        return plate_from(pairs(), CLEAR * max(plan.size))[0]
    except ValueError as e:
        raise UserError(f"{plan.root}: has no bc.jpg, and {e}; give the background picture as bc.jpg") from e


def completed(results: Iterator[Pictures], want_classes: bool) -> Iterator[tuple[Pictures, Pictures]]:
    """(what was there, with the gaps filled) of each frame: from the last whole frame, at the start from the next."""
    waiting: list[Pictures] = []
    whole = None
    for p in results:
        if p.image and p.label and p.torso and (p.classes or not want_classes):
            yield from ((w, _filled(w, p)) for w in waiting)
            waiting, whole = [], p
            yield p, p
        elif whole is None:
            waiting.append(p)
        else:
            yield p, _filled(p, whole)
    if waiting:
        raise UserError("no frame of the folder has both a readable picture and labels, expected at least one")


def _filled(p: Pictures, whole: Pictures) -> Pictures:
    if p.image is None:
        return whole
    return dataclasses.replace(
        p, label=p.label or whole.label, torso=p.torso or whole.torso, classes=p.classes or whole.classes
    )


def blocks(
    plan: Plan, plate: np.ndarray, swapped: bool, frames: list[Files], full: Full, folder: Path
) -> Iterator[dict[str, list]]:
    """Encoded pictures of runs of frames, and whether each can be trained on; holes go to the notes.

    The whole frames are written to `folder` on the way.
    """
    notes, want_classes = plan.notes, bool(plan.files["parsing_label"])
    want_torso = bool(plan.files["torso_imgs"])
    differences: list[tuple[float, int]] = []
    rows: dict[str, list] = {}
    mattes = whole_frames.encode(full, plan.ids, plan.size, folder) if full.video else iter(())
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        results = ordered(
            pool, frame_pictures.convert, ((f, plan.size, plate, swapped, want_torso) for f in frames), 16
        )
        made = completed(results, want_classes)
        for i, (found, p) in zip(plan.ids.tolist(), progress(made, len(frames), "import"), strict=True):
            for text in found.problems:
                notes.hole(text, [i])
            if found.image is None:
                notes.hole("no picture: confidence 0, the nearest earlier frame stands in", [i])
            elif found.label is None:
                notes.hole("no labels: confidence 0, those of the nearest earlier frame stand in", [i])
            elif want_classes and found.classes is None:
                notes.hole("no parsing_label: classes of the nearest earlier frame", [i])
            if found.difference is not None:
                differences.append((found.difference, i))
            row = {"image_bytes": p.image, "label_bytes": p.label, "torso_bytes": p.torso}
            row |= {"class_bytes": p.classes} if want_classes else {}
            matte = next(mattes, None)  # None too where the video ends early, which `encode` has then refused
            row |= {"alpha_bytes": matte} if full.alpha else {}
            row |= {MISSING: found.image is None, "whole": found.image is not None and found.label is not None}
            for name, value in row.items():
                rows.setdefault(name, []).append(value)
            if len(rows["image_bytes"]) == BLOCK:
                yield rows
                rows = {}
    collections.deque(mattes, 0)  # to its end, where it closes its files
    if rows:
        yield rows
    _report_differences(differences, "gt_imgs" if plan.files["gt_imgs"] else "com_imgs", notes)


def _report_differences(differences: list[tuple[float, int]], folder: str, notes: Notes) -> None:
    if not differences:
        return
    values = np.array([d for d, _ in differences])
    notes.took.append(f"{folder}: compared, frame + parsing + plate agrees to {np.median(values):.1f} dB (median)")
    far = [i for d, i in differences if d < ALIKE_DB]
    if far:
        worst, at = min(differences)
        notes.said.append(
            f"the targets in {folder} differ from frame + parsing + plate at {tables.ranges(far)} "
            f"(worst {worst:.1f} dB at {at}); frame + parsing + plate is trained on"
        )


# ---------------------------------------------------------------- writing


def identity(plan: Plan) -> list[str]:
    """What makes a folder the same source even when some of it is mended: its first pictures."""
    pictures = plan.files["ori_imgs"] or plan.files["targets"]
    return [sha256_file(pictures[i]) for i in sorted(pictures)[:PICTURES_OF_A_SOURCE]]


def same_source(a: list[str], b: list[str]) -> bool:
    """Whether at least half of the shorter list is in the other one."""
    return 2 * len(set(a) & set(b)) >= max(1, min(len(a), len(b)))


def check_place(out: Path, plan: Plan) -> dict | None:
    """The manifest of an earlier import of this source at `out`, None where there is nothing; else UserError."""
    if not (out / contract.MANIFEST).exists():
        return None
    try:
        manifest = contract.Dataset(out, verify=False).manifest
    except contract.ContractError as e:
        raise UserError(f"{out}: holds a dataset that cannot be read ({e}); remove it or choose another place") from e
    if not same_source(manifest["source"].get("identity", []), identity(plan)):
        raise UserError(
            f"{out}: holds the dataset {manifest['subject']!r} of another source; import into another --workdir, or "
            "remove that folder first"
        )
    return manifest


def content(plan: Plan) -> str:
    """Digest of every file that the import reads, and of the code that reads them."""
    digest = hashlib.sha256(plan.system.encode())
    paths = sorted(plan.notes.used)
    for path in progress(paths, len(paths), "look", "files"):
        if path.is_file():
            digest.update(f"{path.relative_to(plan.root).as_posix()}\0{sha256_file(path)}\n".encode())
    for module in MODULES:
        digest.update(sha256_file(Path(module.__file__)).encode())
    digest.update(sha256_file(Path(__file__)).encode())
    return digest.hexdigest()


def run(source: Path, out: Path, system: str | None = None) -> Path:
    """Import a folder to `out` and print what was recognised, taken, left and missing; returns `out`."""
    notes = Notes()
    system, why = folder_layout.recognise(source, system)
    say(f"recognised: {SYSTEMS[system]} dataset, because of {', '.join(why)}")
    plan = make_plan(source, system, notes)
    old = check_place(out, plan)
    members, names = folder_plan.columns(plan)
    split = split_of(plan)
    swapped = order_is_swapped(plan, members["landmarks_px"])
    frames = frame_files(plan)
    plate = read_plate(plan, frames, swapped)
    full = whole_frames.look(source, plan.ids, plan.size, plate, notes)
    with tempfile.TemporaryDirectory(prefix="tkjax-import-") as folder:
        sounds = take_sound(plan, Path(folder))
        digest = content(plan)
        unchanged = old is not None and old["source"].get("sha256") == digest
        if unchanged:
            say(f"dataset: unchanged ({old['n_frames']} frames in {out})")
        else:
            full.facts |= {"kind": "import", "layout": system, "sha256": digest, "identity": identity(plan)}
            full.facts |= {"first_img_id": int(plan.ids[0])}
            made = blocks(plan, plate, swapped, frames, full, Path(folder))
            write(out, plan, members, names, split, full.facts, plate, made, sounds, Path(folder))
    folder_plan.summary(plan, out, split, unchanged)
    return out


def take_sound(plan: Plan, folder: Path) -> list[Path]:
    """audio.wav and audio_*.npz of the frames in `folder`."""
    aud, notes, out, taken = sound_numbers(plan), plan.notes, [], {}
    path = folder_sound.sound_file(plan.root)
    if path is not None:
        notes.used.add(path)
        pcm = folder_sound.sound_of_frames(path, aud, plan.ids, notes)
        out += folder_sound.write_sound(pcm, folder)
        taken["logmel"] = (16, 80)
        notes.took.append(f"{path.name} -> audio.wav and audio_logmel.npz (logmel, window 16/2/8)")
    for array in folder_sound.arrays(plan.root):
        made = folder_sound.take_array(array, taken, aud, plan.ids, folder, notes)
        out += [made] if made else []
    refused = [s for s in notes.said if s.startswith("not used: ")]
    if path is None and not out and refused:
        raise UserError(f"{plan.root}: holds no sound (aud.wav, audio.wav or a video), and {'; '.join(refused)[10:]}")
    if path is None and not out:
        notes.said.append("neither sound nor feature arrays: no system can learn to speak from this dataset")
    elif path is None:
        notes.said.append("no sound file: log-mel features are missing, and new sound needs feature arrays of its own")
    return out


def write(out, plan, members, names, split, facts, plate, made, sounds, folder) -> None:
    """Write the dataset, a block of frames in memory at a time; the old one stays until the new one is whole."""
    tools = {"tkjax": tkjax.__version__, "importer": plan.system}
    writer = DatasetWriter(
        out, subject=plan.subject, height=plan.size[0], width=plan.size[1], camera=plan.camera,
        landmark_scheme="ibug68", expression_names=names, source=facts, tools=tools, split=split,
        extra_members={MISSING: ("bool", ())},
    )  # fmt: skip
    at = 0
    with writer:
        for block in made:
            n = len(block["image_bytes"])
            part = {name: a[at : at + n] for name, a in members.items()}
            part["confidence"] = part["confidence"] * np.array(block.pop("whole"), np.float32)
            writer.add({**part, **block, MISSING: np.array(block[MISSING])})
            at += n
        writer.add_file("background.png", encode_png(plate))
        for path in (*sounds, *sorted(folder.glob("full*.mp4"))):
            writer.add_file(path.name, path)


def main(argv: list[str] | None = None) -> int:
    """Command line; 0, or 2 with one sentence on standard error."""
    parser = argparse.ArgumentParser(
        "preprocess.importers.dataset", description="A dataset from an older project's folder."
    )
    parser.add_argument(
        "--source", required=True, help="folder of AD-NeRF, RAD-NeRF, ER-NeRF, Avatar-ERNeRF or NeRFBlendShape"
    )
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--workdir", help="the dataset goes to WORKDIR/dataset")
    place.add_argument("--out", help="the dataset's own folder")
    parser.add_argument("--system", default="", help=f"force the kind of folder: {', '.join(SYSTEMS)}")
    args = parser.parse_args(argv)
    out = Path(args.out or Path(args.workdir, "dataset"))
    return exit_code(lambda: run(Path(args.source), out, args.system or None))


if __name__ == "__main__":
    sys.exit(main())
