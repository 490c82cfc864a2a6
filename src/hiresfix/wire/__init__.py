"""The public contract as pure functions: no other package knows a JSON name, a path or an error's shape.

Reading (`parse_upscale`, `data_uri`, `own_result`, ...) turns what clients send into canonical values or
InvalidRequest; writing (`job`, `hook_body`, `error_body`, ...) turns values into what the contract promises. No I/O, no
clock, no randomness, no framework. Both sides are made from `hiresfix.models.catalog`: another model is an entry there
and needs no change here.
"""

from hiresfix.wire.error_response import error_body, error_headers, invalid_param, quota_headers
from hiresfix.wire.locations import (
    data_uri,
    own_result,
    own_upload,
    parse_result_path,
    parse_upload_path,
    result_name,
    result_path,
)
from hiresfix.wire.params import json_schema
from hiresfix.wire.queries import (
    JobQuery,
    PagePosition,
    cursor,
    parse_dry_run,
    parse_job_query,
    parse_modality,
    preferred_wait,
    uuid,
)
from hiresfix.wire.render import (
    REQUEST_HEADERS,
    RESPONSE_HEADERS,
    JobView,
    accepted,
    finished,
    hook_body,
    job,
    job_list,
    preview,
    timestamp,
)
from hiresfix.wire.service_info import me, model_entry, readiness
from hiresfix.wire.uploads import upload
from hiresfix.wire.upscale_request import (
    EVENTS,
    UpscaleRequest,
    WebhookTarget,
    idempotency_key,
    parse_upscale,
    stored_input,
)

__all__ = [
    "EVENTS",
    "REQUEST_HEADERS",
    "RESPONSE_HEADERS",
    "JobQuery",
    "JobView",
    "PagePosition",
    "UpscaleRequest",
    "WebhookTarget",
    "accepted",
    "cursor",
    "data_uri",
    "error_body",
    "error_headers",
    "finished",
    "hook_body",
    "idempotency_key",
    "invalid_param",
    "job",
    "job_list",
    "json_schema",
    "me",
    "model_entry",
    "own_result",
    "own_upload",
    "parse_dry_run",
    "parse_job_query",
    "parse_modality",
    "parse_result_path",
    "parse_upload_path",
    "parse_upscale",
    "preferred_wait",
    "preview",
    "quota_headers",
    "readiness",
    "result_name",
    "result_path",
    "stored_input",
    "timestamp",
    "upload",
    "uuid",
]
