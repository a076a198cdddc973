"""Looking into an etcd from outside, without the client under test: its JSON gateway."""

import base64
import json
import urllib.request
from typing import Any


def _call(endpoint: str, method: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(f"{endpoint}/v3/{method}", json.dumps(body).encode())  # noqa: S310 - http
    with urllib.request.urlopen(request, timeout=20) as response:  # noqa: S310 - the same
        answer: dict[str, Any] = json.load(response)
        return answer


def keys_below(endpoint: str, prefix: str) -> list[str]:
    """Return all keys that begin with `prefix` (ASCII, ending in a slash)."""
    return [
        base64.b64decode(kv["key"]).decode(errors="replace")
        for kv in _below(endpoint, prefix, keys_only=True)
    ]


def values_below(endpoint: str, prefix: str) -> dict[str, bytes]:
    """Return the values of these keys, too."""
    return {
        base64.b64decode(kv["key"]).decode(errors="replace"): base64.b64decode(kv["value"])
        for kv in _below(endpoint, prefix, keys_only=False)
    }


def _below(endpoint: str, prefix: str, *, keys_only: bool) -> list[dict[str, Any]]:
    start, end = prefix.encode(), prefix[:-1].encode() + b"0"
    body = {
        "key": base64.b64encode(start).decode(),
        "range_end": base64.b64encode(end).decode(),
        "keys_only": keys_only,
    }
    found: list[dict[str, Any]] = _call(endpoint, "kv/range", body).get("kvs", [])
    return found


def compact(endpoint: str) -> None:
    """Forget all revisions before the newest."""
    status = _call(endpoint, "maintenance/status", {})
    _call(endpoint, "kv/compaction", {"revision": status["header"]["revision"], "physical": True})


def make_room(endpoint: str) -> None:
    """Do what its operator does with a full etcd of one member: compact, defragment, disarm."""
    compact(endpoint)
    _call(endpoint, "maintenance/defragment", {})
    for alarm in _call(endpoint, "maintenance/alarm", {"action": "GET"}).get("alarms", []):
        _call(endpoint, "maintenance/alarm", {"action": "DEACTIVATE", **alarm})


def fill(endpoint: str) -> None:
    """Let an etcd of one member be as one that has reached its quota, until `make_room`."""
    member = _call(endpoint, "maintenance/status", {})["header"]["member_id"]
    _call(endpoint, "maintenance/alarm", {"action": "ACTIVATE", "memberID": member, "alarm": "NOSPACE"})
