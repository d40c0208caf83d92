//! The operator's verbs. Each one is a file; what they share lies beside them.
//!
//! ```text
//! cli ──▶ run ──▶ init, serve                     on the server's machine, on its data folder
//!            └──▶ every other verb ──▶ Desk ──┬─▶ client ──▶ the HTTPS API
//!                                             └─▶ trust::Operator ──▶ the keys, which never leave this machine
//! ```
//! A verb returns `Ok` or one [`Failure`]; only [`run`] decides what becomes of it. Ctrl-C drops the verb where it
//! stands and says what that leaves: nothing here has to be undone, because the server makes a change in one step or
//! not at all.

mod audit;
pub mod bench;
mod calls;
mod channel;
mod client;
mod explain;
mod fail;
mod fleet;
mod image;
mod init;
mod node;
mod operator;
mod pages;
mod progress;
mod prune;
mod publish;
mod release;
mod screen;
mod serve;
mod show;
mod sign;
mod status;
mod sync;
mod table;
mod token;
mod trust;
mod upload;
mod watch;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use crate::cli::{self, Cli, LabelError, Verb};
use client::Client;
use fail::{Code, Failure, Outcome};
use operator::Operator;
use sync::What;

pub use operator::join_token;

/// Runs one command line to its exit code.
pub fn run(cli: Cli) -> ExitCode {
    let interrupted = Interrupted::default();
    let ended = match cli.verb {
        Verb::Completions(args) => pages::completions(&args),
        Verb::Man(args) => pages::man(&args),
        verb => in_runtime(verb, cli.operator, &interrupted),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            screen::failure(&failure);
            failure.code.into()
        }
    }
}

fn in_runtime(verb: Verb, folder: Option<PathBuf>, interrupted: &Interrupted) -> Outcome {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Code::Failed, format!("cannot start threads: {error}")))?;
    let ended = runtime.block_on(async {
        if let Verb::Serve(args) = &verb {
            // It ends by a signal of its own accord, so that no connection is torn.
            return serve::run(args).await;
        }
        tokio::select! {
            ended = at_the_desk(verb, folder, interrupted) => ended,
            () = signal() => Err(interrupted.failure()),
        }
    });
    // Threads that still hash or compress for a verb that was given up need not be waited for.
    runtime.shutdown_background();
    ended
}

async fn at_the_desk(verb: Verb, folder: Option<PathBuf>, interrupted: &Interrupted) -> Outcome {
    if let Verb::Init(args) = &verb {
        interrupted.leaves("the folders may be half made; the next `goldsync init` names what is in its way");
        return init::run(args, folder).await;
    }
    if let Verb::Bench(args) = verb {
        return bench::run(args).await;
    }
    let desk = Desk::open(folder, interrupted.clone())?;
    match verb {
        Verb::Publish(args) => publish::run(&desk, &args).await,
        Verb::Promote(args) => channel::promote(&desk, &args).await,
        Verb::Channel(cli::Channel::List(json)) => channel::list(&desk, json).await,
        Verb::Channel(cli::Channel::History(args)) => channel::history(&desk, &args).await,
        Verb::Channel(cli::Channel::Create(args)) => trust::create_channel(&desk, &args).await,
        Verb::Trust(cli::Trust::Status(json)) => trust::status(&desk, json).await,
        Verb::Trust(cli::Trust::Renew(args)) => trust::renew(&desk, &args).await,
        Verb::Trust(cli::Trust::Rotate(args)) => trust::rotate(&desk, &args).await,
        Verb::Release(cli::Release::List(args)) => release::list(&desk, &args).await,
        Verb::Release(cli::Release::Show(args)) => release::show(&desk, &args).await,
        Verb::Release(cli::Release::Prune(args)) => prune::run(&desk, &args).await,
        Verb::Token(cli::Token::Create(args)) => token::create(&desk, &args).await,
        Verb::Node(cli::Node::List(args)) => node::list(&desk, &args).await,
        Verb::Node(cli::Node::Revoke(args)) => node::revoke(&desk, &args).await,
        Verb::Fleet(cli::Fleet::Sync(args)) => sync::run(&desk, &args.order, &What::Sync { now: args.now }).await,
        Verb::Fleet(cli::Fleet::Rollback(args)) => sync::run(&desk, &args.order, &What::BackFrom(args.from)).await,
        Verb::Fleet(cli::Fleet::Explain(args)) => explain::run(&desk, &args).await,
        Verb::Fleet(cli::Fleet::Status(args)) => fleet::status(&desk, &args).await,
        Verb::Audit(args) => audit::run(&desk, &args).await,
        Verb::Status(args) => status::run(&desk, &args).await,
        Verb::Init(_) | Verb::Serve(_) | Verb::Bench(_) | Verb::Completions(_) | Verb::Man(_) => Ok(()),
    }
}

/// Where an operator sits: the folder, and the way to the server.
#[derive(Debug)]
struct Desk {
    operator: Operator,
    client: Client,
    interrupted: Interrupted,
}

impl Desk {
    fn open(folder: Option<PathBuf>, interrupted: Interrupted) -> Outcome<Self> {
        let operator = Operator::open(&operator::folder(folder.as_deref())?)?;
        if operator.exposed() {
            let file = operator.folder.join(operator::FILE);
            screen::note(&format!("goldsync: others can read the credential in {0}; chmod 600 {0}", file.display()));
        }
        Ok(Self { client: Client::new(&operator)?, operator, interrupted })
    }
}

/// What an interruption at this moment leaves behind, kept up to date by the verb that runs.
#[derive(Clone, Debug, Default)]
struct Interrupted(Arc<Mutex<Option<&'static str>>>);

impl Interrupted {
    /// From now on, Ctrl-C leaves this.
    fn leaves(&self, what: &'static str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(what);
    }

    fn failure(&self) -> Failure {
        let left = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Failure::new(Code::Interrupted, format!("interrupted; {}", left.unwrap_or("nothing was changed")))
    }
}

/// Returns at Ctrl-C or SIGTERM.
async fn signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return std::future::pending().await };
    tokio::select! {
        Ok(()) = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

impl From<LabelError> for Failure {
    fn from(error: LabelError) -> Self {
        Self::new(Code::Usage, error.to_string())
    }
}
