"""psycopg 3 through failovers, with the plain retry that an application needs without a proxy too, and on the connections that it began with.

Runs until the file DRIVERS_STOP is there, while somebody else fails the cluster over. Commits wait for a standby there, so that nothing which was
acknowledged may be missing in the end.
"""

import os
import random
import sys
import threading
import time
import traceback

import psycopg

from checks import HOST, USER, describe, equal, targets, tell

ACCOUNTS = 16
OPENING = 1000
SETUP = """
    create table account (id int primary key, balance bigint not null);
    insert into account select n, 1000 from generate_series(0, 15) n;
    create table transfer (id bigint not null, giver int not null, taker int not null, amount bigint not null);
    create index on transfer (id);
    create function pay(transfer_id bigint, giver int, taker int, amount bigint) returns void language plpgsql as $$
        begin
            perform from account where id in (giver, taker) order by id for update;
            update account set balance = balance - amount where id = giver;
            update account set balance = balance + amount where id = taker;
            insert into transfer values (transfer_id, giver, taker, amount);
        end $$"""


class Worker(threading.Thread):
    """One connection for its whole life, and what it did with it."""

    def __init__(self, target, number, stop, **options):
        super().__init__(daemon=True)
        self.connection = target.connect(
            psycopg.connect, host=HOST, port=target.port, user=USER, dbname=target.database, **options
        )
        self.told_pid = self.connection.info.backend_pid
        self.socket = self.connection.pgconn.socket
        self.number, self.stop, self.dice = number, stop, random.Random(number)
        self.problem = None
        self.again = self.looked = 0

    def run(self):
        try:
            while not os.path.exists(self.stop):
                self.step()
                time.sleep(self.dice.random() / 100)
            assert not self.connection.closed and not self.connection.broken, "the connection was closed"
            equal(self.connection.info.backend_pid, self.told_pid, "its process")
            equal(self.connection.pgconn.socket, self.socket, "its socket")
        except BaseException as error:
            traceback.print_exc()
            self.problem = f"worker {self.number}: {describe(error)}"


class Teller(Worker):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.done = []

    def step(self):
        giver, taker = self.dice.sample(range(ACCOUNTS), 2)
        transfer = (self.number * 1_000_000 + len(self.done), giver, taker, self.dice.randrange(1, 10))
        while not self.succeeds(transfer):
            pass
        self.done.append(transfer[0])

    def succeeds(self, transfer):
        try:
            self.pay(*transfer)
            return True
        except (psycopg.errors.SerializationFailure, psycopg.errors.TransactionResolutionUnknown) as error:
            assert not self.connection.closed, "the connection was closed"
            self.connection.rollback()
            if error.sqlstate == "40001":
                self.again += 1
                return False
            self.looked += 1
            return self.is_there(transfer[0])

    def is_there(self, transfer_id):
        rows = self.connection.execute("select count(*) from transfer where id = %s", (transfer_id,)).fetchone()[0]
        self.connection.rollback()
        assert rows < 2, f"transfer {transfer_id} is there {rows} times"
        return rows == 1


class Blocks(Teller):
    """Statement by statement, prepared from the first time on."""

    def pay(self, transfer_id, giver, taker, amount):
        for account, change in sorted([(giver, -amount), (taker, amount)]):
            self.connection.execute(
                "update account set balance = balance + %s where id = %s", (change, account), prepare=True
            )
        self.connection.execute("insert into transfer values (%s, %s, %s, %s)", (transfer_id, giver, taker, amount))
        self.connection.commit()


class Functions(Teller):
    """A function, each call a transaction of its own."""

    def pay(self, *transfer):
        self.connection.execute("select pay(%s, %s, %s, %s)", transfer)


class Pipelines(Teller):
    """A block that is sent as a whole."""

    def pay(self, transfer_id, giver, taker, amount):
        with self.connection.pipeline(), self.connection.transaction():
            for account, change in sorted([(giver, -amount), (taker, amount)]):
                self.connection.execute("update account set balance = balance + %s where id = %s", (change, account))
            self.connection.execute("insert into transfer values (%s, %s, %s, %s)", (transfer_id, giver, taker, amount))


class Reader(Worker):
    """Adds up all balances: no error at all is for it."""

    def step(self):
        equal(self.connection.execute("select sum(balance)::bigint from account").fetchone()[0], ACCOUNTS * OPENING)


class Sleeper(Worker):
    """Does nothing until the end."""

    def step(self):
        time.sleep(0.1)


def check(target):
    stop = os.environ["DRIVERS_STOP"]
    admin = target.connect(psycopg.connect, host=HOST, port=target.port, user=USER, dbname=target.database, autocommit=True)
    admin.execute(SETUP)
    kinds = [(Blocks, False), (Blocks, False), (Functions, True), (Functions, True), (Pipelines, True), (Reader, True), (Sleeper, True)]
    workers = [kind(target, number, stop, autocommit=autocommit) for number, (kind, autocommit) in enumerate(kinds)]
    for worker in workers:
        worker.start()
    print("ready", flush=True)
    for worker in workers:
        worker.join()
    problems = [worker.problem for worker in workers if worker.problem]
    assert not problems, "; ".join(problems)
    booked = admin.execute("select id, giver, taker, amount from transfer order by id").fetchall()
    acknowledged = sorted(transfer for worker in workers if isinstance(worker, Teller) for transfer in worker.done)
    equal([row[0] for row in booked], acknowledged, "what is booked")
    balances = [OPENING] * ACCOUNTS
    for _, giver, taker, amount in booked:
        balances[giver] -= amount
        balances[taker] += amount
    equal([row[0] for row in admin.execute("select balance from account order by id")], balances, "balances")
    again, looked = (sum(getattr(worker, name) for worker in workers) for name in ("again", "looked"))
    assert again + looked > 0, "no failover was noticed at all"
    return f"{len(booked)} transfers, {again} run again, {looked} looked for"


if __name__ == "__main__":
    target = next(target for target in targets() if target.is_proxy)
    began, problem, story = time.monotonic(), "", ""
    try:
        story = check(target)
    except BaseException as error:
        traceback.print_exc()
        problem = describe(error)
    name = f"{os.environ['DRIVERS_FAILOVERS']} failovers on the same connections"
    tell(not problem, "psycopg", target, f"{name}{story and ', ' + story}", time.monotonic() - began, problem)
    print("done", flush=True)
    sys.exit(1 if problem else 0)
