//! Who must not be disturbed, by systemd's login manager: programs that forbid a shutdown, people who are logged in.
//!
//! Asked by `busctl`, whose JSON is stable, so that no D-Bus library is needed. Where there is no login manager there is nobody to
//! ask, and so nobody to wait for.

use std::time::Duration;

use goldsync_proto::wire::{Wait, WaitOn};
use serde::Deserialize;

use super::found;
use crate::program::Program;

const PATIENCE: Duration = Duration::from_secs(10);

/// Sessions whose class is asked for: a machine with more people on it is in use, whoever they are.
const SESSIONS_ASKED: usize = 64;

const SERVICE: &str = "org.freedesktop.login1";

/// `busctl`'s answer: a type, and the values of that type.
#[derive(Deserialize)]
struct Answer<T> {
    data: T,
}

/// What, who, why, mode, user, process.
type Inhibitor = (String, String, String, String, u32, u32);

/// Name, user's number, user, seat, object.
type Session = (String, u32, String, String, String);

/// A program that forbids a shutdown.
pub(super) fn inhibitor() -> Option<Wait> {
    let text = manager("ListInhibitors")?;
    forbids(&text)
}

/// Somebody who is logged in.
pub(super) fn session() -> Option<Wait> {
    let text = manager("ListSessions")?;
    somebody(&text, |object| {
        let class = ask(&["get-property", SERVICE, object, "org.freedesktop.login1.Session", "Class"])?;
        serde_json::from_str::<Answer<String>>(&class).ok().map(|answer| answer.data)
    })
}

fn manager(method: &str) -> Option<String> {
    ask(&["call", SERVICE, "/org/freedesktop/login1", "org.freedesktop.login1.Manager", method])
}

fn ask(arguments: &[&str]) -> Option<String> {
    let program = Program { command: vec![found("busctl")?, "--json=short".into()], limit: PATIENCE };
    let answer = program.call(arguments, &[]);
    answer.inspect_err(|error| tracing::debug!(%error, "no login manager")).ok()
}

fn forbids(text: &str) -> Option<Wait> {
    let Answer { data: (all,) } = serde_json::from_str::<Answer<(Vec<Inhibitor>,)>>(text).ok()?;
    let (_, who, why, ..) = all
        .into_iter()
        .find(|(what, _, _, mode, ..)| mode.starts_with("block") && what.split(':').any(|what| what == "shutdown"))?;
    let why = format!("{who} forbids a shutdown: {why}; `systemd-inhibit --list` shows it");
    Some(Wait { on: WaitOn::Inhibitor, why, until: None })
}

fn somebody(text: &str, class: impl Fn(&str) -> Option<String>) -> Option<Wait> {
    let Answer { data: (all,) } = serde_json::from_str::<Answer<(Vec<Session>,)>>(text).ok()?;
    // A greeter, or the manager of a user's services, is nobody. One that cannot be asked any more has logged out.
    let person = |(.., object): &Session| class(object).is_some_and(|class| class.starts_with("user"));
    let (name, _, user, ..) = all.into_iter().take(SESSIONS_ASKED).find(person)?;
    let why = format!("{user} is logged in (session {name}); `loginctl` shows who");
    Some(Wait { on: WaitOn::Session, why, until: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_blocks_a_shutdown_counts() {
        let text = |mode: &str, what: &str| {
            format!(
                r#"{{"type":"a(ssssuu)","data":[[["sleep","NetworkManager","x","delay",0,1],["{what}","backup","a dump is being written","{mode}",0,7]]]}}"#
            )
        };
        let wait = forbids(&text("block", "sleep:shutdown:idle")).unwrap();
        assert!(wait.on == WaitOn::Inhibitor && wait.why.contains("backup") && wait.why.contains("a dump"), "{wait:?}");
        assert_eq!(forbids(&text("delay", "shutdown")), None);
        assert_eq!(forbids(&text("block", "sleep")), None);
        assert_eq!(forbids(r#"{"type":"a(ssssuu)","data":[[]]}"#), None);
        assert_eq!(forbids("no JSON"), None);
    }

    #[test]
    fn only_people_count_as_logged_in() {
        let text = r#"{"type":"a(susso)","data":[[["c1",110,"gdm","seat0","/s/c1"],["7",1000,"ada","","/s/7"]]]}"#;
        let class =
            |of: &'static str| move |object: &str| Some(if object == "/s/7" { of } else { "greeter" }.to_owned());
        let wait = somebody(text, class("user")).unwrap();
        assert!(wait.on == WaitOn::Session && wait.why.contains("ada") && wait.why.contains("session 7"), "{wait:?}");
        assert_eq!(somebody(text, class("manager")), None);
        assert_eq!(somebody(text, |_| None), None, "they have logged out meanwhile");
    }
}
