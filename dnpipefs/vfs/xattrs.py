"""Settings and facts of topics as extended attributes ``user.dnp.NAME``; values are text.

==============================  =======================  ==============  ================
name                            get                      set             remove
==============================  =======================  ==============  ================
``user.dnp.`` and a setting     in effect                parsed          to the default
``user.dnp.`` and a fact        of topics; of            ReadOnly-       ReadOnly-
                                directories `id` only    Setting         Setting
``user.dnp.`` and other names   NoSuchAttribute          InvalidSetting  NoSuchAttribute
other names in ``user.``        NoSuchAttribute          NotSupported    NoSuchAttribute
other namespaces                NotSupported             NotSupported    NotSupported
==============================  =======================  ==============  ================

NotSupported, because it makes programs such as ls ask for access control lists and capabilities
once and not for each file, and copying programs go on without them.
"""

from __future__ import annotations

from typing import Final

from dnpipefs.core.config import READ_ONLY, SETTINGS, format_id, format_value
from dnpipefs.core.names import FileId
from dnpipefs.core.tree import Entry
from dnpipefs.errors import NoSuchAttribute, NotSupported
from dnpipefs.log.log import Log
from dnpipefs.namespace import Namespace

PREFIX: Final = b"user.dnp."
_USER: Final = b"user."


class ExtendedAttributes:
    """The extended attributes of topics and directories."""

    def __init__(self, namespace: Namespace, log: Log) -> None:
        self._namespace: Final = namespace
        self._log: Final = log

    async def get(self, file: FileId, name: bytes) -> bytes:
        """Return a value. Raises NoSuchAttribute, NotSupported, TopicGone, TimedOut."""
        own = _own_name(name)
        entry = await self._namespace.entry(file)
        if own in SETTINGS:
            return format_value(own, entry.inode.config.effective).encode()
        if own not in _facts(entry):
            raise NoSuchAttribute(f"there is no attribute user.dnp.{own} here")
        if own == "id":
            return format_id(file).encode()
        return (await self._log.facts(file)).text(own).encode()

    async def set(self, file: FileId, name: bytes, value: bytes) -> None:
        """Change a setting. Raises NotSupported, and as `Namespace.configure` does."""
        if not name.startswith(PREFIX):
            raise NotSupported("topics have extended attributes user.dnp.* only")
        await self._namespace.configure(file, {_own_name(name): value.decode(errors="backslashreplace")})

    async def remove(self, file: FileId, name: bytes) -> None:
        """Take a setting back to its default. Raises NoSuchAttribute, and as `set` does."""
        own = _own_name(name)
        if own not in SETTINGS and own not in READ_ONLY:
            raise NoSuchAttribute(f"there is no attribute user.dnp.{own}")
        await self._namespace.configure(file, {own: None})

    async def list(self, file: FileId) -> list[bytes]:
        """Return the names of all there are: settings, whether set or not, and facts."""
        entry = await self._namespace.entry(file)
        return [PREFIX + name.encode() for name in (*SETTINGS, *_facts(entry))]


def _facts(entry: Entry) -> tuple[str, ...]:
    return ("id",) if entry.is_directory else READ_ONLY


def _own_name(name: bytes) -> str:
    """Return what follows ``user.dnp.``. Raises NoSuchAttribute, NotSupported for other names."""
    if name.startswith(PREFIX):
        return name[len(PREFIX) :].decode(errors="backslashreplace")
    if name.startswith(_USER):
        raise NoSuchAttribute("topics have extended attributes user.dnp.* only")
    raise NotSupported("topics have extended attributes user.dnp.* only")
