"""What a mount counts, as Prometheus reads it."""

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.docs.documents import OBSERVABILITY
from tests.mount.conftest import MakeMount
from tests.support.mounts import Mount
from tests.support.programs import Programs
from tests.support.refusal import refused
from tests.support.waiting import eventually

OWN = "dnpipefs_"


def families(host: Path) -> dict[str, Metric]:
    text = (host / ".dnp" / "metrics").read_text()
    return {family.name: family for family in text_string_to_metric_families(text)}


def value(host: Path, sample: str, **labels: str) -> float:
    """Return a sample; 0 of labels that nothing was counted under."""
    found = [
        each.value
        for family in families(host).values()
        for each in family.samples
        if each.name == sample and each.labels == labels
    ]
    assert labels or len(found) == 1, sample
    return sum(found)


@pytest.fixture
def host(mount: MakeMount) -> Mount:
    return mount()


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    programs = Programs(tmp_path)
    try:
        yield programs
    finally:
        programs.clear()


def test_the_table_of_the_docs_is_the_codes(here: Path) -> None:
    described = {row[0].strip("`"): row[1:] for row in OBSERVABILITY.rows if row[0].startswith("`dnpipefs_")}
    found = {}
    for family in families(here.parent).values():
        if family.name.startswith(OWN):
            name = family.name + ("_total" if family.type == "counter" else "")
            found[name] = [family.type, family.documentation]
    assert {name: [row[0], row[2]] for name, row in described.items()} == found
    assert list(described) == list(found)
    named = set(re.findall(r"\b(process_\w+)", OBSERVABILITY.text))
    samples = {sample.name for family in families(here.parent).values() for sample in family.samples}
    assert named == {name for name in samples if name.startswith("process_")}
    rules = "".join(OBSERVABILITY.of_kind("yaml"))
    used = set(re.findall(rf"\b({OWN}\w+)", rules))
    assert used
    assert used <= set(described)


def test_histograms_add_up_and_labels_are_the_documented(here: Path) -> None:
    (here / "topic").write_bytes(b"line\n")
    (here / "topic").read_bytes()
    described = {row[0].strip("`"): row[2].strip("`") for row in OBSERVABILITY.rows if len(row) == 4}
    for family in families(here.parent).values():
        if not family.name.startswith(OWN):
            continue
        label = described[family.name + ("_total" if family.type == "counter" else "")]
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == ({label} if label else set()), sample
        if family.type != "histogram":
            continue
        for labels in {tuple(sample.labels[label] for _ in [0] if label) for sample in family.samples}:
            mine = [each for each in family.samples if not label or each.labels[label] == labels[0]]
            buckets = [each.value for each in mine if each.name.endswith("_bucket")]
            [count] = [each.value for each in mine if each.name.endswith("_count")]
            assert buckets == sorted(buckets)
            assert buckets[-1] == count


def test_pushes_are_counted(host: Mount) -> None:
    topic = host.path / "topic"
    topic.write_bytes(b"one\n")
    with topic.open("ab", buffering=0) as file:
        file.write(b"two\nthree\n")
        assert value(host.path, "dnpipefs_open_files") == 1, "the metrics are told before their file is open"
    with topic.open("r+b", buffering=0) as file, refused(errno.ESPIPE):
        os.pwrite(file.fileno(), b"elsewhere\n", 5)
    assert value(host.path, "dnpipefs_pushed_messages_total") == 3
    assert value(host.path, "dnpipefs_pushed_bytes_total") == len(b"one\ntwo\nthree\n")
    assert value(host.path, "dnpipefs_batches_total") == 2
    assert value(host.path, "dnpipefs_commit_seconds_count") == 2
    assert value(host.path, "dnpipefs_batch_wait_seconds_count") == 2
    assert value(host.path, "dnpipefs_fuse_request_seconds_count", operation="write") > 2
    assert value(host.path, "dnpipefs_fuse_errors_total", kind="NotInSequence") == 1
    assert value(host.path, "dnpipefs_fuse_errors_total", kind="Unexpected") == 0
    assert value(host.path, "dnpipefs_queued_bytes") == value(host.path, "dnpipefs_queued_topics") == 0
    assert value(host.path, "dnpipefs_sessions_total") == value(host.path, "dnpipefs_session_healthy") == 1
    assert value(host.path, "dnpipefs_etcd_endpoint_up", endpoint=host.endpoints[0]) == 1
    assert value(host.path, "dnpipefs_etcd_call_seconds_count", method="Txn") > 0


def test_reads_are_counted(host: Mount, mount: MakeMount) -> None:
    (host.path / "topic").write_bytes(b"line\n")
    other = mount().path
    for _ in range(2):
        assert (other / "topic").read_bytes() == b"line\n"
    assert value(other, "dnpipefs_cache_misses_total") == 1
    assert value(other, "dnpipefs_cache_hits_total") == 1
    assert 0 < value(other, "dnpipefs_cache_bytes") < value(other, "dnpipefs_cache_limit_bytes")
    assert value(other, "dnpipefs_read_bytes_total") >= 2 * len(b"line\n")
    assert value(other, "dnpipefs_views") == 1
    assert value(other, "dnpipefs_view_lag_seconds_count") == 3, "at the second open and the ends of file"
    assert value(other, "dnpipefs_confirm_seconds_count") >= 3
    assert value(other, "dnpipefs_names") == 2, "the topic and the root"


def test_waiting_and_groups_are_counted(host: Mount, programs: Programs) -> None:
    topic = host.path / "topic"
    topic.write_bytes(b"1\n2\n3\n")
    programs.reading(["cat", f"{topic}@"])
    assert value(host.path, "dnpipefs_blocked_reads") == 1
    os.setxattr(topic, "user.dnp.ack", b"next-read")
    with open(f"{topic}@w", "rb", buffering=0) as reader:
        assert reader.read(100) == b"1\n"
        assert value(host.path, "dnpipefs_groups") == 1
        eventually(lambda: value(host.path, "dnpipefs_group_lag_messages") == 3)
        assert reader.read(100) == b"2\n"
        eventually(lambda: value(host.path, "dnpipefs_group_lag_messages_max") == 2)
    with open(f"{topic}@w", "rb", buffering=0) as reader:
        assert {reader.read(100), reader.read(100)} == {b"2\n", b"3\n"}
    for name, count in (("deliveries", 4), ("redeliveries", 1), ("acknowledgements", 2), ("returns", 2)):
        eventually(lambda n=name, c=count: value(host.path, f"dnpipefs_group_{n}_total") == c)  # type: ignore[misc]


def test_no_label_grows_with_topics(host: Mount) -> None:
    def series() -> set[str]:
        text = (host.path / ".dnp" / "metrics").read_text()
        return {line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")}

    def use(name: str) -> None:
        (host.path / name).write_bytes(b"line\n")
        (host.path / name).read_bytes()
        with open(host.path / f"{name}@group-of-{name}", "rb", buffering=0) as reader:
            reader.read(100)

    use("first")
    series()
    before = series()
    for number in range(10):
        use(f"topic{number}")
    assert series() == before
