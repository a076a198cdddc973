"""What stat(2) shows of a topic, a directory, a view or a file of the control directory."""

from __future__ import annotations

from typing import NamedTuple

from dnpipefs.core.names import FileId


class Attributes(NamedTuple):
    """What stat(2) shows."""

    id: FileId
    is_directory: bool
    mode: int
    """Permission bits only."""
    uid: int
    gid: int
    nlink: int
    size: int
    blocks: int
    """Of 512 bytes."""
    mtime_ns: int
    ctime_ns: int
    exact: bool
    """Size and times are what this host has now; otherwise only `FileSystem.attributes` tells them."""
