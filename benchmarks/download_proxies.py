"""Does a download go through the proxy that it was given, and through no other?

A model is downloaded from a Hub on loopback, with a storage of another origin, through proxies of others that demand a
user and a password: by the option and by each variable, in plain HTTP and over TLS. A row is a run of the command:

- proxy: proxy.py for http, pproxy for socks5.
- given by: the option or the variable; NO_PROXY names Hub and storage, or the storage alone.
- exit: code of the process.
- right: whether all files have the right bytes.
- Hub, storage: requests or connections to them in the proxy's own log.
- secrets: whether user's password and token stand in the output or beside the files.

The exit code is 1 if one of them is not as it should be.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from common import parser, publish

sys.path.insert(0, str(Path(__file__).parent.parent))  # the proxies are among the tests' helpers

from llamaconv.demo.hub import Hub
from tests.hub.downloads import FILES, contents, repository, run
from tests.hub.proxies import Proxy, carried, http_proxy, socks5_proxy
from tests.hub.scripted import certificate
from tests.hub.secured import SecuredHub

USER, PASSWORD, TOKEN = "a user", "p@ss/word of it", "hf_SecretOfTheUser"
THROUGH, PARTLY, PAST = (True, True), (True, False), (False, False)

# How the proxy is given, the Hub's scheme, the exit code, and whether the requests to Hub and storage go through it.
WAYS = [
    ("--proxy", "http", 0, THROUGH),
    ("--proxy", "https", 0, THROUGH),
    ("HTTP_PROXY", "http", 0, THROUGH),
    ("http_proxy", "http", 0, THROUGH),
    ("HTTPS_PROXY", "https", 0, THROUGH),
    ("https_proxy", "https", 0, THROUGH),
    ("ALL_PROXY", "http", 0, THROUGH),
    ("all_proxy", "https", 0, THROUGH),
    ("NO_PROXY (both)", "http", 0, PAST),
    ("NO_PROXY (storage)", "http", 0, PARTLY),
    ("wrong password", "http", 5, PAST),
    ("wrong password", "https", 5, PAST),
]


def main() -> None:
    chosen = parser(__doc__).parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        pem = certificate(Path(folder))
        for start in (http_proxy, socks5_proxy):
            with start(USER, PASSWORD) as proxy:
                for scheme in ("socks5", "socks5h") if proxy.scheme == "socks5" else ("http",):
                    url = proxy.url.replace(proxy.scheme, scheme)
                    rows += [_row(proxy, url, way, pem) for way in WAYS]
    correct = [row.pop("as it should be") for row in rows]
    publish(rows, chosen.json)
    if not all(correct):
        raise SystemExit("not as it should be")


def _row(proxy: Proxy, url: str, way: tuple[str, str, int, tuple[bool, bool]], pem: Path) -> dict[str, Any]:
    given, scheme, code, expected = way
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        hub = stack.enter_context(Hub([repository()]) if scheme == "http" else SecuredHub(pem))
        arguments, variables = _given(given, url, hub)
        proxy.forget()
        began = time.perf_counter()
        child = run(
            home, "org/m", "--local-dir", home / "m", "--endpoint", hub.endpoint, *arguments,
            **variables, SSL_CERT_FILE=str(pem), HF_TOKEN=TOKEN,
        )  # fmt: skip
        seconds = time.perf_counter() - began
        met = carried(proxy, hub, seconds=5.0 if all(expected) else 0.3)
        right = (contents(home / "m") if (home / "m").exists() else {}) == (FILES if code == 0 else {})
        left = [path.read_bytes() for path in home.rglob("*") if path.is_file()]
        shown = [child.stdout.encode(), child.stderr.encode(), *left]
        told = any(secret.encode() in text for secret in (PASSWORD, TOKEN) for text in shown)
        counts = [proxy.requests_to("127.0.0.1", urlsplit(origin).port or 0) for origin in (hub.endpoint, hub.storage)]
        return {
            "proxy": urlsplit(url).scheme,
            "given by": given,
            "Hub's scheme": scheme,
            "exit": child.returncode,
            "right": "yes" if right else "no",
            "Hub": counts[0],
            "storage": counts[1],
            "secrets": "told" if told else "kept",
            "seconds": seconds,
            "as it should be": (child.returncode, met, right, told) == (code, expected, True, False),
        }


def _given(given: str, url: str, hub: Hub) -> tuple[tuple[str, ...], Mapping[str, str]]:
    """Arguments and variables."""
    exempt = {"NO_PROXY (both)": "127.0.0.1", "NO_PROXY (storage)": urlsplit(hub.storage).netloc}
    if given in exempt:
        return (), {"ALL_PROXY": url, "NO_PROXY": exempt[given]}
    if given == "wrong password":
        return ("--proxy", url.replace("p%40ss", "wrong")), {}
    return ((given, url), {}) if given == "--proxy" else ((), {given: url})


if __name__ == "__main__":
    main()
