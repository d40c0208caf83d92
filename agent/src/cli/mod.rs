//! The command line: parse, open the node, run one verb, say how it ended.
//!
//! Everything is in the library, so that one executable can be several programs.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::config::Where;
use crate::daemon;

mod args;
mod failure;
mod setup;
mod ui;
mod verbs;

pub use args::{Args, Verb};
use failure::{Failure, INTERRUPTED};
use ui::Ui;
use verbs::Work;

/// Enough for what the agent's threads do; the default of 2 MiB would only be address space.
const STACK: usize = 1 << 20;

/// Runs the program with these arguments, its own name first.
pub fn main_with(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args = match Args::try_parse_from(args) {
        Ok(args) => args,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    bound_arenas();
    log(&args);
    let ui = Ui::new(&args.global);
    match run(args, &ui) {
        Ok(()) => ExitCode::SUCCESS,
        // A verb that has said what it found needs no second line.
        Err(Failure { code, message }) if message.is_empty() => ExitCode::from(code),
        Err(Failure { code, message }) => {
            ui.failure(&message, code);
            ExitCode::from(code)
        }
    }
}

fn run(args: Args, ui: &Ui) -> Result<(), Failure> {
    let place = args.global.config.map(Where::File).unwrap_or_default();
    match args.verb {
        Verb::Completions { shell } => {
            verbs::completions(shell);
            Ok(())
        }
        Verb::Man { out } => verbs::man(out.as_deref()),
        Verb::Init(args) => setup::init(&args, &place, ui),
        Verb::Doctor { offline } => runtime()?.block_on(setup::doctor(&place, !offline, ui)),
        Verb::Status => Work::open(&place, ui.clone(), CancellationToken::new())?.status(),
        Verb::Mount => Work::open(&place, ui.clone(), CancellationToken::new())?.mount(),
        verb => {
            // These end by telling the server, if it can be found: looking up its name may hang for longer than we wait.
            let leaves = matches!(verb, Verb::Activate { .. } | Verb::Rollback { .. } | Verb::Confirm { .. });
            let runtime = runtime()?;
            let done = runtime.block_on(online(verb, &place, ui));
            if leaves {
                runtime.shutdown_background();
            }
            done
        }
    }
}

/// Verbs that wait for something.
async fn online(verb: Verb, place: &Where, ui: &Ui) -> Result<(), Failure> {
    let stop = CancellationToken::new();
    let work = Work::open(place, ui.clone(), stop.clone())?;
    tokio::spawn(on_signals(stop.clone()));
    let done = match verb {
        Verb::Enroll(args) => tokio::select! {
            done = work.enrol(args) => done,
            () = stop.cancelled() => Err(Failure::new(INTERRUPTED, "interrupted; this machine is what it was before")),
        },
        Verb::Check { forecast } => work.check(forecast).await,
        Verb::Download(fetching) => work.download(None, fetching).await,
        Verb::Install { release, fetching } => work.download(release, fetching).await,
        Verb::Activate { restart } => work.activate(restart).await,
        Verb::Rollback { restart } => work.rollback(restart).await,
        Verb::Explain { offline } => work.explain(offline).await,
        Verb::Confirm { force } => work.confirm(force).await,
        Verb::Sync { restart, fetching } => work.sync(fetching, restart).await,
        Verb::Verify => work.verify().await,
        Verb::Repair => work.repair().await,
        Verb::Run => {
            daemon::run(work.node.clone(), stop.clone()).await;
            return Ok(());
        }
        Verb::Init(_)
        | Verb::Doctor { .. }
        | Verb::Status
        | Verb::Mount
        | Verb::Completions { .. }
        | Verb::Man { .. } => Ok(()),
    };
    done.map_err(|failure| if stop.is_cancelled() { interrupted(&work, failure) } else { failure })
}

/// Says what an interruption left.
fn interrupted(work: &Work, failure: Failure) -> Failure {
    if failure.code != INTERRUPTED {
        return failure;
    }
    let staged = crate::slot::SlotName::ALL.into_iter().find_map(|slot| match work.node.journal.slot(slot).ok()? {
        crate::journal::SlotRecord::Staging(staging) => {
            Some(format!("; what is in slot {slot} of {} stays, and the next run goes on from it", staging.release))
        }
        _ => None,
    });
    Failure::new(INTERRUPTED, format!("interrupted; the active slot is untouched{}", staged.unwrap_or_default()))
}

/// The first signal asks to stop; a second one does not ask.
async fn on_signals(stop: CancellationToken) {
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return;
    };
    for first in [true, false] {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        if first {
            stop.cancel();
        } else {
            std::process::exit(INTERRUPTED.into());
        }
    }
}

fn runtime() -> Result<Runtime, Failure> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let built = builder.worker_threads(2).thread_stack_size(STACK).thread_name("goldsync-agent").enable_all().build();
    built.map_err(|error| Failure::new(1, format!("no threads to be had: {error}")))
}

/// The log goes to standard error: for the daemon what it does, for other verbs only what is wrong.
fn log(args: &Args) {
    let level = match (&args.verb, args.global.verbose) {
        (Verb::Run, 0) => "goldsync_agent=info,warn",
        (_, 0) => "goldsync_agent=warn,error",
        (_, 1) => "goldsync_agent=debug,info",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_env("GOLDSYNC_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(terminal);
    // The journal has its own clock.
    let _ = if std::env::var_os("JOURNAL_STREAM").is_some() { log.without_time().try_init() } else { log.try_init() };
}

/// One heap for each thread would keep many times what any of them needs.
fn bound_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets one number in the allocator, before any thread is started.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}
