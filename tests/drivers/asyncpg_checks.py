"""asyncpg: its own implementation of the protocol, all in binary, with named statements for everything."""

import asyncio
import datetime as dt
import decimal
import io
import json
import os
import ssl
import time
import uuid
from contextlib import asynccontextmanager, contextmanager

import asyncpg

import checks
from checks import HOST, POOL_SIZE, USER, check, equal, rounds

CLIENTS = 8


async def open_(target, **options):
    """A connection of the check's own."""
    connection = await asyncpg.connect(
        **({"host": HOST, "port": target.port, "database": target.database, "user": USER} | options)
    )
    target.opened.append(connection)
    return connection


async def direct(target, port=None):
    """A connection that is never through the proxy, to look on."""
    return await open_(target, port=port or checks.direct_port())


async def caught_up(target):
    """Waits until the standbys have replayed all that is committed."""
    looker = await direct(target)
    lsn = await looker.fetchval("select pg_current_wal_flush_lsn()::text")
    await looker.close()
    for port in checks.standby_ports():
        standby = await direct(target, port)
        await until(standby, f"select pg_last_wal_replay_lsn() >= '{lsn}'")
        await standby.close()


async def until(connection, sql, seconds=15):
    """Waits until the query is true."""
    deadline = time.monotonic() + seconds
    while not await connection.fetchval(sql):
        assert time.monotonic() < deadline, f"not within {seconds} s: {sql}"
        await asyncio.sleep(0.01)


async def make(target, sql):
    """Makes what every client sees on every node."""
    looker = await direct(target)
    await looker.execute("set client_min_messages = error")
    await looker.execute(sql)
    await looker.close()
    await caught_up(target)


async def table(target, name, columns):
    await make(target, f"drop table if exists {name}; create table {name} ({columns})")


@contextmanager
def fails(sqlstate):
    try:
        yield
    except asyncpg.PostgresError as error:
        equal(error.sqlstate, sqlstate, f"SQLSTATE of {error}")
    else:
        raise AssertionError(f"no error, instead of {sqlstate}")


@asynccontextmanager
async def pool(target, **options):
    made = await asyncpg.create_pool(host=HOST, port=target.port, database=target.database, user=USER, **options)
    try:
        yield made
    finally:
        await asyncio.wait_for(made.close(), 20)


# ---- connecting


@check("connects, and the server looks like a primary")
async def connects(target):
    connection = await open_(target, server_settings={"application_name": "drivers asyncpg"})
    settings = connection.get_settings()
    equal(settings.application_name, "drivers asyncpg")
    equal(settings.in_hot_standby, "off")
    equal(connection.get_server_version(), (await direct(target)).get_server_version())
    equal(await connection.fetchval("show application_name"), "drivers asyncpg")
    equal(await connection.fetchval("select current_database()"), target.database)
    for wanted in ("read-write", "primary", "any", "prefer-standby"):
        equal(await (await open_(target, target_session_attrs=wanted)).fetchval("select 1"), 1)


@check("options at login set search_path and statement_timeout")
async def options_at_login(target):
    await make(target, "drop schema if exists elsewhere cascade; create schema elsewhere; create table elsewhere.found as select 42 as n")
    by_settings = await open_(target, server_settings={"search_path": "elsewhere", "statement_timeout": "250"})
    by_options = await open_(target, server_settings={"options": "-c search_path=elsewhere -c statement_timeout=250"})
    other = await open_(target)
    for _ in range(3):
        for connection in (by_settings, by_options):
            equal(await connection.fetchval("select n from found"), 42)
            equal(await connection.fetchval("show statement_timeout"), "250ms")
        with fails("42P01"):
            await other.fetchval("select n from found")
    for connection in (by_settings, by_options):
        with fails("57014"):
            await connection.fetchval("select pg_sleep(10)")
        equal(await connection.fetchval("select n from found"), 42)


@check("refused logins say why")
async def refused_logins(target):
    with fails("3D000"):
        await open_(target, database="no_such_database")
    with fails("42704"):
        await open_(target, server_settings={"no_such_setting": "1"})
    with fails("22023"):
        await open_(target, server_settings={"statement_timeout": "soon"})


@check("logs in by SCRAM, with and without TLS, and cancels over TLS", only="proxy")
async def passwords_and_tls(target):
    port, password, certificate = checks.secure()
    for tls in (False, ssl.create_default_context(cafile=certificate)):
        connection = await open_(target, port=port, password=password, ssl=tls)
        data = os.urandom(3_000_000)
        assert await connection.fetchval("select $1::bytea", data) == data
        try:
            await connection.fetchval("select pg_sleep(30)", timeout=0.3)
        except asyncio.TimeoutError:
            pass
        equal(await connection.fetchval("select 1"), 1)
        with fails("28P01"):
            await open_(target, port=port, password="wrong", ssl=tls)
    if hasattr(asyncpg.connect_utils.SSLNegotiation, "direct"):
        direct_tls = ssl.create_default_context(cafile=certificate)
        direct_tls.set_alpn_protocols(["postgresql"])
        connection = await open_(target, port=port, password=password, ssl=direct_tls, direct_tls=True)
        equal(await connection.fetchval("select 1"), 1)


@check("reconnects, time after time")
async def reconnects(target):
    for number in range(rounds(100)):
        connection = await asyncpg.connect(host=HOST, port=target.port, database=target.database, user=USER)
        equal(await connection.fetchval("select $1::int", number), number)
        await connection.close()


@check("a connection that is lost is an error, and the next one works")
async def lost_connection(target):
    connection, looker = await open_(target), await direct(target)
    await connection.execute("begin")
    pid = await connection.fetchval("select pg_backend_pid()")
    await looker.execute(f"select pg_terminate_backend({pid})")
    await until(looker, f"select count(*) = 0 from pg_stat_activity where pid = {pid}")
    try:
        await connection.fetchval("select 1")
    except asyncpg.SerializationError:
        assert target.is_proxy
        await connection.execute("rollback")
        equal(await connection.fetchval("select 1"), 1)
    except (asyncpg.PostgresConnectionError, asyncpg.AdminShutdownError, asyncpg.InterfaceError, asyncpg.InternalClientError):
        # The last where the server's last words come while the driver begins to speak.
        assert not target.is_proxy
    else:
        raise AssertionError("the transaction survived its server process")
    equal(await (await open_(target)).fetchval("select 1"), 1)


@check("a client that vanishes in a transaction leaves no lock behind")
async def vanished_client(target):
    await table(target, "vanished", "n int primary key")
    connection = await open_(target)
    await connection.execute("begin; insert into vanished values (1)")
    connection.terminate()
    other = await open_(target)
    await other.execute("set lock_timeout = '10s'")
    await other.execute("insert into vanished values (1)")


# ---- queries and values


@check("simple queries, several statements in one, and none")
async def simple_queries(target):
    connection = await open_(target)
    equal(await connection.execute("select 1; select 2; select 3"), "SELECT 1")
    equal(await connection.fetch(""), [])
    equal(await connection.fetch("-- nothing"), [])
    equal([tuple(row) for row in await connection.fetch("select 1, 'two', null")], [(1, "two", None)])
    equal(len(await connection.fetch("select generate_series(1, 20000), repeat('x', 50)")), 20000)
    equal(await connection.fetchval("select count(*) from generate_series(1, 10)"), 10)


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
    ("int[]", [[1, 2], [3, 4]]),
    ("text[]", ["a", "b,c", '"', None, ""]),
    ("numeric[]", [decimal.Decimal("1.10"), None]),
    ("timestamptz[]", [dt.datetime(2000, 1, 1, tzinfo=dt.timezone.utc)]),
    ("json", '{"a": [1, null, "x"]}'),
    ("jsonb", '{"a": [1, null, "x"]}'),
    ("point", asyncpg.Point(1.5, -2)),
    ("int4range", asyncpg.Range(1, 10)),
    ("bit(3)", asyncpg.BitString("101")),
]


@check("parameters and results in binary, NULL, arrays, json")
async def parameters(target):
    connection = await open_(target)
    for type_, value in VALUES:
        equal(await connection.fetchval(f"select $1::{type_}", value), value, type_)
        equal(await connection.fetchval(f"select $1::{type_}", None), None, f"{type_} null")
    equal(list((await connection.fetchrow("select " + ", ".join(f"${n}::int" for n in range(1, 101)), *range(100))).values()), list(range(100)))


@check("types of one's own: enums, composites, domains, and their codecs")
async def own_types(target):
    await make(
        target,
        "drop type if exists pair; drop type if exists mood; create type mood as enum ('sad', 'glad'); create type pair as (m mood, n int)",
    )
    connections = [await open_(target) for _ in range(4)]
    for connection in connections:
        await connection.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
    for _ in range(rounds(12)):
        for connection in connections:
            equal(await connection.fetchval("select $1::mood", "glad"), "glad")
            equal(await connection.fetchval("select $1::mood[]", ["glad", "sad"]), ["glad", "sad"])
            equal(tuple(await connection.fetchval("select $1::pair", ("sad", 7))), ("sad", 7))
            equal(await connection.fetchval("select $1::jsonb", {"a": [1]}), {"a": [1]})


@check("a 10 MB bytea goes both ways")
async def large_values(target):
    await table(target, "large", "b bytea, t text")
    connection = await open_(target)
    data = os.urandom(10 * 1024 * 1024)
    text = "0123456789abcdef" * (len(data) // 16)
    await connection.execute("insert into large values ($1, $2)", data, text)
    row = await connection.fetchrow("select b, t from large")
    assert row["b"] == data and row["t"] == text
    assert await connection.fetchval("select $1::bytea", data) == data


# ---- prepared statements


@check("named statements run hundreds of times by clients that change servers")
async def named_statements(target):
    await table(target, "counted", "id int primary key, n int")
    await make(target, f"insert into counted select n, 0 from generate_series(0, {CLIENTS - 1}) n")
    connections = [await open_(target) for _ in range(CLIENTS)]
    own = []
    for client, connection in enumerate(connections):
        own.append(
            (
                await connection.prepare("select $1::int + $2::int"),
                await connection.prepare(f"select $1::int * 2 as c{client}"),
                await connection.prepare("update counted set n = n + 1 where id = $1 returning n"),
                await connection.prepare("select pg_backend_pid()"),
            )
        )
    servers = [set() for _ in connections]
    updates = [0] * CLIENTS
    for number in range(rounds(60)):
        chosen = list(dict.fromkeys((number * POOL_SIZE + k * (1 + number % 3)) % CLIENTS for k in range(POOL_SIZE)))
        for client in chosen:
            await connections[client].execute("begin")
        for client in chosen:
            add, double, update, pid = own[client]
            equal(await add.fetchval(number, client), number + client)
            equal(await double.fetchval(client), client * 2)
            updates[client] += 1
            equal(await update.fetchval(client), updates[client])
            servers[client].add(await pid.fetchval())
        for client in chosen:
            await connections[client].execute("commit")
    if target.is_proxy:
        changed = sum(len(pids) > 1 for pids in servers)
        assert changed >= CLIENTS // 2, f"only {changed} clients changed servers: {servers}"
        assert len(set().union(*servers)) <= POOL_SIZE, f"more servers than the pool has: {servers}"


@check("a small statement cache closes statements all the time")
async def small_cache(target):
    connections = [await open_(target, statement_cache_size=3) for _ in range(4)]

    async def work(client):
        for number in range(rounds(100)):
            equal(await connections[client].fetchval(f"select $1::int + {number % 11}", client), client + number % 11)

    await asyncio.gather(*(work(client) for client in range(4)))


@check("without a statement cache")
async def no_cache(target):
    connections = [await open_(target, statement_cache_size=0) for _ in range(CLIENTS)]

    async def work(client):
        for number in range(rounds(60)):
            equal(await connections[client].fetchval("select $1::int * 10 + $2::int", number, client), number * 10 + client)

    await asyncio.gather(*(work(client) for client in range(CLIENTS)))


@check("the driver prepares again after DDL (schema changes under a cached statement)")
async def schema_changes(target):
    await table(target, "reshaped", "a int")
    first, second = await open_(target), await open_(target)
    await first.execute("insert into reshaped values (1)")
    equal(len(await first.fetchrow("select * from reshaped")), 1)
    await caught_up(target)
    equal(len(await second.fetchrow("select * from reshaped")), 1)
    await first.execute("alter table reshaped add b int")
    await caught_up(target)
    for connection in (first, second):
        for _ in range(4):
            equal(len(await connection.fetchrow("select * from reshaped")), 2)
    # Inside a block the driver can't, and says so.
    async with second.transaction():
        await first.fetchrow("select * from reshaped where a = 1")
    await first.execute("alter table reshaped alter a type bigint")
    equal((await first.fetchrow("select * from reshaped where a = 1"))["a"], 1)


@check("introspection, attributes and query plans of a prepared statement")
async def introspection(target):
    connection = await open_(target)
    statement = await connection.prepare("select $1::int as a, $2::text as b")
    equal([type_.name for type_ in statement.get_parameters()], ["int4", "text"])
    equal([attribute.name for attribute in statement.get_attributes()], ["a", "b"])
    equal(statement.get_statusmsg(), None)
    equal(await statement.fetchrow(1, "x"), (1, "x"))
    assert await (await connection.prepare("select 1")).explain()


@check("statements that are prepared and not yet run keep no server connection")
async def prepared_only(target):
    connections = [await open_(target) for _ in range(CLIENTS)]
    statements = [await connection.prepare("select $1::int") for connection in connections]
    for number in range(3):
        for client, statement in enumerate(statements):
            equal(await statement.fetchval(client + number), client + number)


@check("what runs behind a Flush has its effects: SET, temporary tables, locks")
async def effects_behind_flush(target):
    # fetch() sends Parse, Describe, Flush and then Bind, Execute, Sync; execute() without arguments sends a Query.
    connections = [await open_(target) for _ in range(POOL_SIZE - 1)]
    other = await open_(target)
    for client, connection in enumerate(connections):
        await connection.fetch(f"set work_mem = '{client + 1}MB'")
        await connection.fetch("create temporary table behind_flush (n int)")
        await connection.fetch("insert into behind_flush values ($1)", client)
        await connection.fetch("select pg_advisory_lock($1)", 4000 + client)
    for _ in range(rounds(12)):
        equal(await other.fetchval("show work_mem"), "4MB")
        equal(await other.fetchval("select pg_try_advisory_lock(4000)"), False)
        with fails("42P01"):
            await other.fetch("select n from behind_flush")
        for client, connection in enumerate(connections):
            equal(await connection.fetchval("show work_mem"), f"{client + 1}MB")
            equal(await connection.fetchval("select n from behind_flush"), client)
    await other.fetch("begin")
    await other.fetch("create table if not exists behind_flush_too (n int)")
    await other.fetch("set local work_mem = '5MB'")
    equal(await other.fetchval("show work_mem"), "5MB")
    await other.fetch("rollback")
    equal(await other.fetchval("show work_mem"), "4MB")


# ---- transactions


@check("a write is seen by the next read, in and out of blocks")
async def own_writes(target):
    await table(target, "own_writes", "client int, n int")
    connections = [await open_(target) for _ in range(CLIENTS)]

    async def work(client):
        connection = connections[client]
        for number in range(rounds(100)):
            equal(await connection.execute("insert into own_writes values ($1, $2)", client, number), "INSERT 0 1")
            found = await connection.fetchval("select count(*) from own_writes where client = $1", client)
            equal(found, number + 1, f"own writes of client {client}")

    await asyncio.gather(*(work(client) for client in range(CLIENTS)))


@check("commit, rollback, savepoints")
async def transactions(target):
    await table(target, "kept", "n int")
    connection, looker = await open_(target), await direct(target)
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("insert into kept values (1)")
    equal(await looker.fetchval("select count(*) from kept"), 0)
    await transaction.commit()
    equal(await looker.fetchval("select count(*) from kept"), 1)
    try:
        async with connection.transaction():
            await connection.execute("insert into kept values (2)")
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    equal(await connection.fetchval("select count(*) from kept"), 1)
    async with connection.transaction():
        await connection.execute("insert into kept values (3)")
        with fails("22012"):
            async with connection.transaction():
                await connection.execute("insert into kept values (4)")
                async with connection.transaction():
                    await connection.execute("insert into kept values (5)")
                await connection.fetchval("select 1 / $1::int", 0)
        assert connection.is_in_transaction()
        await connection.execute("insert into kept values (6)")
    assert not connection.is_in_transaction()
    equal([row["n"] for row in await connection.fetch("select n from kept order by n")], [1, 3, 6])


@check("errors have their SQLSTATE, and the connection goes on")
async def errors_and_after(target):
    await table(target, "unique_numbers", "n int constraint unique_numbers_key primary key")
    connection = await open_(target)
    await connection.execute("insert into unique_numbers values (1)")
    wrong = [
        ("insert into unique_numbers values (1)", asyncpg.UniqueViolationError),
        ("select * from no_such_table", asyncpg.UndefinedTableError),
        ("select no_such_function()", asyncpg.UndefinedFunctionError),
        ("select 1/0", asyncpg.DivisionByZeroError),
        ("selec 1", asyncpg.PostgresSyntaxError),
        ("select 'x'::int", asyncpg.InvalidTextRepresentationError),
    ]
    for sql, kind in wrong:
        for way in (connection.execute, connection.fetch):
            try:
                await way(sql)
            except kind as error:
                equal(error.severity_en, "ERROR")
            else:
                raise AssertionError(f"{sql} went well")
            equal(await connection.fetchval("select count(*) from unique_numbers"), 1)
    try:
        await connection.execute("insert into unique_numbers values ($1)", 1)
    except asyncpg.UniqueViolationError as error:
        equal((error.table_name, error.constraint_name), ("unique_numbers", "unique_numbers_key"))
        assert "(n)=(1)" in error.detail
    # The driver refuses a wrong argument by itself, after the server has described the statement.
    try:
        await connection.fetchval("select $1::int", "x")
    except asyncpg.DataError:
        pass
    equal(await connection.fetchval("select 1"), 1)


@check("an error in a block is 25P02 until its rollback")
async def error_in_block(target):
    await table(target, "doomed", "n int")
    connection = await open_(target)
    await connection.execute("begin")
    await connection.execute("insert into doomed values ($1)", 1)
    with fails("22012"):
        await connection.fetchval("select 1 / $1::int", 0)
    for _ in range(2):
        with fails("25P02"):
            await connection.fetchval("select 1")
        with fails("25P02"):
            await connection.execute("select 1")
    await connection.execute("rollback")
    equal(await connection.fetchval("select count(*) from doomed"), 0)


@check("read-only transactions refuse writes with 25006, and each isolation level is that")
async def read_only_and_isolation(target):
    await table(target, "untouched", "n int")
    connection = await open_(target)
    for _ in range(rounds(12)):
        for isolation in ("read_committed", "repeatable_read", "serializable", "read_uncommitted"):
            for readonly in (False, True):
                async with connection.transaction(isolation=isolation, readonly=readonly):
                    equal(await connection.fetchval("show transaction_isolation"), isolation.replace("_", " "))
                    equal(await connection.fetchval("show transaction_read_only"), "on" if readonly else "off")
                    equal(await connection.fetchval("select count(*) from untouched"), 0)
                with fails("25006" if readonly else "22012"):
                    async with connection.transaction(isolation=isolation, readonly=readonly):
                        await connection.execute("insert into untouched values ($1)", 1)
                        await connection.fetchval("select 1/0")
    async with connection.transaction(isolation="serializable", readonly=True, deferrable=True):
        equal(await connection.fetchval("select count(*) from untouched"), 0)


@check("a serialization failure is 40001")
async def serialization_failure(target):
    await table(target, "contended", "n int")
    first, second = await open_(target), await open_(target)
    await first.execute("insert into contended values (0)")
    transaction = first.transaction(isolation="repeatable_read")
    await transaction.start()
    equal(await first.fetchval("select n from contended"), 0)
    await second.execute("update contended set n = n + 1")
    with fails("40001"):
        await first.execute("update contended set n = n + 1")
    await transaction.rollback()
    equal(await first.fetchval("select n from contended"), 1)


# ---- COPY


@check("COPY in and out, text, CSV and binary")
async def copy_in_and_out(target):
    await table(target, "copied", "n int, t text, b bytea")
    connection = await open_(target)
    rows = [(number, None if number % 7 == 0 else f"row\t{number}\n\\", bytes([number % 256]) * 20) for number in range(rounds(8000))]
    equal(await connection.copy_records_to_table("copied", records=rows), f"COPY {len(rows)}")
    equal(await connection.fetchval("select count(*) from copied"), len(rows))
    for format_ in ("text", "csv", "binary"):
        out = io.BytesIO()
        equal(await connection.copy_from_query("select * from copied where n >= $1 order by n", 0, output=out, format=format_), f"COPY {len(rows)}")
        await connection.execute("truncate copied")
        out.seek(0)
        equal(await connection.copy_to_table("copied", source=out, format=format_), f"COPY {len(rows)}")
        found = [tuple(row) for row in await connection.fetch("select * from copied order by n")]
        equal(found, rows, f"rows through {format_}")
    out = io.BytesIO()
    equal(await connection.copy_from_table("copied", output=out), f"COPY {len(rows)}")


@check("COPY that fails half-way, by the client, the data or the server")
async def copy_fails(target):
    await table(target, "copied_badly", "n int primary key")
    connection = await open_(target)

    async def lines(count, error=None):
        for number in range(count):
            yield b"%d\n" % number
        if error:
            raise error

    with fails("22P02"):
        await connection.copy_to_table("copied_badly", source=io.BytesIO(b"1\n2\nno number\n" + b"3\n" * 1000000))
    equal(await connection.fetchval("select count(*) from copied_badly"), 0)
    with fails("23505"):
        await connection.copy_to_table("copied_badly", source=io.BytesIO(b"1\n2\n1\n"))
    with fails("42P01"):
        await connection.copy_to_table("no_such_table", source=io.BytesIO(b"1\n"))
    try:
        await connection.copy_to_table("copied_badly", source=lines(5000, ZeroDivisionError()))
    except (ZeroDivisionError, asyncpg.QueryCanceledError):
        pass
    else:
        raise AssertionError("a COPY went well though its source failed")
    equal(await connection.fetchval("select count(*) from copied_badly"), 0)
    equal(await connection.copy_to_table("copied_badly", source=lines(1000)), "COPY 1000")
    with fails("22012"):
        await connection.copy_from_query("select 1 / (n - 900) from generate_series(1, 1000) n", output=io.BytesIO())

    async def full(_data):
        raise OSError("disk full")

    try:
        await connection.copy_from_query("select generate_series(1, 1000000)", output=full)
    except OSError:
        pass
    equal(await connection.fetchval("select count(*) from copied_badly"), 1000)


# ---- cursors and batches


@check("cursors fetch in pieces inside a transaction, two in turns")
async def cursors(target):
    await table(target, "scrolled", "n int")
    connection = await open_(target)
    await connection.execute("insert into scrolled select generate_series(1, 5000)")
    async with connection.transaction():
        found = [row["n"] async for row in connection.cursor("select n from scrolled where n > $1 order by n", 0, prefetch=70)]
        equal(found, list(range(1, 5001)))
        first = await connection.cursor("select n from scrolled order by n")
        second = await connection.cursor("select -n from scrolled order by n")
        for number in range(1, 50):
            equal(((await first.fetchrow())[0], (await second.fetchrow())[0]), (number, -number))
        equal(await first.forward(100), 100)
        equal([row[0] for row in await first.fetch(3)], [150, 151, 152])
    await caught_up(target)
    async with connection.transaction(readonly=True):
        statement = await connection.prepare("select n from scrolled order by n")
        found = [row["n"] async for row in statement.cursor(prefetch=500)]
        equal(found, list(range(1, 5001)))


@check("executemany sends a batch, and an error undoes all of it")
async def executemany(target):
    await table(target, "batched", "n int primary key, t text")
    connection = await open_(target)
    await connection.executemany("insert into batched values ($1, $2)", [(number, f"t{number}") for number in range(5000)])
    equal(await connection.fetchval("select count(*) from batched"), 5000)
    with fails("23505"):
        await connection.executemany("insert into batched values ($1, $2)", [(9000, "x"), (1, "y"), (9001, "z")])
    equal(await connection.fetchval("select count(*) from batched where n >= 9000"), 0)
    rows = await connection.fetchmany("insert into batched values ($1, $2) returning n", [(10000, "a"), (10001, "b")])
    equal([row["n"] for row in rows], [10000, 10001])
    async with connection.transaction():
        await connection.executemany("insert into batched values ($1, $2)", [(20000, "x"), (20001, "y")])
        equal(await connection.fetchval("select count(*) from batched where n >= 20000"), 2)
    # Much data in one batch, so that both directions are full at once.
    await connection.executemany("select $1::text", [("x" * 10000,)] * rounds(2000))


# ---- cancelling, notifications, state of a session


@check("a timeout cancels the query (57014), and the connection goes on")
async def timeouts(target):
    connections = [await open_(target) for _ in range(4)]
    for connection in connections * 2:
        began = time.monotonic()
        try:
            await connection.fetchval("select pg_sleep(30)", timeout=0.3)
        except asyncio.TimeoutError:
            pass
        else:
            raise AssertionError("no timeout")
        for number in range(10):
            equal(await connection.fetchval("select $1::int", number), number)
        assert time.monotonic() - began < 10
    # A task that is cancelled cancels its query too.
    task = asyncio.create_task(connections[0].fetchval("select pg_sleep(30)"))
    await asyncio.sleep(0.3)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        pass
    equal(await connections[0].fetchval("select 1"), 1)
    looker = await direct(target)
    await until(looker, "select count(*) = 0 from pg_stat_activity where state = 'active' and query like '%pg_sleep(30)%' and pid <> pg_backend_pid()")


@check("LISTEN and NOTIFY reach the listener, also while it is idle")
async def listen_notify(target):
    listener, other, sender = await open_(target), await open_(target), await open_(target)
    heard = asyncio.Queue()
    await listener.add_listener("news", lambda _connection, _pid, channel, payload: heard.put_nowait((channel, payload)))
    for number in range(5):
        equal(await other.fetchval("select $1::int", number), number)
        await sender.execute("select pg_notify('news', $1)", f"n{number}")
        equal(await asyncio.wait_for(heard.get(), 5), ("news", f"n{number}"))
    await sender.execute("notify news, 'simple'")
    equal(await asyncio.wait_for(heard.get(), 5), ("news", "simple"))
    await listener.execute("unlisten *")
    await sender.execute("notify news, 'unheard'")
    equal(await listener.fetchval("select 1"), 1)
    await asyncio.sleep(0.2)
    assert heard.empty()


@check("temporary tables live in their session")
async def temporary_tables(target):
    connections = [await open_(target) for _ in range(POOL_SIZE - 1)]
    other = await open_(target)
    for client, connection in enumerate(connections):
        await connection.execute("create temporary table mine (n int)")
        await connection.execute("insert into mine values ($1)", client)
    for number in range(rounds(20)):
        equal(await other.fetchval("select $1::int", number), number)
        for client, connection in enumerate(connections):
            equal(await connection.fetchval("select n from mine"), client)
    with fails("42P01"):
        await other.fetchval("select n from mine")
    for connection in connections:
        await connection.execute("drop table mine")


@check("SET stays with its client while others use the pool")
async def settings_of_many(target):
    connections = [await open_(target) for _ in range(CLIENTS)]
    for client, connection in enumerate(connections):
        await connection.execute(f"set application_name = 'client {client}'; set work_mem = '{client + 1}MB'")
        await connection.execute(f"set timezone = 'Etc/GMT-{client}'")

    async def work(client):
        connection = connections[client]
        for _ in range(rounds(30)):
            equal(await connection.fetchval("show work_mem"), f"{client + 1}MB")
            equal(await connection.fetchval("show application_name"), f"client {client}")
            equal(await connection.fetchval("select extract(timezone from now())::int"), client * 3600)

    await asyncio.gather(*(work(client) for client in range(CLIENTS)))
    await connections[0].execute("reset all")
    await connections[1].reset()
    # The driver doesn't expect to lose its statements by DISCARD ALL, so this is one without any.
    fresh = await open_(target, statement_cache_size=0)
    await fresh.execute("set work_mem = '9MB'")
    await fresh.execute("discard all")
    for connection in (connections[0], connections[1], fresh):
        equal(await connection.fetchval("show work_mem"), "4MB")


# ---- many


@check("the driver's pool resets its connections as it takes them back")
async def pools(target):
    await table(target, "pooled", "n int")
    async with pool(target, min_size=2, max_size=10) as connections:

        async def work(number):
            async with connections.acquire() as connection:
                await connection.execute("set work_mem = '7MB'")
                equal(await connection.fetchval("show work_mem"), "7MB")
                async with connection.transaction():
                    await connection.execute("insert into pooled values ($1)", number)
                    equal(await connection.fetchval("select count(*) from pooled where n = $1", number), 1)
            async with connections.acquire() as connection:
                equal(await connection.fetchval("show work_mem"), "4MB")

        await asyncio.gather(*(work(number) for number in range(rounds(200))))
    equal(await (await direct(target)).fetchval("select count(*) from pooled"), rounds(200))


@check("200 connections at once", only="proxy")
async def two_hundred(target):
    await table(target, "crowded", "client int, n int")
    connections = []
    # Logins in groups, as the machine may be slow; then all of them work at once.
    for _ in range(10):
        connections += await asyncio.gather(*(open_(target, timeout=30) for _ in range(20)))
    equal(len(connections), 200)

    async def work(client):
        connection = connections[client]
        for number in range(rounds(20)):
            equal(await connection.fetchval("select $1::int * 1000 + $2::int", client, number), client * 1000 + number)
            async with connection.transaction():
                await connection.execute("insert into crowded values ($1, $2)", client, number)
            found = await connection.fetchval("select count(*) from crowded where client = $1", client)
            equal(found, number + 1, f"own writes of client {client}")

    await asyncio.gather(*(work(client) for client in range(200)))
    looker = await direct(target)
    # A server process ends a moment after its connection does; and the proxy that asks for passwords has a pool of its own.
    await until(
        looker,
        f"select count(*) <= {2 * POOL_SIZE} from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        " and backend_type = 'client backend'",
    )


if __name__ == "__main__":
    checks.run("asyncpg", close=lambda connection: connection.terminate())
