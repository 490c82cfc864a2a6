-- Whoever waits for a job is woken: state and progress are what others see of it. The payload is "<id> <STATE>".
create function jobs_announce_change() returns trigger language plpgsql as $$
begin
    perform pg_notify('hiresfix_jobs', new.id::text || ' ' || new.state);
    return null;
end $$;
create trigger jobs_changed after update on jobs for each row
    when (old.state is distinct from new.state or old.progress is distinct from new.progress)
    execute function jobs_announce_change();

-- Lists: by state as by time, and which models occur at all. How fast a model has been of late.
create index jobs_by_user_state on jobs (user_id, state, created_at desc, id desc);
create index jobs_by_team_state on jobs (team_id, state, created_at desc, id desc);
create index jobs_models_of_user on jobs (user_id, model);
create index jobs_models_of_team on jobs (team_id, model);
create index jobs_pace on jobs (model, completed_at desc) where state = 'COMPLETED';
