//! An error as the shell sees it: a text and an exit code.

use crate::boot::ActivationError;
use crate::config::ConfigError;
use crate::enrol::EnrolError;
use crate::identity::IdentityError;
use crate::journal::JournalError;
use crate::link::LinkError;
use crate::node::NodeError;
use crate::status::ReportError;
use crate::trust::TrustError;
use crate::update::UpdateError;

/// Interrupted.
pub const INTERRUPTED: u8 = 130;
/// Drift was found.
pub const DRIFT: u8 = 6;

/// Why a verb failed.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    /// As documented in `--help`.
    pub code: u8,
    /// For people.
    pub message: String,
}

impl Failure {
    /// A failure with its code.
    pub fn new(code: u8, error: impl ToString) -> Self {
        Self { code, message: error.to_string() }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(2, error)
    }
}

impl From<JournalError> for Failure {
    fn from(error: JournalError) -> Self {
        Self::new(if matches!(error, JournalError::Busy { .. }) { 75 } else { 5 }, error)
    }
}

impl From<IdentityError> for Failure {
    fn from(error: IdentityError) -> Self {
        let code = match error {
            IdentityError::NotEnrolled { .. } | IdentityError::Damaged { .. } => 2,
            IdentityError::Disk(_) => 5,
            _ => 3,
        };
        Self::new(code, error)
    }
}

impl From<LinkError> for Failure {
    fn from(error: LinkError) -> Self {
        Self::new(error.exit_code(), error)
    }
}

impl From<TrustError> for Failure {
    fn from(error: TrustError) -> Self {
        Self::new(3, error)
    }
}

impl From<ActivationError> for Failure {
    fn from(error: ActivationError) -> Self {
        Self::new(error.exit_code(), error)
    }
}

impl From<NodeError> for Failure {
    fn from(error: NodeError) -> Self {
        match error {
            NodeError::Config(error) => error.into(),
            NodeError::Journal(error) => error.into(),
            NodeError::Identity(error) => error.into(),
            NodeError::Link(error) => error.into(),
            NodeError::NoServer => Self::new(2, error),
        }
    }
}

impl From<EnrolError> for Failure {
    fn from(error: EnrolError) -> Self {
        match error {
            EnrolError::Already { .. } | EnrolError::Token(_) => Self::new(2, error),
            EnrolError::Identity(error) => error.into(),
            EnrolError::Trust(error) => error.into(),
            EnrolError::Link(error) => error.into(),
            EnrolError::Journal(error) => error.into(),
            EnrolError::Node(error) => error.into(),
        }
    }
}

impl From<UpdateError> for Failure {
    fn from(error: UpdateError) -> Self {
        Self::new(error.exit_code(), error)
    }
}

impl From<ReportError> for Failure {
    fn from(error: ReportError) -> Self {
        match error {
            ReportError::Journal(error) => error.into(),
            ReportError::Activation(error) => error.into(),
        }
    }
}
