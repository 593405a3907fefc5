"""Access control of the page and its socket. Knows nothing of games or of the web server."""

from __future__ import annotations

import ipaddress
import secrets
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Access:
    """The conditions for a request.

    Attributes:
        token: To be given as `?token=...`; None where only this machine can reach the server. Other websites
            could still use a browser on this machine, so the server then accepts only names of this
            machine.
        host: Name or address under which the server was started.
    """

    token: str | None
    host: str

    def refuses(self, host: str | None, token: str | None) -> str | None:
        """Return why a page is not shown; None if it is.

        Args:
            host: The request's Host header.
            token: The one that was given.
        """
        if self.token is None:
            return None if self._is_here(host) else f"this page is served to localhost only, not to {host!r}"
        if token is None:
            return "a token is needed: it was printed where the server was started"
        is_right = secrets.compare_digest(token.encode(), self.token.encode())  # takes constant time
        return (
            None if is_right else "the token is wrong: the right one was printed where the server was started"
        )

    def refuses_socket(self, host: str | None, token: str | None, origin: str | None) -> str | None:
        """Return why the socket is refused, also to pages of other sites; None if it is not.

        Args:
            host: The request's Host header.
            token: The token that was given.
            origin: The request's Origin header; browsers always send one.
        """
        if origin is not None and origin.partition("://")[2] != host:
            return f"a page of {origin!r} must not play here"
        return self.refuses(host, token)

    def _is_here(self, host: str | None) -> bool:
        name = _name_in(host)
        return name in (self.host.lower(), "localhost") or name.endswith(".localhost") or _is_loopback(name)


def access_to(address: str, host: str) -> Access:
    """Choose the conditions for a server.

    Args:
        address: The IP address that it listens at.
        host: The name under which it was started.
    """
    return Access(None if _is_loopback(address) else secrets.token_urlsafe(16), host)


def _name_in(host: str | None) -> str:
    """Return the name in a Host header, without port and in lower case."""
    try:
        return urlsplit(f"//{host or ''}").hostname or ""
    except ValueError:
        return ""


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
