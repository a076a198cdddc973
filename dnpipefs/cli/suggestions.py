"""What can stand at a place of the command line: topics, groups, settings, mount points, for the shell.

Topics and groups are looked up in the cluster that the command would use, by the options that are typed
already. A look reads a few keys and writes none, joins nothing, starts no etcd, and is given up after
ANSWER_S: somebody has pressed Tab and waits. Failures are raised as everywhere; the scripts in
`completion` keep them from the terminal.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any, Final

import click
import trio
from click.shell_completion import CompletionItem

from dnpipefs import etcd
from dnpipefs.cli.options import Connection
from dnpipefs.cluster import look_at_etcd
from dnpipefs.core.config import SETTINGS
from dnpipefs.core.keys import KeySchema
from dnpipefs.core.names import ROOT, FileId, Kind, parse_path
from dnpipefs.core.records import Inode
from dnpipefs.errors import CorruptData, TimedOut

ANSWER_S: Final = 1.0
"""How long etcd has to answer, seconds."""
OFFERED_LIMIT: Final = 1000
"""How many names are offered at once; typing on narrows them down."""
OPEN: Final = "open"
"""The type of what is not complete: the shell puts no space behind it."""

Item = CompletionItem[str]
_Look = Callable[[etcd.Client, KeySchema], Awaitable[list[Item]]]


def topics(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[Item]:
    """Offer the topics and directories whose path begins so, one level at a time."""
    above, slash, begun = incomplete.rpartition("/")

    async def look(client: etcd.Client, keys: KeySchema) -> list[Item]:
        parent = await _find(client, keys, above)
        if parent is None:
            return []
        stem = keys.entry(parent, b"")
        found = await client.get_prefix(stem + _encoded(begun), limit=OFFERED_LIMIT, serializable=True)
        offered: list[Item] = []
        for kv in found.kvs:
            path = above + slash + _decoded(kv.key[len(stem) :])
            try:
                kind = Inode.decode(kv.key, kv.value).kind
            except CorruptData:  # such an entry hides its name, and nothing else: as in the namespace
                continue
            offered.append(CompletionItem(path) if kind is Kind.TOPIC else CompletionItem(f"{path}/", OPEN))
        return _typeable(offered)

    return _look_up(ctx, look)


def groups_of_topic(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[Item]:
    """Offer the consumer groups of the topic that is named before."""
    # While the option at the cursor has no value, click leaves the arguments before it where they are.
    path = ctx.params["topic"] or next(iter(ctx.args), None)
    if path is None:
        return []

    async def look(client: etcd.Client, keys: KeySchema) -> list[Item]:
        topic = await _find(client, keys, path)
        if topic is None:
            return []
        stem = keys.groups(topic).start + _encoded(incomplete)
        at, end = stem, etcd.prefix_end(stem)
        offered: list[Item] = []
        # A group has a key for each of its hosts and dead letters: they are leapt over.
        while len(offered) < OFFERED_LIMIT:
            found = await client.range(at, end, limit=1, keys_only=True, serializable=True)
            if not found.kvs:
                break
            key = found.kvs[0].key
            try:
                name, _ = keys.parse_group(topic, key)
            except CorruptData:  # of no group: fsck tells
                at = key + b"\0"
                continue
            offered.append(CompletionItem(_decoded(name)))
            at = keys.group(topic, name).end
        return _typeable(offered)

    return _look_up(ctx, look)


def names_of_settings(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[Item]:
    """Offer the settings whose name begins so."""
    return [CompletionItem(name) for name in SETTINGS if name.startswith(incomplete)]


def changes_of_settings(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[Item]:
    """Offer `NAME=`, and behind that the words among the values of the setting."""
    name, equals, begun = incomplete.partition("=")
    if not equals:
        return [CompletionItem(f"{found}=", OPEN) for found in SETTINGS if found.startswith(name)]
    words = SETTINGS[name].words if name in SETTINGS else ()
    return [CompletionItem(f"{name}={word}") for word in words if word.startswith(begun)]


def mountpoints(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[Item]:
    """Offer where a dnpipefs is mounted on this host."""
    from dnpipefs.mount.mountpoint import mounts  # brings all that a mount is made of: not for a push

    return _typeable([CompletionItem(str(path)) for path in mounts() if str(path).startswith(incomplete)])


def directories(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[Item]:
    """Let the shell offer directories."""
    return [CompletionItem(incomplete, type="dir")]


def _look_up(ctx: click.Context, look: _Look) -> list[Item]:
    """Return what *look* finds in the cluster that *ctx* names. Raises TimedOut, DnpError, EtcdError."""
    values: dict[str, Any] = dict(ctx.params)
    connection = Connection.taken_from(ctx, values)
    if None in (connection.endpoints, connection.prefix, connection.data_dir):
        return []  # what is typed there means nothing, so no cluster is named
    settings = connection.settings()

    async def limited() -> list[Item]:
        with trio.move_on_after(ANSWER_S):
            async with look_at_etcd(settings, timeout=ANSWER_S) as client:
                return [] if client is None else await look(client, KeySchema(settings.prefix))
        raise TimedOut(f"etcd does not answer within {ANSWER_S:g} s")

    return trio.run(limited)


async def _find(client: etcd.Client, keys: KeySchema, path: str) -> FileId | None:
    """Return the id of a topic or directory, None if there is none of that path."""
    found = ROOT
    for name in parse_path(path):
        kv = await client.get(keys.entry(found, name), serializable=True)
        if kv is None:
            return None
        found = Inode.decode(kv.key, kv.value).id
    return found


def _typeable(items: list[Item]) -> list[Item]:
    """Leave out what a line of text cannot show: control characters, bytes that are not UTF-8."""
    return [item for item in items if item.value.isprintable()]


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


_decoded: Final = os.fsdecode
