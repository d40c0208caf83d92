//! `goldsync release list`, `goldsync release show`.

use goldsync_proto::release::Section;

use super::channel::unknown;
use super::fail::Outcome;
use super::table::{Column, Table, plain};
use super::{Desk, screen, show};
use crate::api::types::{self, LikelyBase};
use crate::cli::{ReleaseList, ReleaseShow};

/// `goldsync release list`
pub async fn list(desk: &Desk, args: &ReleaseList) -> Outcome {
    let mut releases = desk.client.releases().await?;
    releases.retain(|release| args.name.as_ref().is_none_or(|name| release.manifest.release.name == *name));
    // The server's order may be any; RFC 3339 in UTC sorts as text.
    releases.sort_by(|a, b| b.published_at.cmp(&a.published_at));
    if args.json.json {
        return screen::print_json(&releases);
    }
    screen::print_table(&table(&releases), "no release was published yet")
}

fn table(releases: &[types::Release]) -> Table {
    let mut table = Table::new([
        ("RELEASE", Column::Left),
        ("IMAGE", Column::Left),
        ("SIZE", Column::Right),
        ("ADDED", Column::Right),
        ("PUBLISHED (UTC)", Column::Left),
        ("CHANNELS", Column::Soft),
    ]);
    for release in releases {
        let channels: Vec<&str> = release.channels.iter().map(|channel| channel.as_str()).collect();
        table.row([
            release.manifest.release.to_string(),
            release.manifest.image.short(),
            show::bytes(release.manifest.size),
            show::bytes(release.added),
            show::time(&release.published_at),
            channels.join(","),
        ]);
    }
    table
}

/// `goldsync release show`
pub async fn show(desk: &Desk, args: &ReleaseShow) -> Outcome {
    let release = desk.client.release(&args.release).await?.ok_or_else(|| unknown(&args.release.to_string()))?;
    if args.json.json { screen::print_json(&release) } else { screen::print(&details(&release)) }
}

fn details(release: &types::Release) -> String {
    let manifest = &release.manifest;
    let mut lines = Vec::new();
    let mut line = |name: &str, value: String| lines.push(format!("{name:<14} {}", plain(&value)));
    line("release", manifest.release.to_string());
    line("image", manifest.image.to_string());
    line("size", format!("{} ({} bytes)", show::bytes(manifest.size), manifest.size));
    line("file system", manifest.file_system.clone().unwrap_or_else(|| "not recognised".into()));
    if let Some(sealed) = &manifest.verity {
        line("dm-verity", format!("root hash {}", sealed.root_hash));
    }
    line("minimum agent", manifest.minimum_agent.clone().unwrap_or_else(|| "any".into()));
    for (key, value) in &manifest.labels {
        line("label", format!("{key}={value}"));
    }
    let channels: Vec<&str> = release.channels.iter().map(|channel| channel.as_str()).collect();
    line("channels", if channels.is_empty() { "none".into() } else { channels.join(", ") });
    line("published", format!("{} UTC by {}", show::time(&release.published_at), release.published_by));
    line("added", format!("{} to the store", show::bytes(release.added)));
    let section = |section: Section| format!("{} ({})", section.name, show::bytes(section.length));
    for base in &release.bases {
        line("plan from", plan(base));
    }
    line("subtrees", section(manifest.sections.subtrees));
    line("blocks", section(manifest.sections.blocks));
    line("rolling", section(manifest.sections.rolling));
    lines.join("\n")
}

/// `web:1 (3 nodes): quick 2.4 MiB, thorough 1.6 MiB, smallest 1.2 MiB`
fn plan(base: &LikelyBase) -> String {
    let from = match &base.releases[..] {
        [] => format!("image {}", base.image.short()),
        releases => releases.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    };
    let nodes = if base.nodes == 1 { "1 node".into() } else { format!("{} nodes", base.nodes) };
    let kinds = [("quick", base.quick), ("thorough", base.thorough), ("smallest", base.smallest)];
    let made = kinds.into_iter().filter_map(|(kind, bytes)| Some(format!("{kind} {}", show::bytes(bytes?))));
    let mut plans: Vec<String> = made.collect();
    match (plans.is_empty(), base.under_way) {
        (true, true) => plans.push("preparing".into()),
        (true, false) => plans.push("none; made when a node asks".into()),
        (false, true) => plans.push("a better one is being made".into()),
        (false, false) => {}
    }
    format!("{from} ({nodes}): {}", plans.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use goldsync_proto::digest::{Digest, ImageId};
    use goldsync_proto::release::{Manifest, Sections};

    fn release() -> types::Release {
        let section = |length| Section { name: Digest::of(b"s"), length };
        types::Release {
            manifest: Manifest {
                format: 1,
                release: "web:2026.11.21".parse().unwrap(),
                image: ImageId::of(b"x"),
                size: 160 << 20,
                sections: Sections { subtrees: section(5120), blocks: section(327_680), rolling: section(327_680) },
                file_system: Some("ext4".into()),
                verity: None,
                minimum_agent: None,
                labels: [("commit".to_owned(), "4f1c\u{1b}[31m".to_owned())].into(),
                published_at: "2026-11-21T09:00:00Z".into(),
            },
            published_by: "ann".into(),
            published_at: "2026-11-21T09:00:01Z".into(),
            added: 3 << 20,
            channels: vec!["dev".parse().unwrap(), "staging".parse().unwrap()],
            bases: vec![
                LikelyBase {
                    image: ImageId::of(b"w"),
                    releases: vec!["web:2026.11.20".parse().unwrap()],
                    nodes: 3,
                    quick: Some(1 << 20),
                    thorough: None,
                    smallest: None,
                    under_way: true,
                },
                LikelyBase {
                    image: ImageId::of(b"v"),
                    releases: vec![],
                    nodes: 1,
                    quick: None,
                    thorough: None,
                    smallest: None,
                    under_way: false,
                },
            ],
        }
    }

    #[test]
    fn a_list_fits_eighty_columns() {
        let text = table(&[release()]).render(Some(80));
        let image = ImageId::of(b"x").short();
        assert_eq!(
            text.lines().last().unwrap(),
            format!("web:2026.11.21  {image}  160 MiB  3 MiB  2026-11-21 09:00:01  dev,staging")
        );
        assert!(text.lines().all(|line| line.chars().count() <= 80));
    }

    #[test]
    fn details_hold_the_whole_id_and_cannot_drive_the_terminal() {
        let text = details(&release());
        assert!(text.contains(&format!("image          {}", ImageId::of(b"x"))), "{text}");
        assert!(text.contains("size           160 MiB (167772160 bytes)"), "{text}");
        assert!(text.contains("label          commit=4f1c [31m"), "{text}");
        assert!(!text.contains('\u{1b}'));
        let first = "plan from      web:2026.11.20 (3 nodes): quick 1 MiB, a better one is being made";
        assert!(text.contains(first), "{text}");
        assert!(text.contains(" (1 node): none; made when a node asks\n"), "{text}");
    }
}
