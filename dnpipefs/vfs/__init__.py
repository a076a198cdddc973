"""File semantics: what open, read, write, truncate and the rest mean on topics and directories.

Knows nothing of FUSE, node ids or errno; raises the classes of `dnpipefs.errors`. The FUSE adapter
translates both ways.
"""

from dnpipefs.vfs.filesystem import Attributes, FileSystem, Usage
from dnpipefs.vfs.handles import TopicHandle
from dnpipefs.vfs.listings import Listing
from dnpipefs.vfs.views import ViewHandle

__all__ = ["Attributes", "FileSystem", "Listing", "TopicHandle", "Usage", "ViewHandle"]
