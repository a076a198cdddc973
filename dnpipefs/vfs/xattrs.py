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
of a group: `GROUP_FACTS`       of a group that exists   ReadOnly-       NotPermitted
                                                         Setting
of a group: ``user.dnp.seek``   NoSuchAttribute          rewinds         NotPermitted
of the root: `STATUS`           how the mount is, JSON   InvalidSetting  NoSuchAttribute
==============================  =======================  ==============  ================

NotSupported, because it makes programs such as ls ask for access control lists and capabilities
once and not for each file, and copying programs go on without them.
"""

from __future__ import annotations

import json
from typing import Final

from dnpipefs.cluster import Cluster
from dnpipefs.core.config import READ_ONLY, SETTINGS, format_id, format_value
from dnpipefs.core.names import ROOT, FileId
from dnpipefs.core.places import parse_place
from dnpipefs.core.tree import Entry
from dnpipefs.errors import NoSuchAttribute, NotPermitted, NotSupported, ReadOnlySetting
from dnpipefs.groups import GroupFacts
from dnpipefs.status import status_of
from dnpipefs.vfs.control import is_control, refuse
from dnpipefs.vfs.views import View, ViewTable

PREFIX: Final = b"user.dnp."
GROUP_FACTS: Final = ("lag", "offset", "message", "pending", "returned", "redeliveries", "members")
"""What is known of a group; `members` is how many hosts have something in hand."""
SEEK: Final = "seek"
"""Setting it rewinds a group."""
STATUS: Final = "status"
"""What `dnpipefs status` reads; not among the names of `list`, since it is no property of the directory."""
OWNERS_ONLY: Final = "dead_letter"
"""Where the daemon pushes to, if the topic's owner may."""
_USER: Final = b"user."


class ExtendedAttributes:
    """The extended attributes of topics and directories."""

    def __init__(self, cluster: Cluster, views: ViewTable) -> None:
        self._cluster: Final = cluster
        self._namespace: Final = cluster.namespace
        self._log: Final = cluster.log
        self._groups: Final = cluster.groups
        self._views: Final = views

    async def get(self, file: FileId, name: bytes) -> bytes:
        """Return a value. Raises NoSuchAttribute, NotSupported, TopicGone, TimedOut."""
        own = _own_name(name)
        if is_control(file):
            raise NoSuchAttribute("files of the control directory have no attributes")
        if (view := self._views.get(file)) is not None:
            facts = await self._facts_of(view)
            if facts is None or own not in GROUP_FACTS:
                raise NoSuchAttribute(f"there is no attribute user.dnp.{own} here")
            return str(len(facts.members) if own == "members" else getattr(facts, own)).encode()
        if file == ROOT and own == STATUS:
            return json.dumps(await status_of(self._cluster)).encode()
        entry = await self._namespace.entry(file)
        if own in SETTINGS:
            return format_value(own, entry.inode.config.effective).encode()
        if own not in _facts(entry):
            raise NoSuchAttribute(f"there is no attribute user.dnp.{own} here")
        if own == "id":
            return format_id(file).encode()
        return (await self._log.facts(file)).text(own).encode()

    async def set(self, file: FileId, name: bytes, value: bytes, uid: int) -> None:
        """Change a setting on behalf of a user.

        Raises NotSupported, NotPermitted, and as `Namespace.configure` does.
        """
        if not name.startswith(PREFIX):
            raise NotSupported("topics have extended attributes user.dnp.* only")
        if is_control(file):
            refuse()
        if (view := self._views.get(file)) is not None:
            await self._set_of(view, _own_name(name), value)
            return
        await self._check_owner(file, _own_name(name), uid)
        await self._namespace.configure(file, {_own_name(name): value.decode(errors="backslashreplace")})

    async def remove(self, file: FileId, name: bytes, uid: int) -> None:
        """Take a setting back to its default. Raises NoSuchAttribute, and as `set` does."""
        own = _own_name(name)
        if is_control(file):
            refuse()
        if self._views.get(file) is not None:
            raise NotPermitted("settings belong to the topic, not to its views")
        if own not in SETTINGS and own not in READ_ONLY:
            raise NoSuchAttribute(f"there is no attribute user.dnp.{own}")
        await self._check_owner(file, own, uid)
        await self._namespace.configure(file, {own: None})

    async def _check_owner(self, file: FileId, own: str, uid: int) -> None:
        """Refuse others than its owner what is done with the owner's permissions."""
        if own == OWNERS_ONLY and uid not in (0, (await self._namespace.entry(file)).inode.uid):
            raise NotPermitted("dead_letter is for the owner to set: messages go where the owner may push")

    async def list(self, file: FileId) -> list[bytes]:
        """Return the names of all there are: settings, whether set or not, and facts."""
        if is_control(file):
            return []
        if (view := self._views.get(file)) is not None:
            names = GROUP_FACTS if await self._facts_of(view) is not None else ()
            return [PREFIX + name.encode() for name in names]
        entry = await self._namespace.entry(file)
        return [PREFIX + name.encode() for name in (*SETTINGS, *_facts(entry))]

    async def _facts_of(self, view: View) -> GroupFacts | None:
        """Return what is known of a group; None of a subscription, and of a group that does not exist yet."""
        if view.group is None:
            return None
        found = await self._groups.facts(view.topic)
        return next((facts for facts in found if facts.name == view.group), None)

    async def _set_of(self, view: View, own: str, value: bytes) -> None:
        if own in GROUP_FACTS:
            raise ReadOnlySetting(f"{own} cannot be set: it says what is so")
        if own != SEEK or view.group is None:
            raise NotPermitted("settings belong to the topic; a group has user.dnp.seek")
        place = parse_place(value.decode(errors="backslashreplace").strip())
        await self._groups.rewind(view.topic, view.group, place)


def _facts(entry: Entry) -> tuple[str, ...]:
    return ("id",) if entry.is_directory else READ_ONLY


def _own_name(name: bytes) -> str:
    """Return what follows ``user.dnp.``. Raises NoSuchAttribute, NotSupported for other names."""
    if name.startswith(PREFIX):
        return name[len(PREFIX) :].decode(errors="backslashreplace")
    if name.startswith(_USER):
        raise NoSuchAttribute("topics have extended attributes user.dnp.* only")
    raise NotSupported("topics have extended attributes user.dnp.* only")
