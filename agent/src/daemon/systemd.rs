//! What the service manager is told: ready, status, alive. Without one, nothing happens.

use std::time::Duration;

use sd_notify::NotifyState;

/// Sends it; a service manager that cannot be reached is no reason to stop working.
fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::debug!(%error, "the service manager could not be told");
    }
}

/// The daemon is up: configuration and state are good. Not: the server is reachable, which may take days.
pub(super) fn ready() {
    notify(NotifyState::Ready);
}

/// One line for `systemctl status`.
pub(super) fn status(text: &str) {
    tracing::debug!(status = text);
    notify(NotifyState::Status(text));
}

/// The daemon is on its way out.
pub(super) fn stopping() {
    notify(NotifyState::Stopping);
}

/// Says "alive" twice in each watchdog period, as long as the runtime runs its tasks. Ends never.
pub(super) async fn watchdog() {
    let Some(period) = sd_notify::watchdog_enabled().filter(|period| !period.is_zero()) else {
        return std::future::pending().await;
    };
    let mut ticks = tokio::time::interval((period / 2).max(Duration::from_millis(10)));
    loop {
        ticks.tick().await;
        notify(NotifyState::Watchdog);
    }
}
