from __future__ import annotations

import json
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from urllib.parse import quote, urlsplit

import pytest

from llamaconv.demo.answers import Answer, Part, Request
from llamaconv.demo.hub import Hub
from llamaconv.errors import HubError
from llamaconv.tasks.download import download
from tests.hub.downloads import FILES, contents, environment, impatient, repository, run
from tests.hub.faults import Fault, Kind
from tests.hub.misbehaving import Listed, MisbehavingHub
from tests.hub.proxies import Proxy, socks5_proxy
from tests.hub.scripted import deaf_port

TOKEN = "hf_SecretOfTheUser"
USER, PASSWORD = "proxy user", "pass/word of+the proxy"
ENDPOINT_LOGIN = "mirror%20user:pass%2Fword%20of%20the%20mirror"
IMPATIENT = ("--retries", "1", "--max-wait", "0", "--timeout", "2")

SECRETS = {
    "token": TOKEN,
    "proxy password": PASSWORD,
    "endpoint password": "pass/word of the mirror",
    "proxy login": b64encode(f"{USER}:{PASSWORD}".encode()).decode(),
    "endpoint login": b64encode(b"mirror user:pass/word of the mirror").decode(),
}

# A bug of ours, deep down; with what the HTTP library says of the request as its context.
_BUG = """
import sys
import llamaconv.hub.client
import llamaconv.hub.{module} as module
from llamaconv.cli import main

def broken(*arguments, **named):
    raise RuntimeError("a bug")

{place} = broken
sys.exit(main())
"""


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    with socks5_proxy(USER, PASSWORD) as running:
        yield running


def forms(secret: str) -> set[bytes]:
    """A secret as it is, percent-encoded and in base64."""
    written = {secret, quote(secret), quote(secret, safe=""), b64encode(secret.encode()).decode()}
    return {form.encode() for form in written}


def told(child: CompletedProcess[str], home: Path, hub: Hub | None = None) -> list[str]:
    """Where a secret stands: in what a run printed, and in what it left behind."""
    secrets = dict(SECRETS)
    if hub is not None:
        secrets |= {f"signature {request.query}": request.query for request in hub.log if "signature=" in request.query}
    texts = {"stdout": child.stdout.encode(), "stderr": child.stderr.encode()}
    texts |= {str(path.relative_to(home)): path.read_bytes() for path in home.rglob("*") if path.is_file()}
    assert texts.pop("hf/token", TOKEN.encode()) == TOKEN.encode()
    return [
        f"{name} in {place}"
        for place, text in texts.items()
        for name, secret in secrets.items()
        if any(form in text for form in forms(secret))
    ]


def with_login(endpoint: str) -> str:
    return endpoint.replace("://", f"://{ENDPOINT_LOGIN}@")


class EchoingHub(Hub):
    """Refuses what ``refused`` says, and tells in header and body what it was asked."""

    def __init__(self, status: int, refused: Callable[[Request], bool], code: str | None = None) -> None:
        super().__init__([repository()])
        self._status, self._refused, self._code = status, refused, code

    def answer(self, request: Request) -> Answer:
        if not self._refused(request):
            return super().answer(request)
        sent = request.headers.get("authorization", "")
        text = f"You sent {sent} {quote(sent)} and asked for {request.path}?{request.query}"
        body = json.dumps({"error": text}).encode()
        headers = {"X-Error-Message": text, "Content-Length": str(len(body)), "WWW-Authenticate": text}
        if self._code is not None:
            headers["X-Error-Code"] = self._code.format(sent=sent)
        return Answer(self._status, headers, [Part(body, 0, len(body))])


@pytest.mark.parametrize(
    "arguments", [("--lock", "lock.json"), ("-v", "--json", "--lock", "lock.json"), ("--dry-run",)]
)
def test_a_download_that_succeeds(proxy: Proxy, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """Token, proxy's password and signatures stand neither in what is printed nor in lock, listing and records."""
    with Hub([repository(gated=True)], token=TOKEN) as hub:
        child = run(
            tmp_path, "org/m", "--local-dir", tmp_path / "m", "--endpoint", hub.endpoint, "--token", TOKEN,
            "--proxy", proxy.url, *(tmp_path / one if one == "lock.json" else one for one in arguments),
        )  # fmt: skip
        assert child.returncode == 0
        if "--dry-run" not in arguments:
            assert contents(tmp_path / "m") == FILES
            assert json.loads((tmp_path / "lock.json").read_text())["files"].keys() == FILES.keys()
            assert {request.token for request in hub.log if request.server == "storage"} == {None}
        assert {request.token for request in hub.log if request.server == "hub"} == {TOKEN}
        assert told(child, tmp_path, hub) == []


@pytest.mark.parametrize("place", ["HF_TOKEN", "file"])
def test_a_token_of_huggingface_hub(tmp_path: Path, place: str) -> None:
    """It is found in the environment or where its login keeps it, and told to the Hub alone."""
    named = {"HF_TOKEN": TOKEN} if place == "HF_TOKEN" else {}
    if place == "file":
        (tmp_path / "hf").mkdir()
        (tmp_path / "hf/token").write_text(TOKEN)
    with Hub([repository(private=True)], token=TOKEN) as hub:
        child = run(tmp_path, "org/m", "--local-dir", tmp_path / "m", "-v", HF_ENDPOINT=hub.endpoint, **named)
        assert (child.returncode, contents(tmp_path / "m")) == (0, FILES)
        assert {(request.server, request.token) for request in hub.log} == {("hub", TOKEN), ("storage", None)}
        assert told(child, tmp_path, hub) == []


def test_a_login_of_an_endpoint(tmp_path: Path) -> None:
    """User and password of a mirror's URL go to it and stand nowhere, not even in what an interruption leaves."""
    breaks = Listed({"model.safetensors": [Fault(Kind.RESET, after=0.5), Fault(Kind.STATUS)]})
    with MisbehavingHub([repository()], breaks) as hub:
        arguments = ("org/m", "--local-dir", tmp_path / "m", "--endpoint", with_login(hub.endpoint), *IMPATIENT, "-v")
        child = run(tmp_path, *arguments)
        part = tmp_path / "m/.cache/llamaconv/parts/org%2Fm/model.safetensors.part"
        assert (child.returncode, part.exists()) == (5, True)
        assert told(child, tmp_path, hub) == []
        child = run(tmp_path, *arguments, "--lock", tmp_path / "lock.json")
        assert (child.returncode, contents(tmp_path / "m")) == (0, FILES)
        assert told(child, tmp_path, hub) == []
        sent = {(request.server, request.headers.get("authorization")) for request in hub.log}
        assert sent == {("hub", f"Basic {SECRETS['endpoint login']}"), ("storage", None)}


@pytest.mark.parametrize(
    ("status", "where", "code", "exit_code"),
    [
        (401, "hub", None, 4),
        (403, "hub", "GatedRepo", 4),
        (404, "hub", "RepoNotFound", 4),
        (400, "hub", "{sent}", 4),
        (403, "storage", None, 4),
        (503, "hub", None, 5),
        (503, "storage", None, 5),
    ],
)
def test_a_server_that_repeats_what_it_was_sent(
    tmp_path: Path, status: int, where: str, code: str | None, exit_code: int
) -> None:
    """What it says is quoted without the token, the login and the signature in it."""
    with EchoingHub(status, lambda request: request.server == where, code) as hub:
        arguments = ("org/m", "--local-dir", tmp_path / "m", *IMPATIENT, "-v", "--json")
        endpoints = ("--endpoint", hub.endpoint, "--endpoint", with_login(hub.endpoint))
        child = run(tmp_path, *arguments, *endpoints, HF_TOKEN=TOKEN)
        assert child.returncode == exit_code
        assert json.loads(child.stdout)["error"]["exit_code"] == exit_code
        assert told(child, tmp_path, hub) == []


def test_faults_that_are_told(proxy: Proxy, tmp_path: Path) -> None:
    """No retry's line, and no line of a mirror that is given up, names more than a host."""
    faults = {"*": [Fault(Kind.REFUSE_CONNECTION), Fault(Kind.HTML)], "model.safetensors": [Fault(Kind.FLIP, after=9)]}
    with MisbehavingHub([repository()], Listed(faults)) as hub, EchoingHub(404, lambda _: True) as other:
        endpoints = [
            with_login(f"http://127.0.0.1:{deaf_port()}"),
            with_login(other.endpoint),
            with_login(hub.endpoint),
        ]
        child = run(
            tmp_path, "org/m", "--local-dir", tmp_path / "m", *(f"--endpoint={endpoint}" for endpoint in endpoints),
            "--max-wait", "0", "-v", ALL_PROXY=proxy.url, HF_TOKEN=TOKEN,
        )  # fmt: skip
        assert (child.returncode, contents(tmp_path / "m")) == (0, FILES)
        assert f"{other.endpoint} refused (" in child.stderr
        assert "trying again" in child.stderr
        assert told(child, tmp_path, hub) == []


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [
        (("--token", f"{TOKEN} "), {}),
        (("--proxy", f"http://me:{TOKEN}/x@host"), {}),
        ((), {"HTTP_PROXY": f"http://me:{TOKEN}#@host"}),
        (("--endpoint", f"https://me:{TOKEN}@host/?a=b"), {}),
        ((), {"HF_ENDPOINT": f"ftp://me:{TOKEN}@host"}),
        ((f"https://me:{TOKEN}@huggingface.co/org/m",), {}),
        ((f"https://huggingface.co/org/m?token={TOKEN}#/x",), {}),
    ],
)
def test_what_cannot_be_used_is_not_repeated(
    tmp_path: Path, arguments: tuple[str, ...], variables: dict[str, str]
) -> None:
    """A usage error of what may hold a secret says what is wrong with it, and not what it is."""
    repositories = () if arguments and arguments[0].startswith("https:") else ("org/m",)
    child = run(tmp_path, *repositories, "--local-dir", tmp_path / "m", *IMPATIENT, "-v", *arguments, **variables)
    if not (arguments and "?token=" in arguments[0]):
        assert child.returncode == 2
    assert told(child, tmp_path) == []


@pytest.mark.parametrize(
    ("module", "place"),
    [
        ("client", "module._usable"),
        ("connections", "sys.modules['llamaconv.hub.client'].connection_fault"),
        ("part", "module.Part.write"),
        ("refusals", "sys.modules['llamaconv.hub.client'].refusal"),
    ],
)
def test_the_traceback_of_a_bug(proxy: Proxy, tmp_path: Path, module: str, place: str) -> None:
    """It is printed, and neither its lines nor the exceptions that led to it hold a secret."""
    source = _BUG.format(module=module, place=place)
    faults = {
        "connections": [Fault(Kind.RESET, after=0.5)],
        "refusals": [Fault(Kind.STATUS, status=403)],
    }
    with MisbehavingHub([repository()], Listed({"storage/*": faults.get(module, [])})) as hub:
        arguments = ["org/m", "--local-dir", str(tmp_path / "m"), "--endpoint", with_login(hub.endpoint), "-v"]
        child = subprocess.run(
            [sys.executable, "-c", source, "download", *arguments],
            env=environment(tmp_path, HTTP_PROXY=proxy.url, HF_TOKEN=TOKEN),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert child.returncode == 1
        assert "Traceback (most recent call last)" in child.stderr
        assert "RuntimeError: a bug" in child.stderr
        assert told(child, tmp_path, hub) == []


class Detour(Hub):
    """Its storage redirects back to the Hub, which then has the file."""

    def answer(self, request: Request) -> Answer:
        if request.server == "storage":
            return Answer(302, {"Location": f"{self.endpoint}{request.path}?{request.query}", "Content-Length": "0"})
        if "signature=" in request.query:
            return super().answer(replace(request, server="storage"))
        return super().answer(request)


def test_authorization_does_not_come_back(tmp_path: Path) -> None:
    """Once a redirect has led away, not even the Hub itself is given the token again."""
    with Detour([repository(gated=True)], token=TOKEN) as hub:
        download("org/m", tmp_path / "m", impatient(hub, token=TOKEN))
    assert contents(tmp_path / "m") == FILES
    met = {(request.server, "signature=" in request.query, request.token) for request in hub.log}
    assert met == {("hub", False, TOKEN), ("storage", True, None), ("hub", True, None)}


class Forwarding(Hub):
    """A mirror that sends everybody on to another one."""

    def __init__(self, other: Hub) -> None:
        super().__init__([])
        self._other = other

    def answer(self, request: Request) -> Answer:
        location = f"{self._other.endpoint}{request.path}{'?' if request.query else ''}{request.query}"
        return Answer(307, {"Location": location, "Content-Length": "0"})


def test_a_mirror_does_not_pass_the_token_on(tmp_path: Path) -> None:
    """What it redirects to gets no Authorization: neither the token nor the mirror's own login."""
    with Hub([repository()], token=TOKEN) as hub, Forwarding(hub) as mirror:
        for number, endpoint in enumerate((mirror.endpoint, with_login(mirror.endpoint))):
            directory = tmp_path / str(number)
            download("org/m", directory, impatient(endpoint, token=TOKEN))
            assert contents(directory) == FILES
    assert all("authorization" in request.headers for request in mirror.log)
    assert not any("authorization" in request.headers for request in hub.log)


def test_a_gated_repository_behind_a_mirror(tmp_path: Path) -> None:
    """Since the token stays with the mirror, what it redirects to refuses, and is named."""
    with Hub([repository(private=True)], token=TOKEN) as hub, Forwarding(hub) as mirror:
        settings = impatient(mirror, token=TOKEN)
        with pytest.raises(HubError) as caught:
            download("org/m", tmp_path / "m", settings)
    host = urlsplit(hub.endpoint).netloc
    assert caught.value.message.startswith(f"{host} refuses revision main of org/m: it answered 401 (Unauthorized).")
