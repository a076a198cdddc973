"""The clients of the workload: plain programs on files of a mount, each a process of its own.

A client does one kind of thing in an endless loop, with plain blocking calls, writes each call to its
history, and goes on after errors as a supervised program would: it opens the name again. So a call that
hangs, or a mount that died, holds up one client. It ends when its standard input does.

Names of topics say what may happen to them: `kept…` nothing; `reset…` resets; those that churners make,
everything.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from tests.cluster.history import (
    Acknowledged,
    Call,
    Create,
    Delete,
    Failed,
    GroupOpen,
    Hear,
    HistoryWriter,
    Killed,
    Listing,
    Open,
    Read,
    Received,
    Rename,
    Subscribe,
    Truncate,
    Write,
)
from tests.support.messages import message

READ_BYTES = 1 << 19
"""Small enough that the kernel hands one read(2) over in one piece, so that it sees one generation."""
BULK_BYTES = 1 << 19
"""As for reads: a write in pieces could be short, and leave a part of a line behind."""
RETRY_S = 0.1
"""After an error; what is down does not come up faster by asking."""
LIST_EVERY_S = 1.0
SESSION_CALLS = 10_000
"""More than a worker of a group makes calls."""
GROUP = "workers"


@dataclass(frozen=True)
class Plan:
    """What one client is to do."""

    role: str
    client: str
    mount: str
    directory: str
    history: str
    seed: int
    names: tuple[str, ...]
    """Topics that are never deleted or renamed."""
    rate: float
    """Operations a second, about."""
    group: str = GROUP
    round: int = 0

    def encode(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def decode(text: str) -> Plan:
        values = json.loads(text)
        values["names"] = tuple(values["names"])
        return Plan(**values)


class Client:
    """What all clients have."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.random = Random(f"{plan.seed} {plan.client}")
        self.log = HistoryWriter(Path(plan.history), plan.client, plan.mount)
        self.directory = Path(plan.directory)
        self.stopping = False
        self._handles = 0
        self._listed_at = 0.0
        self._marks: list[int] = []
        self._names = plan.names

    def run(self) -> None:
        """Do what the plan says until told to stop."""
        while not self.stopping:
            if not self.step():
                self.pause(RETRY_S)
            self.pause(self.random.uniform(0, 2 / self.plan.rate))

    def step(self) -> bool:
        """Do one thing; False after an error."""
        raise NotImplementedError

    def pause(self, seconds: float) -> None:
        """Wait, unless told to stop."""
        if not self.stopping and select.select([0], [], [], seconds)[0]:
            self.stopping = True

    def new_handle(self) -> int:
        self._handles += 1
        return self._handles

    def attempt(self, kind: type[Call], action: Callable[[], dict[str, Any]], **values: Any) -> bool:
        """Make a call and record it; `action` returns what else there is to record."""
        began = time.monotonic_ns()
        number = self.log.begin(kind, at=began, **values)
        self._marks = []
        more: dict[str, Any] = {}
        failure = 0
        try:
            more = action()
        except OSError as error:
            failure = error.errno or errno.EIO
        ended = time.monotonic_ns()
        if self._marks:
            more["slowest"] = slowest(began, *self._marks, ended)
        self.log.end(number, failure, at=ended, **more)
        return not failure

    def mark(self) -> None:
        """Say that one of several system calls of an attempt has ended."""
        self._marks.append(time.monotonic_ns())

    def names(self) -> tuple[str, ...]:
        """Return the names of topics, as listed lately."""
        if time.monotonic() > self._listed_at + LIST_EVERY_S:
            self.attempt(Listing, self._list)
        return self._names

    def _list(self) -> dict[str, Any]:
        names = tuple(os.listdir(self.directory))
        self._listed_at = time.monotonic()
        self._names = names or self.plan.names
        return {"names": names}

    @contextmanager
    def opened(self, name: str, flags: int) -> Iterator[Opened | None]:
        """Open a topic for the time of the block; None if that failed."""
        opened = self.open(name, flags)
        try:
            yield opened
        finally:
            if opened is not None:
                self.close(opened)

    def open(self, name: str, flags: int) -> Opened | None:
        """Open a topic and look what it is; None if that failed."""
        found: list[Opened] = []
        handle = self.new_handle()

        def action() -> dict[str, Any]:
            fd = os.open(self.directory / name, flags | os.O_CLOEXEC)
            self.mark()
            try:
                status = os.fstat(fd)
            except OSError:
                close(fd)
                raise
            found.append(Opened(fd, handle, status.st_ino, name))
            return {"ino": status.st_ino, "size": status.st_size}

        mode = "read" if flags & os.O_ACCMODE == os.O_RDONLY else "write"
        self.attempt(Open, action, name=name, mode=mode, handle=handle)
        return found[0] if found else None

    def close(self, opened: Opened) -> None:
        """Close a handle that holds nothing, so what close says does not matter."""
        close(opened.fd)


@dataclass
class Opened:
    """An open topic."""

    fd: int
    handle: int
    ino: int
    name: str


def slowest(*times: int) -> tuple[int, int]:
    """Return the longest time between two times that follow on one another."""
    return max(itertools.pairwise(times), key=lambda pair: pair[1] - pair[0])


def close(fd: int) -> None:
    with suppress(OSError):
        os.close(fd)


class Pusher(Client):
    """Pushes single messages, batches and bulk, through handles that it keeps for a while."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._number = 0
        self._opened: Opened | None = None

    def step(self) -> bool:
        if self._opened is None:
            name = self.random.choice((*self.plan.names, *self.names()))
            self._opened = self.open(name, os.O_WRONLY | os.O_APPEND)
            if self._opened is None:
                return False
        done = self._push(self._opened)
        if not done or self.random.random() < 0.1:
            self.close(self._opened)
            self._opened = None
        return done

    def _push(self, opened: Opened) -> bool:
        kind, body = self.random.random(), self.random.randrange(60)
        count = 1
        if kind > 0.995:
            count, body = self.random.randrange(50, 200), self.random.randrange(200, 1000)
        elif kind > 0.85:
            count = self.random.randrange(2, 20)
        writer, first = self.plan.client, self._number
        self._number += count
        lines = [message(writer, first + n, b"x" * body) for n in range(count)]
        data = b"".join(lines)
        assert len(data) <= BULK_BYTES

        def action() -> dict[str, Any]:
            written = os.write(opened.fd, data)
            if written == len(data):
                return {}
            return {"whole": data[:written].count(b"\n")}

        values = {"ino": opened.ino, "writer": writer, "first": first, "count": count}
        return self.attempt(Write, action, **values)


class Reader(Client):
    """Reads whole topics."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._known: dict[int, bytes] = {}

    def step(self) -> bool:
        with self.opened(self.random.choice((*self.plan.names, *self.names())), os.O_RDONLY) as opened:
            return opened is not None and self.scan(opened, 0) is not None

    def scan(self, opened: Opened, offset: int, round: int = 0) -> int | None:  # noqa: A002
        """Read to the end and return where that is; None after an error."""
        values: dict[str, Any] = {"handle": opened.handle, "ino": opened.ino, "name": opened.name}
        number = self.log.begin(Read, **values, offset=offset, round=round)
        pieces: list[bytes] = []
        sizes: list[int] = []
        end, failure = offset, 0
        times: list[int] = []
        while not sizes or sizes[-1]:
            began = time.monotonic_ns()
            times.append(began)
            try:
                pieces.append(os.pread(opened.fd, READ_BYTES, end))
            except OSError as error:
                failure = error.errno or errno.EIO
                break
            sizes.append(len(pieces[-1]))
            end += sizes[-1]
        ended = time.monotonic_ns()
        data = b"".join(pieces)
        base = 0 if offset or opened.name.startswith("reset") else self._same(opened.ino, data)
        self.log.end(
            number,
            failure,
            at=ended,
            base=base,
            data=data[base:],
            sizes=sizes,
            last_began=began,
            slowest=slowest(*times, ended),
        )
        return None if failure else end

    def _same(self, ino: int, data: bytes) -> int:
        """Return how many bytes are the same as the last time."""
        before = self._known.get(ino, b"")
        whole = data[: data.rfind(b"\n") + 1]
        if whole.startswith(before):
            self._known[ino] = whole
            return len(before)
        return 0


class Follower(Reader):
    """Reads on as a topic grows, as `tail -f` does: from the start again if the topic has become shorter."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._opened: Opened | None = None
        self._offset = 0

    def step(self) -> bool:
        if self._opened is None:
            self._opened = self.open(self.random.choice(self.plan.names), os.O_RDONLY)
            self._offset = 0
            if self._opened is None:
                return False
        end = self.scan(self._opened, self._offset)
        try:
            if end is not None and os.fstat(self._opened.fd).st_size < end:
                end = 0
        except OSError:
            end = None
        if end is None or self.random.random() < 0.01:
            self.close(self._opened)
            self._opened = None
        else:
            self._offset = end
        return end is not None


class Subscriber(Client):
    """Listens to `topic@` without waiting in a read; some time later it listens to another."""

    waits = False

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._fd = -1
        self._handle = 0

    def step(self) -> bool:
        if self._fd < 0 and not self._subscribe():
            return False
        if not self.waits:
            poll = select.poll()
            poll.register(self._fd, select.POLLIN)
            poll.register(0, select.POLLIN | select.POLLHUP)
            poll.poll(200)
        if not self._hear():
            close(self._fd)
            self._fd = -1
            return False
        if self.random.random() < 0.02:
            close(self._fd)
            self._fd = -1
        return True

    def _subscribe(self) -> bool:
        name = self.random.choice(self.plan.names)
        try:
            ino = (self.directory / name).stat().st_ino
        except OSError:
            return False
        self._handle = self.new_handle()
        flags = os.O_RDONLY | os.O_CLOEXEC | (0 if self.waits else os.O_NONBLOCK)

        def action() -> dict[str, Any]:
            self._fd = os.open(self.directory / f"{name}@", flags)
            return {}

        return self.attempt(Subscribe, action, name=name, handle=self._handle, ino=ino)

    def _hear(self) -> bool:
        def action() -> dict[str, Any]:
            try:
                return {"data": os.read(self._fd, READ_BYTES)}
            except BlockingIOError:
                return {}

        return self.attempt(Hear, action, handle=self._handle, waits=self.waits)


class Listener(Subscriber):
    """Listens to `topic@` with reads that wait; ends in the middle of one, as with Ctrl-C."""

    waits = True

    def run(self) -> None:
        def end() -> None:
            os.read(0, 1)
            os._exit(0)

        threading.Thread(target=end, daemon=True).start()
        while True:
            if not self.step():
                time.sleep(RETRY_S)


class Resetter(Client):
    """Resets topics."""

    def step(self) -> bool:
        names = [name for name in self.plan.names if name.startswith("reset")]
        with self.opened(self.random.choice(names), os.O_WRONLY) as opened:
            if opened is None:
                return False
            fd = opened.fd

            def action() -> dict[str, Any]:
                os.ftruncate(fd, 0)
                return {}

            return self.attempt(Truncate, action, ino=opened.ino)


class Churner(Client):
    """Creates, renames, replaces and deletes names of its own; after an error it takes new ones."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._pool = 0
        self._inos: dict[str, int] = {}

    def step(self) -> bool:
        names = [f"{self.plan.client}-{self._pool}-{n}" for n in range(4)]
        name, other = self.random.sample(names, 2)
        if name not in self._inos:
            done = self._create(name)
        elif self.random.random() < 0.5:
            done = self._delete(name)
        else:
            done = self._rename(name, other)
        if not done:
            self._pool += 1
            self._inos = {}
        return done

    def _create(self, name: str) -> bool:
        def action() -> dict[str, Any]:
            fd = os.open(self.directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
            self.mark()
            try:
                self._inos[name] = os.fstat(fd).st_ino
            except OSError as error:
                # It was created all the same.
                raise OSError(errno.EIO, "fstat") from error
            finally:
                close(fd)
            return {"ino": self._inos[name]}

        return self.attempt(Create, action, name=name)

    def _delete(self, name: str) -> bool:
        def action() -> dict[str, Any]:
            (self.directory / name).unlink()
            return {}

        return self.attempt(Delete, action, name=name, ino=self._inos.pop(name))

    def _rename(self, name: str, target: str) -> bool:
        def action() -> dict[str, Any]:
            (self.directory / name).rename(self.directory / target)
            return {}

        ino, replaced = self._inos.pop(name), self._inos.get(target, 0)
        self._inos[target] = ino
        return self.attempt(Rename, action, name=name, target=target, ino=ino, replaced=replaced)


class Consumer(Client):
    """Works on a group; each worker is a process that ends well, fails, or is killed."""

    always_well = False
    """No worker fails, or waits for more when there is nothing."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._sessions = 0

    def step(self) -> bool:
        self._sessions += 1
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                status = self._work()
            finally:
                os._exit(status)
        os.waitpid(pid, 0)
        self.pause(0)
        return True

    def _work(self) -> int:
        """Be a worker; return the exit status."""
        plan = self.plan
        self.random = Random(f"{plan.seed} {plan.client} {self._sessions}")
        first = self._sessions * SESSION_CALLS
        self.log = HistoryWriter(Path(plan.history), plan.client, plan.mount, first=first)
        values = {"name": self.random.choice(plan.names), "group": plan.group, "handle": self._sessions}
        fds: list[int] = []

        def action() -> dict[str, Any]:
            path = self.directory / f"{values['name']}@{plan.group}"
            fds.append(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
            return {}

        if not self.attempt(GroupOpen, action, **values):
            return 1
        poll = select.poll()
        poll.register(fds[0], select.POLLIN)
        poll.register(0, select.POLLIN | select.POLLHUP)
        for _ in range(self.random.randrange(1, 60)):
            if not self.attempt(Received, lambda: self._receive(fds[0]), **values):
                return 1
            nothing = not poll.poll(200)
            self.pause(0)
            if self.stopping or (nothing and self.always_well):
                break
        fate = 1.0 if self.always_well else self.random.random()
        if fate < 0.2:
            self.attempt(Killed, dict, **values)
            os.kill(os.getpid(), signal.SIGKILL)
        if fate < 0.4:
            self.attempt(Failed, dict, **values)
            return 1

        def last() -> dict[str, Any]:
            os.close(fds[0])
            return {}

        self.attempt(Acknowledged, last, **values)
        return 0

    @staticmethod
    def _receive(fd: int) -> dict[str, Any]:
        try:
            return {"data": os.read(fd, READ_BYTES)}
        except BlockingIOError:
            return {}


class Drainer(Consumer):
    """Takes what is left in a group."""

    always_well = True


class FinalReader(Reader):
    """Reads all topics once and prints what it found: name, inode number, end (-1: an error)."""

    def run(self) -> None:
        found: dict[str, tuple[int, int]] = {}
        listed = self.attempt(Listing, self._list)
        for name in sorted(self._names if listed else self.plan.names):
            with self.opened(name, os.O_RDONLY) as opened:
                end = None if opened is None else self.scan(opened, 0, self.plan.round)
                ino = 0 if opened is None else opened.ino
            found[name] = ino, -1 if end is None else end
        print(json.dumps({"listed": listed, "found": found}))


ROLES: dict[str, type[Client]] = {
    "push": Pusher,
    "read": Reader,
    "follow": Follower,
    "subscribe": Subscriber,
    "listen": Listener,
    "reset": Resetter,
    "churn": Churner,
    "consume": Consumer,
    "drain": Drainer,
    "final": FinalReader,
}


def main() -> None:
    plan = Plan.decode(sys.argv[1])
    ROLES[plan.role](plan).run()


if __name__ == "__main__":
    main()
