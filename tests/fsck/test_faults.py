"""Every fault is found and named; what is mended is not found again; no repair costs a message."""

import pytest

from dnpipefs.core.findings import Rule
from tests.fsck.conftest import Lab
from tests.fsck.faults import FAULTS, Fault


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
async def test_a_planted_fault(lab: Lab, fault: Fault) -> None:
    await fault.plant(lab)
    before = await lab.all(lab.everything)
    found = await lab.check()
    assert found.left == sorted(fault.rules), found.verdicts
    assert any(fault.about(verdict) for verdict in found.verdicts), found.verdicts
    assert await lab.all(lab.everything) == before, "without --repair nothing is changed"
    mended = await lab.check(repair=True)
    again = await lab.check()
    if fault.mended:
        assert (mended.left, mended.mended) == ([], sorted(fault.rules)), mended.verdicts
        assert again.verdicts == []
    else:
        assert (mended.left, mended.mended) == (sorted(fault.rules), []), mended.verdicts
        assert await lab.all(lab.everything) == before, "nothing was certain enough"
    if fault.reads and fault.rules[0] not in ("M1", "T5", "N1", "N2"):
        assert await lab.pull() == lab.messages


def test_there_is_a_fault_of_every_rule() -> None:
    planted = {rule for fault in FAULTS for rule in fault.rules} | {"L3"}  # see below
    assert planted == {rule.code for rule in Rule}


async def test_a_topic_that_lost_its_name_is_attached_again(lab: Lab) -> None:
    from dnpipefs.core.names import ROOT

    await lab.delete(lab.keys.entry(ROOT, b"t"))
    found = await lab.check()
    assert found.left == ["L3"]
    mended = await lab.check(repair=True)
    assert (mended.left, mended.mended) == ([], ["L3"])
    assert (await lab.check()).verdicts == []
    assert await lab.pull(f"lost+found-{lab.topic:x}") == lab.messages
