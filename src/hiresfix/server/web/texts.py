"""What people are told of an error, by its code, and what they can do about it.

The API speaks English whatever a browser prefers, because clients match on its texts; pages show these instead, with
the API's own words below as the detail. A test compares the table with the codes that exist.
"""

from __future__ import annotations

from collections.abc import Mapping

from hiresfix.server.web.wording import mark

ERRORS: Mapping[str, str] = {
    "validation_error": mark("Something in the request is not right. Correct what is marked and try again."),
    "invalid_job_id": mark("This is not the number of a job. Open the job from the history."),
    "unauthenticated": mark("The API key is missing or not valid. Sign in with a valid key."),
    "insufficient_credits": mark("There are not enough credits for this. Ask the operator of this server for more."),
    "forbidden": mark("This key may not do that. Sign in with another one, or ask an owner of your team."),
    "over_budget": mark("This key has used up its monthly budget. Use another key, or ask an owner to raise it."),
    "not_found": mark("This does not exist, or not any more. Check the address."),
    "method_not_allowed": mark("The server does not offer this here. Reload the page and try again."),
    "conflict": mark("This does not fit the present state any more. Reload and look again."),
    "expired": mark("The time for which this was kept is over. Make the picture again."),
    "request_timed_out": mark("The upload took too long. Try a smaller file or a better connection."),
    "request_too_large": mark("That is too large to be sent. Choose a smaller file."),
    "rate_limited": mark("That was too much in a short time. Wait a moment and try again."),
    "not_offered": mark("This server does not offer that."),
    "storage_failed": mark("The server's file store does not answer. Try again in a moment."),
    "unavailable": mark("The server cannot take this just now. Try again in a moment."),
    "invalid_picture": mark("This file cannot be used as a picture. Choose another one."),
    "quota_exceeded": mark("Your uploads take all the room they may. Wait until older ones have expired."),
    "invalid_prompt": mark("The prompt is too long or cannot be read. Shorten it."),
    "fetch_failed": mark("The picture could not be fetched from that address. Check it, or upload the file."),
    "weights_error": mark("A file that the engine needs is missing or damaged. Tell the operator of this server."),
    "not_understood": mark("A newer release made this job, and no worker here reads it yet. Try again in a moment."),
    "engine_failed": mark("The engine made no picture. Your credits are returned; try other settings."),
    "bad_result": mark("The result did not pass its check. Your credits are returned; try other settings."),
    "configuration_error": mark("The server is not set up correctly. Tell the operator."),
    "internal_error": mark("Something broke on the server. Try again; if it stays, tell the operator."),
    "cors_refused": mark("This page may not use the server from here. Open the server's own address."),
    "invalid_http": mark("The server could not read the request. Reload the page and try again."),
}
