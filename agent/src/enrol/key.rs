//! The key of an enrolment under way, kept so that a second try is the same machine.
//!
//! ```text
//! no key for this token ─▶ make one ─▶ STATE/enrol.key ─▶ ask ─▶ ... ─▶ identity.pem ─▶ remove it
//!                                          │ the answer was lost, or we died
//!                                          └─▶ asked again with the same key: the server knows us, the token is not burnt
//! ```
//! The file says which token it is for, by a hash: with another token a machine is another node, with a key of its own. A file
//! that cannot be read is replaced: what is lost is at most one use of a token.

use std::path::Path;

use goldsync_proto::digest::Digest;

use crate::disk::{self, DiskError};
use crate::identity::{IdentityError, NodeKey, Token};

const FILE: &str = "enrol.key";

/// The key for this token: the one of an earlier try, or a new one that is durable before it is returned.
pub(super) fn keep(state: &Path, token: &Token) -> Result<NodeKey, IdentityError> {
    let head = format!("for the token with the hash {}\n", Digest::of(token.to_string().as_bytes()));
    if let Some(key) = read(state, &head) {
        return Ok(key);
    }
    let key = NodeKey::create()?;
    disk::make_dir(state)?;
    disk::replace(state, FILE, [head, key.pem()].concat().as_bytes())?;
    Ok(key)
}

fn read(state: &Path, head: &str) -> Option<NodeKey> {
    let text = std::fs::read_to_string(state.join(FILE)).ok()?;
    NodeKey::from_pem(text.strip_prefix(head)?).ok()
}

/// Nothing is under way any more.
pub(super) fn forget(state: &Path) -> Result<(), DiskError> {
    let path = state.join(FILE);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(disk::failed("cannot remove", &path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn token(secret: &str) -> Token {
        Token { secret: secret.into(), authority: Digest::of(b"ca"), root: Digest::of(b"root") }
    }

    #[test]
    fn a_second_try_has_the_same_key_and_another_token_another() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let first = keep(&state, &token("one")).unwrap().pem();
        assert_eq!(keep(&state, &token("one")).unwrap().pem(), first);
        let file = state.join(FILE);
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!std::fs::read_to_string(&file).unwrap().contains("one."), "the secret is not repeated");
        let other = keep(&state, &token("two")).unwrap().pem();
        assert_ne!(other, first);
        for damaged in ["", "for the token", &other[..other.len() / 2]] {
            std::fs::write(&file, damaged).unwrap();
            let new = keep(&state, &token("two")).unwrap().pem();
            assert_ne!(new, other);
            assert_eq!(keep(&state, &token("two")).unwrap().pem(), new);
        }
        forget(&state).unwrap();
        forget(&state).unwrap();
        assert!(!file.exists());
    }
}
