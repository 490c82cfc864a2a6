// What can be done with a job after it was submitted.

import { credits } from "./account.js";
import * as api from "./api.js";
import { bench, guarded, redraw, remember, rightRuns, say, select, work } from "./bench.js";
import { $, fillWith, open } from "./dom.js";
import { facts } from "./history.js";
import { refreshMeSoon } from "./session.js";
import { t } from "./text.js";

export async function cancel(found) {
  const before = found.price;
  const job = await work.cancel(found);
  refreshMeSoon();
  if (job.status === "CANCELLED") say(before ? t("Cancelled. {credits} came back.", { credits: credits(before) }) : t("Cancelled. Your credits came back."), "good");
}

export async function erase(found) {
  if (!confirm(t("Delete this picture from the server now? It cannot be brought back."))) return;
  await work.deleteFiles(found);
  if (found.id === bench.right || found.id === bench.left) Object.assign(bench, { left: null, right: null });
  redraw();
  say(t("The files are deleted."));
}

export async function look(found) {
  const picture = found.picture && (await work.recall(found.picture));
  if (picture && !work.pictures.has(picture.id)) work.pictures.set(picture.id, picture);
  Object.assign(bench, { selected: picture?.id ?? null, left: null, right: found.id });
  remember();
  redraw();
  work.dispatchEvent(new Event("order"));
  $("stage").scrollIntoView({ block: "nearest" });
  $("viewer").querySelector(".surface").focus({ preventScroll: true });
}

export function compare(found) {
  if (!rightRuns().length || bench.right === found.id) return look(found);
  bench.right ??= rightRuns()[0].id;
  bench.left = found.id;
  redraw();
  $("stage").scrollIntoView({ block: "nearest" });
}

export async function reuse(found) {
  const params = await work.input(found);
  const picture = found.picture && (await work.recall(found.picture));
  bench.controls.restore({ model: found.job.model, preset: found.preset ?? null, values: params });
  if (picture) {
    if (!work.pictures.has(picture.id)) work.pictures.set(picture.id, picture);
    select(picture.id);
    say(t("Settings and picture are back: change what you like and run it again."));
  } else {
    work.dispatchEvent(new Event("order"));
    say(t("The settings are back. The picture itself is not in this browser any more: choose it again."));
  }
  $("expert").open = true;
  remember();
  $("settings").scrollIntoView({ block: "nearest" });
}

export async function details(found) {
  const params = await work.input(found);
  if (!found.job || found.listed) found.job = { ...found.job, ...(await api.get(`/v2/jobs/${found.id}`)) };
  fillWith($("details-body"), facts(found, params));
  open($("details"));
}

export async function lookAtJob(id) {
  await guarded(async () => {
    const job = await api.get(`/v2/jobs/${id}`);
    await details(work.runs.get(id) ?? { id, at: Date.parse(job.createdAt), picture: null, name: "", model: job.model, params: null, job });
  });
}
