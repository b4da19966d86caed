"""Results as Markdown."""

from statistics import median

BEGIN = "<!-- written by benches/run.sh --write, up to the end mark -->"
END = "<!-- end of what was written -->"


class Figures:
    """Medians over the rounds. A ratio is taken inside a round first: what disturbs a round disturbs both of its sides."""

    def __init__(self, results):
        self.rounds = range(results["run"]["rounds"])
        self.cells = {(s["scenario"], s["target"], s["round"]): s for s in results["samples"]}

    def values(self, scenario, target, key):
        found = (self.cells.get((scenario, target, r), {}).get(key) for r in self.rounds)
        return [value for value in found if value is not None]

    def median(self, scenario, target, key):
        values = self.values(scenario, target, key)
        return median(values) if values else None

    def ratios(self, scenario, target, base, key):
        pairs = (
            (self.cells.get((scenario, target, r), {}).get(key), self.cells.get((scenario, base, r), {}).get(key))
            for r in self.rounds
        )
        return [a / b for a, b in pairs if a is not None and b]

    def ratio(self, scenario, target, base, key):
        ratios = self.ratios(scenario, target, base, key)
        return median(ratios) if ratios else None


def tables(results):
    figures = Figures(results)
    proxies = [name for name in results["targets"] if name != "direct"]
    ours = [name for name in proxies if name != "PgBouncer"]
    parts = [
        "**The proxy's CPU time per query, µs**",
        cpu_table(results, figures, proxies, ours),
        "**Transactions per second**",
        tps_table(results, figures, proxies, ours),
        "**Resident memory**",
        memory_table(results, proxies, ours),
        conditions(results, figures),
    ]
    return "\n\n".join(parts) + "\n"


def cpu_table(results, figures, proxies, ours):
    key = "cpu_us_per_query"
    head = ["scenario", *proxies, *(f"{name} / PgBouncer" for name in ours), *(["lowest and highest round"] if len(ours) == 1 else [])]
    rows = []
    for scenario in results["scenarios"]:
        row = [scenario, *(number(figures.median(scenario, name, key), 1) for name in proxies)]
        row += [number(figures.ratio(scenario, name, "PgBouncer", key), 2) for name in ours]
        if len(ours) == 1:
            ratios = figures.ratios(scenario, ours[0], "PgBouncer", key)
            row.append(f"{min(ratios):.2f} to {max(ratios):.2f}" if ratios else "-")
        rows.append(row)
    return table(head, rows)


def tps_table(results, figures, proxies, ours):
    head = ["scenario", "direct", *proxies, *(f"{name} / PgBouncer" for name in ours), *(f"{name} / direct" for name in ours)]
    rows = []
    for scenario in results["scenarios"]:
        row = [scenario, *(number(figures.median(scenario, name, "tps"), 0) for name in ["direct", *proxies])]
        for base in ("PgBouncer", "direct"):
            row += [number(figures.ratio(scenario, name, base, "tps"), 2) for name in ours]
        rows.append(row)
    return table(head, rows)


def memory_table(results, proxies, ours):
    memory, clients = results["memory"], results["run"]["idle_clients"]
    kinds = [
        ("started, 20 clients served, MB", {name: memory[name].get("before_mb") for name in proxies}, 1),
        (f"each of {clients} idle clients, KB", {name: memory[name].get("kb_per_client") for name in proxies}, 2),
        ("after all scenarios, MB", {name: results["resident_mb"].get(name) for name in proxies}, 1),
    ]
    rows = []
    for title, values, digits in kinds:
        row = [title, *(number(values[name], digits) for name in proxies)]
        for name in ours:
            a, b = values[name], values["PgBouncer"]
            row.append(number(a / b if a is not None and b else None, 2))
        rows.append(row)
    return table(["", *proxies, *(f"{name} / PgBouncer" for name in ours)], rows)


def conditions(results, figures):
    run = results["run"]
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    noise = []
    for scenario in results["scenarios"]:
        values = figures.values(scenario, "direct", "tps")
        if len(values) > 1:
            noise.append((max(values) - min(values)) / median(values))
    lines = [
        f"- {run['date']}; {run['machine']}; {versions}; pgbench scale {run['scale']}.",
        f"- {run['rounds']} rounds of {run['seconds']} s a visit, {run['took_s']:.0f} s in all. Before each round other programs kept"
        f" {median(run['other_work_cpus']):.2f} CPUs busy (median; {max(run['other_work_cpus']):.2f} at most)."
        + (f" Direct transactions per second spread by {median(noise):.0%} between rounds." if noise else ""),
        f"- {where_reads_went(results)}",
    ]
    if "simple/1" in results["scenarios"]:
        times = ((name, figures.median("simple/1", name, "latency_ms")) for name in results["targets"])
        lines.append("- A single client's query, simple: " + ", ".join(f"{name} {number(t and t * 1000, 0)} µs" for name, t in times) + ".")
    if not results["pgbouncer_pools_prepared"] and any(s.startswith(("prepared", "pipeline")) for s in results["scenarios"]):
        version = run["versions"]["PgBouncer"]
        lines.append(
            f"- PgBouncer {version} can't pool statements prepared by name (1.21 can): in `prepared` and `pipeline` its clients have session"
            " pooling, each a server connection of its own. pgsluice pools by transaction in all of them."
        )
    return "\n".join(lines)


def where_reads_went(results):
    ours = [name for name in results["targets"] if name.startswith("pgsluice")]
    sent = results["warm_ups"] + results["samples"]
    reads = sum(sample.get("read_only", 0) for sample in sent if sample["target"] in ours)
    if not reads:
        return "pgsluice answered nothing."
    shares = ", ".join(f"{count / reads:.1%}" for count in results["on_standbys"])
    return f"Of the {reads:,} transactions that only read, sent through pgsluice, the standbys ran {shares} by their own count, and the primary the rest."


def write_into(page, text):
    """Replaces what stands between the page's marks."""
    before, mark, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise SystemExit(f"bench: {page} has lost its marks, {BEGIN} and {END}")
    page.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}")


def number(value, digits):
    return "-" if value is None else f"{value:,.{digits}f}"


def table(head, rows):
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    line = lambda cells: "| " + " | ".join([cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:]))]) + " |"
    rule = "| " + " | ".join(["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]) + " |"
    return "\n".join([line(head), rule, *map(line, rows)])
