//! PostgreSQL's own programs through the proxy: they do what they do at the primary, and say the same.

mod support;

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use pgsluice::lab::LabGuard;
use support::scene::{Scene, until};
use support::wire::{Wire, codes};
use support::{Proxy, eventually, until_replayed};

/// How a program ended, and both of its streams, with what differs by way and time taken out.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    succeeded: bool,
    text: String,
}

/// Programs at one port.
#[derive(Clone, Copy)]
struct Tools<'a> {
    lab: &'a LabGuard,
    port: u16,
}

impl<'a> Tools<'a> {
    fn new(lab: &'a LabGuard, port: u16) -> Tools<'a> {
        Tools { lab, port }
    }

    /// Runs a program with these arguments, separated by blanks, and this standard input.
    fn feed(self, program: &str, arguments: &str, input: &str) -> Said {
        // Without a terminal, programs ask standard input for passwords. One that hangs fails its test.
        let mut child = Command::new("setsid")
            .args(["--wait", "timeout", "60"])
            .arg(self.lab.pg_bin().join(program))
            .args(arguments.split_whitespace())
            .envs([("PGHOST", "127.0.0.1"), ("PGUSER", "postgres"), ("LC_ALL", "C")])
            .env("PGPORT", self.port.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("a program of PostgreSQL's");
        // One that ends early doesn't read it all.
        let _ = child.stdin.take().expect("a pipe").write_all(input.as_bytes());
        let output = child.wait_with_output().expect("it ends");
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        let constant = text
            .lines()
            .filter(|line| !line.contains("restrict ") && !line.contains("(every "))
            .map(|line| format!("{}\n", line.replace(&self.port.to_string(), "PORT")));
        Said {
            succeeded: output.status.success(),
            text: constant.collect(),
        }
    }

    /// Runs a program that must succeed, and answers what it said.
    #[track_caller]
    fn run(self, program: &str, arguments: &str) -> String {
        let said = self.feed(program, arguments, "");
        assert!(said.succeeded, "{program} {arguments}: {}", said.text);
        said.text
    }

    /// The answer to a statement that must succeed.
    #[track_caller]
    fn sql(self, user_and_database: &str, statement: &str) -> String {
        let said = self.feed(
            "psql",
            &format!("-XAtq -v ON_ERROR_STOP=1 {user_and_database}"),
            statement,
        );
        assert!(said.succeeded, "{statement}: {}", said.text);
        said.text.trim_end().to_owned()
    }
}

/// A proxy, its tools and the primary's.
struct Bench {
    scene: Scene,
    folder: PathBuf,
}

impl Bench {
    async fn start() -> Bench {
        let scene = Scene::start("").await;
        let folder = scene.lab.dir().join(format!("tools-{}", scene.database));
        fs::create_dir(&folder).expect("a folder");
        Bench { scene, folder }
    }

    fn proxy(&self) -> Tools<'_> {
        Tools::new(&self.scene.lab, self.scene.proxy.port)
    }

    fn primary(&self) -> Tools<'_> {
        Tools::new(&self.scene.lab, self.scene.primary().port())
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }
}

/// A bit of everything that a dump has.
const CONTENT: &str = "
    create schema shop;
    create type shop.mood as enum ('sad', 'ok');
    create table shop.item (id serial primary key, mood shop.mood default 'ok', name text not null);
    comment on table shop.item is 'what is sold';
    insert into shop.item (name) select 'item ' || n from generate_series(1, 2000) n;
    create table shop.sold (item int references shop.item, at timestamptz) partition by range (item);
    create table shop.sold_first partition of shop.sold for values from (1) to (1000);
    create table shop.sold_rest partition of shop.sold default;
    insert into shop.sold select id, '2020-02-02' from shop.item;
    create index on shop.sold (at);
    create view shop.fine as select * from shop.item where mood = 'ok';
    create materialized view shop.counted as select count(*) from shop.item;
    create function shop.next(int) returns int language sql as 'select $1 + 1';
    create sequence shop.ticks;
    alter table shop.item cluster on item_pkey;
    select lo_from_bytea(4712, 'a large object');
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_dumped_and_restored_is_the_same_database() {
    let bench = Bench::start().await;
    let (database, proxy, primary) = (&bench.scene.database, bench.proxy(), bench.primary());
    primary.sql(&format!("-d {database}"), CONTENT);
    let whole = primary.run("pg_dump", database);
    assert!(whole.contains("COPY shop.item"), "{whole:.300}");
    assert!(proxy.run("pg_dump", database) == whole, "a plain dump differs");

    let (folder, file) = (bench.path("folder"), bench.path("file"));
    proxy.run("pg_dump", &format!("-j 4 -Fd -f {folder} {database}"));
    proxy.run("pg_dump", &format!("-Fc -f {file} {database}"));
    for (name, how) in [("jobs", format!("-j 4 {folder}")), ("once", format!("-1 {file}"))] {
        let copy = format!("{database}_{name}");
        proxy.run("createdb", &format!("-T template0 {copy}"));
        proxy.run("pg_restore", &format!("-d {copy} {how}"));
        assert!(
            primary.run("pg_dump", &copy) == whole,
            "{how}: what was restored differs"
        );
    }
    let roles = "--roles-only --no-role-passwords";
    assert!(proxy.run("pg_dumpall", roles).contains("CREATE ROLE postgres"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pgbench_runs_each_of_its_scripts() {
    let bench = Bench::start().await;
    let (database, proxy) = (&bench.scene.database, bench.proxy());
    proxy.run("pgbench", &format!("-i -q {database}"));
    for script in ["tpcb-like", "simple-update", "select-only"] {
        for protocol in ["simple", "extended", "prepared"] {
            let said = proxy.run(
                "pgbench",
                &format!("-n -b {script} -M {protocol} -c 4 -j 2 -t 25 {database}"),
            );
            let all = "number of transactions actually processed: 100/100";
            assert!(said.contains(all), "{script}, {protocol}: {said}");
        }
    }
    let told = "select count(*), sum(delta) = (select sum(abalance) from pgbench_accounts) from pgbench_history";
    assert_eq!(bench.primary().sql(&format!("-d {database}"), told), "600|t");
    assert!(bench.scene.proxy.statements("node2").0 > 0, "the standby took no reads");
}

/// What psql is told to do; `FOLDER` is one to write into.
const SCRIPT: &str = r"
\d
\d+ shop.item
\d+ shop.fine
\d+ shop.sold
\dt+ shop.sold
\di shop.*
\ds shop.*
\dv shop.*
\dm shop.*
\df+ shop.next
\sf shop.next
\sv shop.fine
\dT+ shop.*
\dn+ shop
\dp shop.*
\du postgres
\l postgres
\dx
\dRp
\dconfig *work_mem*
\lo_list
\copy (select * from shop.item order by id) to 'FOLDER/copy'
create table copied (like shop.item);
\copy copied from 'FOLDER/copy'
select count(*), sum(id) from copied;
select format('create table made_%s ()', n) from generate_series(1, 3) n \gexec
select count(*) from pg_class where relname ~ '^made_';
select format('drop table made_%s', n) from generate_series(1, 3) n \gexec
select 1 as one, 2 as two \gset
\echo :one :two
select * from shop.item where id = :one \gdesc
select mood as r, 'sold' as c, 1 as v from shop.item limit 1 \crosstabview
select 1 \; select 2 \; select 3;
select 1 / (3 - nextval('shop.ticks')) as left \watch 0.02
\errverbose
\set FETCH_COUNT 100
select id from shop.item order by id limit 250;
\set FETCH_COUNT 0
\set AUTOCOMMIT off
insert into copied select * from shop.item limit 1;
rollback;
\set AUTOCOMMIT on
\set ON_ERROR_ROLLBACK on
begin;
select 1 / 0;
select count(*) from copied;
commit;
\lo_export 4712 'FOLDER/object'
\! cat 'FOLDER/object'
set search_path = shop;
\dt
\d item
reset search_path;
set role teller;
select current_user;
select * from shop.item;
reset role;
\c - teller
select current_user;
\dt shop.*
\c - postgres
prepare stays as select 42;
execute stays;
drop table copied;
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn psql_says_the_same() {
    let bench = Bench::start().await;
    let session = format!("-X -d {}", bench.scene.database);
    bench.primary().sql(&session, CONTENT);
    bench.primary().sql(&session, "create role teller login");
    let script = SCRIPT.replace("FOLDER", &bench.folder.display().to_string());
    bench.scene.caught_up().await;

    let wanted = bench.primary().feed("psql", &session, &script);
    assert!(
        wanted.text.contains("a large object") && wanted.text.contains("2000"),
        "{wanted:?}"
    );
    bench.primary().sql(&session, "alter sequence shop.ticks restart");
    bench.scene.caught_up().await;
    let said = bench.proxy().feed("psql", &session, &script);
    for (line, wanted) in said.text.lines().zip(wanted.text.lines()) {
        assert_eq!(line, wanted);
    }
    assert_eq!(said, wanted);

    let asked = bench
        .proxy()
        .feed("psql", &format!("{session} -c \\password teller"), "s3cret\ns3cret\n");
    assert!(asked.succeeded, "{}", asked.text);
    let is_set = "select rolpassword like 'SCRAM-SHA-256$%' from pg_authid where rolname = 'teller'";
    assert_eq!(bench.primary().sql(&session, is_set), "t");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn maintenance_programs_do_their_work() {
    let bench = Bench::start().await;
    let (database, proxy, primary) = (&bench.scene.database, bench.proxy(), bench.primary());
    primary.sql(&format!("-d {database}"), CONTENT);
    let storage = "select pg_relation_filenode('shop.item_pkey'), pg_relation_filenode('shop.item')";
    let before = primary.sql(&format!("-d {database}"), storage);
    for (program, arguments) in [
        ("vacuumdb", "-z -j 3"),
        ("vacuumdb", "--analyze-in-stages"),
        ("vacuumdb", "-f -t shop.item"),
        ("reindexdb", "-j 2 -S shop"),
        ("reindexdb", "--concurrently -t shop.item"),
        ("reindexdb", "-s"),
        ("clusterdb", ""),
        ("pg_isready", "-d"),
    ] {
        proxy.run(program, &format!("{arguments} {database}"));
    }
    let vacuumed = "select reltuples from pg_class where oid = 'shop.item'::regclass";
    assert_eq!(primary.sql(&format!("-d {database}"), vacuumed), "2000");
    let after = primary.sql(&format!("-d {database}"), storage);
    let same = after
        .split('|')
        .zip(before.split('|'))
        .any(|(after, before)| after == before);
    assert!(!same, "not rebuilt: {before} before, {after} after");

    let (role, fresh) = (format!("{database}_role"), format!("{database}_fresh"));
    proxy.run("createuser", &role);
    proxy.run("createdb", &format!("-T template0 -O {role} {fresh}"));
    let owner = format!("select pg_get_userbyid(datdba) from pg_database where datname = '{fresh}'");
    assert_eq!(primary.sql("-d postgres", &owner), role);
    proxy.run("dropdb", &fresh);
    proxy.run("dropuser", &role);
    assert_eq!(primary.sql("-d postgres", &owner), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_in_use_is_dropped_by_force() {
    let bench = Bench::start().await;
    let (proxy, database) = (bench.proxy(), format!("{}_used", bench.scene.database));
    proxy.run("createdb", &format!("-T template0 {database}"));
    proxy.sql(&format!("-d {database}"), "create table t ()");
    let mut idle = Wire::login(bench.scene.proxy.port, &database).await;
    idle.run("insert into t default values").await;
    proxy.run("dropdb", &format!("--force {database}"));
    let gone = bench.primary().sql(
        "-d postgres",
        &format!("select count(*) from pg_database where datname = '{database}'"),
    );
    assert_eq!(gone, "0");
    assert_eq!(codes(&idle.query("select count(*) from t").await), ["3D000"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_base_backup_is_whole_and_wal_is_received() {
    let bench = Bench::start().await;
    let (proxy, primary) = (bench.proxy(), bench.primary());
    let (backup, wal) = (bench.path("backup"), bench.path("wal"));
    fs::create_dir(&wal).expect("a folder");
    proxy.run("pg_basebackup", &format!("-D {backup} -X stream -c fast"));
    proxy.run("pg_verifybackup", &backup);

    proxy.run("pg_receivewal", "--create-slot -S tools");
    let ahead = "select pg_current_wal_insert_lsn() + 20 * 1024 * 1024";
    let until_then = format!(
        "-S tools -D {wal} --no-loop --endpos {}",
        primary.sql("-d postgres", ahead)
    );
    thread::scope(|threads| {
        let receiving = threads.spawn(|| proxy.run("pg_receivewal", &until_then));
        eventually("enough is received", || {
            let switch = "create table if not exists t (); drop table t; select pg_switch_wal()";
            primary.sql(&format!("-d {}", bench.scene.database), switch);
            receiving.is_finished()
        });
    });
    let files = fs::read_dir(&wal).expect("a folder").flatten();
    let whole = files
        .filter(|file| file.path().extension().is_none())
        .map(|file| file.path());
    for file in whole.inspect(|file| assert_eq!(fs::metadata(file).expect("a file").len(), 16 * 1024 * 1024)) {
        assert!(primary.run("pg_waldump", &format!("-q {}", file.display())).is_empty());
    }
    proxy.run("pg_receivewal", "--drop-slot -S tools");
    let slots = "select count(*) from pg_replication_slots where slot_name = 'tools'";
    assert_eq!(primary.sql("-d postgres", slots), "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_that_all_standbys_refuse_is_the_primarys() {
    let lab = LabGuard::fresh(2).expect("a lab");
    let proxy = Proxy::start(&lab);
    let (tools, teller) = (Tools::new(&lab, proxy.port), "-U teller -d postgres");
    lab.sql("primary", "create role teller login").expect("a role");
    until_replayed(&lab);
    // The proxy has a connection to the primary for it, and greets the next one without asking; it has none to a standby.
    tools.sql(teller, "/* pgsluice: primary */ select 1");
    lab.sql("primary", "alter role teller nologin").expect("a changed role");
    until_replayed(&lab);
    let said = tools.feed("psql", &format!("-X {teller}"), "select count(*) from pg_class");
    // The primary was told past the proxy, which still has a connection to it.
    assert!(said.succeeded, "{said:?}");
    let complaints = proxy.log().matches("a standby refuses logins").count();
    assert!(complaints <= 2, "asked {complaints} times");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_nobody_uses_is_copied_renamed_and_dropped() {
    let bench = Bench::start().await;
    let (proxy, database) = (bench.proxy(), format!("{}_mine", bench.scene.database));
    proxy.run("createdb", &format!("-T template0 {database}"));
    let other = format!("{database}_other");
    for (used, step) in [
        (
            &database,
            format!("create database {database}_copy template {database}"),
        ),
        (&database, format!("alter database {database} rename to {other}")),
        (&other, format!("alter database {other} rename to {database}")),
        (&database, format!("drop database {database}")),
    ] {
        proxy.sql(&format!("-d {used}"), "create table if not exists t ()");
        proxy.sql("-d postgres", &step);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_is_dropped_and_made_anew_is_another_one() {
    let bench = Bench::start().await;
    let role = format!("{}_role", bench.scene.database);
    let (proxy, teller) = (bench.proxy(), format!("-U {role} -d postgres"));
    let name = "/* pgsluice: primary */ select current_user";
    proxy.sql("-d postgres", &format!("create role {role} login"));
    assert_eq!(proxy.sql(&teller, name), role);
    proxy.sql("-d postgres", &format!("drop role {role}"));
    let said = proxy.feed("psql", &format!("-X {teller}"), "/* pgsluice: primary */ select 1");
    assert!(!said.succeeded && said.text.contains("does not exist"), "{said:?}");
    proxy.sql("-d postgres", &format!("create role {role} login"));
    until("the new role gets in", async || {
        proxy.feed("psql", &format!("-X {teller}"), "select 1").succeeded
    })
    .await;
    assert_eq!(proxy.sql(&teller, name), role);
}
