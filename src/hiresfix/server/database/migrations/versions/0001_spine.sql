-- Accounts ---------------------------------------------------------------------------------------------------------

create table teams (
    id                  uuid primary key default gen_random_uuid(),
    name                text not null,
    plan                text not null default 'free',
    credits             bigint not null default 0 check (credits >= 0),   -- always the sum of the team's ledger
    max_concurrent_jobs integer not null default 2 check (max_concurrent_jobs > 0),
    created_at          timestamptz not null default now()
);

create table users (
    id         uuid primary key default gen_random_uuid(),
    team_id    uuid not null references teams,
    email      text not null,
    role       text not null check (role in ('OWNER', 'ADMIN', 'MEMBER')),
    created_at timestamptz not null default now()
);
create index users_team on users (team_id);

create table api_keys (
    id           uuid primary key default gen_random_uuid(),
    user_id      uuid not null references users,
    name         text not null,
    prefix       text not null,
    digest       bytea not null unique check (length(digest) = 32),   -- SHA-256 of the key; signs its webhooks too
    active       boolean not null default true,
    signing_mode text not null default 'raw' check (signing_mode in ('raw', 'hex')),
    created_at   timestamptz not null default now(),
    last_used_at timestamptz,
    revoked_at   timestamptz
);
create index api_keys_user on api_keys (user_id);

-- Jobs -------------------------------------------------------------------------------------------------------------

create table jobs (
    id             uuid primary key,
    team_id        uuid not null references teams,
    user_id        uuid not null references users,
    key_id         uuid references api_keys,
    request_id     text not null,
    model          text not null,
    recipe         jsonb not null,
    input          jsonb not null,               -- canonical parameters as the caller sees them again
    source         jsonb not null,               -- key, sha256, media_type, bytes, width, height
    hook_url       text,
    hook_events    text[] not null default '{}',
    state          text not null default 'QUEUED'
                   check (state in ('QUEUED', 'PROCESSING', 'COMPLETED', 'FAILED', 'CANCELLED')),
    progress       smallint not null default 0 check (progress between 0 and 100),
    attempt        integer not null default 0,
    max_attempts   integer not null check (max_attempts > 0),
    token          uuid,                         -- who may write: changes with every claim
    lease_until    timestamptz,
    worker         text,
    cost           integer not null check (cost >= 0),
    result         jsonb,                        -- key, sha256, media_type, bytes, width, height, metadata
    error          text,
    created_at     timestamptz not null default now(),
    queued_at      timestamptz not null default now(),
    started_at     timestamptz,
    completed_at   timestamptz,
    source_purged_at timestamptz,
    purged_at      timestamptz,
    check ((state = 'PROCESSING') = (lease_until is not null)),
    check ((state = 'COMPLETED') = (result is not null)),
    check ((state in ('COMPLETED', 'FAILED', 'CANCELLED')) = (completed_at is not null))
);
create index jobs_by_user on jobs (user_id, created_at desc, id desc);
create index jobs_by_team on jobs (team_id, created_at desc, id desc);
create index jobs_newest on jobs (created_at desc, id desc);
create index jobs_queued on jobs (team_id, queued_at) where state = 'QUEUED';
create index jobs_leases on jobs (lease_until) where state = 'PROCESSING';
create index jobs_results on jobs (completed_at) where state = 'COMPLETED' and purged_at is null;
create index jobs_sources on jobs (completed_at) where completed_at is not null and source_purged_at is null;

create table idempotency_keys (
    user_id     uuid not null references users,
    route       text not null,
    key         text not null,
    fingerprint bytea not null,
    job_id      uuid not null references jobs deferrable initially deferred,
    created_at  timestamptz not null default now(),
    primary key (user_id, route, key)
);
create index idempotency_keys_age on idempotency_keys (created_at);

-- Which jobs and deliveries still have a task that waits for a worker (see jobs.enqueue_forgotten, webhooks.sweep).
create index tasks_of_jobs on procrastinate_jobs ((args ->> 'job_id')) where status = 'todo';
create index tasks_of_deliveries on procrastinate_jobs ((args ->> 'delivery_id')) where status = 'todo';

-- Credits ----------------------------------------------------------------------------------------------------------

-- Double entry in one row: `amount` moves from `counterparty` to the team (negative: the other way).
create table ledger (
    id           bigint generated always as identity primary key,
    team_id      uuid not null references teams,
    job_id       uuid references jobs deferrable initially deferred,
    kind         text not null check (kind in ('grant', 'charge', 'refund', 'adjust')),
    amount       bigint not null,
    counterparty text not null check (counterparty in ('issued', 'revenue', 'adjustments')),
    actor        text not null,
    reason       text not null,
    created_at   timestamptz not null default now(),
    unique (job_id, kind),
    check ((kind in ('charge', 'refund')) = (job_id is not null)),
    check (case kind when 'grant' then amount > 0 when 'refund' then amount >= 0
                     when 'charge' then amount <= 0 else amount <> 0 end)
);
create index ledger_by_team on ledger (team_id, id desc);

create function ledger_is_append_only() returns trigger language plpgsql as $$
begin
    raise exception 'the ledger is append-only: write an adjust entry instead';
end $$;
create trigger ledger_append_only before update or delete or truncate on ledger
    for each statement execute function ledger_is_append_only();

-- Webhooks ---------------------------------------------------------------------------------------------------------

create table webhook_deliveries (
    id              uuid primary key default gen_random_uuid(),
    job_id          uuid not null references jobs,
    key_id          uuid references api_keys,   -- the key that submitted the job signs its events
    event           text not null check (event in ('progress', 'completed', 'failed')),
    url             text not null,
    body            bytea not null,              -- serialised once; signed and sent as it is
    state           text not null default 'PENDING' check (state in ('PENDING', 'DELIVERED', 'FAILED')),
    attempt         integer not null default 0,
    next_attempt_at timestamptz not null default now(),
    last_status     integer,
    last_error      text,
    last_answer     text,
    created_at      timestamptz not null default now(),
    finished_at     timestamptz
);
create index webhook_by_job on webhook_deliveries (job_id);
create unique index webhook_terminal_once on webhook_deliveries (job_id) where event in ('completed', 'failed');
create index webhook_overdue on webhook_deliveries (next_attempt_at) where state = 'PENDING';
