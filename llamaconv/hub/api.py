"""What is asked of the Hub: the commit of a revision, the files of a commit, a file's address, a small file."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from typing import Annotated, Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

from huggingface_hub import hf_hub_url
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from llamaconv.errors import HubError, printable
from llamaconv.hub.answers import Asked, Hiccup, shown_status
from llamaconv.hub.client import Answer, Client
from llamaconv.hub.repository import Digest, RemoteFile
from llamaconv.hub.retry import Flaw

__all__ = ["MAX_BYTES", "collect", "file_body", "file_path", "list_page", "require_length", "resolve"]

MAX_BYTES = 64_000_000
MAX_FILES = 1_000_000
MAX_PAGES = 100_000

_Sha1 = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Size = Annotated[int, Field(ge=0, lt=2**63, strict=True)]

T = TypeVar("T")

_LENGTH = re.compile(r"[0-9]{1,18}")
_LINK = re.compile(r"<([^>]*)>([^<]*)")
_NEXT = re.compile(r';\s*rel\s*=\s*"?next"?\s*(?:[;,]|$)', re.IGNORECASE)


class _Revision(BaseModel):
    sha: _Sha1


class _Stored(BaseModel):
    oid: _Sha256
    size: _Size


class _File(BaseModel):
    path: str
    size: _Size
    oid: _Sha1
    lfs: _Stored | None = None

    def listed(self) -> RemoteFile:
        if self.lfs is None:
            return RemoteFile(self.path, self.size, Digest("git-sha1", self.oid))
        return RemoteFile(self.path, self.lfs.size, Digest("sha256", self.lfs.oid))


_FILES = TypeAdapter(list[_File])
_ENTRIES = TypeAdapter(list[dict[str, Any]])


def resolve(client: Client, endpoint: str, repository: str, revision: str, limit: float | None = None) -> str:
    """The commit, 40 hexadecimal digits, that a branch, a tag or a commit's hash stands for.

    Raises:
        Hiccup, HubError, NetworkError, UsageError: As ``Client.get``; a Hiccup also if the answer is no JSON, a
            HubError also if it names no commit.
    """
    path = f"/api/models/{quote(repository)}/revision/{quote(revision, safe='')}"
    asked = Asked(repository, revision)
    with client.get(endpoint, path, asked, limit=limit) as answer:
        body = _said(answer, limit)
    return _understood(TypeAdapter(_Revision), body, answer, asked).sha


def list_page(
    client: Client, endpoint: str, repository: str, commit: str, next_path: str | None, limit: float | None = None
) -> tuple[list[RemoteFile], str | None]:
    """One page of the files of a commit, and the path of the next page; None after the last.

    Raises:
        Hiccup, HubError, NetworkError, UsageError: As ``resolve``; a HubError also if the next page is not one of this
            listing.
    """
    tree = f"/api/models/{quote(repository)}/tree/{commit}"
    path = next_path or f"{tree}?recursive=true&expand=false"
    asked = Asked(repository, commit)
    with client.get(endpoint, path, asked, limit=limit) as answer:
        body = _said(answer, limit)
    entries = _understood(_ENTRIES, body, answer, asked)
    found = [entry for entry in entries if entry.get("type") == "file"]  # the rest are directories
    files = [file.listed() for file in _understood(_FILES, found, answer, asked)]
    return files, _next_page(answer, tree, path)


def file_path(repository: str, commit: str, name: str) -> str:
    """The path, below an endpoint, of a file's bytes."""
    return hf_hub_url(repository, name, revision=commit, endpoint="")


def file_body(
    client: Client, endpoint: str, repository: str, commit: str, file: RemoteFile, limit: float | None = None
) -> bytes:
    """The bytes of a small file, as many as they must be; nobody has hashed them yet.

    Raises:
        Hiccup, HubError, NetworkError, UsageError: As ``Client.get``; a Hiccup also if there are too few bytes.
        Flaw: There are too many.
    """
    asked = Asked(repository, commit, file.name)
    with client.get(endpoint, file_path(repository, commit, file.name), asked, limit=limit) as answer:
        require_length(answer, file.size)
        body = _body(answer, limit, file.size + 1)
    if len(body) > file.size:
        raise Flaw(f"{answer.host} sends more than the {file.size:,} bytes that the Hub promises")
    if len(body) < file.size:
        raise Hiccup(f"{answer.host} ended the file early, {file.size - len(body):,} bytes before its end")
    return body


def require_length(answer: Answer, expected: int) -> None:
    """Refuse what is another thing by its length, such as the page of a portal: no byte is given up for it.

    Raises:
        Hiccup: It is shorter, or a page.
        Flaw: It is longer.
    """
    length = answer.headers.get("content-length", "")
    if not _LENGTH.fullmatch(length) or int(length) == expected:
        return
    reason = f"{answer.host} announces {int(length):,} bytes where {expected:,} belong"
    page = answer.headers.get("content-type", "").startswith("text/html")
    raise Flaw(reason) if int(length) > expected and not page else Hiccup(reason)


def collect(pages: Iterable[list[RemoteFile]], repository: str) -> tuple[RemoteFile, ...]:
    """The files of all pages, sorted by name.

    Raises:
        HubError: One is listed twice, or there are over 1,000,000 files or 100,000 pages.
    """
    files: dict[str, RemoteFile] = {}
    for number, page in enumerate(pages, start=1):
        for file in page:
            if file.name in files:
                raise HubError(printable(f"The listing of {repository} names {file.name} twice."))
            files[file.name] = file
        if len(files) > MAX_FILES or number > MAX_PAGES:
            raise HubError(f"The listing of {repository} has no end: {len(files)} files on {number} pages.")
    return tuple(files[name] for name in sorted(files))


def _said(answer: Answer, limit: float | None) -> bytes:
    body = _body(answer, limit, MAX_BYTES + 1)
    if len(body) > MAX_BYTES:
        raise HubError(f"{answer.host} answered with more than {MAX_BYTES} bytes, too many for its API.")
    return body


def _body(answer: Answer, limit: float | None, enough: int) -> bytes:
    """All of it, or as many bytes as are enough to refuse it."""
    if answer.status != 200:
        raise Hiccup(f"{answer.host} answered {shown_status(answer.status)}")
    end = None if limit is None else time.monotonic() + limit
    body = bytearray()
    for chunk in answer.chunks():
        body += chunk
        if len(body) >= enough:
            break
        if end is not None and time.monotonic() > end:
            raise Hiccup(f"{answer.host} did not end its answer in time")
    return bytes(body)


def _understood(adapter: TypeAdapter[T], value: object, answer: Answer, asked: Asked) -> T:
    try:
        return adapter.validate_json(value) if isinstance(value, bytes) else adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] == "json_invalid":  # as from a portal that wants a login
            raise Hiccup(f"what {answer.host} sent is no JSON") from None
        where = ".".join(map(str, first["loc"]))
        fault = f"{where}: {first['msg']}" if where else first["msg"]
        raise HubError(
            printable(f"What {answer.host} says of {asked.repository} cannot be understood ({fault})."),
            hint="Check --endpoint: it may not be a Hub.",
            repository=asked.repository,
            revision=asked.revision,
        ) from None


def _next_page(answer: Answer, tree: str, path: str) -> str | None:
    """The path of the page that a Link header (RFC 8288) calls next.

    Only its query is taken. Mirrors pass on the original Hub's host, and a repository that was renamed answers with
    its new name.
    """
    for target, parameters in _LINK.findall(answer.headers.get("Link", "")):
        if not _NEXT.search(parameters):
            continue
        parts = urlsplit(target)
        following = f"{tree}?{parts.query}"
        if _tail(parts.path) != _tail(tree) or following == path:
            raise HubError(f"{answer.host} goes on with the listing at an address that is none of this listing.")
        return following
    return None


def _tail(path: str) -> tuple[str, ...]:
    """``tree`` and the commit, behind whatever the repository is called."""
    return tuple(unquote(path).split("/")[-2:])
