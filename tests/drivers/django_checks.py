"""Django's ORM on psycopg, without a project: its migrations, its transactions, its cursors, and its pool."""

import datetime as dt
import decimal
import threading
import time
import uuid
from contextlib import contextmanager

import django
import psycopg
from django.conf import settings

import checks
from checks import HOST, POOL_SIZE, USER, check, equal, rounds, until

CLIENTS = 8
TARGETS = {target.label: target for target in checks.targets()}


class Current:
    """Sends the ORM to the target of the check that runs."""

    label = "direct"

    def db_for_read(self, _model, **_hints):
        return Current.label

    db_for_write = db_for_read


def database(target, **more):
    return {"ENGINE": "django.db.backends.postgresql", "HOST": HOST, "PORT": target.port, "NAME": target.database, "USER": USER} | more


DATABASES = {"default": {}}
for label, aimed in TARGETS.items():
    DATABASES |= {
        label: database(aimed),
        # Parameters that the server binds, prepared statements, and isolation.
        f"{label}_bound": database(aimed, OPTIONS={"server_side_binding": True, "prepare_threshold": 0}),
        f"{label}_pooled": database(aimed, OPTIONS={"pool": {"min_size": 1, "max_size": 6, "timeout": 20}}),
        f"{label}_checked": database(aimed, CONN_MAX_AGE=None, CONN_HEALTH_CHECKS=True),
        f"{label}_serializable": database(aimed, OPTIONS={"isolation_level": 4}),
    }
settings.configure(
    DATABASES=DATABASES,
    DATABASE_ROUTERS=["__main__.Current"],
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "django.contrib.sessions"],
    SESSION_ENGINE="django.contrib.sessions.backends.db",
    SECRET_KEY="none",
    USE_TZ=True,
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
)
django.setup()

from django.contrib.auth.models import Group, Permission, User  # noqa: E402 (the ORM needs its settings first)
from django.contrib.sessions.backends.db import SessionStore  # noqa: E402
from django.contrib.postgres.fields import ArrayField  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.db import DatabaseError, IntegrityError, OperationalError, connections, models, transaction  # noqa: E402
from django.db.models import Count, F, Q, Sum  # noqa: E402


class Thing(models.Model):
    name = models.CharField(max_length=50, unique=True)
    count = models.IntegerField(default=0)
    exact = models.DecimalField(max_digits=30, decimal_places=10, null=True)
    real = models.FloatField(null=True)
    long = models.TextField(null=True)
    data = models.BinaryField(null=True)
    yes = models.BooleanField(null=True)
    day = models.DateField(null=True)
    moment = models.DateTimeField(null=True)
    span = models.DurationField(null=True)
    document = models.JSONField(null=True)
    several = ArrayField(models.IntegerField(null=True), null=True)
    key = models.UUIDField(null=True)
    address = models.GenericIPAddressField(null=True)
    parent = models.ForeignKey("self", models.CASCADE, null=True, related_name="children")

    class Meta:
        app_label = "drivers"


VALUES = {
    "exact": decimal.Decimal("12345678901234567890.0123456789"),
    "real": 1.5e-10,
    "long": "grüße, 世界 🐍 'quoted' \\ %s \n",
    "data": bytes(range(256)),
    "yes": True,
    "day": dt.date(2024, 2, 29),
    "moment": dt.datetime(2024, 2, 29, 23, 59, 59, 1, tzinfo=dt.timezone.utc),
    "span": dt.timedelta(days=3, seconds=4),
    "document": {"a": [1, None, {"b": "c"}]},
    "several": [1, 2, None],
    "key": uuid.UUID("12345678-1234-5678-1234-567812345678"),
    "address": "10.0.0.1",
}


def one(connection, sql, *arguments):
    with connection.cursor() as cursor:
        cursor.execute(sql, arguments or None)
        return cursor.fetchone()[0]


def direct(target, sql, *arguments, port=None):
    """What a connection that is never through the proxy sees."""
    port = port or checks.direct_port()
    with psycopg.connect(host=HOST, port=port, dbname=target.database, user=USER, autocommit=True) as connection:
        return connection.execute(sql, arguments or None).fetchone()[0]


def caught_up(target):
    lsn = direct(target, "select pg_current_wal_flush_lsn()::text")
    for port in checks.standby_ports():
        until(lambda: direct(target, "select pg_last_wal_replay_lsn() >= %s::pg_lsn", lsn, port=port), "replay")


def fresh(target):
    """The ORM at this target, with an empty table."""
    Current.label = target.label
    connection = connections[target.label]
    target.opened.append(connection)
    if Thing._meta.db_table in connection.introspection.table_names():
        with connection.schema_editor() as editor:
            editor.delete_model(Thing)
    with connection.schema_editor() as editor:
        editor.create_model(Thing)
    caught_up(target)
    return connection


def in_threads(count, work):
    """Django gives each thread connections of its own."""
    problems = []

    def guarded(client):
        try:
            work(client)
        except BaseException as error:
            problems.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=guarded, args=(client,), daemon=True) for client in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(checks.SECONDS_PER_CHECK)
    if problems:
        raise problems[0]


@contextmanager
def fails(sqlstate, kind=DatabaseError):
    try:
        yield
    except kind as error:
        equal(error.__cause__.sqlstate, sqlstate, f"SQLSTATE of {error}")
    else:
        raise AssertionError(f"no error, instead of {sqlstate}")


@check("migrations go forth, back and forth again, and leave what they should")
def migrations(target):
    Current.label = target.label
    for app in (), ("auth", "zero"), ():
        call_command("migrate", *app, database=target.label, verbosity=0, interactive=False)
    equal(Permission.objects.count(), direct(target, "select count(*) from auth_permission"))
    assert Permission.objects.count() >= 16
    assert "auth_user" in connections[target.label].introspection.table_names()
    user = User.objects.create_user("someone", password="secret")
    user.groups.add(Group.objects.create(name="some"))
    user.user_permissions.set(Permission.objects.all()[:3])
    assert User.objects.get(groups__name="some").check_password("secret")
    equal(User.objects.get(username="someone").user_permissions.count(), 3)


@check("a session of Django's is found again with what was put in")
def stored_sessions(target):
    Current.label = target.label
    store = SessionStore()
    for number in range(rounds(40)):
        store["number"] = number
        store.save()
        equal(SessionStore(store.session_key)["number"], number)


@check("values of many types, with parameters in the text and bound by the server")
def values(target):
    fresh(target)
    for alias in target.label, f"{target.label}_bound":
        target.opened.append(connections[alias])
        objects = Thing.objects.using(alias)
        objects.create(name=alias, **VALUES)
        objects.create(name=f"{alias} null")
        for _ in range(7):
            found, nothing = objects.get(name=alias), objects.get(name=f"{alias} null")
            for name, value in VALUES.items():
                value_found = getattr(found, name)
                equal(bytes(value_found) if name == "data" else value_found, value, name)
                equal(getattr(nothing, name), None, name)
        equal(objects.filter(document__a__contains=[1], several__len=3, moment__year=2024, name=alias).count(), 1)


@check("each write is seen by the next read; F(), aggregates, get_or_create, update_or_create, refresh")
def own_writes(target):
    fresh(target)
    for number in range(rounds(60)):
        thing = Thing.objects.create(name=f"n{number}")
        equal(Thing.objects.count(), number + 1)
        thing.children.create(name=f"child {number}", count=number)
        Thing.objects.filter(parent=thing).update(count=F("count") + 1)
        equal(thing.children.get().count, number + 1)
        thing.children.all().delete()
        equal(Thing.objects.get_or_create(name=f"n{number}")[1], False)
        equal(Thing.objects.update_or_create(name=f"n{number}", defaults={"count": 2})[1], False)
        thing.refresh_from_db()
        equal(thing.count, 2)
        equal(Thing.objects.aggregate(Sum("count"), Count("id")), {"count__sum": 2 * (number + 1), "id__count": number + 1})
    equal(Thing.objects.filter(Q(name="n0") | ~Q(count=2)).exists(), True)


@check("bulk_create with conflicts, bulk_update, in_bulk")
def bulk(target):
    fresh(target)
    made = Thing.objects.bulk_create([Thing(name=f"n{n}", count=n) for n in range(2000)], batch_size=500)
    assert all(thing.pk for thing in made)
    again = [Thing(name=f"n{n}", count=-n) for n in range(10)]
    Thing.objects.bulk_create(again, update_conflicts=True, unique_fields=["name"], update_fields=["count"])
    Thing.objects.bulk_create(again, ignore_conflicts=True)
    equal(list(Thing.objects.filter(count__lt=0).order_by("-count").values_list("count", flat=True)), [-n for n in range(1, 10)])
    for thing in made:
        thing.count = 7
    equal(Thing.objects.bulk_update(made, ["count"], batch_size=500), 2000)
    equal({thing.count for thing in Thing.objects.in_bulk([thing.pk for thing in made]).values()}, {7})


@check("atomic blocks within each other, on_commit, and a row lock")
def atomic(target):
    connection = fresh(target)
    done = []
    with transaction.atomic(using=target.label):
        Thing.objects.create(name="kept")
        for _ in range(3):
            with fails("23505", IntegrityError), transaction.atomic(using=target.label):
                Thing.objects.create(name="kept")
        transaction.on_commit(lambda: done.append(Thing.objects.count()), using=target.label)
        with transaction.atomic(using=target.label):
            Thing.objects.create(name="too")
        equal(Thing.objects.select_for_update().filter(name="kept").count(), 1)
        Thing.objects.select_for_update(skip_locked=True).get(name="kept")
        equal(direct(target, "select count(*) from drivers_thing"), 0)
    equal(done, [2])
    with fails("22012"), transaction.atomic(using=target.label):
        Thing.objects.create(name="lost")
        one(connection, "select 1/0")
    equal(Thing.objects.count(), 2)


@check("iterator(), by cursors of the server: within a block, and without one")
def iterators(target):
    fresh(target)
    Thing.objects.bulk_create([Thing(name=f"{n:05}") for n in range(1000)])
    for _ in range(3):
        with transaction.atomic(using=target.label):
            equal(sum(1 for _ in Thing.objects.order_by("name").iterator(chunk_size=50)), 1000)
        # WITH HOLD, on a connection that does other things in between.
        for number, thing in enumerate(Thing.objects.order_by("name").iterator(chunk_size=50)):
            equal(thing.name, f"{number:05}")
            if number % 100 == 0:
                equal(Thing.objects.filter(name=thing.name).update(count=number), 1)


@check("statements prepared at once, hundreds of times by threads that change servers")
def prepared(target):
    fresh(target)
    servers = [set() for _ in range(CLIENTS)]

    def work(client):
        alias = f"{target.label}_bound"
        objects = Thing.objects.using(alias)
        for number in range(rounds(60)):
            objects.create(name=f"{client} {number}", count=client)
            equal(objects.filter(count=client).count(), number + 1, "own writes")
            with transaction.atomic(using=alias):
                equal(one(connections[alias], "select %s::int + %s::int", client, number), client + number)
                servers[client].add(one(connections[alias], "select pg_backend_pid()"))

    in_threads(CLIENTS, work)
    if target.is_proxy:
        assert len(set.union(*servers)) <= POOL_SIZE, "more servers than the pool has"
        assert sum(len(pids) > 1 for pids in servers) >= CLIENTS / 2, "clients stay on their servers"


@check("Django's pool, and reads that standbys may answer")
def pooled(target):
    fresh(target)

    def work(client):
        alias = f"{target.label}_pooled"
        for number in range(rounds(40)):
            Thing.objects.using(alias).create(name=f"{client} {number}", count=client)
            equal(Thing.objects.using(alias).filter(count=client).count(), number + 1, "own writes")
            if number % 10 == 9:
                # The next one of the pool doesn't wait for what this one has written.
                connections[alias].close()
                caught_up(target)

    in_threads(5, work)
    connections[f"{target.label}_pooled"].close_pool()
    # Longer than the proxy takes to notice that the standbys have caught up.
    enough = time.monotonic() + 1
    while time.monotonic() < enough:
        equal(Thing.objects.count(), 5 * rounds(40))


@check("isolation as a database's option: one of two is 40001")
def serializable(target):
    fresh(target)
    alias = f"{target.label}_serializable"
    target.opened.append(connections[alias])
    with transaction.atomic(using=alias):
        equal(one(connections[alias], "show transaction_isolation"), "serializable")
    both = threading.Barrier(2, timeout=20)
    refused = []

    def work(client):
        try:
            with transaction.atomic(using=alias):
                equal(Thing.objects.using(alias).count(), 0)
                both.wait()
                Thing.objects.using(alias).create(name=str(client))
                both.wait()
        except OperationalError as error:
            refused.append(error.__cause__.sqlstate)

    in_threads(2, work)
    equal(refused, ["40001"])
    equal(direct(target, "select count(*) from drivers_thing"), 1)


@check("a persistent connection, checked before each request, outlives its server process")
def health_checks(target):
    alias = f"{target.label}_checked"
    connection = connections[alias]
    target.opened.append(connection)
    for number in range(rounds(12)):
        equal(one(connection, "select %s::int", number), number)
        direct(target, "select count(pg_terminate_backend(pid, 5000)) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()")
        # What a request begins and ends with.
        connection.close_if_unusable_or_obsolete()


@check("reconnects, time after time, and errors have their SQLSTATE")
def reconnects(target):
    connection = fresh(target)
    for number in range(rounds(60)):
        connection.close()
        equal(one(connection, "select %s::int", number), number)
    for sql, state in (("select * from no_such_table", "42P01"), ("select 1/0", "22012"), ("selec", "42601")):
        with fails(state):
            one(connection, sql)
        equal(one(connection, "select 1"), 1)


@check("the driver's connection below: COPY, cancel, LISTEN and NOTIFY")
def below(target):
    connection = fresh(target)
    with connection.cursor() as cursor, cursor.copy("copy drivers_thing (name, count) from stdin") as copy:
        for number in range(1000):
            copy.write_row([f"copied {number}", number])
    equal(Thing.objects.count(), 1000)
    timer = threading.Timer(0.3, connection.connection.cancel_safe)
    timer.start()
    with fails("57014", OperationalError):
        one(connection, "select pg_sleep(30)")
    timer.join()
    with connection.cursor() as cursor:
        cursor.execute("listen news")
    direct(target, "select pg_notify('news', 'one')")
    equal([note.payload for note in connection.connection.notifies(timeout=10, stop_after=1)], ["one"])


if __name__ == "__main__":
    checks.run("django", close=lambda connection: connection.close())
