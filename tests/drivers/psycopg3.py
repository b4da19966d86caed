"""psycopg 3, on libpq."""

import datetime as dt
import decimal
import os
import socket
import threading
import time
import uuid
from contextlib import contextmanager

import psycopg
from psycopg import errors
from psycopg.rows import tuple_row
from psycopg.types.json import Json, Jsonb

import checks
from checks import HOST, POOL_SIZE, USER, check, equal, rounds, until

CLIENTS = 8


def open_(target, autocommit=True, **options):
    """A connection of the check's own."""
    return target.connect(
        psycopg.connect, host=HOST, port=target.port, dbname=target.database, user=USER, autocommit=autocommit, **options
    )


def direct(target, port=None):
    """A connection that is never through the proxy, to look on."""
    return target.connect(
        psycopg.connect, host=HOST, port=port or checks.direct_port(), dbname=target.database, user=USER, autocommit=True
    )


def caught_up(target):
    """Waits until the standbys have replayed all that is committed."""
    lsn = direct(target).execute("select pg_current_wal_flush_lsn()").fetchone()[0]
    for port in checks.standby_ports():
        standby = direct(target, port)
        until(lambda: standby.execute("select pg_last_wal_replay_lsn() >= %s::pg_lsn", [lsn]).fetchone()[0], "replay")


def table(target, name, columns):
    """An empty table that every client sees on every node."""
    with psycopg.connect(host=HOST, port=checks.direct_port(), dbname=target.database, user=USER, autocommit=True) as own:
        own.execute(f"set client_min_messages = error; drop table if exists {name}; create table {name} ({columns})")
    caught_up(target)


def one(connection, sql, *arguments, **options):
    """The only value of the only row."""
    return connection.execute(sql, arguments or None, **options).fetchone()[0]


@contextmanager
def fails(sqlstate):
    try:
        yield
    except psycopg.Error as error:
        equal(error.sqlstate, sqlstate, f"SQLSTATE of {error}")
    else:
        raise AssertionError(f"no error, instead of {sqlstate}")


def in_threads(count, work):
    """Runs work(0), work(1), … side by side, and raises what the first of them raised."""
    problems = []

    def guarded(index):
        try:
            work(index)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=guarded, args=(index,), daemon=True) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(checks.SECONDS_PER_CHECK)
    if problems:
        raise problems[0]
    assert not any(thread.is_alive() for thread in threads), "a client hangs"


# ---- connecting


@check("connects, and the server looks like a primary")
def connects(target):
    connection = open_(target, application_name="drivers psycopg")
    equal(one(connection, "show application_name"), "drivers psycopg")
    equal(connection.info.parameter_status("application_name"), "drivers psycopg")
    equal(connection.info.parameter_status("in_hot_standby"), "off")
    equal(connection.info.parameter_status("default_transaction_read_only"), "off")
    equal(connection.info.parameter_status("standard_conforming_strings"), "on")
    equal(connection.info.server_version, direct(target).info.server_version)
    equal(one(connection, "select pg_is_in_recovery()"), False)
    equal(one(connection, "select current_database()"), target.database)
    own = one(connection, "select count(*) from pg_stat_activity where application_name = 'drivers psycopg'")
    equal(own, 1)


@check("asks for a primary with target_session_attrs")
def target_session_attrs(target):
    for wanted in ("read-write", "primary", "prefer-standby", "any"):
        equal(one(open_(target, target_session_attrs=wanted), "select 1"), 1)
    if not target.is_proxy:
        return
    for refused in ("read-only", "standby"):
        try:
            open_(target, target_session_attrs=refused)
        except psycopg.OperationalError:
            continue
        raise AssertionError(f"the proxy passes for {refused}")


@check("options at login set search_path and statement_timeout")
def options_at_login(target):
    with psycopg.connect(host=HOST, port=checks.direct_port(), dbname=target.database, user=USER, autocommit=True) as own:
        own.execute("drop schema if exists elsewhere cascade; create schema elsewhere")
        own.execute("create table elsewhere.found as select 42 as n")
    caught_up(target)
    connection = open_(target, options=r"-c search_path=elsewhere,public -c statement_timeout=250ms")
    other = open_(target)
    for _ in range(3):
        equal(one(connection, "select n from found"), 42)
        equal(one(connection, "show search_path"), "elsewhere,public")
        equal(one(other, "show statement_timeout"), "0")
        with fails("42P01"):
            other.execute("select n from found")
    with fails("57014"):
        connection.execute("select pg_sleep(10)")
    equal(one(connection, "show statement_timeout"), "250ms")
    with fails("57014"):
        connection.execute("create table elsewhere.never as select 1 as n from pg_sleep(10)")
    equal(one(connection, "select n from found"), 42)


@check("a database that isn't there is 3D000, a wrong option 42704")
def refused_logins(target):
    for options, sqlstate in (({"dbname": "no_such_database"}, "3D000"), ({"options": "-c no_such_setting=1"}, "42704")):
        arguments = {"host": HOST, "port": target.port, "dbname": target.database, "user": USER} | options
        try:
            psycopg.connect(**arguments).close()
        except psycopg.OperationalError as error:
            # libpq keeps only the message of a refused login.
            wanted = "does not exist" if sqlstate == "3D000" else "unrecognized configuration parameter"
            assert wanted in str(error), error
        else:
            raise AssertionError(f"{options} was let in")


@check("logs in by SCRAM, with and without TLS, and cancels over TLS", only="proxy")
def passwords_and_tls(target):
    port, password, certificate = checks.secure()
    common = {"host": HOST, "port": port, "dbname": target.database, "user": USER, "autocommit": True}
    verified = {"sslmode": "verify-full", "sslrootcert": certificate}
    for options in (
        {"sslmode": "disable"},
        {"sslmode": "require"},
        verified,
        verified | {"sslnegotiation": "direct"},
    ):
        connection = target.connect(psycopg.connect, **common, password=password, **options)
        equal(connection.pgconn.ssl_in_use, options["sslmode"] != "disable")
        for number in range(10):
            equal(one(connection, "select %s::int", number), number)
        cancelled(connection)
        data = os.urandom(3_000_000)
        assert one(connection, "select %b::bytea", data) == data
        for wrong in ({"password": "wrong"}, {"password": password, "user": "nobody"}):
            try:
                psycopg.connect(**(common | options | wrong)).close()
            except psycopg.OperationalError as error:
                assert "password authentication failed" in str(error), error
            else:
                raise AssertionError(f"{wrong} was let in")


@check("protocol 3.2 is negotiated, and a cancel with its key works")
def protocol_3_2(target):
    connection = open_(target, max_protocol_version="3.2")
    equal(one(connection, "select 7"), 7)
    cancelled(connection)


@check("reconnects, time after time")
def reconnects(target):
    for number in range(rounds(100)):
        with psycopg.connect(host=HOST, port=target.port, dbname=target.database, user=USER) as connection:
            equal(one(connection, "select %s::int", number), number)
        assert connection.closed


@check("a connection that is lost is an error, and the next one works")
def lost_connection(target):
    connection = open_(target)
    looker = direct(target)
    connection.execute("begin")
    pid = one(connection, "select pg_backend_pid()")
    looker.execute("select pg_terminate_backend(%s)", [pid])
    until(lambda: one(looker, "select count(*) from pg_stat_activity where pid = %s", pid) == 0, "the process is gone")
    # The server says 57P01; the proxy says that the transaction is lost, and keeps the client.
    with fails("40001" if target.is_proxy else "57P01"):
        connection.execute("select 1")
    if target.is_proxy:
        with fails("25P02"):
            connection.execute("select 1")
        connection.execute("rollback")
    else:
        assert connection.closed
        connection = open_(target)
    equal(one(connection, "select 1"), 1)


@check("a client that vanishes leaves no lock behind")
def vanished_client(target):
    table(target, "vanished", "n int primary key")
    connection = open_(target, autocommit=False)
    connection.execute("insert into vanished values (1)")
    os.dup2(os.open("/dev/null", os.O_RDWR), connection.fileno())
    other = open_(target)
    other.execute("set lock_timeout = '10s'")
    other.execute("insert into vanished values (1)")
    equal(one(other, "select count(*) from vanished"), 1)


# ---- queries and values


@check("simple queries, several statements in one, and none")
def simple_queries(target):
    connection = open_(target)
    equal(connection.execute("select 1, 'two', null").fetchall(), [(1, "two", None)])
    cursor = connection.execute("select 1; select 2; select 3")
    found = [cursor.fetchone()[0]]
    while cursor.nextset():
        found.append(cursor.fetchone()[0])
    equal(found, [1, 2, 3])
    for empty in ("", ";", "-- nothing", "/* nothing */ ;;"):
        equal(connection.execute(empty).description, None)
    equal(connection.execute("select").fetchall(), [()])
    equal(connection.execute("values (1), (2)").fetchall(), [(1,), (2,)])
    equal(len(connection.execute("select generate_series(1, 20000), repeat('x', 50)").fetchall()), 20000)
    equal([column.name for column in connection.execute('select 1 as "a b", 2 as c').description], ["a b", "c"])


VALUES = [
    ("smallint", -32768),
    ("int", 2147483647),
    ("bigint", -9223372036854775808),
    ("text", "grüße, 世界 \U0001f40d 'quoted' \\ \n\t"),
    ("varchar(10)", ""),
    ("bytea", bytes(range(256))),
    ("numeric", decimal.Decimal("-12345678901234567890.123456789")),
    ("float8", 1.0e-300),
    ("bool", True),
    ("date", dt.date(1970, 1, 1)),
    ("timestamp", dt.datetime(2024, 2, 29, 23, 59, 59, 999999)),
    ("timestamptz", dt.datetime(2024, 2, 29, 23, 59, 59, 1, tzinfo=dt.timezone.utc)),
    ("interval", dt.timedelta(days=3, seconds=4, microseconds=5)),
    ("uuid", uuid.UUID("12345678-1234-5678-1234-567812345678")),
    ("int[]", [1, None, -3]),
    ("text[]", ["a", "b,c", '"', None, ""]),
    ("numeric[]", [decimal.Decimal("1.10"), None]),
    ("timestamptz[]", [dt.datetime(2000, 1, 1, tzinfo=dt.timezone.utc)]),
    ("int[]", []),
]


@check("parameters and results in text and in binary")
def parameters(target):
    table(target, "held", "id int generated always as identity, v text")
    connection = open_(target)
    for type_, value in VALUES:
        for letter in "stb":
            for binary in (False, True):
                placeholder = f"%{letter}::{type_}"
                # An interval has no binary dumper in psycopg.
                if letter == "b" and type_ in ("interval",):
                    continue
                equal(one(connection, f"select {placeholder}", value, binary=binary), value, f"{type_} as %{letter}, binary {binary}")
        equal(one(connection, f"select %s::{type_}", None), None, f"{type_} null")
    for document in ({"a": [1, None, "x"], "b": {"c": True}}, [], "text", None):
        for binary in (False, True):
            equal(one(connection, "select %s::jsonb", Jsonb(document), binary=binary), document)
            equal(one(connection, "select %s::json", Json(document), binary=binary), document)


@check("a hundred parameters, and the same query with other types")
def many_parameters(target):
    connection = open_(target)
    numbers = list(range(100))
    sql = "select " + ", ".join(["%s::int"] * 100)
    for _ in range(8):
        equal(list(connection.execute(sql, numbers).fetchone()), numbers)
    # Each type is a statement of its own: the OIDs travel in Parse.
    for _ in range(8):
        for value, type_ in ((1, "smallint"), (2**40, "bigint"), (b"y", "bytea"), (1.5, "double precision"), (True, "boolean")):
            equal(connection.execute("select %s, pg_typeof(%s)::text", (value, value)).fetchone(), (value, type_))


@check("a 10 MB bytea goes both ways, in text and binary")
def large_values(target):
    table(target, "large", "id int, b bytea, t text")
    connection = open_(target)
    size = 10 * 1024 * 1024
    data = os.urandom(size)
    text = "0123456789abcdef" * (size // 16)
    for id_, letter in enumerate("tb"):
        connection.execute(f"insert into large values (%s, %{letter}, %s)", (id_, data, text))
    for id_ in range(2):
        for binary in (False, True):
            found = connection.execute("select b, t from large where id = %s", (id_,), binary=binary).fetchone()
            assert found[0] == data and found[1] == text, f"id {id_}, binary {binary}: {len(found[0])} and {len(found[1])}"
    equal(one(connection, "select length(%b::bytea)", data), size)
    assert one(connection, "select %b::bytea", data, binary=True) == data


# ---- prepared statements


@check("named statements run hundreds of times by clients that change servers")
def named_statements(target):
    table(target, "counted", "id int primary key, n int")
    connections = [open_(target, prepare_threshold=0) for _ in range(CLIENTS)]
    with connections[0].transaction():
        for client in range(CLIENTS):
            connections[0].execute("insert into counted values (%s, 0)", (client,))
    servers = [set() for _ in connections]
    for number in range(rounds(40)):
        # As many blocks as there are connections in the pool are open at once, in another order each time.
        chosen = [connections[(number * POOL_SIZE + k * (1 + number % 3)) % CLIENTS] for k in range(POOL_SIZE)]
        chosen = list(dict.fromkeys(chosen))
        for connection in chosen:
            connection.execute("begin", prepare=False)
        for connection in chosen:
            client = connections.index(connection)
            equal(one(connection, "select %s::int + %s::int", number, client, prepare=True), number + client)
            equal(one(connection, "select %s::text || 'x'", f"{client}", prepare=True), f"{client}x")
            # Its own text for each client, so that servers hold many.
            equal(one(connection, f"select %s::int * 2 as c{client}", client, prepare=True), client * 2)
            connection.execute("update counted set n = n + 1 where id = %s", (client,), prepare=True)
            servers[client].add(one(connection, "select pg_backend_pid()", prepare=True))
        for connection in chosen:
            connection.execute("commit", prepare=False)
    if target.is_proxy:
        changed = sum(len(pids) > 1 for pids in servers)
        assert changed >= CLIENTS // 2, f"only {changed} clients changed servers: {servers}"
        assert len(set().union(*servers)) <= POOL_SIZE, f"more servers than the pool has: {servers}"
    total = one(connections[0], "select sum(n) from counted")
    assert total > 0, total


@check("named statements side by side from 8 threads")
def threads_with_statements(target):
    table(target, "side_by_side", "client int, n int")
    connections = [open_(target, prepare_threshold=2) for _ in range(CLIENTS)]

    def work(client):
        connection = connections[client]
        for number in range(rounds(120)):
            equal(one(connection, "select %s::int + 1", number), number + 1)
            connection.execute("insert into side_by_side values (%s, %s)", (client, number))
            found = one(connection, "select count(*) from side_by_side where client = %s", client)
            equal(found, number + 1, f"own writes of client {client}")

    in_threads(CLIENTS, work)


@check("statements leave when there are too many (prepared_max), and come back")
def prepared_max(target):
    connections = [open_(target, prepare_threshold=0) for _ in range(4)]
    for connection in connections:
        connection.prepared_max = 3
    for number in range(rounds(80)):
        connection = connections[number % 4]
        equal(one(connection, f"select %s::int + {number % 10}", number), number + number % 10)
    # Of this client, whatever else the server connection has.
    for connection in connections:
        names = one(connection, "select count(*) from pg_prepared_statements where name like '\\_pg3\\_%%'", prepare=False)
        equal(names, 3)


@check("pg_prepared_statements has what the driver has prepared, while it comes and goes")
def prepared_view(target):
    connections = [open_(target, prepare_threshold=2) for _ in range(CLIENTS)]
    look = "select statement, parameter_types::text[] from pg_prepared_statements where name <> '' order by prepare_time"
    sees_itself = "select count(*) from pg_prepared_statements where name like %s"

    def work(client):
        connection = connections[client]
        for number in range(4):
            equal(one(connection, f"select %s::int + {client}", number), number + client)
            rows = connection.execute(look, prepare=False).fetchall()
            # The driver prepares what it has sent twice before.
            expected = [(f"select $1::int + {client}", ["smallint"])] if number >= 2 else []
            equal(rows, expected)
        for number in range(4):
            equal(one(connection, sees_itself, "%"), 1 + (number >= 2))
        connection.execute("deallocate all", prepare=False)
        equal(connection.execute(look, prepare=False).fetchall(), [])

    in_threads(CLIENTS, work)


@check("DDL has the driver send DEALLOCATE ALL, and all goes on")
def deallocate_all_after_ddl(target):
    connections = [open_(target, prepare_threshold=0) for _ in range(4)]
    table(target, "altered", "n int")
    for number in range(rounds(12)):
        for connection in connections:
            equal(one(connection, "select count(*) from altered"), 0)
        connection = connections[number % 4]
        # psycopg forgets its statements after a DROP or ALTER, and says so to the server with its next prepared one.
        connection.execute(f"alter table altered add column c{number} int")
        connection.execute("drop table if exists altered_not_there")


@check("DEALLOCATE and DISCARD ALL by hand, between prepared statements")
def deallocate_by_hand(target):
    connections = [open_(target, prepare_threshold=None) for _ in range(4)]
    for number in range(rounds(20)):
        for connection in connections:
            connection.pgconn.prepare(b"by_hand", b"select $1::int + 1")
            result = connection.pgconn.exec_prepared(b"by_hand", [b"%d" % number])
            equal(result.get_value(0, 0), b"%d" % (number + 1))
        for connection in connections:
            way = number % 4
            if way == 0:
                connection.execute("deallocate by_hand")
            elif way == 1:
                connection.execute("deallocate all")
            elif way == 2:
                connection.execute("discard all")
            else:
                connection.pgconn.close_prepared(b"by_hand")
        for connection in connections:
            result = connection.pgconn.exec_prepared(b"by_hand", [b"1"])
            equal(result.error_field(psycopg.pq.DiagnosticField.SQLSTATE), b"26000", "of a statement that is gone")


@check("a statement name that is taken is 42P05, an unknown one 26000")
def statement_names(target):
    connection, other = open_(target), open_(target)
    state = psycopg.pq.DiagnosticField.SQLSTATE
    equal(connection.pgconn.prepare(b"taken", b"select 1").status, psycopg.pq.ExecStatus.COMMAND_OK)
    equal(connection.pgconn.prepare(b"taken", b"select 2").error_field(state), b"42P05")
    equal(connection.pgconn.prepare(b"taken", b"select 1").error_field(state), b"42P05")
    equal(connection.pgconn.exec_prepared(b"taken", []).get_value(0, 0), b"1")
    # Another client's names are its own.
    equal(other.pgconn.exec_prepared(b"taken", []).error_field(state), b"26000")
    equal(other.pgconn.prepare(b"taken", b"select 3").status, psycopg.pq.ExecStatus.COMMAND_OK)
    equal(other.pgconn.exec_prepared(b"taken", []).get_value(0, 0), b"3")
    equal(connection.pgconn.exec_prepared(b"taken", []).get_value(0, 0), b"1")
    equal(connection.pgconn.describe_prepared(b"taken").nfields, 1)
    equal(connection.pgconn.describe_prepared(b"nowhere").error_field(state), b"26000")


@check("a statement that can't be prepared leaves its name free")
def failed_prepare(target):
    connection = open_(target)
    state = psycopg.pq.DiagnosticField.SQLSTATE
    for _ in range(3):
        equal(connection.pgconn.prepare(b"later", b"select * from not_there_yet").error_field(state), b"42P01")
        equal(connection.pgconn.prepare(b"later", b"selec 1").error_field(state), b"42601")
    equal(connection.pgconn.exec_prepared(b"later", []).error_field(state), b"26000")
    equal(connection.pgconn.prepare(b"later", b"select 5").status, psycopg.pq.ExecStatus.COMMAND_OK)
    equal(connection.pgconn.exec_prepared(b"later", []).get_value(0, 0), b"5")


@check("a statement whose table has changed fails as the server says, and works when prepared again")
def changed_result_type(target):
    table(target, "reshaped", "a int")
    connection = open_(target)
    state = psycopg.pq.DiagnosticField.SQLSTATE
    connection.execute("insert into reshaped values (1)")
    connection.pgconn.prepare(b"star", b"select * from reshaped")
    equal(connection.pgconn.exec_prepared(b"star", []).nfields, 1)
    connection.execute("alter table reshaped add b int")
    equal(connection.pgconn.exec_prepared(b"star", []).error_field(state), b"0A000")
    equal(connection.pgconn.close_prepared(b"star").status, psycopg.pq.ExecStatus.COMMAND_OK)
    connection.pgconn.prepare(b"star", b"select * from reshaped")
    equal(connection.pgconn.exec_prepared(b"star", []).nfields, 2)


@check("a statement whose table has changed works when prepared again under another name")
def changed_result_type_renamed(target):
    table(target, "reshaped_again", "a int")
    connections = [open_(target) for _ in range(2)]
    state = psycopg.pq.DiagnosticField.SQLSTATE
    sql = b"select * from reshaped_again"
    connections[0].execute("insert into reshaped_again values (1)")
    for number in range(4):
        for connection in connections:
            with connection.transaction():
                connection.execute("lock table reshaped_again in row exclusive mode")
                connection.pgconn.prepare(b"r%d" % number, sql)
                equal(connection.pgconn.exec_prepared(b"r%d" % number, []).nfields, number + 1)
        connections[0].execute(f"alter table reshaped_again add b{number} int")
        for connection in connections:
            connection.execute("begin; lock table reshaped_again in row exclusive mode")
            equal(connection.pgconn.exec_prepared(b"r%d" % number, []).error_field(state), b"0A000")
            connection.execute("rollback")


@contextmanager
def server_busy(target, pid):
    """Has another client hold the server connection whose process is `pid`, if it is idle in the proxy's pool."""
    blockers = [open_(target) for _ in range(POOL_SIZE)]
    for blocker in blockers:
        blocker.execute("begin")
        if one(blocker, "select pg_backend_pid()") == pid:
            break
    holder = blocker
    for blocker in blockers:
        if blocker is not holder:
            blocker.execute("rollback")
    yield
    holder.execute("rollback")


@check("a changed table is noticed on a server connection that prepares the statement anew")
def changed_result_type_elsewhere(target):
    connection, other = open_(target), open_(target)
    state = psycopg.pq.DiagnosticField.SQLSTATE
    changes = ("alter column a type bigint", "add b int", "drop column b", "rename a to c")
    for change in changes:
        table(target, "reshaped_elsewhere", "a int, b text")
        if change.startswith("add"):
            other.execute("alter table reshaped_elsewhere drop b")
        connection.execute("begin")
        connection.execute("insert into reshaped_elsewhere values (1)")
        connection.pgconn.prepare(b"elsewhere", b"select * from reshaped_elsewhere")
        equal(connection.pgconn.exec_prepared(b"elsewhere", []).ntuples, 1)
        pid = one(connection, "select pg_backend_pid()")
        connection.execute("commit")
        other.execute(f"alter table reshaped_elsewhere {change}")
        with server_busy(target, pid):
            result = connection.pgconn.exec_prepared(b"elsewhere", [])
        equal(result.error_field(state), b"0A000", f"SQLSTATE after {change}")
        connection.pgconn.close_prepared(b"elsewhere")


@check("SQL's PREPARE and EXECUTE keep to the session")
def sql_prepare(target):
    connections = [open_(target) for _ in range(2)]
    for client, connection in enumerate(connections):
        connection.execute(f"prepare by_sql (int) as select $1 + {client}")
    for number in range(rounds(20)):
        for client, connection in enumerate(connections):
            equal(one(connection, f"execute by_sql({number})"), number + client)
    for connection in connections:
        connection.execute("deallocate by_sql")
        with fails("26000"):
            connection.execute("execute by_sql(1)")


# ---- transactions


@check("a write is seen by the next read, in and out of blocks")
def own_writes(target):
    table(target, "own_writes", "n int")
    connection = open_(target)
    for number in range(rounds(200)):
        connection.execute("insert into own_writes values (%s)", (number,))
        equal(one(connection, "select count(*) from own_writes"), number + 1)
    with connection.transaction():
        connection.execute("delete from own_writes")
        equal(one(connection, "select count(*) from own_writes"), 0)
    equal(one(connection, "select count(*) from own_writes"), 0)
    equal(one(connection, "with added as (insert into own_writes values (1) returning n) select count(*) from added"), 1)
    equal(one(connection, "select count(*) from own_writes"), 1)
    equal(one(connection, "insert into own_writes values (2), (3) returning n"), 2)
    equal(connection.execute("update own_writes set n = n + 1").rowcount, 3)


@check("commit, rollback, and the with block of a transaction")
def commit_and_rollback(target):
    table(target, "kept", "n int")
    connection, other = open_(target, autocommit=False), direct(target)
    connection.execute("insert into kept values (1)")
    equal(connection.info.transaction_status.name, "INTRANS")
    equal(one(other, "select count(*) from kept"), 0)
    connection.commit()
    equal(connection.info.transaction_status.name, "IDLE")
    equal(one(other, "select count(*) from kept"), 1)
    connection.execute("insert into kept values (2)")
    connection.rollback()
    equal(one(connection, "select count(*) from kept"), 1)
    connection.rollback()
    try:
        with connection.transaction():
            connection.execute("insert into kept values (3)")
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    with connection.transaction(force_rollback=True):
        connection.execute("insert into kept values (4)")
    with connection.transaction():
        connection.execute("insert into kept values (5)")
    equal(connection.execute("select n from kept order by n").fetchall(), [(1,), (5,)])


@check("savepoints, nested, and rolled back to")
def savepoints(target):
    table(target, "points", "n int")
    connection = open_(target)
    with connection.transaction():
        connection.execute("insert into points values (1)")
        try:
            with connection.transaction():
                connection.execute("insert into points values (2)")
                with connection.transaction():
                    connection.execute("insert into points values (3)")
                connection.execute("select 1/0")
        except errors.DivisionByZero:
            pass
        equal(connection.info.transaction_status.name, "INTRANS")
        with connection.transaction():
            connection.execute("insert into points values (4)")
    equal(connection.execute("select n from points order by n").fetchall(), [(1,), (4,)])
    connection.execute("begin; savepoint a; insert into points values (5); rollback to a; release a; commit")
    equal(one(connection, "select count(*) from points"), 2)


@check("settings follow savepoints and rollbacks")
def settings_and_savepoints(target):
    connection, other = open_(target), open_(target)
    connection.execute("set work_mem = '1MB'")
    connection.execute("begin")
    connection.execute("set work_mem = '2MB'")
    connection.execute("savepoint a")
    connection.execute("set work_mem = '3MB'")
    equal(one(connection, "show work_mem"), "3MB")
    connection.execute("rollback to a")
    equal(one(connection, "show work_mem"), "2MB")
    connection.execute("commit")
    for _ in range(3):
        equal(one(connection, "show work_mem"), "2MB")
        equal(one(other, "show work_mem"), "4MB")
    connection.execute("begin; set work_mem = '5MB'")
    connection.execute("rollback")
    equal(one(connection, "show work_mem"), "2MB")
    connection.execute("begin; set local work_mem = '6MB'")
    equal(one(connection, "show work_mem"), "6MB")
    connection.execute("commit")
    equal(one(connection, "show work_mem"), "2MB")
    connection.execute("begin")
    connection.execute("set work_mem = '7MB'")
    with fails("22012"):
        connection.execute("select 1/0")
    # A COMMIT of a failed block rolls back.
    equal(connection.execute("commit").statusmessage, "ROLLBACK")
    equal(one(connection, "show work_mem"), "2MB")
    equal(one(other, "show work_mem"), "4MB")


@check("errors have their SQLSTATE and details, and the connection goes on")
def errors_and_after(target):
    table(target, "unique_numbers", "n int constraint unique_numbers_key primary key, positive int check (positive > 0)")
    connection = open_(target)
    connection.execute("insert into unique_numbers values (1, 1)")
    wrong = [
        ("insert into unique_numbers values (1, 1)", errors.UniqueViolation, "23505"),
        ("insert into unique_numbers values (2, -1)", errors.CheckViolation, "23514"),
        ("insert into unique_numbers values (null, 1)", errors.NotNullViolation, "23502"),
        ("select * from no_such_table", errors.UndefinedTable, "42P01"),
        ("select no_such_column from unique_numbers", errors.UndefinedColumn, "42703"),
        ("select no_such_function()", errors.UndefinedFunction, "42883"),
        ("select 1/0", errors.DivisionByZero, "22012"),
        ("selec 1", errors.SyntaxError, "42601"),
        ("select 'x'::int", errors.InvalidTextRepresentation, "22P02"),
    ]
    for prepare in (False, True):
        for sql, kind, sqlstate in wrong:
            try:
                connection.execute(sql, prepare=prepare)
            except kind as error:
                equal(error.sqlstate, sqlstate)
                assert error.diag.severity == "ERROR" and error.diag.message_primary
            else:
                raise AssertionError(f"{sql} went well")
            equal(connection.info.transaction_status.name, "IDLE")
            equal(one(connection, "select count(*) from unique_numbers"), 1)
    try:
        connection.execute("insert into unique_numbers values (1, 1)")
    except errors.UniqueViolation as error:
        equal((error.diag.table_name, error.diag.constraint_name), ("unique_numbers", "unique_numbers_key"))
        assert "(n)=(1)" in error.diag.message_detail
    try:
        connection.execute("select 1, nothere")
    except errors.UndefinedColumn as error:
        equal(error.diag.statement_position, "11")


@check("an error in a block is 25P02 until its rollback")
def error_in_block(target):
    table(target, "doomed", "n int")
    connection = open_(target, autocommit=False)
    for prepare in (False, True):
        connection.execute("insert into doomed values (1)")
        with fails("22012"):
            connection.execute("select 1/0", prepare=prepare)
        equal(connection.info.transaction_status.name, "INERROR")
        for _ in range(2):
            with fails("25P02"):
                connection.execute("select 1", prepare=prepare)
        connection.rollback()
        equal(connection.info.transaction_status.name, "IDLE")
        equal(one(connection, "select count(*) from doomed"), 0)
        connection.rollback()


@check("read-only transactions refuse writes with 25006 (conn.read_only)")
def read_only(target):
    table(target, "untouched", "n int")
    connection = open_(target, autocommit=False)
    connection.read_only = True
    for _ in range(rounds(20)):
        equal(one(connection, "select count(*) from untouched"), 0)
        equal(one(connection, "show transaction_read_only"), "on")
        with fails("25006"):
            connection.execute("insert into untouched values (1)")
        connection.rollback()
    connection.read_only = False
    connection.execute("insert into untouched values (1)")
    equal(one(connection, "show transaction_read_only"), "off")
    connection.commit()
    connection.read_only = None
    equal(one(connection, "select count(*) from untouched"), 1)
    equal(one(connection, "show transaction_read_only"), "off")
    connection.rollback()
    connection.execute("set default_transaction_read_only = on")
    connection.commit()
    with fails("25006"):
        connection.execute("insert into untouched values (2)")
    connection.rollback()
    connection.execute("reset default_transaction_read_only")
    connection.commit()
    connection.execute("insert into untouched values (2)")
    connection.commit()


@check("isolation levels, and a serialization failure is 40001")
def isolation_levels(target):
    table(target, "contended", "id int primary key, n int")
    connection, other = open_(target, autocommit=False), open_(target)
    other.execute("insert into contended values (1, 0)")
    for level, name in (
        (psycopg.IsolationLevel.READ_COMMITTED, "read committed"),
        (psycopg.IsolationLevel.REPEATABLE_READ, "repeatable read"),
        (psycopg.IsolationLevel.SERIALIZABLE, "serializable"),
    ):
        for read_only in (None, True, False):
            connection.isolation_level = level
            connection.read_only = read_only
            equal(one(connection, "show transaction_isolation"), name)
            connection.rollback()
    connection.read_only = None
    connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    equal(one(connection, "select n from contended"), 0)
    other.execute("update contended set n = n + 1")
    equal(one(connection, "select n from contended"), 0, "a repeatable read")
    with fails("40001"):
        connection.execute("update contended set n = n + 1")
    connection.rollback()
    connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
    equal(one(connection, "select n from contended"), 1)
    other.execute("update contended set n = n + 1")
    equal(one(connection, "select n from contended for update"), 2)
    connection.rollback()
    with connection.transaction():
        connection.execute("set transaction isolation level serializable, read only, deferrable")
        equal(one(connection, "select n from contended"), 2)


@check("a long read-only transaction on a standby sees one snapshot")
def read_only_repeatable(target):
    table(target, "moving", "n int")
    reader, writer = open_(target, autocommit=False), open_(target)
    reader.read_only = True
    reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    equal(one(reader, "select count(*) from moving"), 0)
    for number in range(5):
        writer.execute("insert into moving values (%s)", (number,))
        equal(one(reader, "select count(*) from moving"), 0)
    caught_up(target)
    equal(one(reader, "select count(*) from moving"), 0)
    reader.commit()
    until(lambda: one(reader, "select count(*) from moving") == 5 or reader.commit(), "the reader sees the rows")


# ---- COPY


@check("COPY in and out, text, CSV and binary")
def copy_in_and_out(target):
    table(target, "copied", "n int, t text, b bytea")
    connection = open_(target)
    rows = [(number, None if number % 7 == 0 else f"row\t{number}\n\\", bytes([number % 256]) * 20) for number in range(rounds(4000))]
    with connection.cursor() as cursor:
        with cursor.copy("copy copied from stdin") as copy:
            for row in rows:
                copy.write_row(row)
        equal(cursor.rowcount, len(rows))
    equal(one(connection, "select count(*) from copied"), len(rows))
    for format_ in ("text", "csv", "binary"):
        with connection.cursor() as cursor:
            with cursor.copy(f"copy (select * from copied order by n) to stdout (format {format_})") as copy:
                data = b"".join(bytes(block) for block in copy)
        connection.execute("truncate copied")
        with connection.cursor() as cursor:
            with cursor.copy(f"copy copied from stdin (format {format_})") as copy:
                for start in range(0, len(data), 8191):
                    copy.write(data[start : start + 8191])
        equal(connection.execute("select * from copied order by n").fetchall(), rows, f"rows through {format_}")
    with connection.cursor() as cursor:
        with cursor.copy("copy copied to stdout") as copy:
            copy.set_types(["int4", "text", "bytea"])
            equal(sorted(copy.rows()), sorted(rows))
        with cursor.copy("copy copied (n) from stdin (format binary)") as copy:
            copy.set_types(["int4"])
            copy.write_row([123456789])
    equal(one(connection, "select count(*) from copied where n = 123456789"), 1)


@check("COPY of 30 MB in and out")
def copy_much(target):
    table(target, "copied_much", "t text")
    connection = open_(target)
    line = b"x" * 999 + b"\n"
    count = rounds(30) * 1024
    with connection.cursor() as cursor:
        with cursor.copy("copy copied_much from stdin") as copy:
            for _ in range(count // 64):
                copy.write(line * 64)
    with connection.cursor() as cursor:
        with cursor.copy("copy copied_much to stdout") as copy:
            equal(sum(len(block) for block in copy), count // 64 * 64 * 1000)


@check("COPY in a block, rolled back, and with parameters before it")
def copy_in_block(target):
    table(target, "copied_in_block", "n int")
    connection = open_(target, autocommit=False)
    for keep in (False, True):
        equal(one(connection, "select %s::int", 5), 5)
        with connection.cursor().copy("copy copied_in_block from stdin") as copy:
            copy.write("1\n2\n")
        equal(one(connection, "select count(*) from copied_in_block"), 2)
        if keep:
            connection.commit()
        else:
            connection.rollback()
    equal(one(connection, "select count(*) from copied_in_block"), 2)


@check("COPY that fails half-way, by the client, the data or the server")
def copy_fails(target):
    table(target, "copied_badly", "n int primary key")
    connection = open_(target)

    def copy_from(statement, lines, error=None):
        with connection.cursor().copy(statement) as copy:
            for line in lines:
                copy.write(line)
            if error:
                raise error

    many = [f"{number}\n" for number in range(1000)]
    try:
        copy_from("copy copied_badly from stdin", many, ZeroDivisionError())
    except ZeroDivisionError:
        pass
    equal(one(connection, "select count(*) from copied_badly"), 0, "after CopyFail")
    with fails("22P02"):
        copy_from("copy copied_badly from stdin", [*many, "no number\n", *many])
    equal(one(connection, "select count(*) from copied_badly"), 0, "after bad data")
    # Bad at once, with megabytes behind it.
    with fails("22P02"):
        copy_from("copy copied_badly from stdin", ["no number\n", *(many * 500)])
    with fails("23505"):
        copy_from("copy copied_badly from stdin", [*many, *many])
    with fails("42P01"):
        copy_from("copy no_such_table from stdin", many)
    copy_from("copy copied_badly from stdin", many)
    equal(one(connection, "select count(*) from copied_badly"), 1000)
    # Out: an error after rows have come, and a client that stops listening.
    with fails("22012"):
        with connection.cursor().copy("copy (select 1 / (n - 900) from generate_series(1, 1000) n) to stdout") as copy:
            for _ in copy:
                pass
    equal(one(connection, "select 1"), 1)
    # The driver cancels what it does not want to read.
    try:
        with connection.cursor().copy("copy (select generate_series(1, 3000000)) to stdout") as copy:
            copy.read()
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    equal(one(connection, "select 2"), 2)


# ---- cursors and pipelines


@check("server-side cursors fetch in pieces, scroll, and may hold")
def server_side_cursors(target):
    table(target, "scrolled", "n int")
    connection = open_(target, autocommit=False)
    connection.execute("insert into scrolled select generate_series(1, 5000)")
    connection.commit()
    with connection.cursor("named") as cursor:
        cursor.itersize = 100
        cursor.execute("select n from scrolled order by n")
        equal([n for (n,) in cursor], list(range(1, 5001)))
    connection.commit()
    with connection.cursor("with_parameters", scrollable=True) as cursor:
        cursor.execute("select n from scrolled where n > %s order by n", (10,))
        equal(cursor.fetchone(), (11,))
        equal(cursor.fetchmany(2), [(12,), (13,)])
        cursor.scroll(-3)
        equal(cursor.fetchone(), (11,))
        cursor.scroll(1000, mode="absolute")
        equal(cursor.fetchone(), (1011,))
    connection.commit()
    # Two at once, read in turns.
    with connection.cursor("first") as first, connection.cursor("second", binary=True) as second:
        first.execute("select n from scrolled order by n")
        second.execute("select -n from scrolled order by n")
        for number in range(1, 50):
            equal((first.fetchone(), second.fetchone()), ((number,), (-number,)))
    connection.rollback()
    holder = open_(target)
    other = open_(target)
    with holder.cursor("held_cursor", withhold=True) as cursor:
        cursor.execute("select n from scrolled order by n")
        for number in range(1, 20):
            equal(one(other, "select %s::int", number), number)
            equal(cursor.fetchone(), (number,))
    read_only = open_(target, autocommit=False)
    read_only.read_only = True
    caught_up(target)
    with read_only.cursor("on_a_standby") as cursor:
        cursor.execute("select n from scrolled order by n")
        equal(len(cursor.fetchmany(4000)), 4000)
    read_only.rollback()


@check("rows one by one (stream)")
def streamed(target):
    connection = open_(target)
    with connection.cursor() as cursor:
        equal(sum(n for (n,) in cursor.stream("select generate_series(1, %s::int)", (20000,))), 200010000)
        for (n,) in cursor.stream("select generate_series(1, 100)", size=10):
            pass
        equal(n, 100)
    equal(one(connection, "select 1"), 1)


@check("pipelines: many queries in one go, their errors, and syncs between")
def pipelines(target):
    table(target, "piped", "n int primary key")
    connection = open_(target, prepare_threshold=3)
    with connection.pipeline():
        cursors = [connection.execute("select %s::int", (number,)) for number in range(rounds(300))]
        equal([cursor.fetchone()[0] for cursor in cursors], list(range(len(cursors))))
    with connection.pipeline() as pipeline:
        for number in range(100):
            connection.execute("insert into piped values (%s)", (number,))
        counted = connection.execute("select count(*) from piped")
        pipeline.sync()
        equal(counted.fetchone()[0], 100)
        connection.execute("insert into piped values (100)")
    equal(one(connection, "select count(*) from piped"), 101)
    # An error aborts what stands before the next sync, and rolls it back.
    try:
        with connection.pipeline() as pipeline:
            first = connection.execute("insert into piped values (200)")
            failed = connection.execute("insert into piped values (1)")
            aborted = connection.execute("insert into piped values (201)")
            pipeline.sync()
    except errors.UniqueViolation:
        pass
    else:
        raise AssertionError("no error in the pipeline")
    equal(one(connection, "select count(*) from piped where n >= 200"), 0)
    with connection.pipeline() as pipeline:
        try:
            connection.execute("select 1/0")
            pipeline.sync()
        except errors.DivisionByZero:
            pass
        after = connection.execute("select 5")
        equal(after.fetchone()[0], 5)
    with connection.transaction(), connection.pipeline():
        connection.execute("insert into piped values (300)")
        inside = connection.execute("select max(n) from piped")
        equal(inside.fetchone()[0], 300)
    with connection.cursor() as cursor:
        cursor.executemany("insert into piped values (%s)", [(number,) for number in range(1000, 1300)])
        equal(cursor.rowcount, 300)
        cursor.executemany("insert into piped values (%s) returning n", [(2000,), (2001,)], returning=True)
        equal(cursor.fetchone(), (2000,))
        assert cursor.nextset()
        equal(cursor.fetchone(), (2001,))
        with fails("23505"):
            cursor.executemany("insert into piped values (%s)", [(5000,), (1,), (5001,)])
    equal(one(connection, "select count(*) from piped where n >= 5000"), 0)


@check("pipelines of several clients over changing servers")
def pipelines_of_many(target):
    table(target, "piped_by_many", "client int, n int")
    connections = [open_(target, prepare_threshold=1) for _ in range(CLIENTS)]

    def work(client):
        connection = connections[client]
        for number in range(rounds(40)):
            with connection.pipeline() as pipeline:
                connection.execute("insert into piped_by_many values (%s, %s)", (client, number))
                pipeline.sync()
                found = connection.execute("select count(*) from piped_by_many where client = %s", (client,))
                pipeline.sync()
                again = connection.execute("select %s::text", (f"{client}-{number}",))
            equal(found.fetchone()[0], number + 1, "own writes in a pipeline")
            equal(again.fetchone()[0], f"{client}-{number}")

    in_threads(CLIENTS, work)


# ---- cancelling, notifications, state of a session


def cancelled(connection, sql="select pg_sleep(30)"):
    began = time.monotonic()
    timer = threading.Timer(0.3, connection.cancel_safe)
    timer.start()
    with fails("57014"):
        connection.execute(sql)
    timer.join()
    assert time.monotonic() - began < 10, "the cancel took long"
    # None of the queries that follow may be hit by it.
    for number in range(20):
        equal(one(connection, "select %s::int", number), number)


@check("cancel of a running query is 57014, and the connection goes on")
def cancel(target):
    connections = [open_(target) for _ in range(5)]
    for connection in connections:
        cancelled(connection)
    cancelled(connections[0], "create table never_made as select 1 as n from pg_sleep(30)")
    connection = connections[1]
    with connection.transaction():
        with connection.transaction():
            cancelled_in_block(connection)
        equal(one(connection, "select 1"), 1)
    # A cancel of an idle connection hits nobody.
    for connection in connections:
        connection.cancel_safe()
    time.sleep(0.1)
    for connection in connections:
        equal(one(connection, "select 1"), 1)


def cancelled_in_block(connection):
    timer = threading.Timer(0.3, connection.cancel_safe)
    timer.start()
    with fails("57014"):
        connection.execute("select pg_sleep(30)")
    timer.join()
    equal(connection.info.transaction_status.name, "INERROR")
    raise psycopg.Rollback


@check("a cancel hits the right one of many clients")
def cancel_the_right_one(target):
    connections = [open_(target) for _ in range(POOL_SIZE)]
    for client, connection in enumerate(connections):
        connection.execute(f"drop table if exists slept_{client}")
    outcomes = [None] * len(connections)

    def work(client):
        try:
            connections[client].execute("create table slept_%d as select 1 as n from pg_sleep(3)" % client)
            outcomes[client] = "done"
        except errors.QueryCanceled:
            outcomes[client] = "cancelled"

    threads = [threading.Thread(target=work, args=(client,), daemon=True) for client in range(len(connections))]
    for thread in threads:
        thread.start()
    time.sleep(0.7)
    connections[1].cancel_safe()
    for thread in threads:
        thread.join(20)
    equal(outcomes, ["done", "cancelled", "done"])


@check("a query that waits for a pooled connection can be cancelled", only="proxy")
def cancel_while_waiting(target):
    holders = [open_(target, autocommit=False) for _ in range(POOL_SIZE)]
    for holder in holders:
        # A write, so that every one of them is on the primary.
        holder.execute("create temp table held_here (n int)")
    waiter = open_(target)
    timer = threading.Timer(0.5, waiter.cancel_safe)
    timer.start()
    began = time.monotonic()
    with fails("57014"):
        waiter.execute("create table never_made (n int)")
    assert time.monotonic() - began < 10
    timer.join()
    for holder in holders:
        holder.rollback()
    equal(one(waiter, "select 1"), 1)


@check("LISTEN and NOTIFY reach the listener, also while it is idle")
def listen_notify(target):
    listener, other, sender = open_(target), open_(target), open_(target)
    listener.execute("listen news")
    for number in range(3):
        # Others use the pool meanwhile.
        equal(one(other, "select %s::int", number), number)
        sender.execute("select pg_notify('news', %s)", (f"n{number}",))
        found = [(note.channel, note.payload) for note in listener.notifies(timeout=5, stop_after=1)]
        equal(found, [("news", f"n{number}")])
    with sender.transaction():
        sender.execute("notify news, 'in a block'")
    equal([note.payload for note in listener.notifies(timeout=5, stop_after=1)], ["in a block"])
    # A sender that listens gets its own, with the answer.
    listener.execute("notify news, 'own'")
    equal([note.payload for note in listener.notifies(timeout=5, stop_after=1)], ["own"])
    listener.execute("unlisten news")
    sender.execute("notify news, 'unheard'")
    equal([note.payload for note in listener.notifies(timeout=0.3)], [])
    equal(list(other.notifies(timeout=0.1)), [])


@check("notices arrive with their statement")
def notices(target):
    connection = open_(target)
    heard = []
    connection.add_notice_handler(lambda notice: heard.append((notice.severity, notice.message_primary)))
    connection.execute("do $$ begin raise notice 'hello %', 1; raise warning 'careful'; end $$")
    equal(heard, [("NOTICE", "hello 1"), ("WARNING", "careful")])
    connection.execute("commit")
    equal(heard[-1], ("WARNING", "there is no transaction in progress"))


@check("temporary tables live in their session")
def temporary_tables(target):
    connections = [open_(target) for _ in range(2)]
    other = open_(target)
    for client, connection in enumerate(connections):
        connection.execute("create temporary table mine (n int)")
        connection.execute("insert into mine values (%s)", (client,))
    for number in range(rounds(20)):
        equal(one(other, "select %s::int", number), number)
        for client, connection in enumerate(connections):
            equal(one(connection, "select n from mine"), client)
    with fails("42P01"):
        other.execute("select n from mine")
    for connection in connections:
        connection.execute("drop table mine")
        with fails("42P01"):
            connection.execute("select n from mine")
    with connections[0].transaction():
        connections[0].execute("create temp table brief (n int) on commit drop")
        connections[0].execute("insert into brief values (1)")
        equal(one(connections[0], "select n from brief"), 1)
    with fails("42P01"):
        connections[0].execute("select n from brief")
    connections[1].execute("select 5 as n into temp table selected")
    equal(one(connections[1], "select n from selected"), 5)
    for connection in connections:
        connection.close()
    # The next ones find nothing of it.
    fresh = [open_(target, autocommit=False) for _ in range(POOL_SIZE)]
    for connection in fresh:
        connection.execute("create temporary table mine (n int)")
        equal(one(connection, "select count(*) from mine"), 0)
    for connection in fresh:
        connection.rollback()


@check("session advisory locks are held by their session alone")
def advisory_locks(target):
    holder, other = open_(target), open_(target)
    holder.execute("select pg_advisory_lock(4711)")
    for _ in range(5):
        equal(one(other, "select pg_try_advisory_lock(4711)"), False)
        equal(one(holder, "select 1"), 1)
    equal(one(holder, "select pg_advisory_unlock(4711)"), True)
    equal(one(other, "select pg_try_advisory_lock(4711)"), True)
    other.close()
    until(lambda: one(holder, "select pg_try_advisory_lock(4711)"), "the lock of a client that left is free")
    with holder.transaction():
        holder.execute("select pg_advisory_xact_lock(4712)")
    fresh = open_(target)
    equal(one(fresh, "select pg_try_advisory_xact_lock(4712)"), True)


@check("SET stays with its client while others use the pool")
def settings_of_many(target):
    connections = [open_(target) for _ in range(CLIENTS)]
    for client, connection in enumerate(connections):
        connection.execute(f"set application_name = 'client {client}'")
        connection.execute(f"set work_mem = '{client + 1}MB'")
        connection.execute(f"set app.user_id = '{client}'")
    for number in range(rounds(20)):
        for client in sorted(range(CLIENTS), key=lambda n: (n * 5 + number) % CLIENTS):
            connection = connections[client]
            equal(one(connection, "show work_mem"), f"{client + 1}MB")
            equal(one(connection, "select current_setting('app.user_id')"), f"{client}")
            equal(one(connection, "show application_name"), f"client {client}")
            equal(connection.info.parameter_status("application_name"), f"client {client}")
    connections[0].execute("reset work_mem")
    connections[1].execute("reset all")
    connections[2].execute("discard all")
    for _ in range(5):
        equal(one(connections[0], "show work_mem"), "4MB")
        equal(one(connections[1], "show application_name"), "")
        equal(one(connections[2], "show work_mem"), "4MB")
        equal(one(connections[4], "show work_mem"), "5MB")
        assert one(connections[1], "select coalesce(current_setting('app.user_id', true), '')") == ""


@check("SET SESSION CHARACTERISTICS of more clients than the pool has")
def session_characteristics(target):
    connections = [open_(target) for _ in range(CLIENTS)]
    levels = ["read committed", "repeatable read", "serializable", "read uncommitted"]
    for client, connection in enumerate(connections):
        connection.execute(f"set session characteristics as transaction isolation level {levels[client % 4]}")
        if client % 2:
            connection.execute("set session characteristics as transaction read only")
    for _ in range(rounds(12)):
        for client, connection in enumerate(connections):
            equal(one(connection, "show transaction_isolation"), levels[client % 4])
            equal(one(connection, "show transaction_read_only"), "on" if client % 2 else "off")
            equal(one(connection, "show default_transaction_isolation"), levels[client % 4])
    for connection in connections:
        connection.execute("set session characteristics as transaction isolation level read committed, read write")
        equal(one(connection, "show transaction_isolation"), "read committed")
        connection.execute("create table if not exists characterized (n int)")


@check("set_config with literals is as SET, for more clients than the pool has")
def set_config_with_literals(target):
    connections = [open_(target) for _ in range(CLIENTS)]
    for client, connection in enumerate(connections):
        connection.execute(f"select set_config('app.tenant', 't{client}', false)")
    for _ in range(rounds(12)):
        for client, connection in enumerate(connections):
            equal(one(connection, "select current_setting('app.tenant')"), f"t{client}")


@check("set_config with parameters stays with its client")
def set_config(target):
    # A value that is a parameter keeps its client on one server connection, so there are fewer than the pool has.
    connections = [open_(target, prepare_threshold=0) for _ in range(POOL_SIZE - 1)]
    other = open_(target)
    for client, connection in enumerate(connections):
        connection.execute("select set_config('app.tenant', %s, false)", (f"t{client}",))
    for _ in range(rounds(20)):
        equal(one(other, "select coalesce(current_setting('app.tenant', true), '')"), "")
        for client, connection in enumerate(connections):
            equal(one(connection, "select current_setting('app.tenant')"), f"t{client}")
    with other.transaction():
        other.execute("select set_config('app.tenant', %s, true)", ("local",))
        equal(one(other, "select current_setting('app.tenant')"), "local")
    equal(one(other, "select coalesce(current_setting('app.tenant', true), '')"), "")


@check("TimeZone, DateStyle and client_encoding change what comes back")
def settings_that_change_results(target):
    first = open_(target, options="-c timezone=Asia/Tokyo")
    second = open_(target)
    second.execute("set timezone = 'America/New_York'")
    third = open_(target)
    third.execute("set client_encoding = 'latin1'")
    moment = "select '2024-01-01 00:00:00+00'::timestamptz::text"
    for _ in range(rounds(20)):
        equal(one(first, moment), "2024-01-01 09:00:00+09")
        equal(one(second, moment), "2023-12-31 19:00:00-05")
        equal(one(third, "select 'é'::text"), "é")
        equal(one(first, "select 'é世'::text"), "é世")
        equal(first.info.parameter_status("TimeZone"), "Asia/Tokyo")
        equal(second.info.timezone.key, "America/New_York")
        equal(third.info.encoding, "iso8859-1")
    with fails("22P05"):
        third.execute("select convert_from('\\xe4b896', 'utf8')")
    with fails("22023"):
        second.execute("set timezone = 'Nowhere/Nowhere'")
    equal(one(second, moment), "2023-12-31 19:00:00-05")


@check("SET ROLE and SET SESSION AUTHORIZATION stay with their client")
def roles(target):
    with psycopg.connect(host=HOST, port=checks.direct_port(), dbname=target.database, user=USER, autocommit=True) as own:
        own.execute(
            "do $$ begin if not exists (select from pg_roles where rolname = 'driver_role') then create role driver_role login; end if; end $$"
        )
    caught_up(target)
    first, second = open_(target), open_(target)
    first.execute("set role driver_role")
    for _ in range(rounds(12)):
        equal(one(first, "select current_user::text"), "driver_role")
        equal(one(second, "select current_user::text"), "postgres")
    first.execute("reset role")
    equal(one(first, "select current_user::text"), "postgres")
    with first.transaction():
        first.execute("set local role driver_role")
        equal(one(first, "select current_user::text"), "driver_role")
    equal(one(first, "select current_user::text"), "postgres")
    second.execute("set session authorization driver_role")
    for _ in range(rounds(12)):
        equal(one(second, "select session_user::text"), "driver_role")
        equal(one(first, "select session_user::text"), "postgres")
    second.execute("reset session authorization")
    equal(one(second, "select session_user::text"), "postgres")


@check("currval and lastval tell of the session's own nextval, never of another's")
def sequences(target):
    with psycopg.connect(host=HOST, port=checks.direct_port(), dbname=target.database, user=USER, autocommit=True) as own:
        own.execute("drop sequence if exists counter; create sequence counter")
    caught_up(target)
    first, second = open_(target), open_(target)
    for sql in ("select currval('counter')", "select lastval()"):
        with first.transaction():
            number = one(first, "select nextval('counter')")
            equal(one(first, sql), number)
        equal(one(second, "select nextval('counter')"), number + 1)
        # Outside the block the connection may have served others since: then there is no answer, rather than theirs.
        try:
            equal(one(first, sql), number)
        except errors.ObjectNotInPrerequisiteState:
            assert target.is_proxy
        first.execute("begin")
        equal(one(first, "select nextval('counter')"), number + 2)
        equal(one(first, sql), number + 2)
        first.execute("rollback")


@check("one client's lastval() leaves the others free to insert, more of them than the pool has")
def lastval_of_one(target):
    table(target, "serials", "id serial, client int")
    asker = open_(target)
    with asker.transaction():
        asker.execute("insert into serials (client) values (-1)")
        assert one(asker, "select lastval()") > 0
    connections = [open_(target) for _ in range(CLIENTS)]
    for number in range(rounds(12)):
        for client, connection in enumerate(connections):
            connection.execute("insert into serials (client) values (%s)", (client,))
            equal(one(connection, "select count(*) from serials where client = %s", client), number + 1)


@check("many clients at once share the pool")
def many_clients(target):
    count = 60
    connections = []

    def work(client):
        connection = open_(target)
        connections.append(connection)
        for number in range(rounds(20)):
            equal(one(connection, "select %s::int * 1000 + %s::int", client, number), client * 1000 + number)

    in_threads(count, work)
    equal(len(connections), count)


if __name__ == "__main__":
    checks.run("psycopg", close=lambda connection: connection.close())
