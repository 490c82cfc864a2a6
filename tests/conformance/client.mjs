// Send what the published Node SDK sends, with nothing but fetch: the key in X-API-Key, one multipart part `file`
// without a type of its own, numbers as numbers, an Idempotency-Key, polling. Prints the answers as JSON.
//
//     node client.mjs ORIGIN KEY IMAGE_FILE

import { readFile } from "node:fs/promises";
import { setTimeout } from "node:timers/promises";

const [origin, key, file] = process.argv.slice(2);

/**
 * Send a request: POST if it has a body, otherwise GET.
 * @param {string} path
 * @param {{ body?: object, [header: string]: any }} [options] the body, and further headers
 */
async function send(path, { body, ...more } = {}) {
  const isForm = body instanceof FormData;
  const isJson = body && !isForm;
  const headers = { "x-api-key": key, ...(isJson && { "content-type": "application/json" }), ...more };
  const response = await fetch(new URL(path, origin), {
    method: body ? "POST" : "GET",
    headers,
    redirect: "error",
    body: isForm ? body : body && JSON.stringify(body),
  });
  const { status } = response;
  if (!response.headers.get("content-type")?.includes("application/json")) throw new Error(`${path}: not JSON`);
  /** @type {any} */
  const answer = await response.json();
  return { status, requestId: response.headers.get("x-request-id"), body: answer };
}

const form = new FormData();
form.append("file", new Blob([await readFile(file)]), "upload");
const upload = await send("/v2/uploads", { body: form });

const request = {
  model: "clarity-upscale",
  clarityUpscaleParams: { image: upload.body.url, scale_factor: 2, creativity: 0.35, seed: 7 },
};
const accepted = await send("/v2/images/upscale", { body: request, "idempotency-key": "once" });
const replayed = await send("/v2/images/upscale", { body: request, "idempotency-key": "once" });

let job = await send(`/v2/jobs/${accepted.body.jobId}`);
while (!["COMPLETED", "FAILED", "CANCELLED"].includes(job.body.status)) {
  await setTimeout(200);
  job = await send(`/v2/jobs/${accepted.body.jobId}`);
}
const result = await fetch(job.body.result.images[0]);

console.log(
  JSON.stringify({
    me: await send("/v2/me"),
    models: await send("/v2/models?modality=image"),
    upload,
    accepted,
    replayed,
    job,
    jobs: await send("/v2/jobs?limit=1&include_models=true"),
    picture: {
      status: result.status,
      type: result.headers.get("content-type"),
      bytes: Buffer.from(await result.arrayBuffer()).toString("base64"),
    },
  }),
);
