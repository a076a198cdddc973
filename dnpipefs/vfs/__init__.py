"""File semantics: what open, read, write, truncate and the rest mean on topics and directories.

Knows nothing of FUSE, node ids or errno; raises the classes of `dnpipefs.errors`. The FUSE adapter
translates both ways.
"""

from dnpipefs.vfs.attributes import Attributes
from dnpipefs.vfs.control import ControlListing
from dnpipefs.vfs.filesystem import FileSystem, OpenHandle, Usage
from dnpipefs.vfs.listings import Listing

__all__ = ["Attributes", "ControlListing", "FileSystem", "Listing", "OpenHandle", "Usage"]
