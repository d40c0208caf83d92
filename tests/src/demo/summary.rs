//! What the demo came to: what each step cost, and what every slot holds. Printed as tables, or as JSON.

use goldsync_proto::limits::BLOCK;
use goldsync_proto::wire::Account;
use serde::Serialize;

use super::show::{Voice, bytes, count, part};

/// The whole demo.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// What the images are made of.
    pub images: String,
    /// The two releases.
    pub releases: Vec<Golden>,
    /// What each node's steps cost.
    pub steps: Vec<Cost>,
    /// Every slot at the end.
    pub slots: Vec<Slot>,
    /// Whether every slot holds what it must.
    pub golden: bool,
    /// Seconds, all of it.
    pub seconds: f64,
}

/// A release, its id found out by reading the image here.
#[derive(Clone, Debug, Serialize)]
pub struct Golden {
    /// `demo:1`
    pub release: String,
    /// BLAKE3 of the image.
    pub image: String,
    /// Bytes.
    pub size: u64,
}

/// What a step cost on one node.
#[derive(Clone, Debug, Serialize)]
pub struct Cost {
    /// The step.
    pub step: String,
    /// The node.
    pub node: String,
    /// Bytes of the image.
    pub size: u64,
    /// By the agent's own count.
    #[serde(flatten)]
    pub account: Account,
}

/// A slot, hashed.
#[derive(Clone, Debug, Serialize)]
pub struct Slot {
    /// Whose.
    pub node: String,
    /// `a` or `b`.
    pub slot: String,
    /// Whether it is what the node runs.
    pub active: bool,
    /// BLAKE3 of the slot's file, found by reading it here; `None` if there is no file.
    pub found: Option<String>,
    /// The release whose image that is.
    pub release: Option<String>,
    /// The release that it must be; `None` where anything may be: a slot that was drifted on purpose and replaced.
    pub expected: Option<String>,
}

impl Slot {
    /// Whether it is what it must be.
    pub fn good(&self) -> bool {
        self.expected.is_none() || self.release == self.expected
    }
}

impl Summary {
    /// Tables for people.
    pub fn print(&self, voice: Voice) {
        self.costs(voice);
        self.proof(voice);
        let all = "every slot is the golden image, to the last byte";
        let verdict = if self.golden { all } else { "NOT GOLDEN: see the lines marked so" };
        voice.say(&format!("\n{verdict}; all of it took {:.1} s", self.seconds));
    }

    fn costs(&self, voice: Voice) {
        voice.say("\nWhat each step cost");
        voice.say(&format!(
            "  {:<8} {:<6} {:<10} {:>10} {:>10} {:>11} {:>10} {:>10} {:>9} {:>8}",
            "step", "node", "by", "received", "sent", "of image", "written", "skipped", "repaired", "time"
        ));
        for cost in &self.steps {
            let Account { path, received, sent, written, skipped, repaired, elapsed_ms, .. } = &cost.account;
            voice.say(&format!(
                "  {:<8} {:<6} {path:<10} {:>10} {:>10} {:>11} {:>10} {:>10} {:>9} {:>6.2} s",
                cost.step,
                cost.node,
                bytes(*received),
                bytes(*sent),
                part(received + sent, cost.size),
                count(*written),
                count(*skipped),
                count(*repaired),
                *elapsed_ms as f64 / 1000.0
            ));
        }
        voice.say(&format!(
            "  received and sent: UDP payload; written, skipped, repaired: blocks of {BLOCK} bytes, read back and proven"
        ));
    }

    fn proof(&self, voice: Voice) {
        voice.say("\nEvery slot's file, hashed here and now");
        for Golden { release, image, .. } in &self.releases {
            voice.say(&format!("  golden {release:<14} {image}"));
        }
        for slot in &self.slots {
            let role = if slot.active { "active" } else { "standby" };
            let verdict = match (&slot.release, slot.good(), &slot.expected) {
                (Some(release), true, _) => format!("= {release}"),
                (None, true, _) => "the drifted one, replaced by the repair".to_owned(),
                (_, false, expected) => format!("NOT GOLDEN, must be {}", expected.as_deref().unwrap_or("golden")),
            };
            let found = slot.found.as_deref().unwrap_or("-");
            voice.say(&format!("  {:<6} {} {role:<12} {found:<64}  {verdict}", slot.node, slot.slot));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_expected_is_good() {
        let slot = |release: Option<&str>, expected: Option<&str>| Slot {
            node: "anna".into(),
            slot: "a".into(),
            active: true,
            found: None,
            release: release.map(str::to_owned),
            expected: expected.map(str::to_owned),
        };
        for (release, expected, good) in [
            (Some("demo:1"), Some("demo:1"), true),
            (Some("demo:2"), Some("demo:1"), false),
            (None, Some("demo:1"), false),
            (None, None, true),
        ] {
            assert_eq!(slot(release, expected).good(), good, "{release:?} {expected:?}");
        }
    }
}
