"""The routes of the API by topic; each tells its story in the order that contract.md 4.6 gives.

A topic is a module with a `router`; it may know the domain below, and of this package only `context`
and `description`, by which its routes get into the OpenAPI document.
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
