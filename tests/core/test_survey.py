"""What a look at many topics settles, and how they are divided."""

from itertools import chain

import pytest

from dnpipefs.core.names import NO_GENERATION, FileId, Offset, Revision
from dnpipefs.core.sizes import KnownSize, KnownSizes
from dnpipefs.core.survey import POINT_TOPICS, RANGE_TOPICS, Last, Look, groups, is_dense, settle

NEW, WRITTEN, CHANGED, UNKNOWN, DELETED, RESET, MENDED = map(FileId, range(1, 8))
NOW = 5.0


def known(newest: int, generation: int = 3) -> KnownSize:
    return KnownSize(Offset(70), 7, 99, Revision(generation), Revision(newest), 0.0, 0.0, 0.0)


@pytest.fixture
def sizes() -> KnownSizes:
    sizes = KnownSizes(10)
    sizes.learned(WRITTEN, known(20))
    sizes.learned(CHANGED, known(20))
    sizes.learned(DELETED, known(20))
    sizes.learned(RESET, known(20, NO_GENERATION))
    return sizes


def look(*, all_have_epochs: bool, with_generations: bool = True) -> Look:
    lasts = {
        NEW: Last(Revision(11), 1, 111),
        WRITTEN: Last(Revision(20), 4, 99),
        CHANGED: Last(Revision(21), 5, 122),
        UNKNOWN: Last(Revision(22), 2, 123),
        RESET: Last(Revision(20), 4, 99),
        MENDED: Last(Revision(25), 1, 99),
    }
    generations = {topic: Revision(11) for topic in lasts} if with_generations else {}
    return Look(Revision(30), lasts, all_have_epochs, generations)


TOPICS = [NEW, WRITTEN, CHANGED, UNKNOWN, DELETED, RESET, MENDED]


def test_a_look_settles_what_is_new_and_what_has_not_changed(sizes: KnownSizes) -> None:
    assert settle(sizes, TOPICS, look(all_have_epochs=True), NOW) == [CHANGED, UNKNOWN, RESET, MENDED]
    new, written = sizes.fresh(NEW, NOW), sizes.fresh(WRITTEN, NOW)
    assert new == KnownSize(Offset(0), 0, 111, Revision(11), Revision(11), NOW, NOW, NOW)
    assert written is not None
    assert (written.end, written.messages) == (70, 7)
    assert [topic for topic in TOPICS if sizes.fresh(topic, NOW)] == [NEW, WRITTEN]


def test_what_was_put_once_is_read_where_epochs_were_only_counted(sizes: KnownSizes) -> None:
    counted = look(all_have_epochs=True, with_generations=False)
    assert settle(sizes, TOPICS, counted, NOW) == [NEW, CHANGED, UNKNOWN, RESET, MENDED]


def test_where_an_epoch_is_missing_all_are_read(sizes: KnownSizes) -> None:
    assert settle(sizes, TOPICS, look(all_have_epochs=False), NOW) == [
        topic for topic in TOPICS if topic != DELETED
    ]
    assert not [topic for topic in TOPICS if sizes.fresh(topic, NOW)]


def test_ranges_are_read_where_many_of_their_topics_are_asked_for() -> None:
    assert is_dense(100, 400)
    assert not is_dense(100, 401)


@pytest.mark.parametrize(("dense", "size"), [(True, RANGE_TOPICS), (False, POINT_TOPICS)])
def test_a_look_takes_so_many_topics(*, dense: bool, size: int) -> None:
    topics = [FileId(number) for number in range(2 * size + 1, 0, -1)]
    divided = list(groups(topics, dense=dense))
    assert [len(group) for group in divided] == [size, size, 1]
    assert list(chain(*divided)) == (sorted(topics) if dense else topics)
