"""A user of an embedded server in a process of its own: says the server's pid, leaves at end of input.

python -m tests.embedded.user DATA_DIR BINARY [QUOTA]
"""

import logging
import sys
from pathlib import Path

import trio

from dnpipefs.etcd.server import DEFAULT_QUOTA_BYTES, embedded_server


async def main(data_dir: Path, binary: str, quota: int) -> None:
    log = logging.getLogger("user")
    async with embedded_server(data_dir, binary=binary, quota_bytes=quota, log=log) as server:
        print(server.pid, flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)


if __name__ == "__main__":
    quota = int(sys.argv[3]) if len(sys.argv) > 3 else DEFAULT_QUOTA_BYTES
    trio.run(main, Path(sys.argv[1]), sys.argv[2], quota)
