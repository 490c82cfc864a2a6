"""The API's routes by topic; each route does its checks in the order of contract.md 4.6.

A topic is a module with a `router`. It may import the packages below, and of this package only `dependencies` and
`openapi`.
"""

from hiresfix.server.api import (
    api_keys,
    events,
    health,
    jobs,
    ledger,
    login_links,
    not_offered,
    service_info,
    signup,
    uploads,
    upscale,
    webhook_deliveries,
)

topics = (
    upscale, jobs, uploads, events, api_keys, ledger, webhook_deliveries, login_links, signup, service_info, health,
    not_offered,
)  # fmt: skip
routes = [route for topic in topics for route in topic.router.routes]
