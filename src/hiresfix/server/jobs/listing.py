"""List jobs page by page: the caller's own or the team's, newest first.

Guarantees: paging through the list shows every job that existed at the start exactly once, however many jobs share a
creation time and whatever is submitted meanwhile, because a page continues behind the last job of the previous page
instead of at an offset.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import LiteralString

from hiresfix import messages
from hiresfix.errors import Forbidden
from hiresfix.server.accounts.authentication import Caller
from hiresfix.server.database.pool import Tx
from hiresfix.server.jobs import lifecycle
from hiresfix.server.jobs.model import Job
from hiresfix.wire import JobQuery, PagePosition


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPage:
    """One page; `after` is where the next one starts, None on the last page."""

    jobs: list[Job]
    after: PagePosition | None
    models: list[str] | None


async def list_page(tx: Tx, caller: Caller, query: JobQuery) -> JobPage:
    """Return one page. Raises Forbidden for the team's jobs unless the caller is one of its owners or admins."""
    if query.team and not caller.manages_team:
        raise Forbidden(messages.TEAM_JOBS_FORBIDDEN())
    conditions, values = _conditions(caller, query)
    clauses: LiteralString = " where " + " and ".join(conditions) + " order by created_at desc, id desc limit %(limit)s"
    rows = await lifecycle.find(tx, clauses, **values, limit=query.limit + 1)
    jobs = rows[: query.limit]
    last = jobs[-1] if len(rows) > query.limit else None
    return JobPage(
        jobs=jobs,
        after=PagePosition(created_at=last.created_at, id=last.id) if last else None,
        models=await _models(tx, caller, team=query.team) if query.include_models else None,
    )


def _conditions(caller: Caller, query: JobQuery) -> tuple[list[LiteralString], dict[str, object]]:
    filters: list[tuple[LiteralString, dict[str, object]]] = [
        ("team_id = %(team)s", {"team": caller.team}) if query.team else ("user_id = %(user)s", {"user": caller.user})
    ]
    if query.status:
        filters.append(("state = %(state)s", {"state": query.status}))
    if query.model:
        filters.append(("model = %(model)s", {"model": query.model}))
    if query.search:
        filters.append(("id = %(id)s", {"id": query.search}))
    if query.after:
        place = {"after_time": query.after.created_at, "after_id": query.after.id}
        filters.append(("(created_at, id) < (%(after_time)s, %(after_id)s)", place))
    conditions = [condition for condition, _ in filters]
    return conditions, {name: value for _, values in filters for name, value in values.items()}


async def _models(tx: Tx, caller: Caller, *, team: bool) -> list[str]:
    """Return the distinct models of all jobs in scope; the index is read per model, not per job."""
    owner: LiteralString = "team_id = %(owner)s" if team else "user_id = %(owner)s"
    cursor = await tx.execute(
        "with recursive seen (model) as ("  # noqa: S608  # `owner` is one of the two literals above
        "(select model from jobs where " + owner + " order by model limit 1) union all select"
        " (select model from jobs where " + owner + " and model > seen.model order by model limit 1)"
        " from seen where seen.model is not null) select model from seen where model is not null",
        {"owner": caller.team if team else caller.user},
    )
    return [model for (model,) in await cursor.fetchall()]
