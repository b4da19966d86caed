"""SQLAlchemy on psycopg, and on asyncpg where it is asynchronous: its ORM, its pool, and what it asks of a connection on its own."""

import asyncio
import datetime as dt
import decimal
import threading
import time
import uuid
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

import checks
from checks import HOST, POOL_SIZE, USER, check, equal, rounds, until

CLIENTS = 8


class Base(orm.DeclarativeBase):
    pass


class Author(Base):
    __tablename__ = "author"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    name: orm.Mapped[str] = orm.mapped_column(unique=True)
    books: orm.Mapped[list["Book"]] = orm.relationship(back_populates="author", cascade="all, delete-orphan", order_by="Book.id")


class Book(Base):
    __tablename__ = "book"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    title: orm.Mapped[str]
    made: orm.Mapped[dt.datetime] = orm.mapped_column(sa.DateTime(timezone=True), server_default=sa.func.now())
    author_id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey("author.id"))
    author: orm.Mapped[Author] = orm.relationship(back_populates="books")


COLUMNS = (
    ("small", sa.SmallInteger, -32768),
    ("big", sa.BigInteger, 2**60),
    ("exact", sa.Numeric(30, 10), decimal.Decimal("12345678901234567890.0123456789")),
    ("real", sa.Float, 1.5e-10),
    ("long", sa.Text, "grüße, 世界 🐍 'quoted' \\ %s :name \n"),
    ("bytes", sa.LargeBinary, bytes(range(256))),
    ("yes", sa.Boolean, True),
    ("day", sa.Date, dt.date(2024, 2, 29)),
    ("moment", sa.DateTime(timezone=True), dt.datetime(2024, 2, 29, 23, 59, 59, 1, tzinfo=dt.timezone.utc)),
    ("span", sa.Interval, dt.timedelta(days=3, seconds=4)),
    ("several", pg.ARRAY(sa.Integer), [1, 2, None]),
    ("document", pg.JSONB, {"a": [1, None, {"b": "c"}]}),
    ("name", sa.Uuid, uuid.UUID("12345678-1234-5678-1234-567812345678")),
    ("mood", sa.Enum("sad", "glad", name="mood"), "glad"),
    ("network", pg.INET, "10.0.0.0/8"),
)
VALUES = sa.Table("many_types", Base.metadata, sa.Column("id", sa.Integer, primary_key=True), *(sa.Column(*column[:2]) for column in COLUMNS))


def engine_for(target, port=None, url="postgresql+psycopg", **options):
    made = sa.create_engine(f"{url}://{USER}@{HOST}:{port or target.port}/{target.database}", **options)
    target.opened.append(made)
    return made


def one(connection, sql, **values):
    return connection.execute(sa.text(sql), values).scalar()


def direct(target, sql, port=None, **values):
    """What a connection that is never through the proxy sees."""
    engine = sa.create_engine(f"postgresql+psycopg://{USER}@{HOST}:{port or checks.direct_port()}/{target.database}", poolclass=sa.NullPool)
    with engine.connect() as connection:
        return one(connection, sql, **values)


def caught_up(target):
    lsn = direct(target, "select pg_current_wal_flush_lsn()::text")
    for port in checks.standby_ports():
        until(lambda: direct(target, "select pg_last_wal_replay_lsn() >= cast(:lsn as pg_lsn)", port, lsn=lsn), "replay")


def fresh(target):
    """An engine, and all tables anew on every node."""
    engine = engine_for(target)
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    caught_up(target)
    return engine


@contextmanager
def fails(sqlstate, kind=sa.exc.DBAPIError):
    try:
        yield
    except kind as error:
        equal(error.orig.sqlstate, sqlstate, f"SQLSTATE of {error}")
    else:
        raise AssertionError(f"no error, instead of {sqlstate}")


@check("connects, makes tables if they aren't there, and reflects them")
def reflects(target):
    engine = fresh(target)
    Base.metadata.create_all(engine)
    found = sa.MetaData()
    found.reflect(engine)
    equal(set(found.tables), set(Base.metadata.tables))
    for table in Base.metadata.tables.values():
        equal([column.name for column in found.tables[table.name].columns], [column.name for column in table.columns])
    inspector = sa.inspect(engine)
    equal(inspector.get_foreign_keys("book")[0]["referred_table"], "author")
    equal([one["column_names"] for one in inspector.get_unique_constraints("author")], [["name"]])
    equal(inspector.get_enums()[0]["labels"], ["sad", "glad"])


@check("values of many types, text and binary, and NULL")
def values(target):
    with fresh(target).connect() as connection:
        connection.execute(VALUES.insert(), [{"id": 1} | {name: value for name, _, value in COLUMNS}, {"id": 2} | {name: None for name, *_ in COLUMNS}])
        connection.commit()
        for _ in range(7):
            row, nothing = connection.execute(VALUES.select().order_by(VALUES.c.id)).all()
            for name, _kind, value in COLUMNS:
                equal(str(row._mapping[name]) if name == "network" else row._mapping[name], value, name)
                equal(nothing._mapping[name], None, name)
            connection.commit()
        binary = connection.connection.driver_connection.execute("select * from many_types order by id", binary=True).fetchone()
        for (name, _kind, value), found in zip(COLUMNS, binary[1:]):
            # The driver knows the enumeration only where it is registered.
            equal(str(found) if name == "network" else found, b"glad" if name == "mood" else value, f"{name} in binary")


@check("the ORM: a unit of work, relationships, cascades, each write seen by the next read")
def unit_of_work(target):
    engine = fresh(target)
    for number in range(rounds(40)):
        with orm.Session(engine) as session:
            author = Author(name=f"author {number}", books=[Book(title=f"book {n}") for n in range(3)])
            session.add(author)
            session.commit()
            equal(author.name, f"author {number}")
            equal(len(author.books), 3)
            assert author.books[0].made.tzinfo is not None
            author.books.pop()
            author.name += " again"
            session.commit()
        # The pool hands out the same connection, which is the same session of the proxy.
        with orm.Session(engine) as session:
            query = sa.select(Author).where(Author.name == f"author {number} again").options(orm.selectinload(Author.books))
            equal([book.title for book in session.scalars(query).one().books], ["book 0", "book 1"])
    equal(direct(target, "select count(*) from book"), 2 * rounds(40))


@check("bulk inserts with RETURNING in order, upserts, UPDATE and DELETE with RETURNING")
def bulk(target):
    with fresh(target).begin() as connection:
        query = sa.insert(Author).returning(Author.id, Author.name, sort_by_parameter_order=True)
        rows = connection.execute(query, [{"name": f"n{n}"} for n in range(3000)]).all()
        equal([row.name for row in rows], [f"n{n}" for n in range(3000)])
        upsert = pg.insert(Author).values(name="n5").on_conflict_do_update(index_elements=["name"], set_={"name": "five"}).returning(Author.id)
        equal(connection.scalar(upsert), rows[5].id)
        equal(connection.scalars(sa.update(Author).where(Author.name == "five").values(name="5").returning(Author.name)).all(), ["5"])
        equal(len(connection.scalars(sa.delete(Author).where(Author.name != "5").returning(Author.id)).all()), 2999)
        equal(connection.scalar(sa.select(sa.func.count()).select_from(Author)), 1)


@check("statements prepared at once, hundreds of times by clients that change servers")
def prepared(target):
    fresh(target)
    engine = engine_for(target, pool_size=CLIENTS, connect_args={"prepare_threshold": 0})
    servers = [set() for _ in range(CLIENTS)]
    problems = []

    def work(client):
        try:
            with engine.connect() as connection:
                for number in range(rounds(120)):
                    connection.execute(sa.insert(Author).values(name=f"{client} {number}"))
                    servers[client].add(one(connection, "select pg_backend_pid()"))
                    connection.commit()
                    equal(connection.scalar(sa.select(sa.func.count()).where(Author.name.like(f"{client} %"))), number + 1, "own writes")
                    equal(one(connection, "select cast(:a as int) + cast(:b as int)", a=client, b=number), client + number)
                    connection.commit()
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


@check("savepoints: what fails inside takes nothing else along")
def savepoints(target):
    with orm.Session(fresh(target)) as session:
        session.add(Author(name="kept"))
        session.flush()
        for number in range(5):
            with fails("23505", sa.exc.IntegrityError), session.begin_nested():
                session.add(Author(name="kept"))
                session.flush()
            with session.begin_nested():
                session.add(Author(name=f"also kept {number}"))
        session.commit()
        with session.begin_nested() as inner:
            session.add(Author(name="not kept"))
            session.flush()
            inner.rollback()
        equal(session.scalar(sa.select(sa.func.count()).select_from(Author)), 6)
        session.rollback()
    equal(direct(target, "select count(*) from author"), 6)


@check("isolation levels, AUTOCOMMIT and read-only, as options of an engine and of a connection")
def isolation(target):
    engine = fresh(target)
    for level in ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE", "AUTOCOMMIT"):
        for readonly in (True, False):
            options = {"isolation_level": level, "postgresql_readonly": readonly}
            with engine.execution_options(**options).connect() as connection:
                if level != "AUTOCOMMIT":
                    equal(one(connection, "show transaction_isolation").upper(), level)
                    equal(one(connection, "show transaction_read_only"), "on" if readonly else "off")
                equal(connection.scalar(sa.select(sa.func.count()).select_from(Author)), 0)
                if readonly and level != "AUTOCOMMIT":
                    with fails("25006"):
                        connection.execute(sa.insert(Author).values(name="never"))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.insert(Author).values(name="at once"))
        equal(direct(target, "select count(*) from author"), 1)
    with engine.connect() as connection:
        equal(one(connection, "show transaction_isolation"), "read committed")
        equal(one(connection, "show transaction_read_only"), "off")


@check("reads of an engine in AUTOCOMMIT, which standbys may answer, after each write")
def autocommit_reads(target):
    engine = fresh(target).execution_options(isolation_level="AUTOCOMMIT")
    count = sa.select(sa.func.count()).select_from(Author)
    with engine.connect() as connection:
        for number in range(rounds(40)):
            equal(connection.scalar(count), number)
            connection.execute(sa.insert(Author).values(name=str(number)))
            for _ in range(3):
                equal(connection.scalar(count), number + 1, "own writes")
        # Longer than the proxy takes to notice that the standbys have caught up.
        enough = time.monotonic() + 1
        while time.monotonic() < enough:
            equal(connection.scalar(count), rounds(40))


@check("of two serializable transactions one is 40001, and succeeds the second time")
def serializable(target):
    engine = fresh(target).execution_options(isolation_level="SERIALIZABLE")
    count = sa.select(sa.func.count()).select_from(Author)
    with engine.connect() as first, engine.connect() as second:
        equal((first.scalar(count), second.scalar(count)), (0, 0))
        first.execute(sa.insert(Author).values(name="first"))
        second.execute(sa.insert(Author).values(name="second"))
        first.commit()
        with fails("40001", sa.exc.OperationalError):
            second.commit()
        second.rollback()
        equal(second.scalar(count), 1)


@check("streamed results: a cursor of the server, in pieces")
def streamed(target):
    with orm.Session(fresh(target)) as session:
        session.execute(sa.insert(Author), [{"name": f"{n:05}"} for n in range(3000)])
        session.commit()
        streaming = session.execute(sa.select(Author).order_by(Author.name), execution_options={"yield_per": 100})
        equal([author.name for part in streaming.scalars().partitions() for author in part], [f"{n:05}" for n in range(3000)])
        with session.connection().execution_options(stream_results=True).execute(sa.text("select generate_series(1, 10000)")) as result:
            equal(result.fetchmany(10), [(n,) for n in range(1, 11)])
        equal(session.scalar(sa.select(sa.func.count()).select_from(Author)), 3000)


@check("the driver's connection below: COPY, cancel, LISTEN and NOTIFY")
def below(target):
    engine = fresh(target)
    with engine.connect() as connection:
        driver = connection.connection.driver_connection
        with driver.cursor() as cursor, cursor.copy("copy author (name) from stdin") as copy:
            for number in range(1000):
                copy.write_row([f"copied {number}"])
        connection.commit()
        equal(connection.scalar(sa.select(sa.func.count()).select_from(Author)), 1000)
        timer = threading.Timer(0.3, driver.cancel_safe)
        timer.start()
        with fails("57014"):
            one(connection, "select pg_sleep(30)")
        timer.join()
        connection.rollback()
    listening = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    one_ = listening.connection.driver_connection
    listening.exec_driver_sql("listen news")
    with engine.begin() as connection:
        for number in range(3):
            one(connection, "select pg_notify('news', :n)", n=f"n{number}")
    equal([note.payload for note in one_.notifies(timeout=10, stop_after=3)], ["n0", "n1", "n2"])
    listening.close()


@check("errors are of the driver's classes with their SQLSTATE, and the connection goes on")
def errors(target):
    with engine_for(target).connect() as connection:
        for sql, state, kind in (
            ("select * from no_such_table", "42P01", sa.exc.ProgrammingError),
            ("select 1/0", "22012", sa.exc.DataError),
            ("selec", "42601", sa.exc.ProgrammingError),
            ("select cast('x' as int)", "22P02", sa.exc.DataError),
        ):
            with fails(state, kind):
                one(connection, sql)
            with fails("25P02", sa.exc.InternalError):
                one(connection, "select 1")
            connection.rollback()
            equal(one(connection, "select 1"), 1)


@check("the pool asks first: a server process that was ended is not noticed")
def pre_ping(target):
    engine = engine_for(target, pool_pre_ping=True)
    for number in range(rounds(12)):
        with engine.connect() as connection:
            equal(one(connection, "select cast(:n as int)", n=number), number)
        direct(target, "select count(pg_terminate_backend(pid, 5000)) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()")


@check("without a pool: reconnects, time after time")
def reconnects(target):
    engine = engine_for(target, poolclass=sa.NullPool)
    for number in range(rounds(60)):
        with engine.connect() as connection:
            equal(one(connection, "select cast(:n as int)", n=number), number)


@check("logs in by SCRAM, with and without TLS, by a URL", only="proxy")
def secure(target):
    port, password, certificate = checks.secure()
    for query in ({"sslmode": "disable"}, {"sslmode": "verify-full", "sslrootcert": certificate}):
        url = sa.URL.create("postgresql+psycopg", USER, password, HOST, port, target.database, query)
        with target.connect(sa.create_engine, url=url).connect() as connection:
            equal(one(connection, "select 1"), 1)


@check("an asynchronous engine on asyncpg, more sessions than the pool has")
async def asynchronous(target):
    engine = create_async_engine(f"postgresql+asyncpg://{USER}@{HOST}:{target.port}/{target.database}", pool_size=CLIENTS)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
        await connection.run_sync(Base.metadata.create_all)
    await asyncio.to_thread(caught_up, target)

    async def work(client):
        async with AsyncSession(engine, expire_on_commit=False) as session:
            for number in range(rounds(60)):
                session.add(Author(name=f"{client} {number}", books=[Book(title="b")]))
                await session.commit()
                found = await session.scalar(sa.select(sa.func.count()).where(Author.name.like(f"{client} %")))
                equal(found, number + 1, "own writes")
                await session.rollback()
            async for author in await session.stream_scalars(sa.select(Author).where(Author.name.like(f"{client} %"))):
                assert author.name.startswith(str(client))

    await asyncio.gather(*(work(client) for client in range(CLIENTS)))
    await engine.dispose()


if __name__ == "__main__":
    checks.run("sqlalchemy", close=lambda engine: engine.dispose())
