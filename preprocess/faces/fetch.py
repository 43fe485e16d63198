"""The face tracker's model file, fetched once into the cache where no folder has it.

Only a file with the known sha256 is kept; it appears whole or not at all. Nothing here waits for long: names are
looked up for RESOLVE_S at most, a silent server is left after the two TIMEOUTS_S, a slow one after DEADLINE_S.
"""

import os
import socket
import threading
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from preprocess.resumable import say
from tkjax.errors import UserError
from tkjax.host import model_files
from tkjax.host.model_files import FACE_LANDMARKER, FACE_LANDMARKER_BYTES, FACE_LANDMARKER_SHA256, FACE_LANDMARKER_URL

RESOLVE_S = 5.0  # getaddrinfo alone would try for half a minute without a network
TIMEOUTS_S = (5.0, 15.0)  # to connect; without a byte
DEADLINE_S = 600.0  # for 3.8 MB: 6 kB/s
EVERY_S = 2.0  # between two lines of progress
BLOCK = 1 << 16


class _Gauge:
    """What pooch takes for a progress bar: lines of progress, and the end of a transfer that is too slow or long."""

    def __init__(self, most: int):
        self.total, self._most, self._n = 0, most, 0
        self._start = self._shown = time.monotonic()

    def update(self, n: int) -> None:
        self._n += n
        now = time.monotonic()
        if self._n > self._most + BLOCK:
            raise OverflowError(f"it sends more than the {self._most} bytes of the file")
        if now - self._start > DEADLINE_S:
            raise TimeoutError(f"{self._n} bytes in {DEADLINE_S:.0f} s")
        if now - self._shown > EVERY_S:
            self._shown = now
            say(f"{FACE_LANDMARKER}: {self._n / 1e6:.1f} of {self._most / 1e6:.1f} MB")

    def reset(self) -> None:
        self._n = 0

    def close(self) -> None:
        pass


def address(mirror: str | None) -> str:
    """Where the file is fetched from: the maker's server, or a folder (or the file) on another one."""
    if not mirror:
        return FACE_LANDMARKER_URL
    parts = urlsplit(mirror)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(
            f"--models_mirror={mirror} is no address; give the http or https folder that holds {FACE_LANDMARKER}"
        )
    return mirror if parts.path.endswith(".task") else f"{mirror.rstrip('/')}/{FACE_LANDMARKER}"


def _resolve(url: str) -> None:
    """ConnectionError where the server's name cannot be looked up in time. A proxy looks names up itself."""
    parts = urlsplit(url)
    if parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(parts.hostname):
        return
    failed: list[str] = []

    def look_up() -> None:
        try:
            socket.getaddrinfo(parts.hostname, parts.port or parts.scheme)
            failed.append("")
        except (OSError, UnicodeError) as e:
            failed.append(getattr(e, "strerror", None) or str(e))

    thread = threading.Thread(target=look_up, daemon=True)  # it cannot be interrupted
    thread.start()
    thread.join(RESOLVE_S)
    if not failed or failed[0]:
        raise ConnectionError(f"{parts.hostname}: {failed[0] if failed else 'no answer from the name server'}")


def fetch(url: str, folder: Path) -> Path:
    """Fetch the file at `url` to `folder`; OSError, ValueError or OverflowError with a reason where that fails."""
    import pooch

    pooch.get_logger().setLevel("WARNING")
    _resolve(url)
    say(f"{FACE_LANDMARKER}: fetching {FACE_LANDMARKER_BYTES / 1e6:.1f} MB from {url}")
    downloader = pooch.HTTPDownloader(
        progressbar=_Gauge(FACE_LANDMARKER_BYTES), chunk_size=BLOCK, timeout=TIMEOUTS_S,
        headers={"Accept-Encoding": "identity"},
    )  # fmt: skip
    path = pooch.retrieve(url, f"sha256:{FACE_LANDMARKER_SHA256}", FACE_LANDMARKER, folder, downloader=downloader)
    os.chmod(path, 0o644)  # pooch's temporary file is its maker's alone, and caches are shared
    say(f"{FACE_LANDMARKER}: kept in {path}")
    return Path(path)


def face_landmarker(models: str | None, mirror: str | None = None, offline: bool = False) -> Path:
    """The model file: where `model_files.find_model` finds it, else fetched into the cache.

    mirror: else $TKJAX_MODELS_MIRROR, else the maker's server. offline, or $TKJAX_OFFLINE: nothing is fetched. A
    folder that is named is binding and is never filled. UserError says what to download and where to put it.
    """
    path, reason = model_files.find_model(models)
    if path is not None:
        return path
    if models:
        raise UserError(f"{reason}; without --models_dir it is fetched into {model_files.cache()}")
    if offline or model_files.is_offline():
        raise UserError(f"{reason}; it is not fetched, because {'--offline' if offline else 'TKJAX_OFFLINE'} says so")
    url = address(mirror or os.environ.get("TKJAX_MODELS_MIRROR"))
    try:
        return fetch(url, model_files.cache())
    except (OSError, ValueError, OverflowError, ImportError) as e:  # requests' errors are OSErrors
        why = _why(e)
    raise UserError(f"{reason}; it could not be fetched from {url} ({why}); --models_mirror names another server")


def _why(error: Exception) -> str:
    """A few words for each kind of failure."""
    response = getattr(error, "response", None)
    if response is not None:
        return f"the server says {response.status_code} {response.reason}"
    text = " ".join(str(error).split())
    if "hash" in text and isinstance(error, ValueError):
        return "what came has another sha256, so it was not kept"
    if not type(error).__module__.startswith("requests"):
        return text[:120] or type(error).__name__
    if "Read timed out" in text:
        return "the server fell silent"
    if "IncompleteRead" in text or type(error).__name__ == "ChunkedEncodingError":
        return "the connection was cut"
    return "no connection"
