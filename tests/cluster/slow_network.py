"""A bad line: packets that the kernel queues for this process are delayed, reordered and lost.

    python -m tests.cluster.slow_network SETTINGS     on the host whose packets they are; JSON, see `Line`

The kernel's own netem is in few kernels of small machines, NFQUEUE in nearly all. Packets pass at once when
nobody listens to the queue, so nothing has to be healed when this process is killed.
"""

import heapq
import itertools
import json
import random
import select
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

QUEUE = 1
PENDING_LIMIT = 20_000
"""Packets in the queue; the kernel drops more."""


@dataclass(frozen=True)
class Line:
    """What happens to each packet, independent of others."""

    delay_ms: float = 0
    jitter_ms: float = 0
    """Up to that much more, drawn evenly: a packet may overtake another."""
    loss: float = 0
    """Probability."""
    seed: int = 0

    def command(self) -> list[str]:
        """Return what runs this line."""
        return [sys.executable, "-m", "tests.cluster.slow_network", json.dumps(asdict(self))]


def run(line: Line) -> None:
    """Treat packets until killed; say "ready" before the first."""
    from netfilterqueue import NetfilterQueue  # here, since the tests import this module without it

    draw = random.Random(line.seed)
    numbers = itertools.count()
    pending: list[tuple[float, int, Any]] = []

    def treat(packet: Any) -> None:
        if draw.random() < line.loss:
            packet.drop()
            return
        packet.retain()
        due = time.monotonic() + (line.delay_ms + draw.random() * line.jitter_ms) / 1000
        heapq.heappush(pending, (due, next(numbers), packet))

    queue = NetfilterQueue()
    queue.bind(QUEUE, treat, max_len=PENDING_LIMIT)
    incoming = select.poll()
    incoming.register(queue.get_fd(), select.POLLIN)
    print("ready", flush=True)
    while True:
        wait_ms = max(0.0, (pending[0][0] - time.monotonic()) * 1000) if pending else None
        if incoming.poll(wait_ms):
            queue.run(block=False)
        while pending and pending[0][0] <= time.monotonic():
            heapq.heappop(pending)[2].accept()


if __name__ == "__main__":
    run(Line(**json.loads(sys.argv[1])))
