"""The server: who may reach it, what it takes, and what it never gives."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from typer.testing import CliRunner

pytest.importorskip("gradio")

from sketchfusion_plugins.cli import app
from sketchfusion_plugins.demo.serve import (
    LARGEST_REQUEST,
    LARGEST_UPLOAD,
    LimitedRequests,
    check_port,
    serving,
)

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
    inside = Path(__file__).resolve()
    dotted = f"{Path.cwd()}/../../../../../../../../etc/passwd"
    for path in (str(secret), "/etc/passwd", str(inside), "pyproject.toml", dotted):
        for name in (path, quote(path, safe="")):
            status, text = _ask(address, f"{prefix}/file={name}")
            assert status >= 400
            assert b"my secret" not in text
            assert b"root:" not in text


def test_an_upload_stays_in_the_private_folder_whatever_its_name(address: str) -> None:
    for name in ("../../../escaped.png", "/tmp/escaped.png", "..%2fescaped.png"):
        status, text = _ask(address, "/gradio_api/upload", *_form(name, b"hello"))
        if status != 200:
            continue
        (path,) = json.loads(text)
        assert Path(path).resolve().is_relative_to(Path(os.environ["GRADIO_TEMP_DIR"]).resolve())
    assert not Path("/tmp/escaped.png").exists()


def test_huge_uploads_and_requests_are_refused(address: str) -> None:
    form = _form("a.png", bytes(LARGEST_UPLOAD + 1))
    assert _ask(address, "/gradio_api/upload", *form)[0] == 413
    # Headers alone: what a server has not read when it hangs up resets the connection.
    huge = {"Content-Length": str(LARGEST_REQUEST + 1), "Content-Type": "application/json"}
    assert _ask(address, "/gradio_api/queue/join", b"", huge)[0] == 413
    assert _ask(address, "/gradio_api/queue/join", b"", {"Content-Length": "many"})[0] >= 400


def test_bodies_without_a_length_are_cut() -> None:
    got: list[Any] = []

    async def reader(scope: Any, receive: Any, send: Any) -> None:
        while (message := await receive())["type"] == "http.request":
            got.append(message["body"])
        got.append(message["type"])

    async def receive() -> Any:
        return {"type": "http.request", "body": b"1234", "more_body": True}

    async def send(message: Any) -> None:
        raise AssertionError(message)

    scope = {"type": "http", "headers": [(b"transfer-encoding", b"chunked")]}
    asyncio.run(LimitedRequests(reader, 10)(scope, receive, send))
    assert got == [b"1234", b"1234", "http.disconnect"]


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


def test_an_unknown_model_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    # Whoever else uses the usual port here.
    monkeypatch.setattr("sketchfusion_plugins.demo.serve.check_port", lambda *_: None)
    result = CliRunner().invoke(app, ["demo", "--model", "nothing"])
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: no model 'nothing'")
