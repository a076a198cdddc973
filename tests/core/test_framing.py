"""Line framing against a model that looks at one byte at a time, through programs that write and retry."""

from dataclasses import dataclass, field

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dnpipefs.core.batch import split_lines
from dnpipefs.core.framing import Framed, LineFramer, Piece

FLUSH = None
limits = st.integers(1, 6)
inputs = st.lists(st.sampled_from([b"a", b"b", b"\n", b"cd", b"\n\n", b"efghijk"]), max_size=10).map(b"".join)
operations = st.lists(st.one_of(inputs, st.just(FLUSH)), max_size=8)


def reference(limit: int, stream: list[int | None]) -> tuple[list[bytes], int]:
    """Return the messages within the limit and how many were above it, byte by byte (None is a flush)."""
    messages, refused, current = [], 0, b""
    for byte in stream:
        if byte is not FLUSH:
            current += bytes([byte])
        if byte is FLUSH or byte == ord("\n"):
            if 0 < len(current) <= limit:
                messages.append(current)
            refused += len(current) > limit
            current = b""
    return messages, refused


@dataclass
class Program:
    """Writes as careful programs do.

    After a short write the rest is written again; after EMSGSIZE it goes on with the next message.
    """

    framer: LineFramer
    pushed: list[bytes] = field(default_factory=list)
    too_large: int = 0

    def write(self, data: bytes) -> None:
        while data:
            answer = self.framer.feed(data)
            check(self.framer, data, answer)
            self.framer = answer.state
            for piece in answer.pieces:
                self.pushed += split_lines(piece.data)
            if answer.too_large:
                self.too_large += 1
                data = data[data.find(b"\n") + 1 :] if b"\n" in data else b""
            else:
                assert answer.consumed > 0, "a write of nothing would be offered for ever"
                data = data[answer.consumed :]

    def flush(self) -> None:
        last, self.framer = self.framer.flush()
        self.pushed += [last] if last else []


def check(before: LineFramer, data: bytes, answer: Framed) -> None:
    """Check invariants 1 and 2 of framing for one answer."""
    joined = b"".join(piece.data for piece in answer.pieces)
    if answer.too_large:
        assert answer.pieces == ()
        assert answer.consumed == 0
        assert answer.state.held == b""
    elif before.skipping:
        # All but the rest of the refused message.
        accepted = data[: answer.consumed]
        assert joined + answer.state.held == accepted[accepted.find(b"\n") + 1 :] * (b"\n" in accepted)
    else:
        assert joined + answer.state.held == before.held + data[: answer.consumed]
    settled = 0
    for piece in answer.pieces:
        assert piece.data.endswith(b"\n")
        assert len(piece.data) <= before.limit
        assert settled < piece.consumed <= answer.consumed
        assert data[: piece.consumed].endswith(piece.data[-piece.consumed :])
        settled = piece.consumed
    assert len(answer.state.held) <= before.limit
    assert b"\n" not in answer.state.held
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
    copy = LineFramer(framer.limit, framer.held, framer.skipping)
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
    committed = [line for piece in pieces for line in split_lines(piece.data)]
    assert (committed + again.pushed, again.framer) == (whole.pushed, whole.framer)


@pytest.mark.parametrize(
    ("before", "data", "after", "pieces"),
    [
        (LineFramer(9), b"a\nb\nc", LineFramer(9, b"c"), [Piece(b"a\nb\n", 4)]),
        (LineFramer(9, b"c"), b"d\n", LineFramer(9), [Piece(b"cd\n", 2)]),
        (LineFramer(9, skipping=True), b"rest\nnext\n", LineFramer(9), [Piece(b"next\n", 10)]),
        (LineFramer(9, skipping=True), b"rest", LineFramer(9, skipping=True), []),
        (LineFramer(4), b"a\nb\nc\nd", LineFramer(4, b"d"), [Piece(b"a\nb\n", 4), Piece(b"c\n", 6)]),
        (LineFramer(4, b"abcd"), b"", LineFramer(4, b"abcd"), []),
    ],
)
def test_the_table_of_the_module(
    before: LineFramer, data: bytes, after: LineFramer, pieces: list[Piece]
) -> None:
    assert before.feed(data) == Framed(tuple(pieces), after, len(data), too_large=False)


def test_flush_gives_the_held_part_once() -> None:
    assert LineFramer(9, b"c").flush() == (b"c", LineFramer(9))
    assert LineFramer(9).flush() == (b"", LineFramer(9))
    assert LineFramer(9, skipping=True).flush() == (b"", LineFramer(9))


@pytest.mark.parametrize(
    ("rest", "state"),
    [(b"toolong\nnext\n", LineFramer(5)), (b"toolong", LineFramer(5, skipping=True))],
)
def test_a_short_write_stands_before_message_too_large(rest: bytes, state: LineFramer) -> None:
    """The messages before it are reported as written; only the next write fails."""
    framer = LineFramer(5)
    first = framer.feed(b"a\nb\n" + rest)
    assert first == Framed((Piece(b"a\nb\n", 4),), LineFramer(5), 4, too_large=False)
    assert first.state.feed(rest) == Framed((), state, 0, too_large=True)


def test_the_held_part_of_a_refused_message_is_dropped() -> None:
    """Invariant 3 of framing."""
    assert LineFramer(5, b"abc").feed(b"def") == Framed((), LineFramer(5, skipping=True), 0, too_large=True)
    assert LineFramer(5, b"abc").feed(b"def\n") == Framed((), LineFramer(5), 0, too_large=True)


def test_the_limit_counts_the_newline() -> None:
    assert LineFramer(3).feed(b"ab\n").pieces == (Piece(b"ab\n", 3),)
    assert LineFramer(3).feed(b"abc\n").too_large
    assert not LineFramer(3).feed(b"abc").too_large
    assert LineFramer(3, b"abc").feed(b"\n").too_large
