"""A real etcd as a child of the tests: started, stopped, killed, frozen and started again at will."""

import http.client
import os
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

START_TIMEOUT_S = 20.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True)
class ServerTls:
    """Files for a server that speaks TLS; `ca` given means clients must show a certificate of it."""

    cert: Path
    key: Path
    ca: Path | None = None


class EtcdProcess:
    """One member on loopback ports; only flags that etcd 3.4 to 3.6 share. Dies with the tests."""

    def __init__(
        self,
        directory: Path,
        binary: str = "etcd",
        *,
        name: str = "default",
        tls: ServerTls | None = None,
        unix: bool = False,
        arguments: Sequence[str] = (),
    ) -> None:
        self.directory = directory
        self.name = name
        self.port = free_port()
        self.peer = f"http://127.0.0.1:{free_port()}"
        self.cluster = [self]
        self._binary = binary
        self._tls = tls
        self._unix = unix
        self._arguments = list(arguments)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        if self._unix:
            return f"unix:{self.directory}/client.sock:0"
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        """Return program and arguments, to be run in the member's directory."""
        listen = "unix://client.sock:0" if self._unix else self.endpoint
        command = [
            *(
                self._binary,
                "--name",
                self.name,
                "--data-dir",
                "data",
                "--logger",
                "zap",
                "--log-level",
                "error",
            ),
            *("--listen-client-urls", listen, "--advertise-client-urls", listen),
            *("--listen-peer-urls", self.peer, "--initial-advertise-peer-urls", self.peer),
            *("--initial-cluster", ",".join(f"{member.name}={member.peer}" for member in self.cluster)),
            *("--heartbeat-interval", "50", "--election-timeout", "250"),
        ]
        if self._tls is not None:
            command += ["--cert-file", str(self._tls.cert), "--key-file", str(self._tls.key)]
            if self._tls.ca is not None:
                command += ["--client-cert-auth", "--trusted-ca-file", str(self._tls.ca)]
        return command + self._arguments

    def launch(self) -> None:
        """Start the process; `wait_ready` tells when it answers."""
        self.directory.mkdir(exist_ok=True)
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *self.command()],
                cwd=self.directory,
                stdout=log,
                stderr=log,
            )

    def wait_ready(self) -> None:
        """Wait until the member has a leader (over TLS or a Unix socket: until it listens)."""
        assert self._process is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"etcd does not start:\n{(self.directory / 'log').read_text()}")
            time.sleep(0.02)  # another process: there is no event to wait for

    def start(self) -> None:
        self.launch()
        self.wait_ready()

    def _answers(self) -> bool:
        if self._unix:
            return (self.directory / "client.sock:0").exists()
        if self._tls is not None:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                    return True
            except OSError:
                return False
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=1)
        try:
            connection.request("GET", "/health")
            return b"true" in connection.getresponse().read()
        except (OSError, ssl.SSLError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the process and wait for it; nothing to do when it does not run."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(how)
            self._process.wait()
            self._process = None

    def kill(self) -> None:
        self.stop(signal.SIGKILL)

    def pause(self) -> None:
        """Freeze the process: connections stay, nothing is answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOWAIT)  # every thread of it

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None
