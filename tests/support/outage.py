"""An etcd that does not answer for a while: frozen, dead, or one member that has lost the others."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.etcd_process import EtcdProcess

OUTAGES = ("frozen", "dead", "no quorum")


class Outage:
    """A cluster that can be made to answer nobody. Clients are to know the first member only."""

    def __init__(self, kind: str, directory: Path, binary: str) -> None:
        count = 3 if kind == "no quorum" else 1
        self._kind = kind
        self.members = [EtcdProcess(directory / f"etcd{n}", binary, name=f"etcd{n}") for n in range(count)]
        for member in self.members:
            member.cluster = self.members

    @property
    def endpoint(self) -> str:
        return self.members[0].endpoint

    def begin(self) -> None:
        """Let nobody get an answer from now on."""
        match self._kind:
            case "frozen":
                self.members[0].pause()
            case "dead":
                self.members[0].kill()
            case _:
                for member in self.members[1:]:
                    member.kill()

    def end(self) -> None:
        """Let etcd answer again."""
        match self._kind:
            case "frozen":
                self.members[0].resume()
            case "dead":
                self.members[0].start()
            case _:
                for member in self.members[1:]:
                    member.launch()
                for member in self.members[1:]:
                    member.wait_ready()


@contextmanager
def outage(kind: str, directory: Path, binary: str) -> Iterator[Outage]:
    """Run the etcd of an outage that has not begun yet."""
    made = Outage(kind, directory, binary)
    try:
        for member in made.members:
            member.launch()
        for member in made.members:
            member.wait_ready()
        yield made
    finally:
        for member in made.members:
            member.kill()
