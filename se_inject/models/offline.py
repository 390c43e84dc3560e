"""Whether the hub can be reached, asked once and before a download: its client tries each file six times, with pauses
that add up to most of a minute, before it says that there is no network."""

from __future__ import annotations

import contextlib
import socket
import urllib.request
from collections.abc import Iterator
from urllib.parse import urlsplit

TIMEOUT = 5.0  # seconds


@contextlib.contextmanager
def cache_only_without_network() -> Iterator[None]:
    """Where the hub cannot be reached, its client looks into its cache alone: at once, and weights that are there load.

    Behind a proxy nothing is asked: names may be known to the proxy only.
    """
    try:
        from huggingface_hub import constants
    except ImportError:  # timm without its hub, or another zoo
        yield
        return
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not reachable(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def reachable(url: str) -> bool:
    """Whether the host of ``url`` takes a connection; taken for granted behind a proxy."""
    parts = urlsplit(url)
    if parts.scheme in urllib.request.getproxies() or not parts.hostname:
        return True
    try:
        socket.create_connection((parts.hostname, parts.port or 443), TIMEOUT).close()
    except OSError:
        return False
    return True
