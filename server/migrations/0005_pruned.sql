-- Releases that were pruned: a name and version stand for the same bytes for ever, also when nobody keeps them any more.
create table pruned (
    name      text not null,
    version   text not null,
    image     text not null,
    pruned_by text not null,
    pruned_at text not null,
    primary key (name, version)
);
