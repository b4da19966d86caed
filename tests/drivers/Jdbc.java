// PostgreSQL's JDBC driver: named statements after five runs, binary where it pays, portals with a fetch size, batches.

import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.InputStream;
import java.io.StringReader;
import java.io.StringWriter;
import java.math.BigDecimal;
import java.nio.charset.StandardCharsets;
import java.sql.Array;
import java.sql.BatchUpdateException;
import java.sql.CallableStatement;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Savepoint;
import java.sql.Statement;
import java.sql.Types;
import java.time.LocalDate;
import java.time.OffsetDateTime;
import java.time.ZoneOffset;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.HashSet;
import java.util.List;
import java.util.Locale;
import java.util.Objects;
import java.util.Properties;
import java.util.Random;
import java.util.Set;
import java.util.UUID;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import org.postgresql.PGConnection;
import org.postgresql.PGNotification;
import org.postgresql.PGStatement;
import org.postgresql.copy.CopyIn;
import org.postgresql.copy.CopyManager;
import org.postgresql.largeobject.LargeObject;
import org.postgresql.largeobject.LargeObjectManager;
import org.postgresql.util.PGobject;
import org.postgresql.util.PSQLException;

public final class Jdbc {
    static final boolean QUICK = !System.getenv().getOrDefault("DRIVERS_QUICK", "").isEmpty();
    static final String ONLY = System.getenv().getOrDefault("DRIVERS_ONLY", "").toLowerCase(Locale.ROOT);
    static final String DATABASE = System.getenv("DRIVERS_DATABASE");
    static final int DIRECT_PORT = Integer.parseInt(System.getenv("DRIVERS_DIRECT_PORT"));
    static final int PROXY_PORT = Integer.parseInt(System.getenv("DRIVERS_PROXY_PORT"));
    static final int SECONDS_PER_CHECK = 60;
    static final int POOL_SIZE = 3;
    static final int CLIENTS = 8;

    /** How often to repeat something: a quarter of it in a quick run. */
    static int rounds(int full) {
        return QUICK ? Math.max(1, full / 4) : full;
    }

    interface Body {
        void run(Target target) throws Exception;
    }

    interface Work {
        void run() throws Exception;
    }

    static final class Check {
        final String name;
        final Body body;

        Check(String name, Body body) {
            this.name = name;
            this.body = body;
        }
    }

    static final List<Check> CHECKS = new ArrayList<>();

    static void check(String name, Body body) {
        CHECKS.add(new Check(name, body));
    }

    /** Where a check runs: the primary itself, or the proxy in front of the cluster. */
    static final class Target {
        final String label;
        final int port;
        final String database;
        final List<Connection> opened = Collections.synchronizedList(new ArrayList<>());

        Target(String label, int port) {
            this.label = label;
            this.port = port;
            this.database = DATABASE + "_" + label;
        }

        boolean isProxy() {
            return label.equals("proxy");
        }

        /** A connection of the check's own; options are names and values in turn. */
        Connection open(String... options) throws SQLException {
            return openAt(port, options);
        }

        Connection openAt(int where, String... options) throws SQLException {
            Properties properties = new Properties();
            properties.setProperty("user", "postgres");
            properties.setProperty("socketTimeout", String.valueOf(SECONDS_PER_CHECK));
            String to = database;
            for (int i = 0; i < options.length; i += 2) {
                if (options[i].equals("database")) {
                    to = options[i + 1];
                } else {
                    properties.setProperty(options[i], options[i + 1]);
                }
            }
            Connection connection = DriverManager.getConnection("jdbc:postgresql://127.0.0.1:" + where + "/" + to, properties);
            opened.add(connection);
            return connection;
        }

        /** A connection that is never through the proxy, to look on. */
        Connection direct() throws SQLException {
            return openAt(DIRECT_PORT);
        }

        /** Waits until the standbys have replayed all that is committed. */
        void caughtUp() throws Exception {
            String lsn;
            try (Connection looker = direct()) {
                lsn = text(looker, "select pg_current_wal_flush_lsn()::text");
            }
            for (String where : System.getenv("DRIVERS_STANDBY_PORTS").split(",")) {
                try (Connection standby = openAt(Integer.parseInt(where))) {
                    until("replay", () -> text(standby, "select pg_last_wal_replay_lsn() >= '" + lsn + "'").equals("t"));
                }
            }
        }

        /** Makes what every client sees on every node. */
        void make(String sql) throws Exception {
            try (Connection looker = direct()) {
                run(looker, "set client_min_messages = error; " + sql);
            }
            caughtUp();
        }

        void table(String name, String columns) throws Exception {
            make("drop table if exists " + name + "; create table " + name + " (" + columns + ")");
        }

        void close() {
            for (Connection connection : opened) {
                try {
                    connection.abort(Runnable::run);
                } catch (SQLException ignored) {
                    // It is gone then.
                }
            }
            opened.clear();
        }
    }

    static void until(String what, Callable<Boolean> isSo) throws Exception {
        long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(15);
        while (!isSo.call()) {
            if (System.nanoTime() > deadline) {
                throw new AssertionError("not within 15 s: " + what);
            }
            Thread.sleep(10);
        }
    }

    static void run(Connection connection, String sql) throws SQLException {
        try (Statement statement = connection.createStatement()) {
            statement.execute(sql);
        }
    }

    /** The first column of the first row. */
    static String text(Connection connection, String sql) throws SQLException {
        try (Statement statement = connection.createStatement(); ResultSet rows = statement.executeQuery(sql)) {
            rows.next();
            return rows.getString(1);
        }
    }

    static int number(Connection connection, String sql, Object... parameters) throws SQLException {
        try (PreparedStatement statement = connection.prepareStatement(sql)) {
            return number(statement, parameters);
        }
    }

    static int number(PreparedStatement statement, Object... parameters) throws SQLException {
        for (int i = 0; i < parameters.length; i++) {
            statement.setObject(i + 1, parameters[i]);
        }
        try (ResultSet rows = statement.executeQuery()) {
            rows.next();
            return rows.getInt(1);
        }
    }

    static void equal(Object found, Object wanted, String... what) {
        if (!Objects.deepEquals(found, wanted)) {
            String prefix = what.length > 0 ? what[0] + ": " : "";
            throw new AssertionError(prefix + found + ", not " + wanted);
        }
    }

    static SQLException fails(String sqlState, Work work) throws Exception {
        try {
            work.run();
        } catch (SQLException error) {
            equal(error.getSQLState(), sqlState, "SQLSTATE of " + error.getMessage());
            return error;
        }
        throw new AssertionError("no error, instead of " + sqlState);
    }

    /** Runs work side by side, and throws what the first of it threw. */
    static void together(List<Work> all) throws Exception {
        ExecutorService threads = Executors.newFixedThreadPool(all.size());
        try {
            List<Future<?>> running = new ArrayList<>();
            for (Work work : all) {
                running.add(threads.submit(() -> {
                    work.run();
                    return null;
                }));
            }
            for (Future<?> one : running) {
                try {
                    one.get(SECONDS_PER_CHECK, TimeUnit.SECONDS);
                } catch (ExecutionException error) {
                    if (error.getCause() instanceof Exception) {
                        throw (Exception) error.getCause();
                    }
                    throw new AssertionError(error.getCause());
                }
            }
        } finally {
            threads.shutdownNow();
        }
    }

    // ---- connecting

    static void connecting() {
        check("connects, and the server looks like a primary", target -> {
            Connection connection = target.open("ApplicationName", "drivers jdbc");
            equal(text(connection, "show application_name"), "drivers jdbc");
            equal(text(connection, "select pg_is_in_recovery()"), "f");
            equal(connection.getMetaData().getDatabaseProductVersion(), target.direct().getMetaData().getDatabaseProductVersion());
            equal(connection.isValid(5), true);
            for (String wanted : new String[] {"primary", "preferSecondary", "any", "preferPrimary"}) {
                equal(number(target.open("targetServerType", wanted), "select 1"), 1);
            }
        });
        check("options at login set search_path and statement_timeout", target -> {
            target.make("drop schema if exists elsewhere cascade; create schema elsewhere; create table elsewhere.found as select 42 as n");
            Connection connection = target.open("currentSchema", "elsewhere", "options", "-c statement_timeout=250");
            Connection other = target.open();
            for (int round = 0; round < 8; round++) {
                equal(number(connection, "select n from found"), 42);
                equal(text(connection, "show statement_timeout"), "250ms");
                equal(connection.getSchema(), "elsewhere");
                fails("42P01", () -> number(other, "select n from found"));
            }
            fails("57014", () -> run(connection, "select pg_sleep(10)"));
            equal(number(connection, "select n from found"), 42);
            connection.setSchema("public");
            fails("42P01", () -> number(connection, "select n from found"));
        });
        check("refused logins say why", target -> {
            fails("3D000", () -> target.open("database", "no_such_database"));
            fails("42704", () -> target.open("options", "-c no_such_setting=1"));
        });
        check("logs in by SCRAM, with and without TLS", target -> {
            if (!target.isProxy()) {
                return;
            }
            int port = Integer.parseInt(System.getenv("DRIVERS_SECURE_PORT"));
            String password = System.getenv("DRIVERS_PASSWORD");
            String certificate = System.getenv("DRIVERS_CERTIFICATE");
            for (String mode : new String[] {"disable", "require", "verify-full"}) {
                Connection connection = target.openAt(port, "password", password, "sslmode", mode, "sslrootcert", certificate);
                byte[] data = new byte[3000000];
                new Random(3).nextBytes(data);
                try (PreparedStatement echo = connection.prepareStatement("select ?::bytea")) {
                    echo.setBytes(1, data);
                    ResultSet rows = echo.executeQuery();
                    rows.next();
                    equal(Arrays.equals(rows.getBytes(1), data), true);
                }
                try (Statement statement = connection.createStatement()) {
                    statement.setQueryTimeout(1);
                    fails("57014", () -> statement.execute("select pg_sleep(30)"));
                }
                equal(number(connection, "select 1"), 1);
                fails("28P01", () -> target.openAt(port, "password", "wrong", "sslmode", mode, "sslrootcert", certificate));
            }
        });
        check("reconnects, time after time", target -> {
            for (int n = 0; n < rounds(60); n++) {
                try (Connection connection = target.open()) {
                    equal(number(connection, "select ?::int", n), n);
                }
            }
        });
        check("a connection that is lost is an error, and the next one works", target -> {
            Connection looker = target.direct();
            Connection connection = target.open();
            connection.setAutoCommit(false);
            int pid = number(connection, "select pg_backend_pid()");
            run(looker, "select pg_terminate_backend(" + pid + ")");
            until("it is gone", () -> number(looker, "select count(*) from pg_stat_activity where pid = ?", pid) == 0);
            fails(target.isProxy() ? "40001" : "57P01", () -> number(connection, "select 1"));
            if (target.isProxy()) {
                connection.rollback();
                equal(number(connection, "select 1"), 1);
            } else {
                equal(connection.isValid(1), false);
            }
            equal(number(target.open(), "select 1"), 1);
        });
        check("each of the driver's query modes", target -> {
            for (String mode : new String[] {"simple", "extended", "extendedForPrepared", "extendedCacheEverything"}) {
                Connection connection = target.open("preferQueryMode", mode);
                for (int n = 0; n < rounds(40); n++) {
                    equal(number(connection, "select ?::int + 1", n), n + 1, mode);
                    equal(text(connection, "select 'x'"), "x", mode);
                }
                fails("22012", () -> number(connection, "select 1 / ?::int", 0));
                equal(number(connection, "select 1"), 1);
            }
        });
        check("metadata", target -> {
            target.table("described", "id int primary key, t text not null");
            Connection connection = target.open();
            for (int round = 0; round < 3; round++) {
                List<String> columns = new ArrayList<>();
                try (ResultSet rows = connection.getMetaData().getColumns(null, "public", "described", null)) {
                    while (rows.next()) {
                        columns.add(rows.getString("COLUMN_NAME"));
                    }
                }
                equal(columns, Arrays.asList("id", "t"));
                try (ResultSet rows = connection.getMetaData().getPrimaryKeys(null, "public", "described")) {
                    equal(rows.next(), true);
                }
                try (PreparedStatement statement = connection.prepareStatement("select * from described where id = ?")) {
                    equal(statement.getMetaData().getColumnCount(), 2);
                    equal(statement.getParameterMetaData().getParameterType(1), Types.INTEGER);
                }
            }
        });
    }

    // ---- queries and values

    static void values() {
        check("simple queries, several statements in one, and none", target -> {
            Connection connection = target.open();
            try (Statement statement = connection.createStatement()) {
                equal(statement.execute("select 1; select 2; select 3"), true);
                for (int n = 1; n <= 3; n++) {
                    ResultSet rows = statement.getResultSet();
                    rows.next();
                    equal(rows.getInt(1), n);
                    equal(statement.getMoreResults(), n < 3);
                }
                equal(statement.execute(""), false);
                equal(statement.execute("-- nothing"), false);
            }
            equal(number(connection, "select count(*) from (select generate_series(1, 20000)) s"), 20000);
        });
        // The first runs are in text; from the prepareThreshold on the driver takes binary.
        for (String threshold : new String[] {"5", "-1", "0"}) {
            check("parameters and results of all types, prepareThreshold=" + threshold, target -> {
                Connection connection = target.open("prepareThreshold", threshold);
                String sql = "select ?::smallint, ?::int, ?::bigint, ?::text, ?::bytea, ?::numeric, ?::float8, ?::boolean, ?::date,"
                    + " ?::timestamptz, ?::uuid, ?::int[], ?::text[], ?::json, ?::jsonb, ?::text";
                OffsetDateTime moment = OffsetDateTime.of(2024, 2, 29, 23, 59, 59, 123456000, ZoneOffset.UTC);
                byte[] bytes = new byte[256];
                for (int i = 0; i < 256; i++) {
                    bytes[i] = (byte) i;
                }
                UUID uuid = UUID.fromString("12345678-1234-5678-1234-567812345678");
                String strange = "grüße, 世界 \ud83d\udc0d 'quoted' \\ \n\t";
                try (PreparedStatement statement = connection.prepareStatement(sql)) {
                    for (int round = 0; round < 8; round++) {
                        statement.setShort(1, Short.MIN_VALUE);
                        statement.setInt(2, Integer.MAX_VALUE);
                        statement.setLong(3, Long.MIN_VALUE);
                        statement.setString(4, strange);
                        statement.setBytes(5, bytes);
                        statement.setBigDecimal(6, new BigDecimal("-12345678901234567890.123456789"));
                        statement.setDouble(7, 1e-300);
                        statement.setBoolean(8, true);
                        statement.setObject(9, LocalDate.of(1970, 1, 1));
                        statement.setObject(10, moment);
                        statement.setObject(11, uuid);
                        statement.setArray(12, connection.createArrayOf("int4", new Integer[] {1, null, -3}));
                        statement.setArray(13, connection.createArrayOf("text", new String[] {"a", "b,c", "\"", null, ""}));
                        PGobject json = new PGobject();
                        json.setType("json");
                        json.setValue("{\"a\": [1, null]}");
                        statement.setObject(14, json);
                        statement.setString(15, "{\"a\": [1, null]}");
                        statement.setNull(16, Types.VARCHAR);
                        try (ResultSet rows = statement.executeQuery()) {
                            equal(rows.next(), true);
                            equal(rows.getShort(1), Short.MIN_VALUE);
                            equal(rows.getInt(2), Integer.MAX_VALUE);
                            equal(rows.getLong(3), Long.MIN_VALUE);
                            equal(rows.getString(4), strange);
                            equal(rows.getBytes(5), bytes);
                            equal(rows.getBigDecimal(6), new BigDecimal("-12345678901234567890.123456789"));
                            equal(rows.getDouble(7), 1e-300);
                            equal(rows.getBoolean(8), true);
                            equal(rows.getObject(9, LocalDate.class), LocalDate.of(1970, 1, 1));
                            equal(rows.getObject(10, OffsetDateTime.class).toInstant(), moment.toInstant());
                            equal(rows.getObject(11), uuid);
                            equal(rows.getArray(12).getArray(), new Integer[] {1, null, -3});
                            equal(rows.getArray(13).getArray(), new String[] {"a", "b,c", "\"", null, ""});
                            equal(rows.getString(14), "{\"a\": [1, null]}");
                            equal(rows.getString(15), "{\"a\": [1, null]}");
                            equal(rows.getString(16), null);
                        }
                    }
                }
            });
        }
        check("a 10 MB bytea goes both ways, in text and binary", target -> {
            target.table("large", "id int, b bytea, t text");
            byte[] data = new byte[10 * 1024 * 1024];
            new Random(1).nextBytes(data);
            char[] long_ = new char[data.length];
            Arrays.fill(long_, 'x');
            for (String binary : new String[] {"true", "false"}) {
                Connection connection = target.open("binaryTransfer", binary, "prepareThreshold", "-1");
                run(connection, "truncate large");
                try (PreparedStatement insert = connection.prepareStatement("insert into large values (1, ?, ?)")) {
                    insert.setBytes(1, data);
                    insert.setString(2, new String(long_));
                    insert.executeUpdate();
                }
                try (PreparedStatement select = connection.prepareStatement("select b, t from large");
                        ResultSet rows = select.executeQuery()) {
                    rows.next();
                    equal(Arrays.equals(rows.getBytes(1), data), true);
                    equal(rows.getString(2).length(), data.length);
                }
            }
            Connection connection = target.open();
            try (PreparedStatement streamed = connection.prepareStatement("select length(?::bytea)")) {
                streamed.setBinaryStream(1, new ByteArrayInputStream(data), data.length);
                try (ResultSet rows = streamed.executeQuery()) {
                    rows.next();
                    equal(rows.getInt(1), data.length);
                }
            }
        });
        check("generated keys, and a function that is called", target -> {
            target.table("keyed", "id int generated always as identity, t text");
            target.make("create or replace function doubled(n int) returns int language sql immutable as 'select n * 2'");
            Connection connection = target.open();
            for (int n = 1; n <= rounds(20); n++) {
                try (PreparedStatement insert =
                        connection.prepareStatement("insert into keyed (t) values (?)", Statement.RETURN_GENERATED_KEYS)) {
                    insert.setString(1, "t" + n);
                    equal(insert.executeUpdate(), 1);
                    ResultSet keys = insert.getGeneratedKeys();
                    keys.next();
                    equal(keys.getInt("id"), n);
                }
                try (CallableStatement call = connection.prepareCall("{? = call doubled(?)}")) {
                    call.registerOutParameter(1, Types.INTEGER);
                    call.setInt(2, n);
                    call.execute();
                    equal(call.getInt(1), n * 2);
                }
            }
        });
        check("an updatable result set", target -> {
            target.table("updatable", "id int primary key, t text");
            Connection connection = target.open();
            run(connection, "insert into updatable values (1, 'a'), (2, 'b')");
            try (Statement statement = connection.createStatement(ResultSet.TYPE_SCROLL_INSENSITIVE, ResultSet.CONCUR_UPDATABLE);
                    ResultSet rows = statement.executeQuery("select id, t from updatable order by id")) {
                rows.absolute(2);
                rows.updateString("t", "changed");
                rows.updateRow();
            }
            equal(text(connection, "select t from updatable where id = 2"), "changed");
        });
    }

    // ---- prepared statements

    static void statements() {
        check("named statements run hundreds of times by clients that change servers", target -> {
            target.table("counted", "id int primary key, n int");
            target.make("insert into counted select n, 0 from generate_series(0, " + (CLIENTS - 1) + ") n");
            List<Connection> connections = new ArrayList<>();
            List<PreparedStatement[]> own = new ArrayList<>();
            List<Set<Integer>> servers = new ArrayList<>();
            int[] updates = new int[CLIENTS];
            for (int client = 0; client < CLIENTS; client++) {
                Connection connection = target.open("prepareThreshold", "1");
                connection.setAutoCommit(false);
                connections.add(connection);
                servers.add(new HashSet<>());
                own.add(new PreparedStatement[] {
                    connection.prepareStatement("select ?::int + ?::int"),
                    connection.prepareStatement("select ?::int * 2 as c" + client),
                    connection.prepareStatement("update counted set n = n + 1 where id = ? returning n"),
                    connection.prepareStatement("select pg_backend_pid()"),
                });
            }
            for (int round = 0; round < rounds(60); round++) {
                Set<Integer> chosen = new HashSet<>();
                for (int k = 0; k < POOL_SIZE; k++) {
                    chosen.add((round * POOL_SIZE + k * (1 + round % 3)) % CLIENTS);
                }
                for (int client : chosen) {
                    equal(number(own.get(client)[0], round, client), round + client);
                    equal(number(own.get(client)[1], client), client * 2);
                    updates[client]++;
                    equal(number(own.get(client)[2], client), updates[client]);
                    servers.get(client).add(number(own.get(client)[3]));
                }
                for (int client : chosen) {
                    connections.get(client).commit();
                }
            }
            if (target.isProxy()) {
                Set<Integer> all = new HashSet<>();
                servers.forEach(all::addAll);
                long changed = servers.stream().filter(pids -> pids.size() > 1).count();
                equal(changed >= CLIENTS / 2, true, "clients change servers: " + servers);
                equal(all.size() <= POOL_SIZE, true, "no more servers than the pool has: " + servers);
            }
        });
        check("named statements side by side from threads, in autocommit", target -> {
            target.table("side_by_side", "client int, n int");
            List<Work> all = new ArrayList<>();
            for (int client = 0; client < CLIENTS; client++) {
                Connection connection = target.open();
                int own = client;
                all.add(() -> {
                    try (PreparedStatement insert = connection.prepareStatement("insert into side_by_side values (?, ?)");
                            PreparedStatement count = connection.prepareStatement("select count(*) from side_by_side where client = ?");
                            PreparedStatement echo = connection.prepareStatement("select ?::int")) {
                        for (int n = 0; n < rounds(120); n++) {
                            insert.setInt(1, own);
                            insert.setInt(2, n);
                            insert.executeUpdate();
                            equal(number(count, own), n + 1, "own writes of client " + own);
                            equal(number(echo, n), n);
                        }
                    }
                });
            }
            together(all);
        });
        check("a small cache of statements closes them all the time", target -> {
            Connection connection = target.open("prepareThreshold", "1", "preparedStatementCacheQueries", "3");
            for (int n = 0; n < rounds(200); n++) {
                equal(number(connection, "select ?::int + " + n % 11, n), n + n % 11);
            }
        });
        check("a statement whose table has changed: the driver prepares it again, or the server's 0A000", target -> {
            target.table("reshaped", "a int");
            Connection connection = target.open("prepareThreshold", "1");
            Connection other = target.open();
            run(connection, "insert into reshaped values (7)");
            try (PreparedStatement star = connection.prepareStatement("select * from reshaped")) {
                for (int round = 0; round < 3; round++) {
                    equal(number(star), 7);
                }
                target.caughtUp();
                equal(number(star), 7);
                run(other, "alter table reshaped alter a type bigint, add b int");
                target.caughtUp();
                // Where autosave is off the driver only heals itself outside a transaction, by preparing again.
                for (int round = 0; round < 5; round++) {
                    try (ResultSet rows = star.executeQuery()) {
                        equal(rows.getMetaData().getColumnCount(), 2);
                        rows.next();
                        equal(rows.getLong(1), 7L);
                    } catch (SQLException error) {
                        equal(error.getSQLState(), "0A000");
                    }
                }
            }
        });
        check("DISCARD ALL, DEALLOCATE ALL and SET search_path have the driver prepare again", target -> {
            List<Connection> connections = Arrays.asList(target.open("prepareThreshold", "1"), target.open("prepareThreshold", "1"));
            for (int round = 0; round < rounds(20); round++) {
                for (Connection connection : connections) {
                    try (PreparedStatement statement = connection.prepareStatement("select ?::int + 5")) {
                        for (int n = 0; n < 3; n++) {
                            equal(number(statement, n), n + 5);
                        }
                        run(connection, new String[] {"discard all", "deallocate all", "set search_path = public"}[round % 3]);
                        for (int n = 0; n < 3; n++) {
                            equal(number(statement, n), n + 5);
                        }
                    }
                }
            }
        });
    }

    // ---- transactions

    static void transactions() {
        check("a write is seen by the next read", target -> {
            target.table("own_writes", "n int");
            Connection connection = target.open();
            try (PreparedStatement insert = connection.prepareStatement("insert into own_writes values (?)");
                    PreparedStatement count = connection.prepareStatement("select count(*) from own_writes")) {
                for (int n = 0; n < rounds(200); n++) {
                    insert.setInt(1, n);
                    equal(insert.executeUpdate(), 1);
                    equal(number(count), n + 1);
                }
            }
        });
        check("commit, rollback, savepoints", target -> {
            target.table("kept", "n int");
            Connection connection = target.open();
            Connection looker = target.direct();
            connection.setAutoCommit(false);
            run(connection, "insert into kept values (1)");
            equal(number(looker, "select count(*) from kept"), 0);
            connection.commit();
            equal(number(looker, "select count(*) from kept"), 1);
            run(connection, "insert into kept values (2)");
            Savepoint point = connection.setSavepoint();
            run(connection, "insert into kept values (3)");
            fails("22012", () -> number(connection, "select 1 / ?::int", 0));
            fails("25P02", () -> number(connection, "select 1"));
            connection.rollback(point);
            Savepoint named = connection.setSavepoint("named");
            run(connection, "insert into kept values (4)");
            connection.releaseSavepoint(named);
            connection.commit();
            run(connection, "insert into kept values (5)");
            connection.rollback();
            equal(number(connection, "select sum(n) from kept"), 7);
            connection.commit();
            connection.setAutoCommit(true);
            equal(number(connection, "select count(*) from kept"), 3);
        });
        check("autosave=always heals a failed statement inside a transaction", target -> {
            target.table("healed", "n int primary key");
            Connection connection = target.open("autosave", "always");
            connection.setAutoCommit(false);
            for (int n = 0; n < rounds(20); n++) {
                int own = n;
                run(connection, "insert into healed values (" + n + ")");
                fails("23505", () -> run(connection, "insert into healed values (" + own + ")"));
                equal(number(connection, "select count(*) from healed"), n + 1);
            }
            connection.commit();
            equal(number(connection, "select count(*) from healed"), rounds(20));
        });
        check("errors have their SQLSTATE, and the connection goes on", target -> {
            target.table("unique_numbers", "n int constraint unique_numbers_key primary key");
            Connection connection = target.open();
            run(connection, "insert into unique_numbers values (1)");
            String[][] wrong = {
                {"23505", "insert into unique_numbers values (1)"}, {"42P01", "select * from no_such_table"},
                {"22012", "select 1/0"}, {"42601", "selec 1"}, {"42883", "select no_such_function()"}, {"22P02", "select 'x'::int"},
            };
            for (String[] one : wrong) {
                fails(one[0], () -> run(connection, one[1]));
                for (int round = 0; round < 7; round++) {
                    fails(one[0], () -> {
                        try (PreparedStatement statement = connection.prepareStatement(one[1])) {
                            statement.execute();
                        }
                    });
                }
                equal(number(connection, "select count(*) from unique_numbers"), 1);
            }
            PSQLException error = (PSQLException) fails("23505", () -> run(connection, "insert into unique_numbers values (1)"));
            equal(error.getServerErrorMessage().getConstraint(), "unique_numbers_key");
        });
        check("setReadOnly refuses writes with 25006, and reads go on", target -> {
            target.table("untouched", "n int");
            for (String mode : new String[] {"transaction", "always", "ignore"}) {
                Connection connection = target.open("readOnlyMode", mode);
                connection.setAutoCommit(false);
                connection.setReadOnly(true);
                for (int round = 0; round < rounds(12); round++) {
                    equal(number(connection, "select count(*) from untouched"), 0);
                    if (!mode.equals("ignore")) {
                        equal(text(connection, "show transaction_read_only"), "on");
                        fails("25006", () -> run(connection, "insert into untouched values (1)"));
                    }
                    connection.rollback();
                }
                connection.setReadOnly(false);
                run(connection, "insert into untouched values (1)");
                connection.rollback();
            }
        });
        check("setReadOnly with autocommit and readOnlyMode=always, for more clients than the pool has", target -> {
            List<Connection> connections = new ArrayList<>();
            for (int client = 0; client < CLIENTS; client++) {
                Connection connection = target.open("readOnlyMode", "always");
                connection.setReadOnly(client % 2 == 1);
                connections.add(connection);
            }
            for (int round = 0; round < rounds(12); round++) {
                for (int client = 0; client < CLIENTS; client++) {
                    equal(text(connections.get(client), "show transaction_read_only"), client % 2 == 1 ? "on" : "off");
                }
            }
        });
        check("setTransactionIsolation, for more clients than the pool has", target -> {
            List<Connection> connections = new ArrayList<>();
            int[] levels = {
                Connection.TRANSACTION_READ_COMMITTED, Connection.TRANSACTION_REPEATABLE_READ, Connection.TRANSACTION_SERIALIZABLE,
            };
            String[] names = {"read committed", "repeatable read", "serializable"};
            for (int client = 0; client < CLIENTS; client++) {
                Connection connection = target.open();
                connection.setTransactionIsolation(levels[client % 3]);
                connection.setAutoCommit(client % 2 == 0);
                connections.add(connection);
            }
            for (int round = 0; round < rounds(12); round++) {
                for (int client = 0; client < CLIENTS; client++) {
                    Connection connection = connections.get(client);
                    equal(text(connection, "show transaction_isolation"), names[client % 3]);
                    equal(connection.getTransactionIsolation(), levels[client % 3]);
                    if (!connection.getAutoCommit()) {
                        connection.commit();
                    }
                }
            }
        });
        check("a serialization failure is 40001", target -> {
            target.table("contended", "n int");
            Connection first = target.open();
            Connection second = target.open();
            run(first, "insert into contended values (0)");
            first.setTransactionIsolation(Connection.TRANSACTION_REPEATABLE_READ);
            first.setAutoCommit(false);
            equal(number(first, "select n from contended"), 0);
            run(second, "update contended set n = n + 1");
            fails("40001", () -> run(first, "update contended set n = n + 1"));
            first.rollback();
            equal(number(first, "select n from contended"), 1);
        });
    }

    // ---- COPY, portals, batches, large objects

    static void streams() {
        check("COPY in and out", target -> {
            target.table("copied", "n int, t text");
            Connection connection = target.open();
            CopyManager copies = ((PGConnection) connection).getCopyAPI();
            int count = rounds(20000);
            StringBuilder lines = new StringBuilder();
            for (int n = 0; n < count; n++) {
                lines.append(n).append("\trow ").append(n).append('\n');
            }
            equal(copies.copyIn("copy copied from stdin", new StringReader(lines.toString())), (long) count);
            StringWriter out = new StringWriter();
            equal(copies.copyOut("copy (select * from copied order by n) to stdout", out), (long) count);
            equal(out.toString().equals(lines.toString()), true);
            for (String format : new String[] {"csv", "binary"}) {
                ByteArrayOutputStream bytes = new ByteArrayOutputStream();
                copies.copyOut("copy copied to stdout (format " + format + ")", bytes);
                run(connection, "truncate copied");
                InputStream back = new ByteArrayInputStream(bytes.toByteArray());
                equal(copies.copyIn("copy copied from stdin (format " + format + ")", back), (long) count);
                equal(number(connection, "select count(distinct n) from copied"), count);
            }
            connection.setAutoCommit(false);
            copies.copyIn("copy copied from stdin", new StringReader("1\tx\n"));
            connection.rollback();
            equal(number(connection, "select count(*) from copied"), count);
        });
        check("COPY that fails half-way, by the client, the data or the server", target -> {
            target.table("copied_badly", "n int primary key");
            Connection connection = target.open();
            CopyManager copies = ((PGConnection) connection).getCopyAPI();
            CopyIn given = copies.copyIn("copy copied_badly from stdin");
            byte[] line = "1\n".getBytes(StandardCharsets.UTF_8);
            given.writeToCopy(line, 0, line.length);
            given.cancelCopy();
            equal(number(connection, "select count(*) from copied_badly"), 0);
            StringBuilder bad = new StringBuilder("no number\n");
            for (int n = 0; n < 500000; n++) {
                bad.append(n).append('\n');
            }
            fails("22P02", () -> copies.copyIn("copy copied_badly from stdin", new StringReader(bad.toString())));
            fails("23505", () -> copies.copyIn("copy copied_badly from stdin", new StringReader("1\n1\n")));
            fails("42P01", () -> copies.copyIn("copy no_such_table from stdin", new StringReader("1\n")));
            equal(number(connection, "select count(*) from copied_badly"), 0);
            fails("22012", () -> copies.copyOut(
                "copy (select 1 / (n - 900) from generate_series(1, 1000) n) to stdout", new StringWriter()));
            equal(number(connection, "select 1"), 1);
        });
        check("a fetch size reads a portal in pieces inside a transaction, two in turns", target -> {
            target.table("scrolled", "n int");
            Connection connection = target.open();
            run(connection, "insert into scrolled select generate_series(1, 5000)");
            target.caughtUp();
            for (boolean readOnly : new boolean[] {false, true}) {
                connection.setReadOnly(readOnly);
                connection.setAutoCommit(false);
                for (int round = 0; round < 7; round++) {
                    try (PreparedStatement first = connection.prepareStatement("select n from scrolled where n > ? order by n");
                            Statement second = connection.createStatement()) {
                        first.setFetchSize(70);
                        first.setInt(1, 0);
                        second.setFetchSize(90);
                        ResultSet rows = first.executeQuery();
                        ResultSet others = second.executeQuery("select -n from scrolled order by n");
                        for (int n = 1; n <= 5000; n++) {
                            equal(rows.next() && others.next(), true);
                            equal(rows.getInt(1) + others.getInt(1), 0);
                            equal(rows.getInt(1), n);
                        }
                        equal(rows.next() || others.next(), false);
                    }
                    // Left half-way.
                    try (Statement left = connection.createStatement()) {
                        left.setFetchSize(10);
                        left.executeQuery("select n from scrolled").next();
                    }
                    equal(number(connection, "select 1"), 1);
                    connection.commit();
                }
                connection.setAutoCommit(true);
            }
        });
        check("setMaxRows, outside a transaction too", target -> {
            Connection connection = target.open();
            for (int round = 0; round < 8; round++) {
                try (PreparedStatement statement = connection.prepareStatement("select generate_series(1, 100)")) {
                    statement.setMaxRows(7);
                    statement.setFetchSize(3);
                    int count = 0;
                    try (ResultSet rows = statement.executeQuery()) {
                        while (rows.next()) {
                            count++;
                        }
                    }
                    equal(count, 7);
                }
            }
        });
        for (String rewrite : new String[] {"false", "true"}) {
            check("batches, reWriteBatchedInserts=" + rewrite, target -> {
                target.table("batched", "n int primary key, t text");
                Connection connection = target.open("reWriteBatchedInserts", rewrite);
                for (boolean autocommit : new boolean[] {true, false}) {
                    run(connection, "truncate batched");
                    connection.setAutoCommit(autocommit);
                    int count = rounds(4000);
                    try (PreparedStatement insert = connection.prepareStatement("insert into batched values (?, ?)")) {
                        for (int n = 0; n < count; n++) {
                            insert.setInt(1, n);
                            insert.setString(2, "t" + n);
                            insert.addBatch();
                        }
                        equal(insert.executeBatch().length, count);
                        equal(number(connection, "select count(*) from batched"), count);
                        if (!autocommit) {
                            connection.commit();
                        }
                        for (int n : new int[] {count + 1, 1, count + 2}) {
                            insert.setInt(1, n);
                            insert.setString(2, "again");
                            insert.addBatch();
                        }
                        try {
                            insert.executeBatch();
                            throw new AssertionError("the batch went well");
                        } catch (BatchUpdateException error) {
                            equal(error.getSQLState(), "23505");
                        }
                        if (!autocommit) {
                            connection.rollback();
                        }
                    }
                    equal(number(connection, "select count(*) from batched"), count);
                    try (Statement mixed = connection.createStatement()) {
                        mixed.addBatch("insert into batched values (-1, 'x')");
                        mixed.addBatch("update batched set t = 'y' where n < 2");
                        mixed.addBatch("delete from batched where n = -1");
                        equal(mixed.executeBatch(), new int[] {1, 3, 1});
                    }
                    if (!autocommit) {
                        connection.commit();
                    }
                    connection.setAutoCommit(true);
                }
            });
        }
        check("large objects, by function calls of the protocol", target -> {
            Connection connection = target.open();
            connection.setAutoCommit(false);
            LargeObjectManager manager = ((PGConnection) connection).getLargeObjectAPI();
            long oid = manager.createLO(LargeObjectManager.READWRITE);
            byte[] data = new byte[1000000];
            new Random(2).nextBytes(data);
            try (LargeObject made = manager.open(oid, LargeObjectManager.WRITE)) {
                made.write(data);
            }
            connection.commit();
            try (LargeObject read = manager.open(oid, LargeObjectManager.READ)) {
                equal(Arrays.equals(read.read(data.length), data), true);
                read.seek(1000);
                equal(Arrays.equals(read.read(10), Arrays.copyOfRange(data, 1000, 1010)), true);
            }
            manager.delete(oid);
            connection.commit();
            fails("42704", () -> manager.open(oid, LargeObjectManager.READ).size());
            connection.rollback();
        });
    }

    // ---- cancelling, notifications, state of a session

    static void sessions() {
        check("cancel and query timeouts are 57014, and the connection goes on", target -> {
            for (int round = 0; round < 3; round++) {
                Connection connection = target.open();
                try (Statement statement = connection.createStatement()) {
                    Thread canceller = new Thread(() -> {
                        try {
                            Thread.sleep(300);
                            statement.cancel();
                        } catch (Exception error) {
                            error.printStackTrace();
                        }
                    });
                    canceller.start();
                    fails("57014", () -> statement.execute("select pg_sleep(30)"));
                    canceller.join();
                    for (int n = 0; n < 20; n++) {
                        equal(number(connection, "select ?::int", n), n);
                    }
                    statement.setQueryTimeout(1);
                    fails("57014", () -> statement.execute("select pg_sleep(30)"));
                    equal(number(connection, "select 1"), 1);
                }
            }
        });
        check("LISTEN and NOTIFY reach the listener, also while it is idle", target -> {
            Connection listener = target.open();
            Connection other = target.open();
            Connection sender = target.open();
            run(listener, "listen news");
            for (int n = 0; n < 3; n++) {
                equal(number(other, "select ?::int", n), n);
                run(sender, "select pg_notify('news', 'n" + n + "')");
                PGNotification[] heard = ((PGConnection) listener).getNotifications(5000);
                equal(heard == null ? 0 : heard.length, 1, "notifications");
                equal(heard[0].getParameter(), "n" + n);
            }
            run(listener, "unlisten *");
            run(sender, "notify news, 'unheard'");
            PGNotification[] heard = ((PGConnection) listener).getNotifications(200);
            equal(heard == null ? 0 : heard.length, 0, "notifications");
        });
        check("notices are warnings of their statement", target -> {
            Connection connection = target.open();
            try (Statement statement = connection.createStatement()) {
                statement.execute("do $$ begin raise notice 'hello'; end $$");
                equal(statement.getWarnings().getMessage(), "hello");
            }
        });
        check("temporary tables live in their session", target -> {
            Connection connection = target.open();
            Connection other = target.open();
            run(connection, "create temporary table mine (n int)");
            run(connection, "insert into mine values (5)");
            for (int n = 0; n < rounds(20); n++) {
                equal(number(other, "select ?::int", n), n);
                equal(number(connection, "select n from mine"), 5);
            }
            fails("42P01", () -> number(other, "select n from mine"));
        });
        check("SET, setClientInfo and setSchema stay with their client while others use the pool", target -> {
            List<Connection> connections = new ArrayList<>();
            for (int client = 0; client < CLIENTS; client++) {
                Connection connection = target.open();
                run(connection, "set work_mem = '" + (client + 1) + "MB'");
                connection.setClientInfo("ApplicationName", "client " + client);
                connection.setSchema("s" + client);
                connections.add(connection);
            }
            for (int round = 0; round < rounds(20); round++) {
                for (int client = 0; client < CLIENTS; client++) {
                    Connection connection = connections.get((client * 5 + round) % CLIENTS);
                    int own = (client * 5 + round) % CLIENTS;
                    equal(text(connection, "show work_mem"), (own + 1) + "MB");
                    equal(text(connection, "show application_name"), "client " + own);
                    equal(text(connection, "show search_path"), "s" + own);
                }
            }
        });
        check("many clients at once share the pool", target -> {
            List<Work> all = new ArrayList<>();
            for (int client = 0; client < 50; client++) {
                int own = client;
                all.add(() -> {
                    try (Connection connection = target.open()) {
                        for (int n = 0; n < rounds(20); n++) {
                            equal(number(connection, "select ?::int * 1000 + ?::int", own, n), own * 1000 + n);
                        }
                    }
                });
            }
            together(all);
        });
    }

    // ---- running them

    public static void main(String[] arguments) {
        connecting();
        values();
        statements();
        transactions();
        streams();
        sessions();
        int failures = 0;
        for (Target target : new Target[] {new Target("direct", DIRECT_PORT), new Target("proxy", PROXY_PORT)}) {
            for (Check check : CHECKS) {
                if (check.name.toLowerCase(Locale.ROOT).contains(ONLY)) {
                    failures += runOne(check, target) ? 0 : 1;
                }
            }
        }
        System.out.println("done");
        System.out.flush();
        System.exit(failures == 0 ? 0 : 1);
    }

    static boolean runOne(Check check, Target target) {
        long began = System.nanoTime();
        ExecutorService thread = Executors.newSingleThreadExecutor(body -> {
            Thread made = new Thread(body);
            made.setDaemon(true);
            return made;
        });
        String problem = "";
        Future<?> running = thread.submit(() -> {
            check.body.run(target);
            return null;
        });
        try {
            running.get(SECONDS_PER_CHECK + 10, TimeUnit.SECONDS);
        } catch (ExecutionException error) {
            error.getCause().printStackTrace();
            problem = ": " + describe(error.getCause());
        } catch (TimeoutException | InterruptedException error) {
            problem = ": not done after " + (SECONDS_PER_CHECK + 10) + " s";
        }
        target.close();
        thread.shutdownNow();
        double seconds = (System.nanoTime() - began) / 1e9;
        String word = problem.isEmpty() ? "ok  " : "FAIL";
        System.out.println(String.format(Locale.ROOT, "%s  %-14s %-6s  %s%s  (%.1f s)", word, "jdbc", target.label, check.name, problem, seconds));
        System.out.flush();
        return problem.isEmpty();
    }

    /** On one line, with the SQLSTATE and the place in the check. */
    static String describe(Throwable error) {
        String state = error instanceof SQLException ? " " + ((SQLException) error).getSQLState() : "";
        String place = "";
        for (StackTraceElement frame : error.getStackTrace()) {
            if (frame.getClassName().equals("Jdbc") && frame.getMethodName().startsWith("lambda")) {
                place = " (line " + frame.getLineNumber() + ")";
                break;
            }
        }
        String message = String.valueOf(error.getMessage()).replaceAll("\\s+", " ");
        return error.getClass().getSimpleName() + state + ": " + message.substring(0, Math.min(400, message.length())) + place;
    }
}
