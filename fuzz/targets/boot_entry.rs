//! Any text is a boot entry, a name, a version, a pattern, in bounded time; names are written as they are read; the loader's order is one.
#![no_main]

use libfuzzer_sys::fuzz_target;

/// The format as the agent has it; its package would bring a network stack along.
#[path = "../../agent/src/boot/formats/entry.rs"]
#[allow(missing_docs, dead_code, reason = "a target uses what it tests")]
mod entry;

use entry::{Name, Text, matches, order, versions};

fuzz_target!(|input: &[u8]| {
    let input = String::from_utf8_lossy(input);
    let lines: Vec<&str> = input.splitn(3, '\n').collect();
    let names: Vec<Name> = lines.iter().filter_map(|line| Name::read(line)).collect();
    for name in &names {
        assert_eq!(Name::read(&name.file()).as_ref(), Some(name));
    }
    let texts = [Text::read(&input), Text::read(lines.last().unwrap_or(&""))];
    if let [a, b, ..] = names.as_slice() {
        let (a, b) = ((a, &texts[0]), (b, &texts[1]));
        assert_eq!(order(a, b), order(b, a).reverse());
    }
    if let [a, b, ..] = lines.as_slice() {
        assert_eq!(versions(a, b), versions(b, a).reverse());
        assert!(versions(a, a).is_eq() && matches("*", a));
        let _ = matches(a, b);
    }
});
