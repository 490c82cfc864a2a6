// What the published Node SDK does on the wire, with nothing but fetch: key in X-API-Key, one multipart part `file`
// without a type of its own, numbers as numbers, an Idempotency-Key, polling. Prints what it was answered as JSON.
//
//     node client.mjs ORIGIN KEY PICTURE_FILE

import { readFile } from "node:fs/promises";
import { setTimeout } from "node:timers/promises";

const [origin, key, file] = process.argv.slice(2);

async function ask(path, { body, ...more } = {}) {
  const isForm = body instanceof FormData;
  const headers = { "x-api-key": key, ...(body && !isForm && { "content-type": "application/json" }), ...more };
  const method = body ? "POST" : "GET";
  const response = await fetch(new URL(path, origin), {
    method, headers, redirect: "error", body: body && !isForm ? JSON.stringify(body) : body,
  });
  if (!response.headers.get("content-type").includes("application/json")) throw new Error(`${path}: not JSON`);
  return { status: response.status, requestId: response.headers.get("x-request-id"), body: await response.json() };
}

const form = new FormData();
form.append("file", new Blob([await readFile(file)]), "upload");
const upload = await ask("/v2/uploads", { body: form });

const request = {
  model: "clarity-upscale",
  clarityUpscaleParams: { image: upload.body.url, scale_factor: 2, creativity: 0.35, seed: 7 },
};
const accepted = await ask("/v2/images/upscale", { body: request, "idempotency-key": "once" });
const replayed = await ask("/v2/images/upscale", { body: request, "idempotency-key": "once" });

let job;
do {
  await setTimeout(200);
  job = await ask(`/v2/jobs/${accepted.body.jobId}`);
} while (!["COMPLETED", "FAILED", "CANCELLED"].includes(job.body.status));
const picture = await fetch(job.body.result.images[0]);

console.log(JSON.stringify({
  me: await ask("/v2/me"),
  models: await ask("/v2/models?modality=image"),
  upload, accepted, replayed, job,
  jobs: await ask("/v2/jobs?limit=1&include_models=true"),
  picture: {
    status: picture.status,
    type: picture.headers.get("content-type"),
    bytes: Buffer.from(await picture.arrayBuffer()).toString("base64"),
  },
}));
