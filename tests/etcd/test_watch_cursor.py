"""W1 to W3 of the cursor, against every way a stream may cut a history to pieces."""

from hypothesis import given
from hypothesis import strategies as st

from dnpipefs.etcd.proto import kv_pb2
from dnpipefs.etcd.watch_cursor import Cursor, Event, EventKind, WatchBatch

Revision = tuple[int, list[kv_pb2.Event]]


def pb_event(revision: int, key: int) -> kv_pb2.Event:
    return kv_pb2.Event(kv=kv_pb2.KeyValue(key=b"%d" % key, mod_revision=revision))


@st.composite
def histories(draw: st.DrawFn) -> list[Revision]:
    revisions = sorted(draw(st.sets(st.integers(2, 60), min_size=1, max_size=20)))
    return [
        (revision, [pb_event(revision, key) for key in range(draw(st.integers(1, 4)))])
        for revision in revisions
    ]


class Etcd:
    """The sending side: whole revisions in a response, a response in parts anywhere."""

    def __init__(self, history: list[Revision], data: st.DataObject) -> None:
        self.history = history
        self.data = data

    def stream_to(self, cursor: Cursor) -> list[WatchBatch]:
        """Send from the revision before the one the cursor wants; break off at some point."""
        batches = []
        todo = [events for revision, events in self.history if revision >= cursor.next_revision - 1]
        stop = self.data.draw(st.integers(0, 40))
        while todo and stop > 0:
            count = self.data.draw(st.integers(1, len(todo)))
            response = [event for events in todo[:count] for event in events]
            todo = todo[count:]
            while response and stop > 0:
                size = self.data.draw(st.integers(1, len(response)))
                part, response = response[:size], response[size:]
                batch = cursor.accept(part, fragment=bool(response))
                stop -= 1
                if batch is not None:
                    batches.append(batch)
        cursor.interrupted()
        return batches


def as_events(events: list[kv_pb2.Event]) -> list[Event]:
    (batch,) = [Cursor(1).accept(events, fragment=False)]
    assert batch is not None
    return list(batch.events)


@given(histories(), st.integers(1, 61), st.data())
def test_w1_w2_everything_once_in_order_and_whole(
    history: list[Revision], start: int, data: st.DataObject
) -> None:
    cursor = Cursor(start)
    etcd = Etcd(history, data)
    batches = [batch for _ in range(4) for batch in etcd.stream_to(cursor)]

    delivered = [event for batch in batches for event in batch.events]
    wanted = [event for revision, events in history if revision >= start for event in as_events(events)]
    assert delivered == wanted[: len(delivered)]
    for batch in batches:
        assert batch.revision == batch.events[-1].kv.mod_revision
        for revision, events in history:
            had = [event for event in batch.events if event.kv.mod_revision == revision]
            assert not had or had == as_events(events)
    if delivered:
        assert cursor.next_revision == delivered[-1].kv.mod_revision + 1
    else:
        assert cursor.next_revision == start


def test_w3_a_header_with_events_moves_nothing() -> None:
    cursor = Cursor(5)
    cursor.accept([pb_event(7, 1)], fragment=False)
    assert cursor.next_revision == 8


def test_w3_progress_moves_forward_only() -> None:
    cursor = Cursor(5)
    cursor.progressed(9)
    assert cursor.next_revision == 10
    cursor.progressed(3)
    assert cursor.next_revision == 10


def test_w3_progress_between_parts_moves_nothing() -> None:
    cursor = Cursor(5)
    assert cursor.accept([pb_event(7, 1)], fragment=True) is None
    cursor.progressed(9)
    assert cursor.next_revision == 5


def test_w3_created_counts_only_without_a_start() -> None:
    cursor = Cursor(0)
    cursor.created(41)
    assert cursor.next_revision == 42
    cursor.created(50)
    assert cursor.next_revision == 42


def test_long_response_is_given_on_before_its_end() -> None:
    cursor = Cursor(1)
    assert cursor.accept([pb_event(2, 1), pb_event(3, 1)], fragment=True) == WatchBatch(
        2, tuple(as_events([pb_event(2, 1)]))
    )
    assert cursor.next_revision == 3


def test_delete_is_told_from_put() -> None:
    event = kv_pb2.Event(type=kv_pb2.Event.DELETE, kv=kv_pb2.KeyValue(key=b"k", mod_revision=2))
    batch = Cursor(1).accept([event], fragment=False)
    assert batch is not None
    assert batch.events[0].kind is EventKind.DELETE
