from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from llamaconv.errors import HubError, NetworkError, UsageError
from llamaconv.hub.addresses import redirected
from llamaconv.hub.answers import Asked, Hiccup
from llamaconv.hub.client import Client
from llamaconv.hub.secrets import Secrets
from tests.hub.proxies import http_proxy, socks5_proxy
from tests.hub.scripted import Cut, Request, certificate, deaf_port, listening, reply, served

ASKED = Asked("org/name", "main", "weights")
BODY = bytes(range(256)) * 1000
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 256000\r\n\r\n"


def opened(timeout: float = 10.0, token: str | None = None, proxy: str | None = "") -> Client:
    return Client(timeout=timeout, token=token, proxy=proxy, secrets=Secrets())


def fetched(client: Client, endpoint: str, path: str = "/file", **headers: str) -> tuple[int, bytes]:
    with client.get(endpoint, path, ASKED, headers) as answer:
        return answer.status, b"".join(answer.chunks())


def hiccup(client: Client, endpoint: str) -> Hiccup:
    with pytest.raises(Hiccup) as caught:
        fetched(client, endpoint)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    return caught.value


def spoken(*answers: bytes) -> Callable[[socket.socket], None]:
    """A proxy that gives these answers, each to whatever it is told."""

    def converse(connection: socket.socket) -> None:
        for answer in answers:
            connection.recv(4096)
            connection.sendall(answer)

    return converse


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name}_proxy".upper(), raising=False)


@pytest.mark.parametrize("status", [200, 206, 416])
def test_answers_with_a_body_are_given(status: int) -> None:
    """200, 206 and 416 come with status, headers, host and the bytes as they are."""
    with served(lambda _: reply(status, BODY, ETag='"x"')) as server, opened() as client:
        with client.get(server.url + "/hf/", "/a%20b?c=%2F", ASKED) as answer:
            assert b"".join(answer.chunks()) == BODY
        assert (answer.status, answer.host, answer.headers["ETag"]) == (status, server.host, '"x"')
        assert [request.target for request in server.requests] == ["/hf/a%20b?c=%2F"]


def test_what_a_request_carries() -> None:
    """The token, the caller's headers, the plain bytes wanted, and who asks; no cookie that a server has set."""
    with served(lambda _: reply(200, Set_Cookie="a=b; Path=/")) as server, opened(token="hf_x") as client:
        for _ in range(2):
            fetched(client, server.url, Range="bytes=5-", If_Range='"x"')
    for request in server.requests:
        assert request.headers["authorization"] == "Bearer hf_x"
        assert request.headers["range"] == "bytes=5-"
        assert request.headers["accept-encoding"] == "identity"
        assert request.headers["user-agent"].startswith("llamaconv/")
        assert "cookie" not in request.headers
    assert server.connections == 1


def test_user_and_password_of_an_endpoint_take_the_place_of_the_token() -> None:
    """They are sent as Basic authentication, percent-decoded, and the token is not."""
    with served(lambda _: reply(200)) as server, opened(token="hf_x") as client:
        fetched(client, f"http://me:p%40ss@{server.host}")
    assert server.requests[0].headers["authorization"] == "Basic bWU6cEBzcw=="


def test_authorization_stays_with_its_origin() -> None:
    """It travels along on redirects within the origin, not to another port, and not when that leads back."""

    def hub(request: Request) -> bytes:
        places = {"/hf/file": "/moved", "/moved": f"{storage.url}/stored"}
        return reply(200, BODY) if request.target == "/back" else reply(307, Location=places[request.target])

    def store(_: Request) -> bytes:
        return reply(302, Location=f"{server.url}/back")

    with served(hub) as server, served(store) as storage, opened(token="hf_x") as client:
        assert fetched(client, f"{server.url}/hf", Range="bytes=0-") == (200, BODY)
    met = [(request.target, request.headers.get("authorization")) for request in server.requests]
    assert met == [("/hf/file", "Bearer hf_x"), ("/moved", "Bearer hf_x"), ("/back", None)]
    assert [request.headers.get("authorization") for request in storage.requests] == [None]
    assert {request.headers["range"] for request in server.requests + storage.requests} == {"bytes=0-"}
    assert (server.connections, storage.connections) == (1, 1)


def test_a_user_and_password_in_a_redirect_are_not_sent() -> None:
    """What a server puts into its Location is an address and no login."""
    with (
        served(lambda _: reply(200)) as storage,
        served(lambda _: reply(302, Location=f"http://me:pw@{storage.host}/x")) as server,
        opened() as client,
    ):
        fetched(client, server.url)
    assert "authorization" not in storage.requests[0].headers


def test_redirects_in_a_circle_end() -> None:
    """After ten redirects it is a hiccup."""
    with served(lambda _: reply(302, Location="/file")) as server, opened() as client:
        assert hiccup(client, server.url).reason == f"{server.host} redirects more than 10 times"
    assert len(server.requests) == 11


def test_a_redirect_to_nowhere() -> None:
    """A redirect without a Location may be mended by another attempt."""
    with served(lambda _: reply(302)) as server, opened() as client:
        assert hiccup(client, server.url).reason == f"{server.host} redirects without saying where to"


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("ftp://{}/x?secret", "{} redirects to an address that is neither http nor https."),
        ("file:///etc/passwd", "{} redirects to an address that is neither http nor https."),
        ("https:///x?secret", "{} redirects to an address that is neither http nor https."),
        ("http://{}:port/x?secret", "{} redirects to an address that is no URL."),
        ("http://[1::2::3]/?secret", "{} redirects to an address that is no URL."),
    ],
)
def test_redirects_that_are_not_followed(location: str, message: str) -> None:
    """To another scheme, and to what is no URL."""

    def answer(request: Request) -> bytes:
        return reply(302, Location=location.format(request.headers["host"]))

    with served(answer) as server, opened() as client, pytest.raises(HubError) as caught:
        fetched(client, server.url)
    assert caught.value.message == message.format(server.host)


def test_encryption_is_not_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A redirect from https to http is refused before anything is sent there."""
    pem = certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    with (
        served(lambda _: reply(200)) as plain,
        served(lambda _: reply(302, Location=f"{plain.url}/x?secret"), pem) as server,
        opened() as client,
        pytest.raises(HubError) as caught,
    ):
        fetched(client, f"https://{server.host}")
    assert caught.value.message == f"{server.host} redirects from https to http."
    assert plain.requests == []


def test_a_certificate_that_nobody_signed(tmp_path: Path) -> None:
    """It is no hiccup: the error names the host and the variable."""
    with (
        served(lambda _: reply(200), certificate(tmp_path)) as server,
        opened(token="hf_x") as client,
        pytest.raises(NetworkError) as caught,
    ):
        fetched(client, f"https://{server.host}")
    assert caught.value.message == "The certificate of 127.0.0.1 is not trusted (self-signed certificate)."
    assert caught.value.hint == "If your network checks TLS itself, name its certificates in SSL_CERT_FILE."
    assert server.requests == []


def test_tls_with_a_server_that_speaks_none() -> None:
    """A handshake that fails otherwise is a hiccup, in TLS's words."""
    with listening(spoken(b"HTTP/1.1 400 Bad\r\n\r\n")) as port, opened() as client:
        reason = hiccup(client, f"https://127.0.0.1:{port}").reason
    assert reason.startswith("127.0.0.1: the TLS handshake failed (")


def test_certificates_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SSL_CERT_FILE that names nothing is the user's mistake."""
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    with pytest.raises(UsageError) as caught:
        opened()
    assert caught.value.message == "The certificates to trust cannot be read (No such file or directory)."


@pytest.mark.parametrize(
    ("answer", "reason", "wait"),
    [
        (reply(503, Retry_After="7"), "answered 503 (Service Unavailable)", 7.0),
        (reply(500), "answered 500 (Internal Server Error)", None),
        (reply(599), "answered 599", None),
        (reply(429, Retry_After="Sun, 06 Nov 1994 08:49:47 GMT"), "answered 429 (Too Many Requests)", 0.0),
        (reply(408), "answered 408 (Request Timeout)", None),
        (reply(202), "answered 202 (Accepted)", None),
        (reply(304), "answered 304 (Not Modified)", None),
        (Cut(HEAD + BODY[:1000], "close"), "closed the connection in mid-body", None),
        (Cut(HEAD + BODY[:1000], "reset"), "reset the connection", None),
        (Cut(HEAD + BODY[:1000], "stall"), "was silent for 0.3 s", None),
        (Cut(HEAD[:10], "stall"), "was silent for 0.3 s", None),
        (Cut(b"", "close"), "closed the connection without an answer", None),
        (Cut(b"", "reset"), "reset the connection", None),
        (Cut(b"SSH-2.0-OpenSSH\r\n\r\n", "close"), "did not answer in HTTP/1.1", None),
    ],
)
def test_hiccups(answer: bytes | Cut, reason: str, wait: float | None) -> None:
    """What another attempt may mend names the host, says what it was, and how long the server asks to wait."""
    with served(lambda _: answer) as server, opened(timeout=0.3) as client:
        fault = hiccup(client, server.url)
    assert (fault.reason, fault.retry_after) == (f"{server.host} {reason}", wait)


def test_a_compressed_answer() -> None:
    """Bytes that are not the file's own are not taken."""
    with served(lambda _: reply(200, b"x", Content_Encoding="gzip")) as server, opened() as client:
        reason = hiccup(client, server.url).reason
    assert reason == f"the answer of {server.host} came compressed though it was not asked for"


def test_what_came_before_a_hiccup_is_given() -> None:
    """The bytes that arrived before a connection broke reach the caller."""
    with (
        served(lambda _: Cut(HEAD + BODY[:1000], "close")) as server,
        opened() as client,
        client.get(server.url, "/file", ASKED) as answer,
    ):
        chunks = answer.chunks()
        assert next(chunks) == BODY[:1000]
        with pytest.raises(Hiccup):
            next(chunks)


def test_no_connection() -> None:
    """A port where nothing listens, a name that is none, and one that cannot be, are hiccups."""
    port = deaf_port()
    with opened() as client:
        assert hiccup(client, f"http://127.0.0.1:{port}").reason == (
            f"127.0.0.1:{port}: no connection (Connection refused)"
        )
        assert hiccup(client, "http://no.such.host.invalid").reason == "no.such.host.invalid: name resolution failed"
        label = "a" * 64
        assert hiccup(client, f"http://{label}.example").reason == f"{label}.example: no connection (UnicodeError)"


def test_a_limit_is_shorter_than_the_timeout() -> None:
    """A request waits no longer than its limit; what is left of a deadline may be nothing."""
    with served(lambda _: Cut(b"", "stall")) as server, opened(timeout=30) as client:
        for limit, shown in ((0.2, "0.2"), (0.0, "0.01"), (-5.0, "0.01")):
            with pytest.raises(Hiccup) as caught, client.get(server.url, "/", ASKED, limit=limit):
                pass
            assert caught.value.reason == f"{server.host} was silent for {shown} s"


def test_a_refusal_is_told_by_the_table() -> None:
    """A 4xx of the endpoint names what was asked for, and hides the token where the server repeats it."""

    def answer(request: Request) -> bytes:
        return reply(403, X_Error_Message=f"not you, {request.headers['authorization']}")

    with served(answer) as server, opened(token="hf_x") as client, pytest.raises(HubError) as caught:
        fetched(client, server.url)
    assert caught.value.message == (
        f"{server.host} forbids access to file weights at revision main of org/name (403 Forbidden). "
        "It says: “not you, Bearer ***”"
    )


def test_a_refusal_by_another_origin() -> None:
    """Where the endpoint redirects to another host and that refuses, that one is named, and no token is at fault."""
    with (
        served(lambda _: reply(403)) as storage,
        served(lambda _: reply(302, Location=f"{storage.url}/x?Signature=s")) as server,
        opened(token="hf_x") as client,
        pytest.raises(HubError) as caught,
    ):
        fetched(client, server.url)
    assert caught.value.message == (
        f"{storage.host} refuses file weights at revision main of org/name: it answered 403 (Forbidden)."
    )


@pytest.mark.parametrize(
    "endpoint", ["hub.example", "ftp://hub.example", "https://", "https://h/?q=1", "https://h/#f", "http://h:port"]
)
def test_endpoints_that_cannot_be(endpoint: str) -> None:
    """An endpoint is an http or https URL without a query."""
    with opened() as client, pytest.raises(UsageError) as caught:
        fetched(client, endpoint)
    assert caught.value.hint == "It must be like https://HOST[:PORT][/PATH]."


def test_the_password_of_an_endpoint_is_not_shown() -> None:
    """Neither where its URL cannot be used, nor where the host is named."""
    with opened() as client:
        with pytest.raises(UsageError) as caught:
            fetched(client, "ftp://me:hush@hub.example/hf")
        assert caught.value.message == "The endpoint ftp://hub.example/hf cannot be used."
        port = deaf_port()
        assert hiccup(client, f"http://me:hush@127.0.0.1:{port}").reason.startswith(f"127.0.0.1:{port}: no connection")


@pytest.mark.parametrize("token", ["hf_x\n", "hf x", "hf_é"])
def test_tokens_that_cannot_be(token: str) -> None:
    """A token with a blank, a line end or a letter beyond ASCII is refused unseen."""
    with pytest.raises(UsageError) as caught:
        opened(token=token)
    assert caught.value.message == "The token holds characters that no token has."


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
    assert caught.value.message == "The proxy's URL cannot be used."


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


@pytest.fixture(params=["http", "https"])
def stalling(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, list[Request]]]:
    """The URL of a server that sends some bytes and no more, and what it was asked."""
    pem = None
    if request.param == "https":
        pem = certificate(tmp_path)
        monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    with served(lambda _: Cut(HEAD + BODY[:1000], "stall"), pem) as server:
        yield f"{request.param}://{server.host}", server.requests


def test_interrupt_ends_blocked_reads(stalling: tuple[str, list[Request]]) -> None:
    """Reads in several threads end at once, with no byte that was not sent, and later requests are not made."""
    url, requests = stalling
    arrived: list[bytes] = []
    reasons: list[str] = []

    def read(client: Client, started: threading.Barrier) -> None:
        with client.get(url, "/file", ASKED) as answer:
            chunks = answer.chunks()
            data = next(chunks)
            started.wait()
            try:
                data += b"".join(chunks)
            except Hiccup as fault:
                reasons.append(fault.reason)
            arrived.append(data)

    with opened(timeout=60) as client:
        started = threading.Barrier(4)
        threads = [threading.Thread(target=read, args=(client, started)) for _ in range(3)]
        for thread in threads:
            thread.start()
        started.wait()
        before = time.monotonic()
        client.interrupt()
        for thread in threads:
            thread.join(20)
        assert time.monotonic() - before < 5
        assert reasons == ["the download was stopped"] * 3
        assert arrived == [BODY[:1000]] * 3
        assert hiccup(client, url).reason == "the download was stopped"
    assert len(requests) == 3


def test_interrupt_while_an_answer_is_awaited() -> None:
    """A request that has no answer yet ends at once too."""
    with served(lambda _: Cut(b"", "stall")) as server, opened(timeout=60) as client:
        timer = threading.Timer(0.2, client.interrupt)
        timer.start()
        before = time.monotonic()
        assert hiccup(client, server.url).reason == "the download was stopped"
        assert time.monotonic() - before < 5
        timer.join()


def test_a_body_left_unread_does_not_disturb_the_next() -> None:
    """A request whose body is left half-way is followed by another that gets its own."""
    with served(lambda request: reply(200, request.target.encode() * 50000)) as server, opened() as client:
        for path in ("/a", "/b", "/c"):
            with client.get(server.url, path, ASKED) as answer:
                assert next(answer.chunks()).startswith(path.encode())


@pytest.mark.parametrize("target", ["//hub.example/x", "https://hub.example/x", "/x", "x"])
def test_relative_redirects(target: str) -> None:
    """A Location may be relative in every way that RFC 3986 (section 4.2) knows."""
    assert str(redirected(httpx2.URL("https://hub.example/file"), target)) == "https://hub.example/x"
