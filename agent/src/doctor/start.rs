//! What starts, and what starts next.

use super::Finding;
use crate::boot::{self, ActivationError, Effect, Look};
use crate::config::Config;

/// Whether the back-end can tell.
pub(super) fn look(look: &Result<Look, ActivationError>) -> Finding {
    match look {
        Ok(Look { active: Some(active), .. }) => Finding::fine("activation", format!("slot {active} is active")),
        Ok(Look { active: None, .. }) => Finding::warning(
            "activation",
            "no slot is active yet",
            "`goldsync-agent sync` installs the channel's release; on a machine that runs from a slot already, this must not be so: \
             put goldsync.slot=a (or b) on the kernel's command line",
        ),
        Err(error) => Finding::error("activation", error, "mend what it names, or choose another back-end"),
    }
}

/// A restart that an activated slot waits for.
pub(super) fn pending(config: &Config, look: &Look) -> Option<Finding> {
    let restarts = boot::open(config).takes_effect() == Effect::AtRestart;
    let next = look.next.filter(|next| restarts && Some(*next) != look.active)?;
    let tries = look.tries.map(|tries| format!(", {tries} tries left")).unwrap_or_default();
    let says = format!("slot {next} is next{tries}, and not in use before the machine starts again");
    Some(Finding::warning(
        "restart",
        says,
        "restart the machine, or go back by `goldsync-agent rollback`; `goldsync-agent explain` says what it waits for",
    ))
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;
    use crate::node::testing::node;
    use crate::slot::SlotName;

    #[test]
    fn a_back_end_that_cannot_tell_stops() {
        assert_eq!(look(&Ok(Look { active: Some(SlotName::A), ..Look::default() })).verdict, Verdict::Fine);
        assert_eq!(look(&Ok(Look::default())).verdict, Verdict::Warning);
        let found = look(&Err(ActivationError::NotALink { path: "/x".into() }));
        assert_eq!(found.verdict, Verdict::Stops);
        assert!(found.says.contains("/x is not a symbolic link") && found.cure.unwrap().contains("move it away"));
    }

    #[test]
    fn a_restart_is_waited_for_only_where_one_is_needed() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = (*node(folder.path()).config).clone();
        let waiting = Look { active: Some(SlotName::A), next: Some(SlotName::B), tries: Some(3) };
        assert_eq!(pending(&config, &waiting), None);
        let program = crate::program::Program { command: vec!["/x".into()], limit: std::time::Duration::from_secs(1) };
        config.activation.backend = crate::config::Backend::Command { program, effect: Effect::AtRestart };
        let found = pending(&config, &waiting).unwrap();
        assert!(found.says.contains("slot b is next, 3 tries left"), "{found:?}");
        assert_eq!(pending(&config, &Look { next: Some(SlotName::A), ..waiting }), None);
    }
}
