//! The command line's definition; help, man pages and completions are made from it. Parsing touches nothing.

use std::path::PathBuf;

use clap::{Args as Group, Parser, Subcommand};
use clap_complete::Shell;
use goldsync_proto::release::{ReleaseRef, Word};

use crate::config::Address;

/// What the process's exit code means; the same for every verb.
const EXIT_CODES: &str = "\
Exit codes:
  0    done, or nothing to do
  1    failed; something would stop an update (doctor)
  2    usage or configuration; this machine is not enrolled
  3    not trusted: signature, expiry, rolled-back metadata, a release that is not acceptable,
       a server of another fleet
  4    the server cannot be reached, or refused
  5    slot or disk: missing, unreadable, full, too small, mounted, in use
  6    drift found (verify)
  7    an image failed its proof
  8    a release was not healthy here, and the node went back
  9    more bytes than the data budget allows
  75   another run is in progress
  130  interrupted

Whatever fails, and whenever: the active slot is as it was. The next run goes on from what was staged.

Files:
  /etc/goldsync/agent.toml, agent.toml.d/*.toml   configuration; also in /run/goldsync and /usr/lib/goldsync
  /var/lib/goldsync                               state: certificate, signed metadata, proofs

Examples:
  goldsync-agent init --write && goldsync-agent doctor             a configuration for this machine, and what is still amiss
  goldsync-agent enroll --server golden.example.net --token gs1.…   become a node
  goldsync-agent sync                                              run what the channel says, now
  goldsync-agent download && goldsync-agent activate               fetch now, switch later
  goldsync-agent status                                            what runs, what is staged, what went wrong
  goldsync-agent run                                               the daemon: be told, and follow a schedule";

/// Keeps this machine binary-identical to its fleet's golden image.
///
/// Two slots hold one image each. The agent compares what it has with the golden image of its channel, fetches only the
/// blocks that it lacks, writes them to the slot that is not active, reads that slot back, and makes it the active one in
/// a single step. The active slot is never written.
#[derive(Debug, Parser)]
#[command(name = "goldsync-agent", version, max_term_width = 110, after_help = EXIT_CODES, propagate_version = true)]
pub struct Args {
    /// How to run, whatever the verb.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// How to run, whatever the verb.
#[derive(Clone, Debug, Group)]
pub struct Global {
    /// Read this configuration, and no other
    #[arg(long, global = true, value_name = "FILE", env = "GOLDSYNC_AGENT_CONFIG")]
    pub config: Option<PathBuf>,
    /// Print one JSON object instead of text
    #[arg(long, global = true)]
    pub json: bool,
    /// Show no progress
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// Log more; twice for everything. GOLDSYNC_LOG takes a filter like `goldsync_agent::link=trace`
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum Verb {
    /// Look at this machine and propose a configuration for it
    ///
    /// Finds partitions that belong together (by label or size), or proposes files; finds the boot loader; and says for every value why.
    /// Prints it, unless --write is given. Nothing is run, and nothing else is changed. Read it before you use it: a slot is
    /// overwritten whole.
    #[command(after_help = "\
Examples:
  goldsync-agent init                                  what it would be
  goldsync-agent init --server golden.example.net --write && goldsync-agent doctor
  goldsync-agent init --json | jq .machine.partitions  what was found
  goldsync-agent init --root /mnt                      of another machine's file systems")]
    Init(Init),
    /// Say what would stop an update or a rollback here, each with its cure
    ///
    /// Looks at configuration, slots, state folder, activation, what is active and what could be gone back to, drift, disks, identity,
    /// clock and signed metadata, and asks the server for news. Exit code 1 if anything stops an update or the way back; warnings
    /// do not.
    #[command(after_help = "\
Examples:
  goldsync-agent doctor
  goldsync-agent doctor --offline --json | jq '.findings[] | select(.verdict != \"fine\")'")]
    Doctor {
        /// Do not ask the server
        #[arg(long)]
        offline: bool,
    },
    /// Make this machine a node of a fleet
    ///
    /// The token proves the machine to the server and the server to the machine: it carries the hash of the fleet's CA and
    /// of the root of its signed metadata. It comes from `goldsync token create`.
    #[command(
        visible_alias = "enrol",
        after_help = "\
Examples:
  goldsync-agent enroll --server golden.example.net --token gs1.…
  goldsync-agent enroll --token - < /run/secrets/goldsync-token"
    )]
    Enroll(Enrol),
    /// Say whether there is something new, and what would be done; changes nothing
    ///
    /// Refreshes the signed metadata and verifies it. Touches no slot.
    Check {
        /// Also ask the server for its plan, and say how many bytes it would take
        #[arg(long)]
        forecast: bool,
    },
    /// Fetch the channel's release into the standby slot and prove it; activates nothing
    ///
    /// The slot is read back and compared with the golden image before this returns. Interrupted, the next run keeps what
    /// was staged. Does nothing if the release runs, or is staged, already.
    Download(Fetching),
    /// Like download, for a release that you name
    ///
    /// Any release that the fleet has signed may be named, whatever the channel points at; without a name this is
    /// `download`. After `activate` it runs until the daemon's next look at the channel.
    #[command(after_help = "\
Examples:
  goldsync-agent install web:2026.11.20 && goldsync-agent activate")]
    Install {
        /// NAME:VERSION; the channel's release if left out
        release: Option<ReleaseRef>,
        /// How much it may take.
        #[command(flatten)]
        fetching: Fetching,
    },
    /// Make the staged image the active one; needs no server
    ///
    /// Reads the standby slot back once more, then switches in one atomic step. Refuses a slot that holds nothing proven,
    /// or what ran before (that is `rollback`). Where a boot loader starts the slots, it is told to try this one at the next
    /// start, and to go back by itself if it does not come up. Where health is asked for (`[health]`), it is waited for: what is
    /// not healthy by its deadline is left again.
    #[command(after_help = "\
Activation by a program of yours (activation.backend = \"command\"):
  PROGRAM query         prints a, b or none, and ends with 0
  PROGRAM activate a|b  makes that slot the active one, durably, and ends with 0
With activation.takes_effect = \"at-restart\" also `retire a|b` and `confirm a|b`, and `query` may print the slot that the
next start takes and how many tries are left: `a b 3`.
Any other exit code means that the old slot is still active. It is told, in its environment, GOLDSYNC_SLOT_A and
GOLDSYNC_SLOT_B (the slots' paths), and for activate also GOLDSYNC_SLOT_PATH, GOLDSYNC_IMAGE (BLAKE3) and
GOLDSYNC_RELEASE (NAME:VERSION). Power lost at any moment must leave the old slot active or the new one; activating the
active slot must succeed. After activation.time_limit it is killed, with all that it has started.")]
    Activate {
        /// Start the machine again, if what was activated waits for that: as restart.how says, or else the whole machine
        #[arg(long)]
        restart: bool,
    },
    /// Go back to what was active before; needs no server
    ///
    /// Reads that slot back first. The release that is left is not gone to again by the daemon on its own, until the
    /// channel moves on, or `activate`, `sync` or an operator's fleet sync says so. A release that was activated and has not
    /// been started yet is called off.
    Rollback {
        /// Start the machine again, if going back waits for that
        #[arg(long)]
        restart: bool,
    },
    /// Keep what is on trial, if it is healthy; go back if it is not; needs no server
    ///
    /// Waits for health (`[health]`) until its deadline. The daemon does this by itself; this is for machines without one, and
    /// for a unit of yours. Does nothing if nothing is on trial.
    Confirm {
        /// Keep it without asking how it is
        #[arg(long)]
        force: bool,
    },
    /// Mount the chosen slot after the machine has started (activation.backend = "mount"); needs no server
    ///
    /// For goldsync-mount.service. Does nothing if a slot is mounted already, or none was ever activated. A slot on trial is
    /// mounted so many times as it has tries; after that, or if it cannot be mounted, the other slot is.
    Mount,
    /// Check, download and activate: run what the channel says
    ///
    /// Does nothing if it runs already. Maintenance windows are for the daemon: what somebody types is done at once.
    Sync {
        /// Start the machine again, if what was activated waits for that
        #[arg(long)]
        restart: bool,
        /// How much it may take.
        #[command(flatten)]
        fetching: Fetching,
    },
    /// Show the slots, what runs, drift, and how the last update ended; needs no server
    Status,
    /// Say why this node has not updated
    ///
    /// Walks the decision as an update would, and ends at what stops it or makes it wait: enrolment, the server, a trial that is
    /// on, what failed here before, the disk, the data budget, the maintenance window, people and programs that must not be
    /// disturbed. Changes nothing. Of what is staged already it can tell without a server.
    Explain {
        /// Do not ask the server
        #[arg(long)]
        offline: bool,
    },
    /// Hash the active slot and list the blocks that are not the golden image's
    ///
    /// Exit code 6 if there are any. The server is asked only if this node does not keep the image's block hashes.
    Verify,
    /// Make a drifted active slot golden again
    ///
    /// Fetches just the drifted blocks, into a copy in the standby slot, proves it and activates it.
    Repair,
    /// Run as a daemon: be told by the server, follow the schedule, report
    ///
    /// Holds one connection to the server. Meant to be started by systemd (Type=notify); ends with SIGTERM. A machine that
    /// is not enrolled yet waits until it is.
    Run,
    /// Print a completion script for a shell
    #[command(after_help = "\
Examples:
  goldsync-agent completions bash > /usr/share/bash-completion/completions/goldsync-agent")]
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// Print the man page, or write all of them to a folder
    Man {
        /// Write goldsync-agent.1 and one page a verb here
        #[arg(long, value_name = "FOLDER")]
        out: Option<PathBuf>,
    },
}

/// What a proposal may be told.
#[derive(Clone, Debug, Group)]
pub struct Init {
    /// The server to put into it; left out, it is the one that the node is enrolled with
    #[arg(long, value_name = "HOST[:PORT]")]
    pub server: Option<Address>,
    /// The channel to follow
    #[arg(long, value_name = "NAME")]
    pub channel: Option<Word>,
    /// Write it to /etc/goldsync/agent.toml (or where --config says)
    #[arg(long)]
    pub write: bool,
    /// With --write: also over a configuration that is there
    #[arg(long, requires = "write")]
    pub force: bool,
    /// The folder that is the machine's root
    #[arg(long, value_name = "FOLDER", default_value = "/")]
    pub root: PathBuf,
}

/// How much an update may take.
#[derive(Clone, Copy, Debug, Default, Group)]
pub struct Fetching {
    /// Take as many bytes as it needs, whatever the data budget says
    #[arg(long)]
    pub any_size: bool,
}

/// What enrolling needs.
#[derive(Clone, Debug, Group)]
pub struct Enrol {
    /// The server, HOST or HOST:PORT (UDP, default 7400); `server` of the configuration if left out
    #[arg(long, value_name = "HOST[:PORT]")]
    pub server: Option<Address>,
    /// The token, or `-` to read it from standard input
    #[arg(long, env = "GOLDSYNC_TOKEN", hide_env_values = true)]
    pub token: String,
    /// The name that this machine would like; the server may add to it
    #[arg(long)]
    pub name: Option<Word>,
    /// Replace the identity that this machine has
    #[arg(long)]
    pub force: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_definition_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn verbs_and_flags_are_found_in_any_order() {
        let args = parse("goldsync-agent sync --json --config /x.toml -vv").unwrap();
        assert!(matches!(args.verb, Verb::Sync { .. }) && args.global.json && args.global.verbose == 2);
        assert_eq!(args.global.config, Some("/x.toml".into()));
        let args = parse("goldsync-agent --json install web:1").unwrap();
        assert!(matches!(args.verb, Verb::Install { release: Some(release), .. } if release.to_string() == "web:1"));
        assert!(matches!(
            parse("goldsync-agent enrol --token x").unwrap().verb,
            Verb::Enroll(Enrol { force: false, .. })
        ));
    }

    #[test]
    fn what_cannot_be_is_said_with_its_value() {
        for (line, expected) in [
            ("goldsync-agent", "Usage"),
            ("goldsync-agent synch", "synch"),
            ("goldsync-agent install web", "NAME:VERSION"),
            ("goldsync-agent enroll", "--token"),
            ("goldsync-agent enroll --token x --server a:b", "HOST:PORT"),
            ("goldsync-agent sync --now", "--now"),
            ("goldsync-agent init --force", "--write"),
        ] {
            let error = parse(line).unwrap_err().to_string();
            assert!(error.contains(expected), "{line}: {error}");
        }
    }

    #[test]
    fn help_teaches_exit_codes_and_examples() {
        let help = Args::command().render_long_help().to_string();
        for expected in ["75   another run", "download && goldsync-agent activate", "never written"] {
            assert!(help.contains(expected), "{expected}");
        }
    }
}
