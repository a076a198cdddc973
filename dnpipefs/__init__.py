"""Distributed named pipes: every topic of the cluster is a file, on etcd.

The Python API::

    async with dnpipefs.connect() as dnp:
        await dnp.push("greetings", "hello")
        async for message in dnp.pull("greetings"):
            print(message.data)
"""

from dnpipefs.api import MAX_MESSAGE, Dnp, PullStart, Stat, Writer, connect
from dnpipefs.cluster import VERSION as __version__  # noqa: N811 - Python's name for it
from dnpipefs.errors import (
    AlreadyExists,
    ClusterError,
    CorruptData,
    DnpError,
    InvalidArgument,
    InvalidName,
    IsADirectory,
    MessageTooLarge,
    NameTooLong,
    NotADirectory,
    NotEmpty,
    NotFound,
    OutOfSpace,
    SetupError,
    TimedOut,
    TopicGone,
    UnknownOutcome,
    UnsupportedFormat,
    UsageError,
)
from dnpipefs.etcd import Credentials, EtcdError, Tls
from dnpipefs.log.reader import Message

__all__ = [
    "MAX_MESSAGE",
    "AlreadyExists",
    "ClusterError",
    "CorruptData",
    "Credentials",
    "Dnp",
    "DnpError",
    "EtcdError",
    "InvalidArgument",
    "InvalidName",
    "IsADirectory",
    "Message",
    "MessageTooLarge",
    "NameTooLong",
    "NotADirectory",
    "NotEmpty",
    "NotFound",
    "OutOfSpace",
    "PullStart",
    "SetupError",
    "Stat",
    "TimedOut",
    "Tls",
    "TopicGone",
    "UnknownOutcome",
    "UnsupportedFormat",
    "UsageError",
    "Writer",
    "__version__",
    "connect",
]
