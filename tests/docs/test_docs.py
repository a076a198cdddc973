"""The documents say what is so: names, numbers, tables and links against the code."""

import errno
import inspect
import json
import re
import subprocess
import sys

import pytest

from dnpipefs.cli.configuration import (
    CONFIG_VARIABLE,
    PASSWORD_VARIABLE,
    SYSTEM_FILE,
    TEST_VARIABLES,
    USER_FILE,
)
from dnpipefs.cli.exits import Exit
from dnpipefs.cli.fsck import FsckExit
from dnpipefs.cli.options import OPTIONS
from dnpipefs.core.batch import HEADER_BYTES, decode
from dnpipefs.core.check_leftovers import ORDER_AGE_NS
from dnpipefs.core.compression import UNPACKED_LIMIT
from dnpipefs.core.config import (
    DEFAULTS,
    MESSAGE_LIMIT,
    SETTINGS,
    StoredConfig,
    format_value,
    parse_change,
)
from dnpipefs.core.findings import Rule
from dnpipefs.core.keys import PART_BYTES, KeySchema
from dnpipefs.core.names import FileId
from dnpipefs.core.records import Head, Inode, Mark, Meta, decode_time
from dnpipefs.core.sealing import HEAD_SEGMENTS, KEPT_WRITERS, LARGE_BYTES
from dnpipefs.core.segment import decode as decode_segment
from dnpipefs.core.survey import RANGE_TOPICS
from dnpipefs.etcd.client import DEFAULT_TIMEOUT
from dnpipefs.etcd.discovery import AGAIN_S
from dnpipefs.etcd.server import DEFAULT_QUOTA_BYTES
from dnpipefs.etcd.space import BELIEVED_S, ETCD_DEFAULT_BYTES
from dnpipefs.etcd.srv import LOOKUP_S, PLAIN_SERVICE, TLS_SERVICE
from dnpipefs.etcd.upkeep_plan import CHEAP_BYTES, HISTORY_BYTES
from dnpipefs.etcd.watch import WATCH_BACKLOG_LIMIT
from dnpipefs.etcd.watch_stream import INBOX_LIMIT
from dnpipefs.fsck.reading import READ_BYTES
from dnpipefs.fsck.run import TOPICS_AT_ONCE, TRIES
from dnpipefs.fuse.answers import ERRNO
from dnpipefs.fuse.entries import FRESH_S, LISTED_S
from dnpipefs.fuse.nodes import MAX_ALIASES
from dnpipefs.fuse.readiness import IN_A_ROW
from dnpipefs.fuse.serving import MAX_TASKS, STOP_GRACE_S
from dnpipefs.log.appender import BATCH_LIMIT, QUEUE_LIMIT, TOPICS_PER_TRANSACTION, WRITERS_LIMIT
from dnpipefs.log.content import CACHE_LIMIT, FETCH_LIMIT, FETCHING_LIMIT
from dnpipefs.log.failures import DEFAULT_OP_TIMEOUT_S
from dnpipefs.log.log import SIZES_LIMIT
from dnpipefs.log.readahead import WINDOW
from dnpipefs.log.schedule import PATIENCE_S, SEALERS
from dnpipefs.log.sealer import TRIM_STEP
from dnpipefs.log.session import REFUSED_RETRY_S, SESSION_TTL_S
from dnpipefs.log.staleness import STALE_AFTER_S
from dnpipefs.log.sweeper import STEP_KEYS
from dnpipefs.log.views import LINGER_S
from dnpipefs.mount.mountpoint import ANSWER_S
from dnpipefs.mount.scrapes import CONNECTIONS
from dnpipefs.namespace import ENTRIES_LIMIT
from dnpipefs.namespace import PATIENCE_S as NAMESPACE_PATIENCE_S
from dnpipefs.top.follower import KEPT
from dnpipefs.top.tables import TOPICS, WIDE
from dnpipefs.vfs.control import GROUPS_LIMIT
from dnpipefs.vfs.handles import HELD_LIMIT, SPLIT_SIZE
from dnpipefs.vfs.intake import WRITES_LIMIT
from dnpipefs.vfs.listings import BY_NAME, PAGE_FRESH_S, RECENT_LISTINGS, RECENT_S
from dnpipefs.vfs.reports import RATE_S
from tests.cluster.faults import FAULTS
from tests.docs.documents import (
    ARCHITECTURE,
    CONFIGURATION,
    DOCUMENTS,
    FORMAT,
    FSCK,
    OBSERVABILITY,
    README,
    RELIABILITY,
    REPOSITORY,
    SECURITY,
    SEMANTICS,
    TOP,
    Document,
)

MIB = 1 << 20


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_links_resolve(document: Document) -> None:
    for link in document.links:
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = document.path.parent / name if name else document.path
        assert target.exists(), link
        if anchor:
            assert anchor in Document(str(target.resolve().relative_to(REPOSITORY))).anchors, link


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_what_is_named_exists(document: Document) -> None:
    tests = "".join(path.read_text() for path in (REPOSITORY / "tests").rglob("test_*.py"))
    for name in re.findall(r"`(test_\w+)`", document.text):
        assert f"def {name}(" in tests, name
    for path in re.findall(r"`(\w+/[\w/]+\.py)`", document.text):
        assert (REPOSITORY / "dnpipefs" / path).exists() or (REPOSITORY / path).exists(), path
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in re.findall(r"`make ([\w-]+)", document.text):
        assert f"\n{target}:" in makefile, target


def test_every_module_has_an_owner_in_the_architecture() -> None:
    described = "\n".join(row[0] for row in ARCHITECTURE.rows)
    for unit in ("core", "etcd", "log", "fuse", "fsck", "mount", "top"):
        for path in (REPOSITORY / "dnpipefs" / unit).glob("[!_]*.py"):
            assert re.search(rf"\b{unit}/.*\b{path.stem}`", described), path


def test_all_faults_of_the_siege_are_described() -> None:
    described = {name for row in RELIABILITY.rows for name in row[0].split(", ")}
    assert {make().name for make in FAULTS} <= described


def test_the_commands_of_the_readme_exist() -> None:
    help_text = subprocess.run(
        [sys.executable, "-m", "dnpipefs", "--help"], capture_output=True, text=True, check=True
    ).stdout
    named = set(re.findall(r"^dnpipefs ([\w-]+)", "".join(README.of_kind("sh")), re.MULTILINE))
    assert {"mount", "umount", "push", "pull", "reset", "ls", "fsck"} <= named
    assert {name for name in named if f"\n  {name} " not in help_text} == set()


@pytest.mark.parametrize(
    ("document", "phrase"),
    [
        (FORMAT, f"unpacks to {UNPACKED_LIMIT // MIB} MiB at most"),
        (CONFIGURATION, f"every {AGAIN_S:g} s at most"),
        (CONFIGURATION, f"each question may take {LOOKUP_S:g} s"),
        (CONFIGURATION, f"`{TLS_SERVICE}` means TLS. `{PLAIN_SERVICE}` means none"),
        (CONFIGURATION, f"the system's, `{SYSTEM_FILE}`"),
        (CONFIGURATION, f"`$XDG_CONFIG_HOME/{USER_FILE}`"),
        (CONFIGURATION, f"(but `{TEST_VARIABLES}`"),
        (CONFIGURATION, f"is an error (exit status {Exit.USAGE})"),
        (TOP, f"up to {KEPT} can be looked back at"),
        (TOP, f"from {WIDE} columns on"),
        (TOP, f"until its session\nruns out, {SESSION_TTL_S} s later"),
        (SECURITY, f"hosts read it anew after {NAMESPACE_PATIENCE_S:g} s"),
        (SECURITY, f"begins one within {REFUSED_RETRY_S:g} s"),
        (FSCK, f"read again, at most {TRIES} times"),
        (FSCK, f"each of the {TOPICS_AT_ONCE} topics that are looked at side by side"),
        (FSCK, f"{READ_BYTES // MIB} MiB of values at a time"),
        (FSCK, f"not older than {ORDER_AGE_NS // 60 // 10**9} minutes"),
        (README, f"at most {DEFAULTS.max_message // MIB} MiB with its newline"),
        (README, f"up to {MESSAGE_LIMIT // MIB} MiB if it is set so"),
        (README, f"{DEFAULT_QUOTA_BYTES >> 30} GiB for the embedded one"),
        (SEMANTICS, f"The limit is {DEFAULTS.max_message // MIB} MiB with the newline"),
        (SEMANTICS, f"A write above {SPLIT_SIZE >> 10} KiB is `EMSGSIZE`"),
        (SEMANTICS, f"`--op-timeout` ({DEFAULT_OP_TIMEOUT_S:g} s)"),
        (SEMANTICS, f"at most {BELIEVED_S:g} s old; {ETCD_DEFAULT_BYTES >> 30} GiB, etcd's default"),
        (SEMANTICS, f"kernel inodes of\ntheir own (up to {MAX_ALIASES})"),
        (SEMANTICS, f"attributes for {FRESH_S * 1000:g} ms at most"),
        (SEMANTICS, f"is committed, if etcd takes it within {STOP_GRACE_S:g} s"),
        (SEMANTICS, f"data has grown by {HISTORY_BYTES // MIB} MiB"),
        (SEMANTICS, f"at most {CHEAP_BYTES // MIB} MiB are\nin use"),
        (SEMANTICS, f"in a directory that is being listed, {PAGE_FRESH_S * 1000:g} ms"),
        (SEMANTICS, f"the kernel uses for {LISTED_S * 1000:g} ms"),
        (SEMANTICS, f"done\nthere in the last {PAGE_FRESH_S + LISTED_S:g} s"),
        (SEMANTICS, f"(or has within {RECENT_S:g} s"),
        (SEMANTICS, f"above {BY_NAME:,} entries in no order"),
        (SEMANTICS, f"unanswered for {STALE_AFTER_S:g} s"),
        (SEMANTICS, f"takes longer than {STALE_AFTER_S:g} s to answer"),
        (OBSERVABILITY, f"whether a question was answered within {STALE_AFTER_S:g} s"),
        (OBSERVABILITY, f"tell what this host knows, within {STALE_AFTER_S:g} s"),
        (OBSERVABILITY, f"pushed in the last {RATE_S} s"),
        (SEMANTICS, f"an attempt takes {DEFAULT_TIMEOUT:g} s at most"),
        (SEMANTICS, f"open for reading, and for {LINGER_S:g} s after (`LINGER_S`)"),
        (SEMANTICS, f"does not answer within {ANSWER_S:g} s is `silent`"),
        (SEMANTICS, f"{SESSION_TTL_S} s after its death"),
        (SEMANTICS, f"there are {ENTRIES_LIMIT:,} topics and directories"),
        (README, f"at most {ENTRIES_LIMIT:,} topics and directories"),
        (ARCHITECTURE, f"(`ENTRIES_LIMIT`) | {ENTRIES_LIMIT:,} |"),
        (ARCHITECTURE, f"(`SIZES_LIMIT`) | {SIZES_LIMIT:,} |"),
        (ARCHITECTURE, f"(`WRITERS_LIMIT`) | {WRITERS_LIMIT:,} |"),
        (ARCHITECTURE, f"(`RECENT_LISTINGS`) | {RECENT_LISTINGS} |"),
        (ARCHITECTURE, f"(`GROUPS_LIMIT`) | {GROUPS_LIMIT:,} |"),
        (ARCHITECTURE, f"one a connection, at most {CONNECTIONS} served at once"),
        (ARCHITECTURE, f"one group of topics, up to {RANGE_TOPICS}"),
        (FORMAT, f"or {SESSION_TTL_S} s after its death"),
        (FORMAT, f"batches of up to {TOPICS_PER_TRANSACTION} topics in one"),
        (ARCHITECTURE, f"of up to {TOPICS_PER_TRANSACTION} topics and {BATCH_LIMIT / 10**6:g} MB"),
        (ARCHITECTURE, f"The newest {HEAD_SEGMENTS} entries are in the head"),
        (ARCHITECTURE, f"ended leave it once there are {KEPT_WRITERS}"),
        (ARCHITECTURE, f"another one takes over after {PATIENCE_S:g} s"),
        (ARCHITECTURE, f"the next {WINDOW // MIB} MiB are fetched meanwhile"),
        (ARCHITECTURE, f"sealers ({SEALERS})"),
        (FORMAT, f"go into one transaction is at most {BATCH_LIMIT / 10**6:g} MB together"),
        (FORMAT, f"cut into parts of\n{PART_BYTES:,} bytes"),
        (FORMAT, f"A batch of {LARGE_BYTES >> 10} KiB of message data or more lies beside"),
        (FORMAT, f"trimming ({TRIM_STEP} entries)"),
        (ARCHITECTURE, f"The view lives {LINGER_S:g} s longer"),
        (ARCHITECTURE, f"{STEP_KEYS} keys a step"),
        (ARCHITECTURE, f"while {INBOX_LIMIT // MIB} MiB are unread"),
        (ARCHITECTURE, f"{QUEUE_LIMIT // MIB} MiB of queued pushes"),
        (ARCHITECTURE, f"{WATCH_BACKLOG_LIMIT // MIB} MiB of events a watcher"),
        (
            ARCHITECTURE,
            f"{CACHE_LIMIT // MIB} MiB of cached\nbatches and segments, {FETCH_LIMIT // MIB} MiB a fetch",
        ),
        (ARCHITECTURE, f"{FETCHING_LIMIT // MIB} MiB of all fetches"),
        (ARCHITECTURE, f"{WRITES_LIMIT // MIB} MiB of writes under way"),
        (ARCHITECTURE, f"{HELD_LIMIT // MIB} MiB of unfinished lines"),
        (ARCHITECTURE, f"{MAX_TASKS:,} FUSE requests"),
        (ARCHITECTURE, f"those under way get {STOP_GRACE_S:g} s"),
        (ARCHITECTURE, f"for at most {STOP_GRACE_S:g} s more"),
        (ARCHITECTURE, f"at most {IN_A_ROW} times in a row"),
    ],
)
def test_numbers_are_the_codes(document: Document, phrase: str) -> None:
    assert phrase in document.text


def test_every_key_is_described() -> None:
    members = {name for name, _ in inspect.getmembers(KeySchema())}
    keys = {name for name in members if not name.startswith(("_", "parse_"))} - {"prefix"}
    assert len(keys) > 15
    section = FORMAT.text.partition("\n## The keys\n")[2].partition("\n### ")[0]
    assert {name for name in keys if f"`{name}`" not in section} == set()


def test_the_errno_table_is_the_adapters() -> None:
    described = {(row[0].strip("`"), row[1].strip("`")) for row in SEMANTICS.rows if row[0].startswith("`E")}
    adapter = {(errno.errorcode[number], kind.__name__) for kind, number in ERRNO}
    assert described - adapter == {("EIO", "")}, "the fault of our own"
    assert adapter - described == set()


def test_every_option_of_configuration_is_described() -> None:
    """Keys, options, variables and defaults of the table are the code's, in its order."""
    rows = [row for row in CONFIGURATION.rows if row[0].startswith("`") or row[2].startswith("`DNPIPEFS_")]
    beside = {row[2].strip("`"): row[:2] for row in rows if row[0] == ""}
    assert beside == {PASSWORD_VARIABLE: ["", ""], CONFIG_VARIABLE: ["", "`--config`"]}
    described = [row for row in rows if row[0]]
    assert [row[:3] for row in described] == [
        [
            f"`{option.key}`",
            ", ".join(f"`{flag}`" for flag in (*option.opts, *option.secondary_opts)),
            f"`{option.variable}`",
        ]
        for option in OPTIONS
    ]
    for row, option in zip(described, OPTIONS, strict=True):
        default = option.to_info_dict()["default"]
        if default is None:
            assert row[3] == "none" or row[0] in ("`log_level`", "`mount.log_file`")
        elif not callable(default):
            shown = f"{default:g}" if isinstance(default, float) else str(default)
            assert row[3] == f"`{shown.lower() if isinstance(default, bool) else shown}`"


def test_the_columns_of_top_are_the_codes() -> None:
    section = TOP.prose.partition("\n## Topics\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if re.match(r"\| [A-Z]{3}", line)]
    cells = [line.strip("|").split("|")[:2] for line in lines]
    described = [
        (title.strip(), name.strip(" `"))
        for titles, names in cells
        for title, name in zip(titles.split(","), names.split(","), strict=True)
    ]
    assert described == [(column.title, column.name) for column in TOPICS.columns]


def test_the_rules_of_fsck_are_the_codes() -> None:
    described = [tuple(row[:3]) for row in FSCK.rows if re.fullmatch(r"[A-Z]\d+", row[0])]
    assert described == [(rule.code, rule.title, rule.severity.value) for rule in Rule]


def test_the_exit_statuses_of_fsck_are_the_codes() -> None:
    described = {int(row[0]) for row in FSCK.rows if row[0].isdigit()}
    assert described == set(FsckExit)


def golden(label: str) -> bytes:
    return bytes.fromhex(FORMAT.labelled(label))


def test_the_golden_batch_is_what_its_table_says() -> None:
    raw = golden("golden")
    batch = decode(raw)
    table = FORMAT.prose.split("<!-- golden fields -->")[1].split("\n\n")[0].splitlines()[3:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    fields = [bytes.fromhex(row[1].strip("`")) for row in rows]
    assert b"".join(fields) == raw
    assert [int(row[0]) for row in rows] == [sum(map(len, fields[:n])) for n in range(len(rows))]
    for row, field in zip(rows[:-1], fields[:-1], strict=True):
        assert int(row[3], 0) == int.from_bytes(field), row
    (generation, time_ns, session, sequence, messages, size), said = rows[5:11], rows[11][3]
    assert (batch.generation, batch.time_ns) == (int(generation[3]), int(time_ns[3]))
    assert (batch.session, batch.sequence) == (int(session[3], 16), int(sequence[3]))
    assert (batch.messages, len(batch.data)) == (int(messages[3]), int(size[3]))
    assert batch.data == said.strip("`").encode().decode("unicode_escape").encode()
    assert f"The first batch of the example, {len(raw)} bytes" in FORMAT.prose


def test_the_golden_batch_with_lengths_is_what_the_text_says() -> None:
    raw = golden("golden lengths")
    batch = decode(raw)
    assert batch.lengths == (4,)
    assert list(batch.split()) == [b"a\nb\n"]
    assert len(raw) - HEADER_BYTES == 5


def test_the_golden_segment_is_what_the_text_says() -> None:
    segment = decode_segment(golden("golden segment"))
    assert list(segment.split()) == [b"a\n", b"b\n", b"c"]
    assert segment.runs == [(2, 1795299868389572293), (1, 1795299868389571293)]
    assert (segment.generation, segment.offset, segment.messages) == (5, 6, 3)


def test_the_example_of_settings_is_what_the_text_says() -> None:
    stored = StoredConfig(json.loads(FORMAT.labelled("example config")))
    assert stored.complaints == ()
    assert stored == StoredConfig().changed(
        parse_change(
            {
                "framing": "write",
                "retention.bytes": "10MiB",
                "retention.age": "7d",
                "max_message": "64KiB",
                "compression": "none",
            }
        )
    )


@pytest.mark.parametrize("document", [FORMAT, SEMANTICS], ids=lambda document: document.name)
def test_all_settings_are_described(document: Document) -> None:
    described = [row for row in document.rows if row[0].strip("`") in SETTINGS]
    assert [row[0].strip("`") for row in described] == list(SETTINGS)


def test_settings_are_described_with_their_defaults_and_good_values() -> None:
    for name in SETTINGS:
        (row,) = [row for row in SEMANTICS.rows if row[0] == f"`{name}`"]
        assert row[1] == f"`{format_value(name, DEFAULTS)}`"
        for value in re.findall("`([^`]*)`", row[2]):
            parse_change({name: value})


def example() -> list[tuple[bytes, bytes]]:
    """Return keys and values of the worked example."""
    lines = FORMAT.labelled("example").encode().splitlines()
    return list(zip(lines[::2], lines[1::2], strict=True))


def test_the_example_is_read_as_it_says() -> None:
    keys = KeySchema()
    for key, value in example():
        kind, _, rest = key.removeprefix(b"/dnp/").partition(b"/")
        match kind:
            case b"meta":
                Meta.decode(key, value)
            case b"ns":
                keys.parse_entry(key)
                Inode.decode(key, value)
            case b"epoch" | b"last":
                decode_time(key, value)
            case b"head":
                assert Head.decode(key, value) == Head()
            case b"tail":
                if keys.parse_tail(FileId(int(rest[:16], 16)), key) is None:
                    Mark.decode(key, value)
    batch = decode(golden("golden"))
    topic = FileId(0xB9B7D0C75108D)
    assert keys.batch(topic, batch.session, 1, len(batch.data), batch.messages) in dict(example())
