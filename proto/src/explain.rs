//! Why a node has not updated: the decision, walked step by step, as both sides tell it.
//!
//! A walk ends at the first step that stops it or makes it wait: that is the answer. A node knows most of it (`goldsync-agent
//! explain`); its server knows the rest, and what the node last said (`goldsync fleet explain`).

use std::fmt;

use serde::Serialize;

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Nothing is in the way here.
    Passes,
    /// It goes on by itself when something has come.
    Waits,
    /// Somebody has to do something.
    Stops,
    /// There is nothing to update.
    Done,
}

/// One step of the decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// What was asked, in a word: `revoked`, `window`, `disk`.
    pub subject: &'static str,
    /// What it came to.
    pub state: State,
    /// The value, and if it does not pass, the cure.
    pub says: String,
}

/// The decision, as far as it went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Walk {
    /// In the order in which they are decided.
    pub steps: Vec<Step>,
}

impl Walk {
    /// Takes a step, unless the walk is over.
    pub fn step(&mut self, subject: &'static str, state: State, says: impl Into<String>) {
        if !self.over() {
            self.steps.push(Step { subject, state, says: says.into() });
        }
    }

    /// Whether the answer is known.
    pub fn over(&self) -> bool {
        self.steps.last().is_some_and(|step| step.state != State::Passes)
    }

    /// The step that is the answer.
    pub fn answer(&self) -> Option<&Step> {
        self.steps.last().filter(|_| self.over())
    }
}

impl fmt::Display for Walk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wide = self.steps.iter().map(|step| step.subject.len()).max().unwrap_or(0);
        for step in &self.steps {
            let mark = match step.state {
                State::Passes | State::Done => "ok   ",
                State::Waits => "waits",
                State::Stops => "STOPS",
            };
            writeln!(f, "{mark}  {:<wide$}  {}", step.subject, step.says)?;
        }
        match self.answer() {
            Some(Step { state: State::Done, .. }) => write!(f, "nothing to update"),
            Some(Step { state: State::Waits, subject, .. }) => write!(f, "it waits: {subject}"),
            Some(Step { subject, .. }) => write!(f, "it does not update because of: {subject}"),
            None => write!(f, "nothing is in the way: it updates when it next looks"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_ends_at_its_answer() {
        let mut walk = Walk::default();
        walk.step("server", State::Passes, "reachable");
        assert!(walk.to_string().ends_with("updates when it next looks"));
        walk.step("window", State::Waits, "closed until 02:00");
        walk.step("disk", State::Stops, "never asked");
        assert_eq!(walk.steps.len(), 2);
        assert_eq!(walk.answer().map(|step| step.subject), Some("window"));
        assert_eq!(walk.to_string(), "ok     server  reachable\nwaits  window  closed until 02:00\nit waits: window");
    }
}
