"""The namespace: hosts with stale trees plan changes, a model of etcd checks the guards and applies them.

An independent model of POSIX directories says what each change means and which errors may come.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from dnpipefs.core import generation
from dnpipefs.core.keys import EntryKey, KeySchema
from dnpipefs.core.names import ROOT, FileId, Kind, Revision
from dnpipefs.core.records import Inode, Mark, decode_time
from dnpipefs.core.tree import (
    ABSENT,
    Entry,
    EntryDeleted,
    EntryPut,
    Guard,
    Mutation,
    Planner,
    Tree,
    TreeEvent,
)
from dnpipefs.errors import (
    AlreadyExists,
    CorruptData,
    DnpError,
    InvalidArgument,
    InvalidName,
    IsADirectory,
    NotADirectory,
    NotEmpty,
    NotFound,
)

KEYS = KeySchema()
PLANNER = Planner(KEYS)
ROOT_INODE = Inode(ROOT, Kind.DIRECTORY, 0o755, 0, 0, 1, 1)
NAMES = [b"a", b"b", b"c"]
ETCD_OPERATIONS = 128


# --- what POSIX says -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Thing:
    """A topic or directory of the model."""

    id: FileId
    kind: Kind
    mode: int = 0o644


Files = Mapping[EntryKey, Thing]


@dataclass(frozen=True, slots=True)
class Create:
    """mkdir(2), or open(2) with O_CREAT."""

    parent: FileId
    name: bytes
    thing: Thing


@dataclass(frozen=True, slots=True)
class Chmod:
    """chmod(2)."""

    id: FileId
    mode: int


@dataclass(frozen=True, slots=True)
class Remove:
    """unlink(2) or rmdir(2)."""

    parent: FileId
    name: bytes
    kind: Kind


@dataclass(frozen=True, slots=True)
class Rename:
    """renameat2(2)."""

    source: EntryKey
    target: EntryKey
    replace: bool


Operation = Create | Chmod | Remove | Rename
Errors = set[type[DnpError]]


def find(files: Files, file: FileId) -> EntryKey | None:
    return next((key for key, thing in files.items() if thing.id == file), None)


def empty(files: Files, file: FileId) -> bool:
    return all(key.parent != file for key in files)


def above(files: Files, file: FileId) -> list[FileId]:
    """Return a directory and all directories above it."""
    path = [file]
    while path[-1] != ROOT:
        key = find(files, path[-1])
        assert key is not None
        path.append(key.parent)
    return path


def parent_errors(files: Files, parent: FileId) -> Errors:
    key = find(files, parent)
    if key is None:
        return {NotFound}
    return set() if files[key].kind is Kind.DIRECTORY else {NotADirectory}


def posix(files: Files, operation: Operation) -> Files | Errors:
    """Return the files after an operation, or all errors of which a system may report any."""
    match operation:
        case Create(parent, name, thing):
            key = EntryKey(parent, name)
            errors = parent_errors(files, parent) | ({AlreadyExists} if key in files else set())
            return errors or {**files, key: thing}
        case Chmod(file, mode):
            found = find(files, file)
            return {NotFound} if found is None else {**files, found: Thing(file, files[found].kind, mode)}
        case Remove(parent, name, kind):
            key = EntryKey(parent, name)
            errors = parent_errors(files, parent)
            if not errors and key not in files:
                errors = {NotFound}
            if not errors and files[key].kind is not kind:
                errors = {IsADirectory if kind is Kind.TOPIC else NotADirectory}
            if not errors and not empty(files, files[key].id):
                errors = {NotEmpty}
            return errors or {other: thing for other, thing in files.items() if other != key}
        case Rename():
            return posix_rename(files, operation)


def posix_rename(files: Files, operation: Rename) -> Files | Errors:
    source, target = operation.source, operation.target
    errors = parent_errors(files, source.parent) | parent_errors(files, target.parent)
    if source not in files and not parent_errors(files, source.parent):
        errors.add(NotFound)
    if errors:
        return errors
    moved, old = files[source], files.get(target)
    if old is not None and not operation.replace:
        errors.add(AlreadyExists)
    if moved.kind is Kind.DIRECTORY and moved.id in above(files, target.parent):
        errors.add(InvalidArgument)
    if old is not None and old != moved:
        if old.kind is not moved.kind:
            errors.add(IsADirectory if old.kind is Kind.DIRECTORY else NotADirectory)
        if not empty(files, old.id):
            errors.add(NotEmpty)
    return errors or {**{key: thing for key, thing in files.items() if key != source}, target: moved}


# --- what etcd does --------------------------------------------------------------------------


@dataclass(slots=True)
class Store:
    """The keys in etcd, with the events of each revision from the second on."""

    revision: Revision = ABSENT
    keys: dict[bytes, tuple[Revision, bytes]] = field(default_factory=dict)
    events: list[tuple[Revision, list[TreeEvent]]] = field(default_factory=list)
    states: dict[Revision, Files] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.commit(Mutation((), ((KEYS.root, ROOT_INODE.encode()),)))
        self.events.clear()

    def commit(self, mutation: Mutation) -> bool:
        writes = [key for key, _ in mutation.puts] + list(mutation.deletes)
        guarded = [guard.key for guard in mutation.guards]
        assert len(set(writes)) == len(writes), "etcd refuses a key twice in one transaction"
        assert len(set(guarded)) == len(guarded)
        assert len(writes) <= ETCD_OPERATIONS
        assert len(guarded) + len(mutation.must_be_empty) <= ETCD_OPERATIONS
        for guard in mutation.guards:
            if self.keys.get(guard.key, (ABSENT, b""))[0] != guard.revision:
                return False
        for keys in mutation.must_be_empty:
            if any(keys.start <= key < keys.end for key in self.keys):
                return False
        self.revision = Revision(self.revision + 1)
        events: list[TreeEvent] = []
        for key, value in mutation.puts:
            self.keys[key] = (self.revision, value)
            if self._is_entry(key):
                events.append(EntryPut(KEYS.parse_entry(key), Inode.decode(key, value)))
        for key in mutation.deletes:
            existed = self.keys.pop(key, None)
            if existed and self._is_entry(key):
                events.append(EntryDeleted(KEYS.parse_entry(key)))
        self.events.append((self.revision, events))
        self.states[self.revision] = {
            key: Thing(entry.id, entry.inode.kind, entry.inode.mode)
            for key, entry in ((EntryKey(entry.parent, entry.name), entry) for entry in self.entries())
        }
        return True

    def entries(self) -> list[Entry]:
        return [
            Entry(*KEYS.parse_entry(key), Inode.decode(key, value), revision)
            for key, (revision, value) in self.keys.items()
            if self._is_entry(key)
        ]

    @staticmethod
    def _is_entry(key: bytes) -> bool:
        return KEYS.namespace.start <= key < KEYS.namespace.end


@dataclass(slots=True)
class Host:
    """A host whose tree follows the events as late as it likes."""

    tree: Tree

    def catch_up(self, store: Store, draw: random.Random, most: int) -> None:
        for revision, events in store.events[self.tree.revision - 1 :][:most]:
            shuffled = list(events)  # the order inside one revision must not matter
            draw.shuffle(shuffled)
            self.tree.apply(revision, shuffled)


# --- the simulation --------------------------------------------------------------------------


def plan(tree: Tree, operation: Operation, now_ns: int) -> Mutation | None:
    match operation:
        case Create(parent, name, thing):
            inode = Inode(thing.id, thing.kind, thing.mode, 0, 0, now_ns, now_ns)
            return PLANNER.create(tree, parent, name, inode)
        case Chmod(file, mode):
            return PLANNER.change(tree, file, tree.get(file).inode.changed(now_ns, mode=mode))
        case Remove(parent, name, Kind.TOPIC):
            return PLANNER.unlink(tree, parent, name, now_ns)
        case Remove(parent, name, _):
            return PLANNER.rmdir(tree, parent, name, now_ns)
        case Rename(source, target, replace):
            return PLANNER.rename(tree, source, target, now_ns, replace=replace)


def attempt(tree: Tree, operation: Operation, now_ns: int) -> Mutation | DnpError | None:
    try:
        return plan(tree, operation, now_ns)
    except DnpError as error:
        return error


def some_operation(draw: random.Random, tree: Tree, ids: list[FileId]) -> Operation:
    def place() -> EntryKey:
        return EntryKey(ROOT if draw.random() < 0.3 else draw.choice(ids), draw.choice(NAMES))

    def existing() -> EntryKey:
        try:
            entry = tree.get(draw.choice(ids))
        except NotFound:
            return place()
        return place() if entry.id == ROOT else EntryKey(entry.parent, entry.name)

    kind = draw.choice((Kind.TOPIC, Kind.DIRECTORY, Kind.DIRECTORY))
    chance = draw.random()
    if chance < 0.4:
        return Create(*place(), Thing(FileId(max(ids) + 1), kind))
    if chance < 0.5:
        return Chmod(draw.choice(ids), draw.randrange(0o2000))  # no directory hands its group down
    if chance < 0.65:
        return Remove(*existing(), kind)
    target = existing() if draw.random() < 0.5 else place()
    return Rename(existing(), target, draw.random() < 0.8)


def must_be_sound(files: Files) -> None:
    """Check invariants 1 to 3 of tree."""
    assert files[EntryKey(FileId(0), b"")].id == ROOT
    ids = [thing.id for thing in files.values()]
    assert len(set(ids)) == len(ids), "invariant 1: an id stands under two names"
    kinds = {thing.id: thing.kind for thing in files.values()}
    parents = {thing.id: key.parent for key, thing in files.items()}
    for file in ids:
        steps = 0
        while file != ROOT:
            file = parents[file]
            assert kinds.get(file) is Kind.DIRECTORY, "invariants 2 and 3: below what is no directory"
            steps += 1
            assert steps <= len(ids), "invariant 2: a cycle"


def must_equal(tree: Tree, store: Store) -> None:
    """Check all a tree says against the store's entries at the same revision."""
    entries = store.entries()
    assert (tree.revision, len(tree)) == (store.revision, len(entries))
    for entry in entries:
        assert tree.get(entry.id) == entry == tree.find(entry.parent, entry.name)
        below = {other.name: other for other in entries if other.parent == entry.id}
        assert tree.children(entry.id) == below
        assert tree.subdirectories(entry.id) == sum(other.is_directory for other in below.values())
        path = [tree.get(file).name for file in above(store.states[store.revision], entry.id)[:-1]]
        assert tree.path(entry.id) == b"/".join(reversed(path))


def simulate(seed: int, steps: int, seen: Counter[str]) -> None:
    draw = random.Random(seed)
    store = Store()
    hosts = [Host(Tree(store.revision, store.entries())) for _ in range(3)]
    ids = [ROOT]
    for step in range(steps):
        host = draw.choice(hosts)
        if draw.random() < 0.4:
            host.catch_up(store, draw, draw.choice((1, 2, 100)))
        if draw.random() < 0.01:
            entries = store.entries()
            draw.shuffle(entries)
            host.tree = Tree(store.revision, entries)
        operation = some_operation(draw, host.tree, ids)
        expected = posix(store.states[host.tree.revision], operation)
        name = type(operation).__name__
        mutation = attempt(host.tree, operation, step)
        if isinstance(mutation, DnpError):
            assert isinstance(expected, set), (operation, mutation)
            assert type(mutation) in expected, (operation, mutation, expected)
            seen[f"{name}: {type(mutation).__name__}"] += 1
            continue
        assert not isinstance(expected, set), f"{operation} should have failed with {expected}"
        if mutation is None:
            assert expected == store.states[host.tree.revision]
            seen["nothing to do"] += 1
            continue
        if mutation.removal and draw.random() < 0.3:  # etcd is full
            mutation = mutation.without_puts()
            seen["removed without puts"] += 1
        before = store.states[store.revision]
        if not store.commit(mutation):
            assert host.tree.revision < store.revision, f"{operation} was refused to the newest tree"
            seen[f"{name}: stale"] += 1
            continue
        assert store.states[store.revision] == posix(before, operation), operation
        must_be_sound(store.states[store.revision])
        seen[f"{name}: done"] += 1
        seen["done by a stale tree"] += host.tree.revision < store.revision - 1
        if isinstance(operation, Create):
            ids.append(operation.thing.id)
            ids[1:] = ids[-12:] if len(ids) > 12 else ids[1:]
    for host in hosts:
        host.catch_up(store, draw, steps)
        must_equal(host.tree, store)
    must_equal(Tree(store.revision, store.entries()), store)


def test_hosts_with_stale_trees_keep_the_namespace_sound() -> None:
    """Invariants 1, 2 and 3 of tree; each change is what POSIX says it is."""
    seen = Counter[str]()
    for seed in range(250):
        simulate(seed, 120, seen)
    for event in (
        "Create: done",
        "Create: stale",
        "Create: AlreadyExists",
        "Create: NotADirectory",
        "Create: NotFound",
        "Chmod: done",
        "Chmod: stale",
        "Chmod: NotFound",
        "Remove: done",
        "Remove: stale",
        "Remove: IsADirectory",
        "Remove: NotADirectory",
        "Remove: NotEmpty",
        "Remove: NotFound",
        "Rename: done",
        "Rename: stale",
        "Rename: AlreadyExists",
        "Rename: InvalidArgument",
        "Rename: IsADirectory",
        "Rename: NotADirectory",
        "Rename: NotEmpty",
        "Rename: NotFound",
        "nothing to do",
        "done by a stale tree",
        "removed without puts",
    ):
        assert seen[event] >= 40, f"{event!r} came up {seen[event]} times: the simulation proves little of it"


# --- single cases ----------------------------------------------------------------------------


class World:
    """A store with one host that is always up to date."""

    def __init__(self) -> None:
        self.store = Store()
        self.tree = Tree(self.store.revision, self.store.entries())
        self.next = 2

    def do(self, mutation: Mutation | None, now_ns: int = 0) -> None:
        assert mutation is not None
        assert self.store.commit(mutation)
        self.tree.apply(*self.store.events[-1], now_ns)

    def make(self, parent: FileId, name: bytes, kind: Kind, now_ns: int = 5) -> FileId:
        file, self.next = FileId(self.next), self.next + 1
        inode = Inode(file, kind, 0o644, 0, 0, now_ns, now_ns)
        self.do(PLANNER.create(self.tree, parent, name, inode), now_ns)
        return file


@pytest.fixture
def world() -> World:
    return World()


TOPIC_KEYS = (KEYS.epoch, KEYS.head, KEYS.last, KEYS.mark)


@pytest.mark.parametrize("end", ["unlink", "replace"])
def test_a_topics_keys_begin_and_end_with_its_entry(world: World, end: str) -> None:
    """The mark is among them: views hear of a deletion only if the key had existed."""
    topic = world.make(ROOT, b"jobs", Kind.TOPIC)
    key = KEYS.mark(topic)
    assert all(make(topic) in world.store.keys for make in TOPIC_KEYS)
    assert Mark.decode(key, world.store.keys[key][1]).time_ns == 5
    if end == "unlink":
        mutation: Mutation | None = PLANNER.unlink(world.tree, ROOT, b"jobs", 9)
    else:
        world.make(ROOT, b"new", Kind.TOPIC)
        mutation = PLANNER.rename(world.tree, (ROOT, b"new"), (ROOT, b"jobs"), 9, replace=True)
    assert mutation is not None
    assert mutation.doomed == topic
    world.do(mutation)
    assert not any(make(topic) in world.store.keys for make in TOPIC_KEYS)
    assert decode_time(b"", world.store.keys[KEYS.trash(topic)][1]) == 9


def test_removals_of_a_full_etcd_only_delete(world: World) -> None:
    topic = world.make(ROOT, b"jobs", Kind.TOPIC)
    world.make(ROOT, b"d", Kind.DIRECTORY)
    before = dict(world.store.keys)
    for mutation in (PLANNER.unlink(world.tree, ROOT, b"jobs", 9), PLANNER.rmdir(world.tree, ROOT, b"d", 9)):
        full = mutation.without_puts()
        assert (full.puts, full.guards, full.removal) == ((), mutation.guards, True)
        world.do(full)
    gone = {KEYS.entry(ROOT, b"jobs"), KEYS.entry(ROOT, b"d")} | {make(topic) for make in TOPIC_KEYS}
    assert world.store.keys == {key: kept for key, kept in before.items() if key not in gone}


def test_only_topics_are_doomed(world: World) -> None:
    world.make(ROOT, b"d", Kind.DIRECTORY)
    world.make(ROOT, b"e", Kind.DIRECTORY)
    mutation = PLANNER.rename(world.tree, (ROOT, b"d"), (ROOT, b"e"), 9, replace=True)
    assert mutation is not None
    assert mutation.doomed is None
    world.do(mutation)
    assert PLANNER.rmdir(world.tree, ROOT, b"e", 9).doomed is None


def test_each_mutation_touches_the_namespaces_newest_revision(world: World) -> None:
    world.make(ROOT, b"d", Kind.DIRECTORY)
    world.make(ROOT, b"t", Kind.TOPIC)
    tree = world.tree
    for mutation in (
        PLANNER.create(tree, ROOT, b"x", Inode(FileId(99), Kind.DIRECTORY, 0, 0, 0, 7, 7)),
        PLANNER.change(tree, ROOT, ROOT_INODE.changed(7)),
        PLANNER.unlink(tree, ROOT, b"t", 7),
        PLANNER.rmdir(tree, ROOT, b"d", 7),
        PLANNER.rename(tree, (ROOT, b"t"), (ROOT, b"u"), 7, replace=False),
    ):
        assert mutation is not None
        assert decode_time(b"", dict(mutation.puts)[KEYS.last_namespace]) == 7


def test_an_id_that_is_taken_is_refused(world: World) -> None:
    """Invariant 1 of tree, also for the id of a topic without a generation."""
    topic = world.make(ROOT, b"t", Kind.TOPIC)
    again = PLANNER.create(world.tree, ROOT, b"u", Inode(topic, Kind.TOPIC, 0, 0, 0, 7, 7))
    assert Guard(KEYS.last(topic), ABSENT) in again.guards
    world.do(Mutation((), deletes=tuple(generation.end(KEYS, topic))))
    assert not world.store.commit(again)


def test_a_directory_with_a_child_the_planner_has_not_seen_stays(world: World) -> None:
    """Invariant 3 of tree: a new child does not change the directory's entry, so the range is compared."""
    directory = world.make(ROOT, b"d", Kind.DIRECTORY)
    world.make(ROOT, b"e", Kind.DIRECTORY)
    removal = PLANNER.rmdir(world.tree, ROOT, b"d", 7)
    replacement = PLANNER.rename(world.tree, (ROOT, b"e"), (ROOT, b"d"), 7, replace=True)
    assert replacement is not None
    world.make(directory, b"child", Kind.TOPIC)
    assert not world.store.commit(removal)
    assert not world.store.commit(replacement)


def test_two_moves_that_would_make_a_cycle_exclude_each_other(world: World) -> None:
    """Invariant 2 of tree, also when an ancestor further up is moved."""
    a = world.make(ROOT, b"a", Kind.DIRECTORY)
    b = world.make(ROOT, b"b", Kind.DIRECTORY)
    below_a = world.make(world.make(a, b"x", Kind.DIRECTORY), b"y", Kind.DIRECTORY)
    into_b = PLANNER.rename(world.tree, (ROOT, b"a"), (b, b"a"), 7, replace=False)
    into_a = PLANNER.rename(world.tree, (ROOT, b"b"), (below_a, b"b"), 7, replace=False)
    world.do(into_b)
    assert into_a is not None
    assert not world.store.commit(into_a)
    with pytest.raises(InvalidArgument, match="cannot be moved into itself"):
        PLANNER.rename(world.tree, (ROOT, b"b"), (below_a, b"b"), 7, replace=False)


def test_the_root_stays_where_it_is(world: World) -> None:
    with pytest.raises(NotFound):
        PLANNER.rename(world.tree, (FileId(0), b""), (ROOT, b"r"), 7, replace=False)
    with pytest.raises(NotFound):
        PLANNER.rmdir(world.tree, FileId(0), b"", 7)
    world.do(PLANNER.change(world.tree, ROOT, ROOT_INODE.changed(7, mode=0o700)))
    assert world.tree.get(ROOT).inode.mode == 0o700
    assert world.tree.path(ROOT) == b""
    must_equal(world.tree, world.store)


def test_a_namespace_without_root_is_corrupt() -> None:
    with pytest.raises(CorruptData, match="no root directory"):
        Tree(Revision(1), [])


@pytest.mark.parametrize("name", [b"jobs@", b"@", b".dnp", b"a/b", b""])
def test_reserved_names_are_neither_created_nor_moved_to(world: World, name: bytes) -> None:
    world.make(ROOT, b"t", Kind.TOPIC)
    with pytest.raises(InvalidName):
        PLANNER.create(world.tree, ROOT, name, Inode(FileId(9), Kind.TOPIC, 0, 0, 0, 7, 7))
    with pytest.raises(InvalidName):
        PLANNER.rename(world.tree, (ROOT, b"t"), (ROOT, name), 7, replace=True)


@pytest.mark.parametrize("kind", Kind)
def test_a_rename_to_itself(world: World, kind: Kind) -> None:
    file = world.make(ROOT, b"t", kind)
    if kind is Kind.DIRECTORY:
        world.make(file, b"child", Kind.TOPIC)
    assert PLANNER.rename(world.tree, (ROOT, b"t"), (ROOT, b"t"), 7, replace=True) is None
    with pytest.raises(AlreadyExists):
        PLANNER.rename(world.tree, (ROOT, b"t"), (ROOT, b"t"), 7, replace=False)


def test_a_directory_has_changed_when_entries_came_or_went(world: World) -> None:
    one = world.make(ROOT, b"one", Kind.DIRECTORY, 10)
    two = world.make(ROOT, b"two", Kind.DIRECTORY, 11)
    assert (world.tree.changed_ns(ROOT), world.tree.changed_ns(one)) == (11, 0)
    topic = world.make(one, b"t", Kind.TOPIC, 20)
    assert (world.tree.changed_ns(ROOT), world.tree.changed_ns(one)) == (11, 20)
    world.do(PLANNER.change(world.tree, topic, world.tree.get(topic).inode.changed(30, mode=0)), 30)
    assert world.tree.changed_ns(one) == 20, "a chmod changes the topic, not its directory"
    world.do(PLANNER.rename(world.tree, (one, b"t"), (two, b"t"), 40, replace=False), 40)
    assert (world.tree.changed_ns(one), world.tree.changed_ns(two)) == (40, 40)
    world.do(PLANNER.unlink(world.tree, two, b"t", 50), 50)
    assert world.tree.changed_ns(two) == 50
    world.do(PLANNER.change(world.tree, two, world.tree.get(two).inode.changed(60, mode=0o700)), 60)
    assert (world.tree.changed_ns(ROOT), world.tree.changed_ns(two)) == (11, 50)
    world.tree.note_change(two, 45)
    assert world.tree.changed_ns(two) == 50, "it never goes back"


def test_nothing_is_kept_of_removed_directories(world: World) -> None:
    """Invariant 7 of the design: a year of temporary directories must not fill the memory."""
    for number in range(3):
        directory = world.make(ROOT, b"tmp", Kind.DIRECTORY, 10 + number)
        world.make(directory, b"d", Kind.DIRECTORY, 10 + number)
        world.do(PLANNER.rmdir(world.tree, directory, b"d", 10 + number), 10 + number)
        if number < 2:
            world.do(PLANNER.rmdir(world.tree, ROOT, b"tmp", 10 + number), 10 + number)
            assert world.tree.changed_ns(directory) == 0
    world.make(ROOT, b"other", Kind.DIRECTORY, 20)
    world.do(PLANNER.rename(world.tree, (ROOT, b"other"), (ROOT, b"tmp"), 21, replace=True), 21)
    assert world.tree.changed_ns(directory) == 0


def test_lookup_errors(world: World) -> None:
    topic = world.make(ROOT, b"t", Kind.TOPIC)
    assert world.tree.lookup(ROOT, b"t").id == topic
    with pytest.raises(NotFound, match="no topic or directory 'x'"):
        world.tree.lookup(ROOT, b"x")
    with pytest.raises(NotADirectory, match="'t' is a topic"):
        world.tree.lookup(topic, b"x")
    with pytest.raises(NotFound, match="has id 63 any more"):
        world.tree.get(FileId(99))
