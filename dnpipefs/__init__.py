"""Distributed named pipes: every topic of the cluster is a file, on etcd.

The Python API::

    async with dnpipefs.connect() as dnp:
        await dnp.push("greetings", "hello")
        async for message in dnp.pull("greetings"):
            print(message.data)
"""

from dnpipefs.api import Config, Dnp, PullStart, Stat, connect
from dnpipefs.cluster import VERSION as __version__  # noqa: N811 - Python's name for it
from dnpipefs.consumer import Consumer, Job
from dnpipefs.core.config import Compression, Framing, TopicConfig, TopicFacts
from dnpipefs.errors import (
    AlreadyExists,
    ClusterError,
    CorruptData,
    DnpError,
    InvalidArgument,
    InvalidName,
    InvalidSetting,
    IsADirectory,
    MessageTooLarge,
    NameTooLong,
    NotADirectory,
    NotEmpty,
    NotFound,
    OutOfSpace,
    ReadOnlySetting,
    SetupError,
    TimedOut,
    TopicGone,
    UnknownOutcome,
    UnsupportedFormat,
    UsageError,
)
from dnpipefs.etcd import Credentials, EtcdError, Health, MemberHealth, MemberState, Tls
from dnpipefs.groups import GroupFacts, GroupState, Redriven
from dnpipefs.log.log import TopicStat
from dnpipefs.log.reader import Message
from dnpipefs.log.session import Host
from dnpipefs.overview import TopicOverview
from dnpipefs.writer import Writer

__all__ = [
    "AlreadyExists",
    "ClusterError",
    "Compression",
    "Config",
    "Consumer",
    "CorruptData",
    "Credentials",
    "Dnp",
    "DnpError",
    "EtcdError",
    "Framing",
    "GroupFacts",
    "GroupState",
    "Health",
    "Host",
    "InvalidArgument",
    "InvalidName",
    "InvalidSetting",
    "IsADirectory",
    "Job",
    "MemberHealth",
    "MemberState",
    "Message",
    "MessageTooLarge",
    "NameTooLong",
    "NotADirectory",
    "NotEmpty",
    "NotFound",
    "OutOfSpace",
    "PullStart",
    "ReadOnlySetting",
    "Redriven",
    "SetupError",
    "Stat",
    "TimedOut",
    "Tls",
    "TopicConfig",
    "TopicFacts",
    "TopicGone",
    "TopicOverview",
    "TopicStat",
    "UnknownOutcome",
    "UnsupportedFormat",
    "UsageError",
    "Writer",
    "__version__",
    "connect",
]
