"""The end of a node, as docs/systemd.md has it. This file comes last: what it leaves is no node any more."""

from tests.docs.documents import SYSTEMD
from tests.systemd.nodes import Nodes


def test_removal(nodes: Nodes) -> None:
    _, two, three = nodes.machines
    two.shell("echo kept > /dnp/kept")
    three.shell(SYSTEMD.labelled("removal"))
    assert three.says("ls /dnp; command -v dnpipefs; systemctl cat dnpipefs").count("No such file") == 1
    assert three.says("systemctl is-active etcd") == "active\n"
    three.shell(SYSTEMD.labelled("removal of etcd"))
    kept = ("-path /proc", "-path /root", "-path /var/lib/dnpipefs")
    pruned = " -o ".join(f"{path} -prune" for path in kept)
    assert three.says(f"find / {pruned} -o -name '*dnp*' -print") == ""
    assert two.shell("cat /dnp/kept") == "kept\n", "by a majority"
