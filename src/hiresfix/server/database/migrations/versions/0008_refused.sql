-- An attempt made a picture that failed its own check: the next one computes in full precision, and is the last.
alter table jobs add column refused boolean not null default false;
