"""What people are told of an error, by its code, and what they can do about it.

The API speaks English whatever a browser prefers, because clients match on its texts; pages show these instead, with
the API's own words below as the detail. A test compares the table with the codes that exist. Of the API's own words,
the sentences that people meet most are known here too; a test compares them with what the server can say.
"""

from __future__ import annotations

from collections.abc import Mapping

from hiresfix.server.web.message_format import mark

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

SAYINGS: tuple[str, ...] = (
    # of pictures
    mark("This is not a picture of a known format. Send PNG, JPEG, WebP, GIF, TIFF, BMP, AVIF or HEIC."),
    mark("The {kind} file is damaged or incomplete. Save or download it again and retry."),
    mark("The picture is {size}, {megapixels} MP; the limit is {limit} MP. Make it smaller first."),
    mark("{scale}x of {size} is {megapixels} MP; the limit is {limit} MP. Use {fitting}."),
    mark("{scale}x of {size} is {megapixels} MP; the limit is {limit} MP. Make the picture smaller first."),
    mark("{format} stores at most {largest} pixels a side; the result is {size}. Use png."),
    mark("The file is larger than the limit of {limit} MiB. Compress it more or make it smaller."),
    mark("Pictures with {kind} samples are not supported. Save it as 8 or 16 bit RGB and retry."),
    # of addresses
    mark("The URL answered {status}. Check that it is public and still exists."),
    mark("The URL's host name could not be resolved. Check its spelling."),
    mark("The URL's host refused the connection. Check that it is public and running."),
    mark("The URL points to a private or local address, which this server does not connect to. Use a public one."),
    mark("The URL did not answer completely in time. Try again, or use a faster host."),
    mark("The file is larger than {limit}. Send a smaller one."),
    # of jobs that failed
    mark("The job was interrupted too often and has been stopped. Your credits were returned."),
    mark("The picture could not be enlarged because of an internal error. Your credits were returned."),
    mark("The result failed its quality check. Your credits were returned. Try another seed or other settings."),
    mark("The picture could not be stored. Your credits were returned."),
    # of results
    mark("The offline engine does not follow prompts: prompt and negative_prompt were kept, and changed nothing."),
    mark("The input is damaged, so its colours are followed more than its pixels; resemblance above 1 follows both."),
    mark("Only the first frame or page was used."),
    mark("CMYK was converted to sRGB."),
    # in the ledger
    mark("free credits"),
    mark("granted by the operator"),
    mark("granted with the team"),
    mark("adjusted by the operator"),
)
"""Sentences of the server as messages; where it fills something in stands a placeholder."""
