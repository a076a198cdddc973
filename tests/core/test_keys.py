"""The key schema: round trips, key order is number order, and ranges hold exactly what they should."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnpipefs.core.keys import PART_BYTES, Beside, BodyKey, KeyRange, KeySchema, TailKey, prefix_range
from dnpipefs.core.names import MAX_FILE_ID, ROOT, FileId, Offset, Revision, SessionId
from dnpipefs.errors import CorruptData, InvalidArgument

KEYS = KeySchema()
BODY = BodyKey(SessionId(7), 3, Beside(2, 100))
ids = st.one_of(st.integers(1, 20), st.integers(1, MAX_FILE_ID - 1)).map(FileId)
sessions = st.one_of(st.integers(1, 20), st.integers(1, 2**63 - 1)).map(SessionId)
numbers = st.one_of(st.integers(0, 300), st.integers(0, 2**48))
sizes = st.integers(0, 2**32 - 1)
names = st.binary(min_size=1, max_size=20).filter(lambda name: b"/" not in name)


def inside(keys: KeyRange, key: bytes) -> bool:
    return keys.start <= key < keys.end


def all_keys(keys: KeySchema, topic: FileId) -> list[bytes]:
    """One key of every family."""
    session, offset, generation = SessionId(7), Offset(9), Revision(5)
    return [
        keys.meta,
        keys.last_namespace,
        keys.root,
        keys.entry(topic, b"name"),
        keys.epoch(topic),
        keys.head(topic),
        keys.last(topic),
        keys.mark(topic),
        keys.batch(topic, session, 1, 2, 3),
        keys.segment(topic, generation, offset, 4),
        keys.index_page(topic, generation, offset),
        *keys.body_parts(topic, generation, BODY),
        keys.pending(topic, generation, BODY),
        keys.writer(topic, session),
        keys.groups(topic).start + b"workers/cursor",
        keys.session(session),
        keys.trash(topic),
    ]


def test_the_schema_is_what_the_format_page_says() -> None:
    """Golden: a change of any key needs a new format version."""
    topic, session = FileId(0xAB), SessionId(0x123456789ABCDEF0)
    t, s = b"00000000000000ab", b"123456789abcdef0"
    assert KEYS.meta == b"/dnp/meta"
    assert KEYS.last_namespace == b"/dnp/last/ns"
    assert KEYS.root == b"/dnp/ns/0000000000000000/"
    assert KEYS.entry(topic, b"x\xff@") == b"/dnp/ns/" + t + b"/x\xff@"
    assert KEYS.epoch(topic) == b"/dnp/epoch/" + t
    assert KEYS.head(topic) == b"/dnp/head/" + t
    assert KEYS.last(topic) == b"/dnp/last/" + t
    assert KEYS.mark(topic) == b"/dnp/tail/" + t + b"/mark"
    assert KEYS.batch(topic, session, 16, 255, 2) == (
        b"/dnp/tail/" + t + b"/" + s + b"/0000000000000010-000000ff-00000002"
    )
    assert KEYS.segment(topic, Revision(0xC), Offset(4096), 255) == (
        b"/dnp/seg/" + t + b"/000000000000000c/0000000000001000-000000ff"
    )
    assert KEYS.index_page(topic, Revision(0xC), Offset(4096)) == (
        b"/dnp/index/" + t + b"/000000000000000c/0000000000001000"
    )
    body = BodyKey(session, 16, Beside(attempt=3, stored=PART_BYTES + 1))
    stem = t + b"/000000000000000c/" + s + b"/0000000000000010"
    assert KEYS.batch(topic, session, 16, 255, 2, body.beside) == (
        b"/dnp/tail/" + t + b"/" + s + b"/0000000000000010-000000ff-00000002-00155cc1-0000000000000003"
    )
    assert KEYS.body_parts(topic, Revision(0xC), body) == [
        b"/dnp/body/" + stem + b"-0000000000000003/0000",
        b"/dnp/body/" + stem + b"-0000000000000003/0001",
    ]
    assert KEYS.pending(topic, Revision(0xC), body) == (
        b"/dnp/pending/" + stem + b"-00155cc1-0000000000000003"
    )
    assert KEYS.writer(topic, session) == b"/dnp/writer/" + t + b"/" + s
    assert KEYS.session(session) == b"/dnp/session/" + s
    assert KEYS.trash(topic) == b"/dnp/trash/" + t
    assert KEYS.groups(topic) == KeyRange(b"/dnp/group/" + t + b"/", b"/dnp/group/" + t + b"0")


def test_two_prefixes_never_meet() -> None:
    one, other = KeySchema("/dnp/"), KeySchema("/dnp/dnp/")
    mine, theirs = all_keys(one, FileId(3)), all_keys(other, FileId(3))
    assert len(set(mine + theirs)) == 2 * len(mine)
    assert all(key.startswith(b"/dnp/dnp/") for key in theirs)
    for keys in (one.namespace, one.all_trash, one.sessions, one.tail(FileId(3))):
        assert not any(inside(keys, key) for key in theirs)


@pytest.mark.parametrize("prefix", ["", "/dnp", "/d\0np/"])
def test_a_prefix_ends_in_a_slash(prefix: str) -> None:
    with pytest.raises(InvalidArgument, match="must end with '/'"):
        KeySchema(prefix)


@given(ids, names)
def test_entry_round_trip(parent: FileId, name: bytes) -> None:
    assert KEYS.parse_entry(KEYS.entry(parent, name)) == (parent, name)
    assert inside(KEYS.namespace, KEYS.entry(parent, name))


def test_the_root_is_no_name_in_no_directory() -> None:
    assert KEYS.parse_entry(KEYS.root) == (FileId(0), b"")
    assert inside(KEYS.namespace, KEYS.root)
    assert not inside(KEYS.entries(ROOT), KEYS.root)


@given(ids, sessions, numbers, sizes, sizes)
def test_batch_round_trip(topic: FileId, session: SessionId, sequence: int, size: int, messages: int) -> None:
    key = KEYS.batch(topic, session, sequence, size, messages)
    assert KEYS.parse_tail(topic, key) == TailKey(session, sequence, size, messages)
    assert inside(KEYS.tail(topic), key)


@given(ids)
def test_the_mark_is_in_the_watched_range_and_is_no_batch(topic: FileId) -> None:
    assert inside(KEYS.tail(topic), KEYS.mark(topic))
    assert KEYS.parse_tail(topic, KEYS.mark(topic)) is None


@given(sessions)
def test_session_round_trip(session: SessionId) -> None:
    assert KEYS.parse_session(KEYS.session(session)) == session
    assert inside(KEYS.sessions, KEYS.session(session))


@given(ids)
def test_trash_round_trip(topic: FileId) -> None:
    assert KEYS.parse_trash(KEYS.trash(topic)) == topic
    assert inside(KEYS.all_trash, KEYS.trash(topic))


@given(ids, numbers, numbers, sizes, sessions)
def test_what_is_stored_of_a_topic_round_trips(
    topic: FileId, generation: int, offset: int, size: int, session: SessionId
) -> None:
    place = Revision(generation), Offset(offset), size
    assert KEYS.parse_segment(topic, KEYS.segment(topic, *place)) == place
    body = BodyKey(session, 3, Beside(offset, 2 * PART_BYTES))
    parts = KEYS.body_parts(topic, Revision(generation), body)
    assert [KEYS.parse_body_part(topic, key) for key in parts] == [
        (generation, session, 3, offset, 0),
        (generation, session, 3, offset, 1),
    ]
    assert KEYS.parse_writer(topic, KEYS.writer(topic, session)) == session


@pytest.mark.parametrize("damage", [lambda key: key[:-1], lambda key: key + b"0", lambda key: key + b"/"])
def test_what_is_not_stored_of_a_topic_is_corrupt(damage: Callable[[bytes], bytes]) -> None:
    topic, other = FileId(7), FileId(8)
    for parse, key in [
        (KEYS.parse_segment, KEYS.segment(topic, Revision(5), Offset(9), 4)),
        (KEYS.parse_body_part, KEYS.body_parts(topic, Revision(5), BODY)[0]),
        (KEYS.parse_writer, KEYS.writer(topic, SessionId(7))),
    ]:
        parse(topic, key)
        for wrong in (damage(key), b"", KEYS.meta):
            with pytest.raises(CorruptData):
                parse(topic, wrong)
        with pytest.raises(CorruptData):
            parse(other, key)


@given(ids, numbers, numbers)
def test_the_ranges_of_generations_part_a_family(topic: FileId, generation: int, other: int) -> None:
    family = KEYS.segments(topic)
    key = KEYS.segment(topic, Revision(other), Offset(0), 1)
    parts = [
        KEYS.before_generation(family, Revision(generation)),
        KEYS.of_generation(family, Revision(generation)),
        KEYS.after_generation(family, Revision(generation)),
    ]
    assert [inside(part, key) for part in parts] == [
        other < generation,
        other == generation,
        other > generation,
    ]


@given(ids, ids)
def test_the_families_are_parted_by_topics(one: FileId, other: FileId) -> None:
    outside = {
        KEYS.meta,
        KEYS.last_namespace,
        KEYS.root,
        KEYS.entry(one, b"name"),
        KEYS.session(SessionId(7)),
    }
    of_topics = [key for key in all_keys(KEYS, one) if key not in outside]
    for key in of_topics:
        [family] = [family for family in KEYS.families if inside(family, key)]
        assert KEYS.parse_topic(family, key) == one
        assert inside(KEYS.of_topic(family, one), key)
        assert inside(KEYS.of_topic(family, other), key) == (one == other)
        with pytest.raises(CorruptData):
            KEYS.parse_topic(family, family.start + b"x" + key[len(family.start) :])


def test_a_record_of_a_topic_has_nothing_behind_its_id() -> None:
    for key in (KEYS.epoch(ROOT), KEYS.head(ROOT), KEYS.last(ROOT), KEYS.trash(ROOT)):
        [family] = [family for family in KEYS.families if inside(family, key)]
        with pytest.raises(CorruptData, match="go on"):
            KEYS.parse_topic(family, key + b"/x")


@given(ids, ids, st.tuples(sessions, numbers), st.tuples(sessions, numbers), sizes)
def test_key_order_is_number_order(
    one: FileId, other: FileId, left: tuple[SessionId, int], right: tuple[SessionId, int], size: int
) -> None:
    assert (KEYS.epoch(one) < KEYS.epoch(other)) == (one < other)
    assert (KEYS.entry(one, b"\xff") < KEYS.entry(other, b"\x01")) == (one < other)
    batches = [KEYS.batch(one, *writer, size, 1) for writer in (left, right)]
    assert (batches[0] < batches[1]) == (left < right)
    segments = [KEYS.segment(one, Revision(3), Offset(offset), size) for offset in (left[1], right[1])]
    assert (segments[0] < segments[1]) == (left[1] < right[1])


@given(ids, ids, names)
def test_directory_and_topic_ranges_hold_their_own_keys_only(one: FileId, other: FileId, name: bytes) -> None:
    session = SessionId(5)
    pairs = [
        (KEYS.entries(one), KEYS.entry(other, name)),
        (KEYS.tail(one), KEYS.batch(other, session, 1, 1, 1)),
        (KEYS.tail(one), KEYS.mark(other)),
        (KEYS.index(one), KEYS.index_page(other, Revision(1), Offset(0))),
        (KEYS.bodies(one), KEYS.body_parts(other, Revision(1), BODY)[0]),
        (KEYS.all_pending_of(one), KEYS.pending(other, Revision(1), BODY)),
        (KEYS.segments(one), KEYS.segment(other, Revision(1), Offset(0), 0)),
        (KEYS.writers(one), KEYS.writer(other, session)),
        (KEYS.groups(one), KEYS.groups(other).start + name),
    ]
    for keys, key in pairs:
        assert inside(keys, key) == (one == other)


def test_each_range_holds_its_own_family_only() -> None:
    topic = FileId(7)
    keys = all_keys(KEYS, topic)
    expected = [
        (KEYS.namespace, [KEYS.root, KEYS.entry(topic, b"name")]),
        (KEYS.entries(topic), [KEYS.entry(topic, b"name")]),
        (KEYS.tail(topic), [KEYS.mark(topic), KEYS.batch(topic, SessionId(7), 1, 2, 3)]),
        (KEYS.segments(topic), [KEYS.segment(topic, Revision(5), Offset(9), 4)]),
        (KEYS.index(topic), [KEYS.index_page(topic, Revision(5), Offset(9))]),
        (KEYS.bodies(topic), KEYS.body_parts(topic, Revision(5), BODY)),
        (KEYS.all_pending, [KEYS.pending(topic, Revision(5), BODY)]),
        (KEYS.all_pending_of(topic), [KEYS.pending(topic, Revision(5), BODY)]),
        (KEYS.all_tails, [KEYS.mark(topic), KEYS.batch(topic, SessionId(7), 1, 2, 3)]),
        (KEYS.writers(topic), [KEYS.writer(topic, SessionId(7))]),
        (KEYS.groups(topic), [KEYS.groups(topic).start + b"workers/cursor"]),
        (KEYS.sessions, [KEYS.session(SessionId(7))]),
        (KEYS.all_trash, [KEYS.trash(topic)]),
    ]
    for family, members in expected:
        assert [key for key in keys if inside(family, key)] == members


@given(ids, st.tuples(sessions, numbers), st.tuples(sessions, numbers), sizes)
def test_batches_through_covers_one_writer_up_to_the_sequence(
    topic: FileId, limit: tuple[SessionId, int], batch: tuple[SessionId, int], size: int
) -> None:
    keys = KEYS.batches_through(topic, *limit)
    assert inside(keys, KEYS.batch(topic, *batch, size, 1)) == (batch[0] == limit[0] and batch[1] <= limit[1])
    assert inside(keys, KEYS.batch(topic, *limit, 2**32 - 1, 2**32 - 1))
    assert not inside(keys, KEYS.batch(topic, limit[0], limit[1] + 1, 0, 0))
    assert not inside(keys, KEYS.mark(topic))


@given(st.binary(min_size=1, max_size=8).filter(lambda prefix: prefix[-1] != 0xFF), st.binary(max_size=12))
def test_prefix_range_is_exactly_what_begins_so(prefix: bytes, key: bytes) -> None:
    assert inside(prefix_range(prefix), key) == key.startswith(prefix)
    assert inside(prefix_range(prefix), prefix + key)


GOOD_BATCH = KEYS.batch(FileId(3), SessionId(4), 5, 6, 7)


@pytest.mark.parametrize(
    "key",
    [
        b"",
        b"/dnp/tail/",
        KEYS.mark(FileId(3)) + b"s",
        KEYS.mark(FileId(4)),
        KEYS.epoch(FileId(3)),
        KEYS.batch(FileId(4), SessionId(4), 5, 6, 7),  # another topic's
        GOOD_BATCH[:-1],
        GOOD_BATCH + b"0",
        GOOD_BATCH.replace(b"-", b"_", 1),
        GOOD_BATCH.replace(b"-", b"/", 1),
        GOOD_BATCH[:-1] + b"g",
        GOOD_BATCH[:-1] + b"\xff",
        GOOD_BATCH[:-8] + b"0x000007",  # Python reads it as a number, the schema does not write it
        GOOD_BATCH[:-8] + b"0000_007",
        GOOD_BATCH[:-8] + b"       7",
    ],
)
def test_what_is_no_batch_key_is_corrupt(key: bytes) -> None:
    with pytest.raises(CorruptData, match="not the key of a batch of topic 3"):
        KEYS.parse_tail(FileId(3), key)


@given(st.integers(0, len(GOOD_BATCH) - 1), st.integers(0, 255))
def test_a_parsed_batch_key_builds_the_same_key(position: int, byte: int) -> None:
    key = GOOD_BATCH[:position] + bytes([byte]) + GOOD_BATCH[position + 1 :]
    try:
        parsed = KEYS.parse_tail(FileId(3), key)
    except CorruptData:
        assert key != GOOD_BATCH
    else:
        assert parsed is not None
        assert KEYS.batch(FileId(3), *parsed) == key


@pytest.mark.parametrize(
    "key",
    [
        b"",
        b"/dnp/ns/",
        b"/dnp/ns/0000000000000001",
        b"/dnp/ns/000000000000001/x",
        b"/dnp/ns/00000000000000zz/x",
        b"/dnp/ns/0x00000000000001/x",
        b"/dnp/ns/00000000000000AB/x",
        b"/other/ns/0000000000000001/x",
        b"/dnp/epoch/0000000000000001",
    ],
)
def test_what_is_no_entry_key_is_corrupt(key: bytes) -> None:
    with pytest.raises(CorruptData, match=r"directory entry|no id where one belongs"):
        KEYS.parse_entry(key)


@pytest.mark.parametrize(
    "key",
    [
        b"",
        b"/dnp/trash/",
        b"/dnp/trash/1",
        b"/dnp/trash/000000000000000g",
        b"/dnp/trash/00000000000000010",
        b"/dnp/trash/0000000000000_01",
        b"/dnp/epoch/0000000000000001",
    ],
)
def test_what_is_no_trash_key_is_corrupt(key: bytes) -> None:
    with pytest.raises(CorruptData, match=r"leftovers|no id where one belongs"):
        KEYS.parse_trash(key)
