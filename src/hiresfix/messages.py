"""Messages to callers: English sentences that keep their reason and parameters, so that pages can translate them.

Every sentence that a caller may read in another language is written down here, once, as a `MessageTemplate`:

    raise ImageError(messages.IMAGE_DAMAGED(kind="PNG"))

A `Message` is a `str`: it can be logged, compared and stored like any other text. Answers carry its `reason` and
`params` besides the sentence (contract.md 11), and `hiresfix.server.web` has a translation of each template.
A reason is snake_case and never changes once published. This module imports nothing of hiresfix.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self, TypeAlias

Param: TypeAlias = str | int | float


class Message(str):
    """An English sentence with the `reason` and `params` it was made from."""

    reason: str
    params: Mapping[str, Param]

    def __new__(cls, text: str, *, reason: str = "", params: Mapping[str, Param] | None = None) -> Self:
        message = super().__new__(cls, text)
        message.reason = reason
        message.params = dict(params or {})
        return message


@dataclass(frozen=True, slots=True)
class MessageTemplate:
    """A sentence with `{placeholders}`; calling it fills them in."""

    reason: str
    text: str

    def __call__(self, **params: Param) -> Message:
        """Return the filled sentence. Raises ValueError unless `params` are exactly the placeholders."""
        if params.keys() != self.placeholders:
            raise ValueError(f"{self.reason} takes {sorted(self.placeholders)}, got {sorted(params)}.")
        return Message(self.text.format(**params), reason=self.reason, params=params)

    @property
    def placeholders(self) -> frozenset[str]:
        """Names of the parameters."""
        return frozenset(name for _, name, _, _ in string.Formatter().parse(self.text) if name)


TEMPLATES: dict[str, MessageTemplate] = {}
"""All templates by reason."""


def plain_number(value: float) -> int | float:
    """Return the number as a message shows it: six significant digits at most, whole numbers without a point."""
    rounded = float(f"{value:g}")
    return int(rounded) if rounded.is_integer() else rounded


def _define(reason: str, text: str) -> MessageTemplate:
    TEMPLATES[reason] = template = MessageTemplate(reason, text)
    return template


# Images --------------------------------------------------------------------------------------------------------------

IMAGE_FORMAT_UNKNOWN = _define(
    "image_format_unknown",
    "This is not an image of a known format. Send PNG, JPEG, WebP, GIF, TIFF, BMP, AVIF or HEIC.",
)
IMAGE_DAMAGED = _define(
    "image_damaged", "The {kind} file is damaged or incomplete. Save or download it again and retry."
)
IMAGE_EMPTY = _define("image_empty", "The image has no pixels. Send an image at least 1 pixel wide and high.")
IMAGE_TOO_MANY_PIXELS = _define(
    "image_too_many_pixels", "The image is {size}, {megapixels} MP; the limit is {limit} MP. Make it smaller first."
)
SCALE_TOO_LARGE = _define(
    "scale_too_large", "{scale}x of {size} is {megapixels} MP; the limit is {limit} MP. Use {fitting}."
)
IMAGE_TOO_LARGE_TO_SCALE = _define(
    "image_too_large_to_scale",
    "{scale}x of {size} is {megapixels} MP; the limit is {limit} MP. Make the image smaller first.",
)
SIDE_TOO_LONG_FOR_FORMAT = _define(
    "side_too_long_for_format", "{format} stores at most {largest} pixels a side; the result is {size}. Use png."
)
FILE_TOO_LARGE = _define(
    "file_too_large", "The file is larger than the limit of {limit} MiB. Compress it more or make it smaller."
)
SAMPLES_UNSUPPORTED = _define(
    "samples_unsupported", "Images with {kind} samples are not supported. Save it as 8 or 16 bit RGB and retry."
)
JPEG_DEPTH_UNSUPPORTED = _define(
    "jpeg_depth_unsupported", "JPEG with {bits} bits per sample is not supported. Save it as PNG and retry."
)
HEIC_NOT_INSTALLED = _define(
    "heic_not_installed",
    "HEIC images need the package pillow-heif on this machine. "
    "Install it (pip install pillow-heif), or send PNG or JPEG.",
)
DECODING_CRASHED = _define(
    "decoding_crashed", "The image made its decoder crash: the file is damaged. Save it again as PNG or JPEG and retry."
)
DECODING_OUT_OF_MEMORY = _define(
    "decoding_out_of_memory", "Decoding the image takes more memory than is allowed. Save it as PNG or JPEG and retry."
)
DECODING_TOO_SLOW = _define(
    "decoding_too_slow", "Decoding the image takes longer than is allowed. Save it as PNG or JPEG and retry."
)
DATA_URI_TOO_LARGE = _define(
    "data_uri_too_large", "The image has {size} bytes; the limit is {limit}. Send a smaller file."
)
DATA_URI_DAMAGED = _define(
    "data_uri_damaged", "The data URI is damaged: its base64 does not decode. Encode the file again."
)

# URLs that the server fetches or delivers to -------------------------------------------------------------------------

URL_TOO_LONG = _define("url_too_long", "The URL is longer than {limit} characters. Use a shorter one.")
URL_BAD_CHARACTERS = _define(
    "url_bad_characters", "The URL contains spaces, backslashes or control characters. Percent-encode them."
)
URL_MALFORMED = _define("url_malformed", "The URL is malformed. Use an absolute http or https URL.")
URL_SCHEME = _define("url_scheme", "The URL must start with http:// or https://.")
URL_NEEDS_HTTPS = _define("url_needs_https", "The URL must start with https://.")
URL_WITH_CREDENTIALS = _define(
    "url_with_credentials", "The URL contains a user name or password. Remove it, or use a signed URL."
)
URL_PORT_NOT_ALLOWED = _define("url_port_not_allowed", "The URL's port is not allowed. Use port {ports}.")
URL_HOST_INVALID = _define("url_host_invalid", "The URL has no valid host name. Use an absolute http or https URL.")
URL_HOST_UNKNOWN = _define("url_host_unknown", "The URL's host name could not be resolved. Check its spelling.")
URL_HOST_WITHOUT_ADDRESS = _define(
    "url_host_without_address", "The URL's host name has no address. Check its spelling."
)
URL_PRIVATE_ADDRESS = _define(
    "url_private_address",
    "The URL points to a private or local address, which this server does not connect to. Use a public one.",
)
URL_TOO_MANY_REDIRECTS = _define(
    "url_too_many_redirects", "The URL redirects more than {limit} times. Use the final URL."
)
URL_REDIRECT_MALFORMED = _define("url_redirect_malformed", "The URL redirects to a malformed URL. Use the final URL.")
URL_REDIRECT_TO_HTTP = _define(
    "url_redirect_to_http", "The URL redirects from https to http, which is not followed. Use the final URL."
)
URL_TIMED_OUT = _define("url_timed_out", "The URL did not answer completely in time. Try again, or use a faster host.")
URL_CERTIFICATE_INVALID = _define(
    "url_certificate_invalid", "The URL's host has no valid TLS certificate. Renew it, or use another host."
)
URL_CONNECTION_REFUSED = _define(
    "url_connection_refused", "The URL's host refused the connection. Check that it is public and running."
)
URL_INTERRUPTED = _define("url_interrupted", "The connection broke off before the answer was complete. Try again.")
URL_STATUS = _define("url_status", "The URL answered {status}. Check that it is public and still exists.")
URL_FILE_TOO_LARGE = _define("url_file_too_large", "The file is larger than {limit}. Send a smaller one.")
URL_COMPRESSED = _define(
    "url_compressed", "The URL answered in a compression that was not asked for. Serve the file uncompressed."
)

# Uploads and files ---------------------------------------------------------------------------------------------------

UPLOAD_QUOTA = _define(
    "upload_quota", "Your uploads would take {size} bytes; the quota is {quota}. Wait until earlier ones have expired."
)
UPLOAD_NOT_FOUND = _define("upload_not_found", "The upload does not exist or has expired. Upload the image again.")
UPLOAD_EXPIRED = _define("upload_expired", "The upload has expired. Upload the image again.")
UPLOAD_EMPTY = _define("upload_empty", "The file is empty. Send an image.")
RESULT_GONE = _define("result_gone", "The URL names a result that does not exist any more. Use another image.")

# Jobs ----------------------------------------------------------------------------------------------------------------

TEAM_QUEUE_FULL = _define(
    "team_queue_full", "Your team has {limit} jobs waiting already. Try again when some are done."
)
TOO_MANY_EVENT_STREAMS = _define(
    "too_many_event_streams", "This key has {limit} event streams open already. Close one first."
)
JOB_ALREADY_OVER = _define(
    "job_already_over", "The job is {state} already and cannot be cancelled. Submit another one instead."
)
JOB_NOT_FINISHED = _define(
    "job_not_finished", "The job is not finished. Cancel it, or wait for its end, and then delete its files."
)
JOB_INTERRUPTED = _define(
    "job_interrupted", "The job was interrupted too often and has been stopped. Your credits were returned."
)
JOB_INTERNAL_ERROR = _define(
    "job_internal_error", "The image could not be upscaled because of an internal error. Your credits were returned."
)
JOB_RESULT_REJECTED = _define(
    "job_result_rejected",
    "The result failed its quality check. Your credits were returned. Try another seed or other settings.",
)
JOB_RESULT_NOT_STORED = _define("job_result_not_stored", "The result could not be stored. Your credits were returned.")
PROMPT_TOO_LONG = _define(
    "prompt_too_long",
    "The prompt makes {chunks} chunks of {tokens} tokens, of which at most {limit} are read. "
    "Shorten it, or use BREAK less often.",
)
IDEMPOTENCY_KEY_REUSED = _define("idempotency_key_reused", "Idempotency-Key was already used with a different request")
BODY_TOO_SLOW = _define(
    "body_too_slow", "The request's body did not arrive within {seconds} s. Send a smaller one, or a URL."
)

# Accounts ------------------------------------------------------------------------------------------------------------

TEAM_JOBS_FORBIDDEN = _define(
    "team_jobs_forbidden", "Only owners and admins may list the team's jobs. Leave out scope, or use scope=user."
)
TEAM_RECORDS_FORBIDDEN = _define(
    "team_records_forbidden", "Only owners and admins may see the team's records. Leave out scope, or use scope=user."
)
TEAM_KEYS_FORBIDDEN = _define(
    "team_keys_forbidden", "Only owners and admins may list the team's keys. Leave out scope, or use scope=user."
)
KEY_CREATION_FORBIDDEN = _define("key_creation_forbidden", "Only owners and admins may create keys. Ask one of them.")
KEY_CREATION_WITH_BUDGET = _define(
    "key_creation_with_budget", "A key with a monthly budget may not create keys. Use one without."
)
TOO_MANY_KEYS = _define("too_many_keys", "This team has {count} keys already. Revoke some that are not used.")
OWNER_KEY_PROTECTED = _define("owner_key_protected", "Only an owner may revoke an owner's key. Ask one of them.")
SIGNUP_CLOSED = _define("signup_closed", "Sign-up is closed on this server. Ask its operator for a key.")
SIGNUP_REJECTED = _define(
    "signup_rejected",
    "This sign-up cannot be accepted. Use a valid invite code, and an e-mail address that has no account here yet.",
)
LOGIN_LINK_INVALID = _define(
    "login_link_invalid",
    "This login link was used already or is too old. Get a new one with `hiresfix login-link`, or use an API key.",
)
DELIVERY_PROGRESS = _define(
    "delivery_progress", "Progress is sent only once. Redeliver the job's completed or failed event."
)
DELIVERY_IN_PROGRESS = _define(
    "delivery_in_progress", "It is being sent at this moment. Look at it again: `hiresfix webhooks show`."
)

# The server as a whole -----------------------------------------------------------------------------------------------

DISK_FULL = _define(
    "disk_full",
    "The server's disk is nearly full, so it accepts no images at the moment. Nothing was charged. Try again later.",
)

# Validation: one value of a request ----------------------------------------------------------------------------------

REQUIRED = _define("required", "Required")
EXPECTED_CHOICE = _define("expected_choice", "Expected one of {choices}")
EXPECTED_SOME_CHOICE = _define("expected_some_choice", "Expected at least one of {choices}")
EXPECTED_MODEL = _define("expected_model", "Expected {models}")
EXPECTED_NUMBER = _define("expected_number", "Expected a number")
EXPECTED_INTEGER = _define("expected_integer", "Expected an integer")
EXPECTED_STRING = _define("expected_string", "Expected a string")
EXPECTED_OBJECT = _define("expected_object", "Expected an object")
EXPECTED_ARRAY = _define("expected_array", "Expected an array")
EXPECTED_BOOLEAN = _define("expected_boolean", "Expected true or false")
EXPECTED_UUID = _define("expected_uuid", "Expected a UUID")
EXPECTED_JOB_ID = _define("expected_job_id", "Expected a job id (a UUID)")
EXPECTED_MODEL_ID = _define("expected_model_id", "Expected the id of a model")
EXPECTED_PAGE_SIZE = _define("expected_page_size", "Must be an integer between {minimum} and {maximum}")
EXPECTED_BUDGET = _define("expected_budget", "Expected whole credits, or null for no budget")
EXPECTED_TOKEN = _define("expected_token", "Expected the token of a login link")
EXPECTED_EMAIL = _define("expected_email", "Expected an e-mail address")
INVALID_EMAIL = _define("invalid_email", "Expected an e-mail address. {problem}")
INVALID_CURSOR = _define(
    "invalid_cursor", "Not a cursor of this list. Use nextCursor of the page before, or start without one."
)
BETWEEN = _define("between", "Must be between {minimum} and {maximum}")
AT_LEAST = _define("at_least", "Must be at least {minimum}")
AT_MOST = _define("at_most", "Must be at most {maximum}")
FINITE = _define("finite", "Must be finite")
AT_MOST_CHARACTERS = _define("at_most_characters", "Must be at most {limit} characters")
CHARACTERS_BETWEEN = _define("characters_between", "Must have {minimum} to {maximum} characters")
AT_MOST_ITEMS = _define("at_most_items", "Must have at most {limit} items")
CONTROL_CHARACTERS = _define("control_characters", "Must not contain control characters")
NUL_CHARACTER = _define("nul_character", "Must not contain the NUL character")
LONE_SURROGATE = _define("lone_surrogate", "Must be valid Unicode: it holds half of a surrogate pair")
EXPECTED_URL = _define("expected_url", "Expected an http(s) URL")
EXPECTED_IMAGE_URL = _define("expected_image_url", "Expected an http(s) URL or data:image/...;base64,...")
HOST_OR_PORT_INVALID = _define("host_or_port_invalid", "Must have a valid host and port")
CREDENTIALS_IN_URL = _define("credentials_in_url", "Must not contain a user name or password")
DATA_URI_NOT_BASE64 = _define("data_uri_not_base64", "The data URI holds characters that are not base64")
DATA_URI_EMPTY = _define("data_uri_empty", "The data URI holds no image")
DATA_URI_UNDECODABLE = _define("data_uri_undecodable", "The data URI is damaged: its base64 does not decode")

# Validation: the request as a whole ----------------------------------------------------------------------------------

BODY_EMPTY = _define("body_empty", "Expected a JSON object, got an empty body")
BODY_NOT_OBJECT = _define("body_not_object", "Expected a JSON object")
BODY_TOO_MANY_VALUES = _define("body_too_many_values", "Too many values in the JSON body")
BODY_NOT_UTF8 = _define("body_not_utf8", "The body is not UTF-8 (byte {position})")
BODY_MALFORMED = _define("body_malformed", "Malformed JSON: {problem} at line {line}, column {column}")
BODY_MALFORMED_NUMBER = _define("body_malformed_number", "Malformed JSON: {name} is not a JSON number")
BODY_NUMBER_TOO_LONG = _define("body_number_too_long", "A number has more than {limit} digits")
BODY_NESTED_TOO_DEEPLY = _define("body_nested_too_deeply", "The JSON body is nested too deeply")
BODY_MEDIA_TYPE = _define(
    "body_media_type", "Expected JSON, got '{media_type}'. Send the header Content-Type: application/json."
)
BODY_COMPRESSED = _define("body_compressed", "Compressed request bodies are not accepted. Send the JSON as it is.")
DUPLICATE_KEY = _define("duplicate_key", "Duplicate key '{key}'")
UNKNOWN_KEYS = _define("unknown_keys", "Unrecognized key(s): {keys}.")
UNKNOWN_KEYS_HINT = _define("unknown_keys_hint", "Unrecognized key(s): {keys}. Did you mean {hints}?")
UNKNOWN_KEYS_MORE = _define("unknown_keys_more", "Unrecognized key(s): {keys} and {count} more.")
UNKNOWN_KEYS_MORE_HINT = _define(
    "unknown_keys_more_hint", "Unrecognized key(s): {keys} and {count} more. Did you mean {hints}?"
)
UNKNOWN_KEYS_KNOWN = _define("unknown_keys_known", "Unrecognized key(s): {keys}. Known are {known}.")

# Notes on a result ---------------------------------------------------------------------------------------------------

PROMPT_IGNORED_OFFLINE = _define(
    "prompt_ignored_offline",
    "The offline engine does not follow prompts: prompt and negative_prompt were kept, and changed nothing.",
)
DAMAGED_INPUT_COLOURS = _define(
    "damaged_input_colours",
    "The input is damaged, so its colours are followed more than its pixels; resemblance above 1 follows both.",
)
FIRST_FRAME_ONLY = _define("first_frame_only", "Only the first frame or page was used.")
CMYK_CONVERTED = _define("cmyk_converted", "CMYK was converted to sRGB.")

# Reasons in the ledger of credits ------------------------------------------------------------------------------------

FREE_CREDITS = _define("free_credits", "free credits")
GRANTED_BY_OPERATOR = _define("granted_by_operator", "granted by the operator")
GRANTED_WITH_TEAM = _define("granted_with_team", "granted with the team")
ADJUSTED_BY_OPERATOR = _define("adjusted_by_operator", "adjusted by the operator")
