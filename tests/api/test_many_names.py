"""The limit of topics and directories that a host keeps in memory, and reading them all."""

import pytest

from dnpipefs import Dnp, OutOfSpace, namespace
from tests.api.conftest import Connect

LIMIT = 12


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespace, "ENTRIES_LIMIT", LIMIT)
    monkeypatch.setattr(namespace, "LOAD_ENTRIES", 4)


async def test_at_the_limit_nothing_is_created_until_something_goes(dnp: Dnp) -> None:
    names = [f"topic{number:02}" for number in range(LIMIT - 1)]  # the root counts, too
    for name in names:
        await dnp.push(name, "line")
    with pytest.raises(OutOfSpace, match=f"there are {LIMIT} topics and directories.*remove some"):
        await dnp.push("one more", "line")
    with pytest.raises(OutOfSpace):
        await dnp.mkdir("directory")
    await dnp.push(names[0], "existing topics take pushes")
    await dnp.rename(names[0], "renamed")
    await dnp.remove("renamed")
    await dnp.push("one more", "line")
    assert [entry.name for entry in await dnp.ls()] == ["one more", *names[1:]]


async def test_a_host_that_joins_reads_them_page_by_page(dnp: Dnp, connect: Connect) -> None:
    for number in range(LIMIT - 1):
        await dnp.push(f"topic{number:02}", "line")
    async with connect() as late:
        assert await late.ls() == await dnp.ls()
        assert len(await late.ls()) == LIMIT - 1
        await dnp.remove("topic03")
        assert len(await late.ls()) == LIMIT - 2
