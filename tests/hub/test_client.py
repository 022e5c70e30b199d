from __future__ import annotations

from pathlib import Path

import httpx2
import pytest

from llamaconv.errors import HubError, UsageError
from llamaconv.hub.addresses import redirected
from tests.hub.clients import ASKED, BODY, fetched, hiccup, opened
from tests.hub.scripted import Request, certificate, deaf_port, reply, served


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
        assert fetched(client, f"{server.url}/hf", Range="bytes=0-", If_Range='"x"') == (200, BODY)
    met = [(request.target, request.headers.get("authorization")) for request in server.requests]
    assert met == [("/hf/file", "Bearer hf_x"), ("/moved", "Bearer hf_x"), ("/back", None)]
    assert [request.headers.get("authorization") for request in storage.requests] == [None]
    for request in server.requests + storage.requests:
        assert (request.headers["range"], request.headers["if-range"]) == ("bytes=0-", '"x"')
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
    "endpoint",
    ["hub.example", "ftp://hub.example", "https://", "https://h/?q=1", "https://h/?", "https://h/#f", "http://h:port"],
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
