"""A client of etcd for trio: the only part of dnpipefs that knows gRPC.

The names are the ones etcd3 users know: `get`, `put`, `transaction`, `watch`, `lease`. What is
different: every call has a deadline, failed writes say whether they may have been applied
(`Ambiguous`) or not (`Definite`), and a watch loses nothing when connections, servers or leaders go.
"""

import os

# gRPC looks at it when it is imported, by the modules below. Its failures are exceptions, not lines.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from dnpipefs.etcd.client import DEFAULT_TIMEOUT, Client, open_client
from dnpipefs.etcd.discovery import Discovery
from dnpipefs.etcd.endpoint import Tls
from dnpipefs.etcd.errors import (
    Ambiguous,
    AuthenticationFailed,
    Compacted,
    Definite,
    EtcdError,
    FutureRevision,
    HistoryLost,
    InvalidRequest,
    LeaseExists,
    LeaseNotFound,
    PermissionDenied,
    RequestTooLarge,
    SpaceExceeded,
    TlsFailed,
    TokenRejected,
    TooManyRequests,
    Unreachable,
)
from dnpipefs.etcd.health import Health, HealthGauge, MemberHealth, MemberState
from dnpipefs.etcd.model import (
    ALL_KEYS_END,
    Alarm,
    AlarmKind,
    DeleteResult,
    Hash,
    KeyValue,
    Lease,
    LeaseTimeToLive,
    Member,
    OpResult,
    PutResult,
    RangeResult,
    Server,
    Space,
    Status,
    TransactionResult,
    prefix_end,
)
from dnpipefs.etcd.pool import Credentials
from dnpipefs.etcd.transaction import (
    Compare,
    Op,
    Transaction,
    compare_create_revision,
    compare_mod_revision,
    compare_value,
    compare_version,
    delete,
    get,
    put,
    touch,
)
from dnpipefs.etcd.watch import WATCH_BACKLOG_LIMIT, Watch
from dnpipefs.etcd.watch_cursor import Event, EventKind, WatchBatch

__all__ = [
    "ALL_KEYS_END",
    "DEFAULT_TIMEOUT",
    "WATCH_BACKLOG_LIMIT",
    "Alarm",
    "AlarmKind",
    "Ambiguous",
    "AuthenticationFailed",
    "Client",
    "Compacted",
    "Compare",
    "Credentials",
    "Definite",
    "DeleteResult",
    "Discovery",
    "EtcdError",
    "Event",
    "EventKind",
    "FutureRevision",
    "Hash",
    "Health",
    "HealthGauge",
    "HistoryLost",
    "InvalidRequest",
    "KeyValue",
    "Lease",
    "LeaseExists",
    "LeaseNotFound",
    "LeaseTimeToLive",
    "Member",
    "MemberHealth",
    "MemberState",
    "Op",
    "OpResult",
    "PermissionDenied",
    "PutResult",
    "RangeResult",
    "RequestTooLarge",
    "Server",
    "Space",
    "SpaceExceeded",
    "Status",
    "Tls",
    "TlsFailed",
    "TokenRejected",
    "TooManyRequests",
    "Transaction",
    "TransactionResult",
    "Unreachable",
    "Watch",
    "WatchBatch",
    "compare_create_revision",
    "compare_mod_revision",
    "compare_value",
    "compare_version",
    "delete",
    "get",
    "open_client",
    "prefix_end",
    "put",
    "touch",
]
