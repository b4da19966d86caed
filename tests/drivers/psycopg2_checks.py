"""psycopg2: libpq, simple queries only, and its own COPY, cursors and large objects."""

import datetime as dt
import decimal
import io
import os
import select
import threading
from contextlib import contextmanager

import psycopg2
import psycopg2.errors
import psycopg2.extensions
import psycopg2.extras
import psycopg2.pool

import checks
from checks import HOST, POOL_SIZE, USER, check, equal, rounds, until

CLIENTS = 8


def open_(target, autocommit=True, port=None, **options):
    """A connection of the check's own."""
    connection = target.connect(
        psycopg2.connect, host=HOST, port=port or target.port, dbname=target.database, user=USER, **options
    )
    connection.autocommit = autocommit
    return connection


def direct(target, port=None):
    """A connection that is never through the proxy, to look on."""
    return open_(target, port=port or checks.direct_port())


def execute(connection, sql, *arguments):
    cursor = connection.cursor()
    cursor.execute(sql, arguments or None)
    return cursor


def one(connection, sql, *arguments):
    return execute(connection, sql, *arguments).fetchone()[0]


def caught_up(target):
    lsn = one(direct(target), "select pg_current_wal_flush_lsn()")
    for port in checks.standby_ports():
        standby = direct(target, port)
        until(lambda: one(standby, "select pg_last_wal_replay_lsn() >= %s::pg_lsn", lsn), "replay")


def table(target, name, columns):
    execute(direct(target), f"set client_min_messages = error; drop table if exists {name}; create table {name} ({columns})")
    caught_up(target)


@contextmanager
def fails(sqlstate):
    try:
        yield
    except psycopg2.Error as error:
        equal(error.pgcode, sqlstate, f"SQLSTATE of {error}")
    else:
        raise AssertionError(f"no error, instead of {sqlstate}")


@check("connects with application_name and options")
def connects(target):
    connection = open_(target, application_name="drivers psycopg2", options="-c statement_timeout=250 -c search_path=pg_catalog")
    equal(one(connection, "show application_name"), "drivers psycopg2")
    equal(one(connection, "show search_path"), "pg_catalog")
    equal(connection.get_parameter_status("in_hot_standby"), "off")
    with fails("57014"):
        execute(connection, "select pg_sleep(10)")
    equal(one(connection, "select 1"), 1)


@check("values that the driver writes into the statement")
def values(target):
    connection = open_(target)
    psycopg2.extras.register_uuid()
    for value in (
        1,
        2**60,
        "grüße 'quoted' \\ \n",
        decimal.Decimal("1.50"),
        dt.datetime(2024, 2, 29, 23, 59, 59, 1, tzinfo=dt.timezone.utc),
        dt.date(1970, 1, 1),
        [1, 2, 3],
        ["a", None],
        True,
        None,
    ):
        equal(one(connection, "select %s", value), value)
    equal(bytes(one(connection, "select %s", psycopg2.Binary(bytes(range(256))))), bytes(range(256)))
    equal(one(connection, "select %s::jsonb", psycopg2.extras.Json({"a": [1, None]})), {"a": [1, None]})
    execute(connection, "create temp table several (n int)")
    psycopg2.extras.execute_values(connection.cursor(), "insert into several values %s", [(n,) for n in range(1000)])
    psycopg2.extras.execute_batch(connection.cursor(), "insert into several values (%s)", [(n,) for n in range(1000)])
    equal(one(connection, "select count(*) from several"), 2000)


@check("a 10 MB bytea goes both ways")
def large_values(target):
    table(target, "large", "b bytea")
    connection = open_(target)
    data = os.urandom(10 * 1024 * 1024)
    execute(connection, "insert into large values (%s)", psycopg2.Binary(data))
    assert bytes(one(connection, "select b from large")) == data


@check("commit, rollback, savepoints, and a connection as a with block")
def transactions(target):
    table(target, "kept", "n int primary key")
    connection, looker = open_(target, autocommit=False), direct(target)
    execute(connection, "insert into kept values (1)")
    equal(one(looker, "select count(*) from kept"), 0)
    connection.commit()
    equal(one(looker, "select count(*) from kept"), 1)
    execute(connection, "insert into kept values (2)")
    execute(connection, "savepoint a")
    with fails("23505"):
        execute(connection, "insert into kept values (1)")
    with fails("25P02"):
        execute(connection, "select 1")
    execute(connection, "rollback to savepoint a")
    equal(one(connection, "select count(*) from kept"), 2)
    connection.rollback()
    equal(one(connection, "select count(*) from kept"), 1)
    connection.rollback()
    with connection:
        execute(connection, "insert into kept values (3)")
    with fails("22012"), connection:
        execute(connection, "insert into kept values (4)")
        execute(connection, "select 1/0")
    equal(one(connection, "select count(*) from kept"), 2)


@check("errors have their SQLSTATE, and the connection goes on")
def errors_and_after(target):
    connection = open_(target)
    for sql, state in (("select * from no_such_table", "42P01"), ("select 1/0", "22012"), ("selec", "42601"), ("select 1; select 1/0", "22012")):
        with fails(state):
            execute(connection, sql)
        equal(one(connection, "select 1"), 1)


@check("set_session: read only, isolation, deferrable")
def set_session(target):
    table(target, "untouched", "n int")
    connection = open_(target, autocommit=False)
    for level, name in (
        (psycopg2.extensions.ISOLATION_LEVEL_READ_COMMITTED, "read committed"),
        (psycopg2.extensions.ISOLATION_LEVEL_REPEATABLE_READ, "repeatable read"),
        (psycopg2.extensions.ISOLATION_LEVEL_SERIALIZABLE, "serializable"),
    ):
        for readonly in (True, False):
            connection.set_session(isolation_level=level, readonly=readonly, deferrable=False)
            equal(one(connection, "show transaction_isolation"), name)
            equal(one(connection, "select count(*) from untouched"), 0)
            with fails("25006" if readonly else "22012"):
                execute(connection, "insert into untouched values (1)")
                execute(connection, "select 1/0")
            connection.rollback()


@check("set_session with autocommit, for more clients than the pool has")
def set_session_with_autocommit(target):
    # The driver says SET default_transaction_… here.
    connections = [open_(target) for _ in range(CLIENTS)]
    for client, connection in enumerate(connections):
        connection.set_session(readonly=bool(client % 2), isolation_level="repeatable read", autocommit=True)
    for _ in range(rounds(20)):
        for client, connection in enumerate(connections):
            equal(one(connection, "show transaction_read_only"), "on" if client % 2 else "off")
            equal(one(connection, "show transaction_isolation"), "repeatable read")


@check("COPY in and out, and one that fails")
def copies(target):
    table(target, "copied", "n int, t text")
    connection = open_(target)
    cursor = connection.cursor()
    count = rounds(20000)
    cursor.copy_from(io.StringIO("".join(f"{n}\trow {n}\n" for n in range(count))), "copied")
    equal(one(connection, "select count(*) from copied"), count)
    out = io.BytesIO()
    cursor.copy_expert("copy (select * from copied order by n) to stdout with csv", out)
    assert out.getvalue().startswith(b"0,row 0\n1,row 1\n")
    equal(out.getvalue().count(b"\n"), count)
    with fails("22P02"):
        cursor.copy_expert("copy copied from stdin", io.StringIO("no number\tx\n" + "1\tx\n" * 200000))

    class Broken(io.StringIO):
        def read(self, size=-1):
            raise ZeroDivisionError

    with fails("57014"):
        cursor.copy_expert("copy copied from stdin", Broken())
    equal(one(connection, "select count(*) from copied"), count)


@check("named cursors, with hold too")
def named_cursors(target):
    connection = open_(target, autocommit=False)
    cursor = connection.cursor("pieces")
    cursor.itersize = 100
    cursor.execute("select generate_series(1, %s)", (2000,))
    equal([n for (n,) in cursor], list(range(1, 2001)))
    cursor.close()
    connection.commit()
    holder = open_(target)
    cursor = holder.cursor("held", withhold=True)
    cursor.execute("select generate_series(1, 100)")
    other = open_(target)
    for number in range(1, 100):
        equal(one(other, "select %s", number), number)
        equal(cursor.fetchone(), (number,))
    cursor.close()


@check("large objects, by function calls of the protocol")
def large_objects(target):
    connection = open_(target, autocommit=False)
    data = os.urandom(300_000)
    made = connection.lobject(0, "wb")
    made.write(data)
    oid = made.oid
    made.close()
    connection.commit()
    read = connection.lobject(oid, "rb")
    assert read.read() == data
    read.seek(1000)
    assert read.read(10) == data[1000:1010]
    read.close()
    connection.commit()
    connection.lobject(oid).unlink()
    connection.commit()


@check("cancel of a running query is 57014, and the connection goes on")
def cancel(target):
    connection = open_(target)
    for _ in range(3):
        timer = threading.Timer(0.3, connection.cancel)
        timer.start()
        with fails("57014"):
            execute(connection, "select pg_sleep(30)")
        timer.join()
        for number in range(20):
            equal(one(connection, "select %s", number), number)


@check("LISTEN and NOTIFY, polled")
def listen_notify(target):
    listener, sender = open_(target), open_(target)
    execute(listener, "listen news")
    for number in range(3):
        execute(sender, "select pg_notify('news', %s)", f"n{number}")
        assert select.select([listener], [], [], 5) != ([], [], []), "no notification"
        listener.poll()
        equal([note.payload for note in listener.notifies], [f"n{number}"])
        listener.notifies.clear()


@check("an asynchronous connection")
def asynchronous(target):
    connection = target.connect(
        psycopg2.connect, host=HOST, port=target.port, dbname=target.database, user=USER, async_=True
    )
    psycopg2.extras.wait_select(connection)
    cursor = connection.cursor()
    for number in range(rounds(100)):
        cursor.execute("select %s", (number,))
        psycopg2.extras.wait_select(connection)
        equal(cursor.fetchone(), (number,))


@check("the driver's pool, from threads")
def pools(target):
    table(target, "pooled", "n int")
    pool = psycopg2.pool.ThreadedConnectionPool(
        1, CLIENTS, host=HOST, port=target.port, dbname=target.database, user=USER
    )
    problems = []

    def work(thread):
        try:
            for number in range(rounds(40)):
                connection = pool.getconn()
                with connection:
                    execute(connection, "insert into pooled values (%s)", thread)
                    equal(one(connection, "select %s", number), number)
                pool.putconn(connection)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(thread,), daemon=True) for thread in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(checks.SECONDS_PER_CHECK)
    pool.closeall()
    if problems:
        raise problems[0]
    equal(one(direct(target), "select count(*) from pooled"), CLIENTS * rounds(40))


@check("a replication connection goes to the primary and identifies it")
def replication(target):
    connection = target.connect(
        psycopg2.connect,
        host=HOST,
        port=target.port,
        user=USER,
        connection_factory=psycopg2.extras.PhysicalReplicationConnection,
    )
    cursor = connection.cursor()
    cursor.execute("IDENTIFY_SYSTEM")
    system, timeline, _position, _database = cursor.fetchone()
    equal(str(system), str(one(direct(target), "select system_identifier from pg_control_system()")))
    equal(int(timeline), 1)


if __name__ == "__main__":
    checks.run("psycopg2", close=lambda connection: connection.close())
