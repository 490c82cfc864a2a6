"""Lists of jobs: the caller's own or the team's, newest first, page by page.

Guarantees that walking the pages shows every job that was there at the start exactly once, however many share a
creation time and whatever is submitted meanwhile: a page goes on where the last one ended, it does not count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import LiteralString

from hiresfix.errors import Forbidden
from hiresfix.server.accounts.authentication import Caller
from hiresfix.server.database.pool import Tx
from hiresfix.server.jobs import lifecycle
from hiresfix.server.jobs.model import Job
from hiresfix.wire import JobQuery, Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """`after` is where the next page begins, None if this is the last one."""

    jobs: list[Job]
    after: Place | None
    models: list[str] | None


async def page(tx: Tx, caller: Caller, query: JobQuery) -> Page:
    """Raises Forbidden for the team's jobs unless the caller is one of its owners or admins."""
    if query.team and not caller.leads:
        raise Forbidden("Only owners and admins may list the team's jobs. Leave out scope, or use scope=user.")
    whose, values = _conditions(caller, query)
    rest: LiteralString = " where " + " and ".join(whose) + " order by created_at desc, id desc limit %(limit)s"
    found = await lifecycle.find(tx, rest, **values, limit=query.limit + 1)
    shown = found[: query.limit]
    last = shown[-1] if len(found) > query.limit else None
    return Page(
        jobs=shown,
        after=Place(created_at=last.created_at, id=last.id) if last else None,
        models=await _models(tx, caller, team=query.team) if query.include_models else None,
    )


def _conditions(caller: Caller, query: JobQuery) -> tuple[list[LiteralString], dict[str, object]]:
    given: list[tuple[LiteralString, dict[str, object]]] = [
        ("team_id = %(team)s", {"team": caller.team}) if query.team else ("user_id = %(user)s", {"user": caller.user})
    ]
    if query.status:
        given.append(("state = %(state)s", {"state": query.status}))
    if query.model:
        given.append(("model = %(model)s", {"model": query.model}))
    if query.search:
        given.append(("id = %(id)s", {"id": query.search}))
    if query.after:
        place = {"after_time": query.after.created_at, "after_id": query.after.id}
        given.append(("(created_at, id) < (%(after_time)s, %(after_id)s)", place))
    return [condition for condition, _ in given], {name: value for _, values in given for name, value in values.items()}


async def _models(tx: Tx, caller: Caller, *, team: bool) -> list[str]:
    """The distinct models of all jobs in scope; steps from model to model in the index, not from job to job."""
    whose: LiteralString = "team_id = %(whose)s" if team else "user_id = %(whose)s"
    cursor = await tx.execute(
        "with recursive seen (model) as ("  # noqa: S608  # `whose` is one of the two literals above
        "(select model from jobs where " + whose + " order by model limit 1) union all select"
        " (select model from jobs where " + whose + " and model > seen.model order by model limit 1)"
        " from seen where seen.model is not null) select model from seen where model is not null",
        {"whose": caller.team if team else caller.user},
    )
    return [model for (model,) in await cursor.fetchall()]
