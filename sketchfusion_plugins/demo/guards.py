"""Which requests the page's server takes: of whom, how long, and how much of them is kept.

Gradio bounds single files alone. It answers to any name, so that a site whose name is made to
point at this machine (DNS rebinding) would read the page as its own, and it takes uploads that
other sites send. starlette's own check of names lets no numeric address in that was not named.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

LARGEST_UPLOAD = 10 * 2**20
# An upload and what its form adds to it.
LARGEST_REQUEST = LARGEST_UPLOAD + 2**20
# Bytes of all files that are kept at once; gradio deletes old ones.
MOST_KEPT = 500 * 2**20
# What browsers say of requests that the page itself makes, and of an address that was typed in.
OWN_SITES = ("same-origin", "none")
READING = ("GET", "HEAD", "OPTIONS")
EVERYWHERE = ("0.0.0.0", "::")


def known_names(host: str, others: Iterable[str] = ()) -> frozenset[str]:
    """Names that browsers may call a server by, besides numeric addresses.

    Args:
        host: Address that it listens at; one that stands for all adds this machine's own name.
        others: Further names, of a proxy or of the machine around a container.
    """
    host = host.strip("[]")
    names = {"localhost", host, *others}
    if host in EVERYWHERE:
        own = socket.gethostname()
        short = own.partition(".")[0]
        names |= {own, short, f"{short}.local", socket.getfqdn()}
    return frozenset(name.lower() for name in names)


class GuardedRequests:
    """Refuses requests, before anything of them is read.

    403 for a name that is not this server's, and for what a page of another site sends; 411 for a
    body that does not say how long it is; 413 for one that is too long; 507 where the folder is
    full.

    Args:
        app: What answers requests.
        names: Names that the server goes by, see `known_names`.
        folder: Folder that uploads and answers' pictures go to.
        largest: Bytes of a body.
        most_kept: Bytes of all files in the folder.
    """

    def __init__(
        self,
        app: Any,
        names: Collection[str],
        folder: Path,
        largest: int = LARGEST_REQUEST,
        most_kept: int = MOST_KEPT,
    ) -> None:
        self.app, self.names, self.folder = app, names, folder
        self.largest, self.most_kept = largest, most_kept

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, see the ASGI specification."""
        refusal = await self._refusal(scope) if scope["type"] == "http" else None
        if refusal is None:
            await self.app(scope, receive, send)
        else:
            await _refuse(send, *refusal)

    async def _refusal(self, scope: Any) -> tuple[int, str] | None:
        """Status and reason of what is refused."""
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        name = _host_name(headers.get("host", ""))
        if name not in self.names and not _is_address(name):
            return (
                403,
                f"This page does not answer to the name {name!r}. See sketchfusion demo --name.",
            )
        if self._is_foreign(headers, name) and (
            scope["method"] not in READING or "origin" in headers
        ):
            return 403, "A page of another site sent this."
        if scope["method"] in READING:
            return None
        length = headers.get("content-length")
        if length is None or "transfer-encoding" in headers:
            return 411, "Requests say how long they are."
        if not length.isdigit() or int(length) > self.largest:
            return 413, f"Requests hold at most {self.largest // 2**20} MB."
        if scope["path"].endswith("/upload"):
            kept = await asyncio.to_thread(_bytes_in, self.folder)
            if kept > self.most_kept:
                return 507, "Too many files are kept; try again later."
        return None

    def _is_foreign(self, headers: Mapping[str, str], name: str) -> bool:
        """Whether a page of another site sent a request.

        Browsers say so themselves to addresses that they trust, such as localhost; to others they
        tell where a page came from, and of that a proxy may have changed the port.
        """
        site = headers.get("sec-fetch-site")
        if site is not None:
            return site not in OWN_SITES
        origin = headers.get("origin")
        return origin is not None and _host_name(origin.partition("//")[2]) not in (
            name,
            *self.names,
        )


def _host_name(host: str) -> str:
    """Name or address in a ``Host`` header, in lower case; empty if there is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    """Whether it is numeric, so that nobody can make it point elsewhere."""
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _bytes_in(folder: Path) -> int:
    found = 0
    for path in folder.rglob("*"):
        # Gradio may be deleting it.
        with suppress(OSError):
            found += path.stat().st_size if path.is_file() else 0
    return found


async def _refuse(send: Any, status: int, reason: str) -> None:
    headers = [(b"content-type", b"text/plain"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": reason.encode()})
