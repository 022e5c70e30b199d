from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess
from urllib.parse import urlsplit

import pytest

from llamaconv.demo.hub import Hub
from llamaconv.errors import NetworkError
from llamaconv.tasks.download import download
from tests.hub.downloads import FILES, contents, impatient, repository, run, wait_until
from tests.hub.misbehaving import MisbehavingHub
from tests.hub.proxies import Proxy, carried, http_proxy, socks5_proxy
from tests.hub.scripted import certificate, deaf_port
from tests.hub.secured import SecuredHub

USER, PASSWORD = "a user", "p@ss/word"
HOST = "127.0.0.1"
RATE = 400_000
HINT = "Give the right user and password in --proxy or the proxy variable: http://USER:PASSWORD@HOST:PORT."
VARIABLES = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"]


@pytest.fixture(scope="module", params=[http_proxy, socks5_proxy])
def running(request: pytest.FixtureRequest) -> Iterator[Proxy]:
    with request.param(USER, PASSWORD) as proxy:
        yield proxy


@pytest.fixture
def proxy(running: Proxy) -> Proxy:
    """One whose log has nothing of earlier tests."""
    running.forget()
    return running


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificate and key of a Hub on loopback; it stands for its own authority."""
    return certificate(tmp_path_factory.mktemp("authority"))


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def commanded(hub: Hub, home: Path, *arguments: str, **environment: str) -> CompletedProcess[str]:
    """``llamaconv download`` into ``home/m``, a process of its own."""
    return run(home, "org/m", "--local-dir", home / "m", "--endpoint", hub.endpoint, *arguments, **environment)


def fetched(hub: Hub, directory: Path, proxy: str | None = None) -> dict[str, bytes]:
    """What a download in this process brings, by the proxy of the environment if none is given."""
    download("org/m", directory, impatient(hub, proxy=proxy, retries=1))
    return contents(directory)


def failure(hub: Hub, directory: Path, proxy: str | None = None) -> NetworkError:
    """What it fails with; nothing is asked of the Hub, and nothing made."""
    with pytest.raises(NetworkError) as caught:
        fetched(hub, directory, proxy)
    assert hub.log == []
    assert not directory.exists()
    return caught.value


@pytest.mark.parametrize("name", ["--proxy", "HTTP_PROXY", "ALL_PROXY"])
def test_everything_goes_through_the_proxy(proxy: Proxy, tmp_path: Path, name: str) -> None:
    """The command, given a proxy with user and password, asks it for all that Hub and storage have."""
    with Hub([repository()]) as hub:
        if name.startswith("-"):
            child = commanded(hub, tmp_path, name, proxy.url)
        else:
            child = commanded(hub, tmp_path, **{name: proxy.url})
        assert (child.returncode, contents(tmp_path / "m")) == (0, FILES)
        assert carried(proxy, hub) == (True, True)


@pytest.mark.parametrize("name", ["http_proxy", "all_proxy"])
def test_variables_in_small_letters(proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """They count as those in capitals do."""
    monkeypatch.setenv(name, proxy.url)
    with Hub([repository()]) as hub:
        assert fetched(hub, tmp_path) == FILES
        assert carried(proxy, hub) == (True, True)


def test_a_socks_proxy_may_resolve_names(tmp_path: Path) -> None:
    """With socks5h and with socks5, a name goes to the proxy as it is: only there it may be known."""
    with Hub([repository()]) as hub, socks5_proxy(USER, PASSWORD) as proxy:
        port = urlsplit(hub.endpoint).port or 0
        hub.endpoint = f"http://localhost:{port}"
        for scheme in ("socks5", "socks5h"):
            assert fetched(hub, tmp_path / scheme, proxy.url.replace("socks5", scheme)) == FILES
    assert proxy.requests_to(HOST, port) == 0
    assert proxy.requests_to("localhost", port) >= 2


@pytest.mark.parametrize("name", ["NO_PROXY", "no_proxy"])
def test_no_proxy_for_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """What NO_PROXY names, down to the port, is asked directly, and the rest through the proxy."""
    with Hub([repository()]) as hub:
        with socks5_proxy() as proxy:
            monkeypatch.setenv("ALL_PROXY", proxy.url)
            monkeypatch.setenv(name, urlsplit(hub.storage).netloc)
            assert fetched(hub, tmp_path) == FILES
        assert carried(proxy, hub, seconds=0) == (True, False)


@pytest.mark.parametrize("exempt", ["*", HOST, f"example.org,{HOST}"])
def test_no_proxy_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exempt: str) -> None:
    """Where NO_PROXY names the host, a dead proxy disturbs nobody; one that is given counts all the same."""
    dead = f"http://{HOST}:{deaf_port()}"
    monkeypatch.setenv("HTTP_PROXY", dead)
    monkeypatch.setenv("NO_PROXY", exempt)
    with Hub([repository()]) as hub:
        assert fetched(hub, tmp_path / "m") == FILES
        hub.log.clear()
        failure(hub, tmp_path / "n", dead)


def test_tls_through_the_proxy(proxy: Proxy, tmp_path: Path, pem: Path) -> None:
    """An https Hub is reached by a tunnel, its certificate checked, and the token shown to nobody but it."""
    with SecuredHub(pem, token="hf_token") as hub:
        child = commanded(hub, tmp_path, HTTPS_PROXY=proxy.url, SSL_CERT_FILE=str(pem), HF_TOKEN="hf_token")
        assert (child.returncode, contents(tmp_path / "m")) == (0, FILES)
        assert carried(proxy, hub) == (True, True)
        assert {(request.server, request.token) for request in hub.log} == {("hub", "hf_token"), ("storage", None)}
    assert "hf_token" not in proxy.log_text()


@pytest.mark.parametrize("name", ["", "HTTPS_PROXY"])
def test_a_proxy_that_speaks_tls(tmp_path: Path, pem: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The way to the proxy is encrypted too, and its certificate checked."""
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    with http_proxy(USER, PASSWORD, pem=pem) as proxy, SecuredHub(pem) as hub:
        assert proxy.url.startswith("https://")
        if name:
            monkeypatch.setenv(name, proxy.url)
        assert fetched(hub, tmp_path, None if name else proxy.url) == FILES
        assert carried(proxy, hub) == (True, True)


@pytest.mark.parametrize("name", ["", "https_proxy"])
def test_tls_by_other_ways(proxy: Proxy, tmp_path: Path, pem: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A proxy that is given, and the variable in small letters, serve https as well."""
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    if name:
        monkeypatch.setenv(name, proxy.url)
    with SecuredHub(pem) as hub:
        assert fetched(hub, tmp_path, None if name else proxy.url) == FILES
        assert carried(proxy, hub) == (True, True)


def test_a_certificate_that_is_not_trusted(tmp_path: Path, pem: Path) -> None:
    """It ends the download at once, before anything is asked, and the hint names the variable."""
    with SecuredHub(pem) as hub, socks5_proxy() as proxy:
        error = failure(hub, tmp_path / "m", proxy.url)
    assert error.message == f"The certificate of {HOST} is not trusted (self-signed certificate)."
    assert error.hint == "If your network checks TLS itself, name its certificates in SSL_CERT_FILE."


def test_each_variable_is_for_its_scheme(tmp_path: Path, pem: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HTTP_PROXY leaves an https Hub alone, and HTTPS_PROXY one of http."""
    dead = f"http://{HOST}:{deaf_port()}"
    with SecuredHub(pem) as hub, monkeypatch.context() as environment:
        environment.setenv("HTTP_PROXY", dead)
        environment.setenv("SSL_CERT_FILE", str(pem))
        assert fetched(hub, tmp_path / "secured") == FILES
    monkeypatch.setenv("HTTPS_PROXY", dead)
    with Hub([repository()]) as hub:
        assert fetched(hub, tmp_path / "plain") == FILES


def test_a_wrong_password_is_refused_at_once(proxy: Proxy, tmp_path: Path) -> None:
    """The proxy is named, without the password, nothing is tried again, and nothing is asked or made."""
    url = f"{proxy.scheme}://a%20user:wrong@{HOST}:{proxy.port}"
    status = " (407)" if proxy.scheme == "http" else ""
    with Hub([repository()]) as hub:
        began = time.monotonic()
        child = commanded(hub, tmp_path, "--proxy", url)
        assert time.monotonic() - began < 5.0
        assert hub.log == []
    assert (child.returncode, child.stdout) == (5, "")
    assert child.stderr.splitlines() == [
        f"Error: The proxy {HOST}:{proxy.port} demands authentication{status}.",
        f"Hint: {HINT}",
    ]
    assert not (tmp_path / "m").exists()


def test_a_login_that_is_missing(tmp_path: Path, pem: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A 407 to CONNECT is told as one to GET is; another user is as unwelcome as none."""
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    with SecuredHub(pem) as secured, Hub([repository()]) as hub, http_proxy(USER, PASSWORD) as proxy:
        for asked in (secured, hub):
            for login in ("", "nobody:p%40ss%2Fword@"):
                error = failure(asked, tmp_path / "m", f"http://{login}{HOST}:{proxy.port}")
                assert error.message == f"The proxy {HOST}:{proxy.port} demands authentication (407)."
                assert error.hint == HINT


def test_a_socks_proxy_that_hangs_up(tmp_path: Path) -> None:
    """One that ends the handshake without a word is named, and may want a login."""
    with Hub([repository()]) as hub, socks5_proxy(USER, PASSWORD) as proxy:
        error = failure(hub, tmp_path / "m", f"socks5://{HOST}:{proxy.port}")
    assert error.message == (
        f"org/m: the proxy {HOST}:{proxy.port} broke off the SOCKS5 handshake (it may want a user and password); "
        "given up after 1 retry."
    )


def test_a_dead_proxy(tmp_path: Path) -> None:
    """It is named as the proxy, without the password, when the retries are used up."""
    port = deaf_port()
    patience = ("--retries", "1", "--max-wait", "0")
    with Hub([repository()]) as hub:
        child = commanded(hub, tmp_path, *patience, ALL_PROXY=f"http://me:hush@{HOST}:{port}")
        fault = f"org/m: the proxy {HOST}:{port} cannot be reached (Connection refused); "
        assert child.returncode == 5
        assert child.stderr.splitlines() == [
            f"Note: {fault}trying again in 0.0 s (retry 1 of 1)",
            f"Error: {fault}given up after 1 retry.",
            "Hint: Run the same command again: it goes on from the byte where this one ended.",
        ]
        for scheme in ("socks5", "socks5h", "https"):
            error = failure(hub, tmp_path / "m", f"{scheme}://me:hush@{HOST}:{port}")
            assert error.message == f"{fault}given up after 1 retry."


def test_a_proxy_that_dies_and_comes_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The retries bridge the gap, and the file goes on in its middle, through the proxy again."""
    caplog.set_level(logging.WARNING)
    third = len(FILES["model.safetensors"]) // 3
    with MisbehavingHub([repository()], rate=RATE) as hub, ThreadPoolExecutor(1) as pool:
        with socks5_proxy(USER, PASSWORD) as proxy:
            settings = impatient(hub, proxy=proxy.url, retries=500, max_wait=0.05, timeout=10)
            result = pool.submit(download, "org/m", tmp_path / "m", settings)
            end = time.monotonic() + 30
            while sum(request.sent for request in hub.log if request.server == "storage") < third:
                assert time.monotonic() < end
                time.sleep(0.01)
        gone = f"model.safetensors: the proxy {HOST}:{proxy.port} cannot be reached (Connection refused); "
        wait_until(lambda: gone in caplog.text)
        with socks5_proxy(USER, PASSWORD, port=proxy.port) as again:
            assert result.result(30).retries > 0
    assert contents(tmp_path / "m") == FILES
    first, *_, last = [request for request in hub.log if request.server == "storage"]
    begin, _ = last.range or (0, None)
    assert (first.range, begin) == (None, pytest.approx(first.sent, abs=RATE // 10))
    assert again.requests_to(HOST, urlsplit(hub.storage).port or 0) > 0
