"""Addresses that a server listens on: whom they open it to, and what is in the way of one."""

from __future__ import annotations

import ipaddress
import os
import socket


def is_local(host: str) -> bool:
    """Whether only this machine reaches the address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def why_not(host: str, port: int) -> str | None:
    """What is in the way of listening there, None for nothing."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror:
        return f"--host {host}: this machine has no such address"
    with socket.socket(family, kind, protocol) as probe:
        if os.name == "posix":  # as the server does: a port that was left a moment ago is free
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            return f"port {port} of {host} can't be used ({error.strerror}): choose another with --port"
    return None


def as_url(host: str, port: int) -> str:
    """The address as one types it."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
