"""URLs that the user or a server gave, checked: endpoints, proxies, and where a redirect leads."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.request import getproxies

import httpx2

from llamaconv.errors import HubError, UsageError, printable
from llamaconv.hub.answers import Hiccup
from llamaconv.hub.secrets import Secrets, shown_url

__all__ = [
    "address",
    "checked_endpoint",
    "checked_proxy",
    "joined",
    "origin",
    "proxies_of_environment",
    "redirected",
    "shown_address",
    "shown_host",
]

_PORTS = {"http": 80, "https": 443}


def shown_address(host: str, port: int) -> str:
    """``host:port``, an IPv6 address in brackets."""
    return printable(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")


def address(url: httpx2.URL) -> tuple[str, int]:
    """Name, as it is looked up, and port of the host."""
    return url.raw_host.decode("ascii"), url.port or _PORTS[url.scheme]


def origin(url: httpx2.URL) -> tuple[str, str, int]:
    """Scheme, host and port (RFC 6454): whoever shares them may see the token."""
    return url.scheme, *address(url)


def shown_host(url: httpx2.URL) -> str:
    """``host``, and the port if it is not the scheme's own."""
    return printable(url.netloc.decode("ascii"))


def checked_endpoint(endpoint: str, secrets: Secrets) -> tuple[httpx2.URL, str | None]:
    """An endpoint's URL without user and password, and the Authorization header that these make, if there are any.

    Raises:
        UsageError: It is not like ``http[s]://[user:password@]host[:port][/path]``.
    """
    try:
        url = httpx2.URL(endpoint)
        usable = url.scheme in _PORTS and url.host != "" and not {"?", "#"} & set(endpoint)
    except httpx2.InvalidURL:
        usable = False
    if not usable:
        raise UsageError(
            f"The endpoint {printable(shown_url(endpoint))} cannot be used.",
            hint="It must be like https://HOST[:PORT][/PATH].",
        )
    if not url.userinfo:
        return url, None
    secrets.add_login(url.username, url.password)
    login = httpx2.BasicAuth(url.username, url.password)
    authorization = next(login.auth_flow(httpx2.Request("GET", url))).headers["Authorization"]
    return url.copy_with(username=None, password=None), authorization


def joined(endpoint: httpx2.URL, path: str) -> httpx2.URL:
    """``path``, with its query, below the endpoint.

    Raises:
        HubError: The path, which has parts that the server chose, is none.
    """
    try:
        return httpx2.URL(str(endpoint).rstrip("/") + path)
    except httpx2.InvalidURL as error:
        raise HubError(f"{shown_host(endpoint)} names an address that is no URL.") from error


def redirected(url: httpx2.URL, location: str | None) -> httpx2.URL:
    """Where a redirect leads; a user and password in it are dropped.

    Raises:
        Hiccup: It does not say.
        HubError: To no URL, from https to http, or to another scheme.
    """
    host = shown_host(url)
    if location is None:
        raise Hiccup(f"{host} redirects without saying where to")
    try:
        target = url.join(location)
    except (httpx2.InvalidURL, ValueError):
        raise HubError(f"{host} redirects to an address that is no URL.") from None
    if target.scheme not in _PORTS or not target.host:
        raise HubError(f"{host} redirects to an address that is neither http nor https.")
    if (url.scheme, target.scheme) == ("https", "http"):
        raise HubError(
            f"{host} redirects from https to http.",
            hint="Something between you and the Hub takes the encryption away; try another network or --endpoint.",
        )
    return target.copy_with(username=None, password=None) if target.userinfo else target


def proxies_of_environment() -> Mapping[str, str]:
    """The proxies that the HTTP library takes from the environment, by the variable; none if it is to use none."""
    proxies = getproxies()
    if "*" in [host.strip() for host in proxies.get("no", "").split(",")]:
        return {}
    return {f"{scheme.upper()}_PROXY": proxies[scheme] for scheme in ("http", "https", "all") if proxies.get(scheme)}


def checked_proxy(proxy: str, secrets: Secrets, place: str) -> str:
    """A proxy's URL; without a scheme it is that of an HTTP proxy. It was given in ``place``.

    Raises:
        UsageError: It is not like ``SCHEME://[user:password@]host[:port]``. The message does not repeat it, since
            what is wrong may be the password.
    """
    full = proxy if "://" in proxy else f"http://{proxy}"
    try:
        url = httpx2.URL(full)
        usable = url.scheme in (*_PORTS, "socks5", "socks5h") and url.host != "" and url.raw_path in (b"", b"/")
        # A slash, question mark or hash in a password ends the host early.
        usable = usable and "#" not in full
    except httpx2.InvalidURL:
        usable = False
    if not usable:
        raise UsageError(
            f"The proxy's URL in {place} cannot be used.",
            hint="It must be like http://HOST:PORT, https://, socks5:// or socks5h://, with USER:PASSWORD@ before "
            "HOST if need be, in which /, ?, #, @ and % are percent-encoded.",
        )
    secrets.add_login(url.username, url.password)
    return full
