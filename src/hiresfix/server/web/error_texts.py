"""Texts that pages show for errors, by error code, and the server's messages by reason.

The API speaks English whatever a browser prefers, because clients match its texts. Pages show these texts instead, with
the server's own message as the detail: `MESSAGES` has its template by `reason`, to be translated and filled in with
`params` (contract.md 11). Tests compare both tables with the codes and templates that exist.
"""

from __future__ import annotations

from collections.abc import Mapping

from hiresfix import messages
from hiresfix.server.web.message_format import mark

ERRORS: Mapping[str, str] = {
    "validation_error": mark("Something in the request is not right. Correct the marked fields and try again."),
    "invalid_job_id": mark("This is not the id of a job. Open the job from the history."),
    "unauthenticated": mark("The API key is missing or not valid. Sign in with a valid key."),
    "insufficient_credits": mark("There are not enough credits for this. Ask the operator of this server for more."),
    "forbidden": mark("This key may not do that. Sign in with another key, or ask an owner of your team."),
    "over_budget": mark("This key has used up its monthly budget. Use another key, or ask an owner to raise it."),
    "not_found": mark("This does not exist, or no longer exists. Check the address."),
    "method_not_allowed": mark("The server does not offer this here. Reload the page and try again."),
    "conflict": mark("This is not possible in the current state. Reload the page and check again."),
    "expired": mark("The retention time of this file is over. Create the image again."),
    "request_timed_out": mark("The upload took too long. Try a smaller file or a better connection."),
    "request_too_large": mark("This is too large to send. Choose a smaller file."),
    "rate_limited": mark("Too many requests in a short time. Wait a moment and try again."),
    "not_offered": mark("This server does not offer that."),
    "storage_failed": mark("The server's file store is not responding. Try again in a moment."),
    "unavailable": mark("The server cannot accept this at the moment. Try again in a moment."),
    "invalid_picture": mark("This file cannot be used as an image. Choose another one."),
    "quota_exceeded": mark("Your uploads have reached their limit. Wait until older ones have expired."),
    "invalid_prompt": mark("The prompt is too long or cannot be read. Shorten it."),
    "fetch_failed": mark("The image could not be fetched from that address. Check it, or upload the file."),
    "weights_error": mark("A file that the engine needs is missing or damaged. Tell the operator of this server."),
    "not_understood": mark("A newer release created this job; no worker here can read it yet. Try again in a moment."),
    "engine_failed": mark("The engine could not create the image. Your credits were returned; try other settings."),
    "bad_result": mark("The result failed its quality check. Your credits were returned; try other settings."),
    "configuration_error": mark("The server is not set up correctly. Tell the operator."),
    "internal_error": mark("Something went wrong on the server. Try again; if it happens again, tell the operator."),
    "cors_refused": mark("This page may not use the server from here. Open the server's own address."),
    "invalid_http": mark("The server could not read the request. Reload the page and try again."),
}
"""Summary and remedy by error code."""

MESSAGES: Mapping[str, str] = {reason: template.text for reason, template in messages.TEMPLATES.items()}
"""Templates of the server's messages by reason."""
