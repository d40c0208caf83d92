-- In which order a node's certificates were made: a clock may step back, and gives the same time twice.
alter table certificates add column seq bigint not null default 0;
