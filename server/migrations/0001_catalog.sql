-- The catalog. Portable between SQLite and PostgreSQL: only text and bigint, times as RFC 3339 text in UTC with
-- milliseconds (of equal length, so that they sort as text), hashes as hexadecimal text, lists of labels as JSON text.

create table operators (
    name       text not null primary key,
    token_hash text not null unique,     -- BLAKE3 of the bearer token
    created_at text not null
);

create table releases (
    name         text not null,
    version      text not null,
    image        text not null,
    manifest     text not null,          -- exactly as signed
    published_by text not null,
    published_at text not null,
    added        bigint not null,        -- bytes that it added to the store
    primary key (name, version)
);
create index releases_by_image on releases (image);

create table channels (
    channel text not null primary key,
    release text not null,
    image   text not null,
    pointer text not null                -- exactly as signed
);

create table promotions (
    id      bigint not null primary key, -- ascending
    channel text not null,
    release text not null,
    image   text not null,
    by_whom text not null,
    at      text not null
);
create index promotions_by_channel on promotions (channel, id);

create table tokens (
    id          text not null primary key,
    secret_hash text not null unique,    -- BLAKE3 of the secret
    labels      text not null,
    uses_left   bigint not null,
    created_by  text not null,
    created_at  text not null,
    expires_at  text not null
);

create table nodes (
    node         text not null primary key,
    token        text not null,          -- the id of the token that it came with
    fixed_labels text not null,          -- the token's; they stand over the node's own
    labels       text not null,          -- both, as last said
    enrolled_at  text not null,
    revoked_at   text,
    channel      text,
    version      text,
    report       text,
    last_seen    text
);
create index nodes_by_channel on nodes (channel);

create table certificates (
    fingerprint text not null primary key, -- BLAKE3 of the certificate's DER
    node        text not null references nodes (node),
    issued_at   text not null
);
create index certificates_by_node on certificates (node);

create table orders (
    id       bigint not null primary key,  -- ascending, never reused
    channel  text not null,
    selector text not null,
    by_whom  text not null,
    at       text not null
);

create table audit (
    id     bigint not null primary key,    -- ascending
    at     text not null,
    who    text not null,
    what   text not null,
    detail text not null,
    peer   text not null
);
