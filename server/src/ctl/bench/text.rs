//! The forecast as people read it.

use std::fmt::Write;
use std::time::Duration;

use super::super::show;
use super::super::table::{Column, Table, plain, wrap};
use super::uses::Change;
use super::{Described, Forecast};

/// Characters in a line of running text.
const LINE: usize = 110;

/// Heights of a profile's bars.
const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// The text, for a terminal so wide.
pub fn of(forecast: &Forecast, width: Option<usize>) -> String {
    let mut out = String::new();
    // Writing to a String does not fail.
    let _ = write(&mut out, forecast, width);
    out
}

fn write(out: &mut String, forecast: &Forecast, width: Option<usize>) -> std::fmt::Result {
    for (name, image) in [("OLD", &forecast.old), ("NEW", &forecast.new)] {
        writeln!(out, "{name}  {}", described(image))?;
    }
    forecast.notes.iter().try_for_each(|note| writeln!(out, "note: {}", plain(note)))?;
    writeln!(out, "\nWhat an update costs a node, by each way:\n")?;
    out.push_str(&ways(forecast).render(width));
    let blocks = &forecast.blocks;
    writeln!(
        out,
        "\nWire is what the engine made, and 3 % and 4 KiB for the transport (estimated); transfer is the wire at {} Mbit/s\n\
         (estimated). Seconds are this machine's, with no disk in them; the server's are spent once for all nodes, those of a\n\
         thorough or smallest pack on one core and in the background.\n\n\
         Of NEW's {} blocks {} stay where they are, {} are copied from elsewhere in OLD, {} are zeros and\n{} travel.",
        forecast.rate_mbit, blocks.all, blocks.in_place, blocks.moved, blocks.zero, blocks.sent
    )?;
    if blocks.derived > 0 {
        writeln!(
            out,
            "\n{} blocks of hash trees (dm-verity) do not travel: the node makes them from the others.",
            blocks.derived
        )?;
    }
    if forecast.uses.is_empty() {
        return writeln!(out, "\nNothing of NEW has to travel to a node that has OLD.");
    }
    profile(out, forecast)?;
    writeln!(out, "\nWhat the known base's bytes are for:\n")?;
    out.push_str(&uses(forecast).render(width));
    if forecast.files.is_empty() {
        writeln!(out, "\nThe dearest regions of 1 MiB:\n")?;
        out.push_str(&regions(forecast).render(width));
    } else {
        writeln!(out, "\nThe dearest files:\n")?;
        out.push_str(&files(forecast).render(width));
    }
    causes(out, forecast, width.unwrap_or(LINE).min(LINE))
}

fn described(image: &Described) -> String {
    let kind = image.file_system.unwrap_or("of an unknown kind");
    let id: String = image.image.to_string().chars().take(16).collect();
    format!("{}: {kind}, {}, {id}...", plain(&image.path.display().to_string()), show::bytes(image.size))
}

fn ways(forecast: &Forecast) -> Table {
    let columns = [
        ("WAY", Column::Left),
        ("WIRE", Column::Right),
        ("OF NEW", Column::Right),
        ("SERVER, ONCE", Column::Right),
        ("NODE", Column::Right),
        ("TRANSFER", Column::Right),
        ("WHEN", Column::Soft),
    ];
    let mut table = Table::new(columns);
    let seconds = |time: f64| show::span(Duration::from_secs_f64(time.clamp(0.0, 1e9)));
    for way in &forecast.ways {
        table.row([
            way.name.to_owned(),
            show::bytes(way.wire_estimated),
            format!("{:.2} %", 100.0 * way.share),
            way.server_once.map(seconds).unwrap_or_default(),
            way.node.map(seconds).unwrap_or_default(),
            seconds(way.transfer_estimated),
            way.when.to_owned(),
        ]);
    }
    table
}

/// Where in the image the bytes go, as bars.
fn profile(out: &mut String, forecast: &Forecast) -> std::fmt::Result {
    let most = forecast.profile.iter().copied().max().unwrap_or(0).max(1);
    let bar = |bytes: &u64| {
        let height = (bytes * 8).div_ceil(most) as usize;
        BARS.get(height).copied().unwrap_or(' ')
    };
    let bars: String = forecast.profile.iter().map(bar).collect();
    let part = forecast.new.size / forecast.profile.len().max(1) as u64;
    writeln!(
        out,
        "\nWhere in NEW they go (a sign for each {}, the highest is {}):\n",
        show::bytes(part),
        show::bytes(most)
    )?;
    writeln!(out, "  |{bars}|")
}

fn share(bytes: u64, forecast: &Forecast) -> String {
    let all: u64 = forecast.uses.iter().map(|one| one.bytes).sum();
    format!("{:.1} %", 100.0 * bytes as f64 / all.max(1) as f64)
}

fn uses(forecast: &Forecast) -> Table {
    let columns =
        [("USE", Column::Left), ("BYTES", Column::Right), ("SHARE", Column::Right), ("BLOCKS SENT", Column::Right)];
    let mut table = Table::new(columns);
    for one in &forecast.uses {
        table.row([one.what.to_owned(), show::bytes(one.bytes), share(one.bytes, forecast), one.blocks.to_string()]);
    }
    table
}

fn files(forecast: &Forecast) -> Table {
    let columns = [
        ("BYTES", Column::Right),
        ("SHARE", Column::Right),
        ("BLOCKS SENT", Column::Right),
        ("OF", Column::Right),
        ("WHAT", Column::Left),
        ("FILE", Column::Soft),
    ];
    let mut table = Table::new(columns);
    for file in &forecast.files {
        let change = match file.change {
            Change::New => "new",
            Change::Changed => "changed",
        };
        let compressed = file.compressed.map(|how| format!(", {how}")).unwrap_or_default();
        table.row([
            show::bytes(file.bytes),
            share(file.bytes, forecast),
            file.sent.to_string(),
            file.blocks.to_string(),
            format!("{change}{compressed}"),
            file.path.clone(),
        ]);
    }
    table
}

fn regions(forecast: &Forecast) -> Table {
    let mut table = Table::new([("AT", Column::Right), ("BYTES", Column::Right), ("SHARE", Column::Right)]);
    for region in &forecast.regions {
        let at = format!("{} MiB", region.offset >> 20);
        table.row([at, show::bytes(region.bytes), share(region.bytes, forecast)]);
    }
    table
}

fn causes(out: &mut String, forecast: &Forecast, width: usize) -> std::fmt::Result {
    if forecast.causes.is_empty() {
        return writeln!(out, "\nNothing in the images' making spoils their delta: what travels is what changed.");
    }
    writeln!(out, "\nWhat in the images' making costs, the dearest first, and what helps:")?;
    for (number, cause) in (1..).zip(&forecast.causes) {
        writeln!(out)?;
        paragraph(out, &format!("{number}."), &cause.finding, width)?;
        paragraph(out, "->", cause.remedy, width)?;
    }
    Ok(())
}

fn paragraph(out: &mut String, mark: &str, text: &str, width: usize) -> std::fmt::Result {
    for (index, line) in wrap(&plain(text), width.saturating_sub(4).max(40)).iter().enumerate() {
        writeln!(out, "{:<4}{line}", if index == 0 { mark } else { "" })?;
    }
    Ok(())
}
