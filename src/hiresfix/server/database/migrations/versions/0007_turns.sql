-- What a plan allows; a team's own numbers, where it has some, come first.
create table plans (
    name                text primary key,
    max_concurrent_jobs integer not null check (max_concurrent_jobs > 0)
);
insert into plans (name, max_concurrent_jobs) values ('free', 2), ('pro', 10);
insert into plans (name, max_concurrent_jobs) select distinct plan, 2 from teams on conflict do nothing;

alter table teams
    add foreign key (plan) references plans,
    alter column max_concurrent_jobs drop not null,                                      -- null: the plan's
    alter column max_concurrent_jobs drop default,
    add column max_queued_jobs integer check (max_queued_jobs > 0);                      -- null: the setting
update teams set max_concurrent_jobs = null where max_concurrent_jobs = 2;               -- what all began with

-- When each team was last given a turn. A row of its own, locked by nobody but who gives one: the teams' rows are
-- locked by every charge and refund.
create table turns (
    team_id uuid primary key references teams,
    given   bigint not null default 0            -- 0: never; else a number of the sequence
);
create sequence turns_given owned by turns.given;
insert into turns (team_id) select distinct team_id from jobs;

-- jobs.queued_at: from when on a worker may take it; a retry waits a while.
drop index jobs_queued;
create index jobs_queued on jobs (team_id, created_at, id) where state = 'QUEUED';
create index jobs_running on jobs (team_id) where state = 'PROCESSING';

-- A task says only that there is work; `turns` counts those that still wait for a worker.
-- Those of the release before name a job; what they called for is called for anew within seconds.
delete from procrastinate_jobs where task_name = 'jobs.run' and status = 'todo';
drop index tasks_of_jobs;
create index tasks_waiting on procrastinate_jobs (task_name, scheduled_at) where status = 'todo';
