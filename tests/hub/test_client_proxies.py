from __future__ import annotations

import logging
import socket
from collections.abc import Callable

import pytest

from llamaconv.errors import NetworkError, UsageError
from tests.hub.clients import BODY, fetched, hiccup, opened
from tests.hub.proxies import http_proxy, socks5_proxy
from tests.hub.scripted import deaf_port, listening, reply, served

DEAF = "127.0.0.1:{}: no connection (Connection refused)"


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name}_proxy".upper(), raising=False)


@pytest.mark.parametrize(
    "proxy",
    ["socks4://h:1", "http://", "http://me:hu/sh@h:1", "http://me:hu#sh@h:1", "http://me:hu?sh@h:1", "http://h:port"],
)
@pytest.mark.parametrize("where", ["given", "environment"])
def test_proxies_that_cannot_be(proxy: str, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy's URL that cannot be used is not repeated, for it may hold a password."""
    if where == "environment":
        monkeypatch.setenv("https_proxy", proxy)
    with pytest.raises(UsageError) as caught:
        opened(proxy=proxy if where == "given" else None)
    place = "HTTPS_PROXY" if where == "environment" else "--proxy"
    assert caught.value.message == f"The proxy's URL in {place} cannot be used."


def test_proxies_that_are_not_to_be_used_need_not_be_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    """As other programs' settings; NO_PROXY=* and an empty --proxy turn all of them off."""
    monkeypatch.setenv("ALL_PROXY", "socks4://h:1")
    port = deaf_port()
    with opened(proxy="") as client:
        assert hiccup(client, f"http://127.0.0.1:{port}").reason == DEAF.format(port)
    monkeypatch.setenv("NO_PROXY", "localhost, *")
    with opened(proxy=None) as client:
        assert hiccup(client, f"http://127.0.0.1:{port}").reason == DEAF.format(port)


def test_a_dead_proxy_is_named_as_such() -> None:
    """For each kind of proxy, and without its user and password."""
    port = deaf_port()
    for url in (f"http://me:hush@127.0.0.1:{port}", f"socks5://127.0.0.1:{port}", f"127.0.0.1:{port}"):
        for endpoint in ("http://hub.example", "https://hub.example"):
            with opened(proxy=url) as client:
                assert hiccup(client, endpoint).reason == (
                    f"the proxy 127.0.0.1:{port} cannot be reached (Connection refused)"
                )
    with opened(proxy="http://no.such.proxy.invalid:3128") as client:
        assert hiccup(client, "http://hub.example").reason == (
            "the proxy no.such.proxy.invalid:3128 cannot be reached (name resolution failed)"
        )


def refused_by(url: str, endpoint: str) -> NetworkError:
    with opened(proxy=url) as client, pytest.raises(NetworkError) as caught:
        fetched(client, endpoint)
    return caught.value


def test_an_http_proxy_with_authentication() -> None:
    """The right login goes through; without one, forwarding and tunnelling end in an error that names the proxy."""
    with served(lambda _: reply(200, BODY)) as server, http_proxy("me", "hush") as proxy:
        with opened(proxy=proxy.url) as client:
            assert fetched(client, server.url) == (200, BODY)
        bare = f"http://127.0.0.1:{proxy.port}"
        for endpoint in (server.url, "https://hub.example"):
            error = refused_by(bare, endpoint)
            assert error.message == f"The proxy 127.0.0.1:{proxy.port} demands authentication (407)."
            assert error.exit_code == 5


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
def test_a_socks_proxy_with_authentication(scheme: str) -> None:
    """The right login goes through, a wrong one is refused, and where it hangs up on none the reason is guessed."""
    with served(lambda _: reply(200, BODY)) as server, socks5_proxy("me", "hush") as proxy:
        with opened(proxy=proxy.url.replace("socks5", scheme)) as client:
            assert fetched(client, server.url) == (200, BODY)
        error = refused_by(f"{scheme}://me:wrong@127.0.0.1:{proxy.port}", server.url)
        assert error.message == f"The proxy 127.0.0.1:{proxy.port} demands authentication."
        with opened(proxy=f"{scheme}://127.0.0.1:{proxy.port}") as client:
            assert hiccup(client, server.url).reason == (
                f"the proxy 127.0.0.1:{proxy.port} broke off the SOCKS5 handshake (it may want a user and password)"
            )


def spoken(*answers: bytes) -> Callable[[socket.socket], None]:
    """A proxy that gives these answers, each to whatever it is told."""

    def converse(connection: socket.socket) -> None:
        for answer in answers:
            connection.recv(4096)
            connection.sendall(answer)

    return converse


@pytest.mark.parametrize("answers", [(b"\x05\xff",), (b"\x05\x02", b"\x01\x01")])
def test_a_login_that_a_socks_proxy_refuses(answers: tuple[bytes, ...]) -> None:
    """No acceptable method, or a wrong password (RFC 1928, section 3; RFC 1929): authentication is demanded."""
    with listening(spoken(*answers)) as port:
        error = refused_by(f"socks5://me:hush@127.0.0.1:{port}", "https://hub.example")
    assert error.message == f"The proxy 127.0.0.1:{port} demands authentication."
    assert error.hint == (
        "Give the right user and password in --proxy or the proxy variable: http://USER:PASSWORD@HOST:PORT."
    )


@pytest.mark.parametrize(
    ("scheme", "answers", "reason"),
    [
        ("socks5", (b"HTTP/1.1 400 Bad\r\n\r\n",), "the proxy {} broke off the SOCKS5 handshake ("),
        ("socks5", (b"",), "the proxy {} broke off the SOCKS5 handshake ("),
        (
            "socks5",
            (b"\x05\x00", b"\x05\x05\x00\x01\0\0\0\0\0\0"),
            "the proxy {} could not connect to hub.example (Connection refused)",
        ),
        ("http", (b"HTTP/1.1 502 Bad\r\n\r\n",), "the proxy {} answered 502 (Bad Gateway)"),
        ("http", (b"",), "the proxy {} closed the connection without an answer"),
        (
            "http",
            (b"HTTP/1.1 200 OK\r\n\r\n", b"SSH"),
            "hub.example: the TLS handshake failed (",
        ),
    ],
)
def test_hiccups_of_proxies(scheme: str, answers: tuple[bytes, ...], reason: str) -> None:
    """What goes wrong at a proxy and what goes wrong behind it are told apart."""
    with listening(spoken(*answers)) as port, opened(proxy=f"{scheme}://127.0.0.1:{port}") as client:
        assert hiccup(client, "https://hub.example").reason.startswith(reason.format(f"127.0.0.1:{port}"))


@pytest.mark.parametrize("scheme", ["http", "socks5"])
def test_a_silent_proxy(scheme: str) -> None:
    """A proxy that says nothing is named, not the host behind it."""

    def listen(connection: socket.socket) -> None:
        while connection.recv(4096):
            pass

    with listening(listen) as port, opened(timeout=0.3, proxy=f"{scheme}://127.0.0.1:{port}") as client:
        reason = hiccup(client, "https://hub.example").reason
    assert reason == f"the proxy 127.0.0.1:{port} was silent for 0.3 s"


def test_a_silent_host_behind_a_proxy() -> None:
    """Where the tunnel stands and the host says nothing, the host is named, and the proxy beside it."""

    def tunnel(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while connection.recv(4096):
            pass

    with listening(tunnel) as port, opened(timeout=0.3, proxy=f"http://127.0.0.1:{port}") as client:
        reason = hiccup(client, "https://hub.example").reason
    assert reason == f"hub.example (through the proxy 127.0.0.1:{port}) was silent for 0.3 s"


def test_proxies_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are used unless none is asked for, and not for what NO_PROXY names."""
    port = deaf_port()
    monkeypatch.setenv("http_proxy", f"127.0.0.1:{port}")
    dead = f"the proxy 127.0.0.1:{port} cannot be reached (Connection refused)"
    with served(lambda _: reply(200)) as server:
        with opened(proxy=None) as client:
            assert hiccup(client, server.url).reason == dead
        with opened(proxy="") as client:
            assert fetched(client, server.url) == (200, b"")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with opened(proxy=None) as client:
            assert fetched(client, server.url) == (200, b"")
        with opened(proxy=f"http://127.0.0.1:{port}") as client:
            assert hiccup(client, server.url).reason == dead


def test_logs_tell_no_secrets(caplog: pytest.LogCaptureFixture) -> None:
    """At the level DEBUG, the records of a download hold neither token, nor passwords, nor signatures."""
    caplog.set_level(logging.DEBUG)
    with (
        socks5_proxy("me", "p@ss") as proxy,
        served(lambda _: reply(200)) as storage,
        served(lambda _: reply(302, Location=f"{storage.url}/x?Signature=signed")) as server,
        opened(token="hf_x", proxy=proxy.url) as client,
    ):
        fetched(client, f"http://you:hush@{server.host}")
        fetched(client, server.url)
    assert "127.0.0.1" in caplog.text
    for secret in ("hf_x", "p@ss", "p%40ss", "hush", "signed", "eW91Omh1c2g="):
        assert secret not in caplog.text
