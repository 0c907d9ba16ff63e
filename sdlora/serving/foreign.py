"""Requests that a web page of somebody else's sends, told by what a browser says of itself.

A browser sends requests to localhost for whoever asks, and a host name that is first theirs and then resolves to this
machine ("DNS rebinding") makes such a page same-origin. So every request must name a host this server knows, and what a
browser says about its origin must be this server. Programs that are no browsers (curl, gradio_client, OpenAI's client)
say nothing about an origin and pass.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import urlsplit

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def known_hosts(bound: str, allowed: Iterable[str] = ()) -> Callable[[str], bool]:
    """Whether a Host header's name (without port) is one of this server's.

    On a loopback address these are the loopback names; on others the address itself, this machine's name and any plain
    IP address, which no name server can redirect. `allowed` adds names, for a proxy or a name of one's own.
    """
    names = {name.lower() for name in (*LOOPBACK, bound, *allowed)}
    if bound in LOOPBACK:
        return lambda host: host in names
    names |= {socket.gethostname().lower(), socket.getfqdn().lower()}

    # A rebinding attack needs a name that resolves elsewhere first; an address written out can't be redirected.
    def knows(host: str) -> bool:
        if host in names:
            return True
        try:
            return ipaddress.ip_address(host).version == 4 or "." not in host
        except ValueError:
            return False

    return knows


def why_foreign(
    headers: Mapping[bytes, str], knows_host: Callable[[str], bool], *, is_page: bool = False
) -> str | None:
    """Why a request is refused, if so. headers: by name in lower case.

    is_page: whether it asks for a page that people follow links to, which then is no fault.
    """
    host = headers.get(b"host", "")
    name = _host_name(host)
    if name is None or not knows_host(name):
        return f"this server has no name '{host}'; if it should, start it with --allow-host {name or 'NAME'}"
    site, origin = headers.get(b"sec-fetch-site"), headers.get(b"origin")
    if origin is not None and not _is_same(origin, host):
        return f"requests from {origin} are refused: pages of other sites may not use this server"
    # Older browsers say nothing about the site and programs never do; "none" is an address typed by hand.
    if site in (None, "same-origin", "none"):
        return None
    if is_page and headers.get(b"sec-fetch-mode") == "navigate" and headers.get(b"sec-fetch-dest") == "document":
        return None  # somebody followed a link to the page
    return "requests from other sites are refused: their pages may not use this server"


def _host_name(host: str) -> str | None:
    """The name in a Host header, in lower case, without port and brackets; None where it is none."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port  # raises for what is no number
    except ValueError:
        return None
    if not parts.hostname or parts.username is not None or parts.path or parts.query or parts.fragment:
        return None
    return parts.hostname


def _is_same(origin: str, host: str) -> bool:
    """Whether an Origin header is the server's own; its scheme may be a proxy's https."""
    # Behind a proxy that ends TLS the page's origin says https while this server sees http.
    try:
        parts = urlsplit(origin)
    except ValueError:  # no address at all, such as http://[::1
        return False
    return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()
