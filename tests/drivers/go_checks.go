// Go's lib/pq under database/sql: statements without a name or with numbers for names, its pool, contexts, COPY and its listener.
package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/lib/pq"
)

const (
	clients  = 8
	poolSize = 3
	limit    = 60 * time.Second
)

// Where a check runs: the primary itself, or the proxy.
type target struct {
	label, port string
	opened      []*sql.DB
}

// What a check that fails panics with.
type failure struct{ text string }

func check(isSo bool, format string, arguments ...interface{}) {
	if !isSo {
		_, _, line, _ := runtime.Caller(1)
		panic(failure{fmt.Sprintf(format, arguments...) + fmt.Sprintf(" (line %d)", line)})
	}
}

func must(err error) {
	if err != nil {
		_, _, line, _ := runtime.Caller(1)
		panic(failure{fmt.Sprintf("%v (line %d)", err, line)})
	}
}

func state(err error) string {
	var refused *pq.Error
	if errors.As(err, &refused) {
		return string(refused.Code)
	}
	return fmt.Sprint(err)
}

// How often to repeat something: a quarter of it in a quick run.
func rounds(full int) int {
	if os.Getenv("DRIVERS_QUICK") != "" {
		return (full + 3) / 4
	}
	return full
}

func (t *target) isProxy() bool { return t.label == "proxy" }

func (t *target) dsn(more string) string {
	return fmt.Sprintf("host=127.0.0.1 port=%s dbname=%s_%s user=postgres sslmode=disable %s", t.port, os.Getenv("DRIVERS_DATABASE"), t.label, more)
}

func (t *target) open(more string) *sql.DB {
	db, err := sql.Open("postgres", t.dsn(more))
	must(err)
	t.opened = append(t.opened, db)
	return db
}

func (t *target) direct() *sql.DB { return t.open("port=" + os.Getenv("DRIVERS_DIRECT_PORT")) }

func (t *target) create(statements string) {
	looker := t.direct()
	_, err := looker.Exec("set client_min_messages = error; " + statements)
	must(err)
	lsn := one(looker, "select pg_current_wal_flush_lsn()::text")
	for _, port := range strings.Split(os.Getenv("DRIVERS_STANDBY_PORTS"), ",") {
		standby := t.open("port=" + port)
		for deadline := time.Now().Add(15 * time.Second); one(standby, "select (pg_last_wal_replay_lsn() >= $1)::text", lsn) != "true"; {
			check(time.Now().Before(deadline), "no replay within 15 s")
			time.Sleep(10 * time.Millisecond)
		}
	}
}

type queryer interface {
	QueryRow(string, ...interface{}) *sql.Row
}

func one(db queryer, query string, arguments ...interface{}) string {
	var found sql.NullString
	must(db.QueryRow(query, arguments...).Scan(&found))
	return found.String
}

func exec(t interface {
	Exec(string, ...interface{}) (sql.Result, error)
}, query string, arguments ...interface{}) {
	_, err := t.Exec(query, arguments...)
	must(err)
}

// Runs work(0), work(1), … side by side, and fails as the first of them did.
func sideBySide(count int, work func(int)) {
	var all sync.WaitGroup
	problems := make(chan interface{}, count)
	for n := 0; n < count; n++ {
		all.Add(1)
		go func(n int) {
			defer all.Done()
			defer func() {
				if problem := recover(); problem != nil {
					problems <- problem
				}
			}()
			work(n)
		}(n)
	}
	all.Wait()
	select {
	case problem := <-problems:
		panic(problem)
	default:
	}
}

func connects(t *target) {
	db := t.open("application_name='drivers go' statement_timeout=250 search_path=pg_catalog")
	for n := 0; n < 5; n++ {
		check(one(db, "show application_name") == "drivers go" && one(db, "show search_path") == "pg_catalog", "settings")
	}
	_, err := db.Exec("select pg_sleep(10)")
	check(state(err) == "57014", "%v", err)
	check(state(t.open("dbname=no_such_database").Ping()) == "3D000", "a database that isn't there")
	for n := 0; n < rounds(60); n++ {
		again := t.open("")
		check(one(again, "select $1::int", n) == strconv.Itoa(n), "reconnected")
		must(again.Close())
	}
}

func secure(t *target) {
	password := strings.ReplaceAll(os.Getenv("DRIVERS_PASSWORD"), "'", `\'`)
	for _, mode := range []string{"disable", "require", "verify-full sslrootcert=" + os.Getenv("DRIVERS_CERTIFICATE")} {
		db := t.open(fmt.Sprintf("port=%s password='%s' sslmode=%s", os.Getenv("DRIVERS_SECURE_PORT"), password, mode))
		check(one(db, "select 7") == "7", "a select")
		check(state(t.open("port="+os.Getenv("DRIVERS_SECURE_PORT")+" password=wrong sslmode="+mode).Ping()) == "28P01", "a wrong password")
	}
}

func values(t *target) {
	data := make([]byte, 1000000)
	_, err := rand.Read(data)
	must(err)
	moment := time.Date(2024, 2, 29, 23, 59, 59, 1000, time.UTC)
	for _, more := range []string{"", "binary_parameters=yes"} {
		db := t.open(more)
		for n := 0; n < 3; n++ {
			var i, null *int64
			var f float64
			var b bool
			var s string
			var d []byte
			var at time.Time
			var several []int64
			text := "grüße, 世界 🐍 'quoted' \\ \n"
			must(db.QueryRow("select $1::int8, $2::int8, $3::float8, $4::bool, $5::text, $6::bytea, $7::timestamptz, $8::int8[]",
				int64(1)<<60, nil, 1.5e-10, true, text, data, moment, pq.Array([]int64{1, 2, -3})).Scan(&i, &null, &f, &b, &s, &d, &at, pq.Array(&several)))
			check(*i == 1<<60 && null == nil && f == 1.5e-10 && b && s == text && bytes.Equal(d, data) && at.Equal(moment), "values")
			check(len(several) == 3 && several[2] == -3, "an array")
		}
	}
}

func prepared(t *target) {
	t.create("drop table if exists written; create table written (client int, n int)")
	var seen sync.Map
	sideBySide(clients, func(client int) {
		db := t.open([]string{"", "binary_parameters=yes"}[client%2])
		db.SetMaxOpenConns(1)
		insert, err := db.Prepare("insert into written values ($1, $2)")
		must(err)
		count, err := db.Prepare("select count(*) from written where client = $1")
		must(err)
		own, err := db.Prepare(fmt.Sprintf("select $1::int * 10 + %d, pg_backend_pid()", client))
		must(err)
		for n := 0; n < rounds(200); n++ {
			_, err := insert.Exec(client, n)
			must(err)
			var found, pid int
			must(count.QueryRow(client).Scan(&found))
			check(found == n+1, "own writes: %d, not %d", found, n+1)
			must(own.QueryRow(n).Scan(&found, &pid))
			check(found == n*10+client, "%d of client %d", found, client)
			seen.Store(pid, true)
		}
		for enough := time.Now().Add(time.Second); client == 0 && time.Now().Before(enough); {
			var found int
			must(count.QueryRow(client).Scan(&found))
			check(found == rounds(200), "read again: %d", found)
		}
		must(own.Close())
	})
	servers := 0
	seen.Range(func(_, _ interface{}) bool { servers++; return true })
	check(!t.isProxy() || servers <= poolSize, "%d servers, more than the pool has", servers)
}

func pooled(t *target) {
	t.create("drop table if exists pooled; create table pooled (client int)")
	db := t.open("")
	db.SetMaxOpenConns(clients)
	// Prepared anew by database/sql on each connection of its pool that it takes.
	insert, err := db.Prepare("insert into pooled values ($1)")
	must(err)
	sideBySide(clients*2, func(client int) {
		for n := 0; n < rounds(40); n++ {
			tx, err := db.Begin()
			must(err)
			_, err = tx.Stmt(insert).Exec(client)
			must(err)
			check(one(tx, "select count(*) from pooled where client = $1", client) == strconv.Itoa(n+1), "own writes")
			must(tx.Commit())
		}
	})
	check(one(t.direct(), "select count(*) from pooled") == strconv.Itoa(clients*2*rounds(40)), "all writes")
}

func transactions(t *target) {
	t.create("drop table if exists kept; create table kept (n int constraint only_once primary key)")
	db, looker := t.open(""), t.direct()
	tx, err := db.Begin()
	must(err)
	exec(tx, "insert into kept values ($1)", 1)
	exec(tx, "savepoint a")
	_, err = tx.Exec("insert into kept values ($1)", 1)
	var refused *pq.Error
	check(errors.As(err, &refused) && refused.Code == "23505" && refused.Constraint == "only_once", "%v", err)
	_, err = tx.Exec("select 1")
	check(state(err) == "25P02", "%v", err)
	exec(tx, "rollback to a")
	check(one(looker, "select count(*) from kept") == "0", "seen before it is committed")
	must(tx.Commit())
	check(one(looker, "select count(*) from kept") == "1", "not seen")
	for _, level := range []sql.IsolationLevel{sql.LevelReadCommitted, sql.LevelRepeatableRead, sql.LevelSerializable} {
		for _, readOnly := range []bool{false, true} {
			tx, err := db.BeginTx(context.Background(), &sql.TxOptions{Isolation: level, ReadOnly: readOnly})
			must(err)
			check(one(tx, "show transaction_isolation") == strings.ToLower(level.String()), "isolation")
			check(one(tx, "select count(*) from kept") == "1", "the count")
			_, err = tx.Exec("insert into kept values (2)")
			check(state(err) == map[bool]string{false: "<nil>", true: "25006"}[readOnly], "%v", err)
			must(tx.Rollback())
		}
	}
	for code, statement := range map[string]string{"42P01": "select * from no_such_table", "22012": "select 1/0", "42601": "selec", "22P02": "select 'x'::int"} {
		_, err := db.Exec(statement)
		check(state(err) == code, "%v instead of %s", err, code)
		check(one(db, "select 1") == "1", "it goes on")
	}
}

func copies(t *target) {
	t.create("drop table if exists copied; create table copied (n int, t text)")
	db := t.open("")
	for round, wanted := range []string{"<nil>", "22P02"} {
		tx, err := db.Begin()
		must(err)
		copy, err := tx.Prepare(pq.CopyIn("copied", "n", "t"))
		must(err)
		for n := 0; n < rounds(8000); n++ {
			var first interface{} = n
			if round == 1 && n == rounds(8000)-1 {
				first = "no number"
			}
			_, err = copy.Exec(first, "row\t\\"+strconv.Itoa(n))
			must(err)
		}
		_, err = copy.Exec()
		check(state(err) == wanted, "%v", err)
		copy.Close()
		if round == 0 {
			must(tx.Commit())
		} else {
			must(tx.Rollback())
		}
	}
	check(one(db, "select count(*) from copied where t = E'row\\t\\\\' || n") == strconv.Itoa(rounds(8000)), "what was copied")
	// Several results of one simple query.
	rows, err := db.Query("select 1; select 2")
	must(err)
	for n := 1; n <= 2; n++ {
		var found int
		check(rows.Next(), "result %d", n)
		must(rows.Scan(&found))
		check(found == n && !rows.Next() && rows.NextResultSet() == (n == 1), "two results")
	}
	must(rows.Close())
}

func cancels(t *target) {
	db := t.open("")
	db.SetMaxOpenConns(1)
	for n := 0; n < 3; n++ {
		soon, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
		began := time.Now()
		_, err := db.ExecContext(soon, "select pg_sleep(30)")
		cancel()
		check(state(err) == "57014" && time.Since(began) < 5*time.Second, "%v", err)
		for k := 0; k < 20; k++ {
			check(one(db, "select $1::int", k) == strconv.Itoa(k), "it goes on")
		}
	}
}

func listens(t *target) {
	events := make(chan pq.ListenerEventType, 10)
	listener := pq.NewListener(t.dsn(""), 10*time.Millisecond, time.Second, func(event pq.ListenerEventType, _ error) { events <- event })
	defer listener.Close()
	must(listener.Listen("news"))
	check(<-events == pq.ListenerEventConnected, "connected")
	db := t.open("")
	hear := func(wanted string) {
		exec(db, "select pg_notify('news', $1)", wanted)
		select {
		case note := <-listener.Notify:
			check(note != nil && note.Extra == wanted, "%v", note)
		case <-time.After(10 * time.Second):
			check(false, "no notification within 10 s")
		}
	}
	hear("one")
	hear("two")
	exec(t.direct(), "select pg_terminate_backend(pid, 5000) from pg_stat_activity where query ilike 'listen%' and datname = current_database()")
	select {
	case note := <-listener.Notify:
		check(note == nil, "a nil that says that some may have been lost")
	case <-time.After(10 * time.Second):
		check(false, "not connected again within 10 s")
	}
	hear("three")
	must(listener.Ping())
}

func lost(t *target) {
	db, looker := t.open(""), t.direct()
	for n := 0; n < rounds(20); n++ {
		check(one(db, "select $1::int", n) == strconv.Itoa(n), "read")
		exec(looker, "select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()")
	}
}

func main() {
	failures := 0
	for _, t := range []*target{{label: "direct", port: os.Getenv("DRIVERS_DIRECT_PORT")}, {label: "proxy", port: os.Getenv("DRIVERS_PROXY_PORT")}} {
		for _, one := range []struct {
			name string
			run  func(*target)
		}{
			{"connects with settings at login, again and again", connects},
			{"logs in by SCRAM, with and without TLS", secure},
			{"values of many types, with parameters in text and in binary", values},
			{"prepared statements of clients that change servers, and each write is seen by the next read", prepared},
			{"the pool of database/sql, whose statements are prepared where they are run", pooled},
			{"transactions, savepoints, isolation, and errors with their SQLSTATE", transactions},
			{"COPY in, one that fails, and several results", copies},
			{"a context that ends cancels the statement, and the connection goes on", cancels},
			{"LISTEN and NOTIFY, also after the listening connection was lost", listens},
			{"the pool outlives its connections", lost},
		} {
			if !strings.Contains(strings.ToLower(one.name), strings.ToLower(os.Getenv("DRIVERS_ONLY"))) || (!t.isProxy() && strings.Contains(one.name, "SCRAM")) {
				continue
			}
			began := time.Now()
			problem := perform(one.run, t)
			word := "ok  "
			if problem != "" {
				word, problem = "FAIL", ": "+strings.Join(strings.Fields(problem), " ")
				failures++
			}
			fmt.Printf("%s  %-14s %-6s  %s%s  (%.1f s)\n", word, "go", t.label, one.name, problem, time.Since(began).Seconds())
			for _, db := range t.opened {
				db.Close()
			}
			t.opened = nil
		}
	}
	fmt.Println("done")
	if failures > 0 {
		os.Exit(1)
	}
}

func perform(run func(*target), t *target) string {
	problem := make(chan string, 1)
	go func() {
		defer func() {
			switch found := recover().(type) {
			case nil:
				problem <- ""
			case failure:
				problem <- found.text
			default:
				problem <- fmt.Sprint("panic: ", found)
			}
		}()
		run(t)
	}()
	select {
	case text := <-problem:
		return text
	case <-time.After(limit):
		return fmt.Sprintf("not done after %v", limit)
	}
}
