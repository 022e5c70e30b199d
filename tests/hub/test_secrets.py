from __future__ import annotations

import logging
from base64 import b64encode
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaconv.hub.secrets import Secrets, shown_url


def test_every_form_of_a_secret_is_hidden() -> None:
    """A secret is hidden as it is, percent-encoded in both ways, and in base64 alone and as a login."""
    secrets = Secrets("s/e cret")
    secrets.add_login("me", "p@ss")
    login = b64encode(b"me:p@ss").decode()
    assert secrets.hide("a s/e cret b s/e%20cret c s%2Fe%20cret d") == "a *** b *** c *** d"
    assert secrets.hide(f"Basic {login} p@ss p%40ss {b64encode(b'p@ss').decode()} me") == "Basic *** *** *** *** me"


def test_a_secret_within_another_does_not_break_it_up() -> None:
    """Of two secrets of which one is part of the other, the longer one is hidden whole."""
    assert Secrets("hf_", "hf_abc").hide("hf_abc hf_x") == "*** ***x"


def test_nothing_to_hide() -> None:
    """Without a secret, or with empty ones, a text stays as it is."""
    assert Secrets(None, "").hide("text") == "text"


@given(st.text(min_size=1, max_size=8), st.text(max_size=8), st.text(max_size=8))
def test_no_secret_survives(secret: str, before: str, after: str) -> None:
    """Whatever stands around it, what is left of a text has no secret between the stars."""
    for form in (secret, quote(secret, safe="")):
        for piece in Secrets(secret).hide(before + form + after).split("***"):
            assert secret not in piece


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://host", "https://host"),
        ("https://host:8443/hf/", "https://host:8443/hf/"),
        ("https://user:password@host:8443/hf?token=x#y", "https://host:8443/hf"),
        ("http://[::1]:80/a?b", "http://[::1]:80/a"),
        ("http://user:p@ss@host", "http://host"),
        ("http://user:p/ss@host", "http://***"),
        ("http://user:p?ss@host", "http://***"),
        ("http://user:p#ss@host", "http://***"),
        ("http://user:12/ss@host", "http://***"),
        ("https://host/a?signature=b@c", "https://***"),
        ("https://user:password@[host", "https://***"),
        ("user:password@host:80", "host:80"),
    ],
)
def test_urls_are_shown_without_what_is_secret(url: str, shown: str) -> None:
    """User, password, query and fragment are left out, and all that might be part of a password."""
    assert shown_url(url) == shown


def test_logs_of_the_http_library_are_scrubbed(caplog: pytest.LogCaptureFixture) -> None:
    """Its records show neither secrets nor queries of URLs while a client is open, and are its own again later."""
    caplog.set_level(logging.DEBUG)
    logger = logging.getLogger("httpcore2.socks")
    with Secrets("hush").kept_from_logs():
        logger.debug("auth=%r to %s", (b"me", b"hush"), "https://host/file?Signature=abc&x=1")
    logger.debug("hush?now")
    assert caplog.messages == ["auth=(b'me', b'***') to https://host/file?***", "hush?now"]
