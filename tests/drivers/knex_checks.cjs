// Knex on node-postgres: its pool, its schema builder and migrations, and its transactions.
'use strict'

const assert = require('node:assert/strict')
const { setTimeout: sleep } = require('node:timers/promises')
const makeKnex = require('knex')
const { CLIENTS, POOL_SIZE, check, fails, numbers, rounds, runAll, until, value } = require('./checks.cjs')

function open(target, { pool = {}, connection = {}, ...more } = {}) {
  const knex = makeKnex({
    client: 'pg',
    connection: target.options(connection),
    pool: { min: 0, max: 1, ...pool },
    log: { warn() {} },
    ...more,
  })
  target.opened.push(() => knex.destroy())
  return knex
}

const first = async (query) => Object.values((await query).rows[0])[0]

/** A table `things`, made by the schema builder and seen on every node. */
async function things(target, knex) {
  await knex.schema.dropTableIfExists('things')
  await knex.schema.createTable('things', (table) => {
    table.increments('id')
    table.string('name').unique()
    table.integer('n').defaultTo(0)
  })
  await target.caughtUp()
}

check('connects, with a search path and settings at login', async (target) => {
  await target.make('drop schema if exists elsewhere cascade; create schema elsewhere; create table elsewhere.found as select 42 as n')
  const knex = open(target, {
    searchPath: ['elsewhere', 'public'],
    pool: { max: 3 },
    connection: { application_name: 'drivers knex', statement_timeout: 250 },
  })
  const other = open(target)
  for (const _ of numbers(5)) {
    assert.deepEqual(await knex('found').select(), [{ n: 42 }])
    assert.equal(await first(knex.raw('show application_name')), 'drivers knex')
    await fails('42P01', other('found').select())
  }
  await fails('57014', knex.raw('select pg_sleep(10)'))
})

check('migrations go forth and back, under their lock', async (target) => {
  const migrations = {
    one: { up: (knex) => knex.schema.createTable('people', (t) => t.increments('id')), down: (knex) => knex.schema.dropTable('people') },
    two: {
      up: (knex) => knex.schema.alterTable('people', (t) => t.jsonb('data').index()),
      down: (knex) => knex.schema.alterTable('people', (t) => t.dropColumn('data')),
    },
    concurrently: {
      config: { transaction: false },
      up: (knex) => knex.raw('create index concurrently by_data on people (data)'),
      down: (knex) => knex.raw('drop index concurrently by_data'),
    },
  }
  const migrationSource = {
    getMigrations: async () => Object.keys(migrations),
    getMigrationName: (name) => name,
    getMigration: async (name) => migrations[name],
  }
  const knex = open(target, { migrations: { migrationSource }, pool: { max: 3 } })
  for (const _ of numbers(2)) {
    assert.deepEqual((await knex.migrate.latest())[1], ['one', 'two', 'concurrently'])
    await knex('people').insert({ data: { a: 1 } })
    assert(await knex.schema.hasColumn('people', 'data'))
    assert.deepEqual((await knex.migrate.rollback())[1], ['concurrently', 'two', 'one'])
    assert(!(await knex.schema.hasTable('people')))
  }
})

check('values of many types', async (target) => {
  const knex = open(target)
  await knex.schema.dropTableIfExists('many_types')
  await knex.schema.createTable('many_types', (t) => {
    t.bigInteger('big')
    t.decimal('exact', 30, 10)
    t.text('long')
    t.boolean('yes')
    t.binary('bytes')
    t.timestamp('moment')
    t.jsonb('document')
    t.uuid('key')
    t.specificType('several', 'int[]')
    t.double('real')
  })
  const row = {
    big: '9223372036854775807',
    exact: '12345678901234567890.0123456789',
    long: "grüße, 世界 🐍 'quoted' \\ ? $1 \n",
    yes: true,
    bytes: Buffer.from(numbers(256)),
    moment: new Date('2024-02-29T23:59:59.123Z'),
    document: { a: [1, null, { b: 'c' }] },
    key: '12345678-1234-5678-1234-567812345678',
    several: [1, 2, -3],
    real: 1e-300,
  }
  const nulls = Object.fromEntries(Object.keys(row).map((name) => [name, null]))
  await knex('many_types').insert([row, nulls])
  assert.deepEqual(await knex('many_types').select().orderBy('big'), [row, nulls])
  assert.deepEqual(await knex('many_types').where({ key: row.key }).whereJsonPath('document', '$.a[0]', '=', 1).pluck('big'), [row.big])
})

check('each write is seen by the next read: inserts in batches, upserts, increments, RETURNING', async (target) => {
  const knex = open(target)
  await things(target, knex)
  for (const n of numbers(rounds(60))) {
    const [{ id }] = await knex('things').insert({ name: `n${n}`, n }).returning('id')
    assert.equal((await knex('things').where({ id }).first()).name, `n${n}`)
    await knex('things').where({ id }).increment('n', 5)
    assert.equal((await knex('things').where({ id }).first('n')).n, n + 5)
    await knex('things').insert({ name: `n${n}`, n: -1 }).onConflict('name').merge()
    await knex('things').insert({ name: `n${n}`, n: -2 }).onConflict('name').ignore()
    assert.deepEqual(await knex('things').where({ id }).del().returning('n'), [{ n: -1 }])
  }
  const ids = await knex.batchInsert('things', numbers(1000).map((n) => ({ name: `b${n}`, n })), 100).returning('id')
  assert.equal(ids.length, 1000)
  assert.equal((await knex('things').count({ all: '*' }))[0].all, '1000')
})

check('transactions within each other, isolation and read-only', async (target) => {
  const [knex, looker] = [open(target, { pool: { max: 2 } }), await target.direct()]
  await things(target, knex)
  const count = () => value(looker, 'select count(*)::int from things')
  await knex.transaction(async (trx) => {
    await trx('things').insert({ name: 'kept' })
    for (const _ of numbers(3)) {
      await fails('23505', trx.transaction((inner) => inner('things').insert({ name: 'kept' })))
      await trx.transaction((inner) => inner('things').insert({ name: 'too' }).onConflict('name').ignore())
    }
    assert.equal(await count(), 0)
  })
  assert.equal(await count(), 2)
  await fails('22012', knex.transaction(async (trx) => {
    await trx('things').insert({ name: 'lost' })
    await trx.raw('select 1/0')
  }))
  assert.equal(await count(), 2)
  for (const isolationLevel of ['read committed', 'repeatable read', 'serializable']) {
    const trx = await knex.transaction({ isolationLevel })
    assert.equal(await first(trx.raw('show transaction_isolation')), isolationLevel)
    assert.equal((await trx('things').forUpdate()).length, 2)
    await trx.rollback()
    const reading = await knex.transaction({ isolationLevel, readOnly: true })
    assert.equal((await reading('things')).length, 2)
    await fails('25006', reading('things').insert({ name: 'never' }))
    await reading.rollback()
  }
})

check('a pool of more clients than there are servers', async (target) => {
  const knex = open(target, { pool: { min: 0, max: CLIENTS } })
  await things(target, knex)
  const servers = new Set()
  const work = async (client) => {
    for (const n of numbers(rounds(60))) {
      await knex.transaction(async (trx) => {
        await trx('things').insert({ name: `${client} ${n}`, n: client })
        assert.equal((await trx('things').where({ n: client }).count({ all: '*' }))[0].all, String(n + 1))
        servers.add(await first(trx.raw('select pg_backend_pid()')))
      })
      assert.equal(await first(knex.raw('select ?::int + ?::int', [client, n])), client + n)
    }
  }
  await Promise.all(numbers(CLIENTS).map(work))
  if (target.isProxy) assert(servers.size <= POOL_SIZE, 'more servers than the pool has')
  // Longer than the proxy takes to notice that the standbys have caught up.
  for (const enough = Date.now() + 1000; Date.now() < enough; ) assert.equal((await knex('things').where({ n: 1 })).length, rounds(60))
})

check('rows as a stream, and one that is left half-way', async (target) => {
  const knex = open(target)
  let seen = 0
  for await (const { n } of knex.select(knex.raw('generate_series(1, 3000) as n')).stream({ highWaterMark: 50 })) assert.equal(n, ++seen)
  assert.equal(seen, 3000)
  for await (const { n } of knex.select(knex.raw('generate_series(1, 3000) as n')).stream({ highWaterMark: 50 })) if (n === 10) break
  assert.equal(await first(knex.raw('select 1')), 1)
})

check('a timeout of the driver, and one that cancels the statement', async (target) => {
  const knex = open(target, { pool: { max: 2 } })
  for (const _ of numbers(2)) {
    await assert.rejects(knex.raw('select pg_sleep(1)').timeout(200, { cancel: true }), /timeout/i)
    assert.equal(await first(knex.raw('select 1')), 1)
    // The driver cancels by pg_cancel_backend() of the process that it was told at login.
    const began = Date.now()
    await assert.rejects(knex.raw('select pg_sleep(3)').timeout(200, { cancel: true }), /timeout/i)
    assert.equal(await first(knex.raw('select 1')), 1)
    assert(Date.now() - began < 2500, 'it waited')
    const looker = await target.direct()
    const sleeping = `select count(*)::int from pg_stat_activity where query like '%pg_sleep(3)%' and state = 'active' and pid <> pg_backend_pid()`
    await until(async () => (await value(looker, sleeping)) === 0, 'the statement is cancelled', 2)
  }
})

check('errors have their SQLSTATE, and the connection goes on', async (target) => {
  const knex = open(target)
  for (const [state, sql] of [['42P01', 'select * from no_such_table'], ['22012', 'select 1/0'], ['42601', 'selec'], ['22P02', "select 'x'::int"]]) {
    await fails(state, knex.raw(sql))
    assert.equal(await first(knex.raw('select 1')), 1)
  }
})

check('LISTEN and NOTIFY on a connection taken out of the pool', async (target) => {
  const knex = open(target, { pool: { max: 2 } })
  const listener = await knex.client.acquireConnection()
  const heard = []
  listener.on('notification', ({ payload }) => heard.push(payload))
  await knex.raw('listen news').connection(listener)
  for (const n of numbers(3)) await knex.raw('select pg_notify(?, ?)', ['news', `n${n}`])
  await until(() => heard.length === 3, 'three notifications')
  await knex.raw('unlisten *').connection(listener)
  await knex.client.releaseConnection(listener)
})

check('the pool outlives its connections, and is made anew', async (target) => {
  const [knex, looker] = [open(target), await target.direct()]
  for (const n of numbers(rounds(12))) {
    assert.equal(await first(knex.raw('select ?::int', [n])), n)
    await looker.query(
      'select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()'
    )
    await sleep(50)
  }
  for (const n of numbers(rounds(40))) {
    const own = open(target)
    assert.equal(await first(own.raw('select ?::int', [n])), n)
    await own.destroy()
    await own.initialize()
    assert.equal(await first(own.raw('select ?::int', [n])), n)
  }
})

runAll('knex', __filename)
