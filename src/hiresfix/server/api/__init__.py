"""The routes of the API by topic; each tells its story in the order that api-contract.md 4.6 gives.

A topic is a module with a `router`; it may know the domain below, and of this package only `context`
and `description`, by which its routes get into the OpenAPI document.
"""

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

topics = (submission, jobs, files, events, keys, records, signin, signup, about, operations, elsewhere)
routes = [route for topic in topics for route in topic.router.routes]
