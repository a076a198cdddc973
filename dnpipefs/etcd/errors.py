"""What can go wrong with etcd, sorted by the one question that matters: whether it may be applied.

This module owns the classes and the table that sorts gRPC's status codes and etcd's texts into
them. It knows nothing of channels, retries or topics. The rule for a text that is not in the
table: an answer that blames the request is `Definite`, everything else is `Ambiguous`.
"""

from dataclasses import dataclass

from grpc import StatusCode

from dnpipefs.errors import ClusterError, OutOfSpace


class EtcdError(ClusterError):
    """Base of every failure of a call to etcd."""


class Ambiguous(EtcdError):
    """The call failed and, if it was a write, may or may not have been applied (once)."""


class SpaceExceeded(Ambiguous, OutOfSpace):
    """etcd's quota is reached; the write that crosses the line is applied and still answered so."""


class Definite(EtcdError):
    """The call failed and certainly changed nothing."""


class Unreachable(Definite):
    """No endpoint could be connected in time; nothing of the request was sent.

    Not raised once a request may have left this process: that is `Ambiguous`.
    """


class TlsFailed(Unreachable):
    """The endpoints answer, but no TLS session comes about."""


class Compacted(Definite):
    """The revision asked for is gone; read the current state and go on from there.

    `compact_revision` is the oldest revision etcd still has, 0 where etcd does not tell (ranges).
    """

    def __init__(self, text: str, compact_revision: int = 0) -> None:
        super().__init__(text)
        self.compact_revision = compact_revision


class HistoryLost(Definite):
    """Etcd has gone back to an earlier revision: it was restored from a backup, say, or its disk was.

    Whatever this process knows of it is void. Raised by every call from then on; nothing of it was sent, but
    the call that found out had been answered.
    """


class FutureRevision(Definite):
    """The revision asked for does not exist yet."""


class LeaseNotFound(Definite):
    """The lease has expired or was revoked."""


class LeaseExists(Definite):
    """A lease with the chosen id exists already."""


class AuthenticationFailed(Definite):
    """User name or password (or client certificate) are wrong."""


class TokenRejected(Definite):
    """The session token is not valid any more; the client renews it by itself once per call."""


class PermissionDenied(Definite):
    """The etcd user has no role for these keys or this operation."""


class RequestTooLarge(Definite):
    """The request is above etcd's --max-request-bytes (1.5 MiB unless configured)."""


class TooManyRequests(Definite):
    """etcd is behind with applying and took nothing more; wait and ask again."""


class InvalidRequest(Definite):
    """etcd refuses the request as malformed or impossible in its present state."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: a status code, a piece of the details, and what they mean.

    `text` empty matches every text of that code. Rows are tried in order.
    """

    code: StatusCode
    text: str
    kind: type[EtcdError]
    advice: str


NOT_SENT = "failed to connect to all addresses"
"""gRPC core's text when a call was never given to a connection (and its retries are switched off)."""

_TLS_SIGNS = ("andshake failed", "Handshake read failed", "SSL_ERROR", "CERTIFICATE_VERIFY", "Hostname Verif")
_CONNECT = "check that etcd runs and listens there"
_RESOLVE = "check the host name of the endpoint"
_TLS = (
    "TLS failed: check that the CA file belongs to this cluster, that neither certificate has expired, "
    "that the host name is in the server's certificate, that the server speaks TLS, and the clock"
)
_AMBIGUOUS = "the request may or may not have been applied"
_LATER = "etcd is busy or without a leader; " + _AMBIGUOUS

TABLE = (
    # Connection errors that gRPC core reports itself, before a request has left.
    Row(StatusCode.UNAVAILABLE, NOT_SENT, Unreachable, _CONNECT),
    Row(StatusCode.UNAVAILABLE, "DNS resolution failed", Unreachable, _RESOLVE),
    Row(StatusCode.UNAVAILABLE, "errors resolving", Unreachable, _RESOLVE),  # of a newer gRPC
    # What etcd answers when it can no longer say.
    Row(StatusCode.UNAVAILABLE, "", Ambiguous, _LATER),
    Row(StatusCode.DEADLINE_EXCEEDED, "", Ambiguous, "no answer in time; " + _AMBIGUOUS),
    Row(StatusCode.CANCELLED, "", Ambiguous, _AMBIGUOUS),
    Row(StatusCode.UNKNOWN, "auth: permission denied", PermissionDenied, "this needs etcd's root role"),
    Row(StatusCode.UNKNOWN, "", Ambiguous, _AMBIGUOUS),
    Row(StatusCode.INTERNAL, "", Ambiguous, _AMBIGUOUS),
    Row(StatusCode.DATA_LOSS, "", Ambiguous, "etcd reports corruption: compare the members' hashes"),
    Row(
        StatusCode.RESOURCE_EXHAUSTED,
        "database space exceeded",
        SpaceExceeded,
        "etcd's quota is used up: remove data (truncate or rm topics); `dnpipefs doctor` says what else",
    ),
    Row(StatusCode.RESOURCE_EXHAUSTED, "too many requests", TooManyRequests, "wait and ask again"),
    Row(
        StatusCode.RESOURCE_EXHAUSTED,
        "grpc: received message larger than max",  # the server's limit: refused before it was read
        RequestTooLarge,
        "send less at once or raise etcd's --max-request-bytes",
    ),
    Row(StatusCode.RESOURCE_EXHAUSTED, "", Ambiguous, _AMBIGUOUS),
    # What etcd refuses before or instead of applying it.
    Row(
        StatusCode.OUT_OF_RANGE,
        "has been compacted",
        Compacted,
        "read the current state and go on from there",
    ),
    Row(StatusCode.OUT_OF_RANGE, "is a future revision", FutureRevision, "ask for a revision that exists"),
    Row(StatusCode.OUT_OF_RANGE, "", InvalidRequest, "the value is out of etcd's range"),
    Row(StatusCode.NOT_FOUND, "lease not found", LeaseNotFound, "the lease is gone: grant a new one"),
    Row(StatusCode.NOT_FOUND, "", InvalidRequest, "name something that exists"),
    Row(StatusCode.FAILED_PRECONDITION, "lease already exists", LeaseExists, "choose another lease id"),
    Row(StatusCode.FAILED_PRECONDITION, "not leader", Ambiguous, _LATER),
    Row(StatusCode.FAILED_PRECONDITION, "", InvalidRequest, "etcd's state does not allow this"),
    Row(StatusCode.UNAUTHENTICATED, "", TokenRejected, "authenticate again"),
    Row(StatusCode.INVALID_ARGUMENT, "revision of auth store is old", TokenRejected, "authenticate again"),
    Row(StatusCode.INVALID_ARGUMENT, "user name is empty", TokenRejected, "etcd wants a user and a password"),
    Row(
        StatusCode.INVALID_ARGUMENT,
        "authentication failed",
        AuthenticationFailed,
        "check the etcd user and password",
    ),
    Row(
        StatusCode.INVALID_ARGUMENT,
        "request is too large",
        RequestTooLarge,
        "send less at once or raise etcd's --max-request-bytes",
    ),
    Row(StatusCode.INVALID_ARGUMENT, "", InvalidRequest, "this is a fault of the caller"),
    Row(
        StatusCode.PERMISSION_DENIED,
        "",
        PermissionDenied,
        "give the etcd user a role with read and write permission for the prefix",
    ),
    Row(StatusCode.ALREADY_EXISTS, "", InvalidRequest, "it exists already"),
    Row(StatusCode.UNIMPLEMENTED, "", InvalidRequest, "is this endpoint an etcd of 3.4 or later?"),
)


def is_tls_failure(details: str) -> bool:
    """Tell whether gRPC's text for a failed connection names the TLS handshake."""
    return any(sign in details for sign in _TLS_SIGNS)


def classify(code: StatusCode, details: str | None, endpoint: str) -> EtcdError:
    """Turn a status that is not OK into the exception to raise, with one line that says what to do."""
    said = " ".join((details or "").split())
    for row in TABLE:
        if row.code is code and row.text in said:
            if row.kind is Unreachable and is_tls_failure(said):
                return TlsFailed(f"etcd at {endpoint}: {_TLS} ({said})")
            return row.kind(f"etcd at {endpoint}: {said or code.name}: {row.advice}")
    return Ambiguous(f"etcd at {endpoint}: {code.name}: {said}: {_AMBIGUOUS}")
