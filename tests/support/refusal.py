"""Expecting a system call to fail with one errno and no other."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def refused(number: int) -> Iterator[None]:
    """Pass if the block fails with errno `number`."""
    with pytest.raises(OSError, match=r"Errno") as caught:
        yield
    found = caught.value.errno
    assert found == number, f"{caught.value!r} instead of {errno.errorcode[number]}"
