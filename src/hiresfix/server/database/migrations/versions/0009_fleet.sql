-- A worker process that is up. Unlogged: each row is written anew every few seconds, so that losing all of them in a
-- crash, or on the way to a standby, costs one beat; and a fleet's beats are no load on the write-ahead log.
create unlogged table workers (
    id              uuid primary key,
    name            text not null,               -- as in jobs.worker
    host            text not null,
    device          text not null,               -- cuda:0, mps, cpu
    memory_bytes    bigint not null,             -- of the device; the host's where the device is the CPU
    most_megapixels float8 not null,             -- of a result that it can hold
    tags            text[] not null,             -- what it has and jobs may need
    version         text not null,
    draining        boolean not null,
    started_at      timestamptz not null,
    seen_at         timestamptz not null,
    alive_until     timestamptz not null         -- not indexed: a beat then changes no index
) with (fillfactor = 50);
