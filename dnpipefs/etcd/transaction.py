"""The parts of a transaction, with etcd3's feel.

    await client.transaction(
        [compare_version(b"lock") == 0, compare_mod_revision(b"epoch") == epoch],
        [put(b"lock", b"mine", lease=lease.id)],
        [get(b"lock")],
    )

Everything here builds protobuf messages directly, since transactions are the hot path. Limits that
etcd checks and this module does not: 128 operations, 1.5 MiB, no key put twice in one transaction.
"""

from typing import Any

from dnpipefs.etcd.proto import rpc_pb2

Op = rpc_pb2.RequestOp
Compare = rpc_pb2.Compare


class Transaction:
    """A transaction filled in place, for those with many parts; `Client.commit` sends it.

    The messages that the functions below make are copied into the request, which for a hundred
    operations costs more than making them. There is no failure branch: who needs one reads after.
    """

    __slots__ = ("message",)

    def __init__(self) -> None:
        self.message = rpc_pb2.TxnRequest()

    def __len__(self) -> int:
        """How many operations there are so far."""
        return len(self.message.success)

    def compare_version(self, key: bytes, version: int) -> None:
        """Require that the key was put `version` times since it was created."""
        self.message.compare.add(target=Compare.VERSION, key=key, version=version)

    def compare_mod_revision(self, key: bytes, revision: int) -> None:
        """Require that `revision` last changed the key."""
        self.message.compare.add(target=Compare.MOD, key=key, mod_revision=revision)

    def compare_exists(self, key: bytes) -> None:
        """Require that the key exists."""
        self.message.compare.add(target=Compare.VERSION, result=Compare.GREATER, key=key, version=0)

    def get(self, key: bytes, *, keys_only: bool = False) -> None:
        """Read a key, as the operations before this one left it."""
        request = self.message.success.add().request_range
        request.key = key
        request.keys_only = keys_only

    def put(self, key: bytes, value: bytes, lease: int = 0) -> None:
        """Set a key, on a lease if one is given."""
        request = self.message.success.add().request_put
        request.key = key
        request.value = value
        if lease:
            request.lease = lease

    def delete(self, key: bytes) -> None:
        """Delete a key."""
        self.message.success.add().request_delete_range.key = key


class _Subject:
    """The left side of a comparison; comparing it with a value gives the message."""

    __slots__ = ("_field", "_key", "_range_end", "_target")

    def __init__(
        self, target: rpc_pb2.Compare.CompareTarget, field: str, key: bytes, range_end: bytes | None
    ) -> None:
        self._target = target
        self._field = field
        self._key = key
        self._range_end = range_end

    def _compare(self, result: rpc_pb2.Compare.CompareResult, value: object) -> Compare:
        operand: dict[str, Any] = {self._field: value}
        return Compare(
            result=result,
            target=self._target,
            key=self._key,
            range_end=self._range_end,
            **operand,
        )

    def __eq__(self, value: object) -> Compare:  # type: ignore[override]
        return self._compare(Compare.EQUAL, value)

    def __ne__(self, value: object) -> Compare:  # type: ignore[override]
        return self._compare(Compare.NOT_EQUAL, value)

    def __gt__(self, value: object) -> Compare:
        return self._compare(Compare.GREATER, value)

    def __lt__(self, value: object) -> Compare:
        return self._compare(Compare.LESS, value)

    __hash__ = None  # type: ignore[assignment]


def compare_version(key: bytes, range_end: bytes | None = None) -> _Subject:
    """Compare how often the key was put since it was created; 0 means it does not exist.

    With `range_end`, here and below, every existing key of the range must satisfy the comparison (a
    range without keys is compared as one key that does not exist, except by value: that fails).
    """
    return _Subject(Compare.VERSION, "version", key, range_end)


def compare_create_revision(key: bytes, range_end: bytes | None = None) -> _Subject:
    """Compare the revision that created the key; 0 means it does not exist."""
    return _Subject(Compare.CREATE, "create_revision", key, range_end)


def compare_mod_revision(key: bytes, range_end: bytes | None = None) -> _Subject:
    """Compare the revision that last changed the key; 0 means it does not exist."""
    return _Subject(Compare.MOD, "mod_revision", key, range_end)


def compare_value(key: bytes, range_end: bytes | None = None) -> _Subject:
    """Compare the value (bytes); never true for a key that does not exist."""
    return _Subject(Compare.VALUE, "value", key, range_end)


def touch(key: bytes) -> Op:
    """Give an existing key a new revision and leave its value as it is; etcd refuses if there is none."""
    operation = Op()
    request = operation.request_put
    request.key = key
    request.ignore_value = True
    return operation


def put(key: bytes, value: bytes, lease: int = 0) -> Op:
    """Set a key, on a lease if one is given."""
    operation = Op()
    request = operation.request_put  # filled in place: a message given to the constructor is copied
    request.key = key
    request.value = value
    if lease:
        request.lease = lease
    return operation


def get(
    key: bytes,
    range_end: bytes | None = None,
    *,
    revision: int = 0,
    limit: int = 0,
    keys_only: bool = False,
    count_only: bool = False,
) -> Op:
    """Read a key or the range `[key, range_end)`."""
    return Op(
        request_range=rpc_pb2.RangeRequest(
            key=key,
            range_end=range_end or b"",
            revision=revision,
            limit=limit,
            keys_only=keys_only,
            count_only=count_only,
        )
    )


def delete(key: bytes, range_end: bytes | None = None, *, prev_kv: bool = False) -> Op:
    """Delete a key or the range `[key, range_end)`."""
    return Op(
        request_delete_range=rpc_pb2.DeleteRangeRequest(key=key, range_end=range_end or b"", prev_kv=prev_kv)
    )
