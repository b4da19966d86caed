# What the scripts share that bring up a cluster of three: to be sourced. They set `pgsluice` (the program), `dir` (a folder of their own), `lab`
# (the cluster's folder below it) and `fail` (says why, and ends).

# The first of $1 free ports in a row. Below the kernel's ephemeral range, where no outgoing connection takes them before they are used.
free_ports() {
    python3 - "$1" <<'PYTHON'
import random, socket, sys

def is_free(port):
    with socket.socket() as tried:
        try:
            tried.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True

while True:
    first = random.randrange(12000, 31000)
    if all(is_free(port) for port in range(first, first + int(sys.argv[1]))):
        print(first)
        break
PYTHON
}

# A primary on port $base and two standbys behind it, of $1 ports in a row that are free.
start_lab() {
    local attempt
    for attempt in 1 2 3; do
        base=$(free_ports "$1")
        "$pgsluice" lab up --fast --dir "$lab" --base-port "$base" --standbys 2 --json >"$dir/lab.json" 2>"$dir/lab.log" && return
        # Somebody else may have taken a port in between.
        "$pgsluice" lab down --dir "$lab" >/dev/null 2>&1 || true
    done
    cat "$dir/lab.log" >&2
    fail "the cluster did not come up"
}
