// A typed client of the types that openapi-typescript makes from GET /v2/openapi.json. It must compile: each
// `@ts-expect-error` below marks a mistake that the compiler must find.

import type { components, paths } from "./openapi.js";

type Schemas = components["schemas"];
type Request = Schemas["ImageUpscaleRequest"];
type Job = Schemas["Job"];
type Named =
  | Schemas["JobAccepted"]
  | Schemas["JobList"]
  | Schemas["Me"]
  | Schemas["ModelCatalog"]
  | Schemas["ModelCatalogEntry"]
  | Schemas["Upload"]
  | Schemas["ErrorResponse"]
  | Schemas["ValidationError"]
  | Schemas["InsufficientCredits"];
type ListQuery = NonNullable<paths["/v2/jobs"]["get"]["parameters"]["query"]>;
type ModelQuery = NonNullable<paths["/v2/models"]["get"]["parameters"]["query"]>;
type Accepted = paths["/v2/images/upscale"]["post"]["responses"][202]["content"]["application/json"];

const image = "https://example.com/a.png";

export const least: Request = { model: "clarity-upscale", clarityUpscaleParams: { image } };
export const most: Request = {
  model: "clarity-upscale",
  clarityUpscaleParams: {
    image,
    prompt: "leaves",
    negative_prompt: "blur",
    scale_factor: 2,
    creativity: 0.35,
    resemblance: 0.6,
    dynamic: 6,
    num_inference_steps: 18,
    sharpen: 0,
    output_format: "png",
    seed: 12345,
  },
  webhookUrl: "https://example.com/hook",
  webhookEvents: ["completed", "failed"],
};
export const query: ListQuery = { limit: 5, status: "COMPLETED", scope: "team", include_models: true };
export const images: ModelQuery = { modality: "image" };
export const models: Request["model"][] = ["clarity-upscale"];

export function outcome(job: Job, accepted: Accepted): string | null {
  if (job.id !== accepted.jobId) return null;
  const progress: number = job.progress;
  const cost: number = job.creditCost;
  switch (job.status) {
    case "QUEUED":
    case "PROCESSING":
      return `${progress} %`;
    case "COMPLETED":
      return job.result?.images[0] ?? null;
    case "FAILED":
    case "CANCELLED":
      return job.error ?? `${cost} credits`;
  }
}
export function left(me: Schemas["Me"], broke: Schemas["InsufficientCredits"]): number {
  return me.team.credits - (broke.creditsRequired - broke.creditsAvailable);
}
export function complaints(refusal: Schemas["ValidationError"]): string[] {
  return Object.values(refusal.details).flat();
}
export function named(value: Named): Named {
  return value;
}

// @ts-expect-error the image is required
export const nothing: Request = { model: "clarity-upscale", clarityUpscaleParams: {} };
// @ts-expect-error no such model
export const stranger: Request = { ...least, model: "clarity" };
// @ts-expect-error no such factor
export const factor: Request = { ...least, clarityUpscaleParams: { image, scale_factor: 3 } };
// @ts-expect-error no such parameter
export const typo: Request = { ...least, clarityUpscaleParams: { image, creativty: 1 } };
// @ts-expect-error no such state
export const state: Job["status"] = "DONE";
// @ts-expect-error no such scope
export const scope: ListQuery = { scope: "everybody" };
