"""The node table against a model of the kernel, and each row of its table of answers."""

import random
from collections import Counter

import pytest

from dnpipefs.core.names import MAX_FILE_ID, ROOT, FileId
from dnpipefs.fuse import nodes
from dnpipefs.fuse.nodes import MAX_ALIASES, RESERVATION_S, NodeId, NodeTable

TOPIC, OTHER = FileId(17), FileId(18)
FIRST = NodeId(TOPIC)
"""What a topic's first node is called."""
ROOT_NODE = NodeId(ROOT)


@pytest.fixture
def table() -> NodeTable:
    return NodeTable()


def open_and_write(table: NodeTable, pid: int, now: float = 0.0) -> NodeId:
    """Be a process that opens the topic, writes, and keeps it open."""
    node = table.looked_up(TOPIC, pid=pid, now=now)
    table.opened(node, pid=pid)
    table.began_writing(node)
    return node


def test_nobody_writes_so_everybody_gets_the_first_node(table: NodeTable) -> None:
    """Invariant 2."""
    for pid in range(5):
        node = table.looked_up(TOPIC, pid=pid, now=0)
        table.opened(node, pid=pid)
        assert node == FIRST
        assert table.file(node) == TOPIC


def test_writers_get_a_node_each(table: NodeTable) -> None:
    found = [open_and_write(table, pid) for pid in range(MAX_ALIASES + 1)]
    assert found[0] == FIRST
    assert len(set(found)) == MAX_ALIASES + 1
    assert {table.file(node) for node in found} == {TOPIC}
    assert all(node >= MAX_FILE_ID for node in found[1:]), "never the id of a topic"


def test_more_writers_than_nodes_share_those_with_the_fewest(table: NodeTable) -> None:
    """Invariant 3."""
    shared = Counter(open_and_write(table, pid) for pid in range(3 * MAX_ALIASES + 1))
    assert shared.pop(FIRST) == 1
    assert set(shared.values()) == {3}
    assert len(shared) == MAX_ALIASES


def test_an_alias_is_kept_for_who_looked_it_up_until_it_is_opened(table: NodeTable) -> None:
    open_and_write(table, 1)
    alias = table.looked_up(TOPIC, pid=2, now=0)
    assert table.looked_up(TOPIC, pid=2, now=0) == alias, "the kernel asks again before it opens"
    assert table.looked_up(TOPIC, pid=3, now=0) not in (FIRST, alias)
    table.opened(alias, pid=2)
    assert table.looked_up(TOPIC, pid=4, now=0) == alias


def test_a_reservation_ends_by_itself(table: NodeTable) -> None:
    open_and_write(table, 1)
    alias = table.looked_up(TOPIC, pid=2, now=0)
    assert table.looked_up(TOPIC, pid=3, now=RESERVATION_S) == alias


def test_a_node_whose_writer_closed_is_free_again(table: NodeTable) -> None:
    first, second = open_and_write(table, 1), open_and_write(table, 2)
    table.stopped_writing(second)
    assert open_and_write(table, 3, now=5) == second
    table.stopped_writing(first)
    assert table.looked_up(TOPIC, pid=4, now=5) == FIRST


def test_listings_always_show_the_first_node(table: NodeTable) -> None:
    open_and_write(table, 1)
    assert table.listed(TOPIC) == FIRST
    assert table.listed(ROOT) == ROOT_NODE


def test_writers_of_one_topic_do_not_matter_to_another(table: NodeTable) -> None:
    open_and_write(table, 1)
    assert table.looked_up(OTHER, pid=2, now=0) == NodeId(OTHER)


def test_the_root_is_never_forgotten(table: NodeTable) -> None:
    table.listed(ROOT)
    table.forget(ROOT_NODE, 5)
    assert table.file(ROOT_NODE) == ROOT


def test_a_forgotten_node_is_unknown(table: NodeTable) -> None:
    table.looked_up(TOPIC, pid=1, now=0)
    table.listed(TOPIC)
    table.forget(FIRST, 1)
    assert table.file(FIRST) == TOPIC
    table.forget(FIRST, 1)
    with pytest.raises(KeyError):
        table.file(FIRST)


def test_the_kernel_may_forget_a_node_before_it_says_that_the_last_handle_closed(table: NodeTable) -> None:
    """FORGET overtakes RELEASE: it waits in a queue of its own, which is read first."""
    open_and_write(table, 1)
    table.forget(FIRST, 1)
    assert open_and_write(table, 2) != FIRST, "it still has its writer"
    table.stopped_writing(FIRST)
    with pytest.raises(KeyError):
        table.file(FIRST)
    assert table.looked_up(TOPIC, pid=3, now=0) == FIRST


def test_the_first_node_of_a_topic_may_be_forgotten_before_its_aliases(table: NodeTable) -> None:
    open_and_write(table, 1)
    alias = table.looked_up(TOPIC, pid=2, now=0)
    table.stopped_writing(FIRST)
    table.forget(FIRST, 1)
    assert table.looked_up(TOPIC, pid=2, now=0) == alias
    table.forget(alias, 2)
    assert len(table) == 1, "the root"


class Kernel:
    """Does at random to a table what a kernel does, and keeps its own account."""

    FILES = (TOPIC, OTHER)

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.table = NodeTable()
        self.now = 0.0
        self.lookups: Counter[NodeId] = Counter()
        self.file_of: dict[NodeId, FileId] = {}
        self.found: list[tuple[NodeId, int]] = []
        """Looked up by a process, which may open it."""
        self.handles: list[tuple[NodeId, bool]] = []
        """Open; whether it has written."""
        self.overtaken: Counter[NodeId] = Counter()
        """Writers whose RELEASE comes after the FORGET."""

    def step(self) -> None:
        actions = [self.look_up, self.look_up, self.list, self.open, self.write, self.close, self.forget]
        self.random.choice([*actions, self.release, self.wait])()
        self.check()

    def _known(self, node: NodeId, file: FileId) -> None:
        assert self.file_of.setdefault(node, file) == file, "a node id is never used for another file"
        self.lookups[node] += 1

    def _aliases(self, file: FileId) -> set[NodeId]:
        known = set(self.lookups) | set(self.overtaken)
        return {node for node in known if self.file_of[node] == file and node != NodeId(file)}

    def _written(self, node: NodeId) -> bool:
        return (node, True) in self.handles or node in self.overtaken

    def look_up(self) -> None:
        file, pid = self.random.choice(self.FILES), self.random.randrange(4)
        quiet = not self._written(NodeId(file))
        reserved = any(self.file_of[node] == file for node, _ in self.found)
        node = self.table.looked_up(file, pid=pid, now=self.now)
        if quiet and not reserved:
            assert node == NodeId(file), "invariant 2"
        if not quiet and len(self._aliases(file)) < nodes.MAX_ALIASES and not reserved:
            assert not self._written(node), "a node without a writer"
        self._known(node, file)
        self.found.append((node, pid))

    def list(self) -> None:
        file = self.random.choice(self.FILES)
        node = self.table.listed(file)
        assert node == NodeId(file)
        self._known(node, file)

    def open(self) -> None:
        if self.found:
            node, pid = self.found.pop(self.random.randrange(len(self.found)))
            self.table.opened(node, pid=pid)
            self.handles.append((node, False))

    def write(self) -> None:
        fresh = [index for index, (_, written) in enumerate(self.handles) if not written]
        if fresh:
            index = self.random.choice(fresh)
            node, _ = self.handles[index]
            self.table.began_writing(node)
            self.handles[index] = (node, True)

    def close(self) -> None:
        if self.handles:
            node, written = self.handles.pop(self.random.randrange(len(self.handles)))
            if written and self.random.random() < 0.3:
                self.overtaken[node] += 1
            elif written:
                self.table.stopped_writing(node)

    def release(self) -> None:
        if self.overtaken:
            node = self.random.choice(list(self.overtaken))
            self.table.stopped_writing(node)
            self.overtaken -= Counter([node])

    def forget(self) -> None:
        in_use = {node for node, _ in self.handles} | {node for node, _ in self.found}
        candidates = sorted(set(self.lookups) - in_use)
        if candidates:
            node = self.random.choice(candidates)
            count = self.random.choice([self.lookups[node], self.random.randint(1, self.lookups[node])])
            self.table.forget(node, count)
            self.lookups -= Counter({node: count})

    def wait(self) -> None:
        self.now += RESERVATION_S / 2
        if self.random.random() < 0.3:
            self.now += RESERVATION_S
            self.found.clear()  # processes that only called stat

    def check(self) -> None:
        known = set(self.lookups) | set(self.overtaken)
        assert len(self.table) == len(known | {ROOT_NODE}), "invariant 1"
        for node in known:
            assert self.table.file(node) == self.file_of[node], "invariant 1"
        for file in self.FILES:
            assert len(self._aliases(file)) <= nodes.MAX_ALIASES, "invariant 3"


@pytest.mark.parametrize("seed", range(20))
def test_against_a_kernel(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "MAX_ALIASES", 3)
    kernel = Kernel(seed)
    for _ in range(1000):
        kernel.step()
