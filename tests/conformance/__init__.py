"""The contract's checklist (contract.md 17), and for each of its items the tests that show it.

`test_proofs.py` holds this list against the tests there are, so that renaming one without it is noticed.

1. The snippets of the published pages run as they stand:
    conformance/test_clients.py::test_01_published_snippets_run
    wire/test_parse.py::test_published_snippets_are_accepted
2. The published SDK, from an upload to the file:
    conformance/test_clients.py::test_02_sdk_requests_work
    conformance/test_clients.py::test_02_published_sdk_works
3. Spellings of one value are one job, others are 400 at their path:
    conformance/test_checklist.py::test_03_factor_spellings_are_one_job
    wire/test_parse.py::test_spelling_becomes_canonical_value
    wire/test_parse.py::test_wrong_value_is_reported_at_its_path
4. Every error is JSON with a request id and of a status that clients know:
    conformance/test_checklist.py::test_04_errors_have_known_status_and_body
    conformance/test_fuzz.py::test_answers_are_documented
    server/api/test_upscale.py::test_unavailable_database_is_503
    server/api/test_uploads.py::test_failed_store_is_502_and_keeps_key_unused
    server/http/test_uvicorn_server.py::test_invalid_http_gets_a_json_error
5. Credits are whole, untouched by a refusal, and spent once:
    server/api/test_upscale.py::test_402_has_integer_credits
    server/api/test_upscale.py::test_bad_image_is_400_without_charge
    server/api/test_upscale.py::test_parallel_submissions_cannot_overspend
6. A killed worker costs nobody a credit:
    journey/test_life_of_a_job.py::test_killed_worker_costs_one_attempt
    journey/test_life_of_a_job.py::test_job_without_attempts_left_is_refunded
7. Idempotency:
    server/api/test_upscale.py::test_twenty_parallel_duplicates_make_one_job
    server/api/test_upscale.py::test_replay_works_after_url_is_gone
    server/api/test_upscale.py::test_reused_key_is_409
    server/api/test_upscale.py::test_idempotency_key_expires_after_24_hours
    server/api/test_upscale.py::test_idempotency_key_length_limit
    journey/test_life_of_a_job.py::test_api_killed_before_answering_creates_one_job
8. Webhooks: signatures, schedule, receivers that fail:
    conformance/test_checklist.py::test_08_failing_receiver_gets_the_event
    test_signing.py::test_signatures_match_contract_vectors
    server/webhooks/test_webhooks.py::test_hex_signing_mode_verifies
    server/webhooks/test_webhooks.py::test_six_scheduled_attempts_then_failed
    server/webhooks/test_webhooks.py::test_dead_receiver_occupies_two_slots
9. Pages of 250 jobs of one moment:
    server/api/test_jobs.py::test_250_jobs_page_without_gaps
    server/api/test_jobs.py::test_wrong_query_is_400
    wire/test_queries.py::test_changed_cursor_is_refused
10. Retention:
    server/api/test_files.py::test_expired_result_is_410
    server/jobs/test_lifecycle.py::test_purge_waits_for_retention
11. Limits make no job, and polling is never throttled by default:
    server/api/test_rate_limits.py::test_too_many_submissions_are_429
    server/api/test_upscale.py::test_full_team_queue_is_429
    server/api/test_rate_limits.py::test_polling_twenty_jobs_is_not_throttled
12. Nothing inside is reached for anybody outside:
    server/api/test_upscale.py::test_private_addresses_are_refused
    server/api/test_upscale.py::test_names_with_private_addresses_are_refused
    server/api/test_upscale.py::test_rebound_image_name_uses_checked_address
    server/api/test_upscale.py::test_rebound_webhook_name_is_checked_again
    server/api/test_upscale.py::test_redirect_to_private_address_is_refused
13. Bombs and files over the limit:
    images/test_images.py::test_forged_huge_size_is_rejected_without_allocation
    server/api/test_uploads.py::test_file_over_25_mib_is_400
14. The OpenAPI document, and types made from it:
    conformance/test_clients.py::test_14_generated_types_fit_clients
    server/api/test_openapi.py::test_document_is_valid_openapi_3_1
    server/api/test_openapi.py::test_answers_match_the_document
"""
