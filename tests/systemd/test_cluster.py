"""A cluster that was made as docs/systemd.md says, and what happens to its hosts."""

from tests.systemd.nodes import Nodes


def test_echo_on_one_node_and_cat_on_another(nodes: Nodes) -> None:
    one, two, three = nodes.machines
    one.shell("echo hello > /dnp/greetings")
    assert two.shell("cat /dnp/greetings") == "hello\n"
    assert three.shell("cat /dnp/greetings") == "hello\n"
