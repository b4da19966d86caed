"""What the kernel says of processes and of the machine."""

import os
import platform
import re
import time
from pathlib import Path


def cpu_seconds(pid):
    """User and system time of a process, all of its threads; OSError if it is gone.

    This is the clock that clock_getcpuclockid(3) returns, which Python doesn't wrap. /proc would tell it in steps of 10 ms.
    """
    return time.clock_gettime((~pid << 3) | 2)


def memory_kb(pid):
    """Resident memory."""
    return int(re.search(r"^Rss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)[1])


def busy_cpus(seconds):
    """How many CPUs were at work during the next seconds, in hands other than ours: call it while the targets are idle."""

    def busy():
        user, nice, system, idle, iowait, *others = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9])
        return (user + nice + system + sum(others)) / os.sysconf("SC_CLK_TCK")

    before, start = busy(), time.monotonic()
    time.sleep(seconds)
    return (busy() - before) / (time.monotonic() - start)


def description():
    model = re.search(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.M)
    return f"{os.cpu_count()} CPUs ({model[1] if model else platform.machine()}), {platform.system()} {'.'.join(platform.release().split('.')[:2])}"
