// Source images and what is made of them: upload, submit, watch, cancel. Draws nothing: listen for "change".
// Images and runs survive a reload (see storage.js).

import { call, fetchFile, get, isFinished, post, remove, watchJob } from "./api.js";
import { PAGE_DATA } from "./dom.js";
import { t } from "./i18n.js";
import * as storage from "./storage.js";

const THUMBNAIL_SIZE = 320; // pixels of the longer side
const MAX_THUMBNAIL_SOURCE = 40e6; // pixels; decoding more takes too much memory for a thumbnail
const UPLOAD_MARGIN = 60_000; // milliseconds that an upload must remain valid

// crypto.randomUUID exists only on https and on loopback.
const newId = () => crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`;

/**
 * Make a thumbnail of a few kilobytes.
 * @param {Blob} blob
 * @returns {Promise<Blob | null>} null if the browser cannot decode the image
 */
async function makeThumbnail(blob) {
  try {
    const bitmap = await createImageBitmap(blob);
    const scale = Math.min(1, THUMBNAIL_SIZE / Math.max(bitmap.width, bitmap.height));
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.round(bitmap.width * scale));
    canvas.height = Math.max(1, Math.round(bitmap.height * scale));
    const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    bitmap.close();
    return await new Promise((resolve) => canvas.toBlob(resolve, "image/webp", 0.8));
  } catch {
    return null;
  }
}

export class Jobs extends EventTarget {
  constructor() {
    super();
    /** @type {Map<string, SourceImage>} images in the workspace, by ID */
    this.images = new Map();
    /** @type {Map<string, Run>} by job ID */
    this.runs = new Map();
    /** @type {Map<string, string>} object URLs of blobs */
    this.objectUrls = new Map();
    /** @type {Map<string, AbortController>} of the runs that are watched */
    this.watchers = new Map();
  }

  #notify(/** @type {"images" | "runs" | "thumbnails"} */ detail) {
    this.dispatchEvent(new CustomEvent("change", { detail }));
  }

  /** Load what an earlier visit left. `open`: IDs of the images in the workspace. */
  async restore(/** @type {string[]} */ open) {
    for (const { picture, ...run } of await storage.loadAll("runs")) {
      this.runs.set(run.id, { ...run, imageId: picture });
    }
    for (const image of await storage.loadAll("images")) {
      if (open.includes(image.id)) this.images.set(image.id, { ...image, busy: false, error: null });
    }
    await storage.deleteOldImages(new Set(open));
    this.#notify("images");
  }

  /** Watch all unfinished runs. Needs a signed-in user. */
  resume() {
    for (const run of this.runs.values()) if (!run.job || !isFinished(run.job)) this.watch(run);
  }

  // Images

  /**
   * Add an image from a file or from a URL.
   * @param {{ name: string, blob?: Blob | null, url?: string | null }} source
   */
  async addImage({ name, blob = null, url = null }) {
    /** @type {SourceImage} */
    const image = {
      id: newId(),
      at: Date.now(),
      name,
      blob,
      url,
      upload: null,
      expires: 0,
      width: 0,
      height: 0,
      error: null,
      busy: false,
    };
    this.images.set(image.id, image);
    if (blob) await this.#measure(image, blob);
    this.#saveImage(image);
    this.#notify("images");
    return image;
  }

  /** Read the size. A format that the browser cannot show has none. */
  async #measure(/** @type {SourceImage} */ image, /** @type {Blob} */ blob) {
    try {
      const bitmap = await createImageBitmap(blob);
      image.width = bitmap.width;
      image.height = bitmap.height;
      bitmap.close();
      image.visible = true;
    } catch {
      image.visible = false;
    }
  }

  #saveImage(/** @type {SourceImage} */ { busy: _busy, error: _error, uploading: _uploading, ...image }) {
    storage.put("images", image);
  }

  removeImage(/** @type {string} */ id) {
    this.images.delete(id);
    storage.remove("images", id);
    this.#notify("images");
  }

  /** Return an image from the workspace or from storage, or null. */
  async findImage(/** @type {string} */ id) {
    const image = this.images.get(id);
    if (image) return image;
    const stored = (await storage.loadAll("images")).find((entry) => entry.id === id);
    return stored ? /** @type {SourceImage} */ ({ ...stored, busy: false, error: null }) : null;
  }

  /** Return the object URL of a blob; the same one for the same key. */
  objectUrl(/** @type {string} */ key, /** @type {Blob} */ blob) {
    const url = this.objectUrls.get(key) ?? URL.createObjectURL(blob);
    this.objectUrls.set(key, url);
    return url;
  }

  /**
   * Upload an image unless an upload is still valid. Returns its URL for requests. Throws ApiError.
   * @param {SourceImage} image
   * @returns {Promise<string>}
   */
  async upload(image) {
    if (image.upload && image.expires > Date.now() + UPLOAD_MARGIN) return image.upload;
    image.uploading ??= this.#upload(image).finally(() => {
      image.uploading = null;
      image.busy = false;
      this.#notify("images");
    });
    return image.uploading;
  }

  async #upload(/** @type {SourceImage} */ image) {
    image.busy = true;
    image.error = null;
    this.#notify("images");
    try {
      let upload;
      if (image.blob) {
        const form = new FormData();
        form.append("file", image.blob, image.name || "image");
        upload = await call("POST", "/v2/uploads", { body: form });
      } else {
        upload = await post("/v2/uploads", { url: image.url });
        image.blob = await fetchFile(upload.url);
        await this.#measure(image, image.blob);
      }
      image.upload = upload.url;
      image.expires = Date.parse(upload.expiresAt);
      this.#saveImage(image);
      return upload.url;
    } catch (error) {
      image.error = error;
      throw error;
    }
  }

  // Runs: a job as this browser knows it

  /** @type {(model: Model, imageUrl: string, params: Params) => object} */
  requestBody(model, imageUrl, params) {
    return { model: model.id, [model.paramsKey]: { image: imageUrl, ...params } };
  }

  /**
   * Ask for sizes, price and time of a job without submitting it.
   * @param {Model} model
   * @param {SourceImage} image
   * @param {Params} params
   * @returns {Promise<Estimate>}
   */
  async estimate(model, image, params) {
    const imageUrl = await this.upload(image);
    return post("/v2/images/upscale?dryRun=true", this.requestBody(model, imageUrl, params));
  }

  /**
   * Submit a job and watch it. Throws ApiError if nothing was charged.
   * @param {Model} model
   * @param {SourceImage} image
   * @param {Params} params
   * @param {{ preset: string | null, group: string }} details stored with the run
   */
  async submit(model, image, params, details) {
    const imageUrl = await this.upload(image);
    const headers = { "Idempotency-Key": newId() };
    const body = this.requestBody(model, imageUrl, params);
    let accepted;
    try {
      accepted = await post("/v2/images/upscale", body, { headers });
    } catch (error) {
      if (error.status) throw error;
      accepted = await post("/v2/images/upscale", body, { headers }); // the answer was lost; the key finds the same job
    }
    const run = { ...newRun(accepted.jobId, model.id), imageId: image.id, name: image.name, params, ...details };
    this.runs.set(run.id, run);
    this.#saveRun(run);
    this.#notify("runs");
    this.watch(run);
  }

  /** Save a run. IndexedDB has the image's ID as `picture`. */
  #saveRun(/** @type {Run} */ { error: _error, loading: _loading, imageId, ...run }) {
    storage.put("runs", { ...run, picture: imageId });
  }

  async watch(/** @type {Run} */ run) {
    if (this.watchers.has(run.id)) return;
    const watcher = new AbortController();
    this.watchers.set(run.id, watcher);
    try {
      await watchJob(run.id, (job) => this.#update(run, job), watcher.signal);
    } catch (error) {
      if (watcher.signal.aborted) return;
      const isUnknown = error.status === 404; // a job of another account, or of an earlier server
      if (isUnknown) this.#removeRun(run.id);
      else run.error = error;
      this.#notify("runs");
    } finally {
      this.watchers.delete(run.id);
    }
  }

  #update(/** @type {Run} */ run, /** @type {Job} */ job) {
    const justFinished = isFinished(job) && !(run.job && isFinished(run.job));
    run.job = job;
    run.price ??= job.creditCost || null;
    this.#saveRun(run);
    this.#notify("runs");
    if (justFinished) this.dispatchEvent(new CustomEvent("finish", { detail: run }));
  }

  /** @type {(run: Run) => Promise<Job>} */
  async cancel(run) {
    const job = await post(`/v2/jobs/${run.id}/cancel`);
    this.#update(run, job);
    return job;
  }

  async deleteFiles(/** @type {Run} */ run) {
    const job = await remove(`/v2/jobs/${run.id}/files`);
    run.thumb = null;
    this.#revokeUrls(run.id);
    this.#update(run, job);
  }

  #removeRun(/** @type {string} */ id) {
    this.runs.delete(id);
    storage.remove("runs", id);
  }

  #revokeUrls(/** @type {string} */ id) {
    for (const key of [`result-${id}`, `thumb-${id}`]) {
      URL.revokeObjectURL(this.objectUrls.get(key) ?? "");
      this.objectUrls.delete(key);
    }
  }

  /**
   * Load a page of the job list, which has the jobs of other browsers too. Returns the cursor of the next page.
   * @param {string | null} cursor
   * @returns {Promise<string | null>}
   */
  async loadPage(cursor) {
    const page = await get(`/v2/jobs?limit=24${cursor ? `&cursor=${encodeURIComponent(cursor)}` : ""}`);
    for (const job of /** @type {Job[]} */ (page.jobs)) {
      const run = this.runs.get(job.id) ?? newRun(job.id, job.model, job);
      run.job = job;
      run.listed = true;
      this.runs.set(job.id, run);
      if (!isFinished(job)) this.watch(run);
    }
    this.#notify("runs");
    return page.nextCursor;
  }

  /** Load the result once and return its object URL. Throws ApiError. */
  async resultUrl(/** @type {FinishedRun} */ run) {
    const key = `result-${run.id}`;
    const url = this.objectUrls.get(key);
    if (url) return url;
    run.loading ??= fetchFile(run.job.result.images[0]).finally(() => {
      run.loading = null;
    });
    const blob = await run.loading;
    const newUrl = this.objectUrl(key, blob);
    if (!run.thumb) await this.#makeThumbnail(run, blob);
    return newUrl;
  }

  async #makeThumbnail(/** @type {Run} */ run, /** @type {Blob} */ blob) {
    run.thumb = await makeThumbnail(blob);
    if (run.thumb) {
      this.#saveRun(run);
      this.#notify("thumbnails");
    }
  }

  /** Make the thumbnail of a result, unless there is one or the result is too large. */
  async loadThumbnail(/** @type {FinishedRun} */ run) {
    if (run.thumb || run.job.expired || run.job.width * run.job.height > MAX_THUMBNAIL_SOURCE) return;
    await this.#makeThumbnail(run, await fetchFile(run.job.result.images[0]));
  }

  /**
   * Load the parameters of a run, which the job list leaves out.
   * @param {Run} run
   * @returns {Promise<Params>}
   */
  async loadParams(run) {
    if (run.params) return run.params;
    const job = await get(`/v2/jobs/${run.id}`);
    const { image: _image, ...params } = job.input ?? {};
    run.params = params;
    return params;
  }

  /** Forget all runs after signing out. Unfinished jobs go on at the server. */
  reset() {
    for (const watcher of this.watchers.values()) watcher.abort();
    this.watchers.clear();
    this.runs.clear();
    this.#notify("runs");
  }
}

/**
 * Create the run of a job.
 * @param {string} id of the job
 * @param {string} model
 * @param {Job | null} [job]
 * @returns {Run}
 */
export function newRun(id, model, job = null) {
  const at = job ? Date.parse(job.createdAt) : Date.now();
  return { id, at, model, job, imageId: null, name: "", params: null, price: null, thumb: null };
}

/** Return the status of a job in words. */
export function statusText(/** @type {Job | null} */ job) {
  if (!job) return t("Sending…");
  if (job.status === "QUEUED") {
    const position = job.queuePosition ?? 1;
    return position > 1 ? t("In the queue, {n} ahead", { n: position - 1 }) : t("Next in the queue");
  }
  if (job.status === "PROCESSING") {
    if (job.progress < 3) return t("Starting");
    return job.progress < 97 ? t("Upscaling") : t("Saving the result");
  }
  return PAGE_DATA.jobStates[job.status];
}
