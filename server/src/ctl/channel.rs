//! `goldsync promote`, `goldsync channel list`, `goldsync channel history`.

use chrono::Utc;
use goldsync_proto::release::{Pointer, Word, channel_role};
use serde::Serialize;

use super::fail::{Code, Failure, Outcome};
use super::table::{Column, Table};
use super::{Desk, screen, show, sign};
use crate::api::types;
use crate::cli::{ChannelHistory, Json, Promote};

/// What a promotion came to.
#[derive(Debug, Serialize)]
struct Promoted<'a> {
    #[serde(flatten)]
    pointer: &'a Pointer,
    /// Where the channel pointed before.
    before: Option<String>,
    /// Nodes that follow it.
    nodes: u64,
}

/// `goldsync promote`
pub async fn promote(desk: &Desk, args: &Promote) -> Outcome {
    let release = desk.client.release(&args.release).await?.ok_or_else(|| unknown(&args.release.to_string()))?;
    let channels = desk.client.channels().await?;
    let channel = channels.iter().find(|channel| channel.channel == args.channel);
    let channel = channel.ok_or_else(|| no_channel(&args.channel, &channels))?;
    let signer = sign::signer(desk, &channel_role(&args.channel))?;
    let pointer = Pointer {
        format: 1,
        channel: args.channel.clone(),
        release: args.release.clone(),
        image: release.manifest.image,
        promoted_at: show::rfc3339(Utc::now()),
        promoted_by: desk.operator.name.clone(),
    };
    desk.interrupted.leaves("whether the channel moved, `goldsync channel list` says");
    sign::pointer(desk, &signer, &pointer).await?;
    let before = channel.pointer.as_ref().map(|pointer| pointer.release.to_string());
    if args.json.json {
        return screen::print_json(&Promoted { pointer: &pointer, before, nodes: channel.nodes });
    }
    screen::print(&sentence(&pointer, before.as_deref(), channel.nodes))
}

fn sentence(pointer: &Pointer, before: Option<&str>, nodes: u64) -> String {
    let (channel, release) = (&pointer.channel, &pointer.release);
    let from = match before {
        Some(before) if before == release.to_string() => " (as before; signed anew)".to_owned(),
        Some(before) => format!(" (was {before})"),
        None => String::new(),
    };
    let follow = if nodes == 1 { "follows" } else { "follow" };
    format!(
        "{channel} points at {release}{from}\n  image    {}\n  nodes    {} {follow} it and {} told now\n\
         next: goldsync fleet sync --channel {channel}    to watch them move",
        pointer.image,
        show::count(nodes, "node", "nodes"),
        if nodes == 1 { "is" } else { "are" },
    )
}

pub(super) fn unknown(release: &str) -> Failure {
    Failure::new(Code::Failed, format!("there is no release {release}"))
        .remedy("`goldsync release list` prints all there are")
}

fn no_channel(channel: &Word, known: &[types::Channel]) -> Failure {
    let known: Vec<&str> = known.iter().map(|channel| channel.channel.as_str()).collect();
    Failure::new(Code::Failed, format!("there is no channel {channel}"))
        .remedy(format!("the channels are {}", known.join(", ")))
}

/// `goldsync channel list`
pub async fn list(desk: &Desk, json: Json) -> Outcome {
    let channels = desk.client.channels().await?;
    if json.json {
        return screen::print_json(&channels);
    }
    screen::print_table(&channel_table(&channels), "there are no channels")
}

fn channel_table(channels: &[types::Channel]) -> Table {
    let mut table = Table::new([
        ("CHANNEL", Column::Left),
        ("RELEASE", Column::Left),
        ("IMAGE", Column::Left),
        ("NODES", Column::Right),
        ("SINCE (UTC)", Column::Left),
        ("BY", Column::Soft),
    ]);
    for channel in channels {
        let told = |text: &dyn Fn(&Pointer) -> String| channel.pointer.as_ref().map_or_else(|| "-".into(), text);
        table.row([
            channel.channel.to_string(),
            told(&|pointer| pointer.release.to_string()),
            told(&|pointer| pointer.image.short()),
            channel.nodes.to_string(),
            told(&|pointer| show::time(&pointer.promoted_at)),
            told(&|pointer| pointer.promoted_by.clone()),
        ]);
    }
    table
}

/// `goldsync channel history`
pub async fn history(desk: &Desk, args: &ChannelHistory) -> Outcome {
    let history = desk.client.history(&args.channel).await?;
    if args.json.json {
        return screen::print_json(&history);
    }
    let mut table = Table::new([
        ("AT (UTC)", Column::Left),
        ("RELEASE", Column::Left),
        ("IMAGE", Column::Left),
        ("BY", Column::Soft),
    ]);
    for promotion in &history {
        let types::Promotion { release, image, by, at } = promotion;
        table.row([show::time(at), release.to_string(), image.short(), by.clone()]);
    }
    screen::print_table(&table, &format!("nothing was promoted to {} yet", args.channel))
}

#[cfg(test)]
mod tests {
    use super::*;
    use goldsync_proto::digest::ImageId;

    fn pointer() -> Pointer {
        Pointer {
            format: 1,
            channel: "staging".parse().unwrap(),
            release: "web:2".parse().unwrap(),
            image: ImageId::of(b"x"),
            promoted_at: "2026-11-21T09:00:00Z".into(),
            promoted_by: "ann".into(),
        }
    }

    #[test]
    fn a_promotion_says_where_from_and_to() {
        let text = sentence(&pointer(), Some("web:1"), 1);
        assert!(text.starts_with("staging points at web:2 (was web:1)\n"), "{text}");
        assert!(text.contains("1 node follows it and is told now"), "{text}");
        assert!(sentence(&pointer(), Some("web:2"), 2).contains("as before; signed anew"));
        assert!(sentence(&pointer(), None, 0).contains("0 nodes follow it and are told now"));
    }

    #[test]
    fn a_channel_without_a_release_has_dashes() {
        let bare = types::Channel { channel: "dev".parse().unwrap(), pointer: None, nodes: 0 };
        let full = types::Channel { channel: "staging".parse().unwrap(), pointer: Some(pointer()), nodes: 12 };
        let expected = "\
CHANNEL  RELEASE  IMAGE     NODES  SINCE (UTC)          BY
dev      -        -             0  -                    -
staging  web:2    c6ab0a4e     12  2026-11-21 09:00:00  ann
"
        .replace("c6ab0a4e", &ImageId::of(b"x").short());
        assert_eq!(channel_table(&[bare, full]).render(Some(80)), expected);
    }
}
