"""A tree of what etcd should not hold: unreadable entries, ids with two names, directories in themselves."""

from collections.abc import Iterable

import pytest

from dnpipefs.core.keys import EntryKey, KeySchema
from dnpipefs.core.names import ROOT, FileId, Kind, Revision
from dnpipefs.core.records import Inode
from dnpipefs.core.tree import Entry, EntryDeleted, EntryPut, EntryUnreadable, Planner, Tree
from dnpipefs.errors import CorruptData, NotEmpty, NotFound

PLANNER = Planner(KeySchema())
ROOT_INODE = Inode(ROOT, Kind.DIRECTORY, 0o755, 0, 0, 1, 1)


def entry_of(file: int, parent: int, name: bytes, kind: Kind = Kind.TOPIC) -> Entry:
    return Entry(FileId(parent), name, Inode(FileId(file), kind, 0o755, 0, 0, 1, 1), Revision(2))


def with_root(*entries: Entry, unreadable: Iterable[EntryUnreadable] = ()) -> Tree:
    root = Entry(FileId(0), b"", ROOT_INODE, Revision(1))
    return Tree(Revision(5), [root, *entries], unreadable)


def test_an_unreadable_name_is_neither_there_nor_free() -> None:
    lost = EntryUnreadable(EntryKey(FileId(2), b"a"), "why")
    tree = with_root(entry_of(2, ROOT, b"d", Kind.DIRECTORY), entry_of(3, ROOT, b"t"), unreadable=[lost])
    topic = Inode(FileId(9), Kind.TOPIC, 0o644, 0, 0, 1, 1)
    for attempt in (
        lambda: tree.lookup(FileId(2), b"a"),
        lambda: PLANNER.create(tree, FileId(2), b"a", topic),
        lambda: PLANNER.unlink(tree, FileId(2), b"a", 1),
        lambda: PLANNER.rename(tree, (ROOT, b"t"), (FileId(2), b"a"), 1, replace=True),
    ):
        with pytest.raises(CorruptData, match="why; dnpipefs fsck tells more"):
            attempt()
    with pytest.raises(NotEmpty):
        PLANNER.rmdir(tree, ROOT, b"d", 1)
    assert tree.lookup(ROOT, b"t").id == 3
    assert tree.find(FileId(2), b"b") is None
    tree.apply(Revision(6), [EntryDeleted(lost.key)])
    assert tree.find(FileId(2), b"a") is None
    PLANNER.rmdir(tree, ROOT, b"d", 1)


def test_an_entry_comes_and_goes_with_its_value() -> None:
    tree = with_root(entry_of(3, ROOT, b"t"))
    key = EntryKey(ROOT, b"t")
    tree.apply(Revision(6), [EntryUnreadable(key, "why")])
    with pytest.raises(CorruptData):
        tree.find(*key)
    with pytest.raises(NotFound):
        tree.get(FileId(3))
    tree.apply(Revision(7), [EntryPut(key, entry_of(3, ROOT, b"t").inode)])
    assert tree.lookup(*key).id == 3


def test_of_an_unreadable_root_what_was_known_holds() -> None:
    tree = with_root(entry_of(3, ROOT, b"t"))
    tree.apply(Revision(6), [EntryUnreadable(EntryKey(FileId(0), b""), "why")])
    assert tree.lookup(ROOT, b"t").id == 3


def test_an_id_with_two_names_has_the_first() -> None:
    tree = with_root(entry_of(3, ROOT, b"t"), entry_of(3, ROOT, b"u"))
    assert tree.lookup(ROOT, b"t").id == 3
    with pytest.raises(CorruptData, match="has another name"):
        tree.find(ROOT, b"u")
    for name in (b"u", b"t"):
        tree.apply(Revision(6), [EntryDeleted(EntryKey(ROOT, name))])
    assert tree.is_empty(ROOT)


def test_a_directory_below_itself_does_not_keep_anybody_busy_for_ever() -> None:
    tree = with_root(
        entry_of(2, 3, b"a", Kind.DIRECTORY),
        entry_of(3, 2, b"b", Kind.DIRECTORY),
        entry_of(4, ROOT, b"d", Kind.DIRECTORY),
    )
    with pytest.raises(CorruptData, match="lies below itself"):
        tree.path(FileId(2))
    with pytest.raises(CorruptData):
        PLANNER.rename(tree, (ROOT, b"d"), (FileId(2), b"x"), 1, replace=True)
