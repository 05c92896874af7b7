"""The server: who may reach it, what it takes, and what it never gives."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from typer.testing import CliRunner

pytest.importorskip("gradio")

from sketchfusion_plugins.cli import app
from sketchfusion_plugins.demo.guards import (
    LARGEST_REQUEST,
    LARGEST_UPLOAD,
    GuardedRequests,
    known_names,
)
from sketchfusion_plugins.demo.serve import check_port, serving

pytestmark = pytest.mark.usefixtures("patient_gradio")

LOOPBACK = ("127.0.0.1", "::1", "localhost", "0.0.0.0")


@pytest.fixture(scope="module")
def called() -> list[str]:
    """Hosts that somebody in this process looked up or connected to."""
    return []


@pytest.fixture(scope="module")
def address(prepared: Any, called: list[str]) -> Iterator[str]:
    real = socket.getaddrinfo

    def watched(host: Any, *arguments: Any, **options: Any) -> Any:
        called.append(str(host))
        return real(host, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", watched)
        with serving(*prepared, port=None) as place:
            yield place


def _ask(
    address: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=30)
    connection.request("GET" if body is None else "POST", path, body, headers or {})
    response = connection.getresponse()
    found = response.status, response.read()
    connection.close()
    return found


def _form(name: str, content: bytes) -> tuple[bytes, dict[str, str]]:
    head = (
        f'--edge\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n'
        "Content-Type: image/png\r\n\r\n"
    )
    body = head.encode() + content + b"\r\n--edge--\r\n"
    return body, {"Content-Type": "multipart/form-data; boundary=edge"}


def test_the_page_is_served_to_this_machine(address: str) -> None:
    assert address.startswith("http://127.0.0.1:")
    status, page = _ask(address, "/")
    assert status == 200
    assert b"SketchFusion" in page


def test_nothing_but_this_machine_is_called(address: str, called: list[str]) -> None:
    _ask(address, "/")
    assert [host for host in called if host not in LOOPBACK] == []


def test_settings_are_strict(address: str) -> None:
    status, text = _ask(address, "/config")
    assert status == 200
    config = json.loads(text)
    assert config["analytics_enabled"] is False
    assert {call["api_visibility"] for call in config["dependencies"]} == {"private"}
    assert _ask(address, "/monitoring")[0] != 200


@pytest.mark.parametrize("prefix", ["", "/gradio_api"])
def test_files_of_the_machine_are_not_given(address: str, prefix: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("my secret")
    uploaded = json.loads(_ask(address, "/gradio_api/upload", *_form("mine.png", b"mine"))[1])[0]
    assert _ask(address, f"/gradio_api/file={uploaded}") == (200, b"mine")
    inside = Path(__file__).resolve()
    dotted = f"{Path.cwd()}/../../../../../../../../etc/passwd"
    for path in (str(secret), "/etc/passwd", str(inside), "pyproject.toml", dotted):
        for name in (path, quote(path, safe="")):
            status, text = _ask(address, f"{prefix}/file={name}")
            assert status >= 400
            assert b"my secret" not in text
            assert b"root:" not in text


def test_an_upload_stays_in_the_private_folder_whatever_its_name(
    address: str, tmp_path: Path
) -> None:
    private = Path(os.environ["GRADIO_TEMP_DIR"]).resolve()
    for name in (
        "plain.png",
        "../../../escaped.png",
        f"{tmp_path}/escaped.png",
        "..%2fescaped.png",
    ):
        status, text = _ask(address, "/gradio_api/upload", *_form(name, b"hello"))
        assert status == 200
        (path,) = json.loads(text)
        assert Path(path).read_bytes() == b"hello"
        assert Path(path).resolve().is_relative_to(private)
    outside = (private.parent, private.parents[1], tmp_path, Path.cwd())
    assert not any((folder / "escaped.png").exists() for folder in outside)


def test_huge_uploads_and_requests_are_refused(address: str) -> None:
    form = _form("a.png", bytes(LARGEST_UPLOAD + 1))
    assert _ask(address, "/gradio_api/upload", *form)[0] == 413
    # Headers alone: what a server has not read when it hangs up resets the connection.
    huge = {"Content-Length": str(LARGEST_REQUEST + 1), "Content-Type": "application/json"}
    assert _ask(address, "/gradio_api/queue/join", b"", huge)[0] == 413
    assert _ask(address, "/gradio_api/queue/join", b"", {"Content-Length": "many"})[0] >= 400


def _status(guard: GuardedRequests, method: str = "GET", **headers: str) -> int:
    """What a guard answers; 200 where it passes the request on."""
    sent: list[Any] = []
    named = {"host": "localhost:7860", **headers}
    scope = {
        "type": "http",
        "method": method,
        "path": "/gradio_api/upload",
        "headers": [(k.replace("_", "-").encode(), v.encode()) for k, v in named.items()],
    }

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(guard(scope, None, send))
    return int(sent[0]["status"])


@pytest.fixture
def guard(tmp_path: Path) -> Callable[..., GuardedRequests]:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    def make(host: str = "127.0.0.1", **limits: int) -> GuardedRequests:
        return GuardedRequests(app, known_names(host), tmp_path, **limits)

    return make


@pytest.mark.parametrize(
    ("host", "name", "status"),
    [
        ("127.0.0.1", "127.0.0.1:7860", 200),
        ("127.0.0.1", "LOCALHOST:80", 200),
        ("127.0.0.1", "[::1]:7860", 200),
        # A name that was made to point here, and what is no name.
        ("127.0.0.1", "evil.example:7860", 403),
        ("127.0.0.1", "localhost.evil.example", 403),
        ("127.0.0.1", "127.0.0.1.evil.example", 403),
        ("127.0.0.1", "", 403),
        ("127.0.0.1", "[", 403),
        ("127.0.0.1", "drawing.lab.example", 403),
        ("0.0.0.0", "drawing.lab.example:7860", 200),
        ("0.0.0.0", "drawing", 200),
        ("[::]", "drawing.local:7860", 200),
        ("[::]", "drawing.lan", 200),
        ("0.0.0.0", "192.168.1.7:7860", 200),
        ("0.0.0.0", "evil.example", 403),
        ("gpu.lab.example", "gpu.lab.example:7860", 200),
    ],
)
def test_no_other_name_is_answered(
    guard: Any, host: str, name: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "Drawing.lab.example")
    monkeypatch.setattr(socket, "getfqdn", lambda: "drawing.lan")
    assert _status(guard(host), host=name) == status


def test_a_further_name_is_answered(guard: Any, tmp_path: Path) -> None:
    proxied = GuardedRequests(guard().app, known_names("127.0.0.1", ["Hub.example"]), tmp_path)
    assert _status(proxied, host="hub.example") == 200
    # A proxy may pass on its own name, the server's address, or a port of either.
    for host in ("hub.example", "hub.example:80", "127.0.0.1:7860"):
        for origin in ("http://hub.example", "http://Hub.example:8080"):
            assert _status(proxied, "POST", content_length="1", host=host, origin=origin) == 200
    assert _status(proxied, host="evil.example") == 403


def test_other_names_are_refused_by_the_server(address: str) -> None:
    status, text = _ask(address, "/config", headers={"Host": "evil.example"})
    assert (status, text[:46]) == (403, b"This page does not answer to the name 'evil.ex")


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("POST", {"content_length": "1000"}, 200),
        ("POST", {"content_length": "1000", "sec_fetch_site": "same-origin"}, 200),
        ("POST", {"content_length": "1000", "sec_fetch_site": "cross-site"}, 403),
        # A page of another port of this machine.
        ("POST", {"content_length": "1000", "sec_fetch_site": "same-site"}, 403),
        ("GET", {"sec_fetch_site": "cross-site"}, 200),
        ("GET", {"sec_fetch_site": "cross-site", "origin": "https://evil.example"}, 403),
        # Browsers say no more to an address that they do not trust.
        ("POST", {"content_length": "10", "origin": "http://localhost:7860"}, 200),
        ("POST", {"content_length": "10", "origin": "https://evil.example"}, 403),
        ("POST", {"content_length": "10", "origin": "http://["}, 403),
        ("POST", {"content_length": "10", "origin": "null"}, 403),
        ("GET", {"origin": "https://evil.example"}, 403),
        ("POST", {"transfer_encoding": "chunked"}, 411),
        ("POST", {"content_length": "10", "transfer_encoding": "chunked"}, 411),
        ("POST", {"content_length": "1001"}, 413),
        ("POST", {"content_length": "many"}, 413),
    ],
)
def test_what_other_sites_send_and_bodies_without_end_are_refused(
    guard: Any, method: str, headers: dict[str, str], status: int
) -> None:
    assert _status(guard(largest=1000), method, **headers) == status


def test_uploads_are_bounded_together(guard: Any, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.png").write_bytes(bytes(600))
    bounded = guard(most_kept=1000)
    assert _status(bounded, "POST", content_length="10") == 200
    (tmp_path / "one" / "b.png").write_bytes(bytes(600))
    assert _status(bounded, "POST", content_length="10") == 507
    assert _status(bounded) == 200


def test_nothing_is_left_behind(prepared: Any) -> None:
    before = {name: os.environ.get(name) for name in ("GRADIO_TEMP_DIR", "no_proxy")}
    with serving(*prepared, port=None) as place:
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        assert folder.is_dir()
        assert folder.stat().st_mode & 0o077 == 0
        ours = json.loads(_ask(place, "/config")[1])["app_id"]
    assert not folder.exists()
    assert {name: os.environ.get(name) for name in before} == before
    # Whoever answers has taken the port since: a test in another process, say.
    with suppress(OSError, http.client.HTTPException):
        assert str(ours).encode() not in _ask(place, "/config")[1]


def test_a_taken_port_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        arguments = ["demo", "--model", "pixels", "--size", "64", "--port", port]
        with pytest.MonkeyPatch.context() as patch:
            # Before anything is opened or described.
            patch.setattr("sketchfusion_plugins.demo.serve.prepare", None)
            result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert result.stderr == f"Error: port {port} is taken; give another by --port.\n"


def test_an_address_of_another_machine_is_one_line() -> None:
    with pytest.raises(OSError, match=r"^cannot listen at 192\.0\.2\.1, port 7860: .+--host"):
        check_port("192.0.2.1", 7860)
    check_port("192.0.2.1", None)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no such signals")
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_ones_own_pictures_until_it_is_told_to_end(
    ending: signal.Signals, tmp_path: Path
) -> None:
    from PIL import Image

    (tmp_path / "mine").mkdir()
    for name, colour in (("red", "red"), ("blue", "blue")):
        image = Image.new("RGB", (40, 40), "white")
        image.paste(colour, (8, 8, 30, 20))
        image.save(tmp_path / "mine" / f"{name}.png")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "sketchfusion_plugins", "demo", "--model", "pixels"]
    command += ["--size", "64", "--gallery", "mine", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    patience = threading.Timer(600, process.kill)
    patience.start()
    try:
        assert process.stdout is not None
        address = f"http://127.0.0.1:{port}"
        assert process.stdout.readline() == f"Draw at {address}/ (Ctrl+C ends it).\n"
        status, page = _ask(address, "/config")
        assert status == 200
        assert f"2 pictures of {tmp_path / 'mine'}" in page.decode()
        process.send_signal(ending)
        _, errors = process.communicate(timeout=60)
    finally:
        patience.cancel()
        process.kill()
        process.communicate()
    assert (process.returncode, errors) == (0, "")


def test_an_unknown_model_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    # Whoever else uses the usual port here.
    monkeypatch.setattr("sketchfusion_plugins.demo.serve.check_port", lambda *_: None)
    result = CliRunner().invoke(app, ["demo", "--model", "nothing"])
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: no model 'nothing'")
