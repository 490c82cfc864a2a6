// Use the published Node SDK from an upload to the result file. Prints what it returns as JSON.
//
//     node sdk.mjs SDK ORIGIN KEY IMAGE_FILE

import { pathToFileURL } from "node:url";

const [sdk, baseUrl, apiKey, file] = process.argv.slice(2);
const { Apiframe, ApiframeError } = await import(pathToFileURL(sdk).href);
const client = new Apiframe({ apiKey, baseUrl: `${baseUrl}/`, maxRetries: 0 });

const upload = await client.uploads.create({ file });
const request = {
  model: "clarity-upscale",
  clarityUpscaleParams: { image: upload.url, scale_factor: 2, creativity: 0.35, seed: 7 },
};
const accepted = await client.images.upscale(request, { idempotencyKey: "once" });
const replayed = await client.images.upscale(request, { idempotencyKey: "once" });
/** @type {string[]} */
const seen = [];
const onProgress = (/** @type {{ status: string }} */ job) => seen.push(job.status);
const job = await client.jobs.waitFor(accepted.jobId, { intervalMs: 200, onProgress });
const result = await fetch(job.result.images[0]);

/** Run a call that must fail. Returns the error. */
async function errorOf(/** @type {() => Promise<unknown>} */ call) {
  try {
    await call();
  } catch (error) {
    if (!(error instanceof ApiframeError)) throw error;
    const { name, status, message, details, requestId } = error;
    return { name, status, message, details, hasRequestId: Boolean(requestId) };
  }
  throw new Error("the call did not fail");
}

const stranger = new Apiframe({ apiKey: `afk_${"0".repeat(40)}`, baseUrl, maxRetries: 0 });
const params = { ...request.clarityUpscaleParams };
const errors = [
  await errorOf(() => client.images.upscale({ ...request, clarityUpscaleParams: { ...params, scale_factor: 3 } })),
  await errorOf(() => stranger.me()),
  await errorOf(() => client.jobs.list({ scope: "team", status: "DONE" })),
  await errorOf(() => client.jobs.get("00000000-0000-4000-8000-000000000000")),
  await errorOf(() =>
    client.images.upscale({ ...request, clarityUpscaleParams: { ...params, seed: 8 } }, { idempotencyKey: "once" }),
  ),
  await errorOf(() => client.images.generate({ model: "other", prompt: "x" })),
];

console.log(
  JSON.stringify({
    me: await client.me(),
    models: await client.models.list({ modality: "image" }),
    upload,
    accepted,
    replayed,
    job,
    seen,
    errors,
    jobs: await client.jobs.list({ limit: 1, include_models: true }),
    picture: Buffer.from(await result.arrayBuffer()).toString("base64"),
  }),
);
