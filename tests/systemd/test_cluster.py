"""A cluster that was made as docs/systemd.md says, and what happens to its hosts."""

import time
from pathlib import Path

import pytest

from tests.cluster.hosts import CommandFailed
from tests.docs.documents import SYSTEMD
from tests.support.waiting import eventually
from tests.systemd.image import newer_wheels
from tests.systemd.machines import Machine
from tests.systemd.nodes import (
    RECOVERY_S,
    Nodes,
    daemon,
    is_well,
    provision,
    put_checkout,
    status,
)

FAILING_WORKER = "read -r job < /dnp/jobs@workers; echo $job; exit 1"


def set_up_unit(machine: Machine, *settings: str) -> None:
    """Change settings of the service until the host boots again; none: as it was."""
    directory = "/run/systemd/system/dnpipefs.service.d"
    if settings:
        lines = "\n".join(("[Service]", *settings, ""))
        machine.run("mkdir", "-p", directory)
        machine.run("tee", f"{directory}/test.conf", given=lines)
    else:
        machine.run("rm", "-r", directory)
    machine.run("systemctl", "daemon-reload")


def is_replaced(machine: Machine, before: int) -> bool:
    """Whether another daemon serves the mount."""
    return is_well(machine) and daemon(machine) not in (0, before)


def journal(machine: Machine) -> str:
    return machine.run("journalctl", "--no-pager", "--unit", "dnpipefs")


def test_echo_on_one_node_and_cat_on_another(nodes: Nodes) -> None:
    one, two, three = nodes.machines
    one.shell("echo hello > /dnp/greetings")
    assert two.shell("cat /dnp/greetings") == "hello\n"
    assert three.shell("cat /dnp/greetings") == "hello\n"


def test_the_look_of_the_guide(nodes: Nodes) -> None:
    said = nodes.machines[1].shell(SYSTEMD.labelled("look").replace("status etcd", "status --no-pager etcd"))
    assert said.count("Active: active (running)") == 2
    assert "/dnp: served\n" in said
    assert "\n0 problems, " in said


def test_the_host_sees_the_mount(nodes: Nodes) -> None:
    one = nodes.machines[0]
    systemds, daemons = one.shell(f"readlink /proc/1/ns/mnt /proc/{daemon(one)}/ns/mnt").split()
    assert systemds == daemons
    assert " /dnp fuse.dnpipefs " in Path(f"/proc/{one.init}/mounts").read_text()


def test_a_worker_that_fails_is_seen_by_a_locked_down_daemon(nodes: Nodes) -> None:
    one, two, _ = nodes.machines
    two.shell("echo job > /dnp/jobs")
    assert one.says(FAILING_WORKER) == "job\n"
    assert two.shell(FAILING_WORKER.replace("exit 1", "exit 0")) == "job\n", "it was given back"
    two.shell("rm /dnp/jobs")


def test_a_killed_daemon_is_replaced(nodes: Nodes) -> None:
    one, two, _ = nodes.machines
    two.shell("echo before > /dnp/killed")
    before, began = daemon(one), time.monotonic()
    one.run("kill", "-KILL", str(before))
    eventually(lambda: "before" in one.says("cat /dnp/killed"), within_s=RECOVERY_S)
    print(f"\na daemon that was killed was replaced within {time.monotonic() - began:.1f} s")
    assert daemon(one) != before
    one.shell("echo after >> /dnp/killed")
    assert two.shell("cat /dnp/killed") == "before\nafter\n"
    assert one.says("cat /proc/mounts").count(" /dnp ") == 1, "nothing is left of the dead mount"


def test_a_daemon_that_hangs_is_replaced(nodes: Nodes) -> None:
    one = nodes.machines[0]
    set_up_unit(one, "WatchdogSec=3")
    one.run("systemctl", "restart", "dnpipefs")
    before = daemon(one)
    eventually(lambda: is_well(one))
    one.run("kill", "-STOP", str(before))
    eventually(lambda: is_replaced(one, before), within_s=RECOVERY_S)
    said = journal(one)
    assert "Watchdog timeout" in said
    assert "most recent call first" in said, "what its threads did"
    set_up_unit(one)
    one.run("systemctl", "restart", "dnpipefs")


def test_the_watchdog_is_fed(nodes: Nodes) -> None:
    one = nodes.machines[0]
    set_up_unit(one, "WatchdogSec=1")
    one.run("systemctl", "restart", "dnpipefs")
    before, fed = daemon(one), set()

    def fed_often() -> bool:
        shown = one.run("systemctl", "show", "--property=WatchdogTimestampMonotonic", "--value", "dnpipefs")
        fed.add(shown)
        return len(fed) > 4

    eventually(fed_often, within_s=RECOVERY_S)
    assert daemon(one) == before
    set_up_unit(one)
    one.run("systemctl", "restart", "dnpipefs")


def test_etcd_stops_and_starts(nodes: Nodes) -> None:
    one, two, _ = nodes.machines
    before = [daemon(machine) for machine in nodes.machines]
    two.shell("echo before > /dnp/stopped")
    for machine in nodes.machines:
        machine.run("systemctl", "stop", "etcd")
    eventually(lambda: (status(one) or {}).get("etcd", {}).get("answers") is False, within_s=RECOVERY_S)
    for machine in nodes.machines:
        machine.run("systemctl", "start", "--no-block", "etcd")
    nodes.wait_well()
    one.shell("echo after >> /dnp/stopped")
    assert two.shell("cat /dnp/stopped") == "before\nafter\n"
    assert [daemon(machine) for machine in nodes.machines] == before


def test_a_host_reboots(nodes: Nodes) -> None:
    one, two, three = nodes.machines
    one.shell("echo before > /dnp/rebooted; printf 'a part' >> /dnp/rebooted")
    three.run("systemctl", "stop", "dnpipefs")
    three.reboot()
    two.shell("echo meanwhile >> /dnp/rebooted")
    eventually(lambda: is_well(three), within_s=RECOVERY_S)
    assert three.shell("cat /dnp/rebooted") == "before\na partmeanwhile\n"


def test_a_host_freezes(nodes: Nodes) -> None:
    one, two, three = nodes.machines
    one.shell("echo before > /dnp/frozen")
    three.freeze()
    try:
        one.shell("echo meanwhile >> /dnp/frozen")
        assert two.shell("cat /dnp/frozen") == "before\nmeanwhile\n"
    finally:
        three.thaw()
    eventually(lambda: is_well(three), within_s=RECOVERY_S)
    three.shell("echo after >> /dnp/frozen")
    assert three.shell("cat /dnp/frozen") == "before\nmeanwhile\nafter\n"


def test_nothing_is_written_below(nodes: Nodes) -> None:
    one = nodes.machines[0]
    one.run("systemctl", "stop", "dnpipefs")
    with pytest.raises(CommandFailed, match="Operation not permitted"):
        one.shell("echo lost > /dnp/lost")
    one.run("systemctl", "start", "dnpipefs")
    with pytest.raises(CommandFailed, match="No such file"):
        one.shell("cat /dnp/lost")


def test_an_unmounted_service_stays_down(nodes: Nodes) -> None:
    one = nodes.machines[0]
    one.run("umount", "/dnp")
    eventually(lambda: one.says("systemctl is-active dnpipefs") == "inactive\n")
    one.run("systemctl", "start", "dnpipefs")
    assert is_well(one)


def test_a_wrong_setting_is_not_tried_again(nodes: Nodes) -> None:
    one = nodes.machines[0]
    one.shell("cp /etc/dnpipefs.toml kept; sed -i '1i endpoint = \"x\"' /etc/dnpipefs.toml")
    with pytest.raises(CommandFailed):
        one.run("systemctl", "restart", "dnpipefs")
    assert one.says("systemctl is-active dnpipefs") == "failed\n"
    assert "did you mean endpoints?" in journal(one)
    one.shell("cp kept /etc/dnpipefs.toml; systemctl reset-failed dnpipefs; systemctl start dnpipefs")


def test_more_mounts(nodes: Nodes) -> None:
    one = nodes.machines[0]
    one.shell(SYSTEMD.labelled("more mounts"))
    one.shell("echo team > /srv/team/here")
    assert one.says("cat /dnp/here").endswith("No such file or directory\n")
    assert (status(one, "/srv/team") or {})["prefix"] == "/team/"
    one.shell("systemctl disable --now dnpipefs@srv-team; chattr -i /srv/team; rmdir /srv/team")


def test_a_service_with_an_etcd_of_its_own(nodes: Nodes) -> None:
    one = nodes.machines[0]
    one.shell("echo 'data_dir = \"/var/lib/dnpipefs/own\"' > /etc/dnpipefs/srv-own.toml")
    one.shell("systemctl start dnpipefs@srv-own")
    one.shell("echo own > /srv/own/here; systemctl stop dnpipefs@srv-own; systemctl start dnpipefs@srv-own")
    assert one.shell("cat /srv/own/here") == "own\n"
    one.shell(
        "systemctl stop dnpipefs@srv-own; chattr -i /srv/own; rmdir /srv/own; rm /etc/dnpipefs/srv-own.toml"
    )


def test_upgrade(nodes: Nodes, tmp_path: Path) -> None:
    one, two, three = nodes.machines
    one.shell("echo before > /dnp/upgraded")
    members = [daemon(machine, "etcd") for machine in nodes.machines]
    newer = newer_wheels(tmp_path, "9.9.9")
    for machine in (one, two):
        put_checkout(machine, newer)
        provision(machine)
        eventually(lambda: all(map(is_well, nodes.machines)), within_s=RECOVERY_S)
    versions = [(status(machine) or {})["version"] for machine in nodes.machines]
    assert versions[:2] == ["9.9.9", "9.9.9"]
    assert versions[2] != "9.9.9"
    assert members == [daemon(machine, "etcd") for machine in nodes.machines]
    three.shell("echo after >> /dnp/upgraded")
    assert one.shell("cat /dnp/upgraded") == "before\nafter\n"


def test_ready_comes_when_the_mount_answers(nodes: Nodes) -> None:
    one = nodes.machines[0]
    one.shell("echo there > /dnp/ready")
    for _ in range(3):
        assert one.shell("systemctl restart dnpipefs; cat /dnp/ready") == "there\n"
    assert 'Status: "serving /dnp"' in one.run("systemctl", "status", "--no-pager", "dnpipefs")
