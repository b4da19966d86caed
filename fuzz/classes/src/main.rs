//! A differential fuzz of pgsluice's classes: mutated statements, judged by the product and by PostgreSQL's own grammar. The README beside it
//! says what it compares and how to run it.

mod compare;
mod dice;
mod facts;
mod grammar;
mod live;
mod minimize;
mod mutate;
mod oracle;
mod pieces;
mod report;
mod seeds;

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;

use compare::compare;
use dice::Dice;
use facts::Facts;
use report::Report;
use seeds::Seeds;

/// Compares pgsluice's classes of mutated statements with what PostgreSQL's own grammar says of them.
#[derive(Debug, Parser)]
struct Args {
    /// How many texts to try.
    #[arg(default_value_t = 1_000_000)]
    tries: u64,
    /// Another seed makes other texts.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The number of the first try.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// How many threads; all cores if it isn't said.
    #[arg(long)]
    threads: Option<usize>,
    /// Print the text of one try, by its number, and what both say of it.
    #[arg(long)]
    only: Option<u64>,
    /// Judge this text instead of mutants.
    #[arg(long)]
    sql: Option<String>,
    /// Run what is called a read on a standby at this port of 127.0.0.1 too, and on its primary.
    #[arg(long, requires = "primary")]
    standby: Option<u16>,
    /// The primary's port.
    #[arg(long, requires = "standby")]
    primary: Option<u16>,
    /// The user to log in as, to database postgres.
    #[arg(long, default_value = "postgres")]
    user: String,
}

/// Trees may be deep.
const STACK: usize = 64 << 20;

fn main() -> ExitCode {
    let args = Args::parse();
    let run = std::thread::Builder::new().stack_size(STACK).spawn(move || run(&args));
    match run.expect("a thread").join() {
        Ok(code) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

fn run(args: &Args) -> ExitCode {
    let facts = Facts::load();
    if let Some(sql) = &args.sql {
        println!("{:#?}", compare(sql, &facts));
        return ExitCode::SUCCESS;
    }
    let seeds = Seeds::load(&facts);
    if let Some(number) = args.only {
        let text = mutate::mutant(&seeds, &mut Dice::new(args.seed, number));
        println!("{text}\n{:#?}", compare(&text, &facts));
        return ExitCode::SUCCESS;
    }
    if let (Some(standby), Some(primary)) = (args.standby, args.primary) {
        let cluster = live::Cluster {
            standby,
            primary,
            user: args.user.clone(),
        };
        return live::run(&cluster, args.seed, args.from..args.from + args.tries, seeds, &facts);
    }
    let started = Instant::now();
    let report = all(args, &seeds, &facts);
    print(&report, args.seed, &facts);
    println!("{} in {:.0?}", report.line(), started.elapsed());
    if report.examples.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// All tries, over the threads.
fn all(args: &Args, seeds: &Seeds, facts: &Facts) -> Report {
    let threads = args
        .threads
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)) as u64;
    let done = AtomicU64::new(0);
    let mut report = Report::default();
    std::thread::scope(|scope| {
        let done = &done;
        let workers: Vec<_> = (0..threads)
            .map(|thread| {
                let numbers = (args.from + thread..args.from + args.tries).step_by(threads as usize);
                let work = move || some(args.seed, numbers, seeds, facts, done);
                let worker = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work);
                worker.expect("a thread")
            })
            .collect();
        let mut told = Instant::now();
        while !workers.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            std::thread::sleep(Duration::from_millis(50));
            if told.elapsed() > Duration::from_secs(30) {
                told = Instant::now();
                eprintln!("{} of {} tries", done.load(Ordering::Relaxed), args.tries);
            }
        }
        for worker in workers {
            report.merge(worker.join().expect("a worker that panicked has told where"));
        }
    });
    report
}

fn some(seed: u64, numbers: impl Iterator<Item = u64>, seeds: &Seeds, facts: &Facts, done: &AtomicU64) -> Report {
    let mut report = Report::default();
    for number in numbers {
        let text = mutate::mutant(seeds, &mut Dice::new(seed, number));
        let compared = std::panic::catch_unwind(|| compare(&text, facts));
        match compared {
            Ok(comparison) => report.add(number, &text, &comparison),
            Err(panic) => {
                eprintln!("try {number} of seed {seed} panicked: {text}");
                std::panic::resume_unwind(panic);
            }
        }
        done.fetch_add(1, Ordering::Relaxed);
    }
    report
}

/// Violations, each in the smallest text that still shows it, and what the product could learn.
fn print(report: &Report, seed: u64, facts: &Facts) {
    for (violation, example) in &report.examples {
        let same = |text: &str| compare(text, facts).violation.as_ref() == Some(violation);
        let small = minimize::minimize(&example.text, same);
        println!(
            "VIOLATION {}: {} (seed {seed}, try {})\n    {small}",
            violation.kind, violation.detail, example.number
        );
    }
    let print = |title: &str, entries: &mut Vec<(&str, &(u64, String))>| {
        entries.sort_by_key(|(_, (number, _))| std::cmp::Reverse(*number));
        for (name, (number, text)) in entries.iter().take(25) {
            println!("{title} {name}: {number}, as in\n    {}", text.replace('\n', "\\n"));
        }
    };
    print(
        "a read called a write,",
        &mut report
            .missed
            .iter()
            .map(|(name, entry)| (name.as_str(), entry))
            .collect(),
    );
    print(
        "called a read in spite of",
        &mut report.doubts.iter().map(|(name, entry)| (*name, entry)).collect(),
    );
}
