"""Mounts whose etcd goes back to an earlier revision: they end, since what they know of it is void."""

import shutil

from tests.mount.conftest import MakeMount
from tests.support.etcd_process import EtcdProcess
from tests.support.waiting import eventually

WITHIN_S = 30.0


def test_a_mount_ends_when_its_etcd_is_restored_beneath_it(
    own_etcd: EtcdProcess, mount: MakeMount, faults_expected: list[str]
) -> None:
    """It would show what is not there any more, and miss what is pushed until the old revision is reached."""
    faults_expected += ["HistoryLost", "Traceback", " ERROR "]
    host = mount(endpoint=own_etcd.endpoint)
    topic = host.path / "topic"
    topic.write_text("kept\n")
    data, backup = own_etcd.directory / "data", own_etcd.directory / "backup"
    own_etcd.stop()
    shutil.copytree(data, backup)
    own_etcd.start()
    topic.write_text("lost\n")
    assert topic.read_text() == "kept\nlost\n"
    own_etcd.kill()
    shutil.rmtree(data)
    backup.rename(data)
    own_etcd.start()
    eventually(lambda: not host.alive, within_s=WITHIN_S)
    assert not host.mounted
    assert "as if restored from a backup" in host.log
    other = mount(endpoint=own_etcd.endpoint)
    assert (other.path / "topic").read_text() == "kept\n"
    host.start()
    topic.write_text("new\n")
    assert topic.read_text() == (other.path / "topic").read_text() == "kept\nnew\n"
