"""An HTTP/1.1 server on loopback that counts what it sends; each connection has a thread."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Literal

from llamaconv.demo.answers import Answer, HangUp, Request

__all__ = ["Server"]


class Server(ThreadingHTTPServer):
    """Answers GET and HEAD on a port of its own.

    Args:
        name: What its requests are logged as.
        answer: Says what to answer; called from the connections' threads.
        log: Given each request when it comes.
    """

    request_queue_size = 128
    # Closing waits for the threads, which end as soon as their connections are shut down.
    daemon_threads = False

    def __init__(
        self, name: Literal["hub", "storage"], answer: Callable[[Request], Answer], log: list[Request]
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.name, self.answer, self.log = name, answer, log
        self.origin = f"http://127.0.0.1:{self.server_port}"
        self._open: set[socket.socket] = set()
        self._thread = Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Cut the open connections off and free the port."""
        self.shutdown()
        self._thread.join()
        for connection in list(self._open):
            with contextlib.suppress(OSError):  # closed meanwhile
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        # Without the FIN that the base class sends first, so that a reset is one.
        self._open.discard(request)
        self.close_request(request)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # the client went away
            super().handle()

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.server.name, self.command, path, query, headers)
        self.server.log.append(request)
        try:
            self._send(request, self.server.answer(request))
        except HangUp as end:
            self.close_connection = True
            if end.reset:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    do_HEAD = do_GET

    def _send(self, request: Request, answer: Answer) -> None:
        request.status = answer.status
        self.send_response_only(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        for piece in answer.pieces:
            for sent in piece.send(self.connection):
                request.sent += sent

    def log_message(self, format: str, *args: Any) -> None:
        """The log is a list."""
