"""From facts to findings: pure. Each finding is one line that says what it means and one what to do.

A rule is a function from the facts to its findings; together they are RULES. What cannot be told is a
note, never a fault.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Final

from dnpipefs.doctor.facts import Facts, Prefix, Server
from dnpipefs.etcd import AlarmKind
from dnpipefs.etcd.releases import RECOMMENDED, known_fault
from dnpipefs.etcd.space import NO_QUOTA_BYTES, size_text

NEAR_QUOTA: Final = 0.75
"""Part of the quota from which on the database counts as large."""
FULL: Final = 0.95
"""Part of the quota from which on it counts as full, alarm or not."""
MUCH_FREE: Final = 0.5
"""Part of the file that may be free before it is said."""
MUCH_FREE_BYTES: Final = 256 << 20
"""Below this nobody minds."""
LONG_HISTORY: Final = 1_000_000
"""Revisions of history that say that nobody compacts."""
SLOW_READ_S: Final = 0.05
SLOW_WRITE_S: Final = 0.1
SLOW_FSYNC_S: Final = 0.01
"""etcd's makers want the 99th percentile below this; a mean above it is a slow disk."""
CLOCK_S: Final = 2.0
"""Difference of clocks that is more than rounding and travel."""
ORDER_S: Final = 180.0
"""Age of an order to remove old keys at which somebody should have carried it out: three rounds."""


class Level(enum.Enum):
    """How bad a finding is."""

    OK = "ok"
    NOTE = "note"
    """Worth knowing, or cannot be told."""
    WARNING = "warning"
    """Works, and should be changed."""
    PROBLEM = "problem"
    """Does not work, or may lose data."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line about one thing, and what to do about it (empty: nothing)."""

    level: Level
    subject: str
    meaning: str
    advice: str = ""


Findings = Iterator[Finding]


def judge(facts: Facts) -> list[Finding]:
    """Return the findings, in the order of RULES."""
    return [finding for rule in RULES for finding in rule(facts)]


def _ok(subject: str, meaning: str) -> Finding:
    return Finding(Level.OK, subject, meaning)


def _note(subject: str, meaning: str, advice: str = "") -> Finding:
    return Finding(Level.NOTE, subject, meaning, advice)


def _warning(subject: str, meaning: str, advice: str) -> Finding:
    return Finding(Level.WARNING, subject, meaning, advice)


def _problem(subject: str, meaning: str, advice: str) -> Finding:
    return Finding(Level.PROBLEM, subject, meaning, advice)


def _endpoints(facts: Facts) -> Findings:
    for endpoint in facts.endpoints:
        subject = f"endpoint {endpoint.name}"
        if endpoint.server is not None:
            how = "" if endpoint.given else ", though not among the --endpoints given"
            yield _ok(subject, f"answers, etcd {endpoint.server.version or 'of unknown release'}{how}")
        elif endpoint.given:
            yield _problem(subject, endpoint.failure, "as it says; until then the others have to do")
        else:
            yield _note(
                subject,
                f"a member says that it is there, and is not reached from here: {endpoint.failure}",
                "make it reachable, or let it advertise an address that is (--advertise-client-urls)",
            )


def _secrecy(facts: Facts) -> Findings:
    plain = [
        endpoint.name
        for endpoint in facts.endpoints
        if endpoint.given and endpoint.server is not None and _travels_openly(endpoint.name)
    ]
    if plain:
        yield _note(
            "TLS",
            f"none on the way to {', '.join(plain)}: who sees the network reads messages and passwords",
            "give etcd certificates and name https:// endpoints, unless the network is trusted",
        )
    elif any(endpoint.name.startswith("https") for endpoint in facts.endpoints if endpoint.server):
        yield _ok("TLS", "the way to etcd is encrypted, and its certificates are valid")
    if facts.user is not None and facts.servers:
        yield _ok("user", f"etcd lets {facts.user!r} in")
    elif plain:
        yield _note(
            "user",
            "etcd asks for no user: whoever reaches it may do everything",
            "guard it by TLS with client certificates, or by users (docs/semantics.md)",
        )


def _travels_openly(endpoint: str) -> bool:
    here = ("unix:", "http://127.", "http://localhost:", "http://[::1]", "127.", "localhost:", "[::1]")
    return not endpoint.startswith((*here, "https://"))


def _membership(facts: Facts) -> Findings:
    if not facts.servers:
        return
    leaders = [endpoint.name for endpoint, server in facts.answered if server.leads]
    if facts.members is None:
        yield _note("members", "etcd does not tell this user who they are")
        return
    count, answered = len(facts.members), len(facts.servers)
    if count == answered and all(server.leads is False for server in facts.servers):
        yield _problem("members", "none of them leads", "see that a majority of them reach one another")
    elif count == 1:
        yield _ok("members", "one: it is as available as its machine")
    elif count > answered:
        yield _note(
            "members",
            f"{count}, of which {answered} could be looked at",
            "name the addresses of all in --endpoints, to have all looked at and to survive the loss of one",
        )
    elif leaders:
        yield _ok("members", f"{count}, led by {leaders[0]}")
    else:
        yield _note("members", f"{count}; which leads cannot be told")
    voters = sum(not member.is_learner for member in facts.members)
    if voters and voters % 2 == 0:
        yield _note(
            "members", f"{voters} voters stand the loss of no more than {voters - 1}", "add or remove one"
        )


def _releases(facts: Facts) -> Findings:
    versions = sorted({server.version for server in facts.servers if server.version})
    for version in versions:
        fault = known_fault(version)
        if fault is not None:
            yield _warning("release", fault, f"upgrade to {RECOMMENDED}")
        else:
            yield _ok("release", f"etcd {version} has no fault that is known to matter here")
    if len(versions) > 1:
        yield _warning("release", f"the members differ: {', '.join(versions)}", "finish the upgrade")
    if any(not server.version for server in facts.servers):
        yield _note("release", "a member does not tell its release")


def _alarms(facts: Facts) -> Findings:
    if facts.alarms is None:
        if facts.servers:
            yield _note("alarms", "etcd does not tell this user")
        return
    for kind in sorted({alarm.kind for alarm in facts.alarms}, key=lambda kind: kind.name):
        if kind is AlarmKind.NOSPACE:
            yield _problem(
                "alarm NOSPACE",
                "etcd is full: pushes fail, reads go on",
                "remove or reset topics (rm, truncate); "
                + ("the room comes back by itself" if facts.embedded else "then: dnpipefs doctor --fix"),
            )
        else:
            yield _problem(
                "alarm CORRUPT",
                "etcd found that its members differ, and takes no writes",
                "find the member that is wrong (etcdctl endpoint hashkv --cluster), replace it, then disarm",
            )
    if not facts.alarms:
        yield _ok("alarms", "none is on")


def _space(facts: Facts) -> Findings:
    advice = "remove or reset topics, then: dnpipefs doctor --fix; or raise --quota-backend-bytes"
    if facts.embedded:
        advice = "remove or reset topics; the room comes back by itself"
    for endpoint, server in facts.answered:
        subject = f"space of {endpoint.name}"
        if server.size is None or server.quota is None:
            yield _note(subject, "size and quota cannot be told: status and /metrics are closed to us")
            continue
        said = f"{size_text(server.size)} of {size_text(server.quota)}"
        if server.quota >= NO_QUOTA_BYTES:
            yield _note(
                subject,
                f"{size_text(server.size)}, without a quota",
                "set --quota-backend-bytes, 8 GiB at most",
            )
        elif server.size >= FULL * server.quota:
            yield _problem(
                subject,
                f"{said}: full",
                advice,
            )
        elif server.size >= NEAR_QUOTA * server.quota:
            yield _warning(
                subject,
                f"{said}: near the quota, at which pushes fail",
                advice,
            )
        else:
            yield _ok(subject, said)
        yield from _free(subject, server, embedded=facts.embedded)


def _free(subject: str, server: Server, *, embedded: bool) -> Findings:
    if server.size is None or server.in_use is None:
        return
    free = server.size - server.in_use
    if free >= max(MUCH_FREE * server.size, MUCH_FREE_BYTES):
        yield _note(
            subject,
            f"{size_text(free)} of the file are free, to be used by what comes; the disk gets them back by "
            "defragmentation",
            "nothing, it happens by itself" if embedded else "if the disk needs them: dnpipefs doctor --fix",
        )


def _compaction(facts: Facts) -> Findings:
    for endpoint, server in facts.answered:
        subject = f"compaction of {endpoint.name}"
        retention = server.flag("auto-compaction-retention")
        history = None
        if server.revision is not None and server.compacted is not None:
            history = server.revision - max(server.compacted, 0)
        if facts.embedded:
            yield _ok(subject, "is done by whoever uses this etcd")
        elif retention not in (None, "", "0", "0s"):
            mode = server.flag("auto-compaction-mode") or "periodic"
            unit = "h" if mode == "periodic" and str(retention).isdecimal() else ""
            yield _ok(subject, f"etcd does it by itself ({mode}, {retention}{unit})")
        elif history is None:
            yield _note(
                subject,
                "cannot be told: neither command line nor metrics say so",
                "see that --auto-compaction-retention is set",
            )
        elif server.compacted is not None and server.compacted > 0 and history < LONG_HISTORY:
            yield _ok(subject, f"somebody does it: {history:,} revisions of history are kept")
        elif history < LONG_HISTORY:
            yield _note(
                subject,
                f"none so far, in {history:,} revisions; whether one is set (in etcd's environment or "
                "configuration file) cannot be told",
                "see that it is: --auto-compaction-mode=periodic --auto-compaction-retention=1h",
            )
        else:
            yield _warning(
                subject,
                f"{history:,} revisions of history are kept: what is removed goes on filling the quota",
                "start each member with --auto-compaction-mode=periodic --auto-compaction-retention=1h",
            )


def _speed(facts: Facts) -> Findings:
    prefix = facts.prefix
    if prefix is not None and prefix.reads_s:
        read = median(prefix.reads_s)
        said = f"a read takes {_ms(read)}"
        if prefix.writes_s:
            said += f", a write {_ms(median(prefix.writes_s))} (the rest is the majority's fsync)"
        if read > SLOW_READ_S:
            yield _warning(
                "latency", f"{said}: slow", "bring etcd nearer, or find what keeps its machines busy"
            )
        elif prefix.writes_s and median(prefix.writes_s) > SLOW_WRITE_S:
            yield _warning("latency", f"{said}: slow", "give etcd's members faster disks, of their own")
        else:
            yield _ok("latency", said)
    for endpoint, server in facts.answered:
        if server.fsync_s is not None and server.fsync_s > SLOW_FSYNC_S:
            yield _warning(
                f"disk of {endpoint.name}",
                f"an fsync takes {_ms(server.fsync_s)} on average since its start; each push waits for a "
                "majority's",
                "give it a faster disk, of its own",
            )


def counted(number: int, what: str) -> str:
    """Write how many there are of something."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms"


def _clocks(facts: Facts) -> Findings:
    told = [(endpoint, server.ahead_s) for endpoint, server in facts.answered if server.ahead_s is not None]
    wrong = [(endpoint, ahead) for endpoint, ahead in told if abs(ahead) > CLOCK_S]
    for endpoint, ahead in wrong:
        yield _warning(
            f"clock of {endpoint.name}",
            f"about {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this host's",
            "run NTP on both: leases and certificates depend on it",
        )
    if told and not wrong:
        yield _ok("clocks of etcd", f"within {CLOCK_S:.0f} s of this host's")
    elif facts.servers and not told:
        yield _note("clocks of etcd", "cannot be told: its HTTP side is not reached")
    if facts.prefix is not None:
        yield from _clocks_of_hosts(facts.prefix)


def _clocks_of_hosts(prefix: Prefix) -> Findings:
    if prefix.read_failure is not None:
        return
    if not prefix.behind_s:
        yield _note("clocks of hosts", "cannot be told: nobody pushed while this looked")
    elif min(prefix.behind_s) < -CLOCK_S or min(prefix.behind_s) > CLOCK_S:
        yield _warning(
            "clocks of hosts",
            f"a push came from {-min(prefix.behind_s):.0f} s in the future"
            if min(prefix.behind_s) < 0
            else f"each push that came was {min(prefix.behind_s):.0f} s old by its host's clock",
            "run NTP on all hosts: mtime and `pull --from TIME` go by the clock of the host that pushed",
        )
    else:
        yield _ok("clocks of hosts", f"within {CLOCK_S:.0f} s of this host's, of those who pushed just now")


def _prefix(facts: Facts) -> Findings:
    prefix = facts.prefix
    if prefix is None:
        return
    subject = f"prefix {prefix.name}"
    advice = "see that a majority of etcd's members is up, and that they reach one another"
    if prefix.denied:
        advice = "give the etcd user a role with read and write permission for it (docs/semantics.md)"
    if prefix.read_failure is not None:
        yield _problem(subject, f"cannot be read: {prefix.read_failure}", advice)
        return
    if prefix.format_failure is not None:
        yield _problem(subject, prefix.format_failure, "use a release of dnpipefs that knows it")
    elif not prefix.in_use:
        yield _note(subject, "holds nothing yet", "if it should: is --prefix as the mounts have it?")
    full = any(alarm.kind is AlarmKind.NOSPACE for alarm in facts.alarms or ())
    if prefix.write_failure is None:
        yield _ok(subject, "may be read and written")
    elif not full:  # else it was said already
        yield _problem(subject, f"cannot be written: {prefix.write_failure}", advice)


def _hosts(facts: Facts) -> Findings:
    prefix = facts.prefix
    if prefix is None or prefix.read_failure is not None:
        return
    mounts = [session for session in prefix.sessions if session.mountpoint is not None]
    others = len(prefix.sessions) - len(mounts)
    where = ", ".join(f"{session.host}:{session.mountpoint}" for session in mounts)
    here = counted(len(mounts), "mount") + (f": {where}" if where else "")
    yield _ok("hosts", f"{here}; {counted(others, 'other connection')}")
    versions = sorted({session.version for session in prefix.sessions})
    if len(versions) > 1:
        yield _note("hosts", f"they run different releases of dnpipefs: {', '.join(versions)}")
    late = [age for age in prefix.orders_age_s if age > ORDER_S]
    if late:
        yield _warning(
            "leftovers",
            f"{counted(len(late), 'order')} to remove old keys: nobody has come for {max(late):.0f} s",
            "keep a mount running on some host: mounts carry them out",
        )
    else:
        yield _ok("leftovers", "nothing waits to be removed for long")


Rule = Callable[[Facts], Findings]
RULES: Final[tuple[Rule, ...]] = (
    _endpoints,
    _secrecy,
    _membership,
    _releases,
    _alarms,
    _space,
    _compaction,
    _speed,
    _clocks,
    _prefix,
    _hosts,
)
