"""Watches: every watcher of a client on one stream, kept going through failures.

Owns the watchers, their ids, their bounded backlogs and the decision when to create them anew. What a
watcher has had is `watch_cursor.py`'s knowledge; the stream's threads are `watch_stream.py`'s.

Which start revision etcd is asked for: compaction at revision C forgets the deletions at C itself,
and etcd still accepts a watcher that starts at C, which then misses them without a word. So where a
watcher starts in the past, etcd is asked for one revision *earlier*: it then says `compacted`
whenever something may be missing, and the cursor drops what is too old. A watcher that starts in the
future needs no such care, and is served at once instead of at etcd's next catch-up (100 ms).
"""

import itertools
import logging
from collections import deque
from types import TracebackType

import trio

from dnpipefs.etcd.bridge import Metadata
from dnpipefs.etcd.endpoint import RANGE, Endpoint
from dnpipefs.etcd.errors import (
    Ambiguous,
    AuthenticationFailed,
    Compacted,
    Definite,
    EtcdError,
    HistoryLost,
    InvalidRequest,
    PermissionDenied,
    TokenRejected,
    Unreachable,
)
from dnpipefs.etcd.pool import Pool
from dnpipefs.etcd.proto import rpc_pb2 as pb
from dnpipefs.etcd.watch_cursor import Cursor, WatchBatch
from dnpipefs.etcd.watch_stream import WatchStream

log = logging.getLogger(__name__)

WATCH_BACKLOG_LIMIT = 64 * 2**20
"""Bytes of events a watcher holds for a slow consumer; past it etcd is asked to stop until it caught up."""
RECONNECT_PAUSE = 0.1
"""Seconds before another stream is tried after one that brought nothing."""
TOKEN_SIGNS = ("invalid auth token", "revision of auth store is old", "user name is empty")


class Watch:
    """One watcher: `async with` it, then `async for` batches. One task at a time may iterate.

    Raises `Compacted` when events may be missing (read the state anew; the earliest useful start
    is `compact_revision + 1`), `PermissionDenied` or `AuthenticationFailed` when etcd refuses;
    everything that came before is delivered first. A lost connection is not an error here. Of an etcd that
    has gone back (`HistoryLost`) nothing more comes.
    """

    def __init__(self, hub: "WatchHub", key: bytes, range_end: bytes | None, start_revision: int) -> None:
        self.key = key
        self.range_end = range_end
        self.cursor = Cursor(start_revision)
        self.watch_id = 0
        self.asked = 0
        self.paused = False
        self._hub = hub
        self._batches: deque[WatchBatch] = deque()
        self._backlog = 0
        self._failure: Exception | None = None
        self._news = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> "Watch":
        self._hub.add(self)
        try:
            await trio.lowlevel.checkpoint()
            await self._until_created()
        except BaseException:  # cancelled, too: without a body there is no exit
            self._hub.remove(self)
            raise
        return self

    async def _until_created(self) -> None:
        while self.cursor.next_revision == 0:
            if self._failure is not None:
                raise self._failure
            await self._news.park()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._hub.remove(self)

    def __aiter__(self) -> "Watch":
        return self

    async def __anext__(self) -> WatchBatch:
        """Wait for events; what has gathered meanwhile comes as one batch."""
        if self._batches:
            await trio.lowlevel.checkpoint()
        while not self._batches:
            if self._failure is not None:
                raise self._failure
            await self._news.park()
        batches = self._batches
        batch = batches.popleft()
        if batches:
            events = itertools.chain(batch.events, *(other.events for other in batches))
            batch = WatchBatch(batches[-1].revision, tuple(events))
            batches.clear()
        self._backlog = 0
        if self.paused:
            self.paused = False
            self._hub.create(self)
        return batch

    def push(self, batch: WatchBatch) -> bool:
        """Take a batch for the consumer; False when the backlog is full now."""
        self._batches.append(batch)
        self._backlog += batch.size
        self._news.unpark()
        return self._backlog < WATCH_BACKLOG_LIMIT

    def created(self, header_revision: int) -> None:
        """Etcd has created the watcher."""
        self.cursor.created(header_revision)
        self._news.unpark_all()

    def fail(self, error: Exception) -> None:
        """End the iteration with `error` after what is already here."""
        self._failure = self._failure or error
        self._news.unpark_all()


class WatchHub:
    """All watchers of a client. Everything here runs in the trio thread.

    The task that keeps the stream is a system task, so that `open_client` needs no nursery, which
    would wrap every exception of its body in a group. It ends with `aclose`, and whatever goes wrong
    in it is raised in the watchers.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._watches: set[Watch] = set()
        self._by_id: dict[int, Watch] = {}
        self._ids = itertools.count(1)
        self._creating: deque[int] = deque()
        self._stream: WatchStream | None = None
        self._scope: trio.CancelScope | None = None
        self._finished = trio.Event()
        self._accepted = False
        self._closed = False

    def add(self, watch: Watch) -> None:
        """Begin to watch."""
        if self._closed:
            raise trio.ClosedResourceError("this etcd client is closed")
        self._watches.add(watch)
        if self._scope is None:
            self._scope = trio.CancelScope()
            self._finished = trio.Event()
            trio.lowlevel.spawn_system_task(self._run, self._scope, name="etcd watch stream")
        self.create(watch, fresh=True)

    def remove(self, watch: Watch) -> None:
        """Stop watching; nothing comes after this."""
        self._watches.discard(watch)
        self._forget(watch)

    def create(self, watch: Watch, *, fresh: bool = False) -> None:
        """Ask etcd for a watcher; `fresh` when the start revision is probably in the future."""
        if watch not in self._watches:
            return
        watch.watch_id = next(self._ids)
        self._by_id[watch.watch_id] = watch
        if self._stream is not None:
            self._send_create(self._stream, watch, fresh=fresh)

    async def aclose(self) -> None:
        """End the stream and all watches."""
        self._closed = True
        if self._scope is not None:
            self._scope.cancel()
            await self._finished.wait()
        self._fail_all(trio.ClosedResourceError("this etcd client is closed"))

    def _send_create(self, stream: WatchStream, watch: Watch, *, fresh: bool) -> None:
        start = watch.cursor.next_revision
        watch.asked = start if fresh or start <= 1 else start - 1
        self._creating.append(watch.watch_id)
        stream.send(
            pb.WatchRequest(
                create_request=pb.WatchCreateRequest(
                    key=watch.key,
                    range_end=watch.range_end or b"",
                    start_revision=watch.asked,
                    watch_id=watch.watch_id,
                    progress_notify=True,
                    fragment=True,
                )
            )
        )

    def _forget(self, watch: Watch) -> None:
        """Drop the watcher's id here and at the server."""
        watch.cursor.interrupted()
        if self._by_id.pop(watch.watch_id, None) is not None and self._stream is not None:
            cancel = pb.WatchCancelRequest(watch_id=watch.watch_id)
            self._stream.send(pb.WatchRequest(cancel_request=cancel))

    def _fail_all(self, error: Exception) -> None:
        for watch in list(self._watches):
            watch.fail(error)
            self.remove(watch)

    async def _run(self, scope: trio.CancelScope) -> None:
        try:
            with scope:
                try:
                    await self._keep_stream()
                except HistoryLost:  # whoever keeps the client is told, once: see `Client.end_if_lost`
                    await trio.sleep_forever()
        except Exception as error:  # a fault of ours as well: every watcher must hear of it
            if not isinstance(error, EtcdError):
                log.exception("the etcd watch stream broke; every watch of this client ends with the error")
            self._fail_all(error)
        finally:
            self._scope = None
            self._finished.set()

    async def _keep_stream(self) -> None:
        renewed = False  # the token, since etcd last accepted one
        followed = False
        while True:
            endpoint = await self._pool.wait_ready()
            metadata: Metadata = ()
            try:
                if followed and self._watches:
                    await self._look_whether_lost(next(iter(self._watches)))
                if self._pool.tokens is not None:
                    metadata = await self._pool.tokens.get(endpoint, self._pool.timeout)
            except (Ambiguous, Unreachable) as failure:
                endpoint.failed(failure)
                await trio.sleep(RECONNECT_PAUSE)
                continue
            if not endpoint.healthy:  # left meanwhile
                continue
            followed = True
            stream, error = await self._follow(endpoint, metadata)
            log.info("etcd watch stream to %s ended: %s", endpoint.name, error)
            if isinstance(error, TokenRejected):
                if self._pool.tokens is None or (renewed and not self._accepted):
                    raise AuthenticationFailed(str(error)) from error
                renewed = True
                self._pool.tokens.reject(metadata)
            elif isinstance(error, Ambiguous | Unreachable):
                renewed = renewed and not self._accepted
                endpoint.failed(error)
            else:
                raise error
            if not stream.received:
                await trio.sleep(RECONNECT_PAUSE)

    async def _look_whether_lost(self, watch: Watch) -> None:
        """Read a key: watchers that went on where etcd has not come to would miss what is before.

        One that is watched, which the user may read.
        """
        request = pb.RangeRequest(key=watch.key, keys_only=True)
        try:
            await self._pool.call(RANGE, request, None, once=False, linear=True)
        except (HistoryLost, Unreachable):
            raise
        except Definite as error:  # the watcher will be told, if it is refused as well
            log.info("etcd is not asked whether it has gone back: %s", error)

    async def _follow(self, endpoint: Endpoint, metadata: Metadata) -> tuple[WatchStream, EtcdError]:
        """Keep one stream until it ends; say why it did."""
        stream = self._stream = WatchStream(endpoint, metadata, self._receive)
        self._accepted = False
        self._creating.clear()
        try:
            for watch in self._by_id.values():
                self._send_create(stream, watch, fresh=watch.asked == 0)
            error = await stream.run(self._pool.left, ask_for_progress=len(self._pool.endpoints) > 1)
        finally:
            self._stream = None
            stream.close()
            for watch in self._watches:
                watch.cursor.interrupted()
        return stream, error

    def _receive(self, response: pb.WatchResponse) -> None:
        if response.created:
            self._created(self._creating.popleft(), response)
        elif response.canceled:
            watch = self._by_id.pop(response.watch_id, None)
            if watch is not None:
                self._cancelled(watch, response)
        else:
            watch = self._by_id.get(response.watch_id)
            if watch is None:  # cancelled meanwhile, or a sign of life for the stream as a whole
                return
            if not response.events:
                if not response.fragment:
                    watch.cursor.progressed(response.header.revision)
                return
            batch = watch.cursor.accept(response.events, fragment=response.fragment)
            if batch is not None and not watch.push(batch):
                watch.paused = True
                self._forget(watch)

    def _created(self, watch_id: int, response: pb.WatchResponse) -> None:
        """Handle the answer to a create request; etcd gives them in the order of the requests.

        (The id in a refusal is -1 before etcd 3.5, so the order is what counts.)
        """
        watch = self._by_id.get(watch_id)
        if response.canceled:
            if watch is not None:
                del self._by_id[watch_id]
                self._refused(watch, response.cancel_reason)
            return
        self._accepted = True
        if watch is None:
            return
        revision = response.header.revision
        start = watch.cursor.next_revision
        if 1 < start == watch.asked <= revision:  # not in the future after all: see the module's text
            self._forget(watch)
            self.create(watch)
        else:
            watch.created(revision)

    def _cancelled(self, watch: Watch, response: pb.WatchResponse) -> None:
        """Handle the end of a watcher that nobody here asked for."""
        if response.compact_revision:
            oldest = response.compact_revision
            text = (
                f"events from revision {watch.cursor.next_revision} on may be gone, compacted to {oldest}: "
                "read the current state and watch from there"
            )
            self._end(watch, Compacted(text, oldest))
        else:
            self._refused(watch, response.cancel_reason)

    def _refused(self, watch: Watch, reason: str) -> None:
        """Handle a watcher that etcd does not want, by its reason (there is no status code)."""
        if any(sign in reason for sign in TOKEN_SIGNS):
            self.create(watch)  # on the next stream, which gets a new token
            if self._stream is not None:
                self._stream.close(
                    TokenRejected(f"etcd refuses the watch: {reason}: check user and password")
                )
        elif "permission denied" in reason:
            text = f"etcd refuses the watch: {reason}: give the etcd user a role that may read these keys"
            self._end(watch, PermissionDenied(text))
        else:
            self._end(watch, InvalidRequest(f"etcd ended the watch: {reason or 'no reason given'}"))

    def _end(self, watch: Watch, error: EtcdError) -> None:
        watch.fail(error)
        self.remove(watch)
