-- A team's row of turns comes with the team, and no submission has to see to it.
insert into turns (team_id) select id from teams on conflict do nothing;
create function teams_take_turns() returns trigger language plpgsql as $$
begin
    insert into turns (team_id) values (new.id) on conflict do nothing;
    return null;
end $$;
create trigger teams_take_turns after insert on teams for each row execute function teams_take_turns();

-- procrastinate's log of what became of its tasks: three rows each, which nobody reads and which go with the task.
drop trigger procrastinate_trigger_status_events_insert_v1 on procrastinate_jobs;
drop trigger procrastinate_trigger_status_events_update_v1 on procrastinate_jobs;
drop trigger procrastinate_trigger_scheduled_events_v1 on procrastinate_jobs;
