"""All stages of one clip in order; see `run`. Modules of stages are imported after the options have been checked."""

import dataclasses
import functools
import importlib.metadata
import json
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING

import tkjax
from preprocess import checks
from preprocess.resumable import Done, Stages, say, sha256_file
from preprocess.workers import native, pool
from tkjax.errors import UserError
from tkjax.host.files import write_atomic
from tkjax.host.model_files import FACE_LANDMARKER, find_model
from tkjax.media import hdr, video

if TYPE_CHECKING:
    from preprocess.framing.head_box import BodyPoints
    from preprocess.framing.survey import Framing
    from preprocess.keying.backdrop import Reference
    from preprocess.regions.labels import Method

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
    the background. body_points: file of a body detector's points for the original's head box. accept: names of
    `checks.STAGES`, comma separated, whose failures do not stop the run. models_mirror: address that the tracker's
    model is fetched from, '' the maker's. offline: fetch nothing. av_offset: see
    `av_offset.parse`."""

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
    accept: str = ""
    models_mirror: str = ""
    offline: bool = False
    av_offset: str = "auto"


@dataclasses.dataclass(frozen=True)
class Job:
    """A run whose options have been checked: what they mean, and what carries the stages out."""

    options: Options
    path: Path
    info: video.VideoInfo
    model: Path
    kinds: dict[str, str]
    method: "Method"
    reference: "Reference | None"
    body: "BodyPoints | None"
    stages: Stages
    executor: Executor
    accept: tuple[str, ...] = ()
    offset_ms: float | None = None

    @functools.cached_property
    def source_sha(self) -> str:
        return sha256_file(self.path)

    @functools.cached_property
    def model_sha(self) -> str:
        return sha256_file(self.model)

    @property
    def keyed_by(self) -> str:
        """Identity of what the person is cut out by, "" where the background stays."""
        return self.reference.identity if self.reference else ""

    @property
    def expected(self) -> int:
        """Frames that the clip should have, as far as its length tells."""
        return max(1, round(self.info.duration_s * FPS))

    def judged(self) -> list[checks.Check]:
        """What the stages say of themselves so far; checks.Failed where one fails that is not accepted."""
        found = checks.gather(done.path for done in self.stages.results.values())
        try:
            checks.refuse_failures(found, self.accept, self.path.name)
        except checks.Failed:
            say(checks.table(found, self.accept))
            write_atomic(self.stages.root / checks.CHECKS, json.dumps(checks.rows(found, self.accept)).encode())
            raise
        return found


@dataclasses.dataclass(frozen=True)
class Framed:
    """The clip cut to its head: finished stages `screen` and `full` (None for those that were not needed so far) and
    `normalise`, which gave n frames."""

    framing: "Framing"
    screen: Done | None
    full: Done | None
    frames: Done
    n: int


def check_clip(path: Path) -> video.VideoInfo:
    """Facts of the clip; UserError when it is no video with sound of at least two seconds."""
    info = video.probe(path)
    if not info.has_audio:
        raise UserError(f"{path} has no sound track; expected a talking clip with sound")
    if info.duration_s < MIN_SECONDS:
        raise UserError(f"{path} lasts {info.duration_s:.2f} s; expected at least {MIN_SECONDS:.0f} s")
    return info


def need_model(models_dir: str | None) -> Path:
    """The face landmarker's file, checked; UserError when it is missing or damaged. Nothing is fetched."""
    model, reason = find_model(models_dir)
    if model is None:
        raise UserError(reason)
    return checked_model(model)


def checked_model(model: Path) -> Path:
    """The path without links; UserError where the file is none of the face landmarker."""
    from preprocess.faces.face_model import load_canonical

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
    stages that an earlier run had finished. Where a result fails its checks (checks.Failed), the stages so far stay
    and `preprocess/checks.json` says what failed; the dataset is neither written nor replaced. What is read off sound
    and poses is judged before the labels are begun, the rest at the end, when the contact sheet is there.
    """
    from preprocess.audio.av_offset import parse
    from preprocess.audio.extract import parse_kinds

    offset = parse(options.av_offset)
    accept = checks.parse_accept(options.accept)
    kinds = parse_kinds(options.audio_kinds)
    if options.size < 0 or options.size % 2 or 0 < options.size < 64:
        raise UserError(f"--size={options.size} is not usable; give an even number of pixels of at least 64, or 0")
    path = Path(options.video)
    info = check_clip(path)
    with native("OpenCV (cv2)"):
        import cv2  # noqa: F401  (its system libraries are the ones that are missing most often)
    from preprocess.faces import fetch
    from preprocess.framing import head_box
    from preprocess.keying import backdrop
    from preprocess.regions.labels import parse_method

    method = parse_method(options.labels)
    reference = backdrop.parse_reference(options.background_ref) if options.background_ref else None
    if info.alpha and reference is None:
        reference = backdrop.OWN_ALPHA
    body = head_box.read_points(options.body_points) if options.body_points else None
    model = checked_model(fetch.face_landmarker(options.models_dir, options.models_mirror, options.offline))
    root = Path(options.workdir) / "preprocess"
    with Stages(root, {"tkjax": tkjax.__version__, **versions()}) as stages:
        try:
            with pool(root / "workers.log") as executor:
                job = Job(options, path, info, model, kinds, method, reference, body, stages, executor, accept, offset)
                return _stages(job, _framed(job))
        except checks.Failed:
            raise
        except UserError:
            stages.take_back()  # while the lock is held: a run that waits for it has begun nothing yet
            raise


def _full(job: Job, screen: Done | None) -> Done:
    """The stage of the whole frames."""
    from preprocess import chunks
    from preprocess.framing import full_frame
    from preprocess.keying import backdrop, matting

    return job.stages.run(
        "full",
        lambda out: full_frame.full_frames(out, job.path, job.expected, screen and screen.path, job.executor),
        {},
        {"source": job.source_sha, **({} if screen is None else {"screen": screen.digest})},
        [full_frame, chunks, video, hdr, *([matting, backdrop] if screen else [])],
    )


def _framed(job: Job) -> Framed:
    """Where the head is, and the frames that are cut out there; of a keyed clip the whole frames first."""
    from preprocess import chunks
    from preprocess.faces import landmarker
    from preprocess.framing import head_box, looks, normalise, survey
    from preprocess.keying import backdrop, matting, screen
    from preprocess.regions import label_repair, labels, plate, segment
    from tkjax.media import audio, images, intake

    options, path, info, stages = job.options, job.path, job.info, job.stages
    key = None
    if job.reference is not None:
        key = stages.run(
            "screen",
            lambda out: screen.screen(out, path, job.expected, FPS, job.reference),
            {"reference": job.reference.identity},
            {"source": job.source_sha},
            [screen, matting, backdrop, video, hdr],
        )
    keyed = {} if key is None else {"screen": key.digest}
    points = {"body_points": sha256_file(Path(options.body_points))} if job.body else {}
    looked = stages.run(
        "survey",
        lambda out: (
            survey.survey(out, path, job.expected, (info.height, info.width), job.model, options.crop, options.size,
                          options.min_face, job.executor, key and key.path, job.body),
            checks.write(out, survey.clip_checks(info, survey.Framing.load(out), job.keyed_by)),
        ),
        {"crop": options.crop, "size": options.size, "min_face": options.min_face},
        {"source": job.source_sha, "model": job.model_sha, **keyed, **points},
        [survey, looks, head_box, landmarker, video, hdr,
         *([screen, matting, backdrop] if key else [segment, label_repair, plate, labels])],
    )  # fmt: skip
    framing = survey.Framing.load(looked.path)
    for check in checks.read(looked.path):
        say(f"clip: {check.measure}: {check.message or check.value}")
    full = _full(job, key) if key else None
    frames = stages.run(
        "normalise",
        lambda out: normalise.normalise(out, path, framing, job.expected, full and full.path),
        {},
        {"source": job.source_sha, "framing": looked.digest, **({"full": full.digest} if full else {})},
        [normalise, chunks, video, hdr, audio, intake, images, *([backdrop] if key else [])],
    )
    n = normalise.frame_count(frames.path)
    say(f"normalise: {n} frames of {framing.width}x{framing.height}, crop {framing.crop_px}")
    return Framed(framing, key, full, frames, n)


def _stages(job: Job, clip: Framed) -> Path:
    """What is learnt from the frames, and the dataset of all of it."""
    from preprocess import chunks
    from preprocess.audio import av_offset, extract, sound
    from preprocess.faces import face_model, landmarker
    from preprocess.framing import normalise, survey
    from preprocess.keying import backdrop
    from preprocess.output import qa
    from preprocess.regions import label_checks, label_repair, labels, plate, segment, torso
    from preprocess.tracking import content, landmarks, pose, pose_checks, refine, smooth, track
    from tkjax import contract
    from tkjax.media import audio, intake, level

    stages, method, key, executor = job.stages, job.method, clip.screen, job.executor
    frames, n, h, w = clip.frames, clip.n, clip.framing.height, clip.framing.width
    found = stages.run(
        "landmarks",
        lambda out: landmarks.landmarks(out, frames.path, n, job.model, job.path.name, executor),
        {},
        {"frames": frames.digest, "model": job.model_sha},
        [landmarks, content, landmarker, survey, chunks],
    )
    heard = stages.run(
        "sound",
        lambda out: sound.sound(out, job.path, frames.path / "audio.wav", found.path, n, job.offset_ms),
        {"av_offset": job.offset_ms},
        {"frames": frames.digest, "source": job.source_sha, "landmarks": found.digest},
        [sound, av_offset, landmarks, normalise, audio, intake, level],
    )
    sound.announce(heard.path)
    wav = heard.path / "audio.wav"
    shown = stages.run(
        "content",
        lambda out: content.content(out, found.path, wav, n, (h, w)),
        {"height": h, "width": w},
        {"landmarks": found.digest, "wav": sha256_file(wav)},
        [content, chunks],
    )
    cuts = content.cuts_of(shown.path)
    tracked = stages.run(
        "track",
        lambda out: track.track(out, found.path, n, h, w, job.model, FPS, cuts),
        {"height": h, "width": w, "cuts": cuts},
        {"landmarks": found.digest, "model": job.model_sha},
        [track, pose, smooth, pose_checks, face_model, landmarks, chunks, contract],
    )
    job.judged()
    features = stages.run(
        "audio",
        lambda out: extract.audio_stage(out, wav, job.kinds),
        {"kinds": job.kinds},
        {"wav": sha256_file(wav)},
        [extract, audio, level],
    )
    labelled = stages.run(
        "labels",
        lambda out: labels.labels(out, frames.path, tracked.path, n, method, executor, FPS),
        {"method": method.identity},
        {"frames": frames.digest, "track": tracked.digest},
        [labels, label_repair, label_checks, segment, plate, face_model, chunks, *method.sources],
    )
    refined = stages.run(
        "refine",
        # in a worker: one thread each, so the sums, and with them the bytes, never depend on the machine's cores
        lambda out: executor.submit(
            refine.refine, out, frames.path, labelled.path, tracked.path, n, h, w, cuts
        ).result(),
        {"height": h, "width": w, "cuts": cuts},
        {"frames": frames.digest, "labels": labelled.digest, "track": tracked.digest},
        [refine, pose_checks, chunks],
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
        lambda out: qa.qa(out, frames.path, labelled.path, body_pictures.path, refined.path, behind.path, n, FPS, wav),
        {},
        {"frames": frames.digest, "labels": labelled.digest, "track": refined.digest, "torso": body_pictures.digest,
         "plate": behind.digest, "sound": heard.digest},
        [qa, label_checks, chunks, video],
    )  # fmt: skip
    folders = {
        "frames": frames.path, "track": refined.path, "labels": labelled.path, "torso": body_pictures.path,
        "plate": behind.path, "sound": heard.path, "audio": features.path, "qa": looks_at.path,
    }  # fmt: skip
    if clip.framing != survey.Framing((0, 0, job.info.width, job.info.height), job.info.height, job.info.width):
        folders["full"] = (clip.full or _full(job, key)).path
    return _dataset(job, clip, folders)


def _source(job: Job, framing: "Framing", av_offset_ms: float) -> dict:
    """What the manifest says of the clip. Its name would make the bytes depend on what the file is called; the digest
    says what it is."""
    from preprocess.keying import backdrop

    out = {"sha256": job.source_sha, "start_s": 0.0, "crop_px": list(framing.crop_px), "scale": framing.scale,
           "full_size": [job.info.width, job.info.height], "av_offset_ms": av_offset_ms}  # fmt: skip
    if job.reference is not None:
        out |= {"background_ref": job.reference.colour or job.reference.identity, "background_trt": backdrop.TARGET}
    return out


def _dataset(job: Job, clip: Framed, folders: dict[str, Path]) -> Path:
    """Write the dataset unless the one that is there was made of the same stage outputs, model_data.json, and show
    the table of checks."""
    from preprocess.audio import sound
    from preprocess.output import model_data, shards
    from tkjax.contract import ContractError, validate

    options, stages, framing = job.options, job.stages, clip.framing
    found = job.judged()
    rows = checks.rows(found, job.accept)
    root = Path(options.workdir) / "dataset"
    source = _source(job, framing, sound.removed_ms(folders["sound"]))
    tools = {
        "tkjax": tkjax.__version__,
        "libraries": versions(),
        "stages": {name: done.key for name, done in stages.results.items()},
        "model_sha256": job.model_sha,
        "labels": job.method.identity,
    }
    subject = options.subject or source["sha256"][:12]
    try:
        manifest = validate(root) if (root / "manifest.json").exists() else None
    except ContractError as e:
        say(f"dataset: written again ({e})")
        manifest = None
    same = manifest and manifest["tools"].get("stages") == tools["stages"] and manifest["subject"] == subject
    if same and manifest.get("checks", []) == rows:
        say("dataset: unchanged")
    else:
        shards.write_dataset(
            root, folders, n_frames=clip.n, height=framing.height, width=framing.width, subject=subject, source=source,
            tools=tools, licences=LICENCES, checks=rows,
        )  # fmt: skip
        say("dataset: written")
    model_data.write(root, Path(options.workdir) / model_data.NAME)
    seconds = {name: round(done.seconds, 2) for name, done in stages.results.items()}
    report = {"stages": seconds, "seconds": round(sum(seconds.values()), 2), "frames": clip.n}
    write_atomic(stages.root / "report.json", json.dumps(report, indent=1).encode())
    write_atomic(stages.root / checks.CHECKS, json.dumps(rows).encode())
    if found:
        say(checks.table(found, job.accept))
    return root
