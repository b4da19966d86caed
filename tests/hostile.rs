//! Clients that are broken, slow, gone or mean: they harm themselves. After each of them the proxy serves the next, nothing of theirs is
//! left on it or on the nodes, and what it holds in memory stays bounded.

mod support;

use std::time::{Duration, Instant};

use support::dice::Dice;
use support::scene::{Scene, until};
use support::wire::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What a test may make the proxy's process grow by.
const ROOM_KB: u64 = 64 * 1024;

/// Watches the proxy's memory.
struct Memory<'a> {
    scene: &'a Scene,
    before: u64,
}

impl<'a> Memory<'a> {
    async fn of(scene: &'a Scene) -> Memory<'a> {
        // Serving once has set up what is set up once.
        scene.serves().await;
        Memory {
            scene,
            before: scene.memory_kb(),
        }
    }

    #[track_caller]
    fn is_bounded(&self) {
        let now = self.scene.memory_kb();
        assert!(
            now < self.before + ROOM_KB,
            "the proxy grew from {} KB to {now} KB",
            self.before
        );
    }
}

/// A first packet that is none, and what becomes of its sender: told why at most, and closed.
async fn is_refused(scene: &Scene, what: &str, bytes: &[u8]) {
    let mut client = Wire::open(scene.proxy.port).await;
    // It may be closed while it still sends.
    let _ = client.try_send(bytes).await;
    let answer = client.rest().await;
    if let Some(last) = answer.last() {
        assert!(matches!(&*tags(&answer), "E" | "RE"), "{what}: {}", show(&answer));
        assert_eq!(last.field(b'S').as_deref(), Some("FATAL"), "{what}: {last}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_the_protocol_is_closed() {
    let scene = Scene::start("[listen]\nlogin_timeout = \"1s\"\n").await;
    let memory = Memory::of(&scene).await;
    let http = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
    is_refused(&scene, "HTTP", http).await;
    is_refused(&scene, "a long request of HTTP", &http.repeat(10_000)).await;
    // A TLS 1.3 ClientHello's beginning; no certificate is configured.
    let hello = [&[0x16, 3, 1, 1, 0, 1, 0, 0, 0xfc, 3, 3][..], &[7; 245]].concat();
    is_refused(&scene, "TLS", &hello).await;
    is_refused(&scene, "SSH", b"SSH-2.0-OpenSSH_9.2\r\n").await;
    is_refused(&scene, "zeroes", &[0; 100_000]).await;
    is_refused(&scene, "ones", &[0xff; 100_000]).await;
    for length in [
        0_u32,
        1,
        3,
        4,
        7,
        10_005,
        10_000_000,
        0x3fff_ffff,
        0x7fff_ffff,
        0xffff_ffff,
    ] {
        let bytes = [&length.to_be_bytes()[..], &[0, 3, 0, 0]].concat();
        is_refused(&scene, &format!("a length of {length}"), &bytes).await;
    }
    let ten_megabytes = startup(0, &[("user", "postgres"), ("options", &"x".repeat(10_000_000))]);
    is_refused(&scene, "ten megabytes of parameters", &ten_megabytes).await;
    let parameters: Vec<(String, String)> = (0..900).map(|n| (format!("p{n}"), "v".into())).collect();
    let mut many: Vec<(&str, &str)> = parameters.iter().map(|(name, value)| (&**name, &**value)).collect();
    many.push(("user", "postgres"));
    is_refused(&scene, "parameters that no server has", &startup(0, &many)).await;
    for (what, body) in [
        ("protocol 2", &b"\0\x02\0\0user\0postgres\0\0"[..]),
        ("protocol 4", b"\0\x04\0\0user\0postgres\0\0"),
        ("no user", b"\0\x03\0\0database\0postgres\0\0"),
        ("an empty user", b"\0\x03\0\0user\0\0\0"),
        ("no end", b"\0\x03\0\0user\0postgres"),
        ("a name without a value", b"\0\x03\0\0user\0"),
        ("more after the end", b"\0\x03\0\0user\0postgres\0\0user\0postgres\0\0"),
        ("not UTF-8", b"\0\x03\0\0user\0\xff\xfe\0\0"),
        ("no such user", b"\0\x03\0\0user\0nobody of that name\0\0"),
        ("no such database", b"\0\x03\0\0user\0postgres\0database\0nowhere\0\0"),
        (
            "a setting that isn't one",
            b"\0\x03\0\0user\0postgres\0DateStyle\0nonsense\0\0",
        ),
        ("options that are none", b"\0\x03\0\0user\0postgres\0options\0--\0\0"),
        ("a cancel request without a key", b"\x04\xd2\x16\x2e\0\0\0\x01"),
        (
            "a cancel request of 300 bytes",
            &[&b"\x04\xd2\x16\x2e\0\0\0\x01"[..], &[1; 300]].concat(),
        ),
    ] {
        is_refused(&scene, what, &packet(body)).await;
    }
    let mut dice = Dice::new(1);
    for _ in 0..200 {
        let count = 1 + dice.below(300);
        let bytes = dice.bytes(count);
        is_refused(&scene, &format!("{}", bytes.escape_ascii()), &bytes).await;
    }
    memory.is_bounded();
    scene.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_for_encryption_are_answered_and_not_abused() {
    let scene = Scene::start("[listen]\nlogin_timeout = \"1s\"\n").await;
    let ssl = packet(&[0x04, 0xd2, 0x16, 0x2f]);
    let gss = packet(&[0x04, 0xd2, 0x16, 0x30]);
    let own = startup(0, &[("user", "postgres"), ("database", &scene.database)]);
    // In either order, each once, and then a login as if nothing had been asked.
    for asked in [vec![&ssl], vec![&gss], vec![&ssl, &gss], vec![&gss, &ssl]] {
        let mut client = scene_socket(&scene).await;
        for request in asked {
            client.write_all(request).await.expect("sent");
            assert_eq!(client.read_u8().await.expect("an answer"), b'N');
        }
        client.write_all(&own).await.expect("sent");
        assert_eq!(client.read_u8().await.expect("an answer"), b'R');
    }
    for again in [&ssl, &gss] {
        let mut client = scene_socket(&scene).await;
        client.write_all(again).await.expect("sent");
        assert_eq!(client.read_u8().await.expect("an answer"), b'N');
        client.write_all(again).await.expect("sent");
        assert_eq!(client.read_u8().await.expect("an answer"), b'E');
    }
    // After the refusal TLS is spoken all the same.
    let mut client = scene_socket(&scene).await;
    client.write_all(&ssl).await.expect("sent");
    assert_eq!(client.read_u8().await.expect("an answer"), b'N');
    client
        .write_all(&[0x16, 3, 1, 0, 5, 1, 0, 0, 1, 0])
        .await
        .expect("sent");
    let mut rest = Vec::new();
    let _ = within("the end", client.read_to_end(&mut rest)).await;
    scene.settled().await;
}

async fn scene_socket(scene: &Scene) -> tokio::net::TcpStream {
    tokio::net::TcpStream::connect(("127.0.0.1", scene.proxy.port))
        .await
        .expect("a connection")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_that_stops_half_way_is_closed_in_time() {
    let scene = Scene::start("[listen]\nlogin_timeout = \"1s\"\n").await;
    let own = startup(0, &[("user", "postgres"), ("database", &scene.database)]);
    let begun = Instant::now();
    let mut halves = Vec::new();
    for cut in [0, 1, 4, 7, 8, 20, own.len() - 1] {
        let mut client = Wire::open(scene.proxy.port).await;
        client.send(&own[..cut]).await;
        halves.push(client);
    }
    // One that never falls silent for long doesn't get more time.
    let mut trickle = scene_socket(&scene).await;
    let trickles = tokio::spawn(async move {
        let long = startup(0, &[("user", "postgres"), ("application_name", &"x".repeat(9000))]);
        for byte in long {
            tokio::time::sleep(Duration::from_millis(20)).await;
            if trickle.write_all(&[byte]).await.is_err() {
                return true;
            }
        }
        false
    });
    scene.serves().await;
    for mut client in halves {
        assert_eq!(client.rest_of_bytes().await, b"");
    }
    assert!(
        begun.elapsed() >= Duration::from_millis(900),
        "after {:?}",
        begun.elapsed()
    );
    assert!(within("the trickle's end", trickles).await.expect("no panic"));
    scene.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_message_after_login_holds_up_nobody() {
    let scene = Scene::start("[pool]\nsize = 1\n").await;
    scene.serves().await;
    let requests = [
        query("select 'whole'"),
        [extended("select 'whole'", &[]), sync()].concat(),
        [
            parse("s", "select 'whole'", &[]),
            sync(),
            bind("", "s", &[]),
            execute("", 0),
            sync(),
        ]
        .concat(),
    ];
    let mut halves = Vec::new();
    for bytes in &requests {
        for cut in [1, 3, 5, 6, 12, bytes.len() - 6, bytes.len() - 1] {
            let mut client = scene.wire().await;
            client.send(&bytes[..cut]).await;
            halves.push((client, &bytes[cut..]));
        }
    }
    // More than the pool has connections: a half message has none.
    scene.serves().await;
    for (mut client, rest) in halves {
        client.send(rest).await;
        let mut answer = client.answer().await;
        if firsts(&answer).is_empty() {
            answer = client.answer().await;
        }
        assert_eq!(firsts(&answer), ["whole"], "{}", show(&answer));
    }
    scene.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claimed_gigabyte_costs_no_memory() {
    let scene = Scene::start("").await;
    let memory = Memory::of(&scene).await;
    const GIGABYTE: u32 = 0x3fff_ffff;
    let claim = |tag: u8, front: &[u8]| {
        let mut bytes = vec![tag];
        bytes.extend_from_slice(&GIGABYTE.to_be_bytes());
        bytes.extend_from_slice(front);
        // As much as would be kept if all of it were.
        bytes.resize(6_000_000, b' ');
        bytes
    };
    let fronts: [(u8, &[u8]); 6] = [
        (b'Q', b"select '"),
        (b'P', b"\0select '"),
        (b'P', b"named\0select '"),
        (b'B', b"\0\0"),
        (b'd', b"data"),
        (b'F', b"\0\0\0\x01"),
    ];
    let mut claiming = Vec::new();
    for (tag, front) in fronts {
        for _ in 0..4 {
            let mut client = scene.wire().await;
            client.send(&claim(tag, front)).await;
            claiming.push(client);
        }
    }
    memory.is_bounded();
    scene.serves().await;
    for (at, client) in claiming.into_iter().enumerate() {
        if at % 2 == 0 { client.vanish() } else { client.reset() }
    }
    scene.settled().await;
    memory.is_bounded();
    for tag in b"DECHSXcfp" {
        let mut client = scene.wire().await;
        client
            .send(&[&[*tag][..], &GIGABYTE.to_be_bytes(), b"S\0"].concat())
            .await;
        is_fatal(&mut client, &format!("a gigabyte of {}", char::from(*tag))).await;
    }
    // Beyond what any server takes.
    for tag in b"QPBdF" {
        let mut client = scene.wire().await;
        client
            .send(&[&[*tag][..], &0x4000_0000_u32.to_be_bytes()].concat())
            .await;
        is_fatal(&mut client, &format!("more than a gigabyte of {}", char::from(*tag))).await;
    }
    scene.settled().await;
    memory.is_bounded();
}

/// The client is told FATAL 08P01, and then closed.
async fn is_fatal(client: &mut Wire, what: &str) {
    let answer = client.rest().await;
    let last = answer.last().unwrap_or_else(|| panic!("{what}: closed without a word"));
    assert_eq!(last.tag, b'E', "{what}: {}", show(&answer));
    assert_eq!(
        (last.field(b'S').as_deref(), &*last.code()),
        (Some("FATAL"), "08P01"),
        "{what}: {last}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lengths_below_four_are_refused() {
    let scene = Scene::start("").await;
    for tag in b"QPBEDCSHdcfFp" {
        for length in [0_u32, 1, 3, 0x8000_0000, 0xffff_ffff] {
            let mut client = scene.wire().await;
            client
                .send(&[&[*tag][..], &length.to_be_bytes(), b"more"].concat())
                .await;
            is_fatal(&mut client, &format!("{} of {length}", char::from(*tag))).await;
        }
    }
    scene.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_unknown_type_are_refused_wherever_they_come() {
    let scene = Scene::start("").await;
    for tag in (0..=255_u8).filter(|tag| !b"QPBEDCSHdcfFX".contains(tag)) {
        let mut client = scene.wire().await;
        client.send(&message(tag, b"")).await;
        is_fatal(&mut client, &format!("type {tag}")).await;
    }
    // Behind a good request: that one is answered first.
    let mut client = scene.wire().await;
    client
        .send(&[query("select 'good'"), message(b'?', b"")].concat())
        .await;
    assert_eq!(firsts(&client.answer().await), ["good"]);
    is_fatal(&mut client, "behind a query").await;
    // In a block, in an open batch, and in the middle of a COPY: the server connection goes with it.
    let mut client = scene.wire().await;
    client.run("begin; create table hostile (n int)").await;
    client.send(&message(b'?', b"")).await;
    is_fatal(&mut client, "in a block").await;
    let mut client = scene.wire().await;
    client.send(&[extended("select 1", &[]), flush()].concat()).await;
    client.until(b'C').await;
    client.send(&message(b'?', b"")).await;
    is_fatal(&mut client, "in a batch").await;
    let mut client = scene.wire().await;
    client.run("create table hostile (n int)").await;
    client.send(&query("copy hostile from stdin")).await;
    client.until(b'G').await;
    client.send(&[copy_data(b"1\n"), message(b'?', b"")].concat()).await;
    is_fatal(&mut client, "in a COPY").await;
    scene.settled().await;
    assert_eq!(scene.wire().await.value("select count(*) from hostile").await, "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_bodies_harm_only_their_sender() {
    let scene = Scene::start("").await;
    let bodies: [(&str, Vec<u8>); 12] = [
        ("a Query without an end", message(b'Q', b"select 1")),
        ("a Query of nothing", message(b'Q', b"")),
        ("a Query with two texts", message(b'Q', b"select 1\0select 2\0")),
        ("a Parse without types", message(b'P', b"\0select 1\0")),
        (
            "a Parse with fewer types than it says",
            message(b'P', b"\0select 1\0\0\x07\0\0\0\x17"),
        ),
        ("a Parse of nothing", message(b'P', b"")),
        ("a Bind without names", message(b'B', b"portal")),
        ("a Describe of something else", message(b'D', b"Xname\0")),
        ("a Close of nothing", message(b'C', b"")),
        ("a Bind that ends early", message(b'B', b"\0\0\0\x05")),
        ("an Execute of nothing", message(b'E', b"")),
        ("a FunctionCall of nothing", message(b'F', b"")),
    ];
    for (what, bytes) in bodies {
        let mut client = scene.wire().await;
        client.send(&[bytes, sync(), query("select 'next'")].concat()).await;
        // The proxy refuses it and closes, or the server refuses it and the session goes on.
        let mut codes = Vec::new();
        let mut went_on = false;
        while let Some(message) = client.next().await {
            match message.tag {
                b'E' => codes.push(message.code()),
                b'D' => {
                    went_on = true;
                    break;
                }
                _ => {}
            }
        }
        assert!(
            // The server looks for the statement before it looks at the rest of a Bind.
            codes.iter().any(|code| code == "08P01" || code == "26000"),
            "{what}: {codes:?}, went on: {went_on}"
        );
        drop(client);
        scene.serves().await;
    }
    scene.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_passwords_is_cut_off() {
    let users = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(users.path(), "\"postgres\" \"secret\"\n").expect("a users file");
    for method in ["scram-sha-256", "md5"] {
        let sections = format!(
            "[auth]\nmethod = \"{method}\"\nusers = \"{}\"\n[listen]\nlogin_timeout = \"5s\"\n",
            users.path().display()
        );
        let scene = Scene::start(&sections).await;
        let own = startup(0, &[("user", "postgres"), ("database", &scene.database)]);
        let before = scene.memory_kb();
        for flood in [
            message(b'p', b"wrong\0").repeat(100_000),
            message(b'p', &[b'x'; 9000]).repeat(500),
            [&b"p\x3f\xff\xff\xff"[..], &[b'x'; 1_000_000]].concat(),
            query("select 1").repeat(10_000),
            message(b'p', b"SCRAM-SHA-256\0\0\0\0\x10n,,n=,r=abcdefghi"),
            sync(),
            vec![b'p', 0, 0, 0, 3],
        ] {
            let mut client = Wire::open(scene.proxy.port).await;
            client.send(&own).await;
            assert_eq!(client.expect().await.tag, b'R');
            let _ = client.try_send(&flood).await;
            // What is answered at all is a request for the next step or an error, never a session.
            client.finish().await;
            for message in client.rest().await {
                assert!(matches!(message.tag, b'R' | b'E'), "{method}: {message}");
            }
        }
        assert!(scene.memory_kb() < before + ROOM_KB);
        let dsn = format!("{} password=secret", scene.proxy.dsn());
        let client = support::client(&dsn).await;
        client
            .batch_execute("select 1")
            .await
            .expect("a right password logs in");
        drop(client);
        until("all have left", async || scene.proxy.status().clients.total == 0).await;
    }
}

/// Sends all of `bytes` while whatever comes back is counted, by type, until there are this many of type `Z`.
async fn flood(client: Wire, bytes: Vec<u8>, ready: usize) -> std::collections::BTreeMap<char, usize> {
    let (mut from, mut to) = client.split();
    let sends = tokio::spawn(async move {
        within("sending", to.write_all(&bytes)).await.expect("sent");
        to
    });
    let mut counts = std::collections::BTreeMap::new();
    let mut buffer = Vec::with_capacity(1 << 20);
    while counts.get(&'Z').copied().unwrap_or(0) < ready {
        let count = within("an answer", from.read_buf(&mut buffer)).await.expect("a read");
        assert!(count > 0, "closed after {counts:?}");
        let mut at = 0;
        while let Some((tag, length)) = header(&buffer[at..])
            && buffer.len() - at > length
        {
            *counts.entry(char::from(tag)).or_insert(0) += 1;
            at += length + 1;
        }
        buffer.drain(..at);
    }
    assert!(buffer.is_empty());
    drop(sends.await.expect("sent"));
    counts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_tiny_messages_are_answered_one_by_one() {
    let scene = Scene::start("").await;
    let memory = Memory::of(&scene).await;
    const MANY: usize = 100_000;
    let counts = |pairs: &[(char, usize)]| pairs.iter().copied().collect::<std::collections::BTreeMap<_, _>>();
    let answered = flood(scene.wire().await, sync().repeat(MANY), MANY).await;
    assert_eq!(answered, counts(&[('Z', MANY)]));
    let answered = flood(scene.wire().await, [flush().repeat(MANY), sync()].concat(), 1).await;
    assert_eq!(answered, counts(&[('Z', 1)]));
    let close = [close(b'S', "x").repeat(MANY), sync()].concat();
    assert_eq!(
        flood(scene.wire().await, close, 1).await,
        counts(&[('3', MANY), ('Z', 1)])
    );
    let closes_and_syncs = [support::wire::close(b'S', "x"), sync()].concat().repeat(MANY / 4);
    let answered = flood(scene.wire().await, closes_and_syncs, MANY / 4).await;
    assert_eq!(answered, counts(&[('3', MANY / 4), ('Z', MANY / 4)]));
    let copy = [copy_data(b"").repeat(MANY), copy_done(), sync()].concat();
    assert_eq!(flood(scene.wire().await, copy, 1).await, counts(&[('Z', 1)]));
    let parse = [parse("", "select 1", &[]).repeat(MANY / 4), sync()].concat();
    let answered = flood(scene.wire().await, parse, 1).await;
    assert_eq!(answered, counts(&[('1', MANY / 4), ('Z', 1)]));
    let answered = flood(scene.wire().await, query("").repeat(MANY / 5), MANY / 5).await;
    assert_eq!(answered, counts(&[('I', MANY / 5), ('Z', MANY / 5)]));
    let answered = flood(
        scene.wire().await,
        [bind("", "none", &[]).repeat(MANY), sync()].concat(),
        1,
    )
    .await;
    assert_eq!(answered, counts(&[('E', 1), ('Z', 1)]));
    memory.is_bounded();
    scene.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_holds_up_itself_only() {
    let scene = Scene::start("[pool]\nsize = 2\n").await;
    let memory = Memory::of(&scene).await;
    let rows = 60_000;
    let sql = format!("select g, repeat('x', 1000) from generate_series(1, {rows}) g");
    for request in [query(&sql), [extended(&sql, &[]), sync()].concat()] {
        let mut slow = scene.wire().await;
        slow.send(&request).await;
        until("the server waits for its reader", async || {
            let waiting = scene.backends("wait_event = 'ClientWrite'").await;
            waiting.iter().any(|count| count != "0")
        })
        .await;
        memory.is_bounded();
        scene.serves().await;
        let mut expected = 1;
        let answer = loop {
            let message = slow.expect().await;
            match message.tag {
                b'D' => {
                    let cells = message.cells();
                    assert_eq!(cells[0].as_deref(), Some(&*expected.to_string()));
                    assert!(cells[1].as_deref().is_some_and(|x| x.len() == 1000));
                    expected += 1;
                }
                b'Z' => break expected - 1,
                _ => {}
            }
        };
        assert_eq!(answer, rows);
        assert_eq!(slow.value("select 'on'").await, "on");
    }
    memory.is_bounded();
    scene.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_does_not_read_holds_the_client_back() {
    let scene = Scene::start("[pool]\nsize = 2\n").await;
    let mut locker = scene.direct().await;
    locker
        .run(
            "create table slow (n text);
            create function waits() returns trigger language plpgsql as
                $$ begin perform pg_advisory_xact_lock_shared(7); return new; end $$;
            create trigger waits before insert on slow for each row execute function waits()",
        )
        .await;
    let memory = Memory::of(&scene).await;
    let lines = 150_000;
    let line = format!("{}\n", "x".repeat(999));
    let piece = copy_data(line.repeat(100).as_bytes());
    let copy = [query("copy slow from stdin"), Vec::new()];
    let batch = [parse("", "select pg_advisory_lock_shared(7)", &[]), Vec::new()];
    for (what, begin, piece, end) in [
        ("COPY", copy.concat(), piece, copy_done()),
        (
            "a batch without its Sync",
            [batch.concat(), bind("", "", &[]), execute("", 0), flush()].concat(),
            close(b'S', &"n".repeat(9000)).repeat(11),
            sync(),
        ),
    ] {
        locker.run("select pg_advisory_lock(7)").await;
        let mut client = scene.wire().await;
        client.send(&begin).await;
        if what == "COPY" {
            client.until(b'G').await;
        }
        let (mut from, mut to) = client.split();
        let sent = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let sends = tokio::spawn({
            let sent = std::sync::Arc::clone(&sent);
            async move {
                for _ in 0..lines / 100 {
                    within("sending", to.write_all(&piece)).await.expect("sent");
                    sent.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }
                within("sending", to.write_all(&end)).await.expect("sent");
                to
            }
        });
        // Held back is who gets nothing more off for half a second.
        let mut last = (0, Instant::now());
        until("the client is held back, or has sent all", async || {
            let now = sent.load(std::sync::atomic::Ordering::Relaxed);
            if now != last.0 {
                last = (now, Instant::now());
            }
            now > 0 && last.1.elapsed() > Duration::from_millis(500)
        })
        .await;
        memory.is_bounded();
        scene.serves().await;
        locker.run("select pg_advisory_unlock(7)").await;
        let to = within("all is sent", sends).await.expect("sent");
        let mut answer = Vec::new();
        while !answer.ends_with(b"Z\0\0\0\x05I") {
            let count = within("the answer", from.read_buf(&mut answer)).await.expect("a read");
            assert!(count > 0, "{what}: closed");
        }
        if what == "COPY" {
            let told = format!("C\0\0\0\x10COPY {lines}\0Z\0\0\0\x05I");
            assert_eq!(String::from_utf8_lossy(&answer), told);
        }
        drop((from, to));
        scene.settled().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_sends_byte_by_byte_is_served() {
    let scene = Scene::start("").await;
    let mut client = Wire::open(scene.proxy.port).await;
    for byte in startup(0, &[("user", "postgres"), ("database", &scene.database)]) {
        client.send(&[byte]).await;
        tokio::task::yield_now().await;
    }
    client.greeted().await;
    let batches = [
        query("select 'slow'"),
        [extended("select $1::text", &[Some("slow")]), sync()].concat(),
        [
            parse("named", "select 'slow'", &[]),
            flush(),
            bind("", "named", &[]),
            execute("", 0),
            sync(),
        ]
        .concat(),
    ];
    for bytes in batches {
        for byte in bytes {
            client.send(&[byte]).await;
            tokio::task::yield_now().await;
        }
        assert_eq!(firsts(&client.answer().await), ["slow"]);
    }
    client.run("create table slow (n int)").await;
    for byte in [
        query("copy slow from stdin"),
        copy_data(b"1\n2\n"),
        copy_data(b"3\n"),
        copy_done(),
    ]
    .concat()
    {
        client.send(&[byte]).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(tags(&client.answer().await), "GCZ");
    assert_eq!(client.value("select sum(n) from slow").await, "6");
    drop(client);
    scene.settled().await;
}

/// A way to be in the middle of something: what is sent, what is waited for, and what is run on the primary before.
struct Middle {
    what: &'static str,
    sent: Vec<Vec<u8>>,
    /// Waited for after each but the last of `sent`.
    seen: u8,
    /// On some node, once the last is sent.
    busy: Option<&'static str>,
}

fn middles() -> Vec<Middle> {
    let middle = |what, sent: &[Vec<u8>], seen, busy| Middle {
        what,
        sent: sent.to_vec(),
        seen,
        busy,
    };
    let sleeps = Some("state = 'active' and query like '%pg_sleep%'");
    let in_block = Some("state = 'idle in transaction'");
    vec![
        middle("a read", &[query("select pg_sleep(100)")], b'Z', sleeps),
        middle(
            "a read by the extended protocol",
            &[[extended("select pg_sleep(100)", &[]), sync()].concat()],
            b'Z',
            sleeps,
        ),
        middle(
            "a block",
            &[query("begin; insert into left_behind values (1); lock left_behind")],
            b'Z',
            in_block,
        ),
        middle(
            "a statement in a block",
            &[
                query("begin; insert into left_behind values (1)"),
                query("select pg_sleep(100)"),
            ],
            b'Z',
            sleeps,
        ),
        middle(
            "a READ ONLY block",
            &[query("begin read only"), query("select 1")],
            b'Z',
            in_block,
        ),
        middle(
            "a COPY from the client",
            &[query("copy left_behind from stdin"), copy_data(b"1\n2\n")],
            b'G',
            Some("state = 'active' and query like 'copy%'"),
        ),
        middle(
            "a CopyData of a COPY from the client",
            &[query("copy left_behind from stdin"), b"d\0\x01\0\x001\n2\n".to_vec()],
            b'G',
            Some("state = 'active' and query like 'copy%'"),
        ),
        middle(
            "a COPY to the client",
            &[query(
                "copy (select repeat('x', 1000) from generate_series(1, 1000000)) to stdout",
            )],
            b'H',
            Some("wait_event = 'ClientWrite'"),
        ),
        middle(
            "a long answer",
            &[query("select repeat('x', 1000) from generate_series(1, 1000000)")],
            b'T',
            Some("wait_event = 'ClientWrite'"),
        ),
        middle(
            "a batch that was flushed",
            &[[extended("insert into left_behind values (1)", &[]), flush()].concat()],
            b'C',
            Some("query like 'insert into left_behind%'"),
        ),
        middle(
            "a batch that sleeps",
            &[
                [
                    extended("insert into left_behind values (1)", &[]),
                    extended("select pg_sleep(100)", &[]),
                ]
                .concat(),
                flush(),
            ],
            0,
            sleeps,
        ),
        middle("half a query", &[query("select 1")[..7].to_vec()], b'Z', None),
        middle("half a batch", &[extended("select 1", &[])], b'Z', None),
        middle(
            "a listening session",
            &[query("listen here"), query("create temp table mine (n int)")],
            b'Z',
            Some("state = 'idle' and query like 'create temp%'"),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_vanish_leave_nothing_behind() {
    let scene = Scene::start("[pool]\nsize = 2\n").await;
    scene.direct().await.run("create table left_behind (n int)").await;
    scene.caught_up().await;
    for middle in middles() {
        for reset in [false, true] {
            let mut client = scene.wire().await;
            for (at, sent) in middle.sent.iter().enumerate() {
                client.send(sent).await;
                if at + 1 < middle.sent.len() && middle.seen != 0 {
                    client.until(middle.seen).await;
                }
            }
            if let Some(busy) = middle.busy {
                until(middle.what, async || {
                    scene.backends(busy).await.iter().any(|count| count != "0")
                })
                .await;
            }
            // Shown if what follows fails.
            println!("{}, reset: {reset}", middle.what);
            let vanished = Instant::now();
            if reset {
                client.reset()
            } else {
                client.vanish()
            }
            scene.settled().await;
            assert!(
                vanished.elapsed() < Duration::from_secs(20),
                "{}: what it left took {:?} to go",
                middle.what,
                vanished.elapsed()
            );
            let mut direct = scene.direct().await;
            let left = "select count(*) from left_behind";
            assert_eq!(direct.value(left).await, "0", "{}, reset: {reset}", middle.what);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_whose_clients_vanished_still_count_in_the_pool() {
    let scene = Scene::start("[pool]\nsize = 2\n").await;
    let mut locker = scene.direct().await;
    locker.run("create table left_behind (n int)").await;
    let memory = Memory::of(&scene).await;
    locker.run("select pg_advisory_lock(7)").await;
    let running = "query like 'insert into left_behind%' and state = 'active'";
    let count = async || scene.backends(running).await[0].parse::<usize>().expect("a count");
    for round in 0..6 {
        let mut client = scene.wire().await;
        client
            .send(&query("insert into left_behind select 1 from pg_advisory_xact_lock(7)"))
            .await;
        until("it runs, or waits for a connection", async || {
            let waiting: u64 = scene.proxy.status().pools.iter().map(|pool| pool.waiting).sum();
            count().await > round || waiting > 0
        })
        .await;
        client.vanish();
        until("the proxy has noticed", async || {
            scene.proxy.status().clients.total == 0
        })
        .await;
        let now = count().await;
        assert!(
            now <= 2,
            "{now} writes run on the primary, and the pool has 2 connections"
        );
    }
    locker.run("select pg_advisory_unlock(7)").await;
    scene.settled().await;
    memory.is_bounded();
    // Each of those that ran was carried out whole or not at all, and none of those that waited ran afterwards.
    let written: usize = locker
        .value("select count(*) from left_behind")
        .await
        .parse()
        .expect("a count");
    assert!(written <= 2, "{written} rows");
}

/// SQL that takes much stack or memory of whoever reads it.
fn monsters() -> Vec<(&'static str, String)> {
    let nested =
        |open: &str, n: usize, inner: &str, close: &str| format!("select {}{inner}{}", open.repeat(n), close.repeat(n));
    let numbers: Vec<String> = (0..800_000).map(|n| n.to_string()).collect();
    vec![
        ("100,000 parentheses", nested("(", 100_000, "1", ")")),
        ("100,000 open parentheses", nested("(", 100_000, "1", "")),
        ("20,000 nested selects", nested("(select ", 20_000, "1", ")")),
        (
            "66 KB of OR",
            format!("select {} false", "n = 1 or ".repeat(7_400)).replace("n =", "1 ="),
        ),
        ("a long sum", format!("select {}1", "1+".repeat(100_000))),
        ("a short sum", format!("select {}1", "1+".repeat(1_000))),
        ("100,000 minus signs", format!("select {}1", "- ".repeat(100_000))),
        ("100,000 NOTs", format!("select {} true", "not ".repeat(100_000))),
        (
            "5 MB of IN",
            format!(
                "select count(*) from generate_series(1, 10) g where g in ({})",
                numbers.join(",")
            ),
        ),
        (
            "5 MB of a literal",
            format!("select length('{}')", "x".repeat(5_000_000)),
        ),
        (
            "5 MB of comment",
            format!("select /* {} */ 'commented'", "x".repeat(5_000_000)),
        ),
        (
            "5,000 nested comments",
            format!("select {}{} 'nested'", "/*".repeat(5_000), "*/".repeat(5_000)),
        ),
        ("an open comment", format!("select {} 1", "/*".repeat(5_000))),
        ("an open string", format!("select '{}", "x".repeat(300_000))),
        (
            "an open dollar quote",
            format!("select $tag${}", "$tag ".repeat(60_000)),
        ),
        (
            "a long dollar tag",
            format!("select ${0}$inside${0}$", "t".repeat(100_000)),
        ),
        ("20,000 statements", "select 1;".repeat(20_000)),
        ("50,000 semicolons", ";".repeat(50_000)),
        ("10,000 casts", format!("select 1{}", "::int".repeat(10_000))),
        (
            "10,000 subscripts",
            format!("select (array[1]){}", "[1]".repeat(10_000)),
        ),
        ("10,000 nested arrays", nested("array[", 10_000, "1", "]")),
        ("10,000 cases", nested("case when true then ", 10_000, "1", " end")),
        ("10,000 calls", nested("abs(", 10_000, "1", ")")),
        (
            "10,000 UNIONs",
            format!("{} select 1", "select 1 union all ".repeat(10_000)),
        ),
        (
            "300 joins",
            format!(
                "select 1 from (select 1) t {}",
                (0..300)
                    .map(|n| format!("cross join (select 1) t{n}"))
                    .collect::<Vec<_>>()
                    .join(" ")
            ),
        ),
        (
            "5,000 CTEs",
            format!(
                "with {} select 1",
                (0..5_000)
                    .map(|n| format!("c{n} as (select 1)"))
                    .collect::<Vec<_>>()
                    .join(",")
            ),
        ),
        ("2,000 columns", format!("select {}1", "1,".repeat(1_999))),
        ("a long name", format!("select 1 as \"{}\"", "n".repeat(100_000))),
        (
            "binary in a literal",
            format!("select '{}'", "\u{1}\u{7f}\u{2028}".repeat(10_000)),
        ),
        (
            "a short sum with a comment in each",
            format!("select {}1", "1 /* a */ + ".repeat(1_000)),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deep_and_huge_sql_is_answered_as_by_the_server() {
    let scene = Scene::start("").await;
    let memory = Memory::of(&scene).await;
    let mut direct = scene.direct().await;
    let mut client = scene.wire().await;
    for (what, sql) in monsters() {
        let expected = direct.query(&sql).await;
        let answer = client.query(&sql).await;
        assert!(
            answer == expected,
            "{what}\n  {}\ndirect:\n  {}",
            show(&answer),
            show(&expected)
        );
        let batch = [extended(&sql, &[]), sync()].concat();
        let expected = direct.ask(&batch).await;
        let answer = client.ask(&batch).await;
        assert!(
            answer == expected,
            "{what}\n  {}\ndirect:\n  {}",
            show(&answer),
            show(&expected)
        );
    }
    drop((client, direct));
    memory.is_bounded();
    scene.settled().await;
}

/// A conversation of every kind of message, to be spoilt.
fn good_conversation() -> Vec<u8> {
    [
        query("select 1, 'text'; select 2"),
        extended("select $1::int", &[Some("3")]),
        sync(),
        parse("named", "select $1::text || 'x'", &[25]),
        describe(b'S', "named"),
        flush(),
        bind("portal", "named", &[Some("v")]),
        execute("portal", 1),
        close(b'P', "portal"),
        close(b'S', "named"),
        sync(),
        query("begin"),
        query("insert into spoilt values (1)"),
        query("rollback"),
        query("copy spoilt from stdin"),
        copy_data(b"1\n2\n"),
        copy_done(),
        query("copy spoilt to stdout"),
        function_call(177, &["1", "2"]),
        query("set application_name = 'spoilt'"),
        query("delete from spoilt"),
        terminate(),
    ]
    .concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spoilt_conversations_harm_only_their_speaker() {
    let scene = Scene::start("[pool]\nsize = 3\n").await;
    scene.direct().await.run("create table spoilt (n int)").await;
    let memory = Memory::of(&scene).await;
    let good = good_conversation();
    let mut dice = Dice::new(3);
    for round in 0..600 {
        let mut bytes = good.clone();
        for _ in 0..=dice.below(3) {
            let at = dice.below(bytes.len());
            match dice.below(6) {
                0 => bytes[at] = dice.below(256) as u8,
                1 => bytes[at] ^= 1 << dice.below(8),
                2 => bytes.truncate(at.max(1)),
                3 => drop(bytes.remove(at)),
                4 => {
                    let count = dice.below(20);
                    let more = dice.bytes(count);
                    bytes.splice(at..at, more);
                }
                _ => {
                    let end = (at + dice.below(40)).min(bytes.len());
                    let again = bytes[at..end].to_vec();
                    bytes.splice(at..at, again);
                }
            }
        }
        let mut client = scene.wire().await;
        if client.try_send(&bytes).await.is_ok() {
            match round % 4 {
                0 => client.vanish(),
                1 => client.reset(),
                _ => {
                    // Says that there will be no more, so that no proxy waits for the rest of a message.
                    client.finish().await;
                    client.rest_of_bytes().await;
                }
            }
        }
        if round % 100 == 99 {
            scene.settled().await;
        }
    }
    memory.is_bounded();
    scene.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_bodies_of_every_type_harm_only_their_sender() {
    let scene = Scene::start("[pool]\nsize = 3\n").await;
    let mut dice = Dice::new(4);
    for _ in 0..300 {
        let mut bytes = Vec::new();
        for _ in 0..=dice.below(8) {
            let count = dice.below(60);
            let mut body = dice.bytes(count);
            if dice.once_in(2) {
                body.push(0);
            }
            bytes.extend(message(dice.of(b"QPBEDCSHdcfF"), &body));
        }
        let mut client = scene.wire().await;
        let _ = client.try_send(&bytes).await;
        client.finish().await;
        client.rest_of_bytes().await;
    }
    scene.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_prepares_without_end_is_told_to_stop() {
    let scene = Scene::start("").await;
    let memory = Memory::of(&scene).await;
    let mut client = scene.wire().await;
    let text = format!("select 1 /* {} */", "x".repeat(1 << 20));
    let mut refused = Vec::new();
    for number in 0..24 {
        let steps = [
            parse(
                &format!("s{number}"),
                &text.replace("select 1", &format!("select {number}")),
                &[],
            ),
            sync(),
        ];
        refused = codes(&client.ask(&steps.concat()).await);
        if !refused.is_empty() {
            assert!(number >= 15, "refused after {number}");
            break;
        }
    }
    assert_eq!(refused, ["53200"]);
    // What it has goes on working, and closing some makes room.
    let run = |name: &str| [bind("", name, &[]), execute("", 0), sync()].concat();
    assert_eq!(codes(&client.ask(&run("s3")).await), Vec::<String>::new());
    client
        .ask(&[close(b'S', "s1"), close(b'S', "s2"), sync()].concat())
        .await;
    assert_eq!(
        codes(&client.ask(&[parse("new", "select 5", &[]), sync()].concat()).await),
        Vec::<String>::new()
    );
    assert_eq!(codes(&client.ask(&run("new")).await), Vec::<String>::new());
    memory.is_bounded();
}
