// The picture in the middle: what was before, what came of it, what is still under way; and the strip of pictures.

import { fromNow } from "./account.js";
import * as api from "./api.js";
import { bench, guarded, isShowable, newestFirst, ownRuns, redraw, remember, rightRuns, select, selected, speak, work } from "./bench.js";
import { nameOf, shown } from "./controls.js";
import { $, fillWith, h, icon } from "./dom.js";
import { cancel } from "./deeds.js";
import { duration } from "./order.js";
import { t } from "./text.js";
import { told } from "./told.js";
import { Viewer } from "./viewer.js";
import { stage } from "./work.js";

export const viewer = new Viewer($("viewer"), $("stage-bar"), { said: speak });

/** What tells a run from its neighbours. */
function labelOf(found, among = []) {
  const differing = Object.keys(found.params ?? {}).filter((name) => among.some((other) => other.params?.[name] !== found.params[name]));
  if (differing.length && among.length > 1) return differing.map((name) => `${nameOf(name)} ${shown(name, found.params[name])}`).join(", ");
  return t("After");
}

let drawing = 0;

/** The viewer. Loading takes time; only the newest wish is shown. */
export async function drawStage() {
  const turn = ++drawing;
  const picture = selected();
  const runs = rightRuns();
  const empty = !picture && !runs.length;
  $("intake").hidden = !empty;
  $("viewer").hidden = $("stage-bar").hidden = empty;
  $("stage").toggleAttribute("data-empty", empty);
  drawWorking();
  if (empty) return viewer.clear();
  const left = bench.left ? work.runs.get(bench.left) : null;
  const panes = [];
  if (left) panes.push(await paneOf(left, t("Left")));
  else if (picture?.blob && picture.visible !== false) panes.push({ label: runs.length ? t("Before") : t("Original"), url: work.addressOf(picture.id, picture.blob), width: picture.width || 1, height: picture.height || 1 });
  for (const found of runs) panes.push(await paneOf(found, left ? t("Right") : labelOf(found, runs), runs.length > 1));
  if (turn !== drawing) return;
  const good = panes.filter(Boolean);
  if (good.length) viewer.show(good);
  else viewer.clear();
  const offered = [bench.selected, bench.left, bench.right, ...[...work.runs.values()].filter(isShowable).map((found) => found.id)].join();
  if (offered !== viewer.offered) fillWith(viewer.extra, choosers(runs), downloads(runs)); // else a list that is open would close
  viewer.offered = offered;
  $("viewer").toggleAttribute("data-nothing", !good.length);
}

async function paneOf(found, label, several = false) {
  const url = await guarded(() => work.result(found));
  const pick = several ? () => Object.assign(bench, { right: found.id }) && redraw() : null;
  return url && { label, url, width: found.job.width, height: found.job.height, pick };
}

/** Selects by which any two of what there is can be compared. */
function choosers(runs) {
  const candidates = newestFirst([...work.runs.values()].filter(isShowable));
  if (candidates.length < 2 || !runs.length) return [];
  const name = (found) => `${found.name || found.id.slice(0, 8)} · ${found.job.width} × ${found.job.height} · ${fromNow(found.job.completedAt)}`;
  const build = (side, label, first) => h("select", { "aria-label": label, "data-side": side, onchange: ({ target }) => {
    bench[side] = target.value || null;
    if (side === "left" && !bench.right && runs.length > 1) bench.right = runs.at(-1).id;
    redraw();
    viewer.extra.querySelector(`[data-side="${side}"]`)?.focus();
  } }, first && h("option", { value: "" }, first), candidates.map((found) => h("option", { value: found.id, selected: bench[side] === found.id || (side === "right" && !first && runs[0] === found) }, name(found))));
  const group = !bench.right && runs.length > 1;
  return [h("span.choosers", build("left", t("Left picture"), selected() ? t("Before") : t("Nothing")), build("right", t("Right picture"), group ? t("All variants") : selected() && ownRuns().some(isShowable) ? t("Newest") : ""))];
}

function downloads(runs) {
  if (runs.length !== 1) return [];
  return [h("a.button.small.primary", { href: api.here(runs[0].job.result.images[0]), download: "" }, t("Download"))];
}

function drawWorking() {
  const place = $("working");
  const active = ownRuns().filter((found) => !found.job || !api.isOver(found.job)).reverse();
  const last = ownRuns()[0];
  const failed = last?.job && last.job.status === "FAILED" && !rightRuns().includes(last) ? [last] : [];
  place.hidden = !active.length && !failed.length;
  const focused = document.activeElement?.closest("#working") && document.activeElement.dataset.id;
  fillWith(
    place,
    active.slice(0, 6).map((found) => progress(found, active.length)),
    !active.length && failed.map((found) => h("div.notice.bad", h("p", t("This did not work. Your credits came back.")), h("p.small", told(found.job.error)))),
  );
  if (focused) (place.querySelector(`[data-id="${focused}"]`) ?? $("run")).focus();
  const words = active.length ? stage(active[0].job) : "";
  if (words !== spoken) speak((spoken = words)); // once for each stage, not with every percent
}

let spoken = "";

function progress(found, among) {
  const job = found.job;
  const words = stage(job);
  const eta = job?.etaSeconds ? t("about {time} left", { time: duration(job.etaSeconds) }) : "";
  const percent = job?.progress ?? 0;
  return h("div.job",
    h("div.job-text",
      h("strong", among > 1 ? labelOf(found, ownRuns().filter((other) => other.group === found.group)) + ": " : "", words),
      h("span.muted", [job?.status === "PROCESSING" ? `${percent} %` : "", eta].filter(Boolean).join(" · "))),
    h("progress", { max: 100, "aria-label": words, ...(job?.status === "PROCESSING" ? { value: percent } : {}) }),
    h("button.button.small", { "data-id": found.id, disabled: !job, onclick: () => guarded(() => cancel(found)) }, t("Cancel")));
}

const nameWithError = ({ name, error }) => (error ? `${name}: ${error.explained}` : name);

export function drawStrip() {
  const strip = $("strip");
  const pictures = [...work.pictures.values()];
  strip.hidden = !pictures.length && !rightRuns().length; // while there is something else, it is the way in
  const focused = document.activeElement?.closest("#strip") && document.activeElement.dataset.key;
  fillWith(
    strip,
    pictures.map((picture) => h("div.strip-item",
      h("button.strip-pick", { "data-key": `pick-${picture.id}`, "aria-pressed": String(picture.id === bench.selected), "aria-label": nameWithError(picture), title: nameWithError(picture), onclick: () => select(picture.id) },
        picture.blob && picture.visible !== false ? h("img", { src: work.addressOf(picture.id, picture.blob), alt: "" }) : icon("M4 5h16v14H4z"),
        picture.error && h("span.strip-wrong", { "aria-hidden": "true" }, "!")),
      h("button.strip-drop", { "data-key": `drop-${picture.id}`, "aria-label": t("Take {name} off", { name: picture.name }), onclick: () => takeOff(picture.id) }, icon("M7 7l10 10M17 7L7 17")))),
    h("button.strip-add", { "data-key": "add", onclick: () => $("files").click(), "aria-label": t("Add pictures"), title: t("Add pictures") }, icon("M12 5v14M5 12h14")),
  );
  if (focused) strip.querySelector(`[data-key="${focused}"]`)?.focus();
}

function takeOff(id) {
  work.pictures.delete(id); // the kept copy stays for the history's sake, until it is the oldest
  if (bench.selected === id) select([...work.pictures.keys()].pop() ?? null);
  else redraw();
  remember();
  work.dispatchEvent(new Event("order"));
  (work.pictures.size ? $("strip").querySelector(".strip-add") : $("choose")).focus();
}
