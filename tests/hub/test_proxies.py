from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from urllib.parse import urlsplit

import pytest

from llamaconv.demo.hub import Hub
from llamaconv.demo.repository import Repository
from tests.hub.fetching import plain
from tests.hub.proxies import Proxy, http_proxy, socks5_proxy

FILES = {"config.json": b'{"model_type": "llama"}'}
Start = Callable[..., AbstractContextManager[Proxy]]


@pytest.mark.parametrize("start", [http_proxy, socks5_proxy])
@pytest.mark.parametrize("login", [(), ("a user", "p@ss/word")])
def test_a_proxy_carries_a_request(start: Start, login: tuple[str, ...]) -> None:
    """Its log names the Hub once for the client's one connection, and no other server."""
    with Hub([Repository("org/m", FILES)]) as hub, start(*login) as proxy:
        with plain(proxy=proxy.url, base_url=hub.endpoint) as client:
            assert client.get("/org/m/resolve/main/config.json").content == FILES["config.json"]
        ports = [urlsplit(origin).port or 0 for origin in (hub.endpoint, hub.storage)]
    assert [proxy.requests_to("127.0.0.1", port) for port in ports] == [1, 0]


def test_an_http_proxy_asks_for_a_login() -> None:
    """Without user and password it answers 407, and the Hub hears nothing."""
    with Hub([Repository("org/m", FILES)]) as hub, http_proxy("user", "right") as proxy:
        for login in ("", "user:wrong@"):
            with plain(proxy=f"http://{login}127.0.0.1:{proxy.port}", base_url=hub.endpoint) as client:
                assert client.get("/org/m/resolve/main/config.json").status_code == 407
    assert hub.log == []


@pytest.mark.parametrize(
    ("greeting", "chosen", "login"),
    [
        (b"\x05\x01\x00", b"", b""),
        (b"\x05\x01\x02", b"\x05\x02", b"\x01\x04user\x05wrong"),
    ],
)
def test_a_socks_proxy_asks_for_a_login(greeting: bytes, chosen: bytes, login: bytes) -> None:
    """Without user and password (RFC 1928, 3; RFC 1929, 2) it hangs up, also after somebody else has logged in."""
    with Hub([Repository("org/m", FILES)]) as hub, socks5_proxy("user", "right") as proxy:
        with plain(proxy=proxy.url, base_url=hub.endpoint) as client:
            assert client.get("/api/models/org/m").status_code == 200
        with socket.create_connection((proxy.host, proxy.port)) as connection:
            connection.sendall(greeting)
            assert connection.recv(2) == chosen
            connection.sendall(login)
            assert connection.recv(2) == b""
