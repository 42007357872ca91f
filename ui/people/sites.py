"""The names of this server, its own origin, and the address of a request."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urlsplit

from trueup.errors import TrueupError
from ui.people.accounts import People

MAX_HOST = 255


class Origin(NamedTuple):
    """Scheme, host and port, each in a normal form for comparison."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == _PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}"


_PORTS = {"http": 80, "https": 443}


def origin_of(url: str) -> Origin | None:
    """The origin of a URL in normal form, whatever its capitals, port, final slash or dot, or form of an IPv6 address.
    None: it is no http(s) URL, or has more than an origin.

    Browsers send no letters beyond ASCII in Host and Origin; `site` translates those of --url once.
    """
    if len(url) > MAX_HOST + 20 or not url.isascii() or not url.isprintable() or "\\" in url:
        return None
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme, parts.hostname, parts.port
    except ValueError:
        return None
    more = parts.path not in ("", "/") or parts.query or parts.fragment or url.endswith(("?", "#"))
    if scheme not in _PORTS or not host or more or not _NETLOC.fullmatch(parts.netloc):
        return None
    host = host.removesuffix(".")
    if ":" in host:
        try:
            host = ipaddress.IPv6Address(host).compressed
        except ValueError:
            return None
    return Origin(scheme, host, _PORTS[scheme] if port is None else port) if host else None


_NETLOC = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{0,5})?")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class Site:
    """The names of this server. Without any, it serves this machine alone."""

    names: frozenset[str] = frozenset()
    any_address: bool = False
    """Any IP address is a name too, since it is bound to more than loopback. Strangers can point only names here."""
    origin: Origin | None = None
    """The origin that people use, if there is a proxy in between."""
    proxies: tuple[Network, ...] = ()
    """The proxies whose X-Forwarded-For counts."""

    @property
    def url(self) -> str | None:
        return None if self.origin is None else str(self.origin)

    def knows(self, host: str) -> bool:
        """Whether a Host header names this server; the port does not matter, it may be forwarded."""
        origin = origin_of(f"http://{host}")
        if origin is None:
            return False
        if origin.host in self.names or is_loopback(origin.host):
            return True
        return self.any_address and _address(origin.host) is not None

    def is_own(self, origin: str, host: str) -> bool:
        """Whether an Origin header belongs to this Host's pages; another port is another site."""
        asking = origin_of(origin)
        if asking is None or origin.endswith("/"):
            return False
        return asking in (origin_of(f"http://{host}"), origin_of(f"https://{host}"), self.origin)


def site(host: str, url: str | None, people: People, proxies: Sequence[str] = ()) -> Site:
    """The names of a server bound to `host`. Without accounts it must be reached from this machine only."""
    names = {host.strip("[]").lower().removesuffix(".")}
    origin = None
    if url is not None:
        origin = origin_of(_ascii(url))
        if origin is None:
            raise TrueupError(
                f"--url {url}: give the scheme and host that people open, such as https://label.example.org"
            )
        names.add(origin.host)
    outside = sorted(name for name in names if not is_loopback(name))
    if outside and not people.any_active():
        option = "--url" if is_loopback(host.strip("[]")) else "--host"
        raise TrueupError(
            f"{option} {outside[0]}: there are no accounts, so the pages "
            "are served to this machine only (127.0.0.1): anybody else who reaches them could label in your name.\n"
            "Add an account first: trueup accounts add CONFIG NAME --role admin\n"
            "Or reach them from another machine by forwarding the port: ssh -L 7860:127.0.0.1:7860 THIS_MACHINE"
        )
    trusted = tuple(_network(proxy) for proxy in proxies)
    return Site(frozenset(names), any_address=not is_loopback(host.strip("[]")), origin=origin, proxies=trusted)


def _ascii(url: str) -> str:
    """A URL with a host in any script, as a browser would write it."""
    if url.isascii():
        return url
    import idna  # comes with gradio

    try:
        scheme, _, rest = url.partition("://")
        host, slash, more = rest.partition("/")
        name, colon, port = host.partition(":")
        return f"{scheme}://{idna.encode(name, uts46=True).decode()}{colon}{port}{slash}{more}"
    except idna.IDNAError:
        return url


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise TrueupError(
            f"--proxy {text}: {error}; give the address of the proxy in front, such as 127.0.0.1, or its network, "
            "such as 172.16.0.0/12"
        ) from None


def is_loopback(name: str) -> bool:
    address = _address(name)
    return name == "localhost" or (address is not None and address.is_loopback)


def _address(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return address.ipv4_mapped or address if isinstance(address, ipaddress.IPv6Address) else address


# ---- From where -------------------------------------------------------------------------------------------------


def address_of(peer: str | None, forwarded: str, site: Site) -> str | None:
    """The address whose failed logins are counted together; None: it is not known to be one person's or office's.

        peer is one of --proxy         the last address in X-Forwarded-For that is not a proxy's; None if there is none
        peer is this machine           None: it may be a proxy, or ssh, that does not reveal the origin
        peer is in a private network   None with --url and without --proxy: it is likely that proxy
        any other peer                 its address; for IPv6 the network, because one machine has 2^64 addresses there

    Without --proxy the header is ignored, so forging it is useless.
    """
    address = _address(peer or "")
    if address is None:
        return None
    if _is_in(address, site.proxies):
        hops = [_hop(hop) for hop in forwarded[-1000:].split(",")[-20:]] if forwarded else []
        while hops and hops[-1] is not None and _is_in(hops[-1], site.proxies):
            hops.pop()
        address = hops[-1] if hops else None
        if address is None:
            return None
    elif address.is_loopback or (site.origin is not None and not site.proxies and address.is_private):
        return None
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address.packed, 64), strict=False))
    return str(address)


def _hop(text: str) -> Address | None:
    """One address of X-Forwarded-For; some proxies add its port."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    return _address(text)


def _is_in(address: Address, networks: Iterable[Network]) -> bool:
    return any(address.version == network.version and address in network for network in networks)
