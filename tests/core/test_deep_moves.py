"""How deep a directory may be moved: all directories above its new place are compared."""

import pytest

from dnpipefs.core.names import ROOT, Kind
from dnpipefs.core.tree import DEEPEST_MOVE
from dnpipefs.errors import NameTooLong
from tests.core.test_tree import ETCD_OPERATIONS, PLANNER, World, world

__all__ = ["world"]


def test_a_directory_is_moved_as_deep_as_can_be_compared(world: World) -> None:
    """Invariant 2 of tree within what etcd compares in one transaction."""
    world.make(ROOT, b"moved", Kind.DIRECTORY)
    world.make(ROOT, b"topic", Kind.TOPIC)
    parent = ROOT
    for _ in range(DEEPEST_MOVE):
        parent = world.make(parent, b"d", Kind.DIRECTORY)
    world.make(parent, b"old", Kind.DIRECTORY)
    deepest = PLANNER.rename(world.tree, (ROOT, b"moved"), (parent, b"old"), 7, replace=True)
    assert deepest is not None
    assert len(deepest.guards) + len(deepest.must_be_empty) <= ETCD_OPERATIONS
    below = world.make(parent, b"d", Kind.DIRECTORY)
    with pytest.raises(NameTooLong, match="below more than 120 others"):
        PLANNER.rename(world.tree, (ROOT, b"moved"), (below, b"moved"), 7, replace=True)
    assert PLANNER.rename(world.tree, (ROOT, b"topic"), (below, b"topic"), 7, replace=True) is not None
