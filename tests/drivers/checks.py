"""What the Python drivers' checks share: where to connect, the list of checks, and a line for each.

A check is a function of a Target. It runs first against the primary itself and then through the proxy, so that a failure of both is the
check's own mistake, and a failure of the second alone is the proxy's.
"""

import asyncio
import faulthandler
import inspect
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass, field

QUICK = bool(os.environ.get("DRIVERS_QUICK"))
ONLY = os.environ.get("DRIVERS_ONLY", "").lower()
HOST = "127.0.0.1"
USER = "postgres"
# Server connections that the proxy may hold per node and database: many fewer than the clients of some checks.
POOL_SIZE = 3
SECONDS_PER_CHECK = 60


def rounds(full):
    """How often to repeat something: a quarter of it in a quick run."""
    return max(1, full // 4) if QUICK else full


@dataclass
class Target:
    """Where a check runs: the primary itself, or the proxy in front of the cluster."""

    label: str
    port: int
    database: str
    # What the check has opened, closed for it at its end.
    opened: list = field(default_factory=list)

    @property
    def is_proxy(self):
        return self.label == "proxy"

    def connect(self, connect, **options):
        connection = connect(**options)
        self.opened.append(connection)
        return connection


class TimedOut(BaseException):
    """Not an Exception, so that no check takes it for the error that it expects."""


CHECKS = []


def check(name, only=None):
    """Registers a check; `only` names the one target where it means something."""

    def register(function):
        CHECKS.append((name, only, function))
        return function

    return register


def targets():
    database = os.environ["DRIVERS_DATABASE"]
    return [
        Target("direct", int(os.environ["DRIVERS_DIRECT_PORT"]), f"{database}_direct"),
        Target("proxy", int(os.environ["DRIVERS_PROXY_PORT"]), f"{database}_proxy"),
    ]


def secure():
    """The proxy that asks for a password and speaks TLS: its port, the password and its certificate's file."""
    return int(os.environ["DRIVERS_SECURE_PORT"]), os.environ["DRIVERS_PASSWORD"], os.environ["DRIVERS_CERTIFICATE"]


def standby_ports():
    return [int(port) for port in os.environ["DRIVERS_STANDBY_PORTS"].split(",")]


def direct_port():
    return int(os.environ["DRIVERS_DIRECT_PORT"])


def until(is_so, what, seconds=15):
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)


def equal(found, wanted, what=""):
    assert found == wanted, f"{what + ': ' if what else ''}{shorten(found)}, not {shorten(wanted)}"


def shorten(value):
    text = repr(value)
    return text if len(text) < 300 else f"{text[:150]} … {text[-100:]}"


def tell(passed, driver, target, name, seconds, problem=""):
    word = "ok  " if passed else "FAIL"
    print(f"{word}  {driver:<14} {target.label:<6}  {name}{problem and ': ' + problem}  ({seconds:.1f} s)", flush=True)


def run(driver, close):
    """Runs all checks; `close` closes a connection."""
    # Where even a signal doesn't end a check, the process must not hang for ever.
    failures = 0
    for target in targets():
        for name, only, function in CHECKS:
            if ONLY not in name.lower() or (only and only != target.label):
                continue
            began = time.monotonic()
            faulthandler.dump_traceback_later(SECONDS_PER_CHECK + 15, exit=True)
            problem = None
            try:
                perform(function, target)
            except (Exception, TimedOut) as error:
                traceback.print_exc()
                problem = describe(error)
            finally:
                for connection in target.opened:
                    try:
                        close(connection)
                    except Exception:
                        pass
                target.opened.clear()
                faulthandler.cancel_dump_traceback_later()
            failures += problem is not None
            tell(problem is None, driver, target, name, time.monotonic() - began, problem or "")
    print("done", flush=True)
    sys.exit(1 if failures else 0)


def perform(function, target):
    if inspect.iscoroutinefunction(function):
        asyncio.run(asyncio.wait_for(function(target), SECONDS_PER_CHECK))
        return

    def out_of_time(_signal, _frame):
        raise TimedOut(f"not done after {SECONDS_PER_CHECK} s")

    signal.signal(signal.SIGALRM, out_of_time)
    signal.alarm(SECONDS_PER_CHECK)
    try:
        function(target)
    finally:
        signal.alarm(0)


def describe(error):
    """On one line, with the SQLSTATE and the place in the check."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if os.path.dirname(__file__) in frame.filename and "checks.py" != os.path.basename(frame.filename)]
    place = f" (line {own[-1].lineno})" if own else ""
    state = getattr(error, "sqlstate", None)
    text = " ".join(str(error).split())
    return f"{type(error).__name__}{' ' + state if state else ''}: {text[:400]}{place}"
