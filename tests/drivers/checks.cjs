/**
 * What the checks of the Node drivers share: where to connect, the list of checks, and a line for each. A check is run against the primary
 * itself first and then through the proxy, so that a failure of both is the check's own mistake.
 */
'use strict'

const assert = require('node:assert/strict')
const path = require('node:path')
const { setTimeout: sleep } = require('node:timers/promises')
const pg = require('pg')

const QUICK = Boolean(process.env.DRIVERS_QUICK)
const ONLY = (process.env.DRIVERS_ONLY || '').toLowerCase()
const SECONDS_PER_CHECK = 60
const POOL_SIZE = 3
const CLIENTS = 8
const DIRECT_PORT = Number(process.env.DRIVERS_DIRECT_PORT)
const STANDBY_PORTS = process.env.DRIVERS_STANDBY_PORTS.split(',').map(Number)
const DATABASE = process.env.DRIVERS_DATABASE

/** How often to repeat something: a quarter of it in a quick run. */
const rounds = (full) => (QUICK ? Math.max(1, Math.floor(full / 4)) : full)
const numbers = (count) => Array.from({ length: count }, (_, n) => n)

/** Where a check runs: the primary itself, or the proxy in front of the cluster. */
class Target {
  /** How to close what the check has opened. */
  opened = []

  constructor(label, port) {
    this.label = label
    this.port = port
    this.database = `${DATABASE}_${label}`
    this.isProxy = label === 'proxy'
  }

  options(more = {}) {
    return { host: '127.0.0.1', port: this.port, database: this.database, user: 'postgres', ...more }
  }

  /** A connection of the check's own. */
  async open(more = {}) {
    const client = new pg.Client(this.options(more))
    client.lost = new Promise((resolve) => client.on('error', resolve))
    // A connection that is in the middle of something doesn't answer to end().
    this.opened.push(() => client.connection?.stream.destroy())
    await client.connect()
    return client
  }

  /** A connection that is never through the proxy, to look on. */
  direct(port = DIRECT_PORT) {
    return this.open({ port })
  }

  /** Waits until the standbys have replayed all that is committed. */
  async caughtUp() {
    const looker = await this.direct()
    const lsn = await value(looker, 'select pg_current_wal_flush_lsn()')
    await looker.end()
    for (const port of STANDBY_PORTS) {
      const standby = await this.direct(port)
      await until(() => value(standby, 'select pg_last_wal_replay_lsn() >= $1::pg_lsn', [lsn]), 'replay')
      await standby.end()
    }
  }

  /** Makes what every client sees on every node. */
  async make(sql) {
    const looker = await this.direct()
    await looker.query(`set client_min_messages = error; ${sql}`)
    await looker.end()
    await this.caughtUp()
  }

  table(name, columns) {
    return this.make(`drop table if exists ${name}; create table ${name} (${columns})`)
  }

  async close() {
    for (const close of this.opened.splice(0)) await Promise.race([Promise.resolve().then(close), sleep(3000)]).catch(() => {})
  }
}

/** The only value of the only row. */
async function value(client, text, values) {
  const result = await client.query(values ? { text, values } : text)
  return result.rows.length ? Object.values(result.rows[0])[0] : undefined
}

async function until(isSo, what, seconds = 15) {
  const deadline = Date.now() + seconds * 1000
  while (!(await isSo())) {
    assert(Date.now() < deadline, `not within ${seconds} s: ${what}`)
    await sleep(10)
  }
}

async function fails(code, promise) {
  try {
    await promise
  } catch (error) {
    assert.equal(error.code, code, `SQLSTATE of ${error.message}`)
    return error
  }
  throw new assert.AssertionError({ message: `no error, instead of ${code}` })
}

const all = []
const check = (name, run, only) => all.push({ name, run, only })

// ---- running them

/** Runs the checks of `driver`, which are in `file`. */
async function runAll(driver, file) {
  const own = new RegExp(`${path.basename(file).replace('.', '\\.')}:(\\d+):\\d+\\)?$`, 'm')
  let failures = 0
  for (const target of [new Target('direct', DIRECT_PORT), new Target('proxy', Number(process.env.DRIVERS_PROXY_PORT))]) {
    for (const { name, run, only } of all) {
      if (!name.toLowerCase().includes(ONLY) || (only && only !== target.label)) continue
      const began = Date.now()
      let problem = ''
      const timer = new AbortController()
      const tooLong = sleep(SECONDS_PER_CHECK * 1000, null, { signal: timer.signal }).then(
        () => {
          throw new Error(`not done after ${SECONDS_PER_CHECK} s`)
        },
        () => {}
      )
      try {
        await Promise.race([run(target), tooLong])
      } catch (error) {
        console.error(error)
        const place = own.exec(error.stack || '')
        problem = `: ${error.code || ''} ${String(error.message).replace(/\s+/g, ' ').slice(0, 400)}${place ? ` (line ${place[1]})` : ''}`
        failures += 1
      }
      timer.abort()
      await target.close()
      const seconds = ((Date.now() - began) / 1000).toFixed(1)
      console.log(`${problem ? 'FAIL' : 'ok  '}  ${driver.padEnd(14)} ${target.label.padEnd(6)}  ${name}${problem}  (${seconds} s)`)
    }
  }
  console.log('done')
  process.exit(failures ? 1 : 0)
}

// What a destroyed connection still rejects is nobody's failure any more.
process.on('unhandledRejection', (error) => console.error('unhandled:', error.message))

module.exports = { CLIENTS, DIRECT_PORT, POOL_SIZE, check, fails, numbers, rounds, runAll, until, value }
