// postgres.js: its own implementation of the protocol, which prepares each statement and pipelines whatever it has.
'use strict'

const assert = require('node:assert/strict')
const crypto = require('node:crypto')
const fs = require('node:fs')
const { pipeline } = require('node:stream/promises')
const { Readable } = require('node:stream')
const { setTimeout: sleep } = require('node:timers/promises')
const postgres = require('postgres')
const { CLIENTS, POOL_SIZE, check, fails, numbers, rounds, runAll, until, value } = require('./checks.cjs')

/** A pool of the driver's, with one connection if nothing else is said. */
function open(target, more = {}) {
  const sql = postgres({ ...target.options(), max: 1, onnotice: () => {}, ...more })
  target.opened.push(() => sql.end({ timeout: 1 }))
  return sql
}

check('connects, with settings at login, to a primary where it asks for one', async (target) => {
  for (const attributes of [undefined, 'read-write', 'primary']) {
    const sql = open(target, { target_session_attrs: attributes, connection: { application_name: 'drivers js', statement_timeout: 250 } })
    assert.equal((await sql`show application_name`)[0].application_name, 'drivers js')
    assert.equal((await sql`select pg_is_in_recovery() as it`)[0].it, false)
    await fails('57014', sql`select pg_sleep(10)`)
    assert.equal((await sql`show statement_timeout`)[0].statement_timeout, '250ms')
  }
  await fails('3D000', open(target, { database: 'no_such_database' })`select 1`)
})

check(
  'logs in by SCRAM, with and without TLS',
  async (target) => {
    const secure = { port: Number(process.env.DRIVERS_SECURE_PORT), password: process.env.DRIVERS_PASSWORD }
    const ca = fs.readFileSync(process.env.DRIVERS_CERTIFICATE, 'utf8')
    for (const ssl of [false, 'require', { ca }]) {
      assert.equal((await open(target, { ...secure, ssl })`select 1 as n`)[0].n, 1)
      await fails('28P01', open(target, { ...secure, ssl, password: 'wrong' })`select 1`)
    }
  },
  'proxy'
)

check('parameters and results of many types, NULL, fragments and lists', async (target) => {
  const sql = open(target)
  const data = crypto.randomBytes(1000000)
  for (const [type, wanted] of [
    ['int', -5],
    ['bigint', '9223372036854775807'],
    ['numeric', '-12345678901234567890.123456789'],
    ['float8', 1e-300],
    ['text', "grüße, 世界 🐍 'quoted' \\ \n\t"],
    ['bool', true],
    ['bytea', data],
    ['timestamptz', new Date('2024-02-29T23:59:59.123Z')],
    ['jsonb', { a: [1, null, { b: 'c' }] }],
    ['uuid', '12345678-1234-5678-1234-567812345678'],
    ['int[]', [1, 2, -3]],
    ['text[]', ['a', 'b,c', '"', '']],
  ]) {
    for (const parameter of [wanted, null]) {
      const [{ found }] = await sql`select ${parameter}::${sql.unsafe(type)} as found`
      assert.deepEqual(found, parameter, type)
    }
  }
  await target.table('things', 'id int primary key, name text, tags text[]')
  const rows = numbers(500).map((id) => ({ id, name: `n${id}`, tags: ['x', String(id)] }))
  assert.equal((await sql`insert into things ${sql(rows, 'id', 'name', 'tags')} returning id`).length, 500)
  assert.deepEqual([...(await sql`select * from things where id in ${sql([3, 4])} order by id`)], rows.slice(3, 5))
  assert.equal((await sql`update things set ${sql({ name: 'other' })} where ${sql('id')} > ${400}`).count, 99)
  assert.deepEqual((await sql`select 1, 'two'`.values())[0], [1, 'two'])
  assert.deepEqual((await sql`select 7::int8`.raw())[0][0], Buffer.from('7'))
})

check('describes a statement without running it', async (target) => {
  await target.table('described', 'n int, t text')
  const sql = open(target)
  for (const _ of numbers(5)) {
    const { types, columns } = await sql`insert into described values (${1}, ${'x'}) returning t, n`.describe()
    assert.deepEqual(types, [23, 25])
    assert.deepEqual(columns.map(({ name, type }) => [name, type]), [['t', 25], ['n', 23]])
  }
  assert.equal((await sql`select count(*)::int as n from described`)[0].n, 0)
})

check('statements prepared by themselves, hundreds of times by clients that change servers', async (target) => {
  await target.table('side_by_side', 'client int, n int')
  const servers = numbers(CLIENTS).map(() => new Set())
  await Promise.all(
    servers.map(async (pids, client) => {
      const sql = open(target, { prepare: client !== 0 })
      for (const n of numbers(rounds(120))) {
        await sql`insert into side_by_side values (${client}, ${n})`
        const [found] = await sql`select count(*)::int as n from side_by_side where client = ${client}`
        assert.equal(found.n, n + 1, `own writes of client ${client}`)
        pids.add((await sql`select pg_backend_pid() as pid`)[0].pid)
        assert.equal((await sql`select ${client}::int * 1000 + ${n}::int as sum`)[0].sum, client * 1000 + n)
      }
    })
  )
  if (target.isProxy) {
    assert(new Set(servers.flatMap((pids) => [...pids])).size <= POOL_SIZE, 'more servers than the pool has')
    assert(servers.filter((pids) => pids.size > 1).length >= CLIENTS / 2, 'clients stay on their servers')
  }
})

check('pipelines: hundreds of statements at once, some of which fail, some of which write', async (target) => {
  await target.table('piped', 'n int primary key')
  for (const sql of [open(target), open(target, { max: CLIENTS }), open(target, { prepare: false })]) {
    await target.make('truncate piped')
    const answers = await Promise.allSettled(
      numbers(rounds(400)).map((n) => {
        if (n % 7 === 3) return sql`select 1 / (${n}::int - ${n}::int)`
        if (n % 5 === 2) return sql`insert into piped values (${n}) returning n`
        return sql`select ${n}::int as n`
      })
    )
    answers.forEach(({ status, value, reason }, n) => {
      if (n % 7 === 3) assert.equal(reason?.code, '22012')
      else assert.equal(status === 'fulfilled' && value[0].n, n, reason?.message)
    })
    const wanted = numbers(rounds(400)).filter((n) => n % 5 === 2 && n % 7 !== 3).length
    // On the driver's only connection the write is its own.
    const looker = await target.direct()
    assert.equal(await value(looker, 'select count(*)::int from piped'), wanted)
  }
  const sql = open(target)
  await sql`truncate piped`
  for (const n of numbers(rounds(40))) {
    const [, [found]] = await Promise.all([sql`insert into piped values (${n})`, sql`select count(*)::int as n from piped`])
    assert.equal(found.n, n + 1, 'own writes in a pipeline')
  }
})

check('transactions: committed, rolled back, pipelined, with savepoints and options', async (target) => {
  await target.table('kept', 'n int primary key')
  const [sql, looker] = [open(target, { max: 2 }), await target.direct()]
  const count = () => value(looker, 'select count(*)::int from kept')
  await sql.begin(async (sql) => {
    await sql`insert into kept values (1)`
    assert.equal(await count(), 0)
    await fails('23505', sql.savepoint((sql) => sql`insert into kept values (1)`))
    await sql.savepoint('named', (sql) => sql`insert into kept values (2)`)
  })
  assert.equal(await count(), 2)
  await fails('22012', sql.begin((sql) => [sql`insert into kept values (3)`, sql`insert into kept values (4)`, sql`select 1/0`]))
  assert.equal((await sql.begin((sql) => [sql`insert into kept values (3)`, sql`select count(*)::int as n from kept`]))[1][0].n, 3)
  assert.equal(await count(), 3)
  await fails('25006', sql.begin('read only', (sql) => sql`insert into kept values (5)`))
  await sql.begin('isolation level serializable', async (sql) => {
    assert.equal((await sql`show transaction_isolation`)[0].transaction_isolation, 'serializable')
  })
  // The driver fails the whole with the first error, even if that was caught.
  const whole = sql.begin(async (sql) => {
    await fails('22012', sql`select 1/0`)
    await fails('25P02', sql`select 1`)
  })
  await fails('22012', whole)
  const reserved = await sql.reserve()
  await reserved`create temp table own (n int)`
  await reserved`insert into own values (1)`
  assert.equal((await reserved`select count(*)::int as n from own`)[0].n, 1)
  reserved.release()
})

check('cursors, and rows one by one', async (target) => {
  const sql = open(target)
  const found = []
  await sql`select generate_series(1, 2000) as n`.cursor(77, (rows) => void found.push(...rows.map(({ n }) => n)))
  for await (const rows of sql`select generate_series(2001, 3000) as n`.cursor(50)) found.push(...rows.map(({ n }) => n))
  await sql`select generate_series(3001, 4000) as n`.forEach(({ n }) => found.push(n))
  assert.deepEqual(found, numbers(4000).map((n) => n + 1))
  let seen = 0
  await sql`select generate_series(1, 2000) as n`.cursor(10, () => (++seen === 3 ? sql.CLOSE : undefined))
  assert.equal(seen, 3)
  assert.equal((await sql`select 1 as n`)[0].n, 1)
})

check('COPY in and out, and one that fails by its data', async (target) => {
  await target.table('copied', 'n int, t text')
  const sql = open(target)
  const count = rounds(20000)
  await pipeline(Readable.from(numbers(count).map((n) => `${n}\trow ${n}\n`)), await sql`copy copied from stdin`.writable())
  assert.equal((await sql`select count(*)::int as n from copied`)[0].n, count)
  const parts = []
  // Of more than a stream's buffer the driver sometimes forgets to read the rest, also without a proxy.
  for await (const part of await sql`copy (select * from copied order by n limit 500) to stdout`.readable()) parts.push(part)
  assert.equal(Buffer.concat(parts).toString(), numbers(500).map((n) => `${n}\trow ${n}\n`).join(''))
  const wrong = await sql`copy copied from stdin`.writable()
  wrong.on('error', () => {})
  wrong.write('no number\tx\n')
  wrong.end()
  await until(async () => (await sql`select count(*)::int as n from copied`.catch(() => [{}]))[0].n === count, 'the connection goes on')
  assert.equal((await sql`select count(*)::int as n from copied`)[0].n, count)
})

check('several statements in a simple query', async (target) => {
  const sql = open(target)
  const results = await sql`select 1 as n; select 2 as n; select 3 as n`.simple()
  assert.deepEqual(results.map(([{ n }]) => n), [1, 2, 3])
  await fails('22012', sql.unsafe('select 1; select 1/0'))
  assert.equal((await sql.unsafe('select $1::int as n', [4]))[0].n, 4)
  assert.equal((await sql.unsafe('select $1::int as n', [5], { prepare: true }))[0].n, 5)
})

check('cancel of a running query is 57014, and the connection goes on', async (target) => {
  const sql = open(target)
  for (const n of numbers(3)) {
    const query = sql`select pg_sleep(30)`.execute()
    setTimeout(() => query.cancel(), 300)
    await fails('57014', query)
    for (const k of numbers(20)) assert.equal((await sql`select ${k + n}::int as n`)[0].n, k + n)
  }
})

check('LISTEN and NOTIFY, also after the listening connection was lost', async (target) => {
  const sql = open(target, { backoff: () => 0.1 })
  const [heard, looker] = [[], await target.direct()]
  let listening = 0
  const { state, unlisten } = await sql.listen('news', (payload) => heard.push(payload), () => listening++)
  for (const n of numbers(3)) await sql.notify('news', `n${n}`)
  await until(() => heard.length === 3, 'three notifications')
  assert.deepEqual(heard, ['n0', 'n1', 'n2'])
  await looker.query('select pg_terminate_backend($1)', [state.pid])
  // Through the proxy, the number that a client is told at login is the proxy's own.
  if (target.isProxy) {
    await looker.query(`select pg_terminate_backend(pid) from pg_stat_activity where query ilike 'listen%' and datname = current_database()`)
  }
  await until(() => listening === 2, 'listens again')
  await sql.notify('news', 'again')
  await until(() => heard.at(-1) === 'again', 'a notification after that')
  await unlisten()
})

check('errors have their SQLSTATE and their parts, and the connection goes on', async (target) => {
  await target.table('unique_one', 'n int constraint only_once primary key')
  const sql = open(target)
  await sql`insert into unique_one values (1)`
  const error = await fails('23505', sql`insert into unique_one values (1)`)
  assert.deepEqual([error.constraint_name, error.table_name, error.severity], ['only_once', 'unique_one', 'ERROR'])
  for (const [state, query] of [
    ['42P01', sql`select * from no_such_table`],
    ['22P02', sql`select ${'x'}::text::int`],
    ['42601', sql`selec`],
    ['22012', sql`select 1/0`],
  ]) {
    await fails(state, query)
    assert.equal((await sql`select 1 as n`)[0].n, 1)
  }
})

check('reconnects: when it likes, and when the server has ended its connection', async (target) => {
  const looker = await target.direct()
  const sql = open(target, { max_lifetime: 1, backoff: () => 0 })
  for (const n of numbers(rounds(12))) {
    assert.equal((await sql`select ${n}::int as n`)[0].n, n)
    await looker.query(
      'select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()'
    )
    // The driver notices at once, or at its next statement.
    await sleep(50)
  }
  for (const n of numbers(rounds(60))) assert.equal((await open(target)`select ${n}::int as n`)[0].n, n)
})

runAll('postgres-js', __filename)
