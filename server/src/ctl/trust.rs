//! `goldsync trust status`, `trust renew`, `trust rotate`, and `goldsync channel create`: until when the signed metadata
//! is good, and which keys it names.
//!
//! ```text
//! GET /v1/trust ─▶ verified from the pinned root ─▶ next versions signed here ─▶ POST /v1/trust ─▶ nodes' next check
//! rotate, create: keys/ROLE.next.pem is on disk before anything names it, and becomes keys/ROLE.pem after
//! ```
//! A rotation that is cut short can always be ended by the same command: before the server took it the successor is
//! there to be named, and afterwards to be put into place.

use std::collections::BTreeMap;
use std::path::PathBuf;

use chrono::{DateTime, SecondsFormat, Utc};
use goldsync_proto::release::{RELEASES_ROLE, Word, channel_role};
use goldsync_proto::trust::{ROOT, TARGETS};
use reqwest::StatusCode;
use serde::Serialize;

use super::client::Refusal;
use super::fail::{Code, Failure, Outcome};
use super::sign::{TURNS, outpaced};
use super::table::{Column, Table};
use super::{Desk, screen, show};
use crate::api::types::{OnlineKeys, TrustRequest, TrustRole};
use crate::cli::{ChannelCreate, Json, ONLINE, TrustRenew, TrustRotate};
use crate::trust::{Delegate, KeyPlace, NewRoot, OnlinePublic, Operator as Signer, Standing, TrustError, old_file_of};

/// A role that is good for fewer days is named aloud.
const SOON_DAYS: i64 = 30;

/// Role to text, or file name to text.
type Texts = BTreeMap<String, String>;

/// A role, as `status` shows it.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Row {
    role: String,
    version: u64,
    expires: String,
    /// Whole days; less than zero if it has expired.
    days_left: i64,
    key: KeyPlace,
}

/// `goldsync trust status`
pub async fn status(desk: &Desk, json: Json) -> Outcome {
    let signer = Signer::open(&desk.operator.folder)?;
    let standings = signer.standings(&desk.client.trust().await?.files).await?;
    let now = Utc::now();
    let rows: Vec<Row> = standings.iter().map(|standing| row(standing, now)).collect();
    if json.json {
        screen::print_json(&rows)?;
    } else {
        screen::print_table(&table(&rows), "there are no roles")?;
    }
    for row in rows.iter().filter(|row| row.key == KeyPlace::Pending) {
        screen::note(&format!("goldsync: the rotation of {0} was cut short; goldsync trust rotate {0}", row.role));
    }
    judge(&rows, &mut screen::note)
}

fn row(standing: &Standing, now: DateTime<Utc>) -> Row {
    let Standing { role, version, expires, key } = standing;
    // Rounded down on both sides of zero: a role that expired a minute ago has not "0 days left".
    let days_left = (*expires - now).num_seconds().div_euclid(86_400);
    let expires = expires.to_rfc3339_opts(SecondsFormat::Secs, true);
    Row { role: role.clone(), version: *version, expires, days_left, key: *key }
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new([
        ("ROLE", Column::Left),
        ("VERSION", Column::Right),
        ("EXPIRES (UTC)", Column::Left),
        ("DAYS LEFT", Column::Right),
        ("KEY", Column::Left),
    ]);
    for row in rows {
        let key = match row.key {
            KeyPlace::Here => "here",
            KeyPlace::Pending => "unfinished",
            KeyPlace::Replaced => "replaced",
            KeyPlace::Elsewhere => "elsewhere",
            KeyPlace::Server => "server",
        };
        let left = if row.days_left < 0 { "expired".to_owned() } else { row.days_left.to_string() };
        table.row([row.role.clone(), row.version.to_string(), show::time(&row.expires), left, key.to_owned()]);
    }
    table
}

/// Names what expires soon, and fails on what has expired.
fn judge(rows: &[Row], note: &mut dyn FnMut(&str)) -> Outcome {
    // The server's own live for days, and it renews them when half of that is over.
    let soon = |row: &&Row| row.key != KeyPlace::Server && (0..SOON_DAYS).contains(&row.days_left);
    for row in rows.iter().filter(soon) {
        let left = show::count(row.days_left.unsigned_abs(), "day", "days");
        note(&format!("goldsync: role {} expires in {left}; {}", row.role, cure(row)));
    }
    let over: Vec<&Row> = rows.iter().filter(|row| row.days_left < 0).collect();
    let Some(first) = over.first() else { return Ok(()) };
    let names: Vec<&str> = over.iter().map(|row| row.role.as_str()).collect();
    let message = format!("expired: {}; nodes take nothing new that depends on it", names.join(", "));
    Err(Failure::new(Code::NotTrusted, message).remedy(cure(first)))
}

fn cure(row: &Row) -> String {
    match row.key {
        KeyPlace::Server => {
            "the server renews it by itself; its log says why it did not, and is its clock right?".into()
        }
        KeyPlace::Here => format!("goldsync trust renew {}", row.role),
        KeyPlace::Pending => format!("goldsync trust rotate {}", row.role),
        KeyPlace::Replaced | KeyPlace::Elsewhere => {
            format!("put its key into keys/, then goldsync trust renew {}", row.role)
        }
    }
}

/// `goldsync trust renew`
pub async fn renew(desk: &Desk, args: &TrustRenew) -> Outcome {
    let signer = Signer::open(&desk.operator.folder)?;
    let roles = if args.roles.is_empty() { mine(desk, &signer).await? } else { args.roles.clone() };
    // All keys before anything is signed: half of what was asked for helps nobody.
    for role in &roles {
        signer.keys().get(role)?;
    }
    desk.interrupted.leaves("what was renewed by then counts; `goldsync trust status` says");
    let mut renewed = Vec::new();
    for role in &roles {
        renewed.extend(submit(desk, async |files: &Texts| again(&signer, files, role).await).await?);
    }
    if args.json.json {
        return screen::print_json(&renewed);
    }
    let lines: Vec<String> = renewed
        .iter()
        .map(|TrustRole { role, version, expires }| {
            format!("{role} is good until {}, version {version}", show::time(expires))
        })
        .collect();
    screen::print(&lines.join("\n"))
}

/// The roles whose keys are in the folder, and named.
async fn mine(desk: &Desk, signer: &Signer) -> Outcome<Vec<String>> {
    let standings = signer.standings(&desk.client.trust().await?.files).await?;
    let (here, other): (Vec<_>, Vec<_>) = standings.into_iter().partition(|role| role.key == KeyPlace::Here);
    let names = |roles: Vec<Standing>| roles.into_iter().map(|role| role.role).collect::<Vec<_>>();
    let other = names(other.into_iter().filter(|role| role.key != KeyPlace::Server).collect());
    if here.is_empty() {
        let dir = signer.keys().dir().display();
        return Err(Failure::new(Code::Usage, format!("no key in {dir} is one that the fleet's metadata names"))
            .remedy("put the keys of the roles to renew there; `goldsync trust status` lists the roles"));
    }
    if !other.is_empty() {
        screen::note(&format!("goldsync: not renewed, because their keys are not here: {}", other.join(", ")));
    }
    Ok(names(here))
}

async fn again(signer: &Signer, files: &Texts, role: &str) -> Result<Texts, TrustError> {
    let now = Utc::now();
    if role == ROOT {
        return signer.next_root(files, &NewRoot::default(), now).await;
    }
    Ok(BTreeMap::from([(role.to_owned(), signer.renew(files, role, now).await?)]))
}

/// Signs on top of what the server holds and sends it, anew when somebody else was faster.
async fn submit(desk: &Desk, sign: impl AsyncFn(&Texts) -> Result<Texts, TrustError>) -> Outcome<Vec<TrustRole>> {
    for _ in 0..TURNS {
        let roles = sign(&desk.client.trust().await?.files).await?;
        match desk.client.submit_roles(&TrustRequest { roles }).await? {
            Ok(taken) => return Ok(taken),
            Err(Refusal::Problem(StatusCode::CONFLICT, _)) => {}
            Err(refusal) => return Err(refusal.into()),
        }
    }
    Err(outpaced())
}

/// What a rotation, or a new channel, came to.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Rotated {
    /// The role, or `online`.
    pub role: String,
    /// The new key's file; `None` for the server's own.
    pub key: Option<PathBuf>,
    /// Where the old key is kept, if there was one here.
    pub old_key: Option<PathBuf>,
    /// The roles that were signed; none if an interrupted run had done that already.
    pub signed: Vec<TrustRole>,
}

/// `goldsync trust rotate`
pub async fn rotate(desk: &Desk, args: &TrustRotate) -> Outcome {
    desk.interrupted.leaves("give the same command again to end it");
    let mut all = Vec::new();
    for role in &args.roles {
        let rotated = rotate_one(desk, role).await?;
        if !args.json.json {
            screen::print(&account(&rotated))?;
        }
        all.push(rotated);
    }
    if args.json.json { screen::print_json(&all) } else { Ok(()) }
}

/// Gives one role another key.
pub async fn rotate_one(desk: &Desk, role: &str) -> Outcome<Rotated> {
    let mut signer = Signer::open(&desk.operator.folder)?;
    if role == ONLINE {
        return rotate_online(desk, &signer).await;
    }
    let standings = signer.standings(&desk.client.trust().await?.files).await?;
    let Some(standing) = standings.iter().find(|standing| standing.role == role) else {
        let known = standings.iter().map(|standing| standing.role.as_str()).collect::<Vec<_>>().join(", ");
        return Err(TrustError::UnknownRole { role: role.to_owned(), known }.into());
    };
    let place = standing.key;
    succeed(desk, &mut signer, role, place).await
}

/// Has a role's successor named, unless it is already, and puts it into place.
async fn succeed(desk: &Desk, signer: &mut Signer, role: &str, place: KeyPlace) -> Outcome<Rotated> {
    let mut signed = Vec::new();
    if place != KeyPlace::Pending {
        // Before a key is made that nobody could name.
        signer.keys().get(if [ROOT, TARGETS].contains(&role) { ROOT } else { TARGETS })?;
        signer.keys_mut().successor(role)?;
        let signer = &*signer;
        let none = || TrustError::NoKey { role: role.to_owned(), path: signer.keys().dir().to_owned() };
        let key = signer.keys().pending(role).ok_or_else(none)?;
        signed = submit(desk, async |files: &Texts| match role {
            ROOT => signer.next_root(files, &NewRoot { root: Some(key), ..NewRoot::default() }, Utc::now()).await,
            TARGETS => signer.next_root(files, &NewRoot { targets: Some(key), ..NewRoot::default() }, Utc::now()).await,
            _ => signer.delegate(files, &delegate(role)?, key, Utc::now()).await,
        })
        .await?;
    }
    let keys = signer.keys_mut();
    let (key, old_key) = (keys.dir().join(format!("{role}.pem")), keys.dir().join(old_file_of(role)));
    let old_key = keys.get(role).is_ok().then_some(old_key);
    keys.install(role)?;
    Ok(Rotated { role: role.to_owned(), key: Some(key), old_key, signed })
}

fn delegate(role: &str) -> Result<Delegate, TrustError> {
    match role.strip_prefix("channel-").and_then(|name| name.parse().ok()) {
        Some(channel) => Ok(Delegate::Channel(channel)),
        None if role == RELEASES_ROLE => Ok(Delegate::Releases),
        None => Err(TrustError::UnknownRole { role: role.to_owned(), known: format!("{RELEASES_ROLE}, channel-NAME") }),
    }
}

async fn rotate_online(desk: &Desk, signer: &Signer) -> Outcome<Rotated> {
    signer.keys().get(ROOT)?;
    let online = public(&desk.client.online_keys().await?)?;
    let new = NewRoot { online: Some(&online), ..NewRoot::default() };
    let signed = submit(desk, async |files: &Texts| signer.next_root(files, &new, Utc::now()).await).await?;
    Ok(Rotated { role: ONLINE.to_owned(), key: None, old_key: None, signed })
}

fn public(keys: &OnlineKeys) -> Outcome<OnlinePublic> {
    let read = |text: &str| {
        serde_json::from_str(text)
            .map_err(|error| Failure::new(Code::Server, format!("the server's new online key cannot be read: {error}")))
    };
    Ok(OnlinePublic { snapshot: read(&keys.snapshot)?, timestamp: read(&keys.timestamp)? })
}

fn account(rotated: &Rotated) -> String {
    let Rotated { role, key, old_key, signed } = rotated;
    let mut lines = match key {
        Some(key) => vec![format!("{role} has a new key"), format!("  key      {}", key.display())],
        None => vec!["the server has new online keys and uses them".to_owned()],
    };
    lines.extend(old_key.as_ref().map(|old| format!("  old key  {}, which signs nothing any more", old.display())));
    let signed =
        signed.iter().map(|one| format!("{} version {}", one.role, one.version)).collect::<Vec<_>>().join(", ");
    lines.push(match signed.as_str() {
        "" => "  signed   by an earlier run; the key is in its place now".to_owned(),
        signed => format!("  signed   {signed}; nodes take it at their next check"),
    });
    lines.push(
        match role.as_str() {
            ROOT | TARGETS => {
                "next: take the new key off-line: copy it to a medium that you lock away, then delete it here"
            }
            ONLINE => "next: remove trust/keys/*.old.pem from the server's data folder",
            _ => "next: hand the new key to whoever needs it; if the old one was stolen, promote what should run",
        }
        .to_owned(),
    );
    lines.join("\n")
}

/// `goldsync channel create`
pub async fn create_channel(desk: &Desk, args: &ChannelCreate) -> Outcome {
    desk.interrupted.leaves("give the same command again to end it");
    let made = introduce(desk, &args.channel).await?;
    if args.json.json {
        return screen::print_json(&made);
    }
    let key = made.key.as_ref().map(|key| key.display().to_string()).unwrap_or_default();
    let channel = &args.channel;
    screen::print(&format!(
        "{channel} is a channel now\n  key      {key}: whoever has it can promote to {channel}\n\
         next: goldsync promote NAME:VERSION {channel}, and `channel = \"{channel}\"` in its nodes' agent.toml"
    ))
}

/// Makes a channel.
pub async fn introduce(desk: &Desk, channel: &Word) -> Outcome<Rotated> {
    let role = channel_role(channel);
    let mut signer = Signer::open(&desk.operator.folder)?;
    let standings = signer.standings(&desk.client.trust().await?.files).await?;
    let place = standings.iter().find(|standing| standing.role == role).map(|standing| standing.key);
    if let Some(KeyPlace::Here | KeyPlace::Replaced | KeyPlace::Elsewhere | KeyPlace::Server) = place {
        return Err(Failure::new(Code::Failed, format!("there is a channel {channel} already"))
            .remedy(format!("`goldsync trust rotate {role}` gives it another key")));
    }
    succeed(desk, &mut signer, &role, place.unwrap_or(KeyPlace::Elsewhere)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(given: &[(&str, i64, KeyPlace)]) -> Vec<Row> {
        let expires = || "2026-12-01T00:00:00Z".to_owned();
        given
            .iter()
            .map(|(role, days_left, key)| Row {
                role: (*role).into(),
                version: 3,
                expires: expires(),
                days_left: *days_left,
                key: *key,
            })
            .collect()
    }

    #[test]
    fn days_left_are_whole_days_and_below_zero_once_over() {
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        for (seconds, days) in [(86_400 * 30, 30), (86_400 * 30 - 1, 29), (1, 0), (0, 0), (-1, -1)] {
            let expires = now + chrono::TimeDelta::seconds(seconds);
            let standing = Standing { role: "root".into(), version: 1, expires, key: KeyPlace::Here };
            assert_eq!(row(&standing, now).days_left, days, "{seconds}");
        }
    }

    #[test]
    fn what_expires_soon_is_said_and_what_has_expired_fails() {
        let mut said = Vec::new();
        let given = rows(&[
            ("root", 29, KeyPlace::Elsewhere),
            ("targets", 30, KeyPlace::Here),
            ("releases", 1, KeyPlace::Here),
            ("timestamp", 6, KeyPlace::Server),
        ]);
        judge(&given, &mut |text| said.push(text.to_owned())).unwrap();
        assert_eq!(
            said,
            [
                "goldsync: role root expires in 29 days; put its key into keys/, then goldsync trust renew root",
                "goldsync: role releases expires in 1 day; goldsync trust renew releases",
            ]
        );
        let over = rows(&[("root", 40, KeyPlace::Here), ("channel-dev", -1, KeyPlace::Here)]);
        let failure = judge(&over, &mut |text| panic!("{text}")).unwrap_err();
        assert_eq!(failure.code, Code::NotTrusted);
        assert!(failure.message.starts_with("expired: channel-dev;"), "{failure}");
        assert_eq!(failure.remedy.as_deref(), Some("goldsync trust renew channel-dev"));
    }

    #[test]
    fn the_table_shows_each_key_s_place() {
        let given = rows(&[("root", 300, KeyPlace::Elsewhere), ("channel-dev", -4, KeyPlace::Pending)]);
        let expected = "\
ROLE         VERSION  EXPIRES (UTC)        DAYS LEFT  KEY
root               3  2026-12-01 00:00:00        300  elsewhere
channel-dev        3  2026-12-01 00:00:00    expired  unfinished
";
        assert_eq!(table(&given).render(None), expected);
    }
}
