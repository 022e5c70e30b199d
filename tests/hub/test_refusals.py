from __future__ import annotations

import pytest

from llamaconv.errors import HubError
from llamaconv.hub.answers import Asked
from llamaconv.hub.refusals import Refusal, refusal
from llamaconv.hub.secrets import Secrets

FILE = Asked("org/name", "main", "a b.bin")
REVISION = Asked("org/name", "v2")


def refused(
    status: int,
    code: str | None = None,
    says: str = "",
    *,
    asked: Asked = FILE,
    token: bool = False,
    away: bool = False,
) -> HubError:
    headers = {"X-Error-Message": says} | ({} if code is None else {"X-Error-Code": code})
    host = "cdn.example" if away else "hub.example:8443"
    met = Refusal(status, headers, host, "https://me:pw@hub.example:8443/hf/", away, token)
    return refusal(met, asked, Secrets("hush"))


TABLE = [
    (
        refused(404, "RepoNotFound"),
        "hub.example:8443 has no repository org/name, or it is private.",
        "Check the name; a private one needs a token, in HF_TOKEN or --token.",
    ),
    (
        refused(401, None, "Invalid username or password."),
        "hub.example:8443 has no repository org/name, or it is private.",
        "Check the name; a private one needs a token, in HF_TOKEN or --token.",
    ),
    (
        refused(404, "RepoNotFound", token=True),
        "hub.example:8443 has no repository org/name, or it is private.",
        "Check the name, and that the token may read it.",
    ),
    (
        refused(401, "GatedRepo"),
        "org/name is gated: hub.example:8443 gives it only to those who were granted access.",
        "Ask for access at https://hub.example:8443/hf/org/name, "
        "then give your account's token in HF_TOKEN or --token.",
    ),
    (
        refused(403, "GatedRepo", token=True),
        "org/name is gated: hub.example:8443 gives it only to those who were granted access.",
        "Ask for access at https://hub.example:8443/hf/org/name with the account that the token belongs to.",
    ),
    (
        refused(404, "RevisionNotFound", asked=REVISION),
        "org/name has no revision v2.",
        "Give a branch, a tag or a whole commit hash in --revision.",
    ),
    (
        refused(404, "EntryNotFound"),
        "org/name has no file a b.bin at revision main.",
        "https://hub.example:8443/hf/org/name/tree/main shows its files.",
    ),
    (
        refused(401, None, "Invalid credentials in Authorization header", token=True),
        "hub.example:8443 does not accept the token. It says: “Invalid credentials in Authorization header”",
        "Make a new one in the settings of your account, and give it in HF_TOKEN or --token.",
    ),
    (
        refused(403),
        "hub.example:8443 forbids access to file a b.bin at revision main of org/name (403 Forbidden).",
        "Check whether it needs a token (HF_TOKEN or --token), and that no firewall or proxy answers in the Hub's "
        "place.",
    ),
    (
        refused(403, token=True, asked=REVISION),
        "hub.example:8443 forbids access to revision v2 of org/name (403 Forbidden).",
        "Check that the token may read it, and that no firewall or proxy answers in the Hub's place.",
    ),
    (
        refused(403, None, "Access to this resource is disabled."),
        "hub.example:8443 has disabled access to org/name. It says: “Access to this resource is disabled.”",
        "https://hub.example:8443/hf/org/name may tell why.",
    ),
    (
        refused(404),
        "hub.example:8443 has no file a b.bin at revision main of org/name (404 Not Found).",
        "Check the repository's name, --revision and --endpoint.",
    ),
    (
        refused(410, asked=REVISION),
        "hub.example:8443 refuses revision v2 of org/name: it answered 410 (Gone).",
        "Check the repository's name and --endpoint.",
    ),
    (
        refused(403, away=True),
        "cdn.example refuses file a b.bin at revision main of org/name: it answered 403 (Forbidden).",
        "https://hub.example:8443/hf/ redirects there; a firewall or proxy may block it: try another --endpoint.",
    ),
]


@pytest.mark.parametrize(("error", "message", "hint"), TABLE)
def test_each_refusal_says_what_is_meant_and_what_to_do(error: HubError, message: str, hint: str) -> None:
    """Status and code of a refusal, and whether a token went along, make its message and its hint."""
    assert (error.message, error.hint, error.exit_code) == (message, hint, 4)


def test_the_facts_of_a_refusal() -> None:
    """Status, repository, revision, file and code are there for machines."""
    assert refused(404, "EntryNotFound").facts == {
        "status": 404,
        "repository": "org/name",
        "revision": "main",
        "file": "a b.bin",
        "code": "EntryNotFound",
    }


def test_what_a_server_says_is_quoted_with_care() -> None:
    """Its words are cut, on one line, and without secrets and control characters."""
    message = refused(418, None, "\x1b[31mno hush\n" + "x" * 300).message
    quoted = message.partition("It says: ")[2]
    assert quoted.startswith("“\\x1b[31mno *** xxx")
    assert quoted.endswith("x…”")
    assert len(quoted) == 202
