<?php
// PHP: PDO, which prepares by the protocol and deallocates by SQL, and the pgsql extension, which is libpq's functions.
declare(strict_types=1);

const CLIENTS = 8;
const POOL_SIZE = 3;

/** Where the checks run: the primary itself, or the proxy. */
final class Target
{
    public static string $label;
    public static int $port;

    public static function database(): string
    {
        return getenv('DRIVERS_DATABASE') . '_' . self::$label;
    }

    public static function isProxy(): bool
    {
        return self::$label === 'proxy';
    }
}

function rounds(int $full): int
{
    return getenv('DRIVERS_QUICK') ? max(1, intdiv($full, 4)) : $full;
}

function pdo(array $options = [], string $more = '', ?int $port = null): PDO
{
    $dsn = 'pgsql:host=127.0.0.1;port=' . ($port ?? Target::$port) . ';dbname=' . Target::database() . $more;
    return new PDO($dsn, 'postgres', getenv('DRIVERS_PASSWORD'), [PDO::ATTR_ERRMODE => PDO::ERRMODE_EXCEPTION] + $options);
}

function pg(string $more = ''): PgSql\Connection
{
    $connection = pg_connect('host=127.0.0.1 port=' . Target::$port . ' dbname=' . Target::database() . " user=postgres $more", PGSQL_CONNECT_FORCE_NEW);
    same($connection !== false, true, 'connects');
    return $connection;
}

function direct(): PDO
{
    return pdo(port: (int) getenv('DRIVERS_DIRECT_PORT'));
}

function one(PDO $pdo, string $sql, array $values = []): mixed
{
    $statement = $pdo->prepare($sql);
    $statement->execute($values);
    return $statement->fetchColumn();
}

/** Makes what every client sees on every node. */
function make(string $sql): void
{
    $pdo = direct();
    $pdo->exec("set client_min_messages = error; $sql");
    $lsn = one($pdo, 'select pg_current_wal_flush_lsn()');
    foreach (explode(',', getenv('DRIVERS_STANDBY_PORTS')) as $port) {
        $standby = pdo(port: (int) $port);
        for ($deadline = microtime(true) + 15; !one($standby, 'select pg_last_wal_replay_lsn() >= ?::pg_lsn', [$lsn]); usleep(10000)) {
            same(microtime(true) < $deadline, true, 'replay within 15 s');
        }
    }
}

function same(mixed $found, mixed $wanted, string $what = ''): void
{
    if ($found !== $wanted) {
        throw new Exception(substr("$what: " . var_export($found, true) . ', not ' . var_export($wanted, true), 0, 300));
    }
}

function fails(string $state, callable $work): void
{
    try {
        $work();
    } catch (PDOException $error) {
        same((string) $error->getCode(), $state, 'SQLSTATE of ' . $error->getMessage());
        return;
    }
    throw new Exception("no error, instead of $state");
}

/** Of the pgsql extension. */
function state(PgSql\Connection $connection, string $sql): string
{
    pg_send_query($connection, $sql);
    $state = '';
    while ($result = pg_get_result($connection)) {
        $state = pg_result_error_field($result, PGSQL_DIAG_SQLSTATE) ?: $state;
    }
    return $state;
}

$checks = [];

$checks['PDO connects, and its settings and options at login hold'] = function () {
    $pdo = pdo(more: ";application_name='drivers php';options='-c statement_timeout=250'");
    same(one($pdo, 'show application_name'), 'drivers php');
    fails('57014', fn () => one($pdo, 'select pg_sleep(10)'));
    same(one($pdo, 'show statement_timeout'), '250ms');
    fails('42P01', fn () => one($pdo, 'select * from no_such_table'));
};

$checks['logs in by SCRAM, with and without TLS'] = function () {
    if (!Target::isProxy()) {
        return;
    }
    foreach (['disable', 'require', 'verify-full;sslrootcert=' . getenv('DRIVERS_CERTIFICATE')] as $mode) {
        same(one(pdo([], ";sslmode=$mode", (int) getenv('DRIVERS_SECURE_PORT')), 'select 7'), 7);
    }
};

$checks['values of many types, prepared by the server, by the driver, and not at all'] = function () {
    foreach ([[], [PDO::ATTR_EMULATE_PREPARES => true], [PDO::PGSQL_ATTR_DISABLE_PREPARES => true]] as $options) {
        $pdo = pdo($options);
        foreach (['int' => -5, 'bigint' => PHP_INT_MAX, 'text' => "grüße, 世界 🐍 'quoted' ? :name \n", 'numeric' => '12345678901234567890.5', 'jsonb' => '{"a": [1, null]}', 'date' => '2024-02-29', 'int[]' => '{1,NULL,3}'] as $type => $value) {
            same(one($pdo, "select cast(? as $type)", [$value]), $value, $type);
            same(one($pdo, "select cast(? as $type)", [null]), null, $type);
        }
        $statement = $pdo->prepare('select :a::bytea, :b::bool, :c::int');
        $bytes = random_bytes(1000000);
        $statement->bindValue('a', $bytes, PDO::PARAM_LOB);
        $statement->bindValue('b', true, PDO::PARAM_BOOL);
        $statement->bindValue('c', 7, PDO::PARAM_INT);
        $statement->execute();
        [$a, $b, $c] = $statement->fetch(PDO::FETCH_NUM);
        same(md5(stream_get_contents($a)), md5($bytes));
        same([$b, $c], [true, 7]);
    }
};

$checks['prepared statements of many clients that change servers, and each is deallocated'] = function () {
    make('drop table if exists counted; create table counted (client int, n int)');
    $clients = array_map(fn () => pdo(), range(1, CLIENTS));
    $servers = array_fill(0, CLIENTS, []);
    for ($round = 0; $round < rounds(120); $round++) {
        $chosen = array_map(fn ($k) => ($round * (1 + $round % 5) + $k) % CLIENTS, range(0, POOL_SIZE - 1));
        foreach ($chosen as $c) {
            $clients[$c]->beginTransaction();
            // The driver's names are the same in each client, and their texts are not.
            same(one($clients[$c], "select ?::int + $c * 1000", [$round]), $c * 1000 + $round);
            $insert = $clients[$c]->prepare('insert into counted values (?, ?)');
            $insert->execute([$c, $round]);
            $insert->execute([$c, $round]);
            $servers[$c][one($clients[$c], 'select pg_backend_pid()')] = true;
        }
        foreach ($chosen as $c) {
            $clients[$c]->commit();
        }
    }
    same(one($clients[0], 'select count(*) from counted'), rounds(120) * POOL_SIZE * 2);
    if (Target::isProxy()) {
        same(count(array_unique(array_merge(...array_map('array_keys', $servers)))) <= POOL_SIZE, true, 'as many servers as the pool has');
        same(count(array_filter($servers, fn ($pids) => count($pids) > 1)) >= CLIENTS / 2, true, 'clients change servers');
    }
};

$checks['one statement, prepared once and run hundreds of times between transactions'] = function () {
    make('drop table if exists written; create table written (client int, n int)');
    $clients = array_map(fn () => pdo(), range(1, CLIENTS));
    $inserts = array_map(fn ($pdo) => $pdo->prepare('insert into written values (?, ?)'), $clients);
    $counts = array_map(fn ($pdo) => $pdo->prepare('select count(*) from written where client = ?'), $clients);
    for ($n = 0; $n < rounds(120); $n++) {
        foreach ($clients as $c => $pdo) {
            $inserts[$c]->execute([$c, $n]);
            $counts[$c]->execute([$c]);
            same($counts[$c]->fetchColumn(), $n + 1, 'own writes');
        }
    }
    // Longer than the proxy takes to notice that the standbys have caught up.
    for ($enough = microtime(true) + 1; microtime(true) < $enough;) {
        $counts[3]->execute([3]);
        same($counts[3]->fetchColumn(), rounds(120));
    }
};

$checks['transactions, savepoints, and what an error leaves'] = function () {
    make('drop table if exists kept; create table kept (n int primary key)');
    [$pdo, $looker] = [pdo(), direct()];
    $pdo->beginTransaction();
    $pdo->exec('insert into kept values (1)');
    $pdo->exec('savepoint a');
    fails('23505', fn () => $pdo->exec('insert into kept values (1)'));
    fails('25P02', fn () => $pdo->query('select 1'));
    $pdo->exec('rollback to savepoint a');
    same($pdo->inTransaction(), true);
    same(one($looker, 'select count(*) from kept'), 0);
    $pdo->commit();
    same(one($looker, 'select count(*) from kept'), 1);
    $pdo->beginTransaction();
    $insert = $pdo->prepare('insert into kept values (?)');
    $insert->execute([2]);
    fails('23505', fn () => $insert->execute([2]));
    // Here the driver deallocates in a block that has failed.
    unset($insert);
    $pdo->rollBack();
    same(one($pdo, 'select count(*) from kept'), 1);
    foreach (['42P01' => 'select * from no_such_table', '22012' => 'select 1/0', '42601' => 'selec'] as $state => $sql) {
        fails((string) $state, fn () => $pdo->query($sql));
        same(one($pdo, 'select 1'), 1);
    }
};

$checks['PDO: COPY, large objects, a scrolling cursor, LISTEN and NOTIFY'] = function () {
    make('drop table if exists copied; create table copied (n int, t text)');
    $pdo = pdo();
    $rows = array_map(fn ($n) => "$n\trow $n", range(1, rounds(4000)));
    same($pdo->pgsqlCopyFromArray('copied', $rows), true);
    same(array_map('trim', $pdo->pgsqlCopyToArray('copied')), $rows);
    same(one($pdo, 'select count(*) from copied'), count($rows));
    $pdo->beginTransaction();
    $oid = $pdo->pgsqlLOBCreate();
    $data = random_bytes(200000);
    $stream = $pdo->pgsqlLOBOpen($oid, 'w');
    fwrite($stream, $data);
    unset($stream);
    same(md5(stream_get_contents($pdo->pgsqlLOBOpen($oid, 'r'))), md5($data));
    $pdo->pgsqlLOBUnlink($oid);
    $statement = $pdo->prepare('select n from copied order by n', [PDO::ATTR_CURSOR => PDO::CURSOR_SCROLL]);
    $statement->execute();
    same($statement->fetchColumn(), 1);
    same($statement->fetch(PDO::FETCH_NUM, PDO::FETCH_ORI_LAST)[0], count($rows));
    same($statement->fetch(PDO::FETCH_NUM, PDO::FETCH_ORI_PRIOR)[0], count($rows) - 1);
    unset($statement);
    $pdo->commit();
    $pdo->exec('listen news');
    pdo()->exec("notify news, 'hello'");
    same($pdo->pgsqlGetNotify(PDO::FETCH_ASSOC, 10000)['payload'], 'hello');
};

$checks['pgsql: parameters, named statements, COPY, cancel, LISTEN and NOTIFY, SQLSTATEs'] = function () {
    make('drop table if exists by_pgsql; create table by_pgsql (n int, t text)');
    $connections = array_map(fn () => pg(), range(1, CLIENTS));
    foreach ($connections as $c => $connection) {
        pg_prepare($connection, 'own', "select $1::int * 10 + $c");
    }
    for ($n = 0; $n < rounds(60); $n++) {
        foreach ($connections as $c => $connection) {
            same(pg_fetch_result(pg_execute($connection, 'own', [$n]), 0, 0), (string) ($n * 10 + $c));
        }
    }
    $connection = $connections[0];
    same(pg_fetch_assoc(pg_query_params($connection, 'select $1::text as a, $2::int as b', ['grüße', null])), ['a' => 'grüße', 'b' => null]);
    same(pg_insert($connection, 'by_pgsql', ['n' => 1, 't' => "it's"]) !== false, true);
    same(pg_select($connection, 'by_pgsql', ['n' => 1]), [['n' => '1', 't' => "it's"]]);
    same(pg_copy_from($connection, 'by_pgsql', ["2\ttwo\n", "3\tthree\n"]), true);
    same(pg_copy_to($connection, 'by_pgsql'), ["1\tit's\n", "2\ttwo\n", "3\tthree\n"]);
    foreach (['42P01' => 'select * from no_such_table', '22012' => 'select 1; select 1/0', '42601' => 'selec', '' => 'select 1'] as $state => $sql) {
        same(state($connection, $sql), (string) $state);
    }
    for ($n = 0; $n < 3; $n++) {
        pg_send_query($connection, 'select pg_sleep(30)');
        usleep(300000);
        same(pg_cancel_query($connection), true);
        same(pg_fetch_result(pg_query($connection, 'select 1'), 0, 0), '1');
    }
    pg_query($connection, 'listen news');
    pg_query($connections[1], "notify news, 'hello'");
    for ($deadline = microtime(true) + 10; !($note = pg_get_notify($connection)); usleep(10000)) {
        same(microtime(true) < $deadline, true, 'notified within 10 s');
    }
    same($note['payload'], 'hello');
};

$checks['reconnects, by persistent connections too'] = function () {
    for ($n = 0; $n < rounds(60); $n++) {
        same(one(pdo(), 'select ?::int', [$n]), $n);
        // The driver doesn't notice that a server has ended the connection that it kept.
        same(one(pdo([PDO::ATTR_PERSISTENT => true]), 'select ?::int', [$n]), $n);
        if (Target::isProxy() && $n % 5 === 0) {
            direct()->exec('select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()');
        }
    }
};

$failures = 0;
foreach (['direct' => 'DRIVERS_DIRECT_PORT', 'proxy' => 'DRIVERS_PROXY_PORT'] as $label => $port) {
    [Target::$label, Target::$port] = [$label, (int) getenv($port)];
    foreach ($checks as $name => $run) {
        if (stripos($name, getenv('DRIVERS_ONLY') ?: '') === false && getenv('DRIVERS_ONLY')) {
            continue;
        }
        $began = microtime(true);
        $problem = '';
        try {
            $run();
        } catch (Throwable $error) {
            fwrite(STDERR, "$error\n");
            $own = array_filter($error->getTrace(), fn ($frame) => str_starts_with($frame['function'], '{closure}') || ($frame['file'] ?? '') === __FILE__);
            $problem = ': ' . preg_replace('/\s+/', ' ', $error->getMessage()) . ' (line ' . (reset($own)['line'] ?? $error->getLine()) . ')';
            $failures++;
        }
        printf("%s  %-14s %-6s  %s%s  (%.1f s)\n", $problem ? 'FAIL' : 'ok  ', 'php', $label, $name, $problem, microtime(true) - $began);
    }
}
echo "done\n";
exit($failures ? 1 : 0);
