//! The data budget: how many bytes an update may take over this link. Over it, the node refuses before the first byte of a pack,
//! and says so, instead of silently fetching everything.
//!
//! ```text
//! config: [budget] update, [[budget.link]] ──▶ the interface that the connection leaves by ──▶ ceiling
//! plan known ─▶ what it takes at most ─▶ more than the ceiling? refuse
//! fetching   ─▶ what has arrived      ─▶ more than the ceiling? stop (repairs may add to what was foreseen)
//! ```
//! What it takes to find out (signed metadata, the plan, the signature's sections) counts, and is small. An interface that cannot be
//! told gets the strictest of all ceilings: who pays by the byte wants to be asked first.

use std::net::IpAddr;

use goldsync_proto::units::Size;

use crate::config::{Budget, LinkBudget};

/// The most bytes that an update may take, and by what rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ceiling {
    /// Bytes.
    pub bytes: u64,
    /// For people: of which links.
    pub of: String,
}

/// More than the budget.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the update takes {}{needed} bytes, and the budget for {of} is {}; raise it in the configuration ([budget]), use another link, or allow this one update: `goldsync-agent sync --any-size`",
    if *at_most { "up to " } else { "" }, Size(*ceiling)
)]
pub struct OverBudget {
    /// Bytes.
    pub needed: u64,
    /// Whether that is only a bound: what is here already is found out on the way.
    pub at_most: bool,
    /// The limit.
    pub ceiling: u64,
    /// Of which links.
    pub of: String,
}

impl Ceiling {
    /// The ceiling for a connection that leaves by `interface`, if there is one.
    pub fn of(budget: &Budget, interface: Option<&str>) -> Option<Self> {
        let general = budget.update.map(|bytes| Self { bytes, of: "an update (budget.update)".into() });
        let class = |link: &LinkBudget| {
            link.update.map(|bytes| Self { bytes, of: format!("links of the class \"{}\" (budget.link)", link.class) })
        };
        match interface {
            Some(interface) => match budget.links.iter().find(|link| fits(link, interface)) {
                Some(link) => class(link),
                None => general,
            },
            None => budget.links.iter().filter_map(class).chain(general).min_by_key(|ceiling| ceiling.bytes),
        }
    }

    /// Whether so many bytes are allowed.
    pub fn allow(&self, needed: u64, at_most: bool) -> Result<(), OverBudget> {
        if needed <= self.bytes {
            return Ok(());
        }
        Err(OverBudget { needed, at_most, ceiling: self.bytes, of: self.of.clone() })
    }
}

fn fits(link: &LinkBudget, interface: &str) -> bool {
    link.interfaces.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(prefix) => interface.starts_with(prefix),
        None => interface == pattern,
    })
}

/// The name of the interface that has this address now.
pub fn interface(address: IpAddr) -> Option<String> {
    let address = address.to_canonical();
    let all =
        if_addrs::get_if_addrs().inspect_err(|error| tracing::warn!(%error, "interfaces cannot be listed")).ok()?;
    all.into_iter().find(|interface| interface.ip().to_canonical() == address).map(|interface| interface.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(update: Option<u64>, links: &[(&str, &[&str], Option<u64>)]) -> Budget {
        let link = |(class, interfaces, update): &(&str, &[&str], Option<u64>)| LinkBudget {
            class: (*class).into(),
            interfaces: interfaces.iter().map(ToString::to_string).collect(),
            update: *update,
        };
        Budget { update, links: links.iter().map(link).collect() }
    }

    fn bytes(budget: &Budget, interface: Option<&str>) -> Option<u64> {
        Ceiling::of(budget, interface).map(|ceiling| ceiling.bytes)
    }

    #[test]
    fn the_first_class_that_fits_counts() {
        let links: &[(&str, &[&str], Option<u64>)] =
            &[("mobile", &["wwan*", "ppp0"], Some(20)), ("home", &["eth0"], None), ("rest", &["*"], Some(50))];
        let all = budget(Some(100), links);
        for (interface, expected) in
            [("wwan0", Some(20)), ("wwan", Some(20)), ("ppp0", Some(20)), ("ppp1", Some(50)), ("eth0", None)]
        {
            assert_eq!(bytes(&all, Some(interface)), expected, "{interface}");
        }
        assert_eq!(bytes(&all, None), Some(20), "the strictest, if it cannot be told");
        assert_eq!(bytes(&budget(Some(100), &links[..1]), Some("eth0")), Some(100));
        assert_eq!(bytes(&budget(None, &[]), None), None);
    }

    #[test]
    fn what_is_over_the_budget_says_by_how_much_and_what_to_do() {
        let ceiling = Ceiling::of(&budget(Some(1 << 20), &[]), Some("eth0")).unwrap();
        assert_eq!(ceiling.allow(1 << 20, false), Ok(()));
        let error = ceiling.allow((1 << 20) + 1, true).unwrap_err().to_string();
        for expected in ["up to 1048577 bytes", "1 MiB", "budget.update", "--any-size"] {
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }

    #[test]
    fn an_address_of_this_machine_names_its_interface() {
        let name = interface(IpAddr::from([127, 0, 0, 1])).expect("a loopback interface");
        assert_eq!(interface("::ffff:127.0.0.1".parse().unwrap()), Some(name));
        assert_eq!(interface(IpAddr::from([192, 0, 2, 77])), None);
    }
}
