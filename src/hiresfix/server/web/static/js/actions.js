// What the user can do with a submitted job.

import * as api from "./api.js";
import { $, openDialog, setChildren } from "./dom.js";
import { formatCredits } from "./format.js";
import { jobDetails } from "./history.js";
import { t } from "./i18n.js";
import { newRun } from "./jobs.js";
import { refreshMeSoon } from "./session.js";
import {
  jobs,
  redraw,
  requestEstimate,
  rightRuns,
  saveSettings,
  selectImage,
  showErrors,
  showNotice,
  store,
} from "./store.js";

export async function cancel(/** @type {Run} */ run) {
  const { price } = run;
  const job = await jobs.cancel(run);
  refreshMeSoon();
  if (job.status !== "CANCELLED") return;
  const message = price
    ? t("Cancelled. {credits} refunded.", { credits: formatCredits(price) })
    : t("Cancelled. Your credits were refunded.");
  showNotice(message, "good");
}

export async function deleteFiles(/** @type {Run} */ run) {
  if (!confirm(t("Delete this image from the server now? This cannot be undone."))) return;
  await jobs.deleteFiles(run);
  if (run.id === store.right || run.id === store.left) Object.assign(store, { left: null, right: null });
  redraw();
  showNotice(t("The files were deleted."));
}

/** Show the result of a run, and its source image if this browser has it. */
export async function show(/** @type {Run} */ run) {
  const image = await addSourceImage(run);
  Object.assign(store, { selected: image?.id ?? null, left: null, right: run.id });
  saveSettings();
  redraw();
  requestEstimate();
  $("preview").scrollIntoView({ block: "nearest" });
  const surface = /** @type {HTMLElement} */ ($("viewer").querySelector(".surface"));
  surface.focus({ preventScroll: true });
}

/** Add the source image of a run to the workspace, if this browser has it. */
async function addSourceImage(/** @type {Run} */ run) {
  const image = run.imageId ? await jobs.findImage(run.imageId) : null;
  if (image && !jobs.images.has(image.id)) jobs.images.set(image.id, image);
  return image;
}

/** Show the result of a run at the left of the current one. */
export async function compare(/** @type {Run} */ run) {
  const current = rightRuns();
  if (!current.length || store.right === run.id) return show(run);
  store.right ??= current[0].id;
  store.left = run.id;
  redraw();
  $("preview").scrollIntoView({ block: "nearest" });
}

/** Restore the settings of a run, and its image if this browser has it. */
export async function reuse(/** @type {Run} */ run) {
  const params = await jobs.loadParams(run);
  const image = await addSourceImage(run);
  store.controls.restore({ model: run.job?.model, preset: run.preset ?? null, values: params });
  if (image) {
    selectImage(image.id);
    showNotice(t("Image and settings restored. Change what you like and run it again."));
  } else {
    requestEstimate();
    showNotice(t("Settings restored. The image is no longer in this browser; choose it again."));
  }
  $("expert").open = true;
  saveSettings();
  $("settings").scrollIntoView({ block: "nearest" });
}

export async function showDetails(/** @type {Run} */ run) {
  const params = await jobs.loadParams(run);
  if (!run.job || run.listed) run.job = { ...run.job, ...(await api.get(`/v2/jobs/${run.id}`)) };
  setChildren($("details-body"), jobDetails(run.id, /** @type {Job} */ (run.job), params));
  openDialog($("details"));
}

/** Show the details of a job that need not be in the history. */
export async function showJobDetails(/** @type {string} */ id) {
  await showErrors(async () => {
    const job = await api.get(`/v2/jobs/${id}`);
    await showDetails(jobs.runs.get(id) ?? newRun(id, job.model, job));
  });
}
