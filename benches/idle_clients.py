"""How much memory a proxy needs for clients that have asked one query each and wait."""

import socket
import struct
import time

import machine
from ground import HOST

QUERY = b"Q" + struct.pack("!I", 13) + b"SELECT 1\0"


def memory(target, user, database, count):
    """Megabytes before, and kilobytes for each client; or {"error": …}."""
    clients = []
    try:
        before = machine.memory_kb(target.process.pid)
        for _ in range(count):
            clients.append(log_in(target.port, user, database))
        for client in clients:
            client.sendall(QUERY)
            until_ready(client)
        time.sleep(1)
        after = machine.memory_kb(target.process.pid)
        return {"before_mb": before / 1024, "kb_per_client": (after - before) / count}
    except OSError as error:
        return {"error": f"client {len(clients)} of {count}: {error}"}
    finally:
        for client in clients:
            client.close()


def log_in(port, user, database):
    client = socket.create_connection((HOST, port), timeout=20)
    words = b"".join(word.encode() + b"\0" for word in ("user", user, "database", database, ""))
    client.sendall(struct.pack("!II", 8 + len(words), 3 << 16) + words)
    until_ready(client)
    return client


def until_ready(client):
    """Reads messages up to ReadyForQuery; an ErrorResponse is a ConnectionError."""
    while True:
        kind, length = struct.unpack("!cI", exactly(client, 5))
        body = exactly(client, length - 4)
        if kind == b"E":
            raise ConnectionError(body.replace(b"\0", b" ").decode(errors="replace"))
        if kind == b"Z":
            return


def exactly(client, count):
    received = b""
    while len(received) < count:
        more = client.recv(count - len(received))
        if not more:
            raise ConnectionError("the connection was closed")
        received += more
    return received
