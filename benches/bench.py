#!/usr/bin/env python3
"""Measures pgsluice beside PgBouncer and direct connections, and prints Markdown tables.

A fresh lab cluster (a primary and two standbys, fsync off), PgBouncer in front of its primary and pgsluice in front of all three run
on this machine, each with 20 server connections, transaction pooling and trust. In every round each scenario visits every target
once, in rotated order, so that a disturbance meets all of them; figures are medians over the rounds, and ratios are taken inside a
round first. Everything is stopped and removed at the end, also after Ctrl-C.

The figure to look at is the proxy's CPU time per query: transactions per second also count what pgbench and the servers take of the
same cores.
"""

import argparse
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

import checks
import idle_clients
import load
import machine
import report
from ground import Ground, GroundError

PAGE = Path(__file__).resolve().parent.parent / "docs" / "performance.md"


def main():
    options = parse_arguments()
    # Unwinds through `with`, or the servers would stay.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    allow_many_sockets()
    try:
        results = measure(options)
    except GroundError as error:
        sys.exit(f"bench: {error}")
    if options.raw:
        Path(options.raw).write_text(json.dumps(results, indent=1) + "\n")
    tables = report.tables(results)
    print(tables)
    problems = checks.problems(results)
    if problems:
        sys.exit("\n".join(f"bench: FAILED: {problem}" for problem in problems))
    if options.write:
        report.write_into(PAGE, tables)
        tell(f"wrote {PAGE}")


def measure(options):
    """One run, as plain data: what `report` and `checks` read."""
    scenarios = [load.SCENARIOS[name] for name in options.scenarios]
    with Ground(options.dir, Path(options.pgsluice), options.against, tell) as ground:
        ground.build(options.scale)
        tell("memory of idle clients")
        memory = measure_memory(ground, options.idle)
        targets = [ground.direct, *map(ground.start, ground.proxies)]
        warm_ups = [{"target": target.name, **load.run(ground, target, load.WARM_UP, 1)} for target in targets]
        before = ground.transactions_on_standbys()
        started = time.monotonic()
        samples, resident, other_work = measure_load(ground, targets, scenarios, options)
        took = time.monotonic() - started
        # A server counts a connection's last transactions when it closes.
        ground.stop_proxies()
        after = ground.transactions_on_standbys()
        return {
            "targets": [target.name for target in targets],
            "scenarios": options.scenarios,
            "samples": samples,
            "warm_ups": warm_ups,
            "memory": memory,
            "resident_mb": resident,
            "on_standbys": [b - a for a, b in zip(before, after)],
            "pgbouncer_pools_prepared": ground.pgbouncer.pools_prepared,
            "run": {
                "date": time.strftime("%Y-%m-%d"),
                "rounds": options.rounds,
                "seconds": options.seconds,
                "took_s": took,
                "idle_clients": options.idle,
                "scale": options.scale,
                "other_work_cpus": other_work,
                "machine": machine.description(),
                "versions": ground.versions(),
            },
        }


def measure_memory(ground, clients):
    """Processes of their own: one that has carried load keeps freed memory, and new clients would seem to cost nothing."""
    found = {}
    for proxy in ground.proxies:
        target = ground.start(proxy)
        # Opens the server connections, so that they aren't counted to the clients.
        load.run(ground, target, load.WARM_UP, 1)
        found[target.name] = idle_clients.memory(target, ground.user, ground.database, clients)
        ground.stop_proxies()
    return found


def measure_load(ground, targets, scenarios, options):
    samples, resident, other_work = [], {}, []
    for number in range(options.rounds):
        other_work.append(machine.busy_cpus(1))
        for scenario in scenarios:
            turn = number % len(targets)
            for target in targets[turn:] + targets[:turn]:
                sample = load.run(ground, target, scenario, options.seconds)
                samples.append({"round": number, "scenario": scenario.name, "target": target.name, **sample})
                if "error" in sample:
                    tell(f"{target.name}, {scenario.name}: {sample['error']}{ground.end_of_log(target)}")
        tell(f"round {number + 1} of {options.rounds} done")
    for target in targets:
        # One that is gone has failed its visits, and has been told of.
        if target.process and target.process.poll() is None:
            resident[target.name] = machine.memory_kb(target.process.pid) / 1024
    return samples, resident, other_work


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a minute's run with little precision, as a smoke test")
    parser.add_argument("--write", action="store_true", help=f"put the tables into docs/{PAGE.name}")
    parser.add_argument("--rounds", type=int, help="visits to each target in each scenario [5; quick: 2]")
    parser.add_argument("--seconds", type=int, help="length of a visit [4; quick: 1]")
    parser.add_argument("--scale", type=int, help="pgbench's scale, 100,000 accounts each [10; quick: 2]")
    parser.add_argument("--idle", type=int, metavar="N", help="idle clients whose memory is measured [1000; quick: 200]")
    parser.add_argument("--scenarios", help=f"a comma list of {', '.join(load.SCENARIOS)} [all; quick: those with 16 clients]")
    parser.add_argument("--raw", metavar="FILE", help="every sample, as JSON")
    parser.add_argument("--pgsluice", metavar="BINARY", default="target/release/pgsluice", help="[%(default)s]")
    parser.add_argument("--against", metavar="BINARY", help="another build of pgsluice, measured in the same rounds")
    parser.add_argument("--dir", default="/var/tmp", help="where the cluster's temporary folder is made [%(default)s]")
    options = parser.parse_args()
    for name, full, quick in [("rounds", 5, 2), ("seconds", 4, 1), ("scale", 10, 2), ("idle", 1000, 200)]:
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else full)
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")
    options.scenarios = options.scenarios.split(",") if options.scenarios else load.QUICK if options.quick else list(load.SCENARIOS)
    for name in options.scenarios:
        if name not in load.SCENARIOS:
            parser.error(f"there is no scenario {name}")
    return options


def stop(number, _):
    tell("interrupted: stopping everything")
    sys.exit(128 + number)


def allow_many_sockets():
    """For our own idle clients, and inherited by the proxies."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 65536)), hard))


def tell(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    os.umask(0o022)  # the servers' user must be able to read what root writes
    main()
