"""A small Hub on loopback: what downloads ask it for (model, tree, resolve), with a storage of another origin."""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable
from dataclasses import replace
from threading import Lock
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, quote, unquote, urlencode

from llamaconv.demo.answers import Answer, Part, Request, Reset, json_answer, part_of
from llamaconv.demo.repository import Repository, StoredFile
from llamaconv.demo.server import Server

__all__ = ["DroppingHub", "Hub"]

_NAME = r"(?P<name>[^/]+(?:/[^/]+)?)"
_MODEL = re.compile(rf"/api/models/{_NAME}(?:/revision/(?P<revision>[^/]+))?")
_TREE = re.compile(rf"/api/models/{_NAME}/tree/(?P<revision>[^/]+)")
_FILE = re.compile(rf"/{_NAME}/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
_STORED = re.compile(rf"/{_NAME}/(?P<sha256>[0-9a-f]{{64}})/(?P<file>.+)")

_KEY = b"a Hub on loopback has no secrets"


class Hub:
    """Serves repositories while its ``with`` block lasts.

    Two servers on 127.0.0.1: the Hub, which keeps small files itself, and the storage of large ones, to which it
    redirects with a signed query. Subclasses change what is answered in ``answer``.

    Args:
        repositories: One commit each; of two with one name, the later is the newer commit.
        page_size: Entries in a page of the tree listing.
        token: Gives access to what is gated or private; other tokens belong to users without access.

    Attributes:
        endpoint: The Hub's origin, such as ``http://127.0.0.1:12345``.
        storage: The storage's.
        log: Every request to either, in the order of coming.
    """

    endpoint: str
    storage: str

    def __init__(self, repositories: Iterable[Repository], *, page_size: int = 1000, token: str | None = None) -> None:
        self.log: list[Request] = []
        self._repositories = list(repositories)
        self._page_size, self._token = page_size, token

    def __enter__(self) -> Self:
        self._servers = Server("hub", self.answer, self.log), Server("storage", self.answer, self.log)
        self.endpoint, self.storage = (server.origin for server in self._servers)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self._servers:
            server.stop()

    def push(self, repository: Repository) -> None:
        """Add a newer commit; its revisions point at it from now on."""
        self._repositories.append(repository)

    def answer(self, request: Request) -> Answer:
        """What to answer; called from the threads of the connections.

        Raises:
            HangUp: Nothing; the connection is to be closed.
        """
        answer = self._hub(request) if request.server == "hub" else self._stored(request)
        return replace(answer, pieces=()) if request.method == "HEAD" else answer

    def _hub(self, request: Request) -> Answer:
        for pattern, respond in ((_TREE, self._tree), (_MODEL, _model), (_FILE, self._file)):
            match = pattern.fullmatch(request.path)
            if match is None:
                continue
            steps = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
            found = self._find(request, steps["name"], steps.get("revision", "main"))
            return found if isinstance(found, Answer) else respond(request, found, steps.get("file", ""))
        return _refusal(404, None, "Sorry, we can't find the page you are looking for.")

    def _find(self, request: Request, name: str, revision: str) -> Repository | Answer:
        """The commit that ``revision`` names, or the refusal."""
        commits = [commit for commit in reversed(self._repositories) if commit.name == name]
        if not commits or (commits[0].private and not self._admits(request)):
            if request.token is None:
                return _refusal(401, "RepoNotFound", "Invalid username or password.")
            return _refusal(404, "RepoNotFound", "Repository not found")
        for commit in commits:
            if revision in (commit.commit, *commit.revisions):
                return commit
        return _refusal(404, "RevisionNotFound", f"Invalid rev id: {quote(revision)}")

    def _admits(self, request: Request) -> bool:
        return self._token is not None and request.token == self._token

    def _tree(self, request: Request, commit: Repository, _: str) -> Answer:
        query = dict(parse_qsl(request.query))
        entries = commit.tree()
        if query.get("recursive", "false").lower() not in ("true", "1"):
            entries = [entry for entry in entries if "/" not in entry["path"]]
        begin = int(query.get("cursor", "0"))
        end = begin + self._page_size
        headers = {}
        if end < len(entries):
            following = urlencode({**query, "cursor": end})
            headers["Link"] = f'<{self.endpoint}{request.path}?{following}>; rel="next"'
        return json_answer(entries[begin:end], headers=headers)

    def _file(self, request: Request, commit: Repository, name: str) -> Answer:
        if commit.gated and not self._admits(request):
            restricted = f"Access to model {commit.name} is restricted"
            if request.token is None:
                return _refusal(401, "GatedRepo", f"{restricted}. You must be authenticated to access it.")
            return _refusal(403, "GatedRepo", f"{restricted} and you are not in the authorized list.")
        headers = {"X-Repo-Commit": commit.commit}
        file = commit.files.get(name)
        if file is None:
            return _refusal(404, "EntryNotFound", "Entry not found", headers)
        if not file.large:
            return part_of(file.content, file.size, request, headers | {"ETag": f'"{file.oid}"'})
        path = f"/{quote(commit.name)}/{file.sha256}/{quote(file.name)}"
        headers |= {"X-Linked-Size": str(file.size), "X-Linked-Etag": f'"{file.sha256}"', "Content-Length": "0"}
        return Answer(302, headers | {"Location": f"{self.storage}{path}?signature={_signature(path)}"})

    def _stored(self, request: Request) -> Answer:
        match = _STORED.fullmatch(request.path)
        if match is None or dict(parse_qsl(request.query)) != {"signature": _signature(request.path)}:
            return _refusal(403, None, "Access Denied")
        file = self._with_hash(match["sha256"])
        # A storage has ETags of its own making: not the hash that the Hub links to.
        return part_of(file.content, file.size, request, {"ETag": f'"{match["sha256"][:32]}-1"'})

    def _with_hash(self, sha256: str) -> StoredFile:
        """The signature was right, so there is one."""
        return next(file for commit in self._repositories for file in commit if file.large and file.sha256 == sha256)


class DroppingHub(Hub):
    """Resets the first connection that carries more than ``after`` bytes of a file, when those have arrived."""

    def __init__(self, repositories: Iterable[Repository], *, after: int) -> None:
        super().__init__(repositories)
        self._after, self._dropped, self._lock = after, False, Lock()

    def answer(self, request: Request) -> Answer:
        answer = super().answer(request)
        for piece in answer.pieces:
            if isinstance(piece, Part) and len(piece) > self._after:
                with self._lock:
                    first, self._dropped = not self._dropped, True
                return replace(answer, pieces=[piece.first(self._after), Reset()]) if first else answer
        return answer


def _model(_request: Request, commit: Repository, _: str) -> Answer:
    facts: dict[str, Any] = {"_id": commit.commit[:24], "id": commit.name, "modelId": commit.name}
    facts |= {"sha": commit.commit, "private": commit.private, "gated": "manual" if commit.gated else False}
    facts |= {"tags": [], "downloads": 0, "likes": 0, "siblings": [{"rfilename": file.name} for file in commit]}
    return json_answer(facts)


def _refusal(status: int, code: str | None, message: str, headers: dict[str, str] | None = None) -> Answer:
    fields = {"X-Error-Message": message, **(headers or {})}
    return json_answer({"error": message}, status, fields if code is None else {"X-Error-Code": code, **fields})


def _signature(path: str) -> str:
    return hmac.new(_KEY, path.encode(), "sha256").hexdigest()
