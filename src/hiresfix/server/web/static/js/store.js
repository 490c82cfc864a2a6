// State shared by the parts of the studio: images and jobs, settings, the user, and what the preview shows.
// Call `redraw` after a change; studio.js listens and draws.

import * as api from "./api.js";
import { $, iconButton, setChildren } from "./dom.js";
import { t } from "./i18n.js";
import { Jobs } from "./jobs.js";
import * as storage from "./storage.js";

export const saved = storage.loadSettings();
export const jobs = new Jobs();

/** @type {Store} */
export const store = {
  me: null,
  controls: /** @type {any} */ (null),
  selected: saved.selected ?? null,
  left: null,
  right: null,
  estimate: null,
  variantParam: null,
  codeLanguage: saved.language ?? "curl",
  singleKeys: saved.singleKeys ?? true,
};

export const selectedImage = () => jobs.images.get(store.selected ?? "") ?? null;

/** Return true if the result of a run can be shown. */
export const isShowable = (/** @type {Run | undefined} */ run) => run?.job?.status === "COMPLETED" && !run.job.expired;

/** @returns {FinishedRun[]} */
export const showableRuns = () => /** @type {FinishedRun[]} */ ([...jobs.runs.values()].filter(isShowable));

/** @type {<T extends Run>(runs: T[]) => T[]} */
export const newestFirst = (runs) => [...runs].sort((a, b) => b.at - a.at);

/** Return the runs of the selected image, newest first. */
export function runsOfSelected() {
  return newestFirst([...jobs.runs.values()].filter((run) => run.imageId && run.imageId === store.selected));
}

/**
 * Return the runs whose results are on the right: one, or all of a group of variants.
 * @returns {FinishedRun[]}
 */
export function rightRuns() {
  if (store.right) return showableRuns().filter((run) => run.id === store.right);
  const runs = /** @type {FinishedRun[]} */ (runsOfSelected().filter(isShowable));
  const newest = runs[0];
  return runs.filter((run) => run === newest || (newest.group && run.group === newest.group)).reverse();
}

export const redraw = () => jobs.dispatchEvent(new CustomEvent("change"));

/** Announce that the image or the settings changed, so that the estimate and the code are out of date. */
export const requestEstimate = () => jobs.dispatchEvent(new Event("input"));

/** Select an image and show its newest results. */
export function selectImage(/** @type {string | null} */ id) {
  Object.assign(store, { selected: id, left: null, right: null });
  saveSettings();
  redraw();
  requestEstimate();
}

/** Save what a reload restores. */
export function saveSettings() {
  storage.saveSettings({
    selected: store.selected,
    open: [...jobs.images.keys()],
    controls: store.controls?.state(),
    language: store.codeLanguage,
    singleKeys: store.singleKeys,
  });
}

/**
 * Show a message above the workspace, which screen readers announce. "" removes it.
 * @param {Child} content
 * @param {"" | "good" | "warn" | "bad"} [kind]
 */
export function showNotice(content, kind = "") {
  const notice = $("notice");
  notice.className = content ? `notice ${kind}` : "";
  const dismiss = content && kind && iconButton(t("Dismiss"), "M6 6l12 12M18 6L6 18", () => showNotice(""));
  setChildren(notice, content, dismiss);
}

/** Announce a text to screen readers only. */
export function announce(/** @type {string} */ text) {
  $("announcer").textContent = text;
}

/**
 * Run an action and show its ApiError, if any.
 * @template T
 * @param {() => T} action
 * @returns {Promise<Awaited<T> | null>} null after an error
 */
export async function showErrors(action) {
  try {
    return await action();
  } catch (error) {
    if (error.name === "AbortError") return null;
    if (!(error instanceof api.ApiError)) throw error;
    showNotice(error.content, "bad");
    return null;
  }
}
