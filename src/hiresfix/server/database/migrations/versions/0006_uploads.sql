create table uploads (
    id         uuid primary key,
    user_id    uuid not null references users,
    key        text not null,                    -- where the bytes are in the store
    extension  text not null,
    media_type text not null,
    sha256     text not null,
    bytes      bigint not null check (bytes > 0),
    created_at timestamptz not null default now(),
    expires_at timestamptz not null
);
create index uploads_by_user on uploads (user_id, expires_at);
create index uploads_by_age on uploads (expires_at, id);

-- A key stands for a job or for an upload; when the upload goes, the key is free again.
alter table idempotency_keys
    alter column job_id drop not null,
    add column upload_id uuid references uploads on delete cascade deferrable initially deferred,
    add check (num_nonnulls(job_id, upload_id) = 1);
create index idempotency_keys_of_uploads on idempotency_keys (upload_id) where upload_id is not null;
