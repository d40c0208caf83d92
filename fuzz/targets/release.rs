//! Any text, taken for a word, a release, a hash, a file of signed metadata, a manifest or a pointer, ends in one or in an
//! error; and what is read prints as it was.
#![no_main]

use goldsync_proto::digest::Digest;
use goldsync_proto::release::{Manifest, Pointer, ReleaseRef, Word};
use goldsync_proto::trust::FileName;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(word) = text.parse::<Word>() {
        assert_eq!(word.as_str(), text);
        assert!(!text.contains(['_', ':', '/']) && !text.starts_with('.'), "{text:?} could leave its folder");
    }
    if let Ok(release) = text.parse::<ReleaseRef>() {
        assert_eq!(release.to_string(), text);
    }
    if let Ok(name) = text.parse::<FileName>() {
        assert_eq!(name.to_string(), text);
        assert!(!text.contains('/') && !text.starts_with('.'), "{text:?} could leave its folder");
    }
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text.to_ascii_lowercase());
    }
    if let Ok(manifest) = serde_json::from_str::<Manifest>(text)
        && let Ok(geometry) = manifest.check()
    {
        assert_eq!(manifest.sections.blocks.length, u64::from(geometry.blocks()) * 8);
    }
    if let Ok(pointer) = serde_json::from_str::<Pointer>(text) {
        let json = serde_json::to_string(&pointer).expect("a pointer can be written");
        assert_eq!(serde_json::from_str::<Pointer>(&json).expect("and read"), pointer);
    }
});
