"""The public contract as pure functions: nobody else knows a JSON name, a default path or an error's shape.

Reading (`parse_upscale`, `data_uri`, `own_result`, ...) turns what strangers send into canonical values or
InvalidRequest; writing (`job`, `hook_body`, `error_body`, ...) turns values into what the contract promises.
No I/O, no clock, no randomness, no framework. Both sides are made from `hiresfix.models.catalog`: another model is an
entry there and nothing here.
"""

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
from hiresfix.wire.parse import EVENTS, Hook, UpscaleRequest, idempotency_key, parse_upscale, stored_input
from hiresfix.wire.queries import (
    JobQuery,
    Place,
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
    error_body,
    error_headers,
    finished,
    hook_body,
    invalid_param,
    job,
    job_list,
    preview,
    quota_headers,
    timestamp,
    upload,
)
from hiresfix.wire.service_info import me, model_entry, readiness

__all__ = [
    "EVENTS",
    "REQUEST_HEADERS",
    "RESPONSE_HEADERS",
    "Hook",
    "JobQuery",
    "JobView",
    "Place",
    "UpscaleRequest",
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
