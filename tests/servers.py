"""Which real servers can a test start, freeze and kill?

Each class runs one server on a free port of 127.0.0.1, with its files in a temporary folder that only it
uses. Nothing of the machine's own configuration is read or changed. ``close`` ends the server with all its
children and removes the folder; if the test process itself is killed, the kernel ends the server (where
``setpriv`` exists).
"""

from __future__ import annotations

import contextlib
import glob
import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

T = TypeVar("T")

HOST = "127.0.0.1"
USER = "uno"
PASSWORD = "correct-horse-battery"


class Missing(Exception):
    """The program is not installed; the message names it and the Debian package that has it."""


def required(make: Callable[[], T]) -> T:
    """What ``make`` returns; where a program is Missing, skip the test, or fail it with CI=true."""
    try:
        return make()
    except Missing as missing:
        if os.environ.get("CI") == "true":
            pytest.fail(str(missing))
        pytest.skip(str(missing))


def find_program(package: str, *candidates: str) -> str:
    """The path of the first candidate that exists: a name on the PATH, or a glob (newest version first).

    Missing if there is none.
    """
    for candidate in candidates:
        if "/" not in candidate:
            path = shutil.which(candidate)
            if path:
                return path
            continue
        matches = [path for path in glob.glob(candidate) if os.access(path, os.X_OK)]
        if matches:
            return max(matches, key=_version_order)
    raise Missing(f"{Path(candidates[0]).name} not found (apt-get install {package})")


def from_newer_debian(package: str, path: str, suite: str = "sid") -> str:
    """A program that this Debian does not have yet: its package is brought from ``suite`` by apt, and unpacked, not
    installed. It is kept in a temporary folder for the next run. Missing where that cannot be done.
    """
    folder = Path(tempfile.gettempdir()) / f"uno-test-programs-{os.getuid()}"
    program = folder / package / path
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid != os.getuid() or folder.is_symlink():
            raise Missing(f"{folder} belongs to somebody else")
    if program.exists():
        return str(program)
    if not shutil.which("apt-get") or not shutil.which("dpkg") or not Path(keyring).exists():
        raise Missing(f"{package} not found (it is in Debian {suite}, and there is no apt to bring it)")
    with tempfile.TemporaryDirectory(dir=folder) as work:
        for name in ("lists/partial", "cache/archives/partial"):
            Path(work, name).mkdir(parents=True)
        sources, config = Path(work, "sources.list"), Path(work, "apt.conf")
        sources.write_text(f"deb [signed-by={keyring}] {_debian(package)} {suite} main\n")
        settings = {
            "Dir::Etc::sourcelist": str(sources),
            "Dir::Etc::sourceparts": "-",
            "Dir::State::lists": f"{work}/lists",
            "Dir::Cache": f"{work}/cache",
            "APT::Sandbox::User": pwd.getpwuid(os.getuid()).pw_name,
        }
        config.write_text("".join(f'{name} "{value}";\n' for name, value in settings.items()))
        try:
            for command in (
                ["apt-get", "-qq", "update"],
                ["apt-get", "-qq", "download", package],
                ["sh", "-c", "dpkg -x ./*.deb unpacked"],
            ):
                subprocess.run(
                    command,
                    cwd=work,
                    env={**os.environ, "APT_CONFIG": str(config)},
                    check=True,
                    capture_output=True,
                    stdin=subprocess.DEVNULL,
                    timeout=300,
                )
            with contextlib.suppress(OSError):  # another run was first
                Path(work, "unpacked").rename(folder / package)
        except (subprocess.SubprocessError, OSError) as error:
            raise Missing(f"{package} cannot be had from Debian {suite} ({type(error).__name__})") from None
    if not program.exists():
        raise Missing(f"Debian {suite}'s {package} has no {path}")
    return str(program)


def _debian(package: str) -> str:
    """Where this machine's apt gets Debian from."""
    sources = ""
    for path in (Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))):
        with contextlib.suppress(OSError):
            sources += path.read_text() + "\n"
    found = re.search(r"^(?:URIs:|deb(?: \[.*?\])?) *(\S+/debian)/?(?: |$)", sources, re.MULTILINE)
    if found is None:
        raise Missing(f"{package} not found (apt knows no Debian here to bring it from)")
    return found[1]


def _version_order(path: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in path.replace(".", "/").split("/")]


def free_port() -> int:
    """A free port, below those that the kernel gives to outgoing connections: none of them takes it first."""
    while True:
        port = random.randint(20_000, 31_999)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            return port


def wait_until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Call ``condition`` until it is true; TimeoutError after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(0.02)


class Server:
    """A server process with its children: start, freeze, thaw, kill, restart, close."""

    name = "server"
    scheme = ""
    start_seconds = 30.0

    def __init__(self) -> None:
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix=f"uno-test-{self.name}-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._frozen = False
        try:
            self.prepare()
            self.start()
        except BaseException:
            self.close()
            raise

    # What a kind of server says of itself.

    def prepare(self) -> None:
        """Write what the server needs before its first start."""

    def command(self) -> list[str]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return {}

    def user(self) -> str | None:
        """The account to run as; None for the one that runs the tests."""
        return None

    def answers(self) -> bool:
        """Is it ready to serve?"""
        raise NotImplementedError

    @property
    def url(self) -> str:
        return f"{self.scheme}://{HOST}:{self.port}"

    # What a test does with it.

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start and wait until it answers; RuntimeError with the end of its log if it does not."""
        self._process = self._spawn(self.command())
        try:
            wait_until(lambda: not self.running or self.answers(), self.start_seconds, f"{self.name} start")
        except TimeoutError as error:
            raise RuntimeError(f"{error}\n{self.log()}") from None
        if not self.running:
            raise RuntimeError(f"{self.name} ended at once\n{self.log()}")

    def freeze(self) -> None:
        """Stop every process of the server where it stands; its port still accepts, nothing answers."""
        frozen: set[int] = set()
        while new := [process for process in self._tree() if process.pid not in frozen]:
            for process in new:  # one may have forked another meanwhile
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.suspend()
                frozen.add(process.pid)
        self._frozen = True

    def thaw(self) -> None:
        """Let a frozen server go on."""
        for process in reversed(self._tree()):
            with contextlib.suppress(psutil.NoSuchProcess):  # it may have ended meanwhile
                process.resume()
        self._frozen = False

    def kill(self) -> None:
        """End the server at once with all its children, as a crash does; its files stay."""
        tree = self._tree()
        for process in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if self._process is not None:
            self._process.wait(10)
        psutil.wait_procs(tree, timeout=10)
        self._process = None
        self._frozen = False

    def restart(self) -> None:
        """Kill it if it runs and start it again with the same port and files."""
        self.kill()
        self.start()

    def recover(self) -> None:
        """Whatever a test has done to it: running and answering afterwards."""
        if not self.running:
            self.start()
        elif self._frozen:
            self.thaw()

    def close(self) -> None:
        """End it and remove its files."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def log(self) -> str:
        """The end of what it printed."""
        path = self.folder / "output.log"
        return path.read_text(errors="replace")[-3000:] if path.exists() else ""

    # How.

    def _spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        setpriv = shutil.which("setpriv")
        if setpriv:
            command = [setpriv, "--pdeathsig", "KILL", "--", *command]
        with (self.folder / "output.log").open("ab") as output:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "HOME": str(self.folder)}
                | self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                user=self.user(),
                start_new_session=True,
            )

    def _tree(self) -> list[psutil.Process]:
        """The process and all that descend from it, parents first."""
        if not self.running:
            return []
        assert self._process is not None
        root = psutil.Process(self._process.pid)
        return [root, *root.children(recursive=True)]


def _unprivileged(preferred: str) -> str | None:
    """The account for a server that refuses to run as root."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return preferred if preferred in names else "nobody"


class PostgreSQL(Server):
    """``url`` names the database ``postgres`` as the superuser ``uno`` with a password."""

    name = "postgresql"
    scheme = "postgresql"

    def prepare(self) -> None:
        # Debian keeps the programs off the PATH; what is on the PATH may be another server's.
        self.initdb = find_program("postgresql", "/usr/lib/postgresql/*/bin/initdb", "initdb")
        account = self.user()
        if account:
            shutil.chown(self.folder, account)
        password_file = self.folder / "password"
        password_file.write_text(PASSWORD)
        password_file.chmod(0o644)
        options = ["--pgdata=data", f"--username={USER}", "--auth=scram-sha-256", "--pwfile=password"]
        subprocess.run(
            [self.initdb, *options, "--no-sync", "--no-locale", "--encoding=UTF8"],
            cwd=self.folder,
            user=account,
            check=True,
            stdout=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
        )

    def command(self) -> list[str]:
        settings = {
            "port": str(self.port),
            "listen_addresses": HOST,
            "unix_socket_directories": str(self.folder),
            "fsync": "off",
            "max_connections": "50",
            "shared_buffers": "16MB",
        }
        postgres = str(Path(self.initdb).with_name("postgres"))
        return [postgres, "-D", "data", *(f"--{name}={value}" for name, value in settings.items())]

    def user(self) -> str | None:
        return _unprivileged("postgres")

    def answers(self) -> bool:
        ready = [str(Path(self.initdb).with_name("pg_isready")), "-q", "-h", HOST, "-p", str(self.port)]
        return subprocess.run(ready, check=False).returncode == 0

    @property
    def url(self) -> str:
        return f"postgresql://{USER}:{PASSWORD}@{HOST}:{self.port}/postgres"

    def close(self) -> None:
        # A killed server leaves its System V shared memory; a start adopts it, and an orderly end removes it.
        with contextlib.suppress(RuntimeError, OSError):
            if not self.running and (self.folder / "data" / "postmaster.pid").exists():
                self.start()
        if self._process is not None and self.running:
            self.thaw()
            self._process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
        super().close()


class MariaDB(Server):
    """``url`` names the database ``shop`` as the user ``uno`` with a password."""

    name = "mariadb"
    scheme = "mysql"
    database = "shop"

    def prepare(self) -> None:
        self.program = find_program("mariadb-server", "/usr/sbin/mariadbd", "mariadbd")
        account = self.user()
        if account:
            shutil.chown(self.folder, account)
        installer = find_program("mariadb-server", "mariadb-install-db", "mysql_install_db")
        self._run([installer, "--no-defaults", f"--datadir={self.folder}/data", "--skip-test-db"], "")
        # One user of ours; what the installer makes has no way in from outside.
        script = (
            f"FLUSH PRIVILEGES;\nCREATE DATABASE {self.database};\n"
            f"CREATE USER '{USER}'@'%' IDENTIFIED BY '{PASSWORD}';\n"
            f"GRANT ALL ON *.* TO '{USER}'@'%' WITH GRANT OPTION;\n"
        )
        self._run([*self.command(), "--bootstrap"], script)

    def _run(self, command: list[str], script: str) -> None:
        done = subprocess.run(
            command,
            input=script.encode(),
            cwd=self.folder,
            user=self.user(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{command[0]} failed\n{done.stdout.decode(errors='replace')[-3000:]}")

    def command(self) -> list[str]:
        settings = {
            "datadir": str(self.folder / "data"),
            "port": str(self.port),
            "bind-address": HOST,
            "socket": str(self.folder / "socket"),
            "pid-file": str(self.folder / "pid"),
            "innodb-flush-log-at-trx-commit": "0",
            "innodb-buffer-pool-size": "16M",
            "innodb-log-file-size": "4M",
            "max-connections": "50",
        }
        return [self.program, "--no-defaults", *(f"--{name}={value}" for name, value in settings.items())]

    def user(self) -> str | None:
        return _unprivileged("mysql")

    def answers(self) -> bool:
        return b"mysql_native_password" in _exchange(self.port, b"")

    @property
    def url(self) -> str:
        return f"mysql://{USER}:{PASSWORD}@{HOST}:{self.port}/{self.database}"


class MongoDB(Server):
    """``url`` names the database ``shop`` as the user ``uno`` with a password.

    A real mongod where there is one on the PATH. Debian has none: else SecantusDB, which is another's implementation
    of the protocol and of the commands, on MongoDB's storage engine. Both obey fail points.
    """

    name = "mongodb"
    scheme = "mongodb"
    database = "shop"

    def __init__(self) -> None:
        self.auth = False
        super().__init__()

    def prepare(self) -> None:
        beside = str(Path(sys.executable).with_name("secantusd-py"))
        self.program = find_program("mongod, or pip install secantusdb", "mongod", beside)

    def start(self) -> None:
        super().start()
        if not self.auth:  # the first time: nobody but us knows of it yet
            from pymongo import MongoClient

            client: MongoClient[dict[str, Any]]
            with MongoClient(HOST, self.port, directConnection=True) as client:
                roles = [{"role": "root", "db": "admin"}]
                client.admin.command("createUser", USER, pwd=PASSWORD, roles=roles)
            self.auth = True
            assert self._process is not None
            self._process.send_signal(signal.SIGINT)  # an orderly end: the user is on the disk
            self._process.wait(10)
            self.restart()

    def command(self) -> list[str]:
        if self.program.endswith("mongod"):
            command = [self.program, f"--dbpath={self.folder}", f"--bind_ip={HOST}", f"--port={self.port}"]
            return [*command, "--setParameter=enableTestCommands=1", *(["--auth"] if self.auth else [])]
        command = [
            self.program,
            f"--host={HOST}",
            f"--port={self.port}",
            f"--storage-path={self.folder}/data",
        ]
        command += ["--standalone", "--enable-test-commands", "--cache-size=64M"]
        return [*command, *(["--auth"] if self.auth else [])]

    def answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((HOST, self.port), timeout=1):
            return True
        return False

    @property
    def url(self) -> str:
        return f"mongodb://{USER}:{PASSWORD}@{HOST}:{self.port}/{self.database}?authSource=admin"


class Redis(Server):
    """``url`` carries the password if there is one."""

    name = "redis"
    scheme = "redis"

    def __init__(self, password: str | None = None) -> None:
        self.password = password
        super().__init__()

    def prepare(self) -> None:
        self.program = find_program("redis-server", "redis-server", "valkey-server")

    def command(self) -> list[str]:
        options = {
            "port": str(self.port),
            "bind": HOST,
            "dir": str(self.folder),
            "save": "",
            "appendonly": "no",
        }
        if self.password:
            options["requirepass"] = self.password
        return [self.program, *(word for name, value in options.items() for word in (f"--{name}", value))]

    def answers(self) -> bool:
        reply = _exchange(self.port, b"PING\r\n")
        return reply.startswith((b"+PONG", b"-NOAUTH"))

    @property
    def url(self) -> str:
        user = f":{self.password}@" if self.password else ""
        return f"redis://{user}{HOST}:{self.port}/0"


class RedisNode(Redis):
    """A node of a cluster."""

    def command(self) -> list[str]:
        self.bus = getattr(self, "bus", 0) or free_port()
        options = ["--cluster-enabled", "yes", "--cluster-port", str(self.bus)]
        return [
            *super().command(), *options, "--cluster-node-timeout", "2000", "--cluster-require-full-coverage", "no"
        ]  # fmt: skip


class RedisCluster:
    """Three nodes that share the slots, without replicas."""

    def __init__(self) -> None:
        self.nodes: list[RedisNode] = []
        try:
            for _ in range(3):
                self.nodes.append(RedisNode())
            for node, slots in zip(self.nodes, ("0 5460", "5461 10922", "10923 16383"), strict=True):
                _exchange(node.port, f"CLUSTER ADDSLOTSRANGE {slots}\r\n".encode())
            first = self.nodes[0]
            for node in self.nodes[1:]:
                _exchange(first.port, f"CLUSTER MEET {HOST} {node.port} {node.bus}\r\n".encode())
            wait_until(lambda: all(map(self._knows_all, self.nodes)), 30, "a cluster of three")
        except BaseException:
            self.close()
            raise

    @staticmethod
    def _knows_all(node: RedisNode) -> bool:
        told = _exchange(node.port, b"CLUSTER INFO\r\n")
        return b"cluster_state:ok" in told and b"cluster_slots_ok:16384" in told

    def recover(self) -> None:
        """All nodes run and know of each other."""
        for node in self.nodes:
            node.recover()
        wait_until(lambda: all(map(self._knows_all, self.nodes)), 30, "a cluster of three")

    def close(self) -> None:
        """End all nodes."""
        for node in self.nodes:
            node.close()


class Sentinel(Redis):
    """Watches one Redis server under the name ``shop``."""

    name = "sentinel"

    def __init__(self, master: Redis) -> None:
        self.master = master
        super().__init__()

    def prepare(self) -> None:
        super().prepare()
        (self.folder / "sentinel.conf").write_text(
            f"port {self.port}\nbind {HOST}\ndir {self.folder}\n"
            f"sentinel monitor shop {HOST} {self.master.port} 1\n"
            "sentinel down-after-milliseconds shop 500\n"
        )

    def command(self) -> list[str]:
        return [self.program, "sentinel.conf", "--sentinel"]


class RabbitMQ(Server):
    """``url`` names the virtual host ``/`` with the user ``uno`` and a password. Its epmd is its own, too."""

    name = "rabbitmq"
    scheme = "amqp"
    start_seconds = 50.0
    plugins = ""

    def settings(self) -> str:
        """Lines of its configuration beyond those of every server."""
        return ""

    def prepare(self) -> None:
        # The script in /usr/sbin changes the account and the folders; the one below it does as it is told.
        package = "rabbitmq-server"
        self.program = find_program(
            package, "/usr/lib/rabbitmq/bin/rabbitmq-server", "/opt/rabbitmq/sbin/rabbitmq-server", package
        )
        self.epmd = find_program(package, "epmd")
        self.epmd_port = free_port()
        self._epmd: subprocess.Popen[bytes] | None = None
        (self.folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.default = {HOST}:{self.port}\n"
            f"default_user = {USER}\n"
            f"default_pass = {PASSWORD}\n"
            "log.console = true\n"
            "log.file = false\n" + self.settings()
        )
        (self.folder / "enabled_plugins").write_text(f"[{self.plugins}].\n")

    def command(self) -> list[str]:
        return [self.program]

    def environment(self) -> dict[str, str]:
        folder = str(self.folder)
        return {
            "ERL_EPMD_PORT": str(self.epmd_port),
            "ERL_EPMD_ADDRESS": HOST,
            "RABBITMQ_NODENAME": f"uno{self.port}@localhost",
            "RABBITMQ_CONF_ENV_FILE": f"{folder}/none",
            "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq.conf",
            "RABBITMQ_ADVANCED_CONFIG_FILE": f"{folder}/none",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/enabled_plugins",
            "RABBITMQ_MNESIA_BASE": f"{folder}/mnesia",
            "RABBITMQ_LOG_BASE": f"{folder}/log",
            "RABBITMQ_PID_FILE": f"{folder}/pid",
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            # Replace the start script by the virtual machine, rather than leaving a shell between it and us.
            "RUNNING_UNDER_SYSTEMD": "true",
        }

    def start(self) -> None:
        if self._epmd is None:
            self._epmd = self._spawn([self.epmd, "-address", HOST, "-port", str(self.epmd_port)])
        super().start()

    def answers(self) -> bool:
        return _exchange(self.port, b"AMQP\x00\x00\x09\x01").startswith(b"\x01\x00\x00")

    @property
    def url(self) -> str:
        return f"amqp://{USER}:{PASSWORD}@{HOST}:{self.port}/"

    def close(self) -> None:
        super().close()
        epmd = getattr(self, "_epmd", None)
        if epmd is not None:
            epmd.kill()
            epmd.wait(10)


class ManagedRabbitMQ(RabbitMQ):
    """The same with the management plug-in, whose numbers it renews every second; ``management`` is its address."""

    plugins = "rabbitmq_management"

    def settings(self) -> str:
        self.management_port = free_port()
        return (
            f"management.tcp.ip = {HOST}\n"
            f"management.tcp.port = {self.management_port}\n"
            "collect_statistics_interval = 1000\n"
        )

    def answers(self) -> bool:
        return super().answers() and b"401" in _exchange(
            self.management_port, b"GET /api/overview HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )

    @property
    def management(self) -> str:
        return f"http://{HOST}:{self.management_port}"


class NATS(Server):
    """``url`` carries a user and a password; JetStream is on."""

    name = "nats"
    scheme = "nats"

    def prepare(self) -> None:
        self.program = find_program("nats-server", "nats-server", "/usr/sbin/nats-server")

    def command(self) -> list[str]:
        where = ["--addr", HOST, "--port", str(self.port), "--jetstream", "--store_dir", str(self.folder)]
        return [self.program, *where, "--user", USER, "--pass", PASSWORD]

    def answers(self) -> bool:
        return _exchange(self.port, b"").startswith(b"INFO")

    @property
    def url(self) -> str:
        return f"nats://{USER}:{PASSWORD}@{HOST}:{self.port}"


class Mosquitto(Server):
    """An MQTT broker that asks for the user ``uno`` and a password."""

    name = "mosquitto"
    scheme = "mqtt"

    def prepare(self) -> None:
        self.program = find_program("mosquitto", "mosquitto", "/usr/sbin/mosquitto")
        password_file = self.folder / "passwords"
        password_file.write_text(f"{USER}:{PASSWORD}\n")
        account = "user root\n" if os.geteuid() == 0 else ""
        (self.folder / "mosquitto.conf").write_text(
            f"listener {self.port} {HOST}\npassword_file {password_file}\nsys_interval 1\n{account}"
        )
        passwd = find_program("mosquitto", "mosquitto_passwd")
        subprocess.run([passwd, "-U", str(password_file)], check=True, stdout=subprocess.DEVNULL)

    def command(self) -> list[str]:
        return [self.program, "-c", "mosquitto.conf"]

    def answers(self) -> bool:
        connect = b"\x10\x0e\x00\x04MQTT\x04\x02\x00\x0a\x00\x02up"
        return _exchange(self.port, connect).startswith(b"\x20")


class Prometheus(Server):
    """Runs with the given configuration text (YAML); ``url`` is the root of its HTTP API."""

    name = "prometheus"
    scheme = "http"

    def __init__(self, config: str, *, program: str | None = None, features: str = "") -> None:
        self.config = config
        self.given, self.features = program, features
        super().__init__()

    def prepare(self) -> None:
        self.program = self.given or find_program("prometheus", "prometheus")
        (self.folder / "prometheus.yml").write_text(self.config)

    def command(self) -> list[str]:
        return [
            self.program,
            "--config.file=prometheus.yml",
            "--storage.tsdb.path=data",
            f"--web.listen-address={HOST}:{self.port}",
            "--log.level=warn",
            *([f"--enable-feature={self.features}"] if self.features else []),
        ]

    def answers(self) -> bool:
        return b" 200 " in _exchange(self.port, b"GET /-/ready HTTP/1.0\r\n\r\n").partition(b"\r\n")[0]


class VictoriaMetrics(Server):
    """A store of metrics that takes OTLP at ``url`` + /opentelemetry/v1/metrics and is asked as Prometheus is."""

    name = "victoria-metrics"
    scheme = "http"

    def prepare(self) -> None:
        self.program = shutil.which(self.name) or from_newer_debian(self.name, "usr/bin/victoria-metrics")

    def command(self) -> list[str]:
        return [
            self.program,
            f"-httpListenAddr={HOST}:{self.port}",
            "-storageDataPath=data",
            "-search.latencyOffset=0s",
            "-search.disableCache",
            "-retentionPeriod=100y",
            "-loggerLevel=WARN",
        ]

    def answers(self) -> bool:
        return b" 200 " in _exchange(self.port, b"GET /health HTTP/1.0\r\n\r\n").partition(b"\r\n")[0]


def _exchange(port: int, request: bytes) -> bytes:
    """Send ``request`` and return the first bytes of the answer; nothing if there is none."""
    try:
        with socket.create_connection((HOST, port), timeout=1) as connection:
            connection.sendall(request)
            return connection.recv(256)
    except OSError:
        return b""
