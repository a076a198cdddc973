"""One check of a prefix, from its namespace to its last leftover; with repairs, each looked at once more.

Order: the namespace, what belongs to no topic of it, then the topics, TOPICS_AT_ONCE side by side. With
repairs, each of these is judged, mended by guarded transactions, and judged again at a later revision, until
nothing is left that could be mended. A finding counts as mended only if it is not found any more.

Tasks: whoever calls, and one for each topic that is looked at. Nothing is held across awaits but what was
read of these topics; what was found in one is told in one go.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

import trio

from dnpipefs import etcd
from dnpipefs.core.check_names import Names
from dnpipefs.core.findings import Finding, Repair, Rule, Severity, Stored
from dnpipefs.core.keys import KeySchema, prefix_range
from dnpipefs.core.names import FileId
from dnpipefs.core.records import Meta
from dnpipefs.core.tree import Entry
from dnpipefs.errors import CorruptData, DnpError, NotFound, SetupError
from dnpipefs.fsck.reading import Moment
from dnpipefs.fsck.survey import Survey, read_names
from dnpipefs.fsck.topic import TopicReader
from dnpipefs.log.clock import Clock
from dnpipefs.log.sweeper import Sweeper
from dnpipefs.parallel import for_each

logger: Final = logging.getLogger(__name__)

TRIES: Final = 5
"""How often something is read again because etcd compacted the moment it was read at."""
MOMENT_S: Final = 1.0
"""How long what is looked at is looked at as of one moment, unless something was mended since."""
TOPICS_AT_ONCE: Final = 8
"""Topics looked at side by side: most take a few small reads, and wait for etcd."""
ROUNDS: Final = 5
"""How often one thing is mended and looked at again."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Verdict:
    """A finding, where it is, and what became of it."""

    finding: Finding
    path: str | None
    """Of the topic, if it has one."""
    mended: bool


@dataclass(slots=True)
class Report:
    """What a check came to."""

    topics: int = 0
    directories: int = 0
    bytes: int = 0
    """Read from etcd."""
    errors: int = 0
    """What is left, not mended."""
    warnings: int = 0
    notes: int = 0
    mended: int = 0


class Checker:
    """Checks the cluster below a prefix."""

    def __init__(
        self,
        client: etcd.Client,
        keys: KeySchema,
        clock: Clock,
        tell: Callable[[Verdict], Awaitable[None]],
        *,
        repair: bool,
        op_timeout: float,
    ) -> None:
        """Take *tell*, which is called with each finding as it comes."""
        self._client: Final = client
        self._keys: Final = keys
        self._clock: Final = clock
        self._tell: Final = tell
        self._repair: Final = repair
        self._op_timeout: Final = op_timeout
        self._sweeper: Final = Sweeper(client, keys)
        self._telling: Final = trio.Lock()
        """Held by the task that tells what it has found."""
        self._moment: Moment | None = None
        """The last one."""
        self._asked_at = self._mended_at = -math.inf
        """When etcd was asked for it, and when something was mended."""
        self.report: Final = Report()

    async def run(self, paths: Sequence[tuple[bytes, ...]] = ()) -> Report:
        """Check the topics that *paths* (as of `parse_path`) are or hold; without any the whole prefix.

        Raises NotFound, SetupError if there is nothing, UnsupportedFormat, TimedOut, another EtcdError.
        """
        await self._check_format()
        names = await self._at_a_moment(self._read_names)
        if paths:
            wanted = self._choose(names, paths)
        else:
            names = await self._check_names(names)
            await self._check_strangers(names)
            if self.report.mended:
                names = await self._at_a_moment(self._read_names)
            wanted = list(names.topics)
            self.report.directories = names.directories
        entries = names.topics

        failure: DnpError | None = None

        async def check(topic: FileId) -> None:
            nonlocal failure
            if failure is not None:
                return
            try:
                await self._check_topic(topic, entries[topic], names)
                self.report.topics += 1
            except DnpError as error:  # those beside it tell first what they have mended
                failure = failure or error

        await for_each(wanted, check, at_once=TOPICS_AT_ONCE)
        if failure is not None:
            raise failure
        return self.report

    async def _check_format(self) -> None:
        """See that there is something of a format that this release knows."""
        meta, anything = await self._at_a_moment(self._read_format)
        if meta is not None:
            Meta.decode(meta.key, meta.value)
            return
        if anything is None:
            where = self._keys.prefix.decode()
            raise SetupError(f"there is nothing below {where} in this etcd: see --endpoints and --prefix")
        what = "which format the data has is not known, and no host can join; read as format 1"
        await self._conclude([Finding(Rule.META, self._keys.meta, what)], {}, None)

    async def _read_format(self, moment: Moment) -> tuple[Stored | None, Stored | None]:
        """Return the key that says the format, and the first key there is."""
        [meta] = await moment.get([self._keys.meta])
        [anything] = await moment.first([prefix_range(self._keys.prefix)])
        return meta, anything

    @staticmethod
    def _choose(names: Names, paths: Iterable[tuple[bytes, ...]]) -> list[FileId]:
        wanted: dict[FileId, None] = {}
        for path in paths:
            found = names.find(path)
            if found is None:
                text = b"/".join(path).decode(errors="backslashreplace")
                raise NotFound(f"no topic or directory {text!r}")
            wanted |= dict.fromkeys(names.below(found))
        return list(wanted)

    # ------------------------------------------------------------------ what is checked

    async def _check_names(self, names: Names) -> Names:
        async def look() -> list[Finding]:
            nonlocal names
            names = await self._at_a_moment(self._read_names)
            return names.findings

        await self._settle(look, lambda: names, names.findings)
        return names

    async def _check_strangers(self, names: Names) -> None:
        """Look for what belongs to no topic, at one moment; what is found is judged one by one."""
        strangers: list[FileId | Stored] = []

        async def survey(moment: Moment) -> list[Finding]:
            nonlocal names
            names = await self._read_names(moment)
            look_around = Survey(moment, self._keys, names, self._clock.now_ns())
            strangers.clear()
            async with aclosing(look_around.strangers()) as found:
                async for stranger in found:
                    # Judged at this very moment, too: a topic may be created or deleted later.
                    strangers.extend([stranger] if await look_around.judge(stranger) else [])
            return await look_around.unknown()

        await self._conclude(await self._at_a_moment(survey), {}, None)
        for stranger in strangers:
            look = partial(self._at_a_moment, partial(self._judge_stranger, names, stranger))
            await self._settle(look, lambda: names)

    async def _judge_stranger(self, names: Names, stranger: FileId | Stored, moment: Moment) -> list[Finding]:
        return await Survey(moment, self._keys, names, self._clock.now_ns()).judge(stranger)

    async def _check_topic(self, topic: FileId, entry: Entry, names: Names) -> None:
        async def inspect(moment: Moment) -> list[Finding]:
            reader = TopicReader(moment, self._keys, topic, self._clock.now_ns())
            findings = await reader.inspect(entry)
            self.report.bytes += moment.bytes
            return findings

        await self._settle(partial(self._at_a_moment, inspect), lambda: names)

    async def _read_names(self, moment: Moment) -> Names:
        return await read_names(moment, self._keys, self._clock.now_ns())

    async def _at_a_moment(self, read: Callable[[Moment], Awaitable[_T]]) -> _T:
        """Read something at one revision, again if it took so long that etcd has compacted it."""
        tries = 1
        while True:
            moment = await self._now()
            try:
                return await read(moment)
            except etcd.Compacted as error:
                self._moment = None
                if tries == TRIES:
                    raise etcd.Compacted(
                        f"etcd compacts its history faster than it can be read ({error}): "
                        "have it keep more (--auto-compaction-retention), or check topic by topic"
                    ) from error
                tries += 1
                logger.info("revision %d was compacted while it was read; reading again", moment.revision)

    async def _now(self) -> Moment:
        """Return a moment that is MOMENT_S old at most, and younger than the last repair."""
        now = trio.current_time()
        if self._moment is None or self._asked_at <= max(self._mended_at, now - MOMENT_S):
            moment = await Moment.now(self._client, self._keys.meta, self._op_timeout)
            self._moment, self._asked_at = moment, now
        return self._moment.again()

    # ------------------------------------------------------------------ what is done about it

    async def _settle(
        self,
        look: Callable[[], Awaitable[list[Finding]]],
        names: Callable[[], Names],
        found: list[Finding] | None = None,
    ) -> None:
        """Look (or take what was found); mend and look again while there is something to mend; then tell."""
        findings = await look() if found is None else found
        mending: dict[tuple[Rule, bytes], Finding] = {}
        if self._repair:
            for _ in range(ROUNDS):
                firsts: dict[Repair | None, Finding] = {}  # several findings can have one repair
                for finding in findings:
                    firsts.setdefault(finding.repair, finding)
                applied = [each for each in findings if await self._mend(each, firsts[each.repair])]
                if not applied:
                    break
                mending |= {(finding.rule, finding.key): finding for finding in applied}
                findings = await look()
        await self._conclude(findings, mending, names())

    async def _mend(self, finding: Finding, first: Finding) -> bool:
        """Carry out the repair of a finding, unless *first* had the same; return whether that was done."""
        repair = finding.repair
        if repair is None:
            return False
        if first is not finding:
            return True
        try:
            return await self._carry_out(repair)
        except (etcd.PermissionDenied, etcd.AuthenticationFailed):
            raise
        except etcd.EtcdError as error:  # the others may go well
            logger.warning("%s: not mended: %s", finding.key.decode(errors="backslashreplace"), error)
            return False
        finally:
            self._mended_at = trio.current_time()

    async def _carry_out(self, repair: Repair) -> bool:
        if repair.sweep is not None:
            with suppress(CorruptData):  # a finding of its own tells of it, and all else was swept
                await self._sweeper.sweep(repair.sweep)
            return True
        guards = [etcd.compare_mod_revision(guard.key) == guard.revision for guard in repair.guards]
        guards += [etcd.compare_version(key) > 0 for key in repair.touches]
        operations = [etcd.put(key, value) for key, value in repair.puts]
        operations += [etcd.delete(key) for key in repair.deletes]
        operations += [etcd.delete(part.start, part.end) for part in repair.ranges]
        operations += [etcd.touch(key) for key in repair.touches]
        return (await self._client.transaction(guards, operations, timeout=self._op_timeout)).succeeded

    async def _conclude(
        self,
        findings: list[Finding],
        mending: dict[tuple[Rule, bytes], Finding],
        names: Names | None,
    ) -> None:
        left = {(finding.rule, finding.key) for finding in findings}
        async with self._telling:
            for key, finding in mending.items():
                if key not in left:
                    self.report.mended += 1
                    await self._tell(Verdict(finding, _path(finding, names), mended=True))
            for finding in findings:
                match finding.rule.severity:
                    case Severity.ERROR:
                        self.report.errors += 1
                    case Severity.WARNING:
                        self.report.warnings += 1
                    case Severity.NOTE:
                        self.report.notes += 1
                await self._tell(Verdict(finding, _path(finding, names), mended=False))


def _path(finding: Finding, names: Names | None) -> str | None:
    if finding.topic is None or names is None or finding.topic not in names.topics:
        return None
    return names.path_text(finding.topic)
