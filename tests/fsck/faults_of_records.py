"""Faults in the namespace and in the records of topics."""

from dataclasses import replace

from dnpipefs.core.names import ROOT, FileId, Kind, Offset
from dnpipefs.core.records import Mark
from tests.fsck.conftest import Lab
from tests.fsck.faults import DEAD, LONG_AGO, entry_of, fault, put_entry


@fault("M1")
async def no_meta(lab: Lab) -> None:
    await lab.delete(lab.keys.meta)


@fault("N1")
async def an_entry_with_a_bad_key(lab: Lab) -> None:
    await put_entry(lab, lab.keys.namespace.start + b"zzz", entry_of(5))


@fault("N1")
async def an_entry_with_a_bad_name(lab: Lab) -> None:
    await put_entry(lab, lab.keys.entry(ROOT, b".."), entry_of(5))


@fault("N2")
async def an_entry_that_does_not_parse(lab: Lab) -> None:
    await put_entry(lab, lab.keys.entry(ROOT, b"broken"), b"{}")


@fault("N2")
async def an_entry_with_an_impossible_id(lab: Lab) -> None:
    await put_entry(lab, lab.keys.entry(ROOT, b"huge"), entry_of(2**52))


@fault("N3")
async def two_names_of_one_topic(lab: Lab) -> None:
    await put_entry(lab, lab.keys.entry(ROOT, b"twin"), entry_of(lab.topic))


@fault("N4", mended=True)
async def a_directory_without_a_parent(lab: Lab) -> None:
    await put_entry(lab, lab.keys.entry(DEAD, b"lost"), entry_of(6, Kind.DIRECTORY))


@fault("N4", mended=True)
async def a_directory_below_a_topic(lab: Lab) -> None:
    await put_entry(lab, lab.keys.entry(lab.topic, b"lost"), entry_of(6, Kind.DIRECTORY))


@fault("N5", mended=True)
async def directories_inside_each_other(lab: Lab) -> None:
    await put_entry(lab, lab.keys.entry(FileId(7), b"a"), entry_of(6, Kind.DIRECTORY))
    await put_entry(lab, lab.keys.entry(FileId(6), b"b"), entry_of(7, Kind.DIRECTORY))


@fault("N6", mended=True)
async def no_root(lab: Lab) -> None:
    await lab.delete(lab.keys.root)


@fault("N7", mended=True)
async def no_last_of_the_namespace(lab: Lab) -> None:
    await lab.delete(lab.keys.last_namespace)


@fault("N7", mended=True)
async def a_last_of_the_namespace_that_is_behind(lab: Lab) -> None:
    await lab.client.put(lab.keys.entry(ROOT, b"new"), entry_of(8, Kind.DIRECTORY))


@fault("N7", mended=True)
async def a_last_of_the_namespace_that_does_not_parse(lab: Lab) -> None:
    await lab.client.put(lab.keys.last_namespace, b"soon")


@fault("T1")
async def a_name_without_a_topic(lab: Lab) -> None:
    await put_entry(lab, lab.keys.entry(ROOT, b"hollow"), entry_of(5))


@fault("T2", mended=True)
async def no_last(lab: Lab) -> None:
    await lab.delete(lab.keys.last(lab.topic))


@fault("T2", mended=True)
async def a_last_that_does_not_parse(lab: Lab) -> None:
    await lab.put(lab.keys.last(lab.topic), b"now")


@fault("T3", mended=True)
async def a_last_that_is_behind(lab: Lab) -> None:
    newest = (await lab.batches())[-1]
    await lab.client.put(newest.key, newest.value)


@fault("T4", reads=False)
async def no_head(lab: Lab) -> None:
    await lab.delete(lab.keys.head(lab.topic))


@fault("T4", reads=False)
async def a_head_that_does_not_parse(lab: Lab) -> None:
    await lab.put(lab.keys.head(lab.topic), b"{}")


@fault("T4", reads=False)
async def a_head_that_cannot_be(lab: Lab) -> None:
    head = await lab.head()
    await lab.put(lab.keys.head(lab.topic), replace(head, first=Offset(head.offset + 1)).encode())


@fault("T5", mended=True)
async def no_mark(lab: Lab) -> None:
    await lab.delete(lab.keys.mark(lab.topic))


@fault("T5", mended=True)
async def a_mark_that_does_not_parse(lab: Lab) -> None:
    await lab.put(lab.keys.mark(lab.topic), b"[]")


@fault("T5", mended=True)
async def a_mark_that_says_something_else(lab: Lab) -> None:
    await lab.put(lab.keys.mark(lab.topic), Mark(Mark.TRIM, 1, Offset(5), 1).encode())


@fault("T5")
async def a_mark_of_a_later_release(lab: Lab) -> None:
    await lab.put(lab.keys.mark(lab.topic), b'{"kind":"fork","time":1}')


@fault("T6", reads=False)
async def no_epoch(lab: Lab) -> None:
    await lab.delete(lab.keys.epoch(lab.topic))


@fault("T6", reads=False)
async def an_epoch_that_was_put_again(lab: Lab) -> None:
    await lab.put(lab.keys.epoch(lab.topic), LONG_AGO)
