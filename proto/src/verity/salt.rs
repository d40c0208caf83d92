//! A salt in JSON: hexadecimal, as `veritysetup` prints it.

use serde::{Deserialize, Deserializer, Serializer, de};

pub fn serialize<S: Serializer>(salt: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&salt.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let bytes = text.as_bytes();
    // Digits only: a number's own reader would take a sign.
    if !bytes.len().is_multiple_of(2) || !bytes.iter().all(u8::is_ascii_hexdigit) {
        return Err(de::Error::custom("a salt is not hexadecimal"));
    }
    let pairs = bytes.chunks_exact(2).map(|pair| std::str::from_utf8(pair).unwrap_or_default());
    pairs.map(|pair| u8::from_str_radix(pair, 16).map_err(de::Error::custom)).collect()
}
