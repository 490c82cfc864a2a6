"""The contract's checklist (contract.md 17), and for each of its items the tests that show it.

`test_proofs.py` holds this list against the tests there are, so that renaming one without it is noticed.

1. The snippets of the published pages run as they stand:
    conformance/test_clients.py::test_01_the_snippets_of_the_published_pages_run_as_they_stand
    wire/test_parse.py::test_every_snippet_of_the_published_pages_is_accepted
2. The published SDK, from an upload to the file:
    conformance/test_clients.py::test_02_what_the_sdk_sends_gets_from_an_upload_to_the_file
    conformance/test_clients.py::test_02_the_published_sdk_gets_from_an_upload_to_the_file
3. Spellings of one value are one job, others are 400 at their path:
    conformance/test_checklist.py::test_03_every_spelling_of_a_factor_is_the_same_job_and_others_are_none
    wire/test_parse.py::test_a_spelling_becomes_its_canonical_value
    wire/test_parse.py::test_a_wrong_value_is_refused_at_its_path
4. Every error is JSON with a request id and of a status that clients know:
    conformance/test_checklist.py::test_04_every_error_has_the_envelope_and_a_status_that_clients_know
    conformance/test_fuzz.py::test_every_answer_is_one_the_document_describes
    server/api/test_upscale.py::test_while_the_database_is_away_the_answer_is_503
    server/api/test_uploads.py::test_a_store_that_fails_is_502_and_leaves_the_key_unused
    server/http/test_uvicorn_server.py::test_what_is_no_http_gets_the_envelope_of_every_error
5. Credits are whole, untouched by a refusal, and spent once:
    server/api/test_upscale.py::test_without_credits_402_tells_whole_numbers_and_takes_none
    server/api/test_upscale.py::test_a_bad_picture_is_a_400_on_its_field_and_costs_nothing
    server/api/test_upscale.py::test_two_parallel_submissions_with_credits_for_one
6. A killed worker costs nobody a credit:
    journey/test_life_of_a_job.py::test_a_worker_killed_in_mid_job_costs_one_attempt_and_nothing_else
    journey/test_life_of_a_job.py::test_a_job_that_outlives_every_attempt_fails_and_is_refunded
7. Idempotency:
    server/api/test_upscale.py::test_twenty_parallel_duplicates_make_one_job
    server/api/test_upscale.py::test_the_same_key_and_request_replays_the_job_even_when_the_url_has_died
    server/api/test_upscale.py::test_the_same_key_with_another_request_is_409
    server/api/test_upscale.py::test_a_key_is_free_again_after_24_hours
    server/api/test_upscale.py::test_a_key_may_have_255_characters_and_not_256
    journey/test_life_of_a_job.py::test_an_api_killed_between_commit_and_answer_made_exactly_one_job
8. Webhooks: signatures, schedule, receivers that fail:
    conformance/test_checklist.py::test_08_a_receiver_that_hangs_redirects_and_fails_is_told_in_the_end
    test_signing.py::test_the_contracts_vectors_come_out_exactly
    server/webhooks/test_webhooks.py::test_the_key_can_sign_with_its_hexadecimal_digest
    server/webhooks/test_webhooks.py::test_six_attempts_at_the_times_of_the_contract_then_it_has_failed
    server/webhooks/test_webhooks.py::test_a_dead_receiver_holds_two_slots_and_delays_nobody
9. Pages of 250 jobs of one moment:
    server/api/test_jobs.py::test_250_jobs_of_one_moment_are_paged_without_gap_or_duplicate
    server/api/test_jobs.py::test_a_wrong_query_is_a_400_keyed_by_its_name
    wire/test_queries.py::test_a_cursor_with_any_one_character_changed_is_refused
10. Retention:
    server/api/test_files.py::test_an_expired_result_is_410_and_its_job_still_there
    server/jobs/test_lifecycle.py::test_purging_waits_for_the_retention
11. Limits make no job, and polling is never throttled by default:
    server/api/test_rate_limits.py::test_over_the_submissions_of_a_minute_is_429_and_makes_no_job
    server/api/test_upscale.py::test_too_many_waiting_jobs_is_429_with_retry_after_and_no_job
    server/api/test_rate_limits.py::test_by_default_polling_twenty_jobs_every_two_seconds_is_never_throttled
12. Nothing inside is reached for anybody outside:
    server/api/test_upscale.py::test_private_addresses_are_refused_for_picture_and_webhook
    server/api/test_upscale.py::test_a_name_that_leads_inside_is_refused_for_picture_and_webhook
    server/api/test_upscale.py::test_a_picture_whose_name_is_rebound_is_dialled_where_it_was_judged
    server/api/test_upscale.py::test_a_webhook_whose_name_is_rebound_is_judged_again_when_it_is_sent
    server/api/test_upscale.py::test_a_picture_that_redirects_inside_is_refused
13. Bombs and files over the limit:
    images/test_images.py::test_a_file_that_claims_2500_megapixels_is_refused_without_allocating_them
    server/api/test_uploads.py::test_a_file_over_25_mib_is_400_and_not_413
14. The OpenAPI document, and types made from it:
    conformance/test_clients.py::test_14_types_made_from_the_document_fit_a_client_and_catch_its_mistakes
    server/api/test_openapi.py::test_the_document_is_valid_openapi_3_1
    server/api/test_openapi.py::test_the_servers_answers_are_what_the_document_says
"""
