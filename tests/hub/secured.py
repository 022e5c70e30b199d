"""The small Hub over TLS."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any, Self

from llamaconv.demo.hub import Hub
from tests.hub.downloads import repository

__all__ = ["SecuredHub"]

_HOST = "127.0.0.1"


class SecuredHub(Hub):
    """Hub and storage with one certificate.

    Args:
        pem: The certificate for 127.0.0.1, and its key.
        settings: As for ``Hub``.
    """

    def __init__(self, pem: Path, **settings: Any) -> None:
        super().__init__([repository()], **settings)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(pem)

    def __enter__(self) -> Self:
        super().__enter__()
        for server in self._servers:
            # Hands are shaken in the connections' own threads.
            server.socket = self._context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        self.endpoint, self.storage = (f"https://{_HOST}:{server.server_port}" for server in self._servers)
        return self
