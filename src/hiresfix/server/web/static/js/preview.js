// The preview in the middle: source image, results and running jobs; and the filmstrip of images below.

import { cancel } from "./actions.js";
import { isFinished, sameOriginUrl } from "./api.js";
import { formatValue, paramLabel } from "./controls.js";
import { $, h, icon, setChildren } from "./dom.js";
import { renderJobError } from "./error_messages.js";
import { formatDuration, formatRelativeTime } from "./format.js";
import { t } from "./i18n.js";
import { statusText } from "./jobs.js";
import {
  announce,
  isShowable,
  jobs,
  newestFirst,
  redraw,
  requestEstimate,
  rightRuns,
  runsOfSelected,
  saveSettings,
  selectedImage,
  selectImage,
  showableRuns,
  showErrors,
  store,
} from "./store.js";
import { Viewer } from "./viewer.js";

const MAX_ACTIVE_SHOWN = 6;

export const viewer = new Viewer($("viewer"), $("toolbar"), announce);

/** Return the parameters in which a run differs from others, or "After". */
function runLabel(/** @type {Run} */ run, /** @type {Run[]} */ others) {
  const params = run.params ?? {};
  const differing = Object.keys(params).filter((name) => others.some((other) => other.params?.[name] !== params[name]));
  if (!differing.length || others.length < 2) return t("After");
  return differing.map((name) => `${paramLabel(name)} ${formatValue(name, params[name])}`).join(", ");
}

let lastDraw = 0;
let lastChoices = "";

/** Draw the preview. Loading takes time: only the newest call is shown. */
export async function drawPreview() {
  const draw = ++lastDraw;
  const runs = rightRuns();
  const isEmpty = !selectedImage() && !runs.length;
  $("upload").hidden = !isEmpty;
  $("viewer").hidden = isEmpty;
  $("toolbar").hidden = isEmpty;
  $("preview").toggleAttribute("data-empty", isEmpty);
  drawActiveJobs();
  if (isEmpty) return viewer.clear();
  const panes = await loadPanes(runs);
  if (draw !== lastDraw) return;
  if (panes.length) viewer.show(panes);
  else viewer.clear();
  $("viewer").toggleAttribute("data-nothing", !panes.length);
  const choices = [store.selected, store.left, store.right, ...showableRuns().map((run) => run.id)].join();
  // Redrawing would close an open list.
  if (choices !== lastChoices) setChildren(viewer.extra, compareSelects(runs), downloadLink(runs));
  lastChoices = choices;
}

/** Load what the viewer shows: "before" first, then the results. */
async function loadPanes(/** @type {FinishedRun[]} */ runs) {
  const left = showableRuns().find((run) => run.id === store.left);
  const image = selectedImage();
  /** @type {(Pane | null)[]} */
  const panes = [];
  if (left) panes.push(await resultPane(left, t("Left")));
  else if (image?.blob && image.visible !== false) {
    const label = runs.length ? t("Before") : t("Original");
    const url = jobs.objectUrl(image.id, image.blob);
    panes.push({ label, url, width: image.width || 1, height: image.height || 1 });
  }
  for (const run of runs) panes.push(await resultPane(run, left ? t("Right") : runLabel(run, runs), runs.length > 1));
  return panes.filter((pane) => pane !== null);
}

/** @type {(run: FinishedRun, label: string, isVariant?: boolean) => Promise<Pane | null>} */
async function resultPane(run, label, isVariant = false) {
  const url = await showErrors(() => jobs.resultUrl(run));
  if (!url) return null;
  const onSelect = () => {
    store.right = run.id;
    redraw();
  };
  return { label, url, width: run.job.width, height: run.job.height, onSelect: isVariant ? onSelect : null };
}

/** Create two selects to compare any two results. */
function compareSelects(/** @type {FinishedRun[]} */ runs) {
  const candidates = newestFirst(showableRuns());
  if (candidates.length < 2 || !runs.length) return null;
  const leftDefault = selectedImage() ? t("Before") : t("None");
  const rightDefault = defaultOnRight(runs);
  const onRight = rightDefault ? store.right : runs[0].id;
  return h(
    "span.compare-selects",
    compareSelect("left", t("Left image"), leftDefault, candidates, store.left),
    compareSelect("right", t("Right image"), rightDefault, candidates, onRight),
  );
}

/** Return the name of what the right side shows when nothing is chosen. Empty if a result must be chosen. */
function defaultOnRight(/** @type {FinishedRun[]} */ runs) {
  if (!store.right && runs.length > 1) return t("All variants");
  const hasResults = selectedImage() && runsOfSelected().some(isShowable);
  return hasResults ? t("Latest") : "";
}

/**
 * @param {"left" | "right"} side
 * @param {string} label
 * @param {string} defaultLabel of the option that takes the choice back
 * @param {FinishedRun[]} runs to choose from
 * @param {string | null} selected ID of a run
 */
function compareSelect(side, label, defaultLabel, runs, selected) {
  const onchange = () => {
    const variants = rightRuns();
    store[side] = select.value || null;
    if (side === "left" && !store.right && variants.length > 1) store.right = variants[variants.length - 1].id;
    redraw();
    select.focus();
  };
  const defaultOption = defaultLabel && h("option", { value: "" }, defaultLabel);
  const options = runs.map((run) => h("option", { value: run.id, selected: run.id === selected }, optionLabel(run)));
  const select = h("select", { "aria-label": label, "data-side": side, onchange }, defaultOption, options);
  return select;
}

function optionLabel(/** @type {FinishedRun} */ { id, name, job }) {
  const age = job.completedAt ? formatRelativeTime(job.completedAt) : "";
  return `${name || id.slice(0, 8)} · ${job.width} × ${job.height} · ${age}`;
}

function downloadLink(/** @type {FinishedRun[]} */ runs) {
  if (runs.length !== 1) return null;
  const href = sameOriginUrl(runs[0].job.result.images[0]);
  return h("a.button.small.primary", { href, download: "" }, t("Download"));
}

let lastAnnounced = "";

/** Draw the progress of the selected image's jobs, or why the last one failed. */
function drawActiveJobs() {
  const container = $("active-jobs");
  const runs = runsOfSelected();
  const active = runs.filter((run) => !run.job || !isFinished(run.job)).reverse();
  const last = runs[0]?.job;
  const failed = !active.length && last?.status === "FAILED" ? last : null;
  container.hidden = !active.length && !failed;
  const focused = /** @type {HTMLElement} */ (document.activeElement);
  const focusedId = focused.closest("#active-jobs") && focused.dataset.id;
  setChildren(
    container,
    active.slice(0, MAX_ACTIVE_SHOWN).map((run) => activeJob(run, active.length)),
    failed && failureNotice(failed),
  );
  if (focusedId) focusOr(container.querySelector(`[data-id="${focusedId}"]`), $("run"));
  const status = active.length ? statusText(active[0].job) : "";
  if (status !== lastAnnounced) announce(status); // once for each status, not with every percent
  lastAnnounced = status;
}

/** Move the focus to an element, or to another one if it is gone. */
function focusOr(/** @type {Element | null} */ element, /** @type {HTMLElement} */ fallback) {
  /** @type {HTMLElement} */ (element ?? fallback).focus();
}

function failureNotice(/** @type {Job} */ job) {
  const summary = h("p", t("Upscaling failed. Your credits were refunded."));
  return h("div.notice.bad", summary, h("p.small", renderJobError(job)));
}

function activeJob(/** @type {Run} */ run, /** @type {number} */ activeCount) {
  const { job } = run;
  const status = statusText(job);
  const progress = job?.status === "PROCESSING" ? job.progress : undefined;
  const percent = progress === undefined ? "" : `${progress}%`;
  const time = job?.etaSeconds ? t("about {time} left", { time: formatDuration(job.etaSeconds) }) : "";
  const group = runsOfSelected().filter((other) => other.group === run.group);
  const label = activeCount > 1 ? `${runLabel(run, group)}: ` : "";
  const onclick = () => showErrors(() => cancel(run));
  return h(
    "div.job",
    h("div.job-text", h("strong", label, status), h("span.muted", [percent, time].filter(Boolean).join(" · "))),
    h("progress", { max: 100, "aria-label": status, value: progress }),
    h("button.button.small", { "data-id": run.id, disabled: !job, onclick }, t("Cancel")),
  );
}

export function drawFilmstrip() {
  const filmstrip = $("filmstrip");
  const images = [...jobs.images.values()];
  filmstrip.hidden = !images.length && !rightRuns().length; // with a result but no image, it offers to add one
  const focused = /** @type {HTMLElement} */ (document.activeElement);
  const focusedKey = focused.closest("#filmstrip") && focused.dataset.key;
  const label = t("Add images");
  const onclick = () => $("files").click();
  const properties = { "data-key": "add", "aria-label": label, title: label, onclick };
  const addButton = h("button.filmstrip-add", properties, icon("M12 5v14M5 12h14"));
  setChildren(filmstrip, images.map(filmstripItem), addButton);
  if (focusedKey) focusOr(filmstrip.querySelector(`[data-key="${focusedKey}"]`), focused);
}

function filmstripItem(/** @type {SourceImage} */ image) {
  const { id, name, blob, error } = image;
  const label = error ? `${name}: ${error.summary}` : name;
  const selectProperties = {
    "data-key": `select-${id}`,
    "aria-pressed": String(id === store.selected),
    "aria-label": label,
    title: label,
    onclick: () => selectImage(id),
  };
  const removeProperties = {
    "data-key": `remove-${id}`,
    "aria-label": t("Remove {name}", { name }),
    onclick: () => removeFromWorkspace(id),
  };
  const isVisible = blob && image.visible !== false;
  const thumbnail = isVisible ? h("img", { src: jobs.objectUrl(id, blob), alt: "" }) : icon("M4 5h16v14H4z");
  const errorMark = error && h("span.filmstrip-error", { "aria-hidden": "true" }, "!");
  return h(
    "div.filmstrip-item",
    h("button.filmstrip-select", selectProperties, thumbnail, errorMark),
    h("button.filmstrip-remove", removeProperties, icon("M7 7l10 10M17 7L7 17")),
  );
}

/** Take an image out of the workspace. Its stored copy stays for the history. */
function removeFromWorkspace(/** @type {string} */ id) {
  jobs.images.delete(id);
  if (store.selected === id) selectImage([...jobs.images.keys()].pop() ?? null);
  else redraw();
  saveSettings();
  requestEstimate();
  focusOr(jobs.images.size ? $("filmstrip").querySelector(".filmstrip-add") : null, $("choose"));
}
