-- What is about to be done to the signed metadata, which is in files: written before, taken out with the line in the audit log.
-- What a death leaves here is looked up at the next start: whether it was done, the metadata says.

create table intents (
    id    bigint not null primary key, -- ascending
    who   text not null,
    what  text not null,
    peer  text not null,
    roles text not null                -- JSON: role to the BLAKE3 of its new text
);
