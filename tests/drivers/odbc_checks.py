"""psqlODBC, from Python: savepoints of its own around each statement, cursors behind plain queries, and its catalog queries."""

import datetime as dt
import decimal
import itertools
import threading
import time
import uuid
from contextlib import contextmanager

import pyodbc

import checks
from checks import HOST, POOL_SIZE, USER, check, equal, rounds, until

CLIENTS = 8
# The driver manager's own pool would keep connections after they are closed.
pyodbc.pooling = False


def open_(target, port=None, autocommit=True, **options):
    parts = {
        "Driver": "PostgreSQL Unicode",
        "Server": HOST,
        "Port": port or target.port,
        "Database": target.database,
        "Uid": USER,
        "BoolsAsChar": 0,
        "ByteaAsLongVarBinary": 1,
        "MaxLongVarcharSize": 10_000_000,
    } | options
    text = ";".join(f"{name}={value}" for name, value in parts.items())
    return target.connect(lambda: pyodbc.connect(text, autocommit=autocommit))


def one(connection, sql, *arguments):
    return connection.execute(sql, *arguments).fetchone()[0]


def direct(target, port=None):
    """A connection that is never through the proxy, to look on."""
    return open_(target, port or checks.direct_port())


def table(target, name, columns):
    """An empty table that every client sees on every node."""
    looker = direct(target)
    looker.execute(f"drop table if exists {name}").execute(f"create table {name} ({columns})")
    lsn = one(looker, "select pg_current_wal_flush_lsn()::text")
    for port in checks.standby_ports():
        standby = direct(target, port)
        until(lambda: one(standby, "select (pg_last_wal_replay_lsn() >= ?::pg_lsn)::int", lsn) == 1, "replay")


@contextmanager
def fails(sqlstate):
    try:
        yield
    except pyodbc.Error as error:
        equal(error.args[0], sqlstate, f"SQLSTATE of {error}")
    else:
        raise AssertionError(f"no error, instead of {sqlstate}")


@check("connects, and again and again, with settings for its session")
def connects(target):
    connection = open_(target, ConnSettings="set application_name = 'drivers odbc'")
    for _ in range(5):
        equal(one(connection, "show application_name"), "drivers odbc")
    equal(connection.getinfo(pyodbc.SQL_DBMS_VER), direct(target).getinfo(pyodbc.SQL_DBMS_VER))
    equal(connection.getinfo(pyodbc.SQL_DATABASE_NAME), target.database)
    for number in range(rounds(40)):
        again = open_(target)
        equal(one(again, "select ?::int", number), number)
        again.close()


@check("logs in by SCRAM, with and without TLS", only="proxy")
def secure(target):
    port, password, certificate = checks.secure()
    for options in ({"SSLmode": "disable"}, {"SSLmode": "verify-full", "pqopt": f"{{sslrootcert={certificate}}}"}):
        equal(one(open_(target, port, Pwd="{" + password + "}", **options), "select 7"), 7)


VALUES = (
    ("smallint", -32768),
    ("int", 2147483647),
    ("bigint", 2**60),
    ("numeric(30,10)", decimal.Decimal("12345678901234567890.0123456789")),
    ("float8", 1.5e-10),
    ("text", "grüße, 世界 🐍 'quoted' \\ \n"),
    ("varchar(20)", ""),
    ("bytea", bytes(range(256))),
    ("bool", True),
    ("date", dt.date(2024, 2, 29)),
    ("timestamp", dt.datetime(2024, 2, 29, 23, 59, 59, 1)),
    ("uuid", uuid.UUID("12345678-1234-5678-1234-567812345678")),
)


@check("values of many types, NULL, and a long one; prepared by the server and not")
def values(target):
    table(target, "many_types", ", ".join(f"c{n} {kind}" for n, (kind, _) in enumerate(VALUES)))
    for prepare in (0, 1):
        connection = open_(target, UseServerSidePrepare=prepare)
        connection.execute("truncate many_types")
        connection.execute(f"insert into many_types values ({', '.join('?' for _ in VALUES)})", [value for _, value in VALUES])
        for _ in range(5):
            for (kind, value), found in zip(VALUES, connection.execute("select * from many_types").fetchone()):
                equal(uuid.UUID(found) if kind == "uuid" and isinstance(found, str) else found, value, kind)
        equal(one(connection, "select ?::int", None), None)
        text = "grüße " * 100_000
        equal(one(connection, "select length(?::text)", text), len(text))


@check("statements prepared once, by clients that change servers; each write is seen by the next read")
def prepared(target):
    table(target, "written", "client int, n int")
    servers, problems = [set() for _ in range(CLIENTS)], []
    connections = [open_(target) for _ in range(CLIENTS)]

    def work(client):
        try:
            # A cursor keeps its statement prepared as long as the text is the same.
            insert, count, own = (connections[client].cursor() for _ in range(3))
            for number in range(rounds(120)):
                insert.execute("insert into written values (?, ?)", client, number)
                count.execute("select count(*) from written where client = ?", client)
                equal(count.fetchone()[0], number + 1, "own writes")
                own.execute(f"select ?::int * 10 + {client}, pg_backend_pid()", number)
                found, pid = own.fetchone()
                equal(found, number * 10 + client)
                servers[client].add(pid)
            enough = time.monotonic() + 1
            while client == 0 and time.monotonic() < enough:
                equal(count.execute("select count(*) from written where client = ?", client).fetchone()[0], rounds(120))
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(client,), daemon=True) for client in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(checks.SECONDS_PER_CHECK)
    if problems:
        raise problems[0]
    if target.is_proxy:
        assert len(set.union(*servers)) <= POOL_SIZE, "more servers than the pool has"
        assert sum(len(pids) > 1 for pids in servers) >= CLIENTS / 2, "clients stay on their servers"


@check("transactions: after an error nothing, the transaction or the statement is undone, as it was asked for")
def transactions(target):
    looker = direct(target)
    for protocol in ("7.4-0", "7.4-1", "7.4-2"):
        table(target, "kept", "n int primary key")
        # The driver deallocates between a SAVEPOINT and its RELEASE in one text.
        connection = open_(target, autocommit=False, Protocol=protocol, UseServerSidePrepare=1)
        for number in range(5):
            connection.execute("insert into kept values (?)", number)
            with fails("23505"):
                connection.execute("insert into kept values (?)", number)
            if protocol == "7.4-0":
                with fails("25P02"):
                    connection.execute("select 1")
                connection.rollback()
        equal(one(looker, "select count(*) from kept"), 0)
        kept = 5 if protocol == "7.4-2" else 0
        equal(one(connection, "select count(*) from kept"), kept)
        connection.commit()
        equal(one(looker, "select count(*) from kept"), kept)
        connection.execute("insert into kept values (100)")
        connection.execute("savepoint a")
        connection.execute("insert into kept values (101)")
        connection.execute("rollback to savepoint a")
        equal(one(connection, "select count(*) from kept"), kept + 1)
        connection.rollback()
        equal(one(connection, "select count(*) from kept"), kept)
        connection.rollback()


@check("statements prepared by the server in a transaction, one after another")
def prepared_in_transactions(target):
    connection = open_(target, autocommit=False)
    for number in range(rounds(20)):
        for sql in ("select ?::int", "select ?::int + 0", "select 0 + ?::int"):
            equal(connection.cursor().execute(sql, number).fetchone()[0], number)
        if number % 5 == 4:
            connection.commit()


@check("isolation and read-only, set for the session")
def isolation(target):
    connections = [open_(target, autocommit=False) for _ in range(4)]
    levels = (pyodbc.SQL_TXN_READ_COMMITTED, "read committed"), (pyodbc.SQL_TXN_SERIALIZABLE, "serializable")
    for connection, (level, _) in zip(connections, itertools.cycle(levels)):
        connection.set_attr(pyodbc.SQL_ATTR_TXN_ISOLATION, level)
    for _ in range(rounds(20)):
        for connection, (_, name) in zip(connections, itertools.cycle(levels)):
            equal(one(connection, "show transaction_isolation"), name)
            connection.commit()
    reading = open_(target, ReadOnly=1)
    equal(one(reading, "select 1"), 1)


@check("cursors behind plain queries, in a transaction and without one, and rows in pieces")
def cursors(target):
    for options in ({}, {"UseDeclareFetch": 1, "Fetch": 50}):
        for autocommit in (True, False):
            connection = open_(target, autocommit=autocommit, **options)
            for _ in range(3):
                first = connection.execute("select generate_series(1, 1000)")
                second = connection.execute("select generate_series(1, 1000)")
                equal([one_ for (one_,) in first], list(range(1, 1001)))
                equal([one_ for (one_,) in second.fetchmany(120)], list(range(1, 121)))
                second.close()
                equal(one(connection, "select 1"), 1)
                if not autocommit:
                    connection.commit()


@check("many rows at once, and several statements in one")
def many(target):
    table(target, "many", "n int, t varchar(20)")
    for fast in (False, True):
        connection = open_(target, autocommit=False)
        cursor = connection.cursor()
        cursor.fast_executemany = fast
        cursor.executemany("insert into many values (?, ?)", [(n, f"row {n}") for n in range(rounds(2000))])
        equal(cursor.execute("select count(*) from many").fetchone()[0], rounds(2000))
        connection.rollback()
    cursor = open_(target).execute("select 1; select 2")
    found = [cursor.fetchone()[0]]
    while cursor.nextset():
        found.append(cursor.fetchone()[0])
    equal(found, [1, 2])


@check("the catalog: tables, columns, keys and indexes, right after they were made")
def catalog(target):
    connection = open_(target)
    for number in range(3):
        connection.execute(f"create table made_{number} (id serial primary key, name varchar(20) not null, data bytea)")
        cursor = connection.cursor()
        equal([row.table_name for row in cursor.tables(table=f"made_{number}", tableType="TABLE")], [f"made_{number}"])
        equal([row.column_name for row in cursor.columns(table=f"made_{number}")], ["id", "name", "data"])
        equal([row.column_name for row in cursor.primaryKeys(f"made_{number}")], ["id"])
        assert any(row.index_name == f"made_{number}_pkey" for row in cursor.statistics(f"made_{number}"))
        connection.execute(f"drop table made_{number}")


@check("a query that takes too long, and one that is cancelled, are 57014")
def too_long(target):
    connection, other = open_(target, ConnSettings="set statement_timeout = 250"), open_(target)
    with fails("57014"):
        connection.execute("select pg_sleep(30)")
    for _ in range(3):
        equal(one(other, "show statement_timeout"), "0")
    for _ in range(3):
        cursor = other.cursor()
        timer = threading.Timer(0.3, cursor.cancel)
        timer.start()
        with fails("57014"):
            cursor.execute("select pg_sleep(30)")
        timer.join()
        equal(one(other, "select 1"), 1)


@check("errors have their SQLSTATE, and the connection goes on")
def errors(target):
    connection = open_(target)
    for sql, state in (("select * from no_such_table", "42P01"), ("select 1/0", "22012"), ("selec", "42601"), ("select 'x'::int", "22P02")):
        with fails(state):
            connection.execute(sql).fetchall()
        equal(one(connection, "select 1"), 1)


if __name__ == "__main__":
    checks.run("odbc", close=lambda connection: connection.close())
