# frozen_string_literal: true

# Ruby's pg: libpq's asynchronous functions, results decoded in text and in binary, pipelines, and threads.
require 'pg'
require 'timeout'
require 'time'

CLIENTS = 8
POOL_SIZE = 3
DIRECT_PORT = ENV.fetch('DRIVERS_DIRECT_PORT').to_i
# How often to repeat something: a quarter of it in a quick run.
def rounds(full) = ENV['DRIVERS_QUICK'].to_s.empty? ? full : [full / 4, 1].max
def now = Process.clock_gettime(Process::CLOCK_MONOTONIC)

def same(found, wanted, what = nil)
  raise "#{what && "#{what}: "}#{found.inspect[0, 150]}, not #{wanted.inspect[0, 150]}" unless found == wanted
end

def fails(state)
  yield
rescue PG::Error => e
  same(e.result&.error_field(PG::PG_DIAG_SQLSTATE), state, "SQLSTATE of #{e.message}")
  e
else
  raise "no error, instead of #{state}"
end

# Where a check runs: the primary itself, or the proxy.
Target = Struct.new(:label, :port, :opened) do
  def proxy? = label == 'proxy'

  def open(**more)
    connection = PG.connect(host: '127.0.0.1', port: port, dbname: "#{ENV.fetch('DRIVERS_DATABASE')}_#{label}", user: 'postgres', **more)
    opened << connection
    connection
  end

  def direct(port = DIRECT_PORT) = open(port: port)

  # Makes what every client sees on every node.
  def make(sql)
    looker = direct
    looker.exec("set client_min_messages = error; #{sql}")
    lsn = one(looker, 'select pg_current_wal_flush_lsn()')
    ENV.fetch('DRIVERS_STANDBY_PORTS').split(',').each do |port|
      standby = direct(port.to_i)
      Timeout.timeout(15) { sleep 0.01 until one(standby, 'select pg_last_wal_replay_lsn() >= $1::pg_lsn', lsn) == 't' }
    end
  end
end

def one(connection, sql, *values) = connection.exec_params(sql, values).getvalue(0, 0)

CHECKS = []
def check(name, only: nil, &run) = CHECKS << [name, only, run]

check 'connects, with settings and options at login, and resets' do |t|
  c = t.open(application_name: 'drivers ruby', options: '-c statement_timeout=250', target_session_attrs: 'read-write')
  rounds(20).times do |n|
    same(one(c, 'show application_name'), 'drivers ruby')
    same(one(c, 'show statement_timeout'), '250ms')
    same(one(c, 'select $1::int', n), n.to_s)
    c.reset
  end
  fails('57014') { c.exec('select pg_sleep(10)') }
  begin
    t.open(dbname: 'no_such_database')
    raise 'let in'
  rescue PG::ConnectionBad => e
    same(e.message.include?('does not exist'), true, e.message)
  end
end

check 'logs in by SCRAM, with and without TLS', only: 'proxy' do |t|
  [{ sslmode: 'disable' }, { sslmode: 'verify-full', sslrootcert: ENV.fetch('DRIVERS_CERTIFICATE') }].each do |tls|
    secure = { port: ENV.fetch('DRIVERS_SECURE_PORT').to_i, password: ENV.fetch('DRIVERS_PASSWORD') }
    c = t.open(**secure, **tls)
    same(c.ssl_in_use?, tls[:sslmode] != 'disable')
    data = Random.bytes(1_000_000)
    same(c.exec_params('select $1::bytea', [{ value: data, format: 1 }], 1).getvalue(0, 0) == data, true)
  end
end

check 'values of many types, in text and in binary, both ways' do |t|
  text, binary = t.open, t.open
  text.type_map_for_results = PG::BasicTypeMapForResults.new(text)
  binary.type_map_for_results = PG::BasicTypeMapForResults.new(binary)
  binary.type_map_for_queries = PG::BasicTypeMapForQueries.new(binary)
  { 'int' => -5, 'int8' => 2**62, 'float8' => 1.5e-10, 'bool' => true, 'text' => "grüße, 世界 🐍 '\\ \n" }.each do |type, value|
    [value, nil].each do |v|
      same(one(text, "select $1::#{type}", v), v, type)
      same(binary.exec_params("select $1::#{type}", [v], 1).getvalue(0, 0), v, "#{type} in binary")
    end
  end
  same(one(binary, 'select $1::int[]', [1, 2, -3]), [1, 2, -3])
  same(one(text, "select '{\"a\": [1, null]}'::jsonb"), { 'a' => [1, nil] })
  same(one(text, "select '2024-02-29 23:59:59.000001+00'::timestamptz").utc.iso8601(6), '2024-02-29T23:59:59.000001Z')
  same(one(text, 'select $1::numeric', '12345678901234567890.5'), BigDecimal('12345678901234567890.5'))
end

check 'prepared statements of clients that change servers, described too' do |t|
  clients = Array.new(CLIENTS) { t.open }
  clients.each_with_index { |c, k| c.prepare('own', "select $1::int * 10 + #{k} as n#{k}, pg_backend_pid()") }
  servers = Array.new(CLIENTS) { [] }
  rounds(200).times do |round|
    chosen = Array.new(POOL_SIZE) { |k| (round * (1 + round % 5) + k) % CLIENTS }
    chosen.each { |k| clients[k].exec('begin') }
    chosen.each do |k|
      result = clients[k].exec_prepared('own', [round])
      same(result.getvalue(0, 0), (round * 10 + k).to_s)
      servers[k] |= [result.getvalue(0, 1)]
      same(clients[k].describe_prepared('own').fname(0), "n#{k}")
    end
    chosen.each { |k| clients[k].exec('commit') }
  end
  next unless t.proxy?

  same(servers.flatten.uniq.size <= POOL_SIZE, true, 'as many servers as the pool has')
  same(servers.count { |pids| pids.size > 1 } >= CLIENTS / 2, true, 'clients change servers')
end

check 'threads: each write is seen by the next read, and standbys answer what is read for long' do |t|
  t.make('drop table if exists written; create table written (client int, n int)')
  threads = Array.new(CLIENTS) do |client|
    Thread.new do
      c = t.open
      rounds(100).times do |n|
        c.exec_params('insert into written values ($1, $2)', [client, n])
        same(one(c, 'select count(*) from written where client = $1', client), (n + 1).to_s, 'own writes')
      end
      enough = now + 1
      same(one(c, 'select count(*) from written where client = $1', client), rounds(100).to_s) while now < enough
    end
  end
  threads.each { |thread| thread.report_on_exception = false }.each(&:join)
end

check 'transactions, savepoints, and errors of their own class' do |t|
  t.make('drop table if exists kept; create table kept (n int constraint only_once primary key)')
  c, looker = t.open, t.direct
  c.transaction do
    c.exec('insert into kept values (1)')
    c.exec('savepoint a')
    same(fails('23505') { c.exec('insert into kept values (1)') }.class, PG::UniqueViolation)
    fails('25P02') { c.exec('select 1') }
    c.exec('rollback to a')
    same(one(looker, 'select count(*) from kept'), '0')
  end
  same(one(looker, 'select count(*) from kept'), '1')
  fails('22012') { c.transaction { c.exec('insert into kept values (2)') && c.exec('select 1/0') } }
  same(c.transaction_status, PG::PQTRANS_IDLE)
  same(one(c, 'select count(*) from kept'), '1')
  same(fails('23505') { c.exec('insert into kept values (1)') }.result.error_field(PG::PG_DIAG_CONSTRAINT_NAME), 'only_once')
  { '42P01' => 'select * from no_such_table', '42601' => 'selec', '22012' => 'select 1; select 1/0' }.each do |state, sql|
    fails(state) { c.exec(sql) }
    same(one(c, 'select 1'), '1')
  end
end

check 'pipelines, of which some fail' do |t|
  t.make('drop table if exists piped; create table piped (n int primary key)')
  c = t.open
  c.enter_pipeline_mode
  rounds(40).times do |round|
    c.send_query_params('insert into piped values ($1)', [round])
    c.send_query_params('select count(*) from piped', [])
    c.pipeline_sync
    c.send_query_params('select 1 / $1::int', [round % 2])
    c.send_query_params('select $1::int', [round])
    c.pipeline_sync
    c.get_last_result
    same(c.get_last_result.getvalue(0, 0), (round + 1).to_s)
    same(c.get_result.result_status, PG::PGRES_PIPELINE_SYNC)
    if round.even?
      fails('22012') { c.get_last_result }
      same(c.get_result.result_status, PG::PGRES_PIPELINE_ABORTED)
      c.get_result
    else
      same([c.get_last_result.getvalue(0, 0), c.get_last_result.getvalue(0, 0)], ['1', round.to_s])
    end
    same(c.get_result.result_status, PG::PGRES_PIPELINE_SYNC)
  end
  c.exit_pipeline_mode
  same(one(c, 'select 1'), '1')
end

check 'COPY in and out, one given up, rows one by one, and large objects' do |t|
  t.make('drop table if exists copied; create table copied (n int, t text)')
  c = t.open
  rows = Array.new(rounds(8000)) { |n| [n.to_s, "row #{n}\t\\"] }
  coder = PG::TextEncoder::CopyRow.new
  c.copy_data('copy copied from stdin', coder) { rows.each { |row| c.put_copy_data(row) } }
  found = []
  c.copy_data('copy (select * from copied order by n) to stdout', PG::TextDecoder::CopyRow.new) do
    while (row = c.get_copy_data) do found << row end
  end
  same(found == rows, true, 'the rows')
  begin
    c.copy_data('copy copied from stdin', coder) { c.put_copy_data(%w[1 x]) && raise(ArgumentError, 'given up') }
  rescue ArgumentError
    same(one(c, 'select count(*) from copied'), rows.size.to_s)
  end
  c.send_query('select generate_series(1, 3000)')
  c.set_single_row_mode
  same(c.get_result.stream_each_row.map { |(n)| n.to_i }, (1..3000).to_a)
  c.get_last_result
  c.transaction do
    oid = c.lo_creat
    lo = c.lo_open(oid, PG::INV_WRITE | PG::INV_READ)
    c.lo_write(lo, 'x' * 100_000)
    c.lo_lseek(lo, 99_990, PG::SEEK_SET)
    same(c.lo_read(lo, 100), 'x' * 10)
    c.lo_unlink(oid)
  end
end

check 'cancel is 57014, and the connection goes on' do |t|
  c = t.open
  3.times do
    c.send_query('select pg_sleep(30)')
    sleep 0.3
    c.cancel
    fails('57014') { c.get_last_result }
    20.times { |n| same(one(c, 'select $1::int', n), n.to_s) }
  end
end

check 'LISTEN and NOTIFY' do |t|
  listener, sender = t.open, t.open
  listener.exec('listen news')
  3.times do |n|
    sender.exec_params('select pg_notify($1, $2)', ['news', "n#{n}"])
    same(listener.wait_for_notify(10) { |channel, _pid, payload| same([channel, payload], ['news', "n#{n}"]) }, 'news')
  end
end

failures = 0
$stdout.sync = true
[['direct', DIRECT_PORT], ['proxy', ENV.fetch('DRIVERS_PROXY_PORT').to_i]].each do |label, port|
  target = Target.new(label, port, [])
  CHECKS.each do |name, only, run|
    next if (only && only != label) || !name.downcase.include?(ENV.fetch('DRIVERS_ONLY', '').downcase)

    began = now
    problem = nil
    begin
      Timeout.timeout(60) { run.call(target) }
    rescue StandardError => e
      warn e.full_message
      line = e.backtrace_locations&.reverse&.find { |at| at.label.include?('block') && at.path == __FILE__ && !at.label.include?('top') }&.lineno
      problem = ": #{e.class} #{e.message.gsub(/\s+/, ' ')[0, 300]} (line #{line || e.backtrace_locations&.first&.lineno})"
      failures += 1
    end
    target.opened.each { |connection| connection.close unless connection.finished? }
    target.opened.clear
    puts format('%s  %-14s %-6s  %s%s  (%.1f s)', problem ? 'FAIL' : 'ok  ', 'ruby', label, name, problem, now - began)
  end
end
puts 'done'
exit(failures.zero? ? 0 : 1)
