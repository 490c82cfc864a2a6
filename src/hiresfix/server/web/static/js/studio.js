// The studio's entry: puts the parts together, and draws when something changed.

import { showAccount } from "./account.js";
import * as api from "./api.js";
import { bench, guarded, remember, saved, say, selected, work } from "./bench.js";
import { Controls } from "./controls.js";
import * as deeds from "./deeds.js";
import { $, arrows, open, prepareDialogs } from "./dom.js";
import { History } from "./history.js";
import { listenToDrops, take, takeAddress, takeSample } from "./intake.js";
import * as keep from "./keep.js";
import { listenToKeys } from "./keyboard.js";
import { drawCode, drawPreview, drawVariants, listenToCode, previewKey, run, updatePreview } from "./order.js";
import * as session from "./session.js";
import { drawStage, drawStrip } from "./stage.js";
import { number, t } from "./text.js";

const history = new History(work, deeds);
let cursor = null;

async function loadHistory(after = null) {
  work.resume();
  cursor = await work.list(after);
  $("more").hidden = !cursor;
}

function drawAll() {
  drawStrip();
  drawStage();
  drawTitle();
  history.render();
  if (bench.controls) drawPreview();
}

function drawTitle() {
  const active = [...work.runs.values()].filter((found) => found.job && !api.isOver(found.job));
  const least = active.length ? `${Math.min(...active.map((found) => found.job.progress))} % · ` : "";
  document.title = least + t("Studio") + " – hiresfix";
}

function listen() {
  prepareDialogs();
  arrows($("account-tabs"));
  listenToDrops();
  listenToCode();
  listenToKeys();
  const pressed = {
    choose: () => $("files").click(),
    camera: () => $("capture").click(),
    sample: takeSample,
    "open-signin": () => session.askForKey(),
    "open-help": () => open($("help")),
    "open-account": () => guarded(showPanels),
    more: () => guarded(() => loadHistory(cursor)),
  };
  for (const [id, deed] of Object.entries(pressed)) $(id).addEventListener("click", deed);
  $("url-form").addEventListener("submit", takeAddress);
  for (const id of ["files", "capture"]) {
    $(id).addEventListener("change", async () => {
      await take($(id).files);
      $(id).value = "";
    });
  }
  $("settings").addEventListener("submit", (event) => {
    event.preventDefault();
    run();
  });
  for (const id of ["variant-count", "variant-by"]) {
    $(id).addEventListener("change", () => {
      bench.varied = $("variant-by").value;
      drawVariants();
      drawPreview();
    });
  }
  $("signin-form").addEventListener("submit", session.signIn);
  addEventListener("hashchange", session.signInByLink);
  api.whenRefused((error) => {
    bench.me = null;
    api.setKey(null);
    keep.forgetKey();
    session.showMe();
    session.askForKey(error.text);
  });
  work.addEventListener("change", ({ detail }) => {
    if (detail === "thumbs") history.render();
    else drawSoon();
  });
  work.addEventListener("order", updatePreview);
  work.addEventListener("entered", async () => {
    await guarded(() => loadHistory());
    updatePreview();
  });
  work.addEventListener("end", ({ detail }) => ended(detail));
}

async function showPanels() {
  await session.refreshMe();
  open($("account"));
  await showAccount(bench.me);
}

let scheduled = false;

/** Many changes of one moment are drawn once. */
function drawSoon() {
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    drawAll();
  });
}

function ended(found) {
  session.refreshMeSoon();
  const name = found.name || found.id.slice(0, 8);
  if (found.job.status === "COMPLETED") say(t("Done: {name}, {width} × {height}.", { name, width: number(found.job.width, 0), height: number(found.job.height, 0) }), "good");
  if (found.job.status === "FAILED") say(t("{name} did not work. Your credits came back.", { name }), "bad");
}

async function begin() {
  listen();
  const { models } = await api.get("/v2/models?modality=image");
  bench.controls = new Controls(models, {
    changed: (reason) => {
      drawVariants();
      remember();
      if (reason === "value" && bench.preview?.key === previewKey()) {
        drawPreview();
        drawCode();
      } else updatePreview();
    },
  });
  bench.controls.restore(saved.controls);
  drawVariants();
  await work.restore(saved.open ?? []);
  if (!selected()) bench.selected = work.pictures.keys().next().value ?? null;
  if (!(await session.signInByLink()) && (await session.enterAgain())) await guarded(() => loadHistory());
  session.showMe();
  drawAll();
  updatePreview();
  document.documentElement.dataset.ready = "";
}

guarded(begin);
