//! `goldsync fleet sync` and `goldsync fleet rollback`: an order to many nodes, watched to its end.
//!
//! The order is given once. Watching may break off and begin again (a server restart, a lost line) as often as it must:
//! the stream of events begins with the present state of every node. Ctrl-C ends the watching, not the order.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use goldsync_proto::release::{ReleaseRef, Word};
use goldsync_proto::wire::{Account, Outcome as Ended, Report};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget};
use reqwest::StatusCode;
use serde::Serialize;

use super::client::Refusal;
use super::fail::{Code, Failure, Outcome};
use super::fleet::{percent, phase_name, slot, waits};
use super::progress::{Manner, style};
use super::table::{Column, Table, cut, plain};
use super::watch::{Change, Seat, Tally, Watch};
use super::{Desk, screen, show};
use crate::api::types::{SyncEvent, SyncRequest};
use crate::cli::{FleetOrder, label_map};

/// How often in a row a stream may end early with nothing new before it is given up.
const BARREN_MAX: u32 = 20;
/// Between two attempts to open the stream.
const REOPEN: Duration = Duration::from_secs(1);
/// What a newer agent may bring about.
const UNKNOWN: &str = "it ended in a way that this tool has no word for; use a newer one";

/// What a sync came to.
#[derive(Debug, Serialize)]
struct Synced<'a> {
    channel: &'a Word,
    #[serde(flatten)]
    watch: &'a Watch,
    tally: Tally,
    /// Whether the exit code is 0.
    good: bool,
    elapsed_ms: u64,
}

/// What is ordered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// To run what the channel points at; at once, or after the node's own splay.
    Sync {
        /// At once.
        now: bool,
    },
    /// To go back from a release.
    BackFrom(ReleaseRef),
}

/// `goldsync fleet sync`, `goldsync fleet rollback`
pub async fn run(desk: &Desk, args: &FleetOrder, what: &What) -> Outcome {
    let began = Instant::now();
    let (watch, followed) = order(desk, args, what).await?;
    let tally = watch.tally();
    if args.json.json {
        let good = followed.is_ok() && tally.good(args.allow_absent);
        let elapsed_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        screen::print_json(&Synced { channel: &args.channel, watch: &watch, tally, good, elapsed_ms })?;
    } else {
        let table = table(&watch);
        if !table.is_empty() {
            screen::print(&format!("{}{}", table.render(screen::width()), notes(&watch)))?;
        }
    }
    followed?;
    verdict(args, tally)
}

/// Gives the order and watches it. What was seen counts even if the watching failed.
pub async fn order(desk: &Desk, args: &FleetOrder, what: &What) -> Outcome<(Watch, Outcome)> {
    let selector = label_map(&args.selector.labels)?;
    let (now, back_from) = match what {
        What::Sync { now } => (*now, None),
        What::BackFrom(release) => (true, Some(release.clone())),
    };
    let request = SyncRequest { channel: args.channel.clone(), selector, now, back_from };
    desk.interrupted.leaves("the nodes carry on with what they were told; see `goldsync fleet status`");
    let mut watch = Watch::new(desk.client.order_sync(&request).await?);
    let mut view = View::new(Manner::fitting(args.quiet), &watch);
    let follow = follow(desk, &mut watch, &mut view);
    let followed = match args.timeout {
        None => follow.await,
        // Whoever is unfinished when the time runs out shows in the table and in the exit code.
        Some(timeout) => tokio::time::timeout(timeout, follow).await.unwrap_or(Ok(())),
    };
    Ok((watch, followed))
}

/// Reads events until every node is done.
async fn follow(desk: &Desk, watch: &mut Watch, view: &mut View) -> Outcome {
    let mut barren = 0;
    while !watch.over() {
        let mut lines = match desk.client.sync_events(watch.order).await? {
            Ok(lines) => lines,
            Err(Refusal::Problem(StatusCode::NOT_FOUND, _)) => return Err(forgotten(watch.order)),
            Err(refusal) => return Err(refusal.into()),
        };
        loop {
            match lines.next::<SyncEvent>().await {
                Ok(Some(event)) => {
                    let node = event.node.clone();
                    let change = watch.take(event);
                    if change != Change::None {
                        barren = 0;
                    }
                    view.show(watch, &node, change);
                }
                Ok(None) => break,
                Err(failure) if barren >= BARREN_MAX => return Err(failure),
                Err(_) => break,
            }
        }
        if watch.over() {
            break;
        }
        barren += 1;
        if barren > BARREN_MAX {
            let message = format!("the server ends the events of order {} although nodes are not done", watch.order);
            return Err(
                Failure::new(Code::Server, message).remedy("look at `goldsync fleet status` and at the server's log")
            );
        }
        tokio::time::sleep(REOPEN).await;
    }
    Ok(())
}

/// Orders live as long as the server's run.
fn forgotten(order: u64) -> Failure {
    let message = format!("the server no longer knows order {order}: it was restarted");
    Failure::new(Code::Server, message)
        .remedy("the nodes carry on with what they were told; give the order again, or see `goldsync fleet status`")
}

/// Whether the fleet is as asked, and if not, why.
pub fn verdict(args: &FleetOrder, tally: Tally) -> Outcome {
    if tally.good(args.allow_absent) {
        return Ok(());
    }
    let mut reasons = Vec::new();
    for (number, what) in [
        (tally.failed, "failed"),
        (tally.waiting, "staged, and waiting for its window or a restart"),
        (tally.unfinished, "not done when the time ran out"),
    ] {
        if number > 0 {
            reasons.push(format!("{} {what}", show::count(number, "node", "nodes")));
        }
    }
    if tally.absent > 0 && !args.allow_absent {
        reasons.push(format!("{} not connected", show::count(tally.absent, "node", "nodes")));
    }
    if reasons.is_empty() {
        let message = format!("no node follows channel {} and has those labels", args.channel);
        return Err(Failure::new(Code::Failed, message).remedy("`goldsync node list` shows channels and labels"));
    }
    let failure = Failure::new(Code::Failed, format!("the fleet is not as asked: {}", reasons.join(", ")));
    Err(match tally {
        Tally { failed: 0, waiting: 1.., .. } => {
            failure.remedy("they go on by themselves; `goldsync fleet status` says for what each waits")
        }
        Tally { failed: 0, unfinished: 0, .. } => {
            failure.remedy("they move when they next connect; --allow-absent takes that for success")
        }
        Tally { failed: 0, .. } => failure.remedy("they carry on; see `goldsync fleet status`"),
        _ => failure.remedy("`goldsync-agent status` on the node says more; its active slot is as it was"),
    })
}

fn table(watch: &Watch) -> Table {
    let mut table = Table::new([
        ("NODE", Column::Left),
        ("RESULT", Column::Left),
        ("RUNS", Column::Left),
        ("BY", Column::Left),
        ("RECEIVED", Column::Right),
        ("WRITTEN", Column::Right),
        ("SKIPPED", Column::Right),
        ("TIME", Column::Right),
    ]);
    for (node, seat) in &watch.nodes {
        table.row([node.to_string()].into_iter().chain(cells(seat)));
    }
    for node in &watch.absent {
        let dashes = std::iter::repeat_n("-".to_owned(), 6);
        table.row([node.to_string(), "absent".into()].into_iter().chain(dashes));
    }
    table
}

fn cells(seat: &Seat) -> Vec<String> {
    let runs = slot(seat.report.as_ref().and_then(|report| report.active.as_ref()));
    let result = match &seat.outcome {
        Some(Ended::Updated { account }) => {
            let Account { path, received, written, skipped, elapsed_ms, .. } = account;
            let size = |blocks: u64| show::bytes(blocks.saturating_mul(goldsync_proto::limits::BLOCK));
            let time = show::span(Duration::from_millis(*elapsed_ms));
            let sizes = [show::bytes(*received), size(*written), size(*skipped)];
            return ["updated".into(), runs, path.clone()].into_iter().chain(sizes).chain([time]).collect();
        }
        Some(Ended::UpToDate) => "up to date",
        Some(Ended::Waits { .. }) => "waits",
        Some(Ended::Failed { .. }) => "failed",
        Some(_) => "unknown",
        None => "unfinished",
    };
    [result.to_owned(), runs].into_iter().chain(std::iter::repeat_n("-".to_owned(), 5)).collect()
}

/// What does not fit a column: errors whole, repairs, where the unfinished are.
fn notes(watch: &Watch) -> String {
    let note = |(node, seat): (&Word, &Seat)| {
        let text = match &seat.outcome {
            Some(Ended::Updated { account }) if account.repaired > 0 => {
                format!("{} repaired on the way", show::count(account.repaired, "drifted block", "drifted blocks"))
            }
            Some(Ended::Waits { wait, .. }) => waits(wait),
            Some(Ended::Failed { error }) => plain(error),
            Some(Ended::Updated { .. } | Ended::UpToDate) => return None,
            Some(_) => UNKNOWN.to_owned(),
            None => format!("when the watching ended: {}", seat.report.as_ref().map_or("nothing heard".into(), doing)),
        };
        Some(format!("\n{node}: {text}"))
    };
    let notes: String = watch.nodes.iter().filter_map(note).collect();
    if notes.is_empty() { notes } else { format!("{notes}\n") }
}

/// `fetch 41 %`
fn doing(report: &Report) -> String {
    match percent(report) {
        Some(percent) => format!("{} {percent} %", phase_name(report.phase)),
        None => phase_name(report.phase).to_owned(),
    }
}

/// What is shown while nodes work.
enum View {
    /// A bar for each node at work, as many as fit, above a bar for all.
    Bars {
        all: MultiProgress,
        sum: ProgressBar,
        nodes: HashMap<Word, ProgressBar>,
        room: usize,
    },
    /// A line for each change.
    Lines,
    Quiet,
}

impl View {
    fn new(manner: Manner, watch: &Watch) -> Self {
        match manner {
            Manner::Quiet => Self::Quiet,
            Manner::Lines => Self::Lines,
            Manner::Bar => {
                let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
                let sum = all.add(ProgressBar::new(watch.nodes.len() as u64));
                sum.set_style(style("  {pos} of {len} done {msg} {elapsed}"));
                sum.enable_steady_tick(Duration::from_millis(500));
                Self::Bars { all, sum, nodes: HashMap::new(), room: screen::height().saturating_sub(3) }
            }
        }
    }

    fn show(&mut self, watch: &Watch, node: &Word, change: Change) {
        let Some(seat) = watch.nodes.get(node) else { return };
        match self {
            Self::Quiet => {}
            Self::Lines => {
                if change != Change::None {
                    screen::note(&format!("  {node:<16} {}", plain(&line(seat))));
                }
            }
            Self::Bars { all, sum, nodes, room } => {
                let done = watch.nodes.values().filter(|seat| seat.outcome.is_some()).count();
                let failed = watch.tally().failed;
                sum.set_length(watch.nodes.len() as u64);
                sum.set_position(done as u64);
                sum.set_message(if failed > 0 { format!("({failed} failed)") } else { String::new() });
                if change == Change::Done {
                    if let Some(bar) = nodes.remove(node) {
                        bar.finish_and_clear();
                        all.remove(&bar);
                    }
                    let _ = all.println(format!("  {node:<16} {}", plain(&line(seat))));
                } else if seat.outcome.is_none() && (nodes.len() < *room || nodes.contains_key(node)) {
                    let bar = nodes.entry(node.clone()).or_insert_with(|| all.insert_before(sum, node_bar(node)));
                    draw(bar, seat.report.as_ref());
                }
            }
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        if let Self::Bars { all, sum, .. } = self {
            sum.finish_and_clear();
            let _ = all.clear();
        }
    }
}

fn node_bar(node: &Word) -> ProgressBar {
    let bar = ProgressBar::new(100);
    bar.set_style(style("  {prefix:16} {msg:32} [{bar:20}] {percent:>3} %"));
    bar.set_prefix(cut(node.as_str(), 16));
    bar
}

fn draw(bar: &ProgressBar, report: Option<&Report>) {
    let Some(report) = report else { return };
    let progress = report.progress.unwrap_or_default();
    bar.set_length(progress.total.max(1));
    bar.set_position(progress.done.min(progress.total));
    let received =
        if progress.received > 0 { format!(", {} received", show::bytes(progress.received)) } else { String::new() };
    bar.set_message(format!("{}{received}", phase_name(report.phase)));
}

/// A node's state in a sentence.
fn line(seat: &Seat) -> String {
    match &seat.outcome {
        Some(Ended::Updated { account }) => format!(
            "updated by {}: {} received, {} blocks written, {} skipped, in {}",
            account.path,
            show::bytes(account.received),
            account.written,
            account.skipped,
            show::span(Duration::from_millis(account.elapsed_ms))
        ),
        Some(Ended::UpToDate) => "up to date".into(),
        Some(Ended::Waits { wait, .. }) => format!("staged; {}", waits(wait)),
        Some(Ended::Failed { error }) => format!("FAILED: {error}"),
        Some(_) => UNKNOWN.into(),
        None => seat.report.as_ref().map(doing).unwrap_or_else(|| "told".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::SyncOrder;
    use crate::cli::Selector;
    use indicatif::ProgressStyle;

    fn watch() -> Watch {
        let word = |text: &str| text.parse::<Word>().unwrap();
        let nodes = ["web-1", "web-2", "web-3", "web-4"].map(word).to_vec();
        let mut watch = Watch::new(SyncOrder { order: 7, nodes, absent: vec![word("web-5")] });
        let account = Account {
            path: "pack".into(),
            received: 1 << 20,
            sent: 9000,
            written: 512,
            skipped: 256,
            repaired: 2,
            derived: 0,
            elapsed_ms: 3400,
        };
        for (node, outcome) in [
            ("web-1", Ended::Updated { account }),
            ("web-2", Ended::UpToDate),
            ("web-3", Ended::Failed { error: "slot b: no space left".into() }),
        ] {
            watch.take(SyncEvent { node: word(node), report: None, outcome: Some(outcome) });
        }
        watch
    }

    fn args(allow_absent: bool) -> FleetOrder {
        FleetOrder {
            channel: "production".parse().unwrap(),
            selector: Selector { labels: vec![] },
            allow_absent,
            timeout: None,
            quiet: true,
            json: crate::cli::Json { json: false },
        }
    }

    #[test]
    fn the_table_has_a_line_for_every_node() {
        let expected = "\
NODE   RESULT      RUNS  BY    RECEIVED  WRITTEN  SKIPPED   TIME
web-1  updated     -     pack     1 MiB    2 MiB    1 MiB  3.4 s
web-2  up to date  -     -            -        -        -      -
web-3  failed      -     -            -        -        -      -
web-4  unfinished  -     -            -        -        -      -
web-5  absent      -     -            -        -        -      -
";
        assert_eq!(table(&watch()).render(None), expected);
        let notes = notes(&watch());
        let expected = "\nweb-1: 2 drifted blocks repaired on the way\nweb-3: slot b: no space left\n\
            web-4: when the watching ended: nothing heard\n";
        assert_eq!(notes, expected);
        assert!(table(&watch()).render(Some(80)).lines().all(|line| line.chars().count() <= 80));
    }

    #[test]
    fn the_verdict_counts_what_is_not_as_asked() {
        let failure = verdict(&args(false), watch().tally()).unwrap_err();
        assert_eq!(failure.code, Code::Failed);
        assert_eq!(
            failure.message,
            "the fleet is not as asked: 1 node failed, 1 node not done when the time ran out, 1 node not connected"
        );
        let absent = Tally { updated: 3, absent: 2, ..Tally::default() };
        assert!(verdict(&args(true), absent).is_ok());
        assert!(verdict(&args(false), absent).unwrap_err().remedy.unwrap().contains("--allow-absent"));
        let none = verdict(&args(true), Tally::default()).unwrap_err();
        assert_eq!(none.message, "no node follows channel production and has those labels");
    }

    #[test]
    fn the_templates_parse() {
        for template in ["  {pos} of {len} done {msg} {elapsed}", "  {prefix:16} {msg:32} [{bar:20}] {percent:>3} %"] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }
}
