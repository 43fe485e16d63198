"""The tracker's model is fetched once, whole, and only if it is the known file; every failure is one quick sentence."""

import hashlib
import os
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from preprocess import __main__ as main
from preprocess.faces import fetch
from tkjax.app import options
from tkjax.errors import UserError
from tkjax.host import model_files

CONTENT = bytes(range(256)) * 900
NAME = model_files.FACE_LANDMARKER


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        if self.path == f"/good/{NAME}":
            self._send(CONTENT)
        elif self.path == f"/other/{NAME}":
            self._send(CONTENT[::-1])
        elif self.path == f"/long/{NAME}":
            self._send(CONTENT * 3)
        elif self.path == f"/cut/{NAME}":
            self._send(CONTENT[:1000], len(CONTENT))
        elif self.path == f"/moved/{NAME}":
            self.send_response(302)
            self.send_header("Location", f"/good/{NAME}")
            self.end_headers()
        elif self.path == f"/silent/{NAME}":
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            time.sleep(1.5)
        else:
            self.send_error(404)

    def _send(self, data, length=None):
        self.send_response(200)
        self.send_header("Content-Length", str(length or len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as s:
        s.asked, s.daemon_threads = [], True
        thread = threading.Thread(target=s.serve_forever, daemon=True)
        thread.start()
        yield s
        s.shutdown()


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty cache, a known file, and permission to fetch it."""
    for name in ("TKJAX_MODELS", "TKJAX_MODELS_MIRROR", "TKJAX_OFFLINE", "http_proxy", "https_proxy", "HTTP_PROXY",
                 "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TKJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "FACE_LANDMARKER_SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(fetch, "FACE_LANDMARKER_BYTES", len(CONTENT))
    monkeypatch.setattr(fetch, "TIMEOUTS_S", (0.5, 0.5))
    monkeypatch.setattr(fetch, "RESOLVE_S", 0.5)
    return tmp_path / "cache"


def at(server, folder):
    return f"http://127.0.0.1:{server.server_port}/{folder}"


@pytest.mark.heavy
@pytest.mark.parametrize("folder", ["good", "good/", f"good/{NAME}", "moved"])
def test_it_is_fetched_once_and_found_from_then_on(server, home, folder, capsys):
    path = fetch.face_landmarker(None, at(server, folder))
    assert path == home / NAME and path.read_bytes() == CONTENT
    assert f"fetching 0.2 MB from {at(server, 'good' if folder != 'moved' else 'moved')}" in capsys.readouterr().out
    n = len(server.asked)
    assert fetch.face_landmarker(None, at(server, folder)) == path and len(server.asked) == n
    assert [p.name for p in home.iterdir()] == [NAME]


def test_the_mirror_may_stand_in_the_environment(server, home, monkeypatch):
    monkeypatch.setenv("TKJAX_MODELS_MIRROR", at(server, "good"))
    assert fetch.face_landmarker(None).read_bytes() == CONTENT


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("other", "another sha256"),
        ("long", "more than the"),
        ("cut", "connection was cut"),
        ("silent", "fell silent"),
        ("nothing", "the server says 404"),
    ],
)
def test_what_goes_wrong_is_one_sentence_and_leaves_nothing(server, home, folder, words):
    began = time.monotonic()
    with pytest.raises(UserError) as error:
        fetch.face_landmarker(None, at(server, folder))
    assert time.monotonic() - began < 5
    known = (
        model_files.FACE_LANDMARKER_URL,
        model_files.FACE_LANDMARKER_SHA256,
        str(model_files.FACE_LANDMARKER_BYTES),
    )
    for said in (words, at(server, folder), *known, str(home), "--models_dir"):
        assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert not home.exists() or not list(home.iterdir())


def test_without_a_network_the_answer_is_quick(home, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(UserError, match="no connection"):
            fetch.face_landmarker(None, f"http://127.0.0.1:{unused.getsockname()[1]}")
    with pytest.raises(UserError, match=r"nowhere\.invalid"):
        fetch.face_landmarker(None, "http://nowhere.invalid/x")
    monkeypatch.setattr(fetch.socket, "getaddrinfo", lambda *_: time.sleep(3))  # a name server that does not answer
    began = time.monotonic()
    with pytest.raises(UserError, match="no answer from the name server"):
        fetch.face_landmarker(None)
    assert time.monotonic() - began < 2


def test_nothing_is_fetched_where_that_is_forbidden_or_a_folder_is_named(server, home, monkeypatch, tmp_path):
    with pytest.raises(UserError, match=r"not fetched, because --offline"):
        fetch.face_landmarker(None, at(server, "good"), offline=True)
    monkeypatch.setenv("TKJAX_OFFLINE", "1")
    with pytest.raises(UserError, match=r"not fetched, because TKJAX_OFFLINE"):
        fetch.face_landmarker(None, at(server, "good"))
    monkeypatch.setenv("TKJAX_OFFLINE", "0")
    with pytest.raises(UserError, match="without --models_dir it is fetched"):
        fetch.face_landmarker(str(tmp_path), at(server, "good"))
    assert not server.asked
    assert fetch.face_landmarker(None, at(server, "good")).is_file()


@pytest.mark.parametrize("mirror", ["ftp://x/y", "file:///etc", "x.org", "http://", "/a/b"])
def test_a_mirror_that_is_no_address_is_refused(home, mirror):
    with pytest.raises(UserError, match=r"--models_mirror=.*http"):
        fetch.face_landmarker(None, mirror)


def test_a_cache_that_cannot_be_written_is_a_sentence(server, home):
    home.write_text("a file where the folder would be")
    with pytest.raises(UserError, match=str(home)):
        fetch.face_landmarker(None, at(server, "good"))


def test_the_flags_reach_the_child(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    opts = options.parse(
        ["x", "--mode=preprocess", "--video=v.mp4", "--workdir=w", "--offline", "--models_mirror=http://m"]
    )
    from tkjax.app import cli, workflow

    runs = []
    monkeypatch.setattr(main.pipeline, "run", runs.append)
    arguments = workflow.preprocess_arguments(cli.given(opts, "video", "workdir", *options.PREPARING))
    for more in (arguments, ["--video=v", "--workdir=w"], ["--video=v", "--workdir=w", "--offline=False"]):
        assert main.main(more) == 0
    assert [(r.offline, r.models_mirror) for r in runs] == [(True, "http://m"), (False, ""), (False, "")]
    assert os.environ["HF_HUB_OFFLINE"] == "1"  # no name of a model is looked up either


def test_the_known_file_is_the_one_of_the_development_data(data_dir):
    data = (data_dir / "models" / NAME).read_bytes()
    assert hashlib.sha256(data).hexdigest() == model_files.FACE_LANDMARKER_SHA256
    assert len(data) == model_files.FACE_LANDMARKER_BYTES
