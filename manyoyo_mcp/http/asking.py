"""What this server asks an authorization server over HTTP: only at addresses that the operator named, or that server's own metadata."""

import ipaddress
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx2

LARGEST = 256 << 10
"""Bytes of an answer."""
PATIENCE_S = 5.0


class Unavailable(Exception):
    """The authorization server does not answer, or not as it should. Its words say nothing of a token."""


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_safe(url: str) -> bool:
    """Whether such an address is asked at all: by TLS, or on this machine."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        return False
    if not host or parts.fragment or parts.username is not None or not url.isascii() or not url.isprintable():
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))


def client() -> httpx2.AsyncClient:
    """No redirects: whoever answers is to be who was named."""
    return httpx2.AsyncClient(timeout=PATIENCE_S, follow_redirects=False, limits=httpx2.Limits(max_connections=8))


async def ask(
    http: httpx2.AsyncClient,
    url: str,
    form: Mapping[str, str] | None = None,
    auth: tuple[str, str] | None = None,
) -> dict[str, Any]:
    """The JSON object at `url`; with a form, what is answered to it. Raises Unavailable."""
    if not is_safe(url):
        raise Unavailable("an address without TLS")
    method = "GET" if form is None else "POST"
    try:
        with anyio.fail_after(PATIENCE_S):
            async with http.stream(method, url, data=form, auth=auth, headers={"Accept": "application/json"}) as answer:
                if answer.status_code != 200:
                    raise Unavailable(f"it answered {answer.status_code}")
                body = b""
                async for piece in answer.aiter_bytes():
                    body += piece
                    if len(body) > LARGEST:
                        raise Unavailable(f"its answer is longer than {LARGEST} bytes")
        found = json.loads(body)
    except (httpx2.HTTPError, TimeoutError, OSError, ValueError, RecursionError) as error:
        raise Unavailable(type(error).__name__) from None
    if not isinstance(found, dict):
        raise Unavailable("it did not answer with a JSON object")
    return found
