//! `goldsync status`: is the server there, and how much does it hold?

use super::fail::Outcome;
use super::{Desk, screen, show};
use crate::api::types;
use crate::cli::Status;

/// `goldsync status`
pub async fn run(desk: &Desk, args: &Status) -> Outcome {
    let status = desk.client.status().await?;
    if args.json.json {
        return screen::print_json(&status);
    }
    screen::print(&text(desk.client.address(), &desk.operator.name, &status))
}

fn text(address: &str, name: &str, status: &types::Status) -> String {
    format!(
        "server     {address}, version {}\noperator   {name}\nreleases   {}\nstored     {}\nnodes      {}, {} connected",
        status.version,
        status.releases,
        show::bytes(status.stored),
        status.nodes,
        status.connected
    )
}
