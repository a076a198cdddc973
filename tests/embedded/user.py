"""A user of an embedded server in a process of its own: says the server's pid, leaves at end of input.

python -m tests.embedded.user DATA_DIR BINARY
"""

import logging
import sys
from pathlib import Path

import trio

from dnpipefs.etcd.server import embedded_server


async def main(data_dir: Path, binary: str) -> None:
    async with embedded_server(data_dir, binary=binary, log=logging.getLogger("user")) as server:
        print(server.pid, flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), sys.argv[2])
