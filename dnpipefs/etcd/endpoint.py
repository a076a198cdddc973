"""One address of the cluster and the gRPC channel to it.

Owns how an address is written, the channel's options, TLS and when its files are read, and the list of
etcd's methods. Does not know that there are other endpoints (`pool.py` does) nor when to send what.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import grpc
from google.protobuf.message import Message

from dnpipefs.errors import SetupError
from dnpipefs.etcd.bridge import Bridge, Metadata
from dnpipefs.etcd.errors import EtcdError
from dnpipefs.etcd.proto import rpc_pb2 as pb

logger: Final = logging.getLogger(__name__)

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)

KEEPALIVE_MS = 10_000  # below 5 s etcd answers with GOAWAY "too_many_pings"
KEEPALIVE_TIMEOUT_MS = 5_000
RECONNECT_MIN_MS = 100
RECONNECT_MAX_MS = 1_000
CONNECT_TIMEOUT_MS = 3_000

RETIRED_LIMIT = 4
"""Channels of earlier certificates that stay open: nothing is under way any more on those before."""

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", RECONNECT_MIN_MS),
    ("grpc.max_reconnect_backoff_ms", RECONNECT_MAX_MS),
    ("grpc.min_reconnect_backoff_ms", CONNECT_TIMEOUT_MS),  # what gRPC calls so bounds one attempt
    ("grpc.enable_retries", 0),  # a write goes out once, and NOT_SENT means what it says
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.use_local_subchannel_pool", 1),  # clients of one process do not share their back-off
    ("grpc.enable_http_proxy", 0),
)


@dataclass(frozen=True, slots=True)
class Method(Generic[Request, Response]):
    """A unary method: its path on the wire and the type of its answer."""

    path: str
    response: type[Response]

    @property
    def name(self) -> str:
        """What etcd calls it."""
        return self.path.rpartition("/")[2]


RANGE: Method[pb.RangeRequest, pb.RangeResponse] = Method("/etcdserverpb.KV/Range", pb.RangeResponse)
PUT: Method[pb.PutRequest, pb.PutResponse] = Method("/etcdserverpb.KV/Put", pb.PutResponse)
DELETE: Method[pb.DeleteRangeRequest, pb.DeleteRangeResponse] = Method(
    "/etcdserverpb.KV/DeleteRange", pb.DeleteRangeResponse
)
TXN: Method[pb.TxnRequest, pb.TxnResponse] = Method("/etcdserverpb.KV/Txn", pb.TxnResponse)
COMPACT: Method[pb.CompactionRequest, pb.CompactionResponse] = Method(
    "/etcdserverpb.KV/Compact", pb.CompactionResponse
)
LEASE_GRANT: Method[pb.LeaseGrantRequest, pb.LeaseGrantResponse] = Method(
    "/etcdserverpb.Lease/LeaseGrant", pb.LeaseGrantResponse
)
LEASE_REVOKE: Method[pb.LeaseRevokeRequest, pb.LeaseRevokeResponse] = Method(
    "/etcdserverpb.Lease/LeaseRevoke", pb.LeaseRevokeResponse
)
# A stream in etcd's service; one request, one answer and the end of both sides look the same on the wire.
LEASE_KEEP_ALIVE: Method[pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse] = Method(
    "/etcdserverpb.Lease/LeaseKeepAlive", pb.LeaseKeepAliveResponse
)
LEASE_TIME_TO_LIVE: Method[pb.LeaseTimeToLiveRequest, pb.LeaseTimeToLiveResponse] = Method(
    "/etcdserverpb.Lease/LeaseTimeToLive", pb.LeaseTimeToLiveResponse
)
AUTHENTICATE: Method[pb.AuthenticateRequest, pb.AuthenticateResponse] = Method(
    "/etcdserverpb.Auth/Authenticate", pb.AuthenticateResponse
)
STATUS: Method[pb.StatusRequest, pb.StatusResponse] = Method(
    "/etcdserverpb.Maintenance/Status", pb.StatusResponse
)
ALARM: Method[pb.AlarmRequest, pb.AlarmResponse] = Method("/etcdserverpb.Maintenance/Alarm", pb.AlarmResponse)
DEFRAGMENT: Method[pb.DefragmentRequest, pb.DefragmentResponse] = Method(
    "/etcdserverpb.Maintenance/Defragment", pb.DefragmentResponse
)
HASH: Method[pb.HashKVRequest, pb.HashKVResponse] = Method(
    "/etcdserverpb.Maintenance/HashKV", pb.HashKVResponse
)
MEMBERS: Method[pb.MemberListRequest, pb.MemberListResponse] = Method(
    "/etcdserverpb.Cluster/MemberList", pb.MemberListResponse
)
WATCH_PATH = "/etcdserverpb.Watch/Watch"


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files for TLS; `cacert` None trusts gRPC's built-in roots, `cert` and `key` go together."""

    cacert: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Read the files; `SetupError` when one is missing or no PEM, or only half of the pair is given."""
        if (self.cert is None) != (self.key is None):
            raise SetupError("a client certificate and its key go together: give both or neither")
        return grpc.ssl_channel_credentials(_read(self.cacert), _read(self.key), _read(self.cert))

    def state(self) -> tuple[tuple[int, int, int] | None, ...]:
        """Return what differs once a file was replaced or written to."""
        return tuple(_file_state(path) for path in (self.cacert, self.cert, self.key))


def _file_state(path: Path | None) -> tuple[int, int, int] | None:
    try:
        found = path.stat() if path is not None else None
    except OSError:  # it may be about to be replaced
        return None
    return (found.st_ino, found.st_size, found.st_mtime_ns) if found is not None else None


def _read(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SetupError(f"cannot read {path}: {error.strerror}") from error
    if b"-----BEGIN " not in content:  # of which gRPC says that it failed to create a handshaker
        raise SetupError(f"{path} is no PEM file: a certificate or key begins with -----BEGIN")
    return content


@dataclass(frozen=True, slots=True)
class Address:
    """An endpoint as gRPC wants it. `text` is what the user wrote, for messages."""

    text: str
    target: str
    tls: bool


def parse_address(text: str, *, tls: bool) -> Address:
    """Parse `http://host:port`, `https://host:port`, `host:port` (TLS if `tls`) or `unix:/path.sock`.

    Raises `SetupError` for anything else, and for `https` is happy without client files.
    """
    if text.startswith(("unix:/", "unix://")):
        return Address(text, "unix:/" + text.removeprefix("unix:").lstrip("/"), tls=False)
    scheme, found, rest = text.rpartition("://")
    if found and scheme not in ("http", "https"):
        raise SetupError(f"endpoint {text!r}: the scheme must be http, https or unix")
    rest = rest.rstrip("/")
    parts = re.fullmatch(r"(\[[0-9a-fA-F:.%\w]+\]|[^/:\s]+):([0-9]{1,5})", rest)
    if parts is None or not 0 < int(parts[2]) < 1 << 16:  # of which gRPC would take the last 16 bits
        raise SetupError(
            f"endpoint {text!r}: write host:port, http://host:port, https://host:port or unix:/path"
        )
    return Address(text, "dns:///" + rest, scheme == "https" or (not found and tls))


class Endpoint:
    """A channel, and whether the last thing heard of it was good.

    `healthy` is a hint for choosing, never a promise. `failure` is why it is not healthy.
    Raises `SetupError` for a certificate file that cannot be used.
    """

    def __init__(self, address: Address, tls: Tls | None, bridge: Bridge) -> None:
        self.address: Final = address
        self.bridge: Final = bridge
        self.healthy = False
        self.failure: EtcdError | None = None
        self._tls: Final = (tls or Tls()) if address.tls else None
        self._tls_state = self._tls.state() if self._tls is not None else ()
        self._retired: list[grpc.Channel] = []
        """Of earlier certificates: what is under way there may still be answered."""
        self.channel = self._connect()
        self._methods: dict[str, Any] = {}

    @property
    def name(self) -> str:
        """The address as the user wrote it."""
        return self.address.text

    async def call(
        self,
        method: Method[Request, Response],
        request: Request,
        timeout: float,
        metadata: Metadata | None = None,
    ) -> Response:
        """Send one request here and wait for the answer, at most `timeout` seconds."""
        stub = self._methods.get(method.path)
        if stub is None:
            stub = self._methods[method.path] = self.channel.unary_unary(
                method.path,
                request_serializer=_serialize,
                response_deserializer=method.response.FromString,
            )
        response: Response = await self.bridge.call(stub, request, timeout, metadata, self.name)
        return response

    def renew(self) -> None:
        """Connect anew from now on if certificate files were replaced since the channel was made.

        gRPC reads them once. A connection outlives its certificate, so this is for when it has failed.
        """
        if self._tls is None or (state := self._tls.state()) == self._tls_state:
            return
        self._tls_state = state
        try:
            channel = self._connect()
        except SetupError as error:  # one is about to be replaced, perhaps: then this comes again
            logger.warning("%s; going on with what was there", error)
            return
        logger.info("connecting to %s with the new certificate files", self.name)
        self._retired.append(self.channel)
        if len(self._retired) > RETIRED_LIMIT:
            self._retired.pop(0).close()
        self.channel, self._methods = channel, {}

    def close(self) -> None:
        """Close all channels."""
        for channel in (*self._retired, self.channel):
            channel.close()

    def _connect(self) -> grpc.Channel:
        if self._tls is None:
            return grpc.insecure_channel(self.address.target, CHANNEL_OPTIONS)
        return grpc.secure_channel(self.address.target, self._tls.channel_credentials(), CHANNEL_OPTIONS)

    def failed(self, error: EtcdError) -> None:
        """Note a failure: the pool probes before it uses this endpoint again."""
        self.healthy = False
        self.failure = error

    def works(self) -> None:
        """Note that the server there answers."""
        self.healthy = True
        self.failure = None


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def open_endpoints(texts: Sequence[str], tls: Tls | None, bridge: Bridge) -> list[Endpoint]:
    """Make a channel for each address; they connect when they are first used.

    Raises `SetupError` for an address or a certificate file that cannot be used.
    """
    if not texts:
        raise SetupError("no etcd endpoint given")
    addresses = [parse_address(text, tls=tls is not None) for text in dict.fromkeys(texts)]
    return [Endpoint(address, tls, bridge) for address in addresses]
