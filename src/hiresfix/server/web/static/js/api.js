// Client of the public API. Only this module knows the API key, the error format and the event stream.

import { PAGE_DATA } from "./dom.js";
import { renderMessage } from "./error_messages.js";
import { t } from "./i18n.js";

const IMAGE_FIELD = /(^|\.)(image|file|url)$/;
const FIELD_WITHOUT_LABEL = /(^|\.)(image|file|url|scale_factor)$|^_root$/;
const MAX_RETRY_AFTER = 20; // seconds
const MAX_STREAMS = 2; // browsers open six connections to a server, and images need some of them
const FINAL_STATUSES = ["COMPLETED", "FAILED", "CANCELLED"];

/** @typedef {import("./error_messages.js").ServerMessage & { path: string }} Problem */

/** An error response, or no response (status 0). `summary` is for people, `detail` is the server's message. */
export class ApiError extends Error {
  /**
   * @param {number} status
   * @param {Record<string, any>} [body]
   * @param {number} [retryAfter] seconds
   */
  constructor(status, body = {}, retryAfter = 0) {
    super(body.error ?? "");
    this.status = status;
    this.body = body;
    this.retryAfter = retryAfter;
    /** @type {string} */
    this.code = body.code ?? "";
    /** @type {Problem[]} */
    this.problems = body.problems ?? [];
  }

  /** What is wrong and what to do. */
  get summary() {
    if (!this.status) return t("The server is not responding. Check your connection and that the server is running.");
    const isAboutImage = this.problems.length > 0 && this.problems.every(({ path }) => IMAGE_FIELD.test(path));
    const code = isAboutImage ? "invalid_picture" : this.code;
    return t(PAGE_DATA.errors[code] ?? PAGE_DATA.errors.internal_error);
  }

  /**
   * The server's message; empty if the summary says it all.
   * @returns {Child}
   */
  get detail() {
    if (this.code === "insufficient_credits") {
      const { creditsRequired: required, creditsAvailable: available } = this.body;
      return t("You need {required} credits, but you have {available}.", { required, available });
    }
    if (this.problems.length) {
      return this.problems.map((problem) => {
        const label = FIELD_WITHOUT_LABEL.test(problem.path) ? "" : `${problem.path.split(".").pop()}: `;
        return [label, renderMessage(problem), " "];
      });
    }
    const { reason, params } = this.body;
    return ["conflict", "forbidden"].includes(this.code)
      ? renderMessage({ message: this.message, reason, params })
      : "";
  }

  /**
   * Summary and detail.
   * @returns {Child}
   */
  get content() {
    return [this.summary, " ", this.detail];
  }
}

/** @type {string | null} */
let apiKey = null;
/** @type {(error: ApiError) => void} */
let handleUnauthorized = () => {};

export function setKey(/** @type {string | null} */ key) {
  apiKey = key;
}

export const hasKey = () => apiKey !== null;

/** Set the handler for a 401 answer to the current key. */
export function onUnauthorized(/** @type {(error: ApiError) => void} */ handler) {
  handleUnauthorized = handler;
}

/**
 * Send a request and return the parsed JSON. Waits and retries once after a 429. Throws ApiError.
 * @param {string} method
 * @param {string} path
 * @param {RequestOptions} [options]
 * @returns {Promise<any>}
 */
export async function call(method, path, options = {}) {
  const { json, body, signal, retry = true, as = apiKey } = options;
  const headers = { ...options.headers };
  if (as) headers["X-API-Key"] = as;
  if (json !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers, body: json === undefined ? body : JSON.stringify(json), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0);
  }
  if (response.ok) return response.status === 204 ? null : response.json();
  const error = await readError(response);
  if (error.status === 429 && retry && error.retryAfter <= MAX_RETRY_AFTER) {
    await sleep(error.retryAfter * 1000);
    return call(method, path, { ...options, retry: false, as });
  }
  if (error.status === 401 && as && as === apiKey) handleUnauthorized(error);
  throw error;
}

/** @type {(path: string, options?: RequestOptions) => Promise<any>} */
export const get = (path, options) => call("GET", path, options);
/** @type {(path: string, json?: unknown, options?: RequestOptions) => Promise<any>} */
export const post = (path, json, options = {}) => call("POST", path, { ...options, json });
/** @type {(path: string) => Promise<any>} */
export const remove = (path) => call("DELETE", path);

async function readError(/** @type {Response} */ response) {
  let body = {};
  try {
    body = await response.json();
  } catch {
    // The error page of a proxy: the status is enough.
  }
  return new ApiError(response.status, body, Number(response.headers.get("Retry-After")) || 1);
}

const sleep = (/** @type {number} */ milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** Return the URL of a file on this page's own origin, where scripts may read it. */
export function sameOriginUrl(/** @type {string} */ url) {
  const { pathname, search } = new URL(url, location.href);
  return pathname + search;
}

/** Download a file. Throws ApiError. */
export async function fetchFile(/** @type {string} */ url) {
  let response;
  try {
    response = await fetch(sameOriginUrl(url));
  } catch {
    throw new ApiError(0);
  }
  if (!response.ok) throw await readError(response);
  return response.blob();
}

export const isFinished = (/** @type {Job} */ job) => FINAL_STATUSES.includes(job.status);

const isPermanent = (/** @type {ApiError} */ error) => [400, 401, 403, 404].includes(error.status);

let openStreams = 0;

/**
 * Report every change of a job until it is finished: by events if possible, else by polling.
 * @param {string} id
 * @param {(job: Job) => void} onChange
 * @param {AbortSignal} signal
 */
export async function watchJob(id, onChange, signal) {
  let isOver = false;
  const report = (/** @type {Job} */ job) => {
    isOver = isFinished(job);
    onChange(job);
  };
  const attempt = async (/** @type {() => Promise<void>} */ read) => {
    try {
      await read();
    } catch (error) {
      if (signal.aborted || isPermanent(error)) throw error; // otherwise the server may be back in a moment
    }
  };
  let delay = 1000;
  while (!signal.aborted) {
    if (openStreams < MAX_STREAMS) {
      openStreams += 1;
      await attempt(() => readEvents(id, report, signal)).finally(() => {
        openStreams -= 1;
      });
      if (isOver) return;
    }
    await sleep(delay);
    delay = Math.min(delay * 1.5, 5000);
    await attempt(async () => report(await get(`/v2/jobs/${id}`, { signal })));
    if (isOver) return;
  }
}

/** @type {(id: string, report: (job: Job) => void, signal: AbortSignal) => Promise<void>} */
async function readEvents(id, report, signal) {
  const headers = { "X-API-Key": apiKey ?? "", Accept: "text/event-stream" };
  const response = await fetch(`/v2/jobs/${id}/events`, { headers, signal });
  if (!response.ok || !response.body) throw await readError(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for await (const job of parseEvents(reader)) {
      report(job);
      if (isFinished(job)) return;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/**
 * Yield the job of each server-sent event.
 * @param {ReadableStreamDefaultReader<string>} reader
 * @returns {AsyncGenerator<Job>}
 */
async function* parseEvents(reader) {
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    buffer += value;
    const events = buffer.split(/\r?\n\r?\n/);
    buffer = events.pop() ?? "";
    for (const data of events.map(eventData).filter(Boolean)) yield JSON.parse(data);
  }
}

/** Return the data lines of a server-sent event. */
function eventData(/** @type {string} */ event) {
  const lines = event.split(/\r?\n/).filter((line) => line.startsWith("data:"));
  return lines.map((line) => line.slice(5).trimStart()).join("\n");
}
