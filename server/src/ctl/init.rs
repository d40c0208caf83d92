//! `goldsync init`: makes a server's folder and its first operator's, and says what to do with what was made.

use std::net::ToSocketAddrs;
use std::path::{Path, PathBuf};

use goldsync_proto::release::Word;

use super::fail::{Code, Failure, Outcome};
use super::{operator, screen};
use crate::cli::Init;
use crate::init::{InitError, InitOptions, InitReport, create};

/// `goldsync init`
pub async fn run(args: &Init, folder: Option<PathBuf>) -> Outcome {
    for (option, address) in [("--listen", args.listen), ("--api", args.api)] {
        if address.port() == 0 {
            return Err(Failure::new(
                Code::Usage,
                format!("{option} {address}: port 0 is no port that others can find"),
            )
            .remedy("choose one, for example 7400 for nodes and 7401 for operators"));
        }
    }
    let asked = folder.is_some();
    let mut names = args.names.clone();
    if names.is_empty() && (args.listen.ip().is_unspecified() || args.api.ip().is_unspecified()) {
        names.extend(own_name());
    }
    let options = InitOptions {
        data: args.data.clone(),
        listen: args.listen,
        api: args.api,
        names,
        operator_dir: operator::folder(folder.as_deref())?,
        operator_name: args.operator_name.clone(),
    };
    let report = create(options).await?;
    if args.json.json { screen::print_json(&report) } else { screen::print(&account(&report, asked)) }
}

/// This machine's name, if it leads back to this machine.
fn own_name() -> Option<String> {
    let name = rustix::system::uname().nodename().to_str().ok()?.to_ascii_lowercase();
    let resolves = (name.as_str(), 0).to_socket_addrs().is_ok_and(|mut found| found.next().is_some());
    (name != "localhost" && resolves).then_some(name)
}

/// What was made, which keys go where, and what comes next.
fn account(report: &InitReport, asked: bool) -> String {
    let keys = |name: &str| report.operator_dir.join("keys").join(name).display().to_string();
    let channels: Vec<&str> = report.channels.iter().map(Word::as_str).collect();
    let channel_keys: Vec<String> = channels.iter().map(|channel| format!("channel-{channel}.pem")).collect();
    let operator = if asked { format!(" --operator {}", quoted(&report.operator_dir)) } else { String::new() };
    format!(
        "\
made a server and its first operator, {name}
  data       {data}: catalog, objects, the fleet's CA, the online keys
  operator   {operator_dir}: operator.toml is your credential, keys/ signs
  api        {api}
  nodes      {server}
  channels   {channels}
  CA         {ca}
  root       {root}

take these keys off-line now: copy them to a medium that you lock away, then delete them here
  {root_key}
      replaces every other key; needed when one is lost, and once a year
  {targets_key}
      says which key may sign what

leave these in keys/ with the people who use them, and with nobody else
  releases.pem
      publishes
  {channel_keys}
      promote, one channel each

next
  goldsync serve --data {data_quoted}
  goldsync publish IMAGE --name NAME --version VERSION{operator}",
        name = report.operator_name,
        data = report.data.display(),
        operator_dir = report.operator_dir.display(),
        api = report.api,
        server = report.server,
        channels = channels.join(", "),
        ca = report.authority,
        root = report.root,
        root_key = keys("root.pem"),
        targets_key = keys("targets.pem"),
        channel_keys = channel_keys.join(", "),
        data_quoted = quoted(&report.data),
    )
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@".contains(c);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

impl From<InitError> for Failure {
    fn from(error: InitError) -> Self {
        let code = match &error {
            InitError::Name { .. } | InitError::Config(_) => Code::Usage,
            InitError::Io { .. } | InitError::Disk(_) => Code::Disk,
            _ => Code::Failed,
        };
        Self::new(code, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use goldsync_proto::digest::Digest;

    #[test]
    fn the_account_names_the_keys_to_take_away_and_two_commands() {
        let report = InitReport {
            data: "/srv/gold data".into(),
            operator_dir: "/home/ann/op".into(),
            operator_name: "ann".into(),
            api: "https://gold:7401".into(),
            server: "gold:7400".into(),
            authority: Digest::of(b"ca"),
            root: Digest::of(b"root"),
            channels: ["dev", "production"].map(|channel| channel.parse().unwrap()).to_vec(),
        };
        let text = account(&report, true);
        for words in [
            "  /home/ann/op/keys/root.pem\n      replaces",
            "  /home/ann/op/keys/targets.pem\n      says",
            "  channel-dev.pem, channel-production.pem\n      promote",
            "  goldsync serve --data '/srv/gold data'\n",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
        assert!(text.ends_with("--version VERSION --operator /home/ann/op"), "{text}");
        assert!(account(&report, false).ends_with("--version VERSION"));
    }

    #[test]
    fn a_path_is_quoted_for_a_shell() {
        assert_eq!(quoted(Path::new("/a/b-1.c")), "/a/b-1.c");
        assert_eq!(quoted(Path::new("/a b'c")), r"'/a b'\''c'");
    }
}
