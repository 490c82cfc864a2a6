-- A renewal changes when the lease ends and nothing that is indexed, so that it writes its row and none of the table's
-- twelve indexes (heap-only), as long as the page has room for it. Lapsed leases are looked for among the running jobs.
drop index jobs_leases;
alter table jobs set (fillfactor = 90);
