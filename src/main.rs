//! The command line, to one call in the library.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use pgsluice::admin::console_command::{self, Given};
use pgsluice::admin::explain_command::Explainer;
use pgsluice::admin::status_command::{self, Format};
use pgsluice::config::{self, Config, Overrides};
use pgsluice::{lab, proxy};

/// A PostgreSQL proxy: writes to the primary, reads over the standbys, through promotions
#[derive(Debug, Parser)]
#[command(name = "pgsluice", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the proxy
    Serve(ServeArgs),
    /// Check a configuration file: exit status 0, or 2 with every problem's key, line and a suggestion
    CheckConfig {
        /// The file
        file: PathBuf,
    },
    /// Tell what a statement is, what it does to its session, and why
    Explain(ExplainArgs),
    /// Show the nodes of a running proxy
    Status(StatusArgs),
    /// Make a standby the primary, through the console of a running proxy
    Switchover(SwitchoverArgs),
    /// Have the admin console of a running proxy carry out a command, such as "SHOW NODES"
    Console(ConsoleArgs),
    /// Build a replicated cluster on this machine, and play with it
    Lab(lab::LabCommand),
    /// Shows pgsluice at work
    Demo(lab::DemoCommand),
}

#[derive(Debug, Args)]
struct ServeArgs {
    /// The configuration file; without one, flags and PGSLUICE_* variables suffice
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// An address to listen on, instead of the file's
    #[arg(long, value_name = "ADDR")]
    listen: Vec<String>,
    /// A node of the cluster, instead of the file's
    #[arg(long, value_name = "HOST:PORT")]
    node: Vec<String>,
    /// The log as JSON, a line each
    #[arg(long)]
    log_json: bool,
}

#[derive(Debug, Args)]
struct ExplainArgs {
    /// A configuration file: the servers are asked what the database's own functions, views and types do
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The database that the statement is for [default: the monitor's]
    #[arg(long, value_name = "DB")]
    database: Option<String>,
    /// The user that sends it
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Read {"sql": "…"} lines from standard input, and print a JSON line for each
    #[arg(long)]
    batch: bool,
    /// The statement; without it, all of standard input
    sql: Option<String>,
}

#[derive(Debug, Args)]
struct StatusArgs {
    /// Where the proxy's admin server is
    #[arg(long, default_value = "http://127.0.0.1:9432")]
    url: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Show it again each second, until Ctrl-C
    #[arg(long)]
    watch: bool,
}

#[derive(Debug, Args)]
struct SwitchoverArgs {
    /// The standby [default: the one that fits best]
    #[arg(long, value_name = "NODE")]
    to: Option<String>,
    #[command(flatten)]
    door: ConsoleDoor,
}

#[derive(Debug, Args)]
struct ConsoleArgs {
    #[command(flatten)]
    door: ConsoleDoor,
    /// The command
    sql: String,
}

/// Where the console is. A password is taken from PGPASSWORD, or from the configuration's users file.
#[derive(Debug, Args)]
struct ConsoleDoor {
    /// The proxy's configuration file: where it listens, and who its first admin user is
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the proxy listens [default: the file's, PGHOST, or 127.0.0.1]
    #[arg(long)]
    host: Option<String>,
    /// Its port [default: the file's, PGPORT, or 5432]
    #[arg(short, long)]
    port: Option<u16>,
    /// An admin user [default: the file's first, PGUSER, or you]
    #[arg(short = 'U', long)]
    user: Option<String>,
    /// The console's name [default: the file's, or pgsluice]
    #[arg(short, long)]
    database: Option<String>,
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Serve(args) => serve(args),
        Command::CheckConfig { file } => check_config(&file),
        Command::Explain(args) => explain(&args),
        Command::Status(args) => status(&args),
        Command::Switchover(SwitchoverArgs { to, door }) => in_console(door, async |given, config| {
            console_command::switchover(given, config, to.as_deref()).await
        }),
        Command::Console(ConsoleArgs { door, sql }) => in_console(door, async |given, config| {
            console_command::run(given, config, &sql).await
        }),
        Command::Lab(command) => lab::run(command),
        Command::Demo(command) => lab::run_demo(command),
    }
}

fn serve(args: ServeArgs) -> ExitCode {
    log_to_stderr(args.log_json);
    let overrides = Overrides::with_process_environment(args.listen, args.node);
    let read = move || match &args.config {
        Some(path) => Config::load(path, &overrides),
        None => Config::from_overrides(&overrides),
    };
    let config = match read() {
        Ok(config) => config,
        Err(errors) => {
            eprintln!("{errors}");
            return ExitCode::from(2);
        }
    };
    let reread = Box::new(move || read().map_err(|errors| errors.to_string()));
    match proxy::run(config, reread) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// `PGSLUICE_LOG` holds tracing's directives, such as `debug` or `pgsluice::cluster=debug`.
fn log_to_stderr(json: bool) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("PGSLUICE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    // The parser logs every token at debug level, literals included.
    let filter = filter.add_directive("sqlparser=off".parse().expect("a directive"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_target(false);
    if json {
        log.json().init();
    } else {
        use std::io::IsTerminal;
        log.with_ansi(io::stderr().is_terminal()).init();
    }
}

fn check_config(file: &std::path::Path) -> ExitCode {
    let (text, code) = config::check_config(file, &Overrides::default());
    if code == 0 {
        println!("{text}");
    } else {
        eprintln!("{text}");
    }
    ExitCode::from(u8::try_from(code).unwrap_or(2))
}

fn explain(args: &ExplainArgs) -> ExitCode {
    let explainer = match explainer(args) {
        Ok(explainer) => explainer,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut one = |sql: &str| match args.json {
        true => explainer.explain_json(sql, &mut out),
        false => explainer.explain(sql, &mut out),
    };
    let done = match (args.batch, &args.sql) {
        (true, _) => explainer.batch(io::stdin().lock(), &mut out),
        (false, Some(sql)) => one(sql),
        (false, None) => io::read_to_string(io::stdin()).and_then(|sql| one(&sql)),
    };
    match done.and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of a pipe may have seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn explainer(args: &ExplainArgs) -> Result<Explainer, String> {
    let Some(file) = &args.config else {
        return match (&args.database, &args.user) {
            (None, None) => Ok(Explainer::default()),
            _ => Err("--database and --user need a configuration: give -c FILE".to_owned()),
        };
    };
    let overrides = Overrides::with_process_environment(Vec::new(), Vec::new());
    let config = Config::load(file, &overrides).map_err(|errors| errors.to_string())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    runtime.block_on(Explainer::of(&config, args.database.as_deref(), args.user.as_deref()))
}

fn status(args: &StatusArgs) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    let format = if args.json { Format::Json } else { Format::Table };
    let done = runtime.block_on(async {
        if args.watch {
            status_command::watch(&args.url, Duration::from_secs(1))
                .await
                .map_err(|error| error.to_string())
        } else {
            status_command::show(&args.url, format, &mut io::stdout())
                .await
                .map_err(|error| error.to_string())
        }
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Prints what the console answers, warnings and errors apart.
fn in_console(
    door: ConsoleDoor,
    ask: impl AsyncFnOnce(Given, Option<&Config>) -> Result<(String, String), String>,
) -> ExitCode {
    let overrides = Overrides::with_process_environment(Vec::new(), Vec::new());
    let config = door.config.map(|file| Config::load(&file, &overrides)).transpose();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let given = Given {
        host: door.host,
        port: door.port,
        user: door.user,
        database: door.database,
    };
    let answered = match (config, runtime) {
        (Ok(config), Ok(runtime)) => runtime.block_on(ask(given, config.as_ref())),
        (Err(errors), _) => Err(errors.to_string()),
        (_, Err(error)) => Err(error.to_string()),
    };
    match answered {
        Ok((told, warnings)) => {
            eprint!("{warnings}");
            // The reader of a pipe may have seen enough; what was asked for is done.
            let _ = io::stdout().write_all(told.as_bytes());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
