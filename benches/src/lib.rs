//! goldsync
