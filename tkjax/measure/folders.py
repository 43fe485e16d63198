"""Scores of frames that somebody made elsewhere: two folders of pictures or two videos, paired by number.

The number of a picture is the last run of digits in its name (`frame_0012.png` is 12); that of a video's frame its
place, from 0. Sorting by name and pairing by place is the trap of the AD-NeRF reproduction's evaluation (ad-nerf
dossier §7, item 1): of 300 generated and 728 true frames 225 pairs match, of those named 7272… and 0… two.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from tkjax.errors import UserError
from tkjax.host import model_files
from tkjax.measure import fid, formulas, scores, text_report
from tkjax.measure.scores import NAN
from tkjax.media import images, video

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
NUMBER = re.compile(r"(\d+)(?!.*\d)")
GENERATED, TRUTH = "generated", "target"
METRICS = ("psnr", "ssim", "lpips", "lmd", "nioe", "fid")


class Frames:
    """Numbered pictures of a folder or a video."""

    def __init__(self, path: str | Path, flag: str):
        self.path = Path(path)
        self._files: dict[int, Path] = {}
        if self.path.is_dir():
            for file in sorted(p for p in self.path.iterdir() if p.suffix.lower() in PICTURES):
                number = NUMBER.search(file.stem)
                if number is None:
                    raise UserError(f"{flag}: {file} has no number in its name; frames are paired by number")
                other = self._files.setdefault(int(number[1]), file)
                if other is not file:
                    raise UserError(f"{flag}: {other.name} and {file.name} have one number, {int(number[1])}")
            if not self._files:
                raise UserError(f"{flag}: {self.path} holds no pictures ({', '.join(PICTURES)})")
            self.numbers = sorted(self._files)
        elif self.path.exists():
            self.numbers = list(range(video.probe(self.path).n_frames))
        else:
            raise UserError(f"{flag}: there is no folder or video {self.path}")

    def read(self, wanted: Sequence[int]) -> Iterator[tuple[int, UInt8[np.ndarray, "H W 3"]]]:
        """(number, picture) of the wanted ones, ascending."""
        if self._files:
            for k in wanted:
                yield k, images.read_rgb(self._files[k])
            return
        chosen = set(wanted)
        for k, rgb in enumerate(video.read_frames(self.path, 0, wanted[-1] + 1)):
            if k in chosen:
                yield k, rgb


def score(
    generated: str | Path, truth: str | Path, metrics: Sequence[str] | None = None, models: str | None = None
) -> text_report.Scored:
    """Every number that both have; UserError where they share none, or two pictures differ in size."""
    chosen = set(metrics or METRICS)
    made, true = Frames(generated, "--generated"), Frames(truth, "--truth")
    numbers = sorted(set(made.numbers) & set(true.numbers))
    if not numbers:
        spans = (f"{f.numbers[0]}..{f.numbers[-1]}" for f in (made, true))
        raise UserError(
            f"--generated={generated} and --truth={truth} share no frame number ({' and '.join(spans)}); frames are "
            "paired by number"
        )
    reasons = {k: f"not asked for (--metrics={','.join(metrics or ())})" for k in _unasked(chosen)}
    lpips, no_lpips = scores.lpips(models) if "lpips" in chosen else (None, "")
    inception, no_fid = fid.open_fid(models) if "fid" in chosen else (None, "")
    reasons |= ({"lpips": no_lpips} if no_lpips else {}) | ({"fid": no_fid} if no_fid else {})
    per: dict[str, list[float]] = {k: [] for k in ("psnr", "ssim", "lpips")}
    with TemporaryDirectory(prefix="tkjax-eval-") as folder:
        faces, no_faces = None, ""
        if chosen & {"lmd", "nioe"}:
            no_faces = model_files.find_model(models)[1]
            faces = None if no_faces else scores.Faces(Path(folder), models)
        try:
            pairs = zip(made.read(numbers), true.read(numbers))
            found = []
            for (k, a), (_, b) in tqdm(pairs, total=len(numbers), desc="evaluate", unit="frame", mininterval=0.5):
                if a.shape != b.shape:
                    sizes = " and ".join(f"{p.shape[1]}x{p.shape[0]}" for p in (a, b))
                    raise UserError(
                        f"frame {k}: the generated and the true picture have {sizes} pixels; make them equal"
                    )
                found.append(k)
                per["psnr"].append(formulas.psnr(a, b) if "psnr" in chosen else NAN)
                per["ssim"].append(formulas.ssim(a, b) if "ssim" in chosen else NAN)
                per["lpips"].append(lpips(a, b) if lpips else NAN)
                if inception:
                    inception.add(GENERATED, a, b)
                if faces:
                    faces.add(GENERATED, a)
                    faces.add(TRUTH, b)
            if faces:
                all_scores = {GENERATED: per}
                try:
                    scores.add_lips(all_scores, faces.find(), np.ones(len(found), bool))
                except UserError as error:
                    no_faces = str(error)
        finally:
            if faces:
                faces.__exit__()
    for metric in ("lmd", "nioe"):
        for key in scores.OF_METRIC[metric]:
            if metric not in chosen:
                per.pop(key, None)
            elif no_faces:
                reasons[key] = f"not computed: {no_faces}"
    facts = {"generated": str(generated), "truth": str(truth)}
    facts |= {"frames": f"{len(found)} pairs of one number, {found[0]}..{found[-1]}"}
    for frames, name in ((made, "generated"), (true, "true")):
        left = len(frames.numbers) - len(found)
        if left:
            facts[f"{name} only"] = f"{left} frames, not scored"
    whole = inception.values() if inception else {}
    return text_report.Scored(facts, found, per, {"fid": whole.get(GENERATED, NAN)}, reasons)


def _unasked(chosen: set[str]) -> list[str]:
    return [key for metric in METRICS if metric not in chosen for key in scores.OF_METRIC[metric]]
