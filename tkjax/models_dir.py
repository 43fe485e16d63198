"""Where model files lie: the folder given, $TKJAX_MODELS, then the cache of the user. Standard library only."""

import os
from pathlib import Path

FACE_LANDMARKER = "face_landmarker.task"
CACHE = Path("~/.cache/tkjax")


def find_model(models_dir: str | os.PathLike | None = None, name: str = FACE_LANDMARKER) -> tuple[Path | None, str]:
    """(path of the model file, "") or (None, one sentence that says where it was looked for and what to do).

    Order: `models_dir`, $TKJAX_MODELS, ~/.cache/tkjax. Existence is checked, not content. A `models_dir` that is
    given is binding: when the file is not in it, the other places are not searched, so that a mistyped folder
    never picks another file in silence.
    """
    if models_dir:
        places = [Path(models_dir).expanduser()]
    else:
        places = [Path(p).expanduser() for p in (os.environ.get("TKJAX_MODELS"), CACHE) if p]
    for place in places:
        path = place if place.name == name else place / name
        if path.is_file():
            return path, ""
    looked = " and ".join(str(p) for p in places)
    return None, (
        f"no {name} in {looked}; put MediaPipe's {name} into a folder and name that folder with --models_dir "
        "or the variable TKJAX_MODELS"
    )
