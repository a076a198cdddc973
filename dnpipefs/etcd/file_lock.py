"""Locks on files between processes (``flock``): a process that dies, however, lets go of them."""

import fcntl


def try_lock(fd: int, kind: int) -> bool:
    """Take a lock, `fcntl.LOCK_EX` or `LOCK_SH`, on an open file; False if another one is in the way."""
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
