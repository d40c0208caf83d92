//! Signing keys: Ed25519, one PEM file (PKCS#8, mode 0600) a role.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use aws_lc_rs::signature::Ed25519KeyPair;
use goldsync_proto::release::{RELEASES_ROLE, Word, channel_role};
use goldsync_proto::trust::{ROOT, SNAPSHOT, TARGETS, TIMESTAMP};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use tough::schema::decoded::{Decoded, Hex};
use tough::schema::{RoleType, Root, Signature};
use tough::sign::Sign;

use super::TrustError;
use crate::disk;

/// One signing key.
pub struct Key {
    pair: Ed25519KeyPair,
    id: Decoded<Hex>,
    pem: String,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.id())
    }
}

impl Key {
    /// A new key.
    pub fn create() -> Result<Self, TrustError> {
        let made = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519);
        let pem = made.map_err(|error| bad(Path::new("new key"), error))?.serialize_pem();
        Self::from_pem(Path::new("new key"), pem)
    }

    fn load(path: &Path) -> Result<Self, TrustError> {
        let pem = String::from_utf8(disk::read(path)?).map_err(|error| bad(path, error))?;
        Self::from_pem(path, pem)
    }

    fn load_if_there(path: &Path) -> Result<Option<Self>, TrustError> {
        if path.exists() { Self::load(path).map(Some) } else { Ok(None) }
    }

    fn from_pem(path: &Path, pem: String) -> Result<Self, TrustError> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).map_err(|error| bad(path, error))?;
        let pair = Ed25519KeyPair::from_pkcs8(der.secret_pkcs8_der()).map_err(|error| bad(path, error))?;
        let id = pair.tuf_key().key_id().map_err(|error| bad(path, error))?;
        Ok(Self { pair, id, pem })
    }

    /// The public half, as metadata names it.
    pub fn public(&self) -> tough::schema::key::Key {
        self.pair.tuf_key()
    }

    /// The public half's id, 64 hexadecimal digits.
    pub fn id(&self) -> String {
        self.id.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    pub(super) fn key_id(&self) -> &Decoded<Hex> {
        &self.id
    }

    pub(super) fn sign(&self, message: &[u8]) -> Signature {
        Signature { keyid: self.id.clone(), sig: self.pair.sign(message).as_ref().to_vec().into() }
    }
}

fn bad(path: &Path, reason: impl ToString) -> TrustError {
    TrustError::BadKey { path: path.to_owned(), reason: reason.to_string() }
}

fn file_of(role: &str) -> String {
    format!("{role}.pem")
}

fn successor_of(role: &str) -> String {
    format!("{role}.next")
}

/// The file that keeps a role's last key after [`Keys::install`].
pub(crate) fn old_file_of(role: &str) -> String {
    format!("{role}.old.pem")
}

/// Whether a role's key file could be taken for another role's successor or last key.
pub(crate) fn is_reserved(role: &str) -> bool {
    role.ends_with(".next") || role.ends_with(".old")
}

/// Puts a successor into the place of the role's key, which is kept as `ROLE.old.pem` until the next time. A crash
/// leaves the successor's file, or nothing to do.
fn succeed(dir: &Path, role: &str, old: Option<&Key>, new: &Key) -> Result<(), TrustError> {
    if let Some(old) = old {
        disk::write(dir, &old_file_of(role), old.pem.as_bytes(), disk::SECRET)?;
    }
    disk::write(dir, &file_of(role), new.pem.as_bytes(), disk::SECRET)?;
    Ok(disk::remove(&dir.join(file_of(&successor_of(role))))?)
}

fn store(dir: &Path, role: &str, key: &Key) -> Result<(), TrustError> {
    disk::make_dir(dir)?;
    let name = file_of(role);
    if dir.join(&name).exists() {
        return Err(TrustError::Exists { path: dir.join(name) });
    }
    Ok(disk::write(dir, &name, key.pem.as_bytes(), disk::SECRET)?)
}

/// An operator's keys: those of the roles that this operator may sign.
#[derive(Debug)]
pub struct Keys {
    dir: PathBuf,
    keys: BTreeMap<String, Key>,
}

impl Keys {
    /// Makes a key for every offline role: `root`, `targets`, `releases`, and one for each channel.
    pub fn create(dir: &Path, channels: &[Word]) -> Result<Self, TrustError> {
        let fixed = [ROOT, TARGETS, RELEASES_ROLE].map(str::to_owned);
        let roles: Vec<String> = fixed.into_iter().chain(channels.iter().map(channel_role)).collect();
        if let Some(path) = roles.iter().map(|role| dir.join(file_of(role))).find(|path| path.exists()) {
            return Err(TrustError::Exists { path });
        }
        let mut keys = BTreeMap::new();
        for role in roles {
            let key = Key::create()?;
            store(dir, &role, &key)?;
            keys.insert(role, key);
        }
        Ok(Self { dir: dir.to_owned(), keys })
    }

    /// Loads the keys that are in `dir`, however few.
    pub fn load(dir: &Path) -> Result<Self, TrustError> {
        let mut keys = BTreeMap::new();
        for name in disk::names(dir)? {
            if let Some(role) = name.strip_suffix(".pem") {
                keys.insert(role.to_owned(), Key::load(&dir.join(&name))?);
            }
        }
        Ok(Self { dir: dir.to_owned(), keys })
    }

    /// The key that shall follow a role's present one, or be its first: made and stored at once, so that it cannot
    /// be lost between its naming by the metadata and [`Keys::install`]. Asked again, the same key.
    pub fn successor(&mut self, role: &str) -> Result<&Key, TrustError> {
        let name = successor_of(role);
        if self.pending(role).is_none() {
            // A crash at the end of an installation leaves the installed key's other name.
            if self.keys.remove(&name).is_some() {
                disk::remove(&self.dir.join(file_of(&name)))?;
            }
            let key = Key::create()?;
            store(&self.dir, &name, &key)?;
            self.keys.insert(name.clone(), key);
        }
        self.get(&name)
    }

    /// The successor that was made and not installed yet.
    pub fn pending(&self, role: &str) -> Option<&Key> {
        let next = self.keys.get(&successor_of(role))?;
        let installed = self.keys.get(role).is_some_and(|key| key.id == next.id);
        (!installed).then_some(next)
    }

    /// Makes the successor the role's key. The old one is kept as `ROLE.old.pem`, until the next change.
    pub fn install(&mut self, role: &str) -> Result<(), TrustError> {
        let name = successor_of(role);
        let new = self.get(&name)?;
        succeed(&self.dir, role, self.keys.get(role), new)?;
        if let Some(new) = self.keys.remove(&name) {
            self.keys.insert(role.to_owned(), new);
        }
        Ok(())
    }

    /// The folder that the keys are in.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The roles that can be signed with these keys.
    pub fn roles(&self) -> impl Iterator<Item = &str> {
        self.keys.keys().map(String::as_str).filter(|role| !is_reserved(role))
    }

    /// The key of a role.
    pub fn get(&self, role: &str) -> Result<&Key, TrustError> {
        let missing = || TrustError::NoKey { role: role.to_owned(), path: self.dir.join(file_of(role)) };
        self.keys.get(role).ok_or_else(missing)
    }
}

/// The server's two keys. They are on the machine that is exposed, and can delay an update, nothing more.
#[derive(Debug)]
pub struct Online {
    /// Signs the list of the newest versions.
    pub snapshot: Key,
    /// Signs that the list is fresh.
    pub timestamp: Key,
}

/// The public halves of [`Online`], as the root names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnlinePublic {
    /// Of `snapshot`.
    pub snapshot: tough::schema::key::Key,
    /// Of `timestamp`.
    pub timestamp: tough::schema::key::Key,
}

impl Online {
    /// Makes both keys in the server's trust folder `dir`.
    pub fn create(dir: &Path) -> Result<Self, TrustError> {
        let dir = dir.join("keys");
        let online = Self { snapshot: Key::create()?, timestamp: Key::create()? };
        store(&dir, SNAPSHOT, &online.snapshot)?;
        store(&dir, TIMESTAMP, &online.timestamp)?;
        Ok(online)
    }

    /// Loads both keys from the server's trust folder `dir`.
    pub fn load(dir: &Path) -> Result<Self, TrustError> {
        let path = |role| dir.join("keys").join(file_of(role));
        Ok(Self { snapshot: Key::load(&path(SNAPSHOT))?, timestamp: Key::load(&path(TIMESTAMP))? })
    }

    /// The two keys that shall follow: made and stored at once. Asked again, the same keys.
    pub fn successors(dir: &Path) -> Result<Self, TrustError> {
        let dir = dir.join("keys");
        let make = |role| {
            let name = successor_of(role);
            let (held, path) = (Key::load(&dir.join(file_of(role)))?, dir.join(file_of(&name)));
            match Key::load_if_there(&path)? {
                Some(key) if key.id != held.id => return Ok(key),
                Some(_) => disk::remove(&path)?,
                None => {}
            }
            let key = Key::create()?;
            store(&dir, &name, &key)?;
            Ok::<_, TrustError>(key)
        };
        Ok(Self { snapshot: make(SNAPSHOT)?, timestamp: make(TIMESTAMP)? })
    }

    /// The keys that a root names: those in use, or their successors.
    pub(super) fn named_by(dir: &Path, root: &Root) -> Result<Self, TrustError> {
        let find = |role: &'static str, kind| {
            let path = |name: &str| dir.join("keys").join(file_of(name));
            for name in [role.to_owned(), successor_of(role)] {
                if let Some(key) = Key::load_if_there(&path(&name))?.filter(|key| names(root, kind, key)) {
                    return Ok(key);
                }
            }
            Err(TrustError::OnlineKey { role, path: path(role) })
        };
        Ok(Self { snapshot: find(SNAPSHOT, RoleType::Snapshot)?, timestamp: find(TIMESTAMP, RoleType::Timestamp)? })
    }

    /// Puts successors that the root names into their places. A crash between the root and this is made good by
    /// the next call.
    pub(super) fn settle(dir: &Path, root: &Root) -> Result<(), TrustError> {
        let dir = dir.join("keys");
        for (role, kind) in [(SNAPSHOT, RoleType::Snapshot), (TIMESTAMP, RoleType::Timestamp)] {
            let next = dir.join(file_of(&successor_of(role)));
            let Some(new) = Key::load_if_there(&next)?.filter(|key| names(root, kind, key)) else { continue };
            let held = Key::load_if_there(&dir.join(file_of(role)))?;
            match held {
                Some(held) if names(root, kind, &held) => disk::remove(&next)?,
                held => succeed(&dir, role, held.as_ref(), &new)?,
            }
        }
        Ok(())
    }

    /// The public halves.
    pub fn public(&self) -> OnlinePublic {
        OnlinePublic { snapshot: self.snapshot.public(), timestamp: self.timestamp.public() }
    }
}

fn names(root: &Root, kind: RoleType, key: &Key) -> bool {
    root.roles.get(&kind).is_some_and(|named| named.keyids.contains(key.key_id()))
}
