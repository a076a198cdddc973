"""A mount in the foreground with settings that the command line does not have, given as JSON.

One of them plants a fault: a lookup that raises what no code of dnpipefs raises on purpose. One lets
libfuse log each request of the kernel.
"""

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

from dnpipefs.cluster import Settings
from dnpipefs.core.names import FileId
from dnpipefs.etcd import Credentials, Tls
from dnpipefs.mount import MountOptions, prepare_mountpoint, run_mount
from dnpipefs.vfs import Attributes, FileSystem

FAULTY_NAME = b"faulty"


def make_faulty() -> None:
    """Let lookups of FAULTY_NAME fail in a way that no code of dnpipefs raises on purpose."""
    lookup = FileSystem.lookup

    async def faulty_lookup(self: FileSystem, parent: FileId, name: bytes) -> Attributes:
        if name == FAULTY_NAME:
            raise ZeroDivisionError("a planted fault")
        return await lookup(self, parent, name)

    setattr(FileSystem, "lookup", faulty_lookup)  # noqa: B010 - mypy has no other way to replace a method


def make_traced() -> None:
    """Let libfuse log each request, as "opcode: WRITE" and more."""
    fuse_options = MountOptions.fuse_options
    setattr(MountOptions, "fuse_options", lambda self: fuse_options(self) | {"debug"})  # noqa: B010


def main() -> None:
    settings: dict[str, Any] = json.loads(sys.argv[1])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if settings["faulty"]:
        make_faulty()
    if settings["traced"]:
        make_traced()

    def ready() -> None:
        with open(settings["ready_fd"], "wb") as pipe:
            pipe.write(b"ready")

    more = settings["settings"]
    if "data_dir" in more:
        more["data_dir"] = Path(more["data_dir"])
    if "tls" in more:
        more["tls"] = Tls(**{what: Path(file) for what, file in more["tls"].items()})
    if "credentials" in more:
        more["credentials"] = Credentials(**more["credentials"])
    run_mount(
        Settings(
            endpoints=tuple(settings["endpoints"]),
            prefix=settings["prefix"],
            op_timeout=settings["op_timeout"],
            session_ttl=settings["session_ttl"],
            **more,
        ),
        MountOptions(prepare_mountpoint(Path(settings["mountpoint"])), allow_other=os.geteuid() == 0),
        ready=ready,
    )


if __name__ == "__main__":
    main()
