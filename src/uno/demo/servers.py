"""Which servers does the demo start, when they are installed? Redis and RabbitMQ, on free ports, in its folder."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import time
from pathlib import Path

import psutil

HOST = "127.0.0.1"


class Server:
    """A server process with its children; it dies with the demo, where the system can promise that."""

    url = ""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, command: list[str], environment: dict[str, str] | None = None) -> None:
        """Start a program, silently."""
        if setpriv := shutil.which("setpriv"):
            command = [setpriv, "--pdeathsig", "KILL", "--", *command]
        path = os.environ.get("PATH", os.defpath)
        self._started.append(
            subprocess.Popen(
                command,
                cwd=self._folder,
                env={"PATH": path, "HOME": str(self._folder), "LC_ALL": "C.UTF-8", **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the demo, which ends its servers itself
            )
        )

    def close(self) -> None:
        """End it at once with all that descends from it: nothing in the folder is to survive."""
        tree: list[psutil.Process] = []
        for process in self._started:
            with contextlib.suppress(psutil.NoSuchProcess):
                root = psutil.Process(process.pid)
                tree += [root, *root.children(recursive=True)]
        for member in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        for process in self._started:
            process.wait()
        self._started.clear()


class Redis(Server):
    """Redis, or Valkey; it answers after some 50 ms."""

    def __init__(self, folder: Path, program: str) -> None:
        super().__init__(folder)
        port = free_port()
        self.url = f"redis://{HOST}:{port}/0"
        self.start([program, "--port", str(port), "--bind", HOST, "--save", "", "--appendonly", "no"])
        deadline = time.monotonic() + 2
        while not listens(port) and time.monotonic() < deadline:
            time.sleep(0.02)


class RabbitMQ(Server):
    """RabbitMQ with its epmd, which would otherwise be shared by, and outlive, all servers of the machine.

    It listens after some seconds; nobody waits for it.
    """

    def __init__(self, folder: Path, program: str, epmd: str) -> None:
        super().__init__(folder)
        port, epmd_port = free_port(), free_port()
        user, password = "shop", secrets.token_urlsafe(12)
        self.url = f"amqp://{user}:{password}@{HOST}:{port}/"
        home = folder / "rabbitmq"
        home.mkdir()
        config = home / "rabbitmq.conf"
        config.write_text(
            f"listeners.tcp.default = {HOST}:{port}\ndefault_user = {user}\ndefault_pass = {password}\n"
            "log.console = false\nlog.file = false\n"
        )
        config.chmod(0o600)
        (home / "enabled_plugins").write_text("[].\n")
        self.start([epmd, "-address", HOST, "-port", str(epmd_port)])
        environment = {
            "ERL_EPMD_PORT": str(epmd_port),
            "ERL_EPMD_ADDRESS": HOST,
            "RABBITMQ_NODENAME": f"shop{port}@localhost",
            "RABBITMQ_CONF_ENV_FILE": f"{home}/none",
            "RABBITMQ_CONFIG_FILE": str(config),
            "RABBITMQ_ADVANCED_CONFIG_FILE": f"{home}/none",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{home}/enabled_plugins",
            "RABBITMQ_MNESIA_BASE": f"{home}/mnesia",
            "RABBITMQ_LOG_BASE": f"{home}/log",
            "RABBITMQ_PID_FILE": f"{home}/pid",
            "RABBITMQ_DIST_PORT": str(free_port()),
            # One scheduler, which does not spin: the demo shares a small machine with everything else.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} +S 1:1 +sbwt none",
            "RUNNING_UNDER_SYSTEMD": "true",  # the start script is replaced by the server, not left above it
        }
        self.start([program], environment)


def start_servers(folder: Path) -> tuple[dict[str, Server], list[str]]:
    """Start what is installed. Returns the servers by the variable that tells the shop their address, and who is
    missing, in words."""
    servers: dict[str, Server] = {}
    missing: list[str] = []
    if redis := shutil.which("redis-server") or shutil.which("valkey-server"):
        servers["REDIS_URL"] = Redis(folder, redis)
    else:
        missing.append("Redis (apt-get install redis-server)")
    # The script in /usr/sbin changes the account and the folders; the one below it does as it is told.
    places = os.pathsep.join(
        ("/usr/lib/rabbitmq/bin", "/opt/rabbitmq/sbin", "/opt/homebrew/sbin", "/usr/local/sbin")
    )
    rabbitmq, epmd = shutil.which("rabbitmq-server", path=places), shutil.which("epmd")
    if rabbitmq and epmd:
        servers["BROKER_URL"] = RabbitMQ(folder, rabbitmq, epmd)
    else:
        missing.append("RabbitMQ (apt-get install rabbitmq-server)")
    return servers, missing


def free_port() -> int:
    """A port that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    """Whether somebody accepts connections there."""
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0
