"""What makes a run fail. Speed is only checked for being no accident: a smoke test runs on machines that do other things."""

from report import Figures

CPU_LIMIT = 5


def problems(results):
    figures = Figures(results)
    found = [f"{s['target']}, {s['scenario']}: {s['error']}" for s in results["samples"] if "error" in s]
    found += [f"{target}, idle clients: {m['error']}" for target, m in results["memory"].items() if "error" in m]
    for scenario in results["scenarios"]:
        for target in results["targets"]:
            if figures.median(scenario, target, "tps") is None:
                found.append(f"{target}, {scenario}: no figures")
        ratio = figures.ratio(scenario, "pgsluice", "PgBouncer", "cpu_us_per_query")
        if ratio is not None and ratio > CPU_LIMIT:
            found.append(f"pgsluice, {scenario}: {ratio:.1f} times PgBouncer's CPU per query")
    if not all(results["on_standbys"]):
        found.append(f"the standbys answered {results['on_standbys']} transactions: reads are not split")
    return list(dict.fromkeys(found))
