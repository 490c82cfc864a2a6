-- Where an attempt that lost its claim may have left a picture, or may leave one yet: upkeep deletes it later.
create table strays (
    key   text primary key,
    since timestamptz not null default now()
);
create index strays_since on strays (since);
