"""status."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from dnpipefs.cli.exits import Exit
from dnpipefs.cli.options import MountPoint, format_option
from dnpipefs.cli.suggestions import mountpoints
from dnpipefs.cluster import VERSION
from dnpipefs.mount import MountStatus, State, mount_status, statuses

_ADVICE = {
    State.DEAD: "its daemon is gone: `dnpipefs mount` with its options brings it back",
    State.SILENT: "its daemon does not answer: it is frozen, or very busy",
    State.CLOSED: "it is another user's, or of another release",
}


@click.command()
@click.argument("mountpoint", required=False, type=MountPoint(), shell_complete=mountpoints)
@format_option()
def status(mountpoint: Path | None, *, form: str) -> None:
    """Say how the mounts of this host are, or the one named: session, etcd, whether answers are stale.

    Asks the daemons, and needs no etcd for it. Exit status: 0 all is well, 1 a mount is dead, or its etcd
    does not answer.
    """
    found = statuses() if mountpoint is None else [mount_status(mountpoint)]
    click.echo(_as_json(found) if form == "json" else "\n".join(_as_text(found)))
    if not all(mount.well for mount in found):
        raise click.exceptions.Exit(Exit.FAILED)


def _as_json(found: Sequence[MountStatus]) -> str:
    mounts = [
        {"mountpoint": str(mount.mountpoint), "state": mount.state.value, **(mount.told or {})}
        for mount in found
    ]
    return json.dumps({"version": VERSION, "mounts": mounts})


def _as_text(found: Sequence[MountStatus]) -> Iterator[str]:
    yield f"dnpipefs {VERSION}" + ("" if found else ", no mount on this host")
    for mount in found:
        yield f"{mount.mountpoint}: {_ADVICE.get(mount.state, mount.state)}"
        if mount.told is None:
            continue
        told, session, etcd = mount.told, mount.told["session"], mount.told["etcd"]
        yield f"  daemon   {told['version']} on {told['host']}, process {told['pid']}"
        health = "healthy" if session["healthy"] else "not confirmed by etcd: nothing can be pushed now"
        yield f"  session  {session['id'] or 'none'}, {health}{_why(session['failure'])}"
        yield f"  etcd     {'answers' if etcd['answers'] else 'does not answer'}"
        for endpoint in etcd["endpoints"]:
            yield f"           {endpoint['endpoint']}{_why(endpoint['failure'])}"
        if told["stale_since"] is not None:
            yield f"  reads    stale since {told['stale_since']}: files show what this host has"
        elif told["read_stale"]:
            yield "  reads    confirmed with etcd; stale while it does not answer (--read-stale)"
        else:
            yield f"  reads    confirmed with etcd, waiting for it up to {told['op_timeout']:g} s"


def _why(failure: str | None) -> str:
    return "" if failure is None else f": {failure}"
