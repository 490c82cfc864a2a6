-- What a worker must have beside the memory for it: tags (see workers.tags).
alter table jobs add column needs text[] not null default '{}';

-- What memory a job takes follows from the megapixels of its result.
create function megapixels(job jobs) returns float8 language sql immutable as $$
    select coalesce((job.source ->> 'width')::float8 * (job.source ->> 'height')::float8
                    * (job.recipe ->> 'scale')::float8 ^ 2 / 1e6, 0)
$$;

-- The different capacities of the workers that take jobs now. While none is known, one that holds everything (tags
-- null): workers may be about to say who they are.
create view capacities as
    with known as (
        select distinct most_megapixels, tags from workers where alive_until > now() and not draining
    )
    select most_megapixels, tags from known
    union all
    select 'infinity', null where not exists (select from known);

create function holds(most_megapixels float8, tags text[], job jobs) returns boolean language sql immutable as $$
    select megapixels(job) <= most_megapixels and (tags is null or job.needs <@ tags)
$$;
