"""Checks the namespace: all directory entries of one revision. Rules N1 to N7 of `findings.py`. Pure.

What cannot be reached from the root any more is attached to it under the name `lost+found-ID`, as
fsck(8) does with inodes: nothing is removed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from dnpipefs.core.findings import Finding, Repair, Rule, Stored, absent, unchanged
from dnpipefs.core.keys import KeySchema
from dnpipefs.core.names import ROOT, FileId, Kind, Revision
from dnpipefs.core.records import Inode, decode_time, encode_time
from dnpipefs.core.tree import Entry, Guard, parse_inode, parse_name
from dnpipefs.errors import CorruptData

ROOT_MODE: Final = 0o755
FOUND_MODE: Final = 0o600
"""Of a topic whose entry is lost, until somebody says otherwise."""


def lost_and_found(file: FileId) -> bytes:
    """Return the name in the root directory under which something is attached again."""
    return b"lost+found-%x" % file


class Names:
    """The directory entries, added one by one, and what is wrong with them."""

    def __init__(self, keys: KeySchema, now_ns: int) -> None:
        self._keys: Final = keys
        self._now_ns: Final = now_ns
        self._entries: dict[FileId, Entry] = {}
        self._newest = Revision(0)
        self.findings: list[Finding] = []

    def add(self, stored: Stored) -> None:
        """Take in an entry. Of two with one id the first counts."""
        self._newest = max(self._newest, stored.revision)
        try:
            key = parse_name(self._keys, stored.key)
        except CorruptData as error:
            self._find(Rule.ENTRY_KEY, stored.key, str(error))
            return
        try:
            inode = parse_inode(key, stored.key, stored.value)
        except CorruptData as error:
            self._find(Rule.ENTRY_RECORD, stored.key, f"{error}; what is below it cannot be reached")
            return
        other = self._entries.get(inode.id)
        if other is not None:
            what = f"id {inode.id:x} is also {self.path_text(inode.id)!r}: delete the key of the wrong name"
            self._find(Rule.DUPLICATE_ID, stored.key, what)
            return
        self._entries[inode.id] = Entry(key.parent, key.name, inode, stored.revision)

    def finish(self, last: Stored | None) -> None:
        """Judge how the entries hang together, when all are added; *last* is `last/ns`."""
        root = self._entries.get(ROOT)
        if root is None or not root.is_directory:
            self._find(Rule.ROOT, self._keys.root, "nothing can be mounted", self._new_root(root))
        self._judge_last(last)
        reached = {ROOT}
        for entry in list(self._entries.values()):
            self._climb(entry, reached)

    @property
    def topics(self) -> dict[FileId, Entry]:
        """The topics by id, in the order of their ids."""
        found = sorted(file for file, entry in self._entries.items() if not entry.is_directory)
        return {file: self._entries[file] for file in found}

    @property
    def directories(self) -> int:
        """How many there are, the root included."""
        return sum(entry.is_directory for entry in self._entries.values())

    def find(self, path: tuple[bytes, ...]) -> FileId | None:
        """Return what a path names, None if there is nothing."""
        file = ROOT
        for name in path:
            children = (entry for entry in self._entries.values() if entry.parent == file)
            found = next((entry.id for entry in children if entry.name == name), None)
            if found is None:
                return None
            file = found
        return file

    def below(self, file: FileId) -> Iterator[FileId]:
        """Yield the topics that are *file* or lie below it."""
        for topic in self.topics:
            if file == topic or file in self._ancestors(topic):
                yield topic

    def path(self, file: FileId) -> bytes:
        """Return the path of an id, with a question mark where it leads nowhere."""
        names: list[bytes] = []
        seen: set[FileId] = set()
        while file != ROOT:
            entry = self._entries.get(file)
            if entry is None or file in seen:
                names.append(b"?")
                break
            names.append(entry.name)
            seen.add(file)
            file = entry.parent
        return b"/".join(reversed(names))

    def path_text(self, file: FileId) -> str:
        """Return the path as text."""
        return self.path(file).decode(errors="backslashreplace")

    def attach(self, topic: FileId, *guards: Guard) -> Repair | None:
        """Return the repair that gives a topic a name again; None if there is no root.

        Nor while an entry cannot be read: it may be the topic's, which then had two names once it is mended.
        """
        root = self._entries.get(ROOT)
        if root is None or any(finding.rule is Rule.ENTRY_RECORD for finding in self.findings):
            return None
        inode = Inode(
            *(topic, Kind.TOPIC, FOUND_MODE, root.inode.uid, root.inode.gid, self._now_ns, self._now_ns)
        )
        return self._attaching(inode, *guards)

    def _attaching(self, inode: Inode, *guards: Guard, old: bytes | None = None) -> Repair:
        name = lost_and_found(inode.id)
        entry = self._keys.entry(ROOT, name)
        return Repair(
            f"attach it as /{name.decode()}",
            (*guards, *absent(entry), Guard(self._keys.root, self._entries[ROOT].revision)),
            puts=((entry, inode.encode()), (self._keys.last_namespace, encode_time(self._now_ns))),
            deletes=() if old is None else (old,),
        )

    def _climb(self, entry: Entry, reached: set[FileId]) -> None:
        """Follow the parents of an entry until one is known to lead to the root."""
        way: list[FileId] = []
        while entry.id not in reached:
            if entry.id in way:
                self._unreachable(Rule.CYCLE, entry, f"{entry.id:x} lies below itself")
                break
            way.append(entry.id)
            if entry.parent in reached:
                break
            parent = self._entries.get(entry.parent)
            if parent is None or not parent.is_directory:
                why = "is missing" if parent is None else "is a topic"
                self._unreachable(Rule.NO_PARENT, entry, f"its directory {entry.parent:x} {why}")
                break
            entry = parent
        # Each breach is reported once, at its place; what leads to a topic leads nowhere.
        reached.update(file for file in way if self._entries[file].is_directory)

    def _unreachable(self, rule: Rule, entry: Entry, what: str) -> None:
        key, repair = self._keys.entry(entry.parent, entry.name), None
        root = self._entries.get(ROOT)
        if root is not None and root.is_directory:
            moved = entry.inode.changed(self._now_ns)
            repair = self._attaching(moved, Guard(key, entry.revision), old=key)
        self._find(rule, key, f"{what}; {entry.name!r} cannot be reached", repair)

    def _new_root(self, found: Entry | None) -> Repair | None:
        if found is not None or any(finding.key == self._keys.root for finding in self.findings):
            return None  # there is one, of which nobody knows what it was meant to be
        inode = Inode(ROOT, Kind.DIRECTORY, ROOT_MODE, 0, 0, self._now_ns, self._now_ns)
        return Repair(
            "put a root directory of root's, mode 755",
            absent(self._keys.root),
            puts=(
                (self._keys.root, inode.encode()),
                (self._keys.last_namespace, encode_time(self._now_ns)),
            ),
        )

    def _judge_last(self, last: Stored | None) -> None:
        key = self._keys.last_namespace
        if last is None:
            what, guards = "it is missing", absent(key)
        elif last.revision < self._newest:
            what, guards = f"it is of revision {last.revision}, an entry of {self._newest}", unchanged(last)
        else:
            try:
                decode_time(key, last.value)
            except CorruptData as error:
                what, guards = str(error), unchanged(last)
            else:
                return
        put = ((key, encode_time(self._now_ns)),)
        what = f"{what}; hosts may miss new names"
        self._find(Rule.LAST_NAMESPACE, key, what, Repair("put it", guards, puts=put))

    def _ancestors(self, file: FileId) -> Iterator[FileId]:
        seen: set[FileId] = set()
        while file in self._entries and file not in seen:
            seen.add(file)
            file = self._entries[file].parent
            yield file

    def _find(self, rule: Rule, key: bytes, what: str, repair: Repair | None = None) -> None:
        self.findings.append(Finding(rule, key, what, repair=repair))
