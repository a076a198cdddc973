"""The table that says whether a failed write may have been applied, row by row."""

import pytest
from grpc import StatusCode

from dnpipefs.errors import OutOfSpace
from dnpipefs.etcd.errors import (
    TABLE,
    Ambiguous,
    AuthenticationFailed,
    Compacted,
    Definite,
    EtcdError,
    FutureRevision,
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
    classify,
)

# Details as etcd 3.4 to 3.6 and gRPC core write them.
SAID: list[tuple[StatusCode, str, type[EtcdError]]] = [
    (
        StatusCode.UNAVAILABLE,
        "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Connection refused",
        Unreachable,
    ),
    (StatusCode.UNAVAILABLE, "DNS resolution failed for nowhere.invalid:2379: NXDOMAIN", Unreachable),
    (
        StatusCode.UNAVAILABLE,
        "errors resolving nowhere.invalid:2379: [address lookup failed: Domain name not found]",
        Unreachable,
    ),
    (
        StatusCode.UNAVAILABLE,
        "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Ssl handshake failed "
        "(TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: error:1000007d:SSL routines:CERTIFICATE_VERIFY_FAILED",
        TlsFailed,
    ),
    (
        StatusCode.UNAVAILABLE,
        "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Custom verification "
        "check failed with error: UNAUTHENTICATED: Hostname Verification Check failed.",
        TlsFailed,
    ),
    (StatusCode.UNAVAILABLE, "etcdserver: leader changed", Ambiguous),
    (StatusCode.UNAVAILABLE, "etcdserver: no leader", Ambiguous),
    (StatusCode.UNAVAILABLE, "etcdserver: request timed out", Ambiguous),
    (StatusCode.UNAVAILABLE, "Socket closed", Ambiguous),
    (StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", Ambiguous),
    (StatusCode.CANCELLED, "context canceled", Ambiguous),
    (StatusCode.UNKNOWN, "auth: permission denied", PermissionDenied),
    (StatusCode.UNKNOWN, "context deadline exceeded", Ambiguous),
    (StatusCode.INTERNAL, "stream terminated by RST_STREAM", Ambiguous),
    (StatusCode.DATA_LOSS, "etcdserver: corrupt cluster", Ambiguous),
    (StatusCode.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", SpaceExceeded),
    (StatusCode.RESOURCE_EXHAUSTED, "etcdserver: too many requests", TooManyRequests),
    (StatusCode.RESOURCE_EXHAUSTED, "grpc: received message larger than max (9 vs. 2)", RequestTooLarge),
    (StatusCode.RESOURCE_EXHAUSTED, "grpc: trying to send message larger than max (9 vs. 2)", Ambiguous),
    (StatusCode.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted", Compacted),
    (StatusCode.OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision", FutureRevision),
    (StatusCode.OUT_OF_RANGE, "etcdserver: too large lease TTL", InvalidRequest),
    (StatusCode.NOT_FOUND, "etcdserver: requested lease not found", LeaseNotFound),
    (StatusCode.NOT_FOUND, "etcdserver: member not found", InvalidRequest),
    (StatusCode.FAILED_PRECONDITION, "etcdserver: lease already exists", LeaseExists),
    (StatusCode.FAILED_PRECONDITION, "etcdserver: not leader", Ambiguous),
    (StatusCode.FAILED_PRECONDITION, "etcdserver: authentication is not enabled", InvalidRequest),
    (StatusCode.UNAUTHENTICATED, "etcdserver: invalid auth token", TokenRejected),
    (StatusCode.INVALID_ARGUMENT, "etcdserver: revision of auth store is old", TokenRejected),
    (StatusCode.INVALID_ARGUMENT, "etcdserver: user name is empty", TokenRejected),
    (
        StatusCode.INVALID_ARGUMENT,
        "etcdserver: authentication failed, invalid user ID or password",
        AuthenticationFailed,
    ),
    (StatusCode.INVALID_ARGUMENT, "etcdserver: request is too large", RequestTooLarge),
    (StatusCode.INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request", InvalidRequest),
    (StatusCode.PERMISSION_DENIED, "etcdserver: permission denied", PermissionDenied),
    (StatusCode.ALREADY_EXISTS, "whatever", InvalidRequest),
    (StatusCode.UNIMPLEMENTED, "unknown service etcdserverpb.KV", InvalidRequest),
    (StatusCode.ABORTED, "a code etcd does not use", Ambiguous),
]


@pytest.mark.parametrize(("code", "details", "kind"), SAID)
def test_what_is_said_becomes(code: StatusCode, details: str, kind: type[EtcdError]) -> None:
    error = classify(code, details, "host:2379")
    assert type(error) is kind
    assert "host:2379" in str(error)
    assert "\n" not in str(error)


def test_every_row_of_the_table_is_reached() -> None:
    reached = {
        next((i for i, row in enumerate(TABLE) if row.code is code and row.text in details), None)
        for code, details, _ in SAID
    }
    assert set(range(len(TABLE))) <= reached


def test_nothing_is_ambiguous_and_definite() -> None:
    assert not any(issubclass(row.kind, Ambiguous) and issubclass(row.kind, Definite) for row in TABLE)


def test_no_details_are_no_reason_to_be_sure() -> None:
    assert isinstance(classify(StatusCode.UNAVAILABLE, None, "x"), Ambiguous)


def test_space_is_known_to_who_does_not_know_etcd() -> None:
    assert issubclass(SpaceExceeded, OutOfSpace)


def test_tls_says_what_to_check() -> None:
    details = next(details for _, details, kind in SAID if kind is TlsFailed)
    text = str(classify(StatusCode.UNAVAILABLE, details, "x"))
    assert "TLS failed" in text
    assert "expired" in text
