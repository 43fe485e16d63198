"""Where model files lie: the folder given, $TKJAX_MODELS, then the cache of the user. Standard library only."""

import os
from pathlib import Path

FACE_LANDMARKER = "face_landmarker.task"
FACE_LANDMARKER_URL = (
    "https://storage.googleapis.com/mediapipe-models/face_landmarker/face_landmarker/float16/1/face_landmarker.task"
)
# Of the copy that everything here was measured with. It came from another place than this address and has not been
# compared with what lies there; if the maker's file is another one, it is refused and this has to be looked at.
FACE_LANDMARKER_SHA256 = "64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff"
FACE_LANDMARKER_BYTES = 3758596
CACHE = Path("~/.cache/tkjax")


def cache() -> Path:
    """The folder of what is fetched: $TKJAX_CACHE, else ~/.cache/tkjax."""
    return Path(os.environ.get("TKJAX_CACHE") or CACHE).expanduser()


def is_offline() -> bool:
    """Whether $TKJAX_OFFLINE forbids to fetch anything."""
    return os.environ.get("TKJAX_OFFLINE", "").strip().lower() not in ("", "0", "false", "no")


def find_model(models_dir: str | os.PathLike | None = None, name: str = FACE_LANDMARKER) -> tuple[Path | None, str]:
    """(path of the model file, "") or (None, one sentence that says where it was looked for and what to do).

    Order: `models_dir`, $TKJAX_MODELS, the cache. Existence is checked, not content. A `models_dir` that is
    given is binding: when the file is not in it, the other places are not searched, so that a mistyped folder
    never picks another file in silence. Nothing is fetched here.
    """
    if models_dir:
        places = [Path(models_dir).expanduser()]
    else:
        places = [Path(p).expanduser() for p in (os.environ.get("TKJAX_MODELS"), cache()) if p]
    for place in places:
        path = place if place.name == name else place / name
        if path.is_file():
            return path, ""
    looked = " and ".join(str(p) for p in places)
    file = f"MediaPipe's {name}"
    if name == FACE_LANDMARKER:
        file = f"{FACE_LANDMARKER_URL} ({FACE_LANDMARKER_BYTES} bytes, sha256 {FACE_LANDMARKER_SHA256})"
    return None, (
        f"no {name} in {looked}; put {file} into {cache()}, or into a folder that you name with --models_dir or the "
        "variable TKJAX_MODELS"
    )
