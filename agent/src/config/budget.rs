//! The section `[budget]`: how many bytes an update may take, by the link it comes over.

use super::{ConfigError, raw, value};

/// How many bytes an update may take; see `budget`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// Over any link. `None`: as many as it takes.
    pub update: Option<u64>,
    /// Over links of a class; the first that fits counts.
    pub links: Vec<LinkBudget>,
}

/// A class of links, and what an update over one may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkBudget {
    /// The class's name, for people.
    pub class: String,
    /// Names of interfaces; `*` at the end stands for anything.
    pub interfaces: Vec<String>,
    /// Bytes. `None`: as many as it takes.
    pub update: Option<u64>,
}

pub(super) fn budget(raw: raw::Budget) -> Result<Budget, ConfigError> {
    let size = |key, size: Option<raw::Size>| size.map(|size| size.bytes(key)).transpose();
    let link = |link: raw::LinkBudget| {
        let interfaces = link.interfaces.unwrap_or_default();
        if interfaces.is_empty() || interfaces.iter().any(String::is_empty) {
            return Err(value("budget.link.interfaces", "is missing; for example interfaces = [\"wwan*\", \"ppp*\"]"));
        }
        let class = link.class.unwrap_or_else(|| interfaces.join(", "));
        Ok(LinkBudget { class, interfaces, update: size("budget.link.update", link.update)? })
    };
    let links = raw.link.unwrap_or_default().into_iter().map(link).collect::<Result<_, _>>()?;
    Ok(Budget { update: size("budget.update", raw.update)?, links })
}
