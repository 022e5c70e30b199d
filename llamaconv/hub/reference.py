"""How a repository of the Hub is called: ``org/name``, ``hf://org/name@revision``, or the address of its page."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from hashlib import sha256
from urllib.parse import quote, unquote, urlsplit

from llamaconv.errors import UsageError

__all__ = ["DEFAULT_REVISION", "Reference", "is_hub_reference", "parse"]

DEFAULT_REVISION = "main"
"""The branch that every repository of the Hub has."""

_SCHEME = "hf://"
_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_OTHER_KINDS = ("datasets", "spaces")
_PAGES_OF_FILES = ("blob", "resolve", "raw")
_LONGEST_FOLDER = 200  # bytes, of the 255 that a file system takes: names are put before and after it
# git-check-ref-format(1); and "%", of which nobody could say whether it is meant or part of a quoted character.
_NO_REVISION = re.compile(r"[\x00-\x20\x7f~^:?*\[\\%]|\.\.|@\{|//|^[/-]|[/.]$|\.lock(/|$)|(^|/)\.|^$|^@$")

_FORMS = "Give org/name, org/name@revision or hf://org/name@revision."


@dataclass(frozen=True)
class Reference:
    """A repository, and which state of it.

    Attributes:
        repository: ``org/name``, or ``name`` alone for the oldest ones.
        revision: Branch, tag or commit; None where none was given.

    Raises:
        UsageError: One of them cannot be.
    """

    repository: str
    revision: str | None = None

    def __post_init__(self) -> None:
        _require_repository(self.repository)
        if self.revision is not None:
            _require_revision(self.revision)

    @property
    def folder_name(self) -> str:
        """Name of a folder for it, which no other reference has; without a revision that of ``main``.

        Repositories have no ``--`` in their names, and neither they nor revisions have a ``~``.
        """
        revision = self.revision or DEFAULT_REVISION
        name = f"{self.repository.replace('/', '--')}@{quote(revision, safe='')}"
        if len(name) <= _LONGEST_FOLDER:
            return name
        mark = f"~{sha256(name.encode()).hexdigest()[:32]}"
        return name[: _LONGEST_FOLDER - len(mark)] + mark


def is_hub_reference(text: str) -> bool:
    """Whether ``text`` says of itself that it is a repository, no path."""
    return text[: len(_SCHEME)].lower() == _SCHEME


def parse(text: str) -> Reference:
    """The repository that ``text`` means: ``org/name`` or ``name``, each also with ``hf://`` before and ``@revision``
    after it, or the address of its page at huggingface.co, also with ``/tree/revision``.

    Raises:
        UsageError: It means none. The message repeats no user, password or token of an address.
    """
    if "://" in text and not is_hub_reference(text):
        return _of_address(text)
    bare = text[len(_SCHEME) :] if is_hub_reference(text) else text
    repository, at, revision = bare.partition("@")
    try:
        return Reference(repository, revision if at else None)
    except UsageError as error:
        if (file := _of_file(repository, revision if at else None)) is not None:
            error.hint = file
        raise


def _of_file(text: str, revision: str | None) -> str | None:
    """What to type for a file, if ``text`` is that of a repository and the name of a file in it."""
    organization, _, rest = text.partition("/")
    name, _, file = rest.partition("/")
    if not file or organization in _OTHER_KINDS or ":" in text:  # which may be a password's
        return None
    try:
        return _to_type(Reference(f"{organization}/{name}", revision), file)
    except UsageError:
        return None


def _to_type(reference: Reference, file: str) -> str:
    revision = "" if reference.revision in (None, DEFAULT_REVISION) else f"@{reference.revision}"
    return f"To get it: `llamaconv download {shlex.quote(reference.repository + revision)} {shlex.quote(file)}`."


def _of_address(text: str) -> Reference:
    try:
        address = urlsplit(text)
        host, credentials = address.hostname, "@" in address.netloc
    except ValueError:  # it may repeat the password
        raise UsageError("This address cannot be read.", hint=_FORMS) from None
    if address.scheme not in ("http", "https") or host not in _HOSTS:
        raise UsageError(
            f"{host or 'This address'} is not the Hub.", hint="Give org/name, and the server with --endpoint."
        )
    if credentials:
        raise UsageError(
            "An address of the Hub has no user and no password in it.",
            hint="Give the token as HF_TOKEN in the environment.",
        )
    parts = [unquote(part) for part in address.path.split("/") if part]
    if parts and parts[0] in _OTHER_KINDS:
        raise UsageError(f"An address below {host}/{parts[0]} is not a model's.", hint="Only models are downloaded.")
    if len(parts) in (1, 2):
        return Reference("/".join(parts))
    if len(parts) in (3, 4) and parts[-2] == "tree":
        return Reference("/".join(parts[:-2]), parts[-1])
    for place in (1, 2):  # of the kind of page: behind name, or behind org/name
        if len(parts) > place + 2 and parts[place] in _PAGES_OF_FILES:
            reference = Reference("/".join(parts[:place]), parts[place + 1])
            raise UsageError("This address is that of a file.", hint=_to_type(reference, "/".join(parts[place + 2 :])))
    raise UsageError("This address is not that of a model's page.", hint=f"{_FORMS} Files are named after it.")


def _require_repository(repository: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented, only not in __all__

    try:
        validate_repo_id(repository)
    except HFValidationError:  # it repeats what was given
        if repository.startswith(tuple(f"{kind}/" for kind in _OTHER_KINDS)):
            raise UsageError(f"{repository!r} is not a model.", hint="Only models are downloaded.") from None
        # What stands before a colon and an @ may be a user and a password.
        called = "This" if ":" in repository else repr(repository)
        raise UsageError(
            f"{called} cannot be the name of a repository.",
            hint="It is org/name: letters, digits, '-', '_' and '.', up to 96 each; without '--' and '..', and "
            "with no '-' or '.' first or last.",
        ) from None


def _require_revision(revision: str) -> None:
    if _NO_REVISION.search(revision) or not revision.isprintable():
        called = "This" if ":" in revision else repr(revision)
        raise UsageError(f"{called} cannot be a revision.", hint="Give a branch, a tag or a commit.")
