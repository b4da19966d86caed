// Prisma, with its adapter for node-postgres: its models, its nested writes, and its transactions.
'use strict'

const assert = require('node:assert/strict')
const { setTimeout: sleep } = require('node:timers/promises')
const { PrismaPg } = require('@prisma/adapter-pg')
const { Prisma, PrismaClient } = require('checks-client')
const { CLIENTS, POOL_SIZE, check, numbers, rounds, runAll, value } = require('./checks.cjs')

const SCHEMA = `
  drop table if exists "Book", "Author", "ManyTypes";
  drop type if exists "Mood";
  create type "Mood" as enum ('glad', 'sad');
  create table "Author" (id serial primary key, name text not null unique, n int not null default 0);
  create table "Book" (id serial primary key, title text not null, "authorId" int not null references "Author");
  create table "ManyTypes" (id int primary key, big int8, exact decimal(30, 10), long text, yes bool, bytes bytea, moment timestamptz(6),
    document jsonb, key uuid, several int[], "real" float8, feeling "Mood");
`

/** A client of the driver's with a pool of its own. */
function open(target, { max = 1, ...more } = {}) {
  const prisma = new PrismaClient({ adapter: new PrismaPg(target.options({ max, ...more }), { onPoolError() {}, onConnectionError() {} }) })
  target.opened.push(() => prisma.$disconnect())
  return prisma
}

/** [`open`], with empty tables that are on every node. */
async function fresh(target, options) {
  await target.make(SCHEMA)
  return open(target, options)
}

/** That it fails with one of Prisma's own codes. */
const fails = (code, promise) => assert.rejects(promise, (error) => assert.equal(error.code, code, error.message) === undefined)

/** The only value of the only row. */
const first = (rows) => Object.values(rows[0])[0]

check('connects, with a search path and settings at login', async (target) => {
  await target.make('drop schema if exists elsewhere cascade; create schema elsewhere; create table elsewhere.found as select 42 as n')
  const prisma = open(target, { max: 3, options: '-c search_path=elsewhere,public', application_name: 'drivers prisma', statement_timeout: 250 })
  for (const _ of numbers(5)) {
    assert.deepEqual(await prisma.$queryRaw`select n from found`, [{ n: 42 }])
    assert.equal(first(await prisma.$queryRaw`select current_setting('application_name')`), 'drivers prisma')
    await assert.rejects(prisma.$queryRaw`select pg_sleep(10)::text`, /57014/)
  }
})

check('values of many types', async (target) => {
  const prisma = await fresh(target)
  const row = {
    big: 9223372036854775807n,
    exact: new Prisma.Decimal('12345678901234567890.0123456789'),
    long: "grüße, 世界 🐍 'quoted' \\ ? $1 \n",
    yes: true,
    bytes: Uint8Array.from(numbers(256)),
    moment: new Date('2024-02-29T23:59:59.123Z'),
    document: { a: [1, null, { b: 'c' }] },
    key: '12345678-1234-5678-1234-567812345678',
    several: [1, 2, -3],
    real: 1e-300,
    feeling: 'sad',
  }
  const nulls = Object.fromEntries(Object.keys(row).map((name) => [name, null]))
  assert.deepEqual(await prisma.manyTypes.create({ data: { id: 1, ...row } }), { id: 1, ...row })
  await prisma.manyTypes.create({ data: { id: 2 } })
  assert.deepEqual(await prisma.manyTypes.findMany({ orderBy: { id: 'asc' } }), [{ id: 1, ...row }, { id: 2, ...nulls, several: [] }])
  const found = await prisma.manyTypes.findFirst({ where: { key: row.key, document: { path: ['a', '0'], equals: 1 }, several: { has: 2 } } })
  assert.equal(found.id, 1)
  assert.equal((await prisma.manyTypes.aggregate({ _sum: { big: true }, _count: true }))._sum.big, row.big)
})

check('each write is seen by the next read: upserts, increments, RETURNING', async (target) => {
  const prisma = await fresh(target)
  for (const n of numbers(rounds(60))) {
    const name = `n${n}`
    const { id } = await prisma.author.create({ data: { name, n } })
    assert.equal((await prisma.author.findUnique({ where: { id } })).name, name)
    await prisma.author.update({ where: { id }, data: { n: { increment: 5 } } })
    assert.equal((await prisma.author.findUnique({ where: { name } })).n, n + 5)
    await prisma.author.upsert({ where: { name }, create: { name }, update: { n: -1 } })
    assert.equal((await prisma.author.delete({ where: { id } })).n, -1)
    assert.equal(await prisma.author.count(), 0)
  }
  const made = await prisma.author.createManyAndReturn({ data: numbers(1000).map((n) => ({ name: `b${n}` })) })
  assert.equal(made.length, 1000)
  assert.equal((await prisma.author.deleteMany()).count, 1000)
})

check('nested writes, and what belongs together read together', async (target) => {
  const prisma = await fresh(target, { max: 3 })
  for (const n of numbers(rounds(20))) {
    const books = { create: numbers(3).map((m) => ({ title: `${n} ${m}` })) }
    const author = await prisma.author.create({ data: { name: `n${n}`, books }, include: { books: true } })
    assert.equal(author.books.length, 3)
    await prisma.author.update({ where: { id: author.id }, data: { books: { delete: { id: author.books[0].id }, create: { title: 'new' } } } })
  }
  await target.caughtUp()
  const authors = await prisma.author.findMany({ where: { books: { some: { title: 'new' } } }, include: { books: true, _count: true } })
  assert.deepEqual(authors.map(({ books, _count }) => [books.length, _count.books]), numbers(rounds(20)).map(() => [3, 3]))
  // A nested write is one transaction.
  await fails('P2002', prisma.book.create({ data: { title: 'lost', author: { create: { name: 'n0' } } } }))
  assert.equal(await prisma.book.count({ where: { title: 'lost' } }), 0)
})

check('transactions: their ends, isolation, and one that takes too long', async (target) => {
  const [prisma, looker] = [await fresh(target, { max: 2 }), await target.direct()]
  const count = () => value(looker, 'select count(*)::int from "Author"')
  await prisma.$transaction(async (tx) => {
    await tx.author.create({ data: { name: 'kept' } })
    assert.equal(await tx.author.count(), 1)
    assert.equal(await count(), 0)
  })
  assert.equal(await count(), 1)
  await prisma.$transaction([prisma.author.create({ data: { name: 'too' } }), prisma.author.count()])
  await fails('P2002', prisma.$transaction([prisma.author.create({ data: { name: 'lost' } }), prisma.author.create({ data: { name: 'too' } })]))
  assert.equal(await count(), 2)
  for (const [isolationLevel, shown] of Object.entries({ ReadCommitted: 'read committed', RepeatableRead: 'repeatable read', Serializable: 'serializable' })) {
    const work = async (tx) => {
      assert.equal(first(await tx.$queryRaw`select current_setting('transaction_isolation')`), shown)
      assert.equal(await tx.author.count(), 2)
      await tx.author.create({ data: { name: 'lost' } })
      throw new RangeError('enough')
    }
    await assert.rejects(prisma.$transaction(work, { isolationLevel }), RangeError)
  }
  const slow = async (tx) => {
    await tx.author.create({ data: { name: 'lost' } })
    await sleep(400)
    await tx.author.count()
  }
  await fails('P2028', prisma.$transaction(slow, { timeout: 100 }))
  assert.equal(await prisma.author.count(), 2)
})

check('a serialization failure is P2034', async (target) => {
  const prisma = await fresh(target, { max: 2 })
  await prisma.author.create({ data: { name: 'both' } })
  const add = (tx) => tx.author.update({ where: { name: 'both' }, data: { n: { increment: 1 } } })
  const outer = async (tx) => {
    await tx.author.findMany()
    await prisma.$transaction(add)
    await add(tx)
  }
  await fails('P2034', prisma.$transaction(outer, { isolationLevel: 'RepeatableRead' }))
  assert.equal((await prisma.author.findUnique({ where: { name: 'both' } })).n, 1)
})

check('errors have their codes, and the connection goes on', async (target) => {
  const prisma = await fresh(target)
  await prisma.author.create({ data: { name: 'taken' } })
  for (const [code, fail] of [
    ['P2002', () => prisma.author.create({ data: { name: 'taken' } })],
    ['P2003', () => prisma.book.create({ data: { title: 'no such author', authorId: 99 } })],
    ['P2025', () => prisma.author.delete({ where: { name: 'nobody' } })],
    ['P2010', () => prisma.$queryRaw`select 1 / ${0}::int`],
  ]) {
    await fails(code, fail())
    assert.equal(first(await prisma.$queryRaw`select ${1}::int`), 1)
  }
})

check('a pool of more clients than there are servers', async (target) => {
  const prisma = await fresh(target, { max: CLIENTS })
  const servers = new Set()
  const work = async (client) => {
    for (const n of numbers(rounds(40))) {
      await prisma.$transaction(async (tx) => {
        await tx.author.create({ data: { name: `${client} ${n}`, n: client } })
        assert.equal(await tx.author.count({ where: { n: client } }), n + 1)
        servers.add(first(await tx.$queryRaw`select pg_backend_pid()`))
      }, { maxWait: 20000, timeout: 20000 })
      assert.equal(first(await prisma.$queryRaw`select ${client}::int + ${n}::int`), client + n)
    }
  }
  await Promise.all(numbers(CLIENTS).map(work))
  if (target.isProxy) assert(servers.size <= POOL_SIZE, 'more servers than the pool has')
  // Longer than the proxy takes to notice that the standbys have caught up.
  for (const enough = Date.now() + 1000; Date.now() < enough; ) assert.equal(await prisma.author.count({ where: { n: 1 } }), rounds(40))
})

check('the pool outlives its connections, and is made anew', async (target) => {
  const [prisma, looker] = [open(target), await target.direct()]
  for (const n of numbers(rounds(12))) {
    assert.equal(first(await prisma.$queryRaw`select ${n}::int`), n)
    await looker.query('select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()')
    await sleep(50)
  }
  for (const n of numbers(rounds(20))) {
    const own = open(target)
    assert.equal(first(await own.$queryRaw`select ${n}::int`), n)
    await own.$disconnect()
  }
})

runAll('prisma', __filename)
