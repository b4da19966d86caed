// node-postgres: its own implementation of the protocol, parameters in text, named statements on request.
'use strict'

const assert = require('node:assert/strict')
const crypto = require('node:crypto')
const fs = require('node:fs')
const { pipeline } = require('node:stream/promises')
const { Readable, Writable } = require('node:stream')
const { setTimeout: sleep } = require('node:timers/promises')
const pg = require('pg')
const Cursor = require('pg-cursor')
const QueryStream = require('pg-query-stream')
const copyStreams = require('pg-copy-streams')
const { CLIENTS, POOL_SIZE, check, fails, numbers, rounds, runAll, until, value } = require('./checks.cjs')

// ---- connecting

check('connects, and the server looks like a primary', async (target) => {
  const client = await target.open({ application_name: 'drivers pg' })
  assert.equal(await value(client, 'show application_name'), 'drivers pg')
  assert.equal(await value(client, 'select pg_is_in_recovery()'), false)
  assert.equal(await value(client, 'select current_database()'), target.database)
})

check('options at login set search_path and statement_timeout', async (target) => {
  await target.make(
    'drop schema if exists elsewhere cascade; create schema elsewhere; create table elsewhere.found as select 42 as n'
  )
  const byOptions = await target.open({ options: '-c search_path=elsewhere -c statement_timeout=250' })
  const byDriver = await target.open({ statement_timeout: 250, options: '-csearch_path=elsewhere,public', lock_timeout: 1000 })
  const other = await target.open()
  for (const client of [byOptions, byDriver]) {
    for (let round = 0; round < 3; round++) {
      assert.equal(await value(client, 'select n from found'), 42)
      assert.equal(await value(client, 'show statement_timeout'), '250ms')
      await fails('42P01', other.query('select n from found'))
    }
    await fails('57014', client.query('select pg_sleep(10)'))
    assert.equal(await value(client, 'select n from found'), 42)
  }
  assert.equal(await value(byDriver, 'show lock_timeout'), '1s')
})

check('refused logins say why', async (target) => {
  await fails('3D000', target.open({ database: 'no_such_database' }))
  await fails('42704', target.open({ options: '-c no_such_setting=1' }))
})

check(
  'logs in by SCRAM, with and without TLS',
  async (target) => {
    const secure = { port: Number(process.env.DRIVERS_SECURE_PORT), password: process.env.DRIVERS_PASSWORD }
    const ca = fs.readFileSync(process.env.DRIVERS_CERTIFICATE, 'utf8')
    for (const options of [{}, { ssl: { ca } }, { ssl: { ca }, enableChannelBinding: true }]) {
      const client = await target.open({ ...secure, ...options })
      const data = crypto.randomBytes(3000000)
      assert((await value(client, 'select $1::bytea', [data])).equals(data))
      await fails('28P01', target.open({ ...secure, ...options, password: 'wrong' }))
    }
  },
  'proxy'
)

check('reconnects, time after time', async (target) => {
  for (const n of numbers(rounds(100))) {
    const client = await target.open()
    assert.equal(await value(client, 'select $1::int', [n]), n)
    await client.end()
  }
})

check('a connection that is lost is an error, and the next one works', async (target) => {
  const looker = await target.direct()
  let client = await target.open()
  await client.query('begin')
  const pid = await value(client, 'select pg_backend_pid()')
  await looker.query('select pg_terminate_backend($1)', [pid])
  await until(async () => (await value(looker, 'select count(*)::int from pg_stat_activity where pid = $1', [pid])) === 0, 'it is gone')
  if (target.isProxy) {
    await fails('40001', client.query('select 1'))
    await fails('25P02', client.query('select 1'))
    await client.query('rollback')
  } else {
    await assert.rejects(client.query('select 1'))
    client = await target.open()
  }
  assert.equal(await value(client, 'select 1'), 1)
})

check('a client that vanishes in a transaction leaves no lock behind', async (target) => {
  await target.table('vanished', 'n int primary key')
  const client = await target.open()
  await client.query('begin; insert into vanished values (1)')
  client.connection.stream.destroy()
  const other = await target.open()
  await other.query("set lock_timeout = '10s'")
  await other.query('insert into vanished values (1)')
})

// ---- queries and values

check('simple queries, several statements in one, and none', async (target) => {
  const client = await target.open()
  const results = await client.query('select 1 as a; select 2 as a; select 3 as a')
  assert.deepEqual(results.map((result) => result.rows[0].a), [1, 2, 3])
  for (const empty of ['', ';', '-- nothing']) {
    assert.deepEqual((await client.query(empty)).rows, [])
  }
  assert.equal((await client.query("select generate_series(1, 20000), repeat('x', 50)")).rowCount, 20000)
  const result = await client.query({ text: "select 1, 'two', null", rowMode: 'array' })
  assert.deepEqual(result.rows, [[1, 'two', null]])
  // Queued by the driver, and sent one by one.
  const queued = await Promise.all(numbers(200).map((n) => value(client, 'select $1::int', [n])))
  assert.deepEqual(queued, numbers(200))
})

const moment = new Date('2024-02-29T23:59:59.123Z')
const VALUES = [
  ['smallint', -32768],
  ['int', 2147483647],
  ['bigint', '-9223372036854775808'],
  ['text', "grüße, 世界 🐍 'quoted' \\ \n\t"],
  ['varchar(10)', ''],
  ['bytea', Buffer.from(numbers(256))],
  ['numeric', '-12345678901234567890.123456789'],
  ['float8', 1e-300],
  ['bool', true],
  ['timestamptz', moment],
  ['int[]', [1, null, -3]],
  ['text[]', ['a', 'b,c', '"', null, '']],
  ['numeric[]', [1.5, null]],
  ['timestamptz[]', [moment]],
  ['json', { a: [1, null, 'x'], b: { c: true } }],
  ['jsonb', { a: [1, null, 'x'], b: { c: true } }],
  ['uuid', '12345678-1234-5678-1234-567812345678'],
]

check('parameters in text, results in text and binary, NULL, arrays, json', async (target) => {
  const text = await target.open()
  for (const [type, wanted] of VALUES) {
    assert.deepEqual(await value(text, `select $1::${type}`, [wanted]), wanted, type)
    assert.equal(await value(text, `select $1::${type}`, [null]), null, `${type} null`)
  }
  // The driver parses only some types in binary, and large numbers wrongly.
  const binary = await target.open({ binary: true })
  for (const [type, wanted] of [
    ['int', 4711],
    ['bool', true],
    ['text', 'grüße'],
    ['int[]', [1, 2, 3]],
  ]) {
    assert.deepEqual(await value(binary, `select $1::${type}`, [wanted]), wanted, `${type} in binary`)
  }
  const many = numbers(100)
  const result = await text.query({ text: `select ${many.map((n) => `$${n + 1}::int`)}`, values: many, rowMode: 'array' })
  assert.deepEqual(result.rows[0], many)
})

check('a 10 MB bytea goes both ways, with the parameter in text and in binary', async (target) => {
  await target.table('large', 'b bytea, t text')
  const data = crypto.randomBytes(10 * 1024 * 1024)
  const hexadecimal = data.toString('hex')
  const long = '0123456789abcdef'.repeat(data.length / 16)
  const client = await target.open()
  // The driver sends a Buffer in binary.
  for (const [sql, parameter] of [
    ['insert into large values ($1, $2)', data],
    ["insert into large values (decode($1, 'hex'), $2)", hexadecimal],
  ]) {
    await client.query('truncate large')
    await client.query(sql, [parameter, long])
    const { rows } = await client.query('select b, t from large')
    assert(rows[0].b.equals(data) && rows[0].t === long)
  }
  assert((await value(client, 'select $1::bytea', [data])).equals(data))
  // As one simple query of 20 MB.
  assert.equal(await value(client, `select length('\\x${hexadecimal}'::bytea)`), data.length)
})

// ---- prepared statements

check('named statements run hundreds of times by clients that change servers', async (target) => {
  await target.table('counted', 'id int primary key, n int')
  await target.make(`insert into counted select n, 0 from generate_series(0, ${CLIENTS - 1}) n`)
  const clients = await Promise.all(numbers(CLIENTS).map(() => target.open()))
  const named = async (client, name, text, values = []) =>
    Object.values((await client.query({ name, text, values })).rows[0])[0]
  const servers = clients.map(() => new Set())
  const updates = clients.map(() => 0)
  for (const round of numbers(rounds(60))) {
    const chosen = [...new Set(numbers(POOL_SIZE).map((k) => (round * POOL_SIZE + k * (1 + (round % 3))) % CLIENTS))]
    for (const c of chosen) await clients[c].query('begin')
    for (const c of chosen) {
      // The same name is another statement for each client.
      assert.equal(await named(clients[c], 'own', `select $1::int * 2 as c${c}`, [c]), c * 2)
      assert.equal(await named(clients[c], 'add', 'select $1::int + $2::int as sum', [round, c]), round + c)
      updates[c] += 1
      assert.equal(await named(clients[c], 'update', 'update counted set n = n + 1 where id = $1 returning n', [c]), updates[c])
      servers[c].add(await named(clients[c], 'pid', 'select pg_backend_pid() as pid'))
    }
    for (const c of chosen) await clients[c].query('commit')
  }
  if (target.isProxy) {
    assert(servers.filter((pids) => pids.size > 1).length >= CLIENTS / 2, 'clients stay on their servers')
    assert(new Set(servers.flatMap((pids) => [...pids])).size <= POOL_SIZE, 'more servers than the pool has')
  }
})

check('named statements side by side, from autocommit reads and writes', async (target) => {
  await target.table('side_by_side', 'client int, n int')
  const clients = await Promise.all(numbers(CLIENTS).map(() => target.open()))
  await Promise.all(
    clients.map(async (client, c) => {
      for (const n of numbers(rounds(120))) {
        await client.query({ name: 'insert', text: 'insert into side_by_side values ($1, $2)', values: [c, n] })
        const found = await client.query({
          name: 'count',
          text: 'select count(*)::int as n from side_by_side where client = $1',
          values: [c],
        })
        assert.equal(found.rows[0].n, n + 1, `own writes of client ${c}`)
      }
    })
  )
})

check('a named statement that fails to parse can be fixed', async (target) => {
  const client = await target.open()
  await fails('42P01', client.query({ name: 'later', text: 'select * from not_there_yet' }))
  assert.equal((await client.query({ name: 'later2', text: 'select 5 as n' })).rows[0].n, 5)
  assert.equal((await client.query({ name: 'later', text: 'select 6 as n' })).rows[0].n, 6)
})

check('a named statement whose table has changed fails as the server says', async (target) => {
  await target.table('reshaped', 'a int')
  const [client, other] = [await target.open(), await target.open()]
  await client.query('insert into reshaped values (1)')
  const star = { name: 'star', text: 'select * from reshaped' }
  assert.deepEqual((await client.query(star)).rows, [{ a: 1 }])
  await target.caughtUp()
  assert.deepEqual((await client.query(star)).rows, [{ a: 1 }])
  await other.query('alter table reshaped add b int')
  await target.caughtUp()
  // On whichever server it runs now.
  for (const round of numbers(5)) await fails('0A000', client.query(star), `round ${round}`)
})

// ---- transactions

check('a write is seen by the next read', async (target) => {
  await target.table('own_writes', 'n int')
  const client = await target.open()
  for (const n of numbers(rounds(200))) {
    await client.query('insert into own_writes values ($1)', [n])
    assert.equal(await value(client, 'select count(*)::int from own_writes'), n + 1)
  }
  await client.query('begin')
  await client.query('delete from own_writes')
  assert.equal(await value(client, 'select count(*)::int from own_writes'), 0)
  await client.query('commit')
  assert.equal(await value(client, 'select count(*)::int from own_writes'), 0)
})

check('commit, rollback, savepoints', async (target) => {
  await target.table('kept', 'n int')
  const [client, looker] = [await target.open(), await target.direct()]
  await client.query('begin')
  await client.query('insert into kept values ($1)', [1])
  assert.equal(await value(looker, 'select count(*)::int from kept'), 0)
  await client.query('commit')
  assert.equal(await value(looker, 'select count(*)::int from kept'), 1)
  await client.query('begin')
  await client.query('insert into kept values (2)')
  await client.query('savepoint a')
  await fails('22012', client.query('select 1 / $1::int', [0]))
  await fails('25P02', client.query('select 1'))
  await client.query('rollback to savepoint a')
  await client.query('insert into kept values (3)')
  await client.query('commit')
  await client.query('begin')
  await client.query('insert into kept values (4)')
  await client.query('rollback')
  assert.deepEqual((await client.query({ text: 'select n from kept order by n', rowMode: 'array' })).rows, [[1], [2], [3]])
})

check('errors have their SQLSTATE and details, and the connection goes on', async (target) => {
  await target.table('unique_numbers', 'n int constraint unique_numbers_key primary key')
  const client = await target.open()
  await client.query('insert into unique_numbers values (1)')
  for (const [code, text, values] of [
    ['23505', 'insert into unique_numbers values ($1)', [1]],
    ['42P01', 'select * from no_such_table where n = $1', [1]],
    ['22012', 'select 1 / $1::int', [0]],
    ['42601', 'selec $1', [1]],
    ['22P02', 'select $1::int', ['x']],
    ['08P01', 'select $1::int, $2::int', [1]],
    ['42P01', 'select * from no_such_table'],
    ['22012', 'select 1; select 1/0; select 2'],
  ]) {
    await fails(code, client.query({ text, values }))
    assert.equal(await value(client, 'select count(*)::int from unique_numbers'), 1)
  }
  const error = await fails('23505', client.query('insert into unique_numbers values (1)'))
  assert.equal(error.constraint, 'unique_numbers_key')
  assert.match(error.detail, /\(n\)=\(1\)/)
})

check('read-only transactions refuse writes with 25006, and each isolation level is that', async (target) => {
  await target.table('untouched', 'n int')
  const client = await target.open()
  for (const level of ['read committed', 'repeatable read', 'serializable']) {
    for (const round of numbers(rounds(12))) {
      const readOnly = round % 2 === 0
      await client.query(`begin transaction isolation level ${level}${readOnly ? ' read only' : ''}`)
      assert.equal(await value(client, 'show transaction_isolation'), level)
      assert.equal(await value(client, 'show transaction_read_only'), readOnly ? 'on' : 'off')
      assert.equal(await value(client, 'select count(*)::int from untouched where n = $1', [1]), 0)
      if (readOnly) await fails('25006', client.query('insert into untouched values ($1)', [1]))
      await client.query('rollback')
    }
  }
  assert.equal(await value(client, 'show transaction_read_only'), 'off')
})

// ---- COPY, cursors, streams

check('COPY in and out', async (target) => {
  await target.table('copied', 'n int, t text')
  const client = await target.open()
  const count = rounds(20000)
  const lines = numbers(count).map((n) => `${n}\trow ${n}\n`)
  const into = client.query(copyStreams.from('copy copied from stdin'))
  await pipeline(Readable.from(lines), into)
  assert.equal(into.rowCount, count)
  assert.equal(await value(client, 'select count(*)::int from copied'), count)
  for (const format of ['text', 'csv', 'binary']) {
    const chunks = []
    const out = client.query(copyStreams.to(`copy (select * from copied order by n) to stdout (format ${format})`))
    for await (const chunk of out) chunks.push(chunk)
    const data = Buffer.concat(chunks)
    if (format === 'text') assert.equal(data.toString(), lines.join(''))
    await client.query('truncate copied')
    await pipeline(Readable.from([data]), client.query(copyStreams.from(`copy copied from stdin (format ${format})`)))
    assert.equal(await value(client, 'select sum(n)::int from copied'), (count * (count - 1)) / 2, format)
  }
})

check('COPY that fails half-way, by the client, the data or the server', async (target) => {
  await target.table('copied_badly', 'n int primary key')
  const client = await target.open()
  const copyIn = (source, sql = 'copy copied_badly from stdin') =>
    pipeline(Readable.from(source), client.query(copyStreams.from(sql)))
  await fails('22P02', copyIn(['1\n2\n', 'no number\n', ...numbers(5000).map((n) => `${n}\n`)]))
  assert.equal(await value(client, 'select count(*)::int from copied_badly'), 0)
  await fails('23505', copyIn(['1\n2\n1\n']))
  await fails('42P01', copyIn(['1\n'], 'copy no_such_table from stdin'))
  const broken = async function* () {
    yield '1\n'
    throw new Error('the source broke')
  }
  await assert.rejects(copyIn(broken()), /the source broke/)
  assert.equal(await value(client, 'select count(*)::int from copied_badly'), 0)
  await copyIn(['1\n', '2\n'])
  const failing = client.query(copyStreams.to('copy (select 1 / (n - 900) from generate_series(1, 1000) n) to stdout'))
  await fails('22012', pipeline(failing, new Writable({ write: (_chunk, _encoding, done) => done() })))
  assert.equal(await value(client, 'select count(*)::int from copied_badly'), 2)
})

check('cursors fetch in pieces inside a transaction', async (target) => {
  await target.table('scrolled', 'n int')
  const client = await target.open()
  await client.query('insert into scrolled select generate_series(1, 5000)')
  await client.query('begin')
  const cursor = client.query(new Cursor('select n from scrolled where n > $1 order by n', [10]))
  let wanted = 11
  for (;;) {
    const rows = await cursor.read(70)
    if (rows.length === 0) break
    for (const row of rows) assert.equal(row.n, wanted++)
  }
  assert.equal(wanted, 5001)
  await cursor.close()
  await client.query('commit')
  await target.caughtUp()
  await client.query('begin read only')
  const part = client.query(new Cursor('select n from scrolled order by n'))
  assert.equal((await part.read(100)).length, 100)
  await part.close()
  assert.equal(await value(client, 'select 1'), 1)
  await client.query('commit')
})

check('a cursor outside a transaction reads to its end, or is closed', async (target) => {
  const [client, other] = [await target.open(), await target.open()]
  const cursor = client.query(new Cursor('select generate_series(1, 1000) as n'))
  for (const round of numbers(10)) {
    assert.equal((await cursor.read(50))[0].n, round * 50 + 1)
    assert.equal(await value(other, 'select $1::int', [round]), round)
  }
  await cursor.close()
  assert.equal(await value(client, 'select 1'), 1)
  const failing = client.query(new Cursor('select 1 / (n - 60) from generate_series(1, 1000) n'))
  await failing.read(50)
  await fails('22012', failing.read(50))
  assert.equal(await value(client, 'select 2'), 2)
  const limited = await client.query({ text: 'select generate_series(1, 10) as n', rows: 3 })
  assert.equal(limited.rows.length >= 3, true)
  assert.equal(await value(client, 'select 3'), 3)
})

check('rows as a stream, and one that is left half-way', async (target) => {
  const client = await target.open()
  let sum = 0
  for await (const row of client.query(new QueryStream('select generate_series(1, $1) as n', [20000]))) sum += row.n
  assert.equal(sum, 200010000)
  for await (const row of client.query(new QueryStream('select generate_series(1, 1000000) as n', [], { batchSize: 10 }))) {
    if (row.n === 25) break
  }
  assert.equal(await value(client, 'select 1'), 1)
})

// ---- cancelling, notifications, state of a session

/** Sends a cancel request for what the client runs. */
async function cancel(target, client) {
  const other = new pg.Client(target.options())
  const done = new Promise((resolve) => other.connection.once('end', resolve))
  other.connection.on('error', () => {})
  other.connection.on('connect', () => other.connection.cancel(client.processID, client.secretKey))
  other.connection.connect(target.port, '127.0.0.1')
  await done
}

check('cancel of a running query is 57014, and the connection goes on', async (target) => {
  const clients = await Promise.all(numbers(POOL_SIZE).map(() => target.open()))
  for (const client of clients) {
    const slept = fails('57014', client.query('select pg_sleep(30)'))
    await sleep(300)
    await cancel(target, client)
    await slept
    for (const n of numbers(10)) assert.equal(await value(client, 'select $1::int', [n]), n)
  }
  await clients[0].query('begin')
  const slept = fails('57014', clients[0].query('select pg_sleep(30)'))
  await sleep(300)
  await cancel(target, clients[0])
  await slept
  await fails('25P02', clients[0].query('select 1'))
  await clients[0].query('rollback')
  assert.equal(await value(clients[0], 'select 1'), 1)
})

check('LISTEN and NOTIFY reach the listener, also while it is idle', async (target) => {
  const [listener, other, sender] = [await target.open(), await target.open(), await target.open()]
  const heard = []
  listener.on('notification', ({ channel, payload }) => heard.push(`${channel} ${payload}`))
  await listener.query('listen news')
  for (const n of numbers(3)) {
    assert.equal(await value(other, 'select $1::int', [n]), n)
    await sender.query("select pg_notify('news', $1)", [`n${n}`])
    await until(() => heard.includes(`news n${n}`), 'a notification')
  }
  await listener.query('unlisten news')
  await sender.query("notify news, 'unheard'")
  assert.equal(await value(listener, 'select 1'), 1)
  await sleep(200)
  assert.equal(heard.length, 3)
})

check('notices arrive', async (target) => {
  const client = await target.open()
  const heard = []
  client.on('notice', (notice) => heard.push(notice.message))
  await client.query("do $$ begin raise notice 'hello'; end $$")
  await until(() => heard.includes('hello'), 'the notice')
})

check('temporary tables live in their session', async (target) => {
  const clients = await Promise.all(numbers(POOL_SIZE - 1).map(() => target.open()))
  const other = await target.open()
  for (const [c, client] of clients.entries()) {
    await client.query('create temporary table mine (n int)')
    await client.query('insert into mine values ($1)', [c])
  }
  for (const n of numbers(rounds(20))) {
    assert.equal(await value(other, 'select $1::int', [n]), n)
    for (const [c, client] of clients.entries()) assert.equal(await value(client, 'select n from mine'), c)
  }
  await fails('42P01', other.query('select n from mine'))
})

check('SET stays with its client while others use the pool', async (target) => {
  const clients = await Promise.all(numbers(CLIENTS).map((c) => target.open({ application_name: `client ${c}` })))
  for (const [c, client] of clients.entries()) {
    await client.query(`set work_mem = '${c + 1}MB'`)
    await client.query(`set search_path = s${c}, public`)
  }
  await Promise.all(
    clients.map(async (client, c) => {
      for (let round = 0; round < rounds(30); round++) {
        assert.equal(await value(client, 'show work_mem'), `${c + 1}MB`)
        assert.equal(await value(client, 'show search_path'), `s${c}, public`)
        assert.equal(await value(client, 'show application_name'), `client ${c}`)
      }
    })
  )
  await clients[0].query('reset all')
  await clients[1].query('discard all')
  for (const client of clients.slice(0, 2)) assert.equal(await value(client, 'show work_mem'), '4MB')
})

check('DISCARD ALL and DEALLOCATE between named statements', async (target) => {
  const clients = await Promise.all(numbers(CLIENTS).map(() => target.open()))
  for (const round of numbers(rounds(20))) {
    for (const [c, client] of clients.entries()) {
      const text = `select $1::int + ${c} as n`
      assert.equal((await client.query({ name: `s${round}`, text, values: [round] })).rows[0].n, round + c)
      await client.query(['deallocate all', `deallocate s${round}`, 'discard all'][round % 3])
      await fails('26000', client.query({ name: `s${round}`, text, values: [round] }))
    }
  }
})

// ---- many

check("the driver's pool", async (target) => {
  await target.table('pooled', 'n int')
  const pool = new pg.Pool({ ...target.options(), max: 10 })
  await Promise.all(
    numbers(rounds(200)).map(async (n) => {
      const client = await pool.connect()
      try {
        await client.query('begin')
        await client.query('insert into pooled values ($1)', [n])
        await client.query('commit')
        assert.equal(await value(client, 'select count(*)::int from pooled where n = $1', [n]), 1)
      } finally {
        client.release()
      }
    })
  )
  assert.equal((await pool.query('select 1 as n')).rows[0].n, 1)
  await pool.end()
})

check(
  '200 connections at once',
  async (target) => {
    await target.table('crowded', 'client int, n int')
    const clients = []
    while (clients.length < 200) clients.push(...(await Promise.all(numbers(20).map(() => target.open()))))
    await Promise.all(
      clients.map(async (client, c) => {
        for (const n of numbers(rounds(20))) {
          const sum = await client.query({ name: 'sum', text: 'select $1::int * 1000 + $2::int as n', values: [c, n] })
          assert.equal(sum.rows[0].n, c * 1000 + n)
          await client.query('insert into crowded values ($1, $2)', [c, n])
          const found = await value(client, 'select count(*)::int from crowded where client = $1', [c])
          assert.equal(found, n + 1, `own writes of client ${c}`)
        }
      })
    )
    const looker = await target.direct()
    const servers = await value(
      looker,
      "select count(*)::int from pg_stat_activity where datname = $1 and pid <> pg_backend_pid() and backend_type = 'client backend'",
      [target.database]
    )
    assert(servers <= POOL_SIZE, `${servers} connections of the proxy to the primary`)
  },
  'proxy'
)

runAll('pg', __filename)
