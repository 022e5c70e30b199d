"""Proxies of others (proxy.py, pproxy), started on loopback for the time of a ``with`` block."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from llamaconv.demo.hub import Hub

__all__ = ["Proxy", "carried", "http_proxy", "socks5_proxy"]

_PATIENCE = 60.0
_HOST = "127.0.0.1"


@dataclass
class Proxy:
    """A running proxy.

    Attributes:
        scheme: ``http``, ``https`` or ``socks5``; ``socks5h`` does as well there.
        host, port: Where it listens.
        user, password: What it asks for, or None.
    """

    scheme: str
    host: str
    port: int
    user: str | None
    password: str | None
    _log: Path
    _last: str | None = None
    _begin: int = 0

    @property
    def url(self) -> str:
        """With the user and the password, quoted."""
        login = "" if self.user is None else f"{quote(self.user, safe='')}:{quote(self.password or '', safe='')}@"
        return f"{self.scheme}://{login}{self.host}:{self.port}"

    def log_text(self) -> str:
        """Its own log; all of it once the block has ended, for a connection may be logged when it closes."""
        return self._log.read_text() if self._last is None else self._last

    def forget(self) -> None:
        """Count from here on: a server that is gone may have had the port that a new one gets."""
        self._begin = len(self.log_text())

    def requests_to(self, host: str, port: int) -> int:
        """How many connections its log says it has carried to ``host:port``, since ``forget`` was called last."""
        return len(re.findall(rf"(?:->|[A-Z]+) {re.escape(host)}:{port}\b", self.log_text()[self._begin :]))


def carried(proxy: Proxy, hub: Hub, *, seconds: float = 5.0) -> tuple[bool, bool]:
    """Whether the proxy's log tells of the Hub, and of its storage, within a few seconds."""
    ports = [urlsplit(origin).port or 0 for origin in (hub.endpoint, hub.storage)]
    end = time.monotonic() + seconds
    while time.monotonic() < end and not all(proxy.requests_to(_HOST, port) for port in ports):
        time.sleep(0.02)
    return proxy.requests_to(_HOST, ports[0]) > 0, proxy.requests_to(_HOST, ports[1]) > 0


@contextmanager
def http_proxy(
    user: str | None = None, password: str | None = None, *, port: int = 0, pem: Path | None = None
) -> Iterator[Proxy]:
    """proxy.py: forwards plain HTTP, tunnels with CONNECT, and asks for basic authentication where there is a user.

    It listens at ``port``, 0 for any; over TLS with the key and the certificate in ``pem``, if there is one.
    """
    with tempfile.TemporaryDirectory() as folder:
        log, ports = Path(folder, "log"), Path(folder, "port")
        command = [sys.executable, "-m", "proxy", "--hostname", "127.0.0.1", "--port", str(port)]
        command += ["--port-file", str(ports), "--log-file", str(log), "--data-dir", folder]
        command += ["--num-workers", "1", "--num-acceptors", "1"]
        if user is not None:
            command += ["--basic-auth", f"{user}:{password}"]
        if pem is not None:
            command += ["--key-file", str(pem), "--cert-file", str(pem)]
        with _running(command, Path(folder, "output"), lambda: ports.exists() and ports.read_text().endswith("\n")):
            proxy = Proxy(
                "http" if pem is None else "https", "127.0.0.1", int(ports.read_text().split()[0]), user, password, log
            )
            yield proxy
        proxy._last = log.read_text()


@contextmanager
def socks5_proxy(user: str | None = None, password: str | None = None, *, port: int = 0) -> Iterator[Proxy]:
    """pproxy: SOCKS 5, with the user and password of RFC 1929 where there is a user.

    It listens at ``port``, 0 for any.
    """
    with tempfile.TemporaryDirectory() as folder:
        log, port = Path(folder, "log"), port or _free_port()
        login = "" if user is None else f"#{user}:{password}"
        # It remembers for a while who has logged in from where; not here.
        command = [sys.executable, "-u", "-m", "pproxy", "-v", "--auth", "0", "-l", f"socks5://127.0.0.1:{port}{login}"]
        with _running(command, log, lambda: "Serving on" in log.read_text()):
            proxy = Proxy("socks5", "127.0.0.1", port, user, password, log)
            yield proxy
        proxy._last = log.read_text()


@contextmanager
def _running(command: list[str], output: Path, listens: Callable[[], bool]) -> Iterator[None]:
    """The process, from when it listens to the end of the block."""
    with output.open("w") as file, subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT) as process:
        try:
            end = time.monotonic() + _PATIENCE
            while not listens():
                if process.poll() is not None or time.monotonic() > end:
                    raise AssertionError(f"{' '.join(command)} does not listen:\n{output.read_text()}")
                time.sleep(0.02)
            yield
        finally:
            process.terminate()
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
