"""The scenarios, and one visit of one of them to one target."""

import re
import subprocess
from dataclasses import dataclass

import machine
from ground import clean_environment

PIPELINE = (
    "\\set aid random(1, :accounts)\n\\startpipeline\n"
    + "SELECT abalance FROM pgbench_accounts WHERE aid = :aid;\n" * 10
    + "\\endpipeline\n"
)


@dataclass(frozen=True)
class Scenario:
    name: str
    clients: int
    arguments: tuple
    # Queries in a transaction of each of pgbench's scripts. The first script only reads.
    queries: tuple = (1,)
    # Statements are prepared by name, and used in later transactions.
    prepares: bool = False
    # pgbench's standard input, for the script `-f -`.
    script: str | None = None


def select_only(mode, clients):
    return Scenario(f"{mode}/{clients}", clients, ("-S", "-M", mode), prepares=mode == "prepared")


SCENARIOS = {
    scenario.name: scenario
    for scenario in [
        select_only("simple", 1),
        select_only("simple", 16),
        select_only("simple", 64),
        select_only("extended", 1),
        select_only("extended", 16),
        select_only("extended", 64),
        select_only("prepared", 1),
        select_only("prepared", 16),
        Scenario("pipeline/16", 16, ("-f", "-", "-M", "prepared"), queries=(10,), prepares=True, script=PIPELINE),
        # Nine selects to one TPC-B: BEGIN, three UPDATEs, SELECT, INSERT, END.
        Scenario("mixed/16", 16, ("-b", "select-only@9", "-b", "tpcb-like@1", "-M", "simple"), queries=(1, 7)),
    ]
}
QUICK = [name for name in SCENARIOS if name.endswith("/16")]
WARM_UP = select_only("simple", 20)


def run(ground, target, scenario, seconds):
    """pgbench's figures and the proxy's CPU time, or {"error": …}."""
    database = scenario.prepares and target.prepared_database or ground.database
    command = [
        ground.program("pgbench"), "-n", *ground.door(target.port), "-c", str(scenario.clients), "-j", "1", "-T", str(seconds),
        "-D", f"accounts={ground.accounts}", *scenario.arguments, database,
    ]
    pid = target.process and target.process.pid
    try:
        before = machine.cpu_seconds(pid) if pid else 0
        done = subprocess.run(
            command, input=scenario.script or "", capture_output=True, text=True, timeout=seconds + 30, env=clean_environment()
        )
        cpu = machine.cpu_seconds(pid) - before if pid else None
    except subprocess.TimeoutExpired:
        return {"error": "no end: pgbench was stopped"}
    except OSError:
        return {"error": "the proxy is gone"}
    return parse(done, scenario, cpu)


def parse(done, scenario, cpu):
    figure = lambda pattern: re.search(pattern, done.stdout, re.M)
    tps = figure(r"^tps = ([\d.]+)")
    latency = figure(r"^latency average = ([\d.]+) ms")
    total = figure(r"^number of transactions actually processed: (\d+)")
    failed = figure(r"^number of failed transactions: (\d+)")
    complaint = re.search(r"(?:error|fatal):.*", done.stderr, re.I)
    if done.returncode != 0 or complaint or (failed and int(failed[1]) > 0):
        return {"error": complaint[0] if complaint else done.stderr.strip()[-200:] or "failed transactions"}
    if not (tps and latency and total and int(total[1]) > 0):
        return {"error": "pgbench's output has no figures"}
    # With several scripts there is a line for each: " - 1234 transactions (90.1% of total, tps = …)".
    each = [int(n) for n in re.findall(r"^ - (\d+) transactions", done.stdout, re.M)] or [int(total[1])]
    if len(each) != len(scenario.queries):
        return {"error": "pgbench's output has other scripts than expected"}
    queries = sum(transactions * queries for transactions, queries in zip(each, scenario.queries))
    return {
        "tps": float(tps[1]),
        "latency_ms": float(latency[1]),
        "read_only": each[0],
        "cpu_us_per_query": None if cpu is None else cpu / queries * 1e6,
    }
