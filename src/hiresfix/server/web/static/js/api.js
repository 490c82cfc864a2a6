// The public API as the studio uses it: one place that knows the key, the errors and the event stream.

import { FACTS } from "./dom.js";
import { t } from "./text.js";
import { told } from "./told.js";

const texts = FACTS.errors;

/** What the server, or the way to it, had against a request. `explained` is for people, `detail` the server's words. */
export class ApiError extends Error {
  constructor(status, body = {}, retryAfter = 0) {
    super(body.error ?? "");
    this.status = status;
    this.code = body.code ?? "";
    this.body = body;
    this.details = body.details ?? {};
    this.retryAfter = retryAfter;
  }

  get explained() {
    if (!this.status) return t("The server does not answer. Check that it runs and that you are online.");
    const paths = Object.keys(this.details);
    const aboutPicture = paths.length > 0 && paths.every((path) => /(^|\.)(image|file|url)$/.test(path));
    const code = aboutPicture ? "invalid_picture" : this.code;
    return t(texts[code] ?? texts.internal_error);
  }

  /** In the server's own words, to be put into an element; empty where the explanation says it all. */
  get detail() {
    const lines = Object.entries(this.details).flatMap(([path, messages]) =>
      messages.map((message) => [/(^|\.)(image|file|url|scale_factor)$|^_root$/.test(path) ? "" : `${path.split(".").pop()}: `, told(message), " "]),
    );
    if (this.code === "insufficient_credits") {
      return t("{required} credits are needed, {available} are there.", { required: this.body.creditsRequired, available: this.body.creditsAvailable });
    }
    return lines.length ? lines : ["conflict", "forbidden"].includes(this.code) ? told(this.message) : "";
  }

  /** Both. */
  get text() {
    return [this.explained, " ", this.detail];
  }
}

let key = null;
let onRefused = () => {};

export const setKey = (value) => (key = value);
export const hasKey = () => key !== null;

/** What to do when a key that worked is refused. */
export const whenRefused = (work) => (onRefused = work);

/** JSON in, JSON out. Raises ApiError. A 429 is waited for once, as long as the server says. */
export async function call(method, path, { json, body, headers = {}, signal, patient = true, as = key } = {}) {
  const given = { ...headers };
  if (as) given["X-API-Key"] = as;
  if (json !== undefined) given["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers: given, body: json === undefined ? body : JSON.stringify(json), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0);
  }
  if (response.ok) return response.status === 204 ? null : response.json();
  const error = await refusal(response);
  if (error.status === 429 && patient && error.retryAfter <= 20) {
    await pause(error.retryAfter * 1000);
    return call(method, path, { json, body, headers, signal, patient: false, as });
  }
  if (error.status === 401 && as && as === key) onRefused(error);
  throw error;
}

export const get = (path, more) => call("GET", path, more);
export const post = (path, json, more = {}) => call("POST", path, { ...more, json });
export const remove = (path) => call("DELETE", path);

async function refusal(response) {
  let body = {};
  try {
    body = await response.json();
  } catch {
    // A proxy's page: the status says enough.
  }
  return new ApiError(response.status, body, Number(response.headers.get("Retry-After")) || 1);
}

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** The same file at this page's own origin, which is where it may be read from. */
export function here(url) {
  const parsed = new URL(url, location.href);
  return parsed.pathname + parsed.search;
}

/** A file's bytes. Raises ApiError. */
export async function file(url) {
  let response;
  try {
    response = await fetch(here(url));
  } catch {
    throw new ApiError(0);
  }
  if (!response.ok) throw await refusal(response);
  return response.blob();
}

const ENDS = ["COMPLETED", "FAILED", "CANCELLED"];
const isFinal = (error) => [400, 401, 403, 404].includes(error.status);
export const isOver = (job) => ENDS.includes(job.status);

const MOST_STREAMS = 2; // browsers open six connections to a server, and pictures need some
let streams = 0;

/** Tell `look` of every change of a job until it is over, by events if possible, by asking if not. Returns the end. */
export async function follow(id, look, signal) {
  let job = null;
  const tell = (found) => {
    job = found;
    look(found);
  };
  let wait = 1000;
  while (!signal.aborted) {
    if (streams < MOST_STREAMS) {
      streams += 1;
      try {
        await listen(id, tell, signal);
      } catch (error) {
        if (signal.aborted || isFinal(error)) throw error;
      } finally {
        streams -= 1;
      }
      if (job && isOver(job)) return job;
    }
    await pause(wait);
    wait = Math.min(wait * 1.5, 5000);
    try {
      tell(await get(`/v2/jobs/${id}`, { signal }));
      if (isOver(job)) return job;
    } catch (error) {
      if (signal.aborted || isFinal(error)) throw error; // else: away for a moment
    }
  }
  return job;
}

async function listen(id, tell, signal) {
  const response = await fetch(`/v2/jobs/${id}/events`, { headers: { "X-API-Key": key, Accept: "text/event-stream" }, signal });
  if (!response.ok) throw await refusal(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      text += value;
      const events = text.split(/\r?\n\r?\n/);
      text = events.pop();
      for (const event of events) {
        const data = event.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart());
        if (!data.length) continue;
        const job = JSON.parse(data.join("\n"));
        tell(job);
        if (isOver(job)) return;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
