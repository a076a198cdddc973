"""Values that the client gives back, and the arithmetic of keys. Nothing here talks to anybody."""

import enum
from dataclasses import dataclass
from typing import NamedTuple

from dnpipefs.etcd.proto import kv_pb2, rpc_pb2

ALL_KEYS_END = b"\x00"
"""As `range_end`: every key from `key` on."""


class KeyValue(NamedTuple):
    """A key as etcd stores it. In a delete event only `key` and `mod_revision` are set."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int


class RangeResult(NamedTuple):
    """Keys in ascending order; `count` is how many there are, `more` whether `limit` cut them off."""

    kvs: list[KeyValue]
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody wants
    more: bool
    revision: int


class PutResult(NamedTuple):
    """A put that was applied at `revision`."""

    revision: int


class DeleteResult(NamedTuple):
    """How many keys a delete removed; `previous` is filled with `prev_kv=True` only."""

    deleted: int
    revision: int
    previous: list[KeyValue]


OpResult = RangeResult | PutResult | DeleteResult


class TransactionResult:
    """Which branch ran, at which revision, and one result for each of its operations."""

    __slots__ = ("_message", "revision", "succeeded")

    def __init__(self, message: rpc_pb2.TxnResponse) -> None:
        self.succeeded = message.succeeded
        self.revision = message.header.revision
        self._message = message

    @property
    def responses(self) -> list[OpResult]:
        """Results in the order of the operations; made when asked for, since most puts' never are."""
        return [_op_result(answer, self.revision) for answer in self._message.responses]


class Lease(NamedTuple):
    """A granted lease; `ttl` in seconds, as etcd chose it (never below its minimum)."""

    id: int
    ttl: int


class LeaseTimeToLive(NamedTuple):
    """What is left of a lease, in seconds, and the keys on it when they were asked for."""

    id: int
    ttl: int
    granted_ttl: int
    keys: list[bytes]


@dataclass(frozen=True, slots=True)
class Status:
    """One member's view of itself; sizes in bytes, `leader` is 0 while it knows none."""

    endpoint: str
    version: str
    db_size: int
    db_size_in_use: int
    db_size_quota: int
    """Its flag --quota-backend-bytes; 0 if it was not set or etcd is older than 3.6."""
    leader: int
    member_id: int
    revision: int
    raft_index: int
    raft_term: int
    is_learner: bool
    errors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Server:
    """The server that a client found: its endpoint as the user wrote it, and its release."""

    endpoint: str
    version: str
    """Such as ``3.5.30``; empty if it does not tell."""


@dataclass(frozen=True, slots=True)
class Space:
    """The size of a member's database and its quota, bytes."""

    used: int
    quota: int


@dataclass(frozen=True, slots=True)
class Member:
    """A member of the cluster."""

    id: int
    name: str
    peer_urls: tuple[str, ...]
    client_urls: tuple[str, ...]
    is_learner: bool


class AlarmKind(enum.Enum):
    """Alarms etcd raises."""

    NOSPACE = rpc_pb2.NOSPACE
    CORRUPT = rpc_pb2.CORRUPT


@dataclass(frozen=True, slots=True)
class Alarm:
    """An alarm and the member that raised it."""

    member_id: int
    kind: AlarmKind


class Hash(NamedTuple):
    """Checksum of a member's keys up to `revision`; comparable where `compact_revision` is equal."""

    hash: int
    compact_revision: int
    revision: int


def prefix_end(prefix: bytes) -> bytes:
    """Return the `range_end` that makes a range of all keys that begin with `prefix`.

    The empty prefix (and one of 0xff bytes only) has no upper bound: `ALL_KEYS_END`.
    """
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes((stem[-1] + 1,)) if stem else ALL_KEYS_END


def key_value(kv: kv_pb2.KeyValue) -> KeyValue:
    """Copy a key out of its protobuf message."""
    return KeyValue(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)


def range_result(response: rpc_pb2.RangeResponse, revision: int) -> RangeResult:
    """Copy a range response; inside a transaction the revision is that of the transaction."""
    # As `key_value`, without two calls for each of what may be hundred thousands.
    make = tuple.__new__
    kvs = [
        make(KeyValue, (kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease))
        for kv in response.kvs
    ]
    return RangeResult(kvs, response.count, response.more, revision)


def delete_result(response: rpc_pb2.DeleteRangeResponse, revision: int) -> DeleteResult:
    """Copy a delete response."""
    return DeleteResult(response.deleted, revision, [key_value(kv) for kv in response.prev_kvs])


def _op_result(answer: rpc_pb2.ResponseOp, revision: int) -> OpResult:
    match answer.WhichOneof("response"):
        case "response_put":
            return PutResult(revision)
        case "response_range":
            return range_result(answer.response_range, revision)
        case "response_delete_range":
            return delete_result(answer.response_delete_range, revision)
        case other:
            raise AssertionError(f"etcd answered an operation nobody sent: {other}")
