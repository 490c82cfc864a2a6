// Pictures that were handed in and what is made of them: uploading, submitting, following, cancelling. It shows
// nothing; whoever wants to know listens for "change". What it knows survives a reload (see keep.js).

import { call, file, follow, get, isOver, post, remove } from "./api.js";
import { FACTS } from "./dom.js";
import * as keep from "./keep.js";
import { t } from "./text.js";

const THUMBNAIL = 320; // pixels of the longer side
const LARGEST_FOR_THUMBNAIL = 40e6; // pixels; decoding more only to show it small is not worth the memory

// crypto.randomUUID exists under https and on loopback only.
const unique = () => crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`;

/** A picture of a few kilobytes, or null where the browser cannot read this kind. */
async function thumbnail(blob) {
  try {
    const bitmap = await createImageBitmap(blob);
    const scale = Math.min(1, THUMBNAIL / Math.max(bitmap.width, bitmap.height));
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [Math.max(1, Math.round(bitmap.width * scale)), Math.max(1, Math.round(bitmap.height * scale))];
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    bitmap.close();
    return await new Promise((resolve) => canvas.toBlob(resolve, "image/webp", 0.8));
  } catch {
    return null;
  }
}

export class Work extends EventTarget {
  constructor() {
    super();
    this.pictures = new Map(); // id -> { id, at, name, blob, url, upload, expires, width, height, error, busy }
    this.runs = new Map(); // job id -> { id, at, picture, model, params, preset, group, price, job, thumb, error }
    this.addresses = new Map(); // what was made from blobs, to be let go of
    this.aborts = new Map();
  }

  #changed(what) {
    this.dispatchEvent(new CustomEvent("change", { detail: what }));
  }

  /** What was there before the page was loaded. `open`: pictures of the bench. */
  async restore(open) {
    for (const run of await keep.all("runs")) this.runs.set(run.id, run);
    for (const picture of await keep.all("pictures")) {
      if (open.includes(picture.id)) this.pictures.set(picture.id, { ...picture, busy: false, error: null });
    }
    await keep.prune(new Set(open));
    this.#changed("restored");
  }

  /** Follow what was unfinished; needs somebody signed in. */
  resume() {
    for (const run of this.runs.values()) if (!run.job || !isOver(run.job)) this.follow(run);
  }

  // Pictures

  async add({ name, blob = null, url = null }) {
    const picture = { id: unique(), at: Date.now(), name, blob, url, upload: null, expires: 0, width: 0, height: 0, error: null, busy: false };
    this.pictures.set(picture.id, picture);
    if (blob) await this.measure(picture);
    this.#store(picture);
    this.#changed("pictures");
    return picture;
  }

  /** Find out how large the browser thinks it is; a kind that it cannot show stays without. */
  async measure(picture) {
    try {
      const bitmap = await createImageBitmap(picture.blob);
      [picture.width, picture.height] = [bitmap.width, bitmap.height];
      bitmap.close();
      picture.visible = true;
    } catch {
      picture.visible = false;
    }
  }

  #store(picture) {
    const { busy: _busy, error: _error, uploading: _uploading, ...kept } = picture;
    keep.put("pictures", kept);
  }

  removePicture(id) {
    this.pictures.delete(id);
    keep.drop("pictures", id);
    this.#changed("pictures");
  }

  /** A picture that is not on the bench but kept; null if it is not. */
  async recall(id) {
    if (this.pictures.has(id)) return this.pictures.get(id);
    const kept = (await keep.all("pictures")).find((picture) => picture.id === id);
    return kept ? { ...kept, busy: false, error: null } : null;
  }

  addressOf(key, blob) {
    if (!this.addresses.has(key)) this.addresses.set(key, URL.createObjectURL(blob));
    return this.addresses.get(key);
  }

  /** The address by which a submission can name the picture; uploads it, once in a while. Raises ApiError. */
  async uploaded(picture) {
    if (picture.upload && picture.expires > Date.now() + 60_000) return picture.upload;
    picture.uploading ??= this.#upload(picture).finally(() => {
      picture.uploading = null;
      picture.busy = false;
      this.#changed("pictures");
    });
    return picture.uploading;
  }

  async #upload(picture) {
    picture.busy = true;
    picture.error = null;
    this.#changed("pictures");
    try {
      let kept;
      if (picture.blob) {
        const form = new FormData();
        form.append("file", picture.blob, picture.name || "picture");
        kept = await call("POST", "/v2/uploads", { body: form });
      } else {
        kept = await post("/v2/uploads", { url: picture.url });
        picture.blob = await file(kept.url);
        await this.measure(picture);
      }
      [picture.upload, picture.expires] = [kept.url, Date.parse(kept.expiresAt)];
      this.#store(picture);
      return picture.upload;
    } catch (error) {
      picture.error = error;
      throw error;
    }
  }

  // Runs

  /** What a submission says. */
  body(model, image, params) {
    return { model: model.id, [model.paramsKey]: { image, ...params } };
  }

  async preview(model, picture, params) {
    const image = await this.uploaded(picture);
    return post("/v2/images/upscale?dryRun=true", this.body(model, image, params));
  }

  /** Submit; returns the run. Raises ApiError, and then nothing was charged. */
  async submit(model, picture, params, about) {
    const image = await this.uploaded(picture);
    const headers = { "Idempotency-Key": unique() };
    const body = this.body(model, image, params);
    let accepted;
    try {
      accepted = await post("/v2/images/upscale", body, { headers });
    } catch (error) {
      if (error.status) throw error;
      accepted = await post("/v2/images/upscale", body, { headers }); // the answer was lost; the same key finds the job
    }
    const run = { id: accepted.jobId, at: Date.now(), picture: picture.id, name: picture.name, model: model.id, params, ...about, price: null, job: null, thumb: null };
    this.runs.set(run.id, run);
    this.#keepRun(run);
    this.#changed("runs");
    this.follow(run);
    return run;
  }

  #keepRun({ error: _error, loading: _loading, ...run }) {
    keep.put("runs", run);
  }

  async follow(run) {
    if (this.aborts.has(run.id)) return;
    const abort = new AbortController();
    this.aborts.set(run.id, abort);
    try {
      await follow(run.id, (job) => this.#saw(run, job), abort.signal);
    } catch (error) {
      if (!abort.signal.aborted) {
        if (error.status === 404) this.forget(run.id); // another account's, or a new server
        else run.error = error;
        this.#changed("runs");
      }
    } finally {
      this.aborts.delete(run.id);
    }
  }

  #saw(run, job) {
    const ended = isOver(job) && !(run.job && isOver(run.job));
    run.job = job;
    run.price ??= job.creditCost || null;
    this.#keepRun(run);
    this.#changed("runs");
    if (ended) this.dispatchEvent(new CustomEvent("end", { detail: run }));
  }

  async cancel(run) {
    this.#saw(run, await post(`/v2/jobs/${run.id}/cancel`, undefined));
    return run.job;
  }

  async deleteFiles(run) {
    const job = await remove(`/v2/jobs/${run.id}/files`);
    run.thumb = null;
    this.#forgetAddress(run.id);
    this.#saw(run, job);
  }

  forget(id) {
    this.runs.delete(id);
    keep.drop("runs", id);
  }

  #forgetAddress(id) {
    for (const key of [`result-${id}`, `thumb-${id}`]) {
      if (this.addresses.has(key)) URL.revokeObjectURL(this.addresses.get(key));
      this.addresses.delete(key);
    }
  }

  /** Jobs of the server's list become runs, also those of other browsers. Returns the cursor of what follows. */
  async list(cursor) {
    const page = await get(`/v2/jobs?limit=24${cursor ? `&cursor=${encodeURIComponent(cursor)}` : ""}`);
    for (const job of page.jobs) {
      const run = this.runs.get(job.id) ?? { id: job.id, at: Date.parse(job.createdAt), picture: null, name: "", model: job.model, params: null, thumb: null };
      run.job = job;
      run.listed = true;
      this.runs.set(job.id, run);
      if (!isOver(job)) this.follow(run);
    }
    this.#changed("runs");
    return page.nextCursor;
  }

  /** The result as a blob's address, loaded once. Raises ApiError. */
  async result(run) {
    const key = `result-${run.id}`;
    if (!this.addresses.has(key)) {
      run.loading ??= file(run.job.result.images[0]).finally(() => (run.loading = null));
      const blob = await run.loading;
      this.addressOf(key, blob);
      if (!run.thumb) await this.#makeThumbnail(run, blob);
    }
    return this.addresses.get(key);
  }

  async #makeThumbnail(run, blob) {
    run.thumb = await thumbnail(blob);
    if (run.thumb) {
      this.#keepRun(run);
      this.#changed("thumbs");
    }
  }

  /** A small picture of the result, made in the browser from the file itself; null if there is none to be had. */
  async small(run) {
    if (!run.thumb && run.job?.status === "COMPLETED" && !run.job.expired && run.job.width * run.job.height <= LARGEST_FOR_THUMBNAIL) {
      await this.#makeThumbnail(run, await file(run.job.result.images[0]));
    }
    return run.thumb ? this.addressOf(`thumb-${run.id}`, run.thumb) : null;
  }

  /** Everything of a run that its list lacks: the parameters. */
  async input(run) {
    if (run.params) return run.params;
    const job = await get(`/v2/jobs/${run.id}`);
    const { image: _image, ...params } = job.input ?? {};
    return (run.params = params);
  }

  /** Stop following; what runs goes on at the server. */
  leave() {
    for (const abort of this.aborts.values()) abort.abort();
    this.aborts.clear();
    this.runs.clear();
    this.#changed("runs");
  }
}

/** What is happening to a job, in words: its stage, how many are before it, how long it takes. */
export function stage(job) {
  if (!job) return t("Sending …");
  if (job.status === "QUEUED") {
    return job.queuePosition > 1 ? t("In the queue, {n} before this one", { n: job.queuePosition - 1 }) : t("Next in the queue");
  }
  if (job.status === "PROCESSING") return job.progress >= 97 ? t("Saving the result") : job.progress < 3 ? t("Starting") : t("Enlarging");
  return FACTS.states[job.status];
}
