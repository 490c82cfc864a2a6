-- What the sentence in `error` was made from: {"reason": ..., "params": {...}}.
-- Null: no error, a sentence without a reason, or a row of a release before.
alter table jobs add column error_message jsonb;
