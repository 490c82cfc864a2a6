-- What a key may spend in a calendar month (UTC); null: as much as its team has.
alter table api_keys add column monthly_budget bigint check (monthly_budget >= 0);

-- For the sum of a key's charges since the month began.
create index jobs_by_key on jobs (key_id, created_at);
