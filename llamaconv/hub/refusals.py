"""What a Hub means by the 4xx that it answers, and what the user can do about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llamaconv.errors import HubError, printable
from llamaconv.hub.answers import Asked, shown_status
from llamaconv.hub.secrets import Secrets, shown_url, without_queries

__all__ = ["Refusal", "refusal"]

_MAX_QUOTED = 200


@dataclass(frozen=True)
class Refusal:
    """A 4xx answer.

    Attributes:
        status: HTTP status.
        headers: Of the answer; ``X-Error-Code`` and ``X-Error-Message`` are the Hub's.
        host: Who gave it, ``host[:port]``.
        endpoint: URL of the Hub or mirror that was asked.
        away: Whether it was given by another origin, to which the endpoint redirects.
        token: Whether a token or password went along.
    """

    status: int
    headers: Mapping[str, str]
    host: str
    endpoint: str
    away: bool
    token: bool

    @property
    def code(self) -> str | None:
        return self.headers.get("X-Error-Code")

    @property
    def says(self) -> str:
        return self.headers.get("X-Error-Message", "")


def refusal(answer: Refusal, asked: Asked, secrets: Secrets) -> HubError:
    """The error for a 4xx answer that no retry mends; its facts are status, repository, revision, file and code."""
    message, hint = _explained(answer, asked)
    quoted = printable(without_queries(secrets.hide(answer.says))).replace("\n", " ")
    if quoted and (answer.token or answer.status != 401):  # huggingface.co calls no login an invalid password
        message += f" It says: “{quoted if len(quoted) <= _MAX_QUOTED else quoted[: _MAX_QUOTED - 1] + '…'}”"
    return HubError(
        printable(message),
        hint=printable(hint),
        status=answer.status,
        repository=asked.repository,
        revision=asked.revision,
        file=asked.file,
        code=answer.code,
    )


def _explained(answer: Refusal, asked: Asked) -> tuple[str, str]:
    host, name, page = answer.host, asked.repository, f"{shown_url(answer.endpoint).rstrip('/')}/{asked.repository}"
    if answer.away:
        return (
            f"{host} refuses {_what(asked)}: it answered {shown_status(answer.status)}.",
            f"{shown_url(answer.endpoint)} redirects there; a firewall or proxy may block it: try another --endpoint.",
        )
    if answer.token and answer.status == 401 and (answer.code is None or "credentials" in answer.says.lower()):
        return (
            f"{host} does not accept the token.",
            "Make a new one in the settings of your account, and give it in HF_TOKEN or --token.",
        )
    if "resource is disabled" in answer.says:
        return f"{host} has disabled access to {name}.", f"{page} may tell why."
    match answer.code, answer.status:
        case "GatedRepo", _:
            return f"{name} is gated: {host} gives it only to those who were granted access.", _gated_hint(answer, page)
        case ("RepoNotFound", _) | (_, 401):
            return f"{host} has no repository {name}, or it is private.", _missing_hint(answer)
        case "RevisionNotFound", _:
            return (
                f"{name} has no revision {asked.revision}.",
                "Give a branch, a tag or a whole commit hash in --revision.",
            )
        case "EntryNotFound", _:
            return (
                f"{name} has no file {asked.file} at revision {asked.revision}.",
                f"{page}/tree/{asked.revision} shows its files.",
            )
        case _, 403:
            return f"{host} forbids access to {_what(asked)} (403 Forbidden).", _forbidden_hint(answer)
        case _, 404:
            return (
                f"{host} has no {_what(asked)} (404 Not Found).",
                "Check the repository's name, --revision and --endpoint.",
            )
    return (
        f"{host} refuses {_what(asked)}: it answered {shown_status(answer.status)}.",
        "Check the repository's name and --endpoint.",
    )


def _gated_hint(answer: Refusal, page: str) -> str:
    if answer.token:
        return f"Ask for access at {page} with the account that the token belongs to."
    return f"Ask for access at {page}, then give your account's token in HF_TOKEN or --token."


def _missing_hint(answer: Refusal) -> str:
    if answer.token:
        return "Check the name, and that the token may read it."
    return "Check the name; a private one needs a token, in HF_TOKEN or --token."


def _forbidden_hint(answer: Refusal) -> str:
    token = "that the token may read it" if answer.token else "whether it needs a token (HF_TOKEN or --token)"
    return f"Check {token}, and that no firewall or proxy answers in the Hub's place."


def _what(asked: Asked) -> str:
    if asked.file is None:
        return f"revision {asked.revision} of {asked.repository}"
    return f"file {asked.file} at revision {asked.revision} of {asked.repository}"
