// What the parts of the studio share: pictures and jobs (`work`), the settings (`controls`), who is signed in, what is
// looked at. Whoever changes something calls `redraw`; studio.js listens and draws.

import * as api from "./api.js";
import { $, fillWith, tool } from "./dom.js";
import * as keep from "./keep.js";
import { t } from "./text.js";
import { Work } from "./work.js";

export const saved = keep.loadSettings();
export const work = new Work();

export const bench = {
  me: null,
  controls: null,
  selected: saved.selected ?? null,
  left: null, // null: the selected picture as it was; else a run's id
  right: null, // null: the newest result, or all of its group
  preview: null, // { key, answer } or { key, error }
  language: saved.language ?? "curl",
  singleKeys: saved.singleKeys ?? true,
};

export const selected = () => work.pictures.get(bench.selected) ?? null;

export const isShowable = (found) => found.job?.status === "COMPLETED" && !found.job.expired;
export const newestFirst = (runs) => [...runs].sort((a, b) => b.at - a.at);

/** Runs of the selected picture, the newest first. */
export const ownRuns = () => newestFirst([...work.runs.values()].filter((found) => found.picture && found.picture === bench.selected));

/** The results that are shown on the right: one, or those of a group of variants. */
export function rightRuns() {
  if (bench.right) return [work.runs.get(bench.right)].filter((found) => found && isShowable(found));
  const own = ownRuns().filter(isShowable);
  if (!own.length) return [];
  const group = own[0].group;
  return own.filter((found) => found === own[0] || (group && found.group === group)).reverse();
}

export const redraw = () => work.dispatchEvent(new CustomEvent("change", { detail: "bench" }));

/** Look at another picture. */
export function select(id) {
  Object.assign(bench, { selected: id, left: null, right: null });
  remember();
  redraw();
  work.dispatchEvent(new Event("order"));
}

/** Keep what a reload is to bring back. */
export function remember() {
  keep.keepSettings({ selected: bench.selected, open: [...work.pictures.keys()], controls: bench.controls?.state(), language: bench.language, singleKeys: bench.singleKeys });
}

/** One line above the bench, read out by screen readers; "" takes it away. */
export function say(text, kind = "") {
  const notice = $("notice");
  notice.className = text ? `notice ${kind}` : "";
  fillWith(notice, text, text && kind && tool(t("Dismiss"), "M6 6l12 12M18 6L6 18", () => say("")));
}

/** Told to screen readers only. */
export const speak = (text) => ($("spoken").textContent = text);

/** Do something the server may refuse; the refusal is shown. */
export async function guarded(action) {
  try {
    return await action();
  } catch (error) {
    if (error.name === "AbortError") return null;
    if (!(error instanceof api.ApiError)) throw error;
    say(error.text, "bad");
    return null;
  }
}
