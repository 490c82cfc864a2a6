-- Two releases side by side: the oldest one, by the revision it was written for, whose processes may work on this
-- schema. A migration that takes something away raises it (see "Upgrading" in docs/operator.md).
create table schema_support (oldest text not null);
create unique index schema_support_is_one_row on schema_support ((true));
insert into schema_support values ('0013');

-- Since when workers have met a job that only a newer release understands.
alter table jobs add column not_understood_since timestamptz;

-- The trace that the submission was part of, as W3C's traceparent: the work on the job joins it.
alter table jobs add column traceparent text;
