"""One gRPC watch stream: its threads, its bounds, its signs of life.

Owns the way of a response from gRPC's thread into trio, and nothing of what it means. gRPC's reading
side is an iterator that blocks, so a thread turns the crank; but the messages do not take the way
through that thread. They are handed over where gRPC decodes them, which saves a switch of threads
between etcd and the waiting task. The crank stands still while trio is behind (`INBOX_LIMIT`), and
HTTP/2's flow control then holds etcd back.
"""

import queue
import threading
from collections.abc import Awaitable, Callable

import grpc
import trio

from dnpipefs.etcd.bridge import Inbox, Metadata
from dnpipefs.etcd.endpoint import WATCH_PATH, Endpoint
from dnpipefs.etcd.errors import Ambiguous, EtcdError, classify
from dnpipefs.etcd.proto import rpc_pb2 as pb

INBOX_LIMIT = 16 * 2**20
"""Bytes received and not yet looked at by trio before the stream stops reading."""
SILENCE_LIMIT = 10.0
"""Seconds without any message, in spite of progress requests, after which a stream counts as dead."""
PROGRESS_INTERVAL = 3.0
"""Seconds of silence before etcd is asked for a sign of life (with several endpoints only)."""

REQUIRE_LEADER: Metadata = (("hasleader", "true"),)
"""Makes a member that lost its leader end the stream, instead of going on without news."""


class WatchStream:
    """A stream to `endpoint`; `receive` gets every response in order, in the trio thread."""

    def __init__(
        self, endpoint: Endpoint, metadata: Metadata, receive: Callable[[pb.WatchResponse], None]
    ) -> None:
        self._endpoint = endpoint
        self._receive = receive
        self._inbox: Inbox[tuple[pb.WatchResponse, int]] = Inbox(self._take)
        self._requests: queue.SimpleQueue[pb.WatchRequest | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self.unread = 0
        self._room = threading.Event()
        self._closed = False
        self._failure: EtcdError | None = None
        self.received = 0
        self._call = endpoint.channel.stream_stream(
            WATCH_PATH,
            request_serializer=pb.WatchRequest.SerializeToString,
            response_deserializer=self._arrived,
        )(iter(self._requests.get, None), metadata=metadata + REQUIRE_LEADER)

    def send(self, request: pb.WatchRequest) -> None:
        """Queue a request; never blocks."""
        self._requests.put(request)

    def close(self, failure: EtcdError | None = None) -> None:
        """End the stream; nothing is received after this. `run` returns `failure` if it is given."""
        self._closed = True
        self._failure = self._failure or failure
        self._requests.put(None)
        self._room.set()
        self._call.cancel()

    async def run(self, left: Callable[[Endpoint], Awaitable[None]], *, ask_for_progress: bool) -> EtcdError:
        """Read until the stream ends, and return why it did.

        It ends when calls have *left* the endpoint, too: what they bring is of a time that a stream to a
        server that hangs comes to only once SILENCE_LIMIT is over.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._end_when_left, left)
            if ask_for_progress:
                nursery.start_soon(self._stay_alive)
            error = await trio.to_thread.run_sync(
                self._crank, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1)
            )
            nursery.cancel_scope.cancel()
        return self._failure or error

    async def _end_when_left(self, left: Callable[[Endpoint], Awaitable[None]]) -> None:
        await left(self._endpoint)
        self.close(Ambiguous(f"etcd at {self._endpoint.name} does not answer, calls go elsewhere"))

    async def _stay_alive(self) -> None:
        """End the stream when nothing comes any more, even if the connection looks well.

        Asked again and again: etcd (3.4.25, 3.5.8 and later) does not answer while one of the
        watchers is catching up.
        """
        heard = trio.current_time()
        while trio.current_time() - heard < SILENCE_LIMIT:
            before = self.received
            await trio.sleep(PROGRESS_INTERVAL)
            if self.received != before:
                heard = trio.current_time()
            else:
                self.send(pb.WatchRequest(progress_request=pb.WatchProgressRequest()))
        self.close(Ambiguous(f"etcd at {self._endpoint.name}: the watch stream has been silent for too long"))

    def _arrived(self, data: bytes) -> bool:
        """Decode a message; on gRPC's thread, which must not be kept waiting."""
        response = pb.WatchResponse.FromString(data)
        with self._lock:
            self.unread += len(data)
        self._inbox.post((response, len(data)))
        return True

    def _take(self, item: tuple[pb.WatchResponse, int]) -> None:
        """Pass a message on; in the trio thread."""
        response, size = item
        with self._lock:
            self.unread -= size
        self._room.set()
        self.received += 1
        if self._closed:
            return
        try:
            self._receive(response)
        except Exception as error:  # trio would die of it; the watchers are told instead
            failure = EtcdError(f"a watch response could not be handled: {error!r}")
            failure.__cause__ = error
            self.close(failure)

    def _crank(self) -> EtcdError:
        """Ask gRPC for message after message; on a thread of its own."""
        try:
            for _ in self._call:
                while self.unread > INBOX_LIMIT and not self._closed:
                    self._room.clear()
                    if self.unread > INBOX_LIMIT and not self._closed:
                        self._room.wait()
        except grpc.RpcError:
            pass
        code = self._call.code()
        if code is None or code is grpc.StatusCode.OK:
            return Ambiguous(f"etcd at {self._endpoint.name} ended the watch stream")
        return classify(code, self._call.details(), self._endpoint.name)
