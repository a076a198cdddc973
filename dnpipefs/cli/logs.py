"""How the log is written: lines for people, JSON for collectors, fields for the journal of systemd.

What a record is about stands in its message for people, and besides in fields, which whoever logs gives as
`extra` by the names in FIELDS, as the values that it has. docs/observability.md tells all of them.
"""

from __future__ import annotations

import enum
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from dnpipefs.core.config import format_id

if TYPE_CHECKING:
    from logging_journald import JournaldTransport

TEXT_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
IDENTIFIER: Final = "dnpipefs"
"""What the journal shows before each message."""
FIELDS: Final[Mapping[str, Callable[[Any], object]]] = {
    "topic": format_id,
    "group": os.fsdecode,
    "session": "{:x}".format,
    "revision": int,
    "operation": str,
    "errno": str,
}
"""What a record can be about, and how it is shown."""
_PRIORITIES: Final = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
"""Of syslog, by the least level."""
_DEBUG_PRIORITY: Final = 7
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""What breaks a line, or moves a terminal's cursor."""


class LogFormat(enum.StrEnum):
    """How the log is written."""

    AUTO = "auto"
    """To the journal if standard error goes there, else text."""
    TEXT = "text"
    JSON = "json"
    JOURNALD = "journald"


def start_logging(level: str, form: LogFormat) -> None:
    """Log from *level* on to standard error, or to the journal."""
    if form is LogFormat.JOURNALD or (form is LogFormat.AUTO and _goes_to_the_journal()):
        handler: logging.Handler = JournalHandler()
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(JsonFormatter() if form is LogFormat.JSON else TextFormatter(TEXT_FORMAT))
    logging.basicConfig(level=level.upper(), handlers=[handler])


class TextFormatter(logging.Formatter):
    """Makes one line of a record, and a traceback behind it if there is one."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the line: a name that users give to a topic or group cannot begin another one."""
        record.message = _CONTROL.sub(lambda found: ascii(found[0])[1:-1], record.message)
        return super().formatMessage(record)


class JsonFormatter(logging.Formatter):
    """Makes one JSON object of a record, in a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        said = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **dict(fields(record)),
        }
        if record.exc_info:
            said["traceback"] = self.formatException(record.exc_info)
        return json.dumps(said)


class JournalHandler(logging.Handler):
    """Sends records to the journal of systemd, each with its priority and fields."""

    def __init__(self) -> None:
        super().__init__()
        self._transport: JournaldTransport | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record; where that fails, standard error has it."""
        try:
            if self._transport is None:
                from logging_journald import JournaldTransport

                self._transport = JournaldTransport()
            pairs = self._pairs(record)
            self._transport.send((name, _encoded(value)) for name, value in pairs)
        except Exception:  # as all handlers do
            self.handleError(record)

    def close(self) -> None:
        """Let go of the journal."""
        if self._transport is not None:
            self._transport.socket.close()
        super().close()

    def _pairs(self, record: logging.LogRecord) -> Iterator[tuple[str, object]]:
        yield "MESSAGE", self.format(record)  # with the traceback
        yield (
            "PRIORITY",
            next((priority for level, priority in _PRIORITIES if record.levelno >= level), _DEBUG_PRIORITY),
        )
        yield "SYSLOG_IDENTIFIER", IDENTIFIER
        yield "CODE_FILE", record.pathname
        yield "CODE_LINE", record.lineno
        yield "CODE_FUNC", record.funcName
        yield "LOGGER", record.name
        for name, value in fields(record):
            yield f"DNP_{name.upper()}", value


def fields(record: logging.LogRecord) -> Iterator[tuple[str, object]]:
    """Yield what a record is about, as far as whoever logged it has said that."""
    for name, shown in FIELDS.items():
        value = getattr(record, name, None)
        if value is not None:
            yield name, shown(value)


def _encoded(value: object) -> bytes:
    return str(value).encode(errors="backslashreplace")


def _goes_to_the_journal() -> bool:
    """Tell whether standard error is what systemd has connected to the journal: sd_journal_stream_fd(3)."""
    stream = os.environ.get("JOURNAL_STREAM")
    if stream is None:
        return False
    try:
        found = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):  # closed, or none
        return False
    return stream == f"{found.st_dev}:{found.st_ino}"
