"""`python -m preprocess --video CLIP --workdir W`: one portrait clip to W/dataset. Exit code 2: the user's to mend."""

import argparse
import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # small products: more threads only wait for each other
os.environ["GLOG_minloglevel"] = os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

from preprocess import pipeline
from preprocess.checks import STAGES
from preprocess.command import exit_code
from tkjax.host.model_files import is_offline


def parser() -> argparse.ArgumentParser:
    """The flags, each with what it does."""
    p = argparse.ArgumentParser("preprocess", description="One portrait clip with sound to a dataset for tkjax.")
    p.add_argument("--video", required=True, help="the clip: one person, mostly frontal, steady camera, with sound")
    p.add_argument("--workdir", required=True, help="the dataset goes to WORKDIR/dataset, stages to WORKDIR/preprocess")
    p.add_argument(
        "--size", type=int, default=0, help="longer side in pixels; 0: as it is, larger than 512 becomes 512"
    )
    p.add_argument("--crop", choices=("auto", "none"), default="auto",
                   help="auto: square around the head, unless the picture is square and the head fills it")  # fmt: skip
    p.add_argument("--models_dir", help="folder with face_landmarker.task; else $TKJAX_MODELS, ~/.cache/tkjax")
    p.add_argument("--audio_kinds", default="logmel", help="logmel,wav2vec2=PATH,hubert=PATH (folder or hub name)")
    p.add_argument("--labels", default="auto", help="auto, colour, or bisenet=PATH of its 79999_iter.pth")
    p.add_argument("--min_face", type=int, default=64, help="least height of the face in the clip, in pixels")
    p.add_argument("--subject", default="", help="name of the subject; default: first digits of the clip's sha256")
    p.add_argument("--background_ref", default="", help="cut the person out of this background: a colour "
                   "(green, blue, r,g,b, #rrggbb) or a picture of the empty scene; default: keep it")  # fmt: skip
    p.add_argument("--body_points", default="", help="json or npz with a body detector's points: the head's box by "
                   "Avatar-ERNeRF's rule")  # fmt: skip
    p.add_argument("--av_offset", default="auto", help="by how many ms the sound is late: auto (measured on the lips, "
                   "taken out where that is certain), 0 (leave it), or a number")  # fmt: skip
    p.add_argument("--accept", default="", help=f"go on although these fail their checks: {','.join(STAGES)}")
    p.add_argument("--models_mirror", default="", help="http(s) folder that the tracker's model is fetched from where "
                   "it is missing; default: $TKJAX_MODELS_MIRROR, else the maker's server")  # fmt: skip
    p.add_argument("--offline", nargs="?", const="true", default="", help="fetch nothing, as TKJAX_OFFLINE=1")
    return p


def main(argv: list[str] | None = None) -> int:
    """0, or 2 with one sentence on standard error."""
    args = parser().parse_args(argv)
    args.offline = args.offline.lower() not in ("", "0", "false", "no")
    if args.offline or is_offline():
        os.environ["HF_HUB_OFFLINE"] = "1"  # transformers would look a model's name up
    return exit_code(lambda: pipeline.run(pipeline.Options(**vars(args))), "preprocess")


if __name__ == "__main__":
    sys.exit(main())
