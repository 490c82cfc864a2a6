-- The log: one row an attempt. Without `milliseconds` it is being made, or its worker died over it.
create table webhook_attempts (
    delivery_id  uuid not null references webhook_deliveries on delete cascade,
    number       integer not null check (number > 0),
    started_at   timestamptz not null default now(),
    milliseconds integer,
    status       integer,                        -- of the answer; null: none came
    error        text,
    answer       text,                           -- its first KiB
    primary key (delivery_id, number)
);

insert into webhook_attempts (delivery_id, number, started_at, milliseconds, status, error, answer)
select id, attempt, coalesce(finished_at, created_at), case when finished_at is not null then 0 end, last_status,
       last_error, last_answer
from webhook_deliveries where attempt > 0;

alter table webhook_deliveries
    drop column last_status,
    drop column last_error,
    drop column last_answer,
    add column team_id         uuid references teams,
    add column receiver        text,                            -- host and port of `url`: who is asked, and can be slow
    add column sending_until   timestamptz,                     -- an attempt is being made; its worker died if this passes
    add column waiting         boolean not null default false,  -- due, without a task, until its receiver has a slot
    add column attempts_before integer not null default 0;      -- those of earlier rounds, before a redelivery

update webhook_deliveries d
set team_id = j.team_id, receiver = coalesce(lower(substring(d.url from '^[A-Za-z]+://([^/?#]+)')), '')
from jobs j where j.id = d.job_id;

alter table webhook_deliveries
    alter column team_id set not null,
    alter column receiver set not null;

create index webhook_sending_by_receiver on webhook_deliveries (receiver) where sending_until is not null;
create index webhook_sending_by_team on webhook_deliveries (team_id) where sending_until is not null;
create index webhook_waiting_by_receiver on webhook_deliveries (receiver, next_attempt_at) where waiting;
create index webhook_waiting_by_team on webhook_deliveries (team_id, next_attempt_at) where waiting;
create index webhook_newest on webhook_deliveries (created_at desc);
create index webhook_finished on webhook_deliveries (finished_at) where finished_at is not null;

-- Whether `d` may be sent now: its receiver and its team have a slot, and a last word waits for the one before it.
create function webhook_has_turn(d webhook_deliveries, per_receiver integer, per_team integer) returns boolean
language sql stable as $$
    select (select count(*) from webhook_deliveries o
            where o.receiver = d.receiver and o.sending_until > now()) < per_receiver
       and (select count(*) from webhook_deliveries o
            where o.team_id = d.team_id and o.sending_until > now()) < per_team
       and (d.event = 'progress'
            or not exists (select from webhook_deliveries o
                           where o.job_id = d.job_id and o.event = 'progress' and o.sending_until > now()))
$$;

-- What signs a team's webhooks after Standard Webhooks. Readable, because it signs: the receiver has the same text.
create table webhook_secrets (
    id         uuid primary key default gen_random_uuid(),
    team_id    uuid not null references teams,
    secret     text not null,
    created_at timestamptz not null default now(),
    expires_at timestamptz                       -- set by a rotation: until then both sign
);
create unique index webhook_secret_current on webhook_secrets (team_id) where expires_at is null;
create index webhook_secrets_by_team on webhook_secrets (team_id);
