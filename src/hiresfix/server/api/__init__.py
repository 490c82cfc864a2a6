"""The routes of the API by topic; each tells its story in the order that api-contract.md 4.6 gives.

A topic is a module with a `router`; it may know the domain below, and of this package only `context`
and `description`, by which its routes get into the OpenAPI document.
"""

from fastapi import APIRouter

from hiresfix.server.api import (
    about,
    elsewhere,
    events,
    files,
    jobs,
    keys,
    operations,
    records,
    signin,
    signup,
    submission,
)

router = APIRouter()
for topic in (submission, files, jobs, events, keys, records, signin, signup, about, operations, elsewhere):
    router.include_router(topic.router)
