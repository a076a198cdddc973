"""What a topic has in etcd besides its batches, and what of it tells where the topic stands.

=============  ==============  ==========================================================
``last/<t>``   ``epoch/<t>``   the topic
=============  ==============  ==========================================================
exists         exists          is in the generation that the epoch's mod_revision says
exists         absent          is empty and in no generation: it was reset while etcd was
                               full and took deletions only; the next push begins one
absent         absent          was deleted
=============  ==============  ==========================================================
"""

from __future__ import annotations

from dnpipefs.core.keys import KeySchema
from dnpipefs.core.names import FileId
from dnpipefs.core.records import EMPTY_HEAD_VALUE, Mark, encode_time


def begin(keys: KeySchema, topic: FileId, time_ns: int) -> list[tuple[bytes, bytes]]:
    """Return what is put to begin a generation, for a new topic and at a reset."""
    stamp = encode_time(time_ns)
    return [
        (keys.epoch(topic), stamp),
        (keys.head(topic), EMPTY_HEAD_VALUE),
        (keys.last(topic), stamp),
        # Its deletion tells views of the generation's end, so it must exist from the beginning.
        (keys.mark(topic), Mark(Mark.RESET, time_ns).encode()),
    ]


def end(keys: KeySchema, topic: FileId) -> list[bytes]:
    """Return what is deleted to reset a topic without putting anything."""
    return [keys.epoch(topic), keys.mark(topic)]


def end_topic(keys: KeySchema, topic: FileId) -> list[bytes]:
    """Return what is deleted at once with a topic; what remains is for the sweeper."""
    return [*end(keys, topic), keys.head(topic), keys.last(topic)]
