"""All stages of one clip in order; see `run`."""

import dataclasses
import importlib.metadata
import json
import shutil
from pathlib import Path

import tkjax
from preprocess.stages import Done, Stages, say, sha256_file
from preprocess.workers import native, pool
from tkjax import video
from tkjax.errors import UserError
from tkjax.images import write_atomic
from tkjax.models_dir import FACE_LANDMARKER, find_model

FPS = 25.0
MIN_SECONDS = 2.0
LIBRARIES = ("mediapipe", "torch", "numpy", "scipy", "opencv-contrib-python", "pillow", "av")
LICENCES = {FACE_LANDMARKER: "Google MediaPipe Face Landmarker bundle; Apache-2.0 according to third-party notes"}


@dataclasses.dataclass(frozen=True)
class Options:
    """What the user chose. size: longer side of the output in pixels, 0 keeps the pixels up to 512 and shrinks larger
    pictures to 512. crop: 'auto' cuts a square around the head unless the picture is nearly square and the head fills
    it, 'none' keeps the picture. labels: 'auto', 'colour' or 'bisenet=PATH'. min_face: least height of the face, from
    chin to forehead, in pixels of the source. background_ref: colour or clean plate to cut the person out of, '' keeps
    the background. body_points: file of a body detector's points for the original's head box."""

    video: Path
    workdir: Path
    size: int = 0
    crop: str = "auto"
    models_dir: str | None = None
    audio_kinds: str = "logmel"
    labels: str = "auto"
    min_face: int = 64
    subject: str = ""
    background_ref: str = ""
    body_points: str = ""


def check_clip(path: Path) -> video.VideoInfo:
    """Facts of the clip; UserError when it is no video with sound of at least two seconds."""
    info = video.probe(path)
    if not info.has_audio:
        raise UserError(f"{path} has no sound track; expected a talking clip with sound")
    if info.duration_s < MIN_SECONDS:
        raise UserError(f"{path} lasts {info.duration_s:.2f} s; expected at least {MIN_SECONDS:.0f} s")
    return info


def need_model(models_dir: str | None) -> Path:
    """The face landmarker's file, checked; UserError when it is missing or damaged."""
    from preprocess.face_model import load_canonical

    model, reason = find_model(models_dir)
    if model is None:
        raise UserError(reason)
    load_canonical(model)
    return model.resolve()


def versions() -> dict[str, str]:
    """Versions of the libraries that the output depends on."""
    out = {}
    for name in LIBRARIES:
        try:
            out[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return out


def run(options: Options) -> Path:
    """Preprocess a clip into `workdir/dataset`; returns that folder.

    Stages that are up to date are skipped. UserError leaves nothing that was not there before this run, apart from
    stages that an earlier run had finished.
    """
    from preprocess.audio_features import parse_kinds

    kinds = parse_kinds(options.audio_kinds)
    if options.size < 0 or options.size % 2 or 0 < options.size < 64:
        raise UserError(f"--size={options.size} is not usable; give an even number of pixels of at least 64, or 0")
    path = Path(options.video)
    info = check_clip(path)
    with native("OpenCV (cv2)"):
        import cv2  # noqa: F401  (its system libraries are the ones that are missing most often)
    from preprocess import backdrop, head_box
    from preprocess.labels import parse_method

    method = parse_method(options.labels)
    reference = backdrop.parse_reference(options.background_ref) if options.background_ref else None
    body = head_box.read_points(options.body_points) if options.body_points else None
    model = need_model(options.models_dir)
    root = Path(options.workdir) / "preprocess"
    fresh = [p for p in (root, *root.parents) if not p.exists()]
    try:
        with Stages(root, {"tkjax": tkjax.__version__, **versions()}) as stages, pool(root / "workers.log") as executor:
            return _stages(options, path, info, model, kinds, method, reference, body, stages, executor)
    except UserError:
        _take_back(root, fresh)
        raise


def _take_back(root: Path, fresh: list[Path]) -> None:
    """Remove what a refused run has begun: everything if the folder is new, else unfinished stages."""
    if root in fresh:
        shutil.rmtree(root, ignore_errors=True)
        for folder in fresh[1:]:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
    else:
        for partial in root.glob("*.partial-*"):
            shutil.rmtree(partial, ignore_errors=True)


def _stages(options, path, info, model, kinds, method, reference, body, stages: Stages, executor) -> Path:
    from preprocess import (
        audio_features,
        backdrop,
        chunks,
        face_model,
        full_frame,
        head_box,
        labels,
        landmarker,
        landmarks,
        looks,
        matting,
        normalise,
        plate,
        pose,
        qa,
        refine,
        screen,
        segment,
        shards,
        survey,
        torso,
        track,
    )
    from tkjax import audio, contract, images

    source_sha, model_sha = sha256_file(path), sha256_file(model)
    expected = max(1, round(info.duration_s * FPS))
    given = {"source": source_sha, "model": model_sha}

    key = None
    if reference is not None:
        key = stages.run(
            "screen",
            lambda out: screen.screen(out, path, expected, FPS, reference),
            {"reference": reference.identity},
            {"source": source_sha},
            [screen, matting, backdrop, video],
        )
    keyed = {} if key is None else {"screen": key.digest}
    points = {"body_points": sha256_file(Path(options.body_points))} if body else {}
    looked = stages.run(
        "survey",
        lambda out: survey.survey(out, path, expected, (info.height, info.width), model, options.crop, options.size,
                                  options.min_face, executor, key and key.path, body),
        {"crop": options.crop, "size": options.size, "min_face": options.min_face},
        {**given, **keyed, **points},
        [survey, looks, head_box, landmarker, video, *([matting, backdrop] if key else [segment, labels])],
    )  # fmt: skip
    framing = survey.Framing.load(looked.path)
    h, w = framing.height, framing.width
    whole = framing == survey.Framing((0, 0, info.width, info.height), info.height, info.width)

    def full() -> Done:
        return stages.run(
            "full",
            lambda out: full_frame.full_frames(out, path, expected, key and key.path, executor),
            {},
            {"source": source_sha, **keyed},
            [full_frame, chunks, video, *([matting, backdrop] if key else [])],
        )

    entire = full() if key else None
    frames = stages.run(
        "normalise",
        lambda out: normalise.normalise(out, path, framing, expected, entire and entire.path),
        {},
        {"source": source_sha, "framing": looked.digest, **({"full": entire.digest} if entire else {})},
        [normalise, chunks, video, audio, images, *([backdrop] if key else [])],
    )
    n = normalise.frame_count(frames.path)
    say(f"normalise: {n} frames of {w}x{h}, crop {framing.crop_px}")

    wav = frames.path / "audio.wav"
    sound = stages.run(
        "audio",
        lambda out: audio_features.audio_stage(out, wav, kinds),
        {"kinds": kinds},
        {"wav": sha256_file(wav)},
        [audio_features, audio],
    )

    found = stages.run(
        "landmarks",
        lambda out: landmarks.landmarks(out, frames.path, n, model, path.name, executor),
        {},
        {"frames": frames.digest, "model": model_sha},
        [landmarks, landmarker, survey, chunks],
    )
    tracked = stages.run(
        "track",
        lambda out: track.track(out, found.path, n, h, w, model, FPS),
        {"height": h, "width": w},
        {"landmarks": found.digest, "model": model_sha},
        [track, pose, face_model, landmarks, chunks, contract],
    )
    labelled = stages.run(
        "labels",
        lambda out: labels.labels(out, frames.path, tracked.path, n, method, executor),
        {"method": method.identity},
        {"frames": frames.digest, "track": tracked.digest},
        [labels, segment, face_model, chunks, *method.sources],
    )
    refined = stages.run(
        "refine",
        # in a worker: one thread each, so the sums, and with them the bytes, never depend on the machine's cores
        lambda out: executor.submit(refine.refine, out, frames.path, labelled.path, tracked.path, n, h, w).result(),
        {"height": h, "width": w},
        {"frames": frames.digest, "labels": labelled.digest, "track": tracked.digest},
        [refine, chunks],
    )
    behind = stages.run(
        "plate",
        lambda out: (
            plate.constant_plate(out, h, w, backdrop.TARGET) if key else plate.plate(out, frames.path, labelled.path, n)
        ),
        {"target": backdrop.TARGET} if key else {},
        {"frames": frames.digest, "labels": labelled.digest},
        [plate, chunks],
    )
    body_pictures = stages.run(
        "torso",
        lambda out: torso.torso(out, frames.path, labelled.path, n, executor),
        {},
        {"frames": frames.digest, "labels": labelled.digest},
        [torso, chunks, *([backdrop] if key else [])],
    )
    looks_at = stages.run(
        "qa",
        lambda out: qa.qa(out, frames.path, labelled.path, body_pictures.path, refined.path, behind.path, n, FPS),
        {},
        {"frames": frames.digest, "labels": labelled.digest, "track": refined.digest, "torso": body_pictures.digest,
         "plate": behind.digest},
        [qa, chunks, video],
    )  # fmt: skip
    folders = {
        "frames": frames.path, "track": refined.path, "labels": labelled.path, "torso": body_pictures.path,
        "plate": behind.path, "audio": sound.path, "qa": looks_at.path,
    }  # fmt: skip
    if not whole:
        folders["full"] = (entire or full()).path
    # path.name would make the bytes depend on what the file is called; the digest says what it is.
    source = {"sha256": source_sha, "start_s": 0.0, "crop_px": list(framing.crop_px), "scale": framing.scale,
              "full_size": [info.width, info.height]}  # fmt: skip
    if reference is not None:
        source |= {"background_ref": reference.colour or reference.identity, "background_trt": backdrop.TARGET}
    return _dataset(options, source, model_sha, framing, n, method, stages, folders, shards)


def _dataset(options, source, model_sha, framing, n, method, stages: Stages, folders: dict, shards) -> Path:
    """Write the dataset unless the one that is there was made of the same stage outputs, and model_data.json."""
    from preprocess import model_data
    from tkjax.contract import ContractError, validate

    root = Path(options.workdir) / "dataset"
    tools = {
        "tkjax": tkjax.__version__,
        "libraries": versions(),
        "stages": {name: done.key for name, done in stages.results.items()},
        "model_sha256": model_sha,
        "labels": method.identity,
    }
    subject = options.subject or source["sha256"][:12]
    try:
        manifest = validate(root) if (root / "manifest.json").exists() else None
    except ContractError as e:
        say(f"dataset: written again ({e})")
        manifest = None
    if manifest and manifest["tools"].get("stages") == tools["stages"] and manifest["subject"] == subject:
        say("dataset: unchanged")
    else:
        shards.write_dataset(
            root, folders, n_frames=n, height=framing.height, width=framing.width, subject=subject, source=source,
            tools=tools, licences=LICENCES,
        )  # fmt: skip
        say("dataset: written")
    model_data.write(root, Path(options.workdir) / model_data.NAME)
    seconds = {name: round(done.seconds, 2) for name, done in stages.results.items()}
    report = {"stages": seconds, "seconds": round(sum(seconds.values()), 2), "frames": n}
    write_atomic(stages.root / "report.json", json.dumps(report, indent=1).encode())
    return root
