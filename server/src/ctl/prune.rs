//! `goldsync release prune`: which releases go, by rule or by name, and the signature that takes them out.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};
use goldsync_proto::release::{RELEASES_ROLE, ReleaseRef};
use serde::Serialize;

use super::fail::{Code, Failure, Outcome};
use super::{Desk, screen, show, sign};
use crate::api::types::{PruneRequest, Pruning, PruningRelease, Release};
use crate::cli::ReleasePrune;

/// What a pruning came to.
#[derive(Debug, Serialize)]
struct Pruned {
    /// Nothing was changed.
    dry_run: bool,
    /// What went, or would go.
    pruned: Vec<ReleaseRef>,
    /// What the rule would take and somebody needs.
    needed: Vec<PruningRelease>,
    /// Bytes that are given back.
    frees: u64,
    /// Bytes, about, that come back besides once segments of which most is dead were written anew.
    rewriting: u64,
}

/// `goldsync release prune`
pub async fn run(desk: &Desk, args: &ReleasePrune) -> Outcome {
    let by_rule = args.releases.is_empty();
    let chosen =
        if by_rule { by_the_rule(args, desk.client.releases().await?, Utc::now()) } else { args.releases.clone() };
    let looked = look(desk, chosen).await?;
    let (going, needed): (Vec<_>, Vec<_>) = looked.into_iter().partition(|release| release.needed_by.is_empty());
    if let Some(release) = needed.first().filter(|_| !by_rule) {
        let message = format!("{} is needed: {}", release.release, release.needed_by.join(", "));
        return Err(Failure::new(Code::Failed, message).remedy("nothing was pruned; move what needs it first"));
    }
    let going: Vec<ReleaseRef> = going.into_iter().map(|release| release.release).collect();
    let (frees, rewriting) = match (going.is_empty(), args.dry_run) {
        (true, _) => (0, 0),
        (false, true) => given_back(&ask(desk, &going).await?),
        (false, false) => {
            let signer = sign::signer(desk, RELEASES_ROLE)?;
            desk.interrupted.leaves("whether anything was pruned, `goldsync release list` says");
            given_back(&sign::removal(desk, &signer, &going).await?)
        }
    };
    let pruned = Pruned { dry_run: args.dry_run, pruned: going, needed, frees, rewriting };
    if args.json.json { screen::print_json(&pruned) } else { screen::print(&text(&pruned)) }
}

async fn look(desk: &Desk, chosen: Vec<ReleaseRef>) -> Outcome<Vec<PruningRelease>> {
    if chosen.is_empty() { Ok(Vec::new()) } else { Ok(ask(desk, &chosen).await?.releases) }
}

fn given_back(pruning: &Pruning) -> (u64, u64) {
    (pruning.frees, pruning.rewriting)
}

/// What would come of it.
async fn ask(desk: &Desk, releases: &[ReleaseRef]) -> Outcome<Pruning> {
    let request = PruneRequest { releases: releases.to_vec(), role: None };
    Ok(desk.client.prune(&request).await??)
}

/// Of each name all but the newest, and of those what is old enough; oldest first.
fn by_the_rule(args: &ReleasePrune, mut releases: Vec<Release>, now: DateTime<Utc>) -> Vec<ReleaseRef> {
    releases.retain(|release| args.name.as_ref().is_none_or(|name| release.manifest.release.name == *name));
    // RFC 3339 in UTC sorts as text.
    releases.sort_by(|a, b| b.published_at.cmp(&a.published_at));
    let span = args.older_than.and_then(|span| TimeDelta::from_std(span).ok());
    let is_old = |release: &Release| match (span, DateTime::parse_from_rfc3339(&release.published_at)) {
        (None, _) => true,
        (Some(span), Ok(at)) => now - at.with_timezone(&Utc) > span,
        // Of what cannot be read nobody knows how old it is.
        (Some(_), Err(_)) => false,
    };
    let mut seen = HashMap::new();
    let mut chosen: Vec<ReleaseRef> = Vec::new();
    for release in releases {
        let newer = seen.entry(release.manifest.release.name.clone()).or_insert(0_u32);
        *newer += 1;
        if *newer > args.keep.unwrap_or(0) && is_old(&release) {
            chosen.push(release.manifest.release);
        }
    }
    chosen.reverse();
    chosen
}

fn text(pruned: &Pruned) -> String {
    let mut lines = Vec::new();
    let count = show::count(pruned.pruned.len() as u64, "release", "releases");
    let frees = show::bytes(pruned.frees);
    lines.push(match (pruned.pruned.is_empty(), pruned.dry_run) {
        (true, _) => "nothing to prune".to_owned(),
        (false, true) => format!("would prune {count}, which frees {frees}"),
        (false, false) => format!("pruned {count}; the server gives back {frees}"),
    });
    if pruned.rewriting > 0 {
        let more = show::bytes(pruned.rewriting);
        lines.push(format!("about {more} more come back when the server has written half-dead segments anew"));
    }
    lines.extend(pruned.pruned.iter().map(|release| format!("  {release}")));
    for release in &pruned.needed {
        lines.push(format!("  stays    {}: {}", release.release, release.needed_by.join(", ")));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::release_tests::manifest;

    fn release(name: &str, day: u32) -> Release {
        let published_at = format!("2026-11-{day:02}T00:00:00.000Z");
        let manifest = manifest(name, name.as_bytes());
        Release { manifest, published_by: "ann".into(), published_at, added: 0, channels: vec![], bases: vec![] }
    }

    #[test]
    fn a_rule_keeps_the_newest_of_each_name_and_takes_what_is_old() {
        let all = || vec![release("web:1", 1), release("web:3", 3), release("db:1", 2), release("web:2", 2)];
        let now = "2026-11-11T00:00:00Z".parse().unwrap();
        for (keep, days, name, expected) in [
            (Some(1), None, None, &["web:1", "web:2"][..]),
            (Some(2), None, None, &["web:1"]),
            (None, Some(9), None, &["web:1", "web:2", "db:1"]),
            (Some(1), Some(10), None, &["web:1"]),
            (None, Some(1), Some("db"), &["db:1"]),
            (Some(3), None, None, &[]),
        ] {
            let args = ReleasePrune {
                releases: vec![],
                keep,
                older_than: days.map(|days: u64| std::time::Duration::from_secs(days * 86_400 - 1)),
                name: name.map(|name: &str| name.parse().unwrap()),
                dry_run: true,
                json: crate::cli::Json { json: false },
            };
            let mut chosen: Vec<_> = by_the_rule(&args, all(), now).iter().map(ReleaseRef::to_string).collect();
            let mut expected: Vec<_> = expected.iter().map(ToString::to_string).collect();
            chosen.sort();
            expected.sort();
            assert_eq!(chosen, expected, "{keep:?} {days:?}");
        }
    }

    #[test]
    fn what_stays_is_told_with_its_reason() {
        let needed = PruningRelease {
            release: "web:1".parse().unwrap(),
            image: goldsync_proto::digest::ImageId::of(b"x"),
            needed_by: vec!["node n1 runs it".into()],
        };
        let (pruned, needed) = (vec!["web:2".parse().unwrap()], vec![needed]);
        let mut pruned = Pruned { dry_run: true, pruned, needed, frees: 3 << 20, rewriting: 0 };
        let told = "would prune 1 release, which frees 3 MiB\n  web:2\n  stays    web:1: node n1 runs it";
        assert_eq!(text(&pruned), told);
        pruned.rewriting = 5 << 20;
        let more = "about 5 MiB more come back when the server has written half-dead segments anew";
        assert_eq!(text(&pruned).lines().nth(1), Some(more));
    }
}
