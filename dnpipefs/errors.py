"""Every failure a user of dnpipefs can meet, as classes by who is to blame.

This module owns the names and the wording rule: the text of an error says what happened and what
to do about it, in one line. It knows nothing of errno (one table in the FUSE adapter translates)
nor of exit codes (one table in the command line does).
"""


class DnpError(Exception):
    """Base of everything dnpipefs raises on purpose."""


class UsageError(DnpError):
    """The caller asked for something that has no meaning; asking again will not help."""


class InvalidName(UsageError):
    """A topic or directory name that may not be created (reserved character, empty, NUL)."""


class NameTooLong(InvalidName):
    """A path component longer than 255 bytes."""


class InvalidArgument(UsageError):
    """A value outside the allowed form, such as a truncate to neither 0 nor the current size."""


class InvalidSetting(InvalidArgument):
    """A setting of a topic that does not exist, or a value that it cannot have."""


class NotInSequence(UsageError):
    """A positioned write somewhere else than at the end; topics are append-only."""


class MessageTooLarge(UsageError):
    """A message above the limit; nothing of it was stored, messages before it were."""


class NotPermitted(UsageError):
    """An operation topics do not have (hard links, symlinks, FIFOs, devices)."""


class AccessDenied(UsageError):
    """A view of a topic can be read, and rewound, but not written to; the control directory only read."""


class WouldBlock(DnpError):
    """There is nothing to read now, and the reader does not want to wait."""


class ReadOnlySetting(NotPermitted):
    """What is known of a topic, such as its generation, can be read only."""


class NotSupported(UsageError):
    """An extended attribute that is none of dnpipefs, such as an access control list."""


class NotFound(DnpError):
    """No such topic or directory; confirmed with etcd, not a guess of a cache."""


class NoSuchAttribute(NotFound):
    """An extended attribute that a topic or directory does not have."""


class AlreadyExists(DnpError):
    """The name is taken."""


class NotADirectory(DnpError):
    """A path goes through a topic."""


class IsADirectory(DnpError):
    """A directory stands where a topic was expected."""


class NotEmpty(DnpError):
    """A directory that still has entries cannot be removed or replaced."""


class TopicGone(DnpError):
    """The topic of an open handle was deleted; open the name again."""


class Outdated(DnpError):
    """What the caller knew of a name is not so any more: it is to look it up and ask once more."""


class Interrupted(DnpError):
    """A signal for the caller, or the end of the mount, ended a wait. Not raised for timeouts."""


class TooManyReaders(DnpError):
    """As many reads wait on this mount as it lets wait: more would leave no room for other requests."""


class TooManyFiles(DnpError):
    """As much is open on this mount as it keeps in memory: files, directories, or large ones of them."""


class ClusterError(DnpError):
    """The fault lies with etcd, the network, or what is stored there."""


class TimedOut(ClusterError):
    """etcd did not answer within the operation's time. A write may or may not have been applied once."""


class OutOfSpace(ClusterError):
    """etcd's space quota is reached (NOSPACE alarm), or the limit of topics and directories; reads go on."""


class UnknownOutcome(ClusterError):
    """It can no longer be found out whether a write was applied. It will be read at most once."""


class UnsupportedFormat(ClusterError):
    """The prefix holds data of a format version this release does not know."""


class CorruptData(ClusterError):
    """A stored record does not parse or breaks an invariant of the format."""


class SetupError(DnpError):
    """The machine lacks something: no etcd binary, a bad mount point, a wrong certificate."""
