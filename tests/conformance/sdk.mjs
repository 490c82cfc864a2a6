// The published Node SDK itself, from a submission to the file. Prints what it gave its caller as JSON.
//
//     node sdk.mjs SDK ORIGIN KEY PICTURE_FILE

import { pathToFileURL } from "node:url";

const [sdk, baseUrl, apiKey, file] = process.argv.slice(2);
const { Apiframe, ApiframeError } = await import(pathToFileURL(sdk));
const client = new Apiframe({ apiKey, baseUrl: `${baseUrl}/`, maxRetries: 0 });

const upload = await client.uploads.create({ file });
const request = {
  model: "clarity-upscale",
  clarityUpscaleParams: { image: upload.url, scale_factor: 2, creativity: 0.35, seed: 7 },
};
const accepted = await client.images.upscale(request, { idempotencyKey: "once" });
const replayed = await client.images.upscale(request, { idempotencyKey: "once" });
const seen = [];
const job = await client.jobs.waitFor(accepted.jobId, { intervalMs: 200, onProgress: (now) => seen.push(now.status) });
const picture = await fetch(job.result.images[0]);

async function refused(work) {
  try {
    await work();
  } catch (error) {
    if (!(error instanceof ApiframeError)) throw error;
    const { name, status, message, details, requestId } = error;
    return { name, status, message, details, hasRequestId: Boolean(requestId) };
  }
  throw new Error("was not refused");
}

const stranger = new Apiframe({ apiKey: "afk_" + "0".repeat(40), baseUrl, maxRetries: 0 });
const params = { ...request.clarityUpscaleParams };
const errors = [
  await refused(() => client.images.upscale({ ...request, clarityUpscaleParams: { ...params, scale_factor: 3 } })),
  await refused(() => stranger.me()),
  await refused(() => client.jobs.list({ scope: "team", status: "DONE" })),
  await refused(() => client.jobs.get("00000000-0000-4000-8000-000000000000")),
  await refused(() =>
    client.images.upscale({ ...request, clarityUpscaleParams: { ...params, seed: 8 } }, { idempotencyKey: "once" })),
  await refused(() => client.images.generate({ model: "other", prompt: "x" })),
];

console.log(JSON.stringify({
  me: await client.me(),
  models: await client.models.list({ modality: "image" }),
  upload, accepted, replayed, job, seen, errors,
  jobs: await client.jobs.list({ limit: 1, include_models: true }),
  picture: Buffer.from(await picture.arrayBuffer()).toString("base64"),
}));
