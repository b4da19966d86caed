// PostgreSQL's JDBC driver through failovers, with the plain retry that an application needs without a proxy too, and on the connections
// that it began with. What failovers.py does, by JDBC: statements that are prepared once, and batches.

import java.io.File;
import java.sql.Connection;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Random;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.atomic.AtomicInteger;
import org.postgresql.PGConnection;

public final class Failovers {
    static final int ACCOUNTS = 16;
    static final long OPENING = 1000;
    static final File STOP = new File(System.getenv("DRIVERS_STOP"));
    static final String SETUP = "create table account (id int primary key, balance bigint not null);"
            + "insert into account select n, 1000 from generate_series(0, 15) n;"
            + "create table transfer (id bigint not null, giver int not null, taker int not null, amount bigint not null);"
            + "create index on transfer (id)";
    static final AtomicInteger AGAIN = new AtomicInteger();
    static final AtomicInteger LOOKED = new AtomicInteger();

    /** One connection for its whole life. */
    abstract static class Worker {
        final Connection connection;
        final Random dice;

        Worker(Jdbc.Target target, int number) throws SQLException {
            connection = target.open();
            dice = new Random(number);
        }

        abstract void step() throws SQLException;

        void work() throws Exception {
            int pid = connection.unwrap(PGConnection.class).getBackendPID();
            while (!STOP.exists()) {
                step();
                Thread.sleep(dice.nextInt(10));
            }
            Jdbc.equal(connection.isClosed(), false, "the connection is closed");
            Jdbc.equal(connection.isValid(5), true, "the connection is valid");
            Jdbc.equal(connection.unwrap(PGConnection.class).getBackendPID(), pid, "its process");
        }
    }

    /** Blocks of statements that are prepared once; after a few runs the server has them by name. */
    static class Teller extends Worker {
        final List<Long> done = new ArrayList<>();
        final long first;
        final boolean batches;
        final PreparedStatement add;
        final PreparedStatement book;
        final PreparedStatement look;

        Teller(Jdbc.Target target, int number, boolean batches) throws SQLException {
            super(target, number);
            first = number * 1_000_000L;
            this.batches = batches;
            connection.setAutoCommit(false);
            add = connection.prepareStatement("update account set balance = balance + ? where id = ?");
            book = connection.prepareStatement("insert into transfer values (?, ?, ?, ?)");
            look = connection.prepareStatement("select count(*) from transfer where id = ?");
        }

        @Override
        void step() throws SQLException {
            int giver = dice.nextInt(ACCOUNTS);
            int taker = (giver + 1 + dice.nextInt(ACCOUNTS - 1)) % ACCOUNTS;
            long id = first + done.size();
            long amount = 1 + dice.nextInt(9);
            while (!succeeds(id, giver, taker, amount)) {
                // With the same number, so that two of it would show.
            }
            done.add(id);
        }

        boolean succeeds(long id, int giver, int taker, long amount) throws SQLException {
            try {
                pay(id, giver, taker, amount);
                return true;
            } catch (SQLException error) {
                String state = error.getSQLState();
                if (!"40001".equals(state) && !"08007".equals(state)) {
                    throw error;
                }
                Jdbc.equal(connection.isClosed(), false, "closed after " + state);
                connection.rollback();
                if ("40001".equals(state)) {
                    AGAIN.incrementAndGet();
                    return false;
                }
                LOOKED.incrementAndGet();
                int rows = Jdbc.number(look, id);
                connection.rollback();
                if (rows > 1) {
                    throw new AssertionError("transfer " + id + " is there " + rows + " times");
                }
                return rows == 1;
            }
        }

        void pay(long id, int giver, int taker, long amount) throws SQLException {
            boolean givesFirst = giver < taker;
            change(givesFirst ? -amount : amount, givesFirst ? giver : taker);
            change(givesFirst ? amount : -amount, givesFirst ? taker : giver);
            if (batches) {
                add.executeBatch();
            }
            book.setLong(1, id);
            book.setInt(2, giver);
            book.setInt(3, taker);
            book.setLong(4, amount);
            book.executeUpdate();
            connection.commit();
        }

        void change(long by, int account) throws SQLException {
            add.setLong(1, by);
            add.setInt(2, account);
            if (batches) {
                add.addBatch();
            } else {
                add.executeUpdate();
            }
        }
    }

    /** Adds up all balances: no error at all is for it. */
    static class Reader extends Worker {
        final PreparedStatement total;

        Reader(Jdbc.Target target, int number) throws SQLException {
            super(target, number);
            total = connection.prepareStatement("select sum(balance)::bigint from account");
        }

        @Override
        void step() throws SQLException {
            try (ResultSet rows = total.executeQuery()) {
                rows.next();
                Jdbc.equal(rows.getLong(1), ACCOUNTS * OPENING, "a total");
            }
        }
    }

    static String check(Jdbc.Target target) throws Exception {
        Connection admin = target.open();
        Jdbc.run(admin, SETUP);
        List<Teller> tellers = new ArrayList<>();
        for (int number = 0; number < 4; number++) {
            tellers.add(new Teller(target, number, number % 2 == 1));
        }
        List<Worker> all = new ArrayList<>(tellers);
        all.add(new Reader(target, all.size()));
        ExecutorService threads = Executors.newFixedThreadPool(all.size());
        List<Future<?>> running = new ArrayList<>();
        for (Worker worker : all) {
            running.add(threads.submit(() -> {
                worker.work();
                return null;
            }));
        }
        threads.shutdown();
        System.out.println("ready");
        for (Future<?> one : running) {
            one.get();
        }
        List<Long> acknowledged = new ArrayList<>();
        tellers.forEach(teller -> acknowledged.addAll(teller.done));
        Collections.sort(acknowledged);
        List<Long> booked = new ArrayList<>();
        long[] balances = new long[ACCOUNTS];
        Arrays.fill(balances, OPENING);
        try (Statement statement = admin.createStatement()) {
            ResultSet rows = statement.executeQuery("select id, giver, taker, amount from transfer order by id");
            while (rows.next()) {
                booked.add(rows.getLong(1));
                balances[rows.getInt(2)] -= rows.getLong(4);
                balances[rows.getInt(3)] += rows.getLong(4);
            }
            Jdbc.equal(booked, acknowledged, "what is booked");
            rows = statement.executeQuery("select balance from account order by id");
            for (long balance : balances) {
                rows.next();
                Jdbc.equal(rows.getLong(1), balance, "a balance");
            }
        }
        if (AGAIN.get() + LOOKED.get() == 0) {
            throw new AssertionError("no failover was noticed at all");
        }
        return booked.size() + " transfers, " + AGAIN + " run again, " + LOOKED + " looked for";
    }

    public static void main(String[] arguments) {
        Jdbc.Target target = new Jdbc.Target("proxy", Jdbc.PROXY_PORT);
        long began = System.nanoTime();
        String told;
        boolean passed = false;
        try {
            told = ", " + check(target);
            passed = true;
        } catch (Exception | AssertionError error) {
            error.printStackTrace();
            Throwable cause = error.getCause() == null ? error : error.getCause();
            told = ": " + cause.toString().replaceAll("\\s+", " ");
        }
        target.close();
        System.out.printf("%s  %-14s proxy   %s failovers on the same connections%s  (%.1f s)%n", passed ? "ok  " : "FAIL", "jdbc",
                System.getenv("DRIVERS_FAILOVERS"), told, (System.nanoTime() - began) / 1e9);
        System.out.println("done");
        System.exit(passed ? 0 : 1);
    }
}
