"""What a server says of itself beside gRPC: its metrics (Prometheus text) and its command line.

Owns how these two documents are read; whoever asks says which values it wants. Both are debugging aids of
etcd, served without a password where clients connect (unless an operator moved or closed them): what is
missing there is no failure of the server.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Sequence
from typing import Final

from dnpipefs.etcd.http import HttpFailed

logger: Final = logging.getLogger(__name__)

METRICS_PATH: Final = "/metrics"
METRICS_LIMIT_BYTES: Final = 4 * 1024**2
"""Metrics larger than this are not read; etcd's are about 0.1 MiB."""

VARIABLES_PATH: Final = "/debug/vars"
VARIABLES_LIMIT_BYTES: Final = 1024**2
"""Go's published variables, the command line among them; some 10 KiB."""


class Metrics:
    """The samples of one look at /metrics, found by name when asked for."""

    def __init__(self, document: bytes) -> None:
        self._document = document

    def value(self, name: str) -> float | None:
        """Return a sample without labels; None if missing or cut off. Raises `HttpFailed` for nonsense."""
        found = re.search(rb"^%s (\S+)\r?\n" % re.escape(name.encode()), self._document, re.MULTILINE)
        if found is None:
            return None
        try:
            number = float(found[1])
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise HttpFailed(f"{METRICS_PATH} has {found[1]!r} as {name}")
        return number

    def told(self, name: str) -> float | None:
        """Likewise; None for nonsense, too."""
        try:
            return self.value(name)
        except HttpFailed as error:
            logger.info("not told: %s", error)
            return None

    def whole(self, name: str) -> int | None:
        """Likewise, as a whole number."""
        number = self.told(name)
        return None if number is None else int(number)


def parse_command_line(document: bytes) -> list[str] | None:
    """Return a server's command line from what it serves at `VARIABLES_PATH`; None if it is not in it."""
    try:
        command = json.loads(document)["cmdline"]
    except (ValueError, KeyError, TypeError):
        return None
    if isinstance(command, list) and all(isinstance(word, str) for word in command):
        return command
    return None


def flag(command: Sequence[str], name: str) -> str | None:
    """Return the value of the flag `--name` in a command line; None if it is not there."""
    for position, word in enumerate(command):
        stem, equals, value = word.partition("=")
        if stem in (f"--{name}", f"-{name}"):
            if equals:
                return value
            return command[position + 1] if position + 1 < len(command) else ""
    return None
