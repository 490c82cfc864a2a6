// Entry point of the studio: connects the parts, and draws after changes.

import { showAccount } from "./account.js";
import * as actions from "./actions.js";
import * as api from "./api.js";
import { Controls } from "./controls.js";
import { $, enableArrowKeys, openDialog, prepareDialogs } from "./dom.js";
import { HistoryList } from "./history.js";
import { formatNumber, t } from "./i18n.js";
import { listenForKeys } from "./keyboard.js";
import { drawFilmstrip, drawPreview } from "./preview.js";
import * as session from "./session.js";
import { drawCode, listenForCode } from "./snippets.js";
import * as storage from "./storage.js";
import { jobs, saved, saveSettings, selectedImage, showErrors, showNotice, store } from "./store.js";
import { drawEstimate, drawVariants, isEstimateCurrent, submitAll, updateEstimate } from "./submit.js";
import { addFiles, addFromUrl, addSample, listenForDrops } from "./upload.js";

const historyList = new HistoryList(jobs, actions);

/** @type {string | null} of the next page of the history */
let nextCursor = null;

async function loadHistory(/** @type {string | null} */ cursor = null) {
  jobs.resume();
  nextCursor = await jobs.loadPage(cursor);
  $("more").hidden = !nextCursor;
}

function drawAll() {
  drawFilmstrip();
  drawPreview();
  drawTitle();
  historyList.render();
  if (store.controls) drawEstimate();
}

let isDrawScheduled = false;

/** Draw once for all changes before the next frame. */
function scheduleDraw() {
  if (isDrawScheduled) return;
  isDrawScheduled = true;
  requestAnimationFrame(() => {
    isDrawScheduled = false;
    drawAll();
  });
}

/** Show the progress of the slowest job in the title. */
function drawTitle() {
  const active = [...jobs.runs.values()].flatMap(({ job }) => (job && !api.isFinished(job) ? [job.progress] : []));
  const progress = active.length ? `${Math.min(...active)}% · ` : "";
  const title = t("Studio");
  document.title = `${progress}${title} – hiresfix`;
}

function listenForClicks() {
  /** @type {[string, () => unknown][]} */
  const buttons = [
    ["choose", () => $("files").click()],
    ["camera", () => $("capture").click()],
    ["sample", addSample],
    ["open-signin", () => session.askForKey()],
    ["open-help", () => openDialog($("help"))],
    ["open-account", () => showErrors(openAccount)],
    ["more", () => showErrors(() => loadHistory(nextCursor))],
  ];
  for (const [id, action] of buttons) $(id).addEventListener("click", action);
}

function listenForInput() {
  for (const input of [$("files"), $("capture")]) {
    input.addEventListener("change", async () => {
      await addFiles(input.files ?? []);
      input.value = "";
    });
  }
  for (const select of [$("variant-count"), $("variant-param")]) {
    select.addEventListener("change", () => {
      store.variantParam = $("variant-param").value;
      drawVariants();
      drawEstimate();
    });
  }
  $("settings").addEventListener("submit", (event) => {
    event.preventDefault();
    submitAll();
  });
  $("url-form").addEventListener("submit", addFromUrl);
  $("signin-form").addEventListener("submit", session.signIn);
  addEventListener("hashchange", session.signInByLink);
}

function listenForChanges() {
  api.onUnauthorized((error) => {
    store.me = null;
    api.setKey(null);
    storage.deleteKey();
    session.showMe();
    session.askForKey(error.content);
  });
  jobs.addEventListener("change", (event) => {
    const { detail } = /** @type {CustomEvent} */ (event);
    if (detail === "thumbnails") historyList.render();
    else scheduleDraw();
  });
  jobs.addEventListener("input", updateEstimate);
  jobs.addEventListener("signin", async () => {
    await showErrors(() => loadHistory());
    updateEstimate();
  });
  jobs.addEventListener("finish", (event) => showOutcome(/** @type {CustomEvent} */ (event).detail));
}

async function openAccount() {
  await session.refreshMe();
  openDialog($("account"));
  await showAccount(/** @type {Me} */ (store.me));
}

/** Show how a job ended. */
function showOutcome(/** @type {FinishedRun} */ { id, name: imageName, job }) {
  session.refreshMeSoon();
  const name = imageName || id.slice(0, 8);
  if (job.status === "COMPLETED") {
    const size = { width: formatNumber(job.width, 0), height: formatNumber(job.height, 0) };
    showNotice(t("Done: {name}, {width} × {height}.", { name, ...size }), "good");
  } else if (job.status === "FAILED") {
    showNotice(t("{name} failed. Your credits were refunded.", { name }), "bad");
  }
}

function onSettingsChange(/** @type {"model" | "scale" | "value"} */ reason) {
  drawVariants();
  saveSettings();
  if (reason === "value" && isEstimateCurrent()) {
    drawEstimate();
    drawCode();
  } else {
    updateEstimate();
  }
}

async function start() {
  prepareDialogs();
  enableArrowKeys($("account-tabs"));
  listenForDrops();
  listenForCode();
  listenForKeys();
  listenForClicks();
  listenForInput();
  listenForChanges();
  const { models } = await api.get("/v2/models?modality=image");
  store.controls = new Controls(models, onSettingsChange);
  store.controls.restore(saved.controls);
  drawVariants();
  await jobs.restore(saved.open ?? []);
  if (!selectedImage()) store.selected = [...jobs.images.keys()][0] ?? null;
  const hasLink = await session.signInByLink();
  if (!hasLink && (await session.resumeSession())) await showErrors(() => loadHistory());
  session.showMe();
  drawAll();
  updateEstimate();
  document.documentElement.dataset.ready = "";
}

showErrors(start);
