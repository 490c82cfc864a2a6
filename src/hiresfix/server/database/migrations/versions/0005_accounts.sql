alter table teams
    add column suspended_at timestamptz;

alter table users
    add column name         text not null default '',
    add column suspended_at timestamptz,
    add column removed_at   timestamptz;      -- the row stays: jobs name it; the address is free again
create unique index users_email on users (lower(email)) where removed_at is null;

create table audit_log (
    id      bigint generated always as identity primary key,
    at      timestamptz not null default now(),
    actor   text not null,                    -- os:<user of the machine>, or api:<what the API did by itself>
    action  text not null,                    -- team.suspend, key.revoke, ...
    subject text not null,                    -- the id of what was changed
    details jsonb not null
);
create index audit_by_subject on audit_log (subject, id desc);

create function audit_log_is_append_only() returns trigger language plpgsql as $$
begin
    raise exception 'the audit log is append-only';
end $$;
create trigger audit_append_only before update or delete or truncate on audit_log
    for each statement execute function audit_log_is_append_only();

create table invites (
    id         uuid primary key default gen_random_uuid(),
    digest     bytea not null unique check (length(digest) = 32),   -- SHA-256 of the code, which is shown once
    note       text not null,
    created_at timestamptz not null default now(),
    expires_at timestamptz not null,
    refusals   integer not null default 0,    -- addresses it was tried with that have an account
    used_at    timestamptz,
    user_id    uuid references users          -- who signed up with it
);
