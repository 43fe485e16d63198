"""`model_data.json` of Avatar-ERNeRF (dossier §2.3): written beside the dataset, read when a folder is imported.

Decisions: paths are relative to the folder of the file (the original's absolute `data_dir` breaks when it moves);
`train_dir` and `infer_dir` are names as there, never none (there a TypeError after all the work); what has no
counterpart here (`head_video_file`: the crop is in the shards) is the empty string. It is assembled from files on disk,
so it can be written again at any time. `infer_params.paste_back` is ours; the original ignores it and has no scheme as
good, so its `merge_mode` stays at its default 0.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from tkjax.contract import FULL, FULL_ALPHA, Dataset
from tkjax.errors import UserError
from tkjax.host.files import write_atomic

NAME = "model_data.json"
MERGE_MODES = ("box", "face", "face_neck")  # merge_mode 0, 1, 2
CODES_SECONDS, CODES = 300, (10000, 20000)  # ind_num: the first below that length, else the second
ITERATIONS = {"train_head_iters": 200000, "train_lips_iters": 250000, "train_torso_iters": 200000}
AUDIO_OUT_DIM = 32
TYPES: dict[str, type | tuple[type, ...]] = {
    "model_name": str, "data_dir": str, "train_dir": str, "infer_dir": str, "video_file": str, "audio_file": str,
    "alpha_file": str, "frame_height": int, "frame_width": int, "frame_count": int, "fps": int, "sample_rate": int,
    "background_ref": (str, list), "background_trt": (str, list), "head_video_file": str, "head_region": list,
    "head_size": int, "alpha_feat_file": str, "afe_model_name": str, "afe_model_arch": str, "afe_model_weight": str,
    "nerf_structure": dict, "train_params": dict, "infer_params": dict,
}  # fmt: skip
SECTIONS = {
    "nerf_structure": ("audio_in_dim", "audio_out_dim", "ind_num"),
    "train_params": tuple(ITERATIONS),
    "infer_params": ("use_torso", "merge_mode", "frame_index_start_at", "frame_index_end_at"),
}


def ind_num(n_frames: int, fps: float = 25) -> int:
    """Rows of the table of individual codes: 10000 for clips below 300 s, else 20000."""
    return CODES[0] if n_frames < CODES_SECONDS * fps else CODES[1]


@dataclasses.dataclass(frozen=True)
class ModelData:
    """A model_data.json: every field as it stands, and what its infer_params mean here."""

    path: Path
    fields: dict[str, Any]

    @property
    def data_dir(self) -> Path:
        """The data folder: as named; the folder of the file where that one has been moved."""
        named = self.path.parent / self.fields["data_dir"]
        return named if named.is_dir() else self.path.parent

    @property
    def paste_back(self) -> str:
        """Scheme of paste-back: our own entry where there is one, else by merge_mode."""
        infer = self.fields["infer_params"]
        return infer.get("paste_back") or MERGE_MODES[infer["merge_mode"]]

    @property
    def use_torso(self) -> bool:
        return bool(self.fields["infer_params"]["use_torso"])

    @property
    def frame_range(self) -> tuple[int, int]:
        """First frame and end (half open) of what a rendering uses; frame_index_end_at -1 is the end of the clip."""
        infer = self.fields["infer_params"]
        n, start, end = self.fields["frame_count"], infer["frame_index_start_at"], infer["frame_index_end_at"]
        return start, n if end < 0 else end

    @property
    def crop_px(self) -> tuple[int, int, int, int]:
        return tuple(self.fields["head_region"])


def read(path: str | Path) -> ModelData:
    """A model_data.json (or a folder that holds one), checked; UserError in one sentence."""
    path = Path(path)
    path = path / NAME if path.is_dir() else path
    try:
        fields = json.loads(path.read_text())
    except OSError as e:
        raise UserError(f"{path}: {e.strerror or e}, expected the {NAME} of an Avatar-ERNeRF model") from e
    except ValueError as e:
        raise UserError(f"{path} is not valid json ({str(e)[:80]}), expected the {NAME} of Avatar-ERNeRF") from e
    if not isinstance(fields, dict):
        raise UserError(f"{path} holds a json {type(fields).__name__}, expected an object with model_name and the rest")
    _check(fields, path)
    return ModelData(path, fields)


def _check(fields: dict[str, Any], path: Path) -> None:
    def refuse(key: str, value: Any, expected: str) -> UserError:
        return UserError(f"{path}: {key} is {json.dumps(value)[:60]}, expected {expected}")

    for key, kind in TYPES.items():
        if key not in fields:
            raise UserError(f"{path}: {key} is missing, expected the keys that Avatar-ERNeRF writes")
        if not isinstance(fields[key], kind) or isinstance(fields[key], bool):
            names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
            raise refuse(key, fields[key], f"a json value of type {names}")
    for section, keys in SECTIONS.items():
        for key in keys:
            value = fields[section].get(key)
            if not isinstance(value, bool if key == "use_torso" else int):
                raise refuse(f"{section}.{key}", value, "true or false" if key == "use_torso" else "a whole number")
    box = fields["head_region"]
    good = len(box) == 4 and all(isinstance(v, int) for v in box) and box[0] < box[2] and box[1] < box[3]
    if not good:
        raise refuse("head_region", box, "[x1, y1, x2, y2] in pixels with x1 < x2 and y1 < y2")
    infer, n = fields["infer_params"], fields["frame_count"]
    if infer["merge_mode"] not in range(len(MERGE_MODES)):
        raise refuse("infer_params.merge_mode", infer["merge_mode"], "0 (box), 1 (face) or 2 (face_neck)")
    start, end = infer["frame_index_start_at"], infer["frame_index_end_at"]
    if not 0 <= start < (n if end < 0 else min(end, n)):
        raise refuse("infer_params.frame_index_start_at", start, f"a frame before the end of the {n}")


def _extractor(audio: dict[str, dict[str, Any]]) -> tuple[str, int, str, str, str]:
    """(kind, channels, afe_model_name, _arch, _weight) of the sound features: learnt ones before log-mel."""
    if not audio:
        return "", 0, "", "", ""
    kind = next((k for k in ("hubert", "wav2vec2") if k in audio), sorted(audio)[0])
    channels = int(audio[kind]["channels"])
    arch = {768: "base", 1024: "large"}.get(channels, "")
    return kind, channels, kind, arch, str(audio[kind]["extractor"])


def assemble(dataset: str | Path, folder: str | Path) -> dict[str, Any]:
    """The fields for a dataset on disk, with paths relative to `folder`."""
    d = Dataset(dataset, verify=False)
    m, source = d.manifest, d.manifest["source"]
    kind, channels, name, arch, weight = _extractor(m["audio"])
    width, height = source.get("full_size") or (d.width, d.height)
    subject, files = m["subject"], m["files"]
    return {
        "model_name": subject,
        "data_dir": _relative(d.root, Path(folder)),
        "train_dir": subject,
        "infer_dir": subject,
        "video_file": FULL if FULL in files else "",
        "audio_file": "audio.wav" if "audio.wav" in files else "",
        "alpha_file": FULL_ALPHA if FULL_ALPHA in files else "",
        "frame_height": int(height),
        "frame_width": int(width),
        "frame_count": d.n_frames,
        "fps": int(d.fps),
        "sample_rate": 16000,
        "background_ref": source.get("background_ref", ""),
        "background_trt": source.get("background_trt", ""),
        "head_video_file": "",
        "head_region": [int(v) for v in source.get("crop_px") or (0, 0, d.width, d.height)],
        "head_size": max(d.height, d.width),
        "alpha_feat_file": f"audio_{kind}.npz" if kind else "",  # the original's name for the sound features (sic)
        "afe_model_name": name,
        "afe_model_arch": arch,
        "afe_model_weight": weight,
        "nerf_structure": {"audio_in_dim": channels, "audio_out_dim": AUDIO_OUT_DIM, "ind_num": ind_num(d.n_frames)},
        "train_params": dict(ITERATIONS),
        "infer_params": {"use_torso": False, "merge_mode": 0, "frame_index_start_at": 0, "frame_index_end_at": -1,
                         "paste_back": "blend"},
    }  # fmt: skip


def _relative(path: Path, folder: Path) -> str:
    path, folder = path.resolve(), folder.resolve()
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def write(dataset: str | Path, path: str | Path) -> None:
    """Write the file for a dataset; what a user changed in an older one's infer_params and train_params stays."""
    path = Path(path)
    fields = assemble(dataset, path.parent)
    if path.is_file():
        try:
            old = read(path).fields
            fields |= {k: {**fields[k], **old[k]} for k in ("infer_params", "train_params")}
        except UserError:
            pass  # damaged: written anew
    write_atomic(path, (json.dumps(fields, indent=2) + "\n").encode())
