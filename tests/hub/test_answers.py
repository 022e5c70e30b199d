from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaconv.hub.answers import retry_after, shown_status

NOW = datetime(1994, 11, 6, 8, 49, 37, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        (" 120 ", 120.0),
        ("Sun, 06 Nov 1994 08:49:47 GMT", 10.0),
        ("Sunday, 06-Nov-94 08:49:47 GMT", 10.0),
        ("Sun Nov  6 08:49:47 1994", 10.0),
        ("Sun, 06 Nov 1994 08:49:07 GMT", 0.0),
        ("", None),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("٣", None),
        ("Sun, 99 Nov 1994 08:49:07 GMT", None),
    ],
)
def test_both_forms_of_retry_after(value: str, seconds: float | None) -> None:
    """Seconds and the three forms of dates (RFC 9110, 5.6.7) are understood, the past is now, nonsense is nothing."""
    assert retry_after({"Retry-After": value}, NOW) == seconds


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ('"resolvers";r=0;t=55', 56.0),
        ('"api"; r=0; t=0', 1.0),
        ('"resolvers";r=3;t=55', None),
        ('"resolvers";r=0;t=' + "9" * 30, None),
    ],
)
def test_the_hubs_own_word_for_it(value: str, seconds: float | None) -> None:
    """RateLimit tells when the window ends, if nothing remains of it; a second more, because it is rounded."""
    assert retry_after({"RateLimit": value}, NOW) == seconds
    assert retry_after({"RateLimit": value, "Retry-After": "7"}, NOW) == (seconds or 7.0)


def test_no_retry_after() -> None:
    """Without the header there is nothing to wait for."""
    assert retry_after({}, NOW) is None


@given(st.integers(0, 10**6))
def test_a_date_means_the_seconds_until_it(seconds: int) -> None:
    """A date and the number of seconds until then are the same wish."""
    date = format_datetime(NOW + timedelta(seconds=seconds), usegmt=True)
    assert retry_after({"Retry-After": date}, NOW) == retry_after({"Retry-After": str(seconds)}, NOW) == seconds


@given(st.text(max_size=30))
def test_any_retry_after_is_understood_or_nonsense(value: str) -> None:
    """No text makes it fail or wait for less than nothing."""
    seconds = retry_after({"Retry-After": value}, NOW)
    assert seconds is None or seconds >= 0


def test_statuses_have_names() -> None:
    """A status is shown with its standard name, one without a name as a number."""
    assert [shown_status(503), shown_status(429), shown_status(599)] == [
        "503 (Service Unavailable)",
        "429 (Too Many Requests)",
        "599",
    ]
