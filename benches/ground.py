"""What is measured, and where: a lab cluster in a temporary folder, PgBouncer and pgsluice in front of it.

`Ground` owns every process and file; leaving its `with` removes them, whatever happened inside.
"""

import json
import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

HOST = "127.0.0.1"
POOL_SIZE = 20
UNPRIVILEGED = ["postgres", "_postgres", "nobody"]


class GroundError(Exception):
    """The benchmark can't be set up; the text says why."""


@dataclass
class Target:
    """Something that pgbench can be pointed at. `process` is the proxy's, None for a direct connection."""

    name: str
    port: int
    process: subprocess.Popen | None = None
    # The database to ask for when a session prepares statements by name, if it isn't the usual one.
    prepared_database: str | None = None


@dataclass
class Pgsluice:
    """One build of pgsluice, with the lab's configuration file, which leaves routing and pools at their defaults."""

    name: str
    binary: Path
    refuses_root = False

    def command(self, ground, port):
        return [self.binary, "serve", "-c", ground.lab["config"], "--listen", f"{HOST}:{port}"]

    def environment(self):
        return {"PGSLUICE_HTTP": f"{HOST}:{free_ports(1)}"}

    def prepared_database(self, ground):
        return None

    def version(self):
        return output([self.binary, "--version"]).split()[-1]


@dataclass
class PgBouncer:
    """PgBouncer, with the primary behind it. Its database `NAME_session` is the same one with session pooling."""

    binary: str
    name: str = "PgBouncer"
    pools_prepared: bool = field(init=False)
    refuses_root = True

    def __post_init__(self):
        # Before 1.21, transaction pooling breaks prepared statements.
        self.pools_prepared = tuple(map(int, self.version().split(".")[:2])) >= (1, 21)

    def command(self, ground, port):
        users = ground.dir / "pgbouncer.users"
        users.write_text(f'"{ground.user}" ""\n')
        ini = ground.dir / "pgbouncer.ini"
        where = f"host={HOST} port={ground.primary_port} dbname={ground.database}"
        ini.write_text(
            f"[databases]\n{ground.database} = {where}\n{ground.database}_session = {where} pool_mode=session\n"
            f"[pgbouncer]\nlisten_addr = {HOST}\nlisten_port = {port}\nunix_socket_dir =\n"
            f"auth_type = trust\nauth_file = {users}\n"
            f"pool_mode = transaction\ndefault_pool_size = {POOL_SIZE}\nmax_client_conn = 10000\n"
            "log_connections = 0\nlog_disconnections = 0\nlog_stats = 0\n"
            + ("max_prepared_statements = 200\n" if self.pools_prepared else "")
        )
        return [self.binary, "-q", ini]

    def environment(self):
        return {}

    def prepared_database(self, ground):
        return None if self.pools_prepared else f"{ground.database}_session"

    def version(self):
        return re.search(r"PgBouncer (\S+)", output([self.binary, "--version"]))[1]


class Ground:
    user = database = "bench"

    def __init__(self, parent, pgsluice, against, tell):
        self.parent, self.tell = parent, tell
        binary = shutil.which("pgbouncer", path=os.environ.get("PATH", "") + ":/usr/sbin")
        if not binary:
            raise GroundError("pgbouncer is not installed")
        self.pgbouncer = PgBouncer(binary)
        self.pgsluice = Pgsluice("pgsluice", pgsluice.resolve())
        self.proxies = [self.pgbouncer, self.pgsluice]
        if against:
            self.proxies.append(Pgsluice("pgsluice-2", Path(against).resolve()))
        self.running = []
        self.lab = self.dir = None

    def __enter__(self):
        self.dir = Path(tempfile.mkdtemp(prefix="pgsluice-bench-", dir=self.parent))
        self.dir.chmod(0o755)
        return self

    def __exit__(self, *_):
        # A second Ctrl-C would leave servers behind.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        self.stop_proxies()
        if (self.dir / "lab").exists():
            down = [self.pgsluice.binary, "lab", "down", "--dir", self.dir / "lab"]
            done = subprocess.run(down, capture_output=True, text=True, start_new_session=True)
            if done.returncode != 0:
                self.tell(f"the cluster in {self.dir} is still there: {done.stderr.strip()}")
                return
        shutil.rmtree(self.dir)

    def build(self, scale):
        """The cluster, with pgbench's tables on all of its nodes."""
        self.tell("a cluster of three")
        base_port = free_ports(3)
        up = [self.pgsluice.binary, "lab", "up", "--fast", "--json", "--dir", self.dir / "lab", "--base-port", str(base_port)]
        self.lab = json.loads(output(up))
        self.primary_port, *self.standby_ports = (node["port"] for node in self.lab["nodes"])
        self.direct = Target("direct", self.primary_port)
        # Nothing of the servers' own housekeeping should fall into one target's turn.
        for setting in ["autovacuum = off", "checkpoint_timeout = '1h'", "max_wal_size = '8GB'", "archive_command = 'true'",
                        "wal_keep_size = '2GB'"]:
            self.psql(self.primary_port, f"ALTER SYSTEM SET {setting}")
        self.psql(self.primary_port, "SELECT pg_reload_conf()")
        self.psql(self.primary_port, f"CREATE ROLE {self.user} LOGIN")
        self.psql(self.primary_port, f"CREATE DATABASE {self.database} OWNER {self.user}")
        self.tell(f"pgbench's tables, scale {scale}")
        self.accounts = 100_000 * scale
        output([self.program("pgbench"), "-i", "-q", "-s", str(scale), *self.door(self.primary_port), self.database])
        self.psql(self.primary_port, "CHECKPOINT")
        self.wait_for_standbys()

    def start(self, proxy):
        """Starts a proxy and waits until it answers a query."""
        port = free_ports(1)
        with open(self.log(proxy), "w") as out:
            process = subprocess.Popen(
                proxy.command(self, port), stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=self.dir,
                env=clean_environment() | proxy.environment(), start_new_session=True, **(unprivileged_user() if proxy.refuses_root else {}),
            )
        self.running.append(process)
        ask = [self.program("psql"), "-XAtqc", "SELECT 1", *self.door(port), self.database]
        deadline = time.monotonic() + 15
        while subprocess.run(ask, capture_output=True, env=clean_environment()).returncode != 0:
            if process.poll() is not None or time.monotonic() > deadline:
                raise GroundError(f"{proxy.name} does not answer{self.end_of_log(proxy)}")
            time.sleep(0.1)
        return Target(proxy.name, port, process, proxy.prepared_database(self))

    def stop_proxies(self):
        for process in self.running:
            process.terminate()
        for process in self.running:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.running.clear()

    def log(self, proxy):
        return self.dir / f"{proxy.name}.log"

    def end_of_log(self, proxy):
        """To be added to a complaint; nothing for what has no log."""
        if not self.log(proxy).exists():
            return ""
        return "\n  its log ends with\n    " + "\n    ".join(self.log(proxy).read_text(errors="replace").splitlines()[-5:])

    def transactions_on_standbys(self):
        """What each standby has committed for the benchmark, by its own count."""
        count = f"SELECT xact_commit FROM pg_stat_database WHERE datname = '{self.database}'"
        return [int(self.psql(port, count)) for port in self.standby_ports]

    def wait_for_standbys(self):
        written = self.psql(self.primary_port, "SELECT pg_current_wal_lsn()")
        deadline = time.monotonic() + 120
        for port in self.standby_ports:
            while self.psql(port, f"SELECT pg_last_wal_replay_lsn() >= '{written}'") != "t":
                if time.monotonic() > deadline:
                    raise GroundError("a standby does not catch up")
                time.sleep(0.1)

    def versions(self):
        return {"PostgreSQL": self.lab["version"]} | {proxy.name: proxy.version() for proxy in self.proxies}

    def psql(self, port, sql):
        """As the superuser, outside the benchmark's database."""
        return output([self.program("psql"), "-XAtqc", sql, "-h", HOST, "-p", str(port), "-U", self.lab["user"], "postgres"]).strip()

    def door(self, port):
        """Where and as whom pgbench connects."""
        return ["-h", HOST, "-p", str(port), "-U", self.user]

    def program(self, name):
        return os.path.join(self.lab["pg_bin"], name)


def unprivileged_user():
    """Popen's arguments that drop root."""
    if os.geteuid() != 0:
        return {}
    for name in UNPRIVILEGED:
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": []}
    raise GroundError("PgBouncer refuses to run as root, and there is no user postgres to run it")


def free_ports(count):
    """The first of so many free ports in a row, below those that the kernel gives to outgoing connections."""
    for _ in range(1000):
        first = random.randrange(10240, 32000)
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind((HOST, port))
        except OSError:
            continue
        return first
    raise GroundError("no free ports")


def clean_environment():
    """Without what would redirect or configure the programs under test."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PG", "PGSLUICE_"))}


def output(command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=clean_environment())
    except OSError as error:
        raise GroundError(f"{command[0]}: {error.strerror}") from error
    if done.returncode != 0:
        raise GroundError(f"{' '.join(map(str, command))}\n{done.stderr.strip()}")
    return done.stdout
