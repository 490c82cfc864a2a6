-- What was seen of an upload when it was decoded: a submission that names it need not decode it again.
alter table uploads
    add column width   integer,                  -- as the picture is seen; null: a release before handed it in
    add column height  integer,
    add column several boolean;                  -- frames or pages
