"""The command line as data: modes, flags, which mode uses which, and the help text. Imports neither jax nor numpy.

Every mistake in it is a UserError of one sentence.
"""

import dataclasses
import textwrap
from typing import Any

from absl import flags

from tkjax import config
from tkjax.config import FALSE, TRUE
from tkjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Mode:
    """One value of --mode: what it does, an example, the flags it needs and those it also understands."""

    about: str
    example: str
    needs: tuple[str, ...]
    takes: tuple[str, ...]


# flags of a rendering that are arguments of `drive.driver.plan`
DRIVING = (
    *("drive", "set", "scale", "offset", "pose", "background", "fix_eye", "eye", "data_range", "poses", "smooth_eye"),
    *("smooth_lips", "features", "audio_kinds", "blinks", "gaze", "seed"),
)

TRAINING = ("config", "stages", "preload", "split", "seed", "coordinator_address", "num_processes", "process_id")
PREPARING = (
    *("crop", "size", "models_dir", "audio_kinds", "labels", "min_face", "subject"),
    *("background_ref", "body_points", "av_offset", "accept", "models_mirror", "offline"),
)
CHECKED = ("content", "sound", "poses", "labels", "background")  # preprocess.checks.STAGES
SCHEMES = ("none", "box", "face", "face_neck", "blend")
STAGES = ("head", "lips", "torso")
METRICS = ("psnr", "ssim", "lpips", "lmd", "nioe", "fid", "response")  # measure.scores.OF_METRIC
MAPS = ("depth", "ambient", "uncertainty")
MODES = {
    "fit": Mode(
        "Video in, avatar and report out: preprocess what is missing, train every stage, evaluate, write report.html. "
        "The same command again continues where it stopped.",
        'python launch.py --mode=fit --config=configs/er_nerf.py:cpu --video=me.mp4 --workdir=runs/me --consent="mine"',
        ("workdir",),
        ("video", "dataset", "consent", "paste_back", *PREPARING, *TRAINING),
    ),
    "preprocess": Mode(
        "A portrait video becomes a dataset: landmarks, poses, labels, background, torso, sound features.",
        "python launch.py --mode=preprocess --video=me.mp4 --workdir=runs/me",
        ("video", "workdir"),
        PREPARING,
    ),
    "track": Mode(
        "A video becomes a track that drives avatars (docs/tracks.md): 52 blendshapes, the head's pose, gaze, blinks "
        "and how sure they are, 25 times a second. Started again, it goes on where it stopped.",
        "python launch.py --mode=track --video=actor.mp4 --out=actor.npz",
        ("video", "out"),
        ("models_dir", "models_mirror", "offline", "min_face"),
    ),
    "train": Mode(
        "Train every stage on a dataset (WORKDIR/dataset, or --dataset) and save the avatar.",
        "python launch.py --mode=train --config=configs/er_nerf.py:cpu --workdir=runs/me",
        ("workdir",),
        ("dataset", "consent", *TRAINING),
    ),
    "render": Mode(
        "Let a trained avatar speak or move: a sound, a track of expressions or constants in, mp4 (or a folder of PNG "
        "files) out. It lasts as long as the longest of --audio and --drive.",
        "python launch.py --mode=render --workdir=runs/me --audio=new.wav --out=new.mp4",
        ("workdir", "out"),
        ("audio", *DRIVING, "smooth_path", "smooth_path_window", "torso", "paste_back", "alpha", "maps", "watermark"),
    ),
    "sheet": Mode(
        "One picture of what each coefficient of an avatar does: a row with its name, at 0, 1/2 and 1 of its range in "
        "training.",
        "python launch.py --mode=sheet --workdir=runs/me --out=sheet.png",
        ("workdir", "out"),
        (),
    ),
    "voice": Mode(
        "A sound becomes a track of expression coefficients (npz or csv), as an avatar's speech network hears it. "
        "Systems that are driven by expression have one where their clip had sound; --mode=render --audio uses it.",
        "python launch.py --mode=voice --workdir=runs/me --audio=new.wav --out=new.csv",
        ("workdir", "audio", "out"),
        ("set", "scale", "offset", "data_range", "poses"),
    ),
    "eval": Mode(
        "Score a trained avatar on the held-out frames: report.html, report.json, comparison.mp4, "
        "evaluation_report.txt, metrics_plot.png. Or frames made elsewhere against true ones, paired by number: "
        "--generated, --truth, --out.",
        "python launch.py --mode=eval --workdir=runs/me",
        (),
        ("workdir", "dataset", "models_dir", "paste_back", "metrics", "generated", "truth", "out"),
    ),
    "compare": Mode(
        "Several systems on the same clip, with the same minutes of training each: trains and scores every one, then "
        "compare.html, compare.json and compare.mp4. The same command again continues where it stopped.",
        "python launch.py --mode=compare --configs=er_nerf,rad_nerf --dataset=runs/me/dataset --workdir=runs/both",
        ("configs", "workdir"),
        ("video", "dataset", "consent", "budget_minutes", "split", "seed", "preload", "config", *PREPARING),
    ),
    "import": Mode(
        "Take over old work: a dataset folder of AD-NeRF, RAD-NeRF, ER-NeRF, Avatar-ERNeRF or NeRFBlendShape becomes a "
        "dataset; a RAD-NeRF or ER-NeRF .pth, a NeRFBlendShape .pth.tar, or AD-NeRF's head and body .tar (the body's "
        "path, or that of their folder) becomes an avatar (give both, the folder first). What it is shows in its "
        "content.",
        "python launch.py --mode=import --source=data/obama --workdir=runs/obama",
        ("source", "workdir"),
        ("system", "weights", "dataset"),
    ),
    "export": Mode(
        "Write a trained avatar as a .pth with the original code's names, for RAD-NeRF, ER-NeRF and NeRFBlendShape "
        "(.pth.tar); of AD-NeRF --out=X_head.tar, with X_body.tar beside it.",
        "python launch.py --mode=export --workdir=runs/obama --out=obama.pth",
        ("workdir", "out"),
        (),
    ),
    "synthetic": Mode(
        "Make a clip of the synthetic subject with sound (OUT/clip.mp4) and its exact truth (OUT/dataset).",
        "python launch.py --mode=synthetic --out=runs/subject --seconds=12 --size=256 --seed=0",
        ("out",),
        ("seconds", "size", "seed", "motion"),
    ),
    "demo": Mode(
        "See all of it on the synthetic subject: clip, training, new speech, report, in WORKDIR (runs/demo).",
        "python launch.py --mode=demo",
        (),
        ("workdir", "config", "split", "seconds", "size", "seed", "motion", "models_dir"),
    ),
    "mux": Mode(
        "Put a sound under a video: streams are copied where the result's kind of file holds them, else encoded anew; "
        "the shorter of both decides the end.",
        "python launch.py --mode=mux --video=silent.avi --audio=speech.wav --out=speaking.mp4",
        ("video", "audio", "out"),
        ("vcodec", "acodec", "crf"),
    ),
    "doctor": Mode(
        "What this machine has: devices, versions, kernel back ends, model files, known-bad releases.",
        "python launch.py --mode=doctor",
        (),
        ("models_dir",),
    ),
}


@dataclasses.dataclass(frozen=True)
class Flag:
    """kind: str, int, float, bool, ints (two whole numbers), names (some of `choices`, comma separated) or
    list (any words, comma separated).
    low, high: closed bounds of numbers."""

    kind: str
    about: str
    low: float | int | None = None
    high: float | int | None = None
    choices: tuple[str, ...] = ()


FLAGS = {
    "mode": Flag("str", f"one of {', '.join(MODES)}"),
    "config": Flag(
        "str",
        "path.py:variant, or the config.json of a workdir to repeat its run; --config.a.b=value overrides one key. "
        "Without a variant: cpu where JAX finds no accelerator, else full. Default: configs/er_nerf.py",
    ),
    "configs": Flag("list", "systems to compare: name[:variant], comma separated; each is configs/NAME.py (or a path)"),
    "budget_minutes": Flag("float", "minutes of training for each system of --mode=compare (15)", 0.01, 1e5),
    "video": Flag("str", "the portrait clip: one person, with sound (track: sound or not; mux: any video)"),
    "dataset": Flag("str", "a dataset folder that is there already, in place of --video"),
    "workdir": Flag("str", "folder of one subject's run: dataset, checkpoints, avatar, report"),
    "out": Flag(
        "str",
        "result: an .mp4 file, or a folder for PNG files (synthetic, eval: the folder to write; track: an .npz or "
        ".csv; sheet: a .png)",
    ),
    "audio": Flag(
        "str",
        "the sound to speak (mux: to put under the video): wav, mp3, m4a, or a video's sound track; own: the clip's "
        "under the frames that are played (with --poses=test a reconstruction of what was held out)",
    ),
    "drive": Flag(
        "str",
        "what moves the face beside sound: own (the avatar's own track), a dataset, an avatar or a workdir of somebody "
        "else, or a track of channels (docs/tracks.md): csv or npz of --mode=track or of yours, Live Link Face's csv, "
        "OpenFace's csv, .npy or .mat of 3DMM coefficients; by name, resampled",
    ),
    "set": Flag("str", "constants by channel, such as jawOpen=0.6,mouthPucker=0.2; what is not named rests"),
    "scale": Flag("str", "factors by channel (or by signal, for all of its channels), such as expression=1.2"),
    "offset": Flag("str", "numbers to add by channel, such as browInnerUp=0.1; after --set and --scale"),
    "features": Flag("str", "audio_<kind>.npz computed for --audio, in place of computing it"),
    "pose": Flag(
        "str",
        "head poses: .npz or .npy [n,4,4] camera-to-world, an AD-NeRF transforms .json, the folder of a dataset, an "
        "avatar or a workdir, a track whose head channels move the head, or the word track: that of --drive",
    ),
    "background": Flag("str", "a picture, or a colour (white, black, #rrggbb), behind the person; alias --bg_img"),
    "smooth_path": Flag("bool", "average the head's path over --smooth_path_window frames"),
    "smooth_path_window": Flag("int", "frames of --smooth_path, odd (7)", 1, 999),
    "smooth_lips": Flag("bool", "0.35 of the last frame's sound features and 0.65 of this one's"),
    "fix_eye": Flag("float", "the same blink in every frame: 0 open, 1 closed", 0, 1),
    "eye": Flag("str", "blink of each frame: .npy [n] in 0..1, or .csv (one column, or OpenFace's AU45_r)"),
    "data_range": Flag("ints", "two numbers a,b: loop over the training frames a <= i < b only"),
    "poses": Flag("str", "frames whose poses and eyes are played: train (default) or test", choices=("train", "test")),
    "blinks": Flag(
        "str",
        "own (the clip's, as a loop) or natural: made of the clip's blink rate and curves, by --seed",
        choices=("own", "natural"),
    ),
    "gaze": Flag(
        "str",
        "own (what drives the face) or natural: made of the clip's fixations, by --seed, where there are eyeLook "
        "coefficients",
        choices=("own", "natural"),
    ),
    "smooth_eye": Flag("bool", "average the eyes over three frames"),
    "torso": Flag(
        "str",
        "modelled, or given (the clip's own); default: modelled where trained",
        choices=("modelled", "given"),
    ),
    "paste_back": Flag(
        "str",
        "put the head back into the clip's whole frames: box, face, face_neck (as Avatar-ERNeRF), blend (feathered, "
        "colours matched), none. Default: blend where the clip was cropped, else none",
        choices=SCHEMES,
    ),
    "metrics": Flag(
        "names",
        f"which scores are computed, some of {', '.join(METRICS)} (response: do lips and eyes follow); default: all "
        "that can be",
        choices=METRICS,
    ),
    "generated": Flag("str", "frames to score: a folder of pictures with numbers in their names, or a video"),
    "truth": Flag("str", "the true frames for --generated, a folder or a video, paired by number"),
    "vcodec": Flag("str", "pictures of --mode=mux: auto, copy, or an encoder of FFmpeg such as libx264 (auto)"),
    "acodec": Flag("str", "sound of --mode=mux: auto, copy, or an encoder of FFmpeg such as aac (auto)"),
    "crf": Flag("int", "quality of pictures that --mode=mux encodes: 0 is best (18)", 0, 63),
    "alpha": Flag("bool", "transparent background: --out is a folder (PNG), .mov (ProRes 4444) or .webm (VP9)"),
    "maps": Flag("names", f"further videos beside --out, some of {', '.join(MAPS)}", choices=MAPS),
    "stages": Flag("names", f"train only these, some of {', '.join(STAGES)}; default: all that are not finished"),
    "source": Flag("str", "what to import: a dataset folder or a checkpoint file"),
    "system": Flag("str", "force what --source is", choices=("ad_nerf", "rad_nerf", "er_nerf", "avatar_ernerf")),
    "weights": Flag("str", "of a checkpoint: ema (default where it has them) or raw", choices=("ema", "raw")),
    "background_ref": Flag("str", "what stands behind the person: green, another colour, or a picture of it"),
    "body_points": Flag("str", "json or npz of a body detector; the head's box then follows Avatar-ERNeRF's rule"),
    "av_offset": Flag(
        "str", "by how many ms the clip's sound is late; auto: measured on the lips, taken out where certain"
    ),
    "accept": Flag(
        "names",
        f"go on although these fail their checks, some of {', '.join(CHECKED)} (the table after preprocessing)",
        choices=CHECKED,
    ),
    "watermark": Flag("bool", "add a visible mark; files are marked in their metadata in any case"),
    "consent": Flag("str", "who agreed to this avatar, and how; stored in the avatar and shown in the report"),
    "crop": Flag("str", "auto: square around the head; none: the whole picture", choices=("auto", "none")),
    "labels": Flag("str", "auto, colour, or bisenet=PATH of its 79999_iter.pth"),
    "min_face": Flag("int", "least height of the face in the clip, in pixels (64)", 8, 4096),
    "subject": Flag("str", "name of the person in reports; default: from the clip's content"),
    "audio_kinds": Flag("str", "comma separated: logmel, wav2vec2=PATH, hubert=PATH"),
    "models_dir": Flag(
        "str",
        "folder with face_landmarker.task; default: $TKJAX_MODELS, else the cache, into which it is fetched",
    ),
    "models_mirror": Flag(
        "str",
        "http(s) folder to fetch face_landmarker.task from; default: $TKJAX_MODELS_MIRROR, else the maker's server",
    ),
    "offline": Flag("bool", "fetch nothing from the network, as TKJAX_OFFLINE=1"),
    "preload": Flag("str", "where decoded frames live", choices=("disk", "host", "device")),
    "split": Flag(
        "str",
        "frames to hold out for scoring: last (the clip's end; default) or blocks of 2 s over the clip",
        choices=("last", "blocks"),
    ),
    "seconds": Flag("float", "length of the synthetic clip (12)", 2, 3600),
    "size": Flag("int", "longer side in pixels", 32, 4096),
    "seed": Flag("int", "random seed (0)", 0, 2**31 - 1),
    "motion": Flag("float", "range of the synthetic head's motion; 1 is natural, 0 none", 0, 3),
    "coordinator_address": Flag("str", "host:port of process 0, for several processes"),
    "num_processes": Flag("int", "how many processes train together", 1, 65536),
    "process_id": Flag("int", "this process's number, from 0", 0, 65535),
}
ALIASES = {"bg_img": "background", "audio_kind": "audio_kinds", "workspace": "workdir", "aud": "audio"}


@dataclasses.dataclass
class Options:
    """The parsed command line. `flags` holds what the user gave, by name; a flag that was not given is None."""

    mode: str
    flags: dict[str, Any]
    overrides: list[tuple[str, str]]

    def __getattr__(self, name: str) -> Any:
        if name in FLAGS:
            return self.flags.get(name)
        raise AttributeError(name)


def help_text(mode: str | None = None) -> str:
    """All modes with an example each, or one mode with its flags."""

    def wrap(text, indent):
        return textwrap.fill(text, 116, initial_indent=indent, subsequent_indent=indent)

    lines = ["tkjax: one portrait video in, a talking avatar out."]
    lines += ["usage: python launch.py --mode=MODE [--flag=value ...]"]
    for name in [mode] if mode in MODES else MODES:
        m = MODES[name]
        given = ", ".join(f"--{f}" for f in (*m.needs, *m.takes))
        lines += ["", f"--mode={name}", wrap(m.about, "    "), f"    {m.example}", wrap(f"flags: {given}", "    ")]
    used = {f for m in ([MODES[mode]] if mode in MODES else MODES.values()) for f in (*m.needs, *m.takes)} | {"mode"}
    lines += ["", "flags"]
    for name, flag in FLAGS.items():
        if name in used:
            lines.append(wrap(f"--{name}: {flag.about}", "  "))
    return "\n".join(lines)


def _join(argv: list[str]) -> list[str]:
    """`--data_range 0 100` (the family's spelling) as `--data_range=0,100`; dashes in names as underscores."""
    out, i = [], 0
    while i < len(argv):
        arg = argv[i]
        if arg.startswith("--") and not arg.startswith("--config."):
            name, eq, value = arg.partition("=")
            arg = name[:2] + name[2:].replace("-", "_") + eq + value
        if arg == "--data_range" and i + 2 < len(argv) and not argv[i + 2].startswith("--"):
            arg, i = f"--data_range={argv[i + 1].rstrip(',')},{argv[i + 2]}", i + 2
        out.append(arg)
        i += 1
    return out


def _split_overrides(argv: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Take `--config.key=value` and `--config.key value` out of the arguments."""
    rest, overrides, i = [], [], 0
    while i < len(argv):
        if argv[i].startswith("--config."):
            key, eq, value = argv[i].removeprefix("--config.").partition("=")
            if not eq:
                i += 1
                if i == len(argv):
                    raise UserError(f"--config.{key} needs a value: --config.{key}=...")
                value = argv[i]
            overrides.append((key, value))
        else:
            rest.append(argv[i])
        i += 1
    return rest, overrides


def _flag_values() -> flags.FlagValues:
    values = flags.FlagValues()
    for name, flag in FLAGS.items():
        if flag.kind == "bool":
            flags.DEFINE_boolean(name, False, flag.about, flag_values=values)
        else:
            flags.DEFINE_string(name, None, flag.about, flag_values=values)
    for alias, name in ALIASES.items():
        flags.DEFINE_alias(alias, name, flag_values=values)
    return values


def _value(name: str, text: str) -> Any:
    """A flag's text in its type, within its bounds."""
    flag = FLAGS[name]
    if flag.kind == "str":
        if flag.choices and text not in flag.choices:
            raise UserError(f"--{name}={text} is unknown; {config.near(text, flag.choices)}")
        if not text.strip():
            raise UserError(f"--{name} is empty; give it a value or leave it out")
        return text
    if flag.kind in ("names", "list"):
        parts = tuple(part.strip() for part in text.split(",") if part.strip())
        if not parts:
            raise UserError(f"--{name} is empty; give it a value or leave it out")
        for part in parts:
            if flag.choices and part not in flag.choices:
                raise UserError(f"--{name}={text}: {part} is unknown; {config.near(part, flag.choices)}")
        return parts
    if flag.kind == "ints":
        try:
            a, b = (int(part) for part in text.replace(",", " ").split())
        except ValueError:
            raise UserError(f"--{name}={text} must be two whole numbers such as 0,100") from None
        return a, b
    try:
        number = int(text) if flag.kind == "int" else float(text)
    except ValueError:
        raise UserError(f"--{name}={text} must be a {'whole ' if flag.kind == 'int' else ''}number") from None
    if not flag.low <= number <= flag.high:
        raise UserError(f"--{name}={text} must lie between {flag.low:g} and {flag.high:g}")
    return number


def _absl_parse(values: flags.FlagValues, argv: list[str]) -> list[str]:
    """Positional arguments that are left; absl's own complaints in our words."""
    try:
        return values(argv)[1:]
    except flags.UnrecognizedFlagError as error:
        raise UserError(f"--{error.flagname} is no flag; {config.near(error.flagname, [*FLAGS, *ALIASES])}") from None
    except flags.Error as error:
        text = " ".join(str(error).split())
        name = next((n for n in [*FLAGS, *ALIASES] if f"--{n}=" in text or text.endswith(f"--{n}")), None)
        if name and FLAGS[ALIASES.get(name, name)].kind == "bool":
            text = f"--{name} is a switch: write --{name} or --{name}=false"
        elif name and "Missing value" in text:
            text = f"--{name} needs a value: --{name}=..."
        raise UserError(text) from None


def parse(argv: list[str]) -> Options:
    """Options of `argv` (program name first). Refuses unknown flags, bad values, missing needed flags, unused flags."""
    rest, overrides = _split_overrides(_join(list(argv)))
    for word in TRUE + FALSE:  # absl's booleans know neither yes nor on
        rest = [a.replace(f"={word}", f"={word in TRUE}".lower()) if _is_bool(a, word) else a for a in rest]
    values = _flag_values()
    extra = _absl_parse(values, rest)
    if extra:
        raise UserError(f"{extra[0]!r} is no flag; flags are written --name=value")
    mode = values.mode
    if mode is None:
        raise UserError(f"--mode is missing; choose one of {', '.join(MODES)} (--help explains them)")
    if mode not in MODES:
        raise UserError(f"--mode={mode} is unknown; {config.near(mode, MODES)}")
    given = {n: values[n].value for n in FLAGS if values[n].present and n != "mode"}
    known = (*MODES[mode].needs, *MODES[mode].takes)
    for name in [*given, *(["config"] if overrides else [])]:
        if name not in known:
            users = ", ".join(m for m, spec in MODES.items() if name in (*spec.needs, *spec.takes))
            raise UserError(f"--mode={mode} does not use --{name} (it belongs to {users})")
    for name in MODES[mode].needs:
        if name not in given:
            raise UserError(f"--mode={mode} needs --{name}: {FLAGS[name].about}")
    given = {n: v if FLAGS[n].kind == "bool" else _value(n, v) for n, v in given.items()}
    return Options(mode, given, overrides)


def _is_bool(arg: str, word: str) -> bool:
    name = arg.removeprefix("--").partition("=")[0]
    return name in FLAGS and FLAGS[name].kind == "bool" and arg.lower() == f"--{name}={word}"
