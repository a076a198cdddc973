"""Framing against a model that looks at one byte at a time, through programs that write and retry."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dnpipefs.core import framing
from dnpipefs.core.batch import Chunk, split_lines
from dnpipefs.core.config import Framing, TopicConfig
from dnpipefs.core.framing import Framed, Framer, Held, LineFramer, Piece, WriteFramer, begin, follow

FLUSH = None
PIECE_BYTES = 3
MERGED_BYTES = 4
limits = st.integers(1, 6)
inputs = st.lists(st.sampled_from([b"a", b"b", b"\n", b"cd", b"\n\n", b"efghijk"]), max_size=10).map(b"".join)
operations = st.lists(st.one_of(inputs, st.just(FLUSH)), max_size=8)


@pytest.fixture(scope="module", autouse=True)
def small_pieces() -> Iterator[None]:
    """Let small inputs reach what the limits of pieces and held parts do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(framing, "PIECE_BYTES", PIECE_BYTES)
        patch.setattr(framing, "MERGED_BYTES", MERGED_BYTES)
        yield


def lines(data: bytes, consumed: int) -> Piece:
    return Piece(Chunk.of_lines(data), consumed)


def messages(chunk: Chunk) -> list[bytes]:
    return list(split_lines(chunk.data)) if chunk.lengths is None else [chunk.data]


def reference(limit: int, stream: list[int | None]) -> tuple[list[bytes], int]:
    """Return the lines within the limit and how many were above it, byte by byte (None is a flush)."""
    found, refused, current = [], 0, b""
    for byte in stream:
        if byte is not FLUSH:
            current += bytes([byte])
        if byte is FLUSH or byte == ord("\n"):
            if 0 < len(current) <= limit:
                found.append(current)
            refused += len(current) > limit
            current = b""
    return found, refused


@dataclass
class Program:
    """Writes as careful programs do.

    After a short write the rest is written again; after EMSGSIZE it goes on with the next message.
    """

    framer: Framer
    pushed: list[bytes] = field(default_factory=list)
    too_large: int = 0

    def write(self, data: bytes) -> None:
        while data:
            answer = self.framer.feed(data)
            if isinstance(self.framer, LineFramer):
                check(self.framer, data, answer)
            self.framer = answer.state
            for piece in answer.pieces:
                self.pushed += messages(piece.chunk)
            if answer.too_large:
                self.too_large += 1
                data = data[data.find(b"\n") + 1 :] if b"\n" in data else b""
            else:
                assert answer.consumed > 0, "a write of nothing would be offered for ever"
                data = data[answer.consumed :]

    def flush(self) -> None:
        last, self.framer = self.framer.flush()
        self.pushed += [last.data] if last is not None else []


def check(before: LineFramer, data: bytes, answer: Framed) -> None:
    """Check invariants 1, 2 and 5 of framing for one answer."""
    joined = b"".join(piece.chunk.data for piece in answer.pieces)
    if answer.too_large:
        assert answer.pieces == ()
        assert answer.consumed == 0
        assert not answer.state.held
    elif before.skipping:
        # All but the rest of the refused message.
        accepted = data[: answer.consumed]
        assert joined + bytes(answer.state.held) == accepted[accepted.find(b"\n") + 1 :] * (b"\n" in accepted)
    else:
        assert joined + bytes(answer.state.held) == bytes(before.held) + data[: answer.consumed]
    settled = 0
    for piece in answer.pieces:
        assert piece.chunk.data.endswith(b"\n")
        assert len(piece.chunk.data) <= PIECE_BYTES or piece.chunk.messages == 1
        assert settled < piece.consumed <= answer.consumed
        assert data[: piece.consumed].endswith(piece.chunk.data[-piece.consumed :])
        settled = piece.consumed
    assert len(answer.state.held) <= before.limit
    assert b"\n" not in bytes(answer.state.held)
    assert isinstance(answer.state, LineFramer)
    assert not (answer.state.held and answer.state.skipping)


@given(limits, operations)
@example(3, [b"abc", b"d", b"e\nfg\n"])
@example(2, [b"a\nbcd\ne\n"])
def test_programs_push_exactly_the_messages_within_the_limit(limit: int, writes: list[bytes | None]) -> None:
    """Invariants 1, 2 and 3 of framing."""
    program = Program(LineFramer(limit))
    stream: list[int | None] = []
    for data in [*writes, FLUSH]:
        if data is FLUSH:
            program.flush()
            stream.append(FLUSH)
        else:
            program.write(data)
            stream.extend(data)
    assert (program.pushed, program.too_large) == reference(limit, stream)


@given(limits, inputs, st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_the_splitting_into_writes_does_not_matter(limit: int, data: bytes, sizes: list[int]) -> None:
    """Invariants 1 to 3 of framing: one write, one byte a write, or anything between."""
    whole, bytewise, split = (Program(LineFramer(limit)) for _ in range(3))
    whole.write(data)
    for byte in data:
        bytewise.write(bytes([byte]))
    position = index = 0
    while position < len(data):
        size = sizes[index % len(sizes)]
        split.write(data[position : position + size])
        position, index = position + size, index + 1
    assert whole == bytewise == split


@given(limits, inputs, inputs)
def test_feed_changes_nothing(limit: int, before: bytes, data: bytes) -> None:
    """Invariant 4 of framing: after a failed commit the same write means the same."""
    program = Program(LineFramer(limit))
    program.write(before)
    framer = program.framer
    copy = replace(framer)
    first = framer.feed(data)
    assert framer == copy
    assert framer.feed(data) == first


@given(limits, inputs, st.integers(0, 5))
def test_a_program_can_go_on_behind_committed_pieces(limit: int, data: bytes, done: int) -> None:
    """Only some pieces get committed: what they consumed is settled, the rest written again is complete."""
    answer = LineFramer(limit).feed(data)
    pieces = answer.pieces[:done]
    again = Program(LineFramer(limit))
    again.write(data[pieces[-1].consumed if pieces else 0 :])
    whole = Program(LineFramer(limit))
    whole.write(data)
    committed = [line for piece in pieces for line in messages(piece.chunk)]
    assert (committed + again.pushed, again.framer) == (whole.pushed, whole.framer)


@pytest.mark.parametrize(
    ("before", "data", "after", "pieces"),
    [
        (LineFramer(9), b"\nb\nc", LineFramer(9, Held(b"c")), [lines(b"\nb\n", 3)]),
        (LineFramer(9, Held(b"c")), b"d\n", LineFramer(9), [lines(b"cd\n", 2)]),
        (LineFramer(9, skipping=True), b"rest\nnext\n", LineFramer(9), [lines(b"next\n", 10)]),
        (LineFramer(9, skipping=True), b"rest", LineFramer(9, skipping=True), []),
        (
            LineFramer(9),
            b"\nb\nlong\nc\nd",
            LineFramer(9, Held(b"d")),
            [lines(b"\nb\n", 3), lines(b"long\n", 8), lines(b"c\n", 10)],
        ),
        (LineFramer(1), b"\n\n\n\n", LineFramer(1), [lines(b"\n\n\n", 3), lines(b"\n", 4)]),
        (LineFramer(4, Held(b"abcd")), b"", LineFramer(4, Held(b"abcd")), []),
    ],
)
def test_the_table_of_the_module(
    before: LineFramer, data: bytes, after: LineFramer, pieces: list[Piece]
) -> None:
    assert before.feed(data) == Framed(tuple(pieces), after, len(data), too_large=False)


def test_flush_gives_the_held_part_once() -> None:
    assert LineFramer(9, Held(b"c")).flush() == (Chunk.of_lines(b"c"), LineFramer(9))
    assert WriteFramer(9, Held(b"c")).flush() == (Chunk.of_lines(b"c"), WriteFramer(9))
    for framer in (LineFramer(9), LineFramer(9, skipping=True)):
        assert framer.flush() == (None, LineFramer(9))
    assert WriteFramer(9).flush() == (None, WriteFramer(9))


@pytest.mark.parametrize(
    ("rest", "state"),
    [(b"toolong\nnext\n", LineFramer(5)), (b"toolong", LineFramer(5, skipping=True))],
)
def test_a_short_write_stands_before_message_too_large(rest: bytes, state: LineFramer) -> None:
    """The messages before it are reported as written; only the next write fails."""
    framer = LineFramer(5)
    first = framer.feed(b"\nb\n" + rest)
    assert first == Framed((lines(b"\nb\n", 3),), LineFramer(5), 3, too_large=False)
    assert first.state.feed(rest) == Framed((), state, 0, too_large=True)


def test_the_held_part_of_a_refused_message_is_dropped() -> None:
    """Invariant 3 of framing."""
    assert LineFramer(5, Held(b"abc")).feed(b"def") == Framed(
        (), LineFramer(5, skipping=True), 0, too_large=True
    )
    assert LineFramer(5, Held(b"abc")).feed(b"def\n") == Framed((), LineFramer(5), 0, too_large=True)


def test_the_limit_counts_the_newline() -> None:
    assert LineFramer(3).feed(b"ab\n").pieces == (lines(b"ab\n", 3),)
    assert LineFramer(3).feed(b"abc\n").too_large
    assert not LineFramer(3).feed(b"abc").too_large
    assert LineFramer(3, Held(b"abc")).feed(b"\n").too_large


# Parts of a held message


@given(st.lists(st.binary(max_size=9), max_size=30))
def test_held_bytes_are_those_that_came(parts: list[bytes]) -> None:
    held = Held()
    for index, part in enumerate(parts):
        held, before = held.plus(part), held
        assert bytes(before) == b"".join(parts[:index])
    assert bytes(held) == b"".join(parts)
    assert len(held) == len(bytes(held))
    assert held == Held(b"".join(parts))


@given(st.lists(st.integers(1, 9), max_size=200))
def test_held_bytes_lie_in_few_parts(sizes: list[int]) -> None:
    """Invariant 6 of framing: each part but the large ones is at least half as large again as the next."""
    held = Held()
    for size in sizes:
        held = held.plus(b"x" * size)
    for part, following in zip(held._parts, held._parts[1:], strict=False):
        assert len(part) >= 2 * len(following) or len(part) + len(following) > MERGED_BYTES


# Write framing


@given(st.integers(1, 6), st.lists(st.binary(max_size=8), max_size=8))
def test_each_write_within_the_limit_is_a_message(limit: int, writes: list[bytes]) -> None:
    """Invariants 1, 3 and 4 of framing."""
    framer = WriteFramer(limit)
    for data in writes:
        answer = framer.feed(data)
        assert answer.state == framer
        assert answer.too_large == (len(data) > limit)
        assert answer.consumed == (0 if answer.too_large else len(data))
        expected = [Piece(Chunk(data, 1, (len(data),)), len(data))] if 0 < len(data) <= limit else []
        assert list(answer.pieces) == expected


# Settings that change


LINE, WRITE = (TopicConfig(framing, max_message=5) for framing in Framing)


def test_what_line_framing_holds_is_a_message_in_front_of_the_next_write() -> None:
    framer = follow(LineFramer(5, Held(b"par")), WRITE)
    assert framer == WriteFramer(5, Held(b"par"))
    message = Piece(Chunk.of_message(b"t\n\0"), 3)
    assert framer.feed(b"t\n\0") == Framed((lines(b"par", 0), message), WriteFramer(5), 3, too_large=False)
    assert framer.feed(b"toolong") == Framed((), framer, 0, too_large=True)
    assert framer.feed(b"") == Framed((), framer, 0, too_large=False)


def test_what_line_framing_holds_survives_a_change_to_and_fro() -> None:
    framer = LineFramer(5, Held(b"par"))
    assert follow(follow(framer, WRITE), LINE) == framer


def test_the_rest_of_a_refused_message_is_skipped_only_by_line_framing() -> None:
    skipping = LineFramer(9, skipping=True)
    assert follow(skipping, LINE) == LineFramer(5, skipping=True)
    assert follow(skipping, WRITE) == WriteFramer(5)


@pytest.mark.parametrize("data", [b"\n", b"d", b"d\nnext\n"])
def test_what_is_held_above_a_new_limit_cannot_be_completed_but_flushed(data: bytes) -> None:
    framer = follow(LineFramer(9, Held(b"7 bytes")), LINE)
    assert framer.feed(data) == Framed((), LineFramer(5, skipping=data == b"d"), 0, too_large=True)
    assert framer.flush() == (Chunk.of_lines(b"7 bytes"), LineFramer(5))


@pytest.mark.parametrize(("largest_write", "limit"), [(None, 5), (4, 4), (6, 5)])
def test_only_write_framing_cares_how_large_a_write_comes_whole(
    largest_write: int | None, limit: int
) -> None:
    assert begin(WRITE, largest_write=largest_write) == WriteFramer(limit)
    assert begin(LINE, largest_write=largest_write) == LineFramer(5)


@given(
    st.lists(
        st.one_of(
            inputs, st.just(FLUSH), st.builds(TopicConfig, st.sampled_from(Framing), max_message=limits)
        ),
        max_size=10,
    )
)
def test_nothing_is_lost_or_doubled_when_settings_change(steps: list[bytes | TopicConfig | None]) -> None:
    """Invariant 1 of framing, with limits that refuse nothing."""
    program = Program(LineFramer(1000))
    written = b""
    for step in [*steps, FLUSH]:
        if isinstance(step, TopicConfig):
            program.framer = follow(program.framer, replace(step, max_message=1000))
        elif step is FLUSH:
            program.flush()
        else:
            program.write(step)
            written += step
    assert b"".join(program.pushed) == written
    assert program.too_large == 0
