/* libpq from C: its pipeline mode above all, with flushes, errors half-way and several clients; values in binary, COPY, cancel, NOTIFY. */
#include <arpa/inet.h>
#include <libpq-fe.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { CLIENTS = 8, POOL_SIZE = 3, OPENED = 256, SECONDS_PER_CHECK = 60 };

static struct { const char *label, *port; char database[64]; } target;
static PGconn *opened[OPENED];
static int opened_count, quick;
static jmp_buf failed;
static char problem[1000];

static void fail(int line, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(problem, sizeof problem - 20, format, arguments);
    va_end(arguments);
    if (length > (int)sizeof problem - 20) length = sizeof problem - 20;
    snprintf(problem + length, 20, " (line %d)", line);
    for (char *at = problem; *at; at++) if (*at == '\n') *at = ' ';
    longjmp(failed, 1);
}
#define CHECK(condition, ...) do { if (!(condition)) fail(__LINE__, __VA_ARGS__); } while (0)

static int rounds(int full) { return quick ? (full + 3) / 4 : full; }
static int is_proxy(void) { return strcmp(target.label, "proxy") == 0; }
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec / 1e9; }

static PGconn *open_with(const char *port, const char *more) {
    char text[600];
    snprintf(text, sizeof text, "host=127.0.0.1 port=%s dbname=%s user=postgres %s", port, target.database, more);
    PGconn *conn = PQconnectdb(text);
    CHECK(opened_count < OPENED, "too many connections");
    opened[opened_count++] = conn;
    CHECK(PQstatus(conn) == CONNECTION_OK, "%s", PQerrorMessage(conn));
    return conn;
}
static PGconn *open_(void) { return open_with(target.port, ""); }

static PGresult *results[16];
/* A result that is freed when its turn comes again. */
static PGresult *keep(PGresult *result) { static unsigned turn; unsigned n = turn++ % 16; PQclear(results[n]); return results[n] = result; }

#define DONE(conn, sql) done(conn, sql, __LINE__)
static PGresult *done(PGconn *conn, const char *sql, int line) {
    PGresult *result = keep(PQexec(conn, sql));
    ExecStatusType status = PQresultStatus(result);
    if (status != PGRES_COMMAND_OK && status != PGRES_TUPLES_OK) fail(line, "%s: %s", sql, PQerrorMessage(conn));
    return result;
}
static const char *one(PGconn *conn, const char *sql) { return PQgetvalue(DONE(conn, sql), 0, 0); }
static int number(PGconn *conn, const char *sql) { return atoi(one(conn, sql)); }

#define FAILS(state, result) do { PGresult *r_ = keep(result); const char *s_ = PQresultErrorField(r_, PG_DIAG_SQLSTATE); \
    CHECK(s_ && strcmp(s_, state) == 0, "%s instead of %s: %s", s_ ? s_ : "no SQLSTATE", state, PQresultErrorMessage(r_)); } while (0)

/* What every client sees on every node. */
static void make(const char *sql) {
    PGconn *conn = open_with(getenv("DRIVERS_DIRECT_PORT"), "options='-c client_min_messages=error'");
    char query[200], ports[100];
    DONE(conn, sql);
    snprintf(query, sizeof query, "select pg_last_wal_replay_lsn() >= '%s'", one(conn, "select pg_current_wal_flush_lsn()"));
    snprintf(ports, sizeof ports, "%s", getenv("DRIVERS_STANDBY_PORTS"));
    for (char *port = strtok(ports, ","); port; port = strtok(NULL, ",")) {
        PGconn *standby = open_with(port, "");
        double deadline = now() + 15;
        while (one(standby, query)[0] != 't') CHECK(now() < deadline, "no replay within 15 s");
    }
}

/* The next result of a pipeline: of this status, with this value if one is given, and NULL after it unless it is a sync. */
#define NEXT(conn, status, value) next(conn, status, value, __LINE__)
static PGresult *next(PGconn *conn, ExecStatusType wanted, const char *value, int line) {
    PGresult *result = keep(PQgetResult(conn));
    if (PQresultStatus(result) != wanted)
        fail(line, "%s instead of %s: %s", PQresStatus(PQresultStatus(result)), PQresStatus(wanted), PQerrorMessage(conn));
    if (value && strcmp(PQgetvalue(result, 0, 0), value) != 0) fail(line, "%s instead of %s", PQgetvalue(result, 0, 0), value);
    if (wanted != PGRES_PIPELINE_SYNC && PQgetResult(conn)) fail(line, "one result too many");
    return result;
}
static void send_(PGconn *conn, const char *sql, int value) {
    char text[12];
    const char *parameters[] = {text};
    snprintf(text, sizeof text, "%d", value);
    CHECK(PQsendQueryParams(conn, sql, strstr(sql, "$1") ? 1 : 0, NULL, parameters, NULL, NULL, 0), "%s", PQerrorMessage(conn));
}
static void sync_(PGconn *conn) { CHECK(PQpipelineSync(conn), "%s", PQerrorMessage(conn)); }
static PGconn *pipeline(void) {
    PGconn *conn = open_();
    CHECK(PQenterPipelineMode(conn), "no pipeline mode");
    return conn;
}
static const char *text_of(int value) { static char text[12]; snprintf(text, sizeof text, "%d", value); return text; }

static void connects(void) {
    PGconn *conn = open_with(target.port, "application_name='drivers libpq' target_session_attrs=read-write options='-c statement_timeout=250'");
    CHECK(strcmp(PQparameterStatus(conn, "application_name"), "drivers libpq") == 0, "application_name");
    CHECK(PQserverVersion(conn) == PQserverVersion(open_with(getenv("DRIVERS_DIRECT_PORT"), "")), "server_version");
    FAILS("57014", PQexec(conn, "select pg_sleep(10)"));
    CHECK(strcmp(one(conn, "show statement_timeout"), "250ms") == 0, "statement_timeout");
    for (int n = 0; n < rounds(40); n++) {
        PQreset(conn);
        CHECK(number(conn, "select 7") == 7, "after a reset");
    }
}

static void secure(void) {
    char more[300];
    const char *modes[] = {"disable", "require", "verify-full"};
    setenv("PGPASSWORD", getenv("DRIVERS_PASSWORD"), 1);
    for (int n = 0; n < 3; n++) {
        snprintf(more, sizeof more, "sslmode=%s sslrootcert='%s'", modes[n], getenv("DRIVERS_CERTIFICATE"));
        PGconn *conn = open_with(getenv("DRIVERS_SECURE_PORT"), more);
        CHECK(PQsslInUse(conn) == (n > 0), "TLS");
        CHECK(PQenterPipelineMode(conn), "no pipeline mode");
        for (int k = 0; k < 50; k++) send_(conn, "select $1::int", k);
        sync_(conn);
        for (int k = 0; k < 50; k++) NEXT(conn, PGRES_TUPLES_OK, text_of(k));
        NEXT(conn, PGRES_PIPELINE_SYNC, NULL);
    }
}

static void binary(void) {
    PGconn *conn = open_();
    static char data[1000000];
    for (size_t n = 0; n < sizeof data; n++) data[n] = (char)(n * 7 + n / 256);
    uint32_t four = htonl(4711);
    const char *values[] = {(char *)&four, data, NULL, "grüße"};
    const int lengths[] = {4, sizeof data, 0, 0}, formats[] = {1, 1, 1, 0};
    for (int format = 0; format < 2; format++) {
        PGresult *result = keep(PQexecParams(conn, "select $1::int, $2::bytea, $3::int, $4::text, $1::int8, array[$1, null]", 4, NULL, values, lengths, formats, format));
        CHECK(PQresultStatus(result) == PGRES_TUPLES_OK, "%s", PQerrorMessage(conn));
        CHECK(PQgetisnull(result, 0, 2) && strcmp(PQgetvalue(result, 0, 3), "grüße") == 0 && PQftype(result, 1) == 17, "values");
        if (format) {
            CHECK(memcmp(PQgetvalue(result, 0, 0), &four, 4) == 0 && PQgetlength(result, 0, 4) == 8, "an int");
            CHECK(PQgetlength(result, 0, 1) == sizeof data && memcmp(PQgetvalue(result, 0, 1), data, sizeof data) == 0, "a bytea");
        } else CHECK(strcmp(PQgetvalue(result, 0, 0), "4711") == 0 && strcmp(PQgetvalue(result, 0, 5), "{4711,NULL}") == 0, "text");
    }
}

static void prepared(void) {
    PGconn *conns[CLIENTS];
    int servers[CLIENTS] = {0}, changed = 0, pids[64], pid_count = 0;
    char sql[100];
    make("drop table if exists counted; create table counted (id int primary key, n int)");
    for (int c = 0; c < CLIENTS; c++) {
        conns[c] = open_();
        /* The same name is another statement for each client. */
        snprintf(sql, sizeof sql, "select $1::int * 10 + %d, pg_backend_pid()", c);
        CHECK(PQresultStatus(keep(PQprepare(conns[c], "own", sql, 0, NULL))) == PGRES_COMMAND_OK, "%s", PQerrorMessage(conns[c]));
        PQclear(PQprepare(conns[c], "add", "insert into counted values ($1, 1) on conflict (id) do update set n = counted.n + 1 returning n", 0, NULL));
        PGresult *described = keep(PQdescribePrepared(conns[c], "add"));
        CHECK(PQnparams(described) == 1 && PQparamtype(described, 0) == 23 && strcmp(PQfname(described, 0), "n") == 0, "described");
    }
    for (int round = 0; round < rounds(200); round++) {
        int from = round * (1 + round % 5);
        for (int k = 0; k < POOL_SIZE; k++) DONE(conns[(from + k) % CLIENTS], "begin");
        for (int k = 0; k < POOL_SIZE; k++) {
            int c = (from + k) % CLIENTS, pid;
            char text[12];
            const char *values[] = {text};
            snprintf(text, sizeof text, "%d", round);
            PGresult *result = keep(PQexecPrepared(conns[c], "own", 1, values, NULL, NULL, 0));
            CHECK(PQresultStatus(result) == PGRES_TUPLES_OK && atoi(PQgetvalue(result, 0, 0)) == round * 10 + c, "client %d: %s", c, PQerrorMessage(conns[c]));
            pid = atoi(PQgetvalue(result, 0, 1));
            changed += servers[c] && servers[c] != pid;
            servers[c] = pid;
            int known = 0;
            for (int n = 0; n < pid_count; n++) known |= pids[n] == pid;
            if (!known && pid_count < 64) pids[pid_count++] = pid;
            snprintf(text, sizeof text, "%d", c);
            result = keep(PQexecPrepared(conns[c], "add", 1, values, NULL, NULL, 0));
            CHECK(PQresultStatus(result) == PGRES_TUPLES_OK, "%s", PQerrorMessage(conns[c]));
        }
        for (int k = 0; k < POOL_SIZE; k++) DONE(conns[(from + k) % CLIENTS], "commit");
    }
    CHECK(number(conns[0], "select sum(n) from counted") >= rounds(200), "the sum");
    if (is_proxy()) CHECK(changed > CLIENTS && pid_count <= POOL_SIZE, "%d changes among %d servers", changed, pid_count);
}

static void deallocates(void) {
    make("drop table if exists beside; create table beside (n int)");
    PGconn *conn = open_();
    const char *texts[] = {
        "deallocate \"S 1\"", "insert into beside values (1); deallocate \"S 1\"", "deallocate \"S 1\"; insert into beside values (1)",
        "savepoint a; deallocate \"S 1\"; release a", "set work_mem = '5MB'; deallocate \"S 1\"",
    };
    for (int n = 0; n < 5; n++) {
        DONE(conn, "begin");
        for (int round = 0; round < 3; round++) {
            CHECK(PQresultStatus(keep(PQprepare(conn, "S 1", "select 7", 0, NULL))) == PGRES_COMMAND_OK, "%s: %s", texts[n], PQerrorMessage(conn));
            CHECK(strcmp(PQgetvalue(keep(PQexecPrepared(conn, "S 1", 0, NULL, NULL, NULL, 0)), 0, 0), "7") == 0, "%s", texts[n]);
            DONE(conn, texts[n]);
        }
        DONE(conn, "commit");
        CHECK(number(conn, "select count(*) from beside") == (n == 0 ? 0 : n == 1 ? 3 : 6), "%s: what is written", texts[n]);
    }
}

static void pipelines(void) {
    PGconn *conn = pipeline();
    for (int round = 0; round < rounds(20); round++) {
        for (int n = 0; n < 100; n++) send_(conn, "select $1::int", n);
        sync_(conn);
        for (int n = 0; n < 100; n++) NEXT(conn, PGRES_TUPLES_OK, text_of(n));
        NEXT(conn, PGRES_PIPELINE_SYNC, NULL);
    }
    /* Several, of which none is empty but the last. */
    for (int n = 0; n < 50; n++) { send_(conn, "select $1::int", n); sync_(conn); }
    sync_(conn);
    for (int n = 0; n < 50; n++) { NEXT(conn, PGRES_TUPLES_OK, text_of(n)); NEXT(conn, PGRES_PIPELINE_SYNC, NULL); }
    NEXT(conn, PGRES_PIPELINE_SYNC, NULL);
    CHECK(PQexitPipelineMode(conn) && number(conn, "select 1") == 1, "the end of the pipeline");
}

static void errors_in_pipelines(void) {
    make("drop table if exists piped; create table piped (n int primary key)");
    PGconn *conn = pipeline();
    for (int round = 0; round < rounds(40); round++) {
        send_(conn, "insert into piped values ($1)", round * 2);
        send_(conn, "insert into piped values ($1) returning n", round * 2 + 1);
        send_(conn, "select 1 / ($1::int - $1::int)", round);
        send_(conn, "select $1::int", round);
        sync_(conn);
        send_(conn, "insert into piped values (-$1::int - 1)", round);
        send_(conn, "select count(*) from piped", 0);
        sync_(conn);
        NEXT(conn, PGRES_COMMAND_OK, NULL);
        NEXT(conn, PGRES_TUPLES_OK, text_of(round * 2 + 1));
        FAILS("22012", PQgetResult(conn));
        CHECK(!PQgetResult(conn) && PQpipelineStatus(conn) == PQ_PIPELINE_ABORTED, "not aborted");
        NEXT(conn, PGRES_PIPELINE_ABORTED, NULL);
        NEXT(conn, PGRES_PIPELINE_SYNC, NULL);
        NEXT(conn, PGRES_COMMAND_OK, NULL);
        /* All before the error is undone, and the write is seen by the read after it. */
        NEXT(conn, PGRES_TUPLES_OK, text_of(round + 1));
        NEXT(conn, PGRES_PIPELINE_SYNC, NULL);
    }
}

static void flushes(void) {
    make("drop table if exists flushed; create table flushed (n int)");
    PGconn *conn = pipeline();
    for (int round = 0; round < rounds(40); round++) {
        for (int n = 0; n < 5; n++) {
            send_(conn, n % 2 ? "insert into flushed values ($1) returning n" : "select $1::int", n);
            CHECK(PQsendFlushRequest(conn) && PQflush(conn) == 0, "%s", PQerrorMessage(conn));
            NEXT(conn, PGRES_TUPLES_OK, text_of(n));
        }
        send_(conn, round % 2 ? "select 1/0" : "select count(*) from flushed", 0);
        sync_(conn);
        if (round % 2) { FAILS("22012", PQgetResult(conn)); CHECK(!PQgetResult(conn), "one too many"); }
        else NEXT(conn, PGRES_TUPLES_OK, text_of(round + 2));
        NEXT(conn, PGRES_PIPELINE_SYNC, NULL);
    }
}

static void prepared_in_pipelines(void) {
    PGconn *conns[CLIENTS];
    char name[20], sql[60];
    const char *values[] = {"5"};
    for (int c = 0; c < CLIENTS; c++) conns[c] = pipeline();
    for (int round = 0; round < rounds(40); round++) {
        for (int c = 0; c < CLIENTS; c++) {
            snprintf(name, sizeof name, "s%d", round);
            snprintf(sql, sizeof sql, "select $1::int + %d as n", c * 100 + round);
            PQsendPrepare(conns[c], name, sql, 0, NULL);
            PQsendDescribePrepared(conns[c], name);
            PQsendQueryPrepared(conns[c], name, 1, values, NULL, NULL, 0);
            PQsendQueryPrepared(conns[c], "s0", 1, values, NULL, NULL, 0);
            /* One that is there already is an error, and the statement stays what it was. */
            if (round % 4 == 3) PQsendPrepare(conns[c], name, "select 'another'", 0, NULL);
            sync_(conns[c]);
            CHECK(PQflush(conns[c]) == 0, "not sent");
        }
        for (int c = 0; c < CLIENTS; c++) {
            NEXT(conns[c], PGRES_COMMAND_OK, NULL);
            CHECK(PQnparams(NEXT(conns[c], PGRES_COMMAND_OK, NULL)) == 1, "described");
            NEXT(conns[c], PGRES_TUPLES_OK, text_of(c * 100 + round + 5));
            NEXT(conns[c], PGRES_TUPLES_OK, text_of(c * 100 + 5));
            if (round % 4 == 3) { FAILS("42P05", PQgetResult(conns[c])); CHECK(!PQgetResult(conns[c]), "one too many"); }
            NEXT(conns[c], PGRES_PIPELINE_SYNC, NULL);
        }
    }
}

static void blocks_in_pipelines(void) {
    make("drop table if exists kept; create table kept (n int primary key)");
    PGconn *conn = pipeline(), *looker = open_with(getenv("DRIVERS_DIRECT_PORT"), "");
    const char *sql[] = {"begin", "insert into kept values ($1)", "savepoint s", "insert into kept values ($1)"};
    for (int round = 0; round < rounds(40); round++) {
        for (int n = 0; n < 4; n++) send_(conn, sql[n], round);
        sync_(conn);
        send_(conn, "rollback to s", 0);
        send_(conn, "select count(*) from kept", 0);
        send_(conn, round % 2 ? "commit" : "rollback", 0);
        send_(conn, "select count(*) from kept", 0);
        sync_(conn);
        for (int n = 0; n < 3; n++) NEXT(conn, PGRES_COMMAND_OK, NULL);
        FAILS("23505", PQgetResult(conn));
        CHECK(!PQgetResult(conn), "one too many");
        NEXT(conn, PGRES_PIPELINE_SYNC, NULL);
        NEXT(conn, PGRES_COMMAND_OK, NULL);
        NEXT(conn, PGRES_TUPLES_OK, text_of(round / 2 + 1));
        NEXT(conn, PGRES_COMMAND_OK, NULL);
        NEXT(conn, PGRES_TUPLES_OK, text_of((round + 1) / 2));
        NEXT(conn, PGRES_PIPELINE_SYNC, NULL);
        CHECK(number(looker, "select count(*) from kept") == (round + 1) / 2, "what is kept");
        CHECK(PQtransactionStatus(conn) == PQTRANS_IDLE, "not idle");
    }
}

/* More than any buffer on the way holds, in both directions: it must be read while it is sent. */
static void long_pipeline(void) {
    PGconn *conn = pipeline();
    int sent = 0, got = 0, count = rounds(20000), syncs = 0, wanted = 0;
    double deadline = now() + SECONDS_PER_CHECK - 5;
    PQsetnonblocking(conn, 1);
    while (got < count || syncs < wanted) {
        for (int n = 0; n < 100 && sent < count; n++, sent++) {
            send_(conn, "select $1::int, repeat('x', 500)", sent);
            if (sent % 1000 == 999 || sent == count - 1) { sync_(conn); wanted++; }
        }
        int unsent = PQflush(conn);
        struct pollfd ready = {PQsocket(conn), POLLIN | (unsent || sent < count ? POLLOUT : 0), 0};
        CHECK(unsent >= 0 && poll(&ready, 1, 5000) > 0 && now() < deadline, "stuck after %d of %d", got, sent);
        if (ready.revents & POLLIN) CHECK(PQconsumeInput(conn), "%s", PQerrorMessage(conn));
        while ((got < sent || syncs < wanted) && !PQisBusy(conn)) {
            PGresult *result = keep(PQgetResult(conn));
            if (!result) continue;
            if (PQresultStatus(result) == PGRES_PIPELINE_SYNC) { syncs++; continue; }
            CHECK(PQresultStatus(result) == PGRES_TUPLES_OK && atoi(PQgetvalue(result, 0, 0)) == got, "%d: %s", got, PQerrorMessage(conn));
            got++;
        }
    }
}

static void single_rows(void) {
    PGconn *conn = pipeline();
    for (int round = 0; round < 3; round++) {
        for (int n = 0; n < 3; n++) send_(conn, "select generate_series(1, $1::int)", 1000 + n);
        sync_(conn);
        for (int n = 0; n < 3; n++) {
            PGresult *result = NULL;
            for (int row = 1; row <= 1000 + n; row++) {
                if (row == 1) CHECK(PQsetSingleRowMode(conn), "no single rows");
                result = keep(PQgetResult(conn));
                CHECK(PQresultStatus(result) == PGRES_SINGLE_TUPLE && atoi(PQgetvalue(result, 0, 0)) == row, "row %d", row);
            }
            NEXT(conn, PGRES_TUPLES_OK, NULL);
        }
        NEXT(conn, PGRES_PIPELINE_SYNC, NULL);
    }
}

static void copies(void) {
    make("drop table if exists copied; create table copied (n int, t text)");
    PGconn *conn = open_();
    int count = rounds(20000), rows = 0, size;
    char line[50], *out;
    for (int round = 0; round < 2; round++) {
        CHECK(PQresultStatus(keep(PQexec(conn, "copy copied from stdin"))) == PGRES_COPY_IN, "%s", PQerrorMessage(conn));
        for (int n = 0; n < count; n++) { size = snprintf(line, sizeof line, "%d\trow %d\n", n, n); CHECK(PQputCopyData(conn, line, size) == 1, "not sent"); }
        /* The client gives up the second one. */
        PQputCopyEnd(conn, round ? "given up" : NULL);
        if (round) FAILS("57014", PQgetResult(conn));
        else CHECK(PQresultStatus(keep(PQgetResult(conn))) == PGRES_COMMAND_OK, "%s", PQerrorMessage(conn));
        CHECK(!PQgetResult(conn) && number(conn, "select count(*) from copied") == count, "what was copied");
    }
    CHECK(PQresultStatus(keep(PQexec(conn, "copy copied to stdout (format binary)"))) == PGRES_COPY_OUT, "%s", PQerrorMessage(conn));
    while ((size = PQgetCopyData(conn, &out, 0)) > 0) { rows++; PQfreemem(out); }
    CHECK(size == -1 && rows == count + 1, "%d rows", rows);
    CHECK(PQresultStatus(keep(PQgetResult(conn))) == PGRES_COMMAND_OK && !PQgetResult(conn), "the end");
    /* By parameters, which is the extended protocol. */
    CHECK(PQresultStatus(keep(PQexecParams(conn, "copy copied from stdin", 0, NULL, NULL, NULL, NULL, 0))) == PGRES_COPY_IN, "%s", PQerrorMessage(conn));
    CHECK(PQputCopyData(conn, "1\tlast\n", 7) == 1 && PQputCopyEnd(conn, NULL) == 1, "not sent");
    CHECK(PQresultStatus(keep(PQgetResult(conn))) == PGRES_COMMAND_OK && !PQgetResult(conn), "%s", PQerrorMessage(conn));
    CHECK(number(conn, "select count(*) from copied") == count + 1, "what was copied");
}

static void cancels(void) {
    char why[256];
    for (int piped = 0; piped < 2; piped++) {
        PGconn *conn = open_();
        PGcancel *cancel = PQgetCancel(conn);
        if (piped) CHECK(PQenterPipelineMode(conn), "no pipeline mode");
        for (int round = 0; round < 3; round++) {
            send_(conn, "select pg_sleep(30)", 0);
            if (piped) { send_(conn, "select 1", 0); sync_(conn); }
            CHECK(PQflush(conn) == 0, "not sent");
            usleep(300000);
            CHECK(PQcancel(cancel, why, sizeof why), "%s", why);
            FAILS("57014", PQgetResult(conn));
            CHECK(!PQgetResult(conn), "one too many");
            if (piped) { NEXT(conn, PGRES_PIPELINE_ABORTED, NULL); NEXT(conn, PGRES_PIPELINE_SYNC, NULL); }
            for (int n = 0; n < 20; n++) {
                send_(conn, "select $1::int", n);
                if (piped) sync_(conn);
                NEXT(conn, PGRES_TUPLES_OK, text_of(n));
                if (piped) NEXT(conn, PGRES_PIPELINE_SYNC, NULL);
            }
        }
        PQfreeCancel(cancel);
    }
}

static void notifications(void) {
    PGconn *listener = open_(), *sender = pipeline();
    PGnotify *note = NULL;
    DONE(listener, "listen news");
    for (int n = 0; n < 5; n++) {
        send_(sender, "select pg_notify('news', $1)", n);
        sync_(sender);
        NEXT(sender, PGRES_TUPLES_OK, "");
        NEXT(sender, PGRES_PIPELINE_SYNC, NULL);
        for (double deadline = now() + 10; !(note = PQnotifies(listener));) {
            struct pollfd ready = {PQsocket(listener), POLLIN, 0};
            CHECK(now() < deadline && poll(&ready, 1, 10000) >= 0 && PQconsumeInput(listener), "no notification");
        }
        CHECK(strcmp(note->relname, "news") == 0 && atoi(note->extra) == n, "notified of %s", note->extra);
        PQfreemem(note);
    }
}

static void own_writes(void) {
    make("drop table if exists own_writes; create table own_writes (n int constraint own_once primary key)");
    PGconn *conn = open_();
    for (int n = 0; n < rounds(100); n++) {
        DONE(conn, "insert into own_writes select count(*) from own_writes");
        CHECK(number(conn, "select count(*) from own_writes") == n + 1, "own writes");
    }
    PGresult *error = keep(PQexec(conn, "insert into own_writes values (0)"));
    CHECK(strcmp(PQresultErrorField(error, PG_DIAG_CONSTRAINT_NAME), "own_once") == 0, "the constraint");
    FAILS("42601", PQexec(conn, "selec"));
    FAILS("42P01", PQexec(conn, "select * from no_such_table"));
    FAILS("22012", PQexec(conn, "select 1; select 1/0"));
    make("select 1");
    for (double enough = now() + 1; now() < enough;) CHECK(number(conn, "select count(*) from own_writes") == rounds(100), "read again");
}

static const struct { const char *name; void (*run)(void); int only_proxy; } checks[] = {
    {"connects with settings, and resets", connects, 0},
    {"logs in by SCRAM, with and without TLS, and pipelines there", secure, 1},
    {"parameters and results in text and binary", binary, 0},
    {"prepared statements, by clients that change servers", prepared, 0},
    {"a DEALLOCATE by SQL, by itself and among other statements", deallocates, 0},
    {"own writes are seen by the next read, and errors have their SQLSTATE", own_writes, 0},
    {"pipelines, and several one after another", pipelines, 0},
    {"a pipeline whose middle fails, and the next one", errors_in_pipelines, 0},
    {"flushes: answers before the pipeline's end", flushes, 0},
    {"statements prepared within a pipeline, by more clients than there are servers", prepared_in_pipelines, 0},
    {"blocks and savepoints that reach over pipelines", blocks_in_pipelines, 0},
    {"a pipeline that is longer than all buffers", long_pipeline, 0},
    {"single rows from a pipeline", single_rows, 0},
    {"COPY in and out, one given up, one by the extended protocol", copies, 0},
    {"cancel, also in a pipeline, is 57014, and the connection goes on", cancels, 0},
    {"NOTIFY from a pipeline reaches the listener", notifications, 0},
};

int main(void) {
    const char *ports[] = {getenv("DRIVERS_DIRECT_PORT"), getenv("DRIVERS_PROXY_PORT")}, *labels[] = {"direct", "proxy"}, *only = getenv("DRIVERS_ONLY");
    volatile int failures = 0;
    quick = getenv("DRIVERS_QUICK") && *getenv("DRIVERS_QUICK");
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (volatile int t = 0; t < 2; t++) {
        target.label = labels[t];
        target.port = ports[t];
        snprintf(target.database, sizeof target.database, "%s_%s", getenv("DRIVERS_DATABASE"), labels[t]);
        for (volatile size_t n = 0; n < sizeof checks / sizeof *checks; n++) {
            if ((only && !strcasestr(checks[n].name, only)) || (checks[n].only_proxy && !is_proxy())) continue;
            volatile double began = now();
            problem[0] = 0;
            /* What hangs ends the program, which is a failure of its own. */
            alarm(SECONDS_PER_CHECK);
            if (!setjmp(failed)) checks[n].run();
            alarm(0);
            while (opened_count > 0) PQfinish(opened[--opened_count]);
            failures += problem[0] != 0;
            printf("%s  %-14s %-6s  %s%s%s  (%.1f s)\n", problem[0] ? "FAIL" : "ok  ", "libpq", target.label, checks[n].name, problem[0] ? ": " : "", problem, now() - began);
        }
    }
    puts("done");
    return failures != 0;
}
