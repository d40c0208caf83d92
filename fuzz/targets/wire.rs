//! Any bytes, taken for a frame, end in a message or an error; and a message that was read is written and read alike.
#![no_main]

use std::fmt::Debug;

use goldsync_proto::limits::MESSAGE_MAX;
use goldsync_proto::wire::{Answer, FRAME_HEAD, NodeSays, Request, ServerSays, frame, frame_len, unframe};
use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;

fuzz_target!(|input: &[u8]| {
    if let Some((head, _)) = input.split_first_chunk::<FRAME_HEAD>()
        && let Ok(length) = frame_len(*head)
    {
        assert!(length <= MESSAGE_MAX);
    }
    round::<Request>(input);
    round::<Answer>(input);
    round::<NodeSays>(input);
    round::<ServerSays>(input);
});

fn round<T: DeserializeOwned + Serialize + PartialEq + Debug>(json: &[u8]) {
    let Ok(message) = unframe::<T>(json) else { return };
    // A message may be longer written than read: `1e3` becomes `1000`. Beyond the limit it is refused, as it must be.
    let Ok(bytes) = frame(&message) else { return };
    let (head, json) = bytes.split_first_chunk::<FRAME_HEAD>().expect("a frame has a head");
    assert_eq!(frame_len(*head).expect("a length within the limit"), json.len());
    assert_eq!(unframe::<T>(json).expect("what was written can be read"), message);
}
