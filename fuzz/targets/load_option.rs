//! Any bytes are a UEFI load option or none, and its parts lie inside them.
#![no_main]

use libfuzzer_sys::fuzz_target;

/// The format as the agent has it; its package would bring a network stack along.
#[path = "../../agent/src/boot/formats/load_option.rs"]
#[allow(missing_docs, reason = "a target uses what it tests")]
mod load_option;

fuzz_target!(|input: &[u8]| {
    assert_eq!(load_option::numbers(input).len(), input.len() / 2);
    assert!(load_option::text(input).chars().count() <= input.len() / 2);
    let Ok(option) = load_option::LoadOption::read(input) else { return };
    assert!(input.ends_with(&[option.device_path.as_slice(), &option.data].concat()));
    assert!(option.device_path.len() + option.data.len() + 8 <= input.len());
    assert_eq!(option.active(), option.attributes & 1 == 1);
});
