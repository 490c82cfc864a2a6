-- Links that sign a browser in, once: who follows one gets a key of that user's, which ends by itself.
create table signin_links (
    id         uuid primary key default gen_random_uuid(),
    digest     bytea not null unique check (length(digest) = 32),   -- SHA-256 of the token, which is shown once
    user_id    uuid not null references users,
    created_at timestamptz not null default now(),
    expires_at timestamptz not null,
    used_at    timestamptz
);
create index signin_links_age on signin_links (expires_at);

alter table api_keys add column expires_at timestamptz;   -- null: never
