"""What the kernel is told of a file, and how long it may keep that.

It keeps attributes and names of directories for FRESH_S at most, what a listing shows for LISTED_S, other
names not at all: what it does not remember cannot be stale.
"""

from __future__ import annotations

import stat
from typing import Final

from pyfuse3 import EntryAttributes

from dnpipefs.vfs import Attributes

FRESH_S: Final = 0.01
"""How long the kernel may use attributes of directories, and of topics it has just looked up, where this
host has them in memory: about as long as a watch takes. It saves two requests of five in each open."""
LISTED_S: Final = 0.03
"""The same for what a listing shows, and for its names: `ls -l` stats them within a few milliseconds, on a
busy machine some more. It saves two or three requests for each."""
BLOCK_SIZE: Final = 1 << 20
"""st_blksize: how much programs like cat read and write at once."""


def entry_of(attributes: Attributes, node: int | None = None) -> EntryAttributes:
    """Return what one file is, as *node*: its own id unless said otherwise."""
    return fill(blank(), attributes, node)


def blank() -> EntryAttributes:
    """Return what all files have in common."""
    entry = EntryAttributes()
    entry.generation = 0
    entry.entry_timeout = 0
    entry.st_rdev = 0
    entry.st_blksize = BLOCK_SIZE
    return entry


def fill(entry: EntryAttributes, attributes: Attributes, node: int | None) -> EntryAttributes:
    """Set what differs between one file and another."""
    entry.st_ino = attributes.id if node is None else node
    # An alias shows its own number in the answer to a lookup; the kernel must ask for the topic's.
    fresh = attributes.is_directory or (attributes.exact and node == attributes.id)
    entry.attr_timeout = FRESH_S if fresh else 0
    entry.st_mode = attributes.mode | (stat.S_IFDIR if attributes.is_directory else stat.S_IFREG)
    entry.st_nlink = attributes.nlink
    entry.st_uid = attributes.uid
    entry.st_gid = attributes.gid
    entry.st_size = attributes.size
    entry.st_blocks = attributes.blocks
    entry.st_atime_ns = entry.st_mtime_ns = attributes.mtime_ns
    entry.st_ctime_ns = attributes.ctime_ns
    return entry


def fill_listed(entry: EntryAttributes, attributes: Attributes) -> EntryAttributes:
    """Set what a listing shows: the name may be used, too, or each stat of `ls -l` would look it up."""
    fill(entry, attributes, attributes.id)
    entry.entry_timeout = LISTED_S
    if attributes.exact:
        entry.attr_timeout = LISTED_S
    return entry
